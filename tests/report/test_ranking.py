"""What is said of plans is as sure as the documents make it: errors, correlations and orders against plain references."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import scipy.stats

from strata.report.ranking import agreement, correlation, front, gap, loss
from strata.screen.tried import Tried

RANDOM = np.random.default_rng(3)


def plan(order: tuple[int, ...], value: float) -> Tried:
    return Tried(order, "repeat", "", (value,))


def test_a_loss_is_a_ratio_of_sums_with_the_error_of_a_bootstrap_over_documents() -> None:
    nats, targets = tuple(RANDOM.uniform(200, 400, 12).tolist()), tuple([100] * 11 + [30])
    found = loss(nats, targets)
    assert found is not None
    assert found.value == pytest.approx(sum(nats) / sum(targets))
    draws = RANDOM.integers(0, 12, (20_000, 12))
    error = (np.array(nats)[draws].sum(1) / np.array(targets)[draws].sum(1)).std()
    margin = scipy.stats.t.ppf(0.975, 11) * error * math.sqrt(12 / 11)
    assert (found.high - found.low) / 2 == pytest.approx(margin, rel=0.03)


def test_a_gap_is_paired() -> None:
    """Documents differ by far more than the plans do: unpaired, nothing could be told."""
    base = RANDOM.uniform(100, 900, 16)
    other = base - 5 + RANDOM.normal(0, 1, 16)
    found = gap(tuple(other.tolist()), tuple(base.tolist()), (100,) * 16)
    assert found is not None and found.is_clear and found.value < 0
    one = loss(tuple(other.tolist()), (100,) * 16)
    assert one is not None and one.high - one.low > 50 * (found.high - found.low)


def test_a_text_too_short_cannot_tell_plans_apart_and_the_interval_says_so() -> None:
    found = gap((101.0, 99.5), (100.0, 100.0), (40, 40))
    assert found is not None and not found.is_clear
    assert found.low < 0 < found.high


@pytest.mark.parametrize("documents", [4, 8, 16])
def test_intervals_cover_what_they_say(documents: int) -> None:
    """95 of 100 intervals of a difference have the true one in them; documents are few, and of several lengths."""
    inside, true = 0, 3.0
    targets = RANDOM.integers(60, 128, documents)
    for _ in range(400):
        nats = true * targets + RANDOM.normal(0, 20, documents)
        found = gap(tuple(nats.tolist()), (0.0,) * documents, tuple(targets.tolist()))
        assert found is not None
        inside += found.low < true < found.high
    assert 0.92 < inside / 400 < 0.98


def test_what_is_not_a_number_has_no_loss() -> None:
    assert loss((1.0, None), (2, 2)) is None
    assert gap((1.0, None), (1.0, 2.0), (2, 2)) is None
    assert loss((), (2, 2)) is None


@pytest.mark.parametrize("kind", ["with it", "against it", "with ties"])
def test_a_correlation_is_spearmans(kind: str) -> None:
    xs = RANDOM.normal(size=40)
    ys = {"with it": xs + RANDOM.normal(size=40), "against it": -xs, "with ties": np.round(xs)}[kind]
    found = correlation(xs.tolist(), ys.tolist())
    assert found is not None
    assert found.value == pytest.approx(scipy.stats.spearmanr(xs, ys).statistic)
    assert found.low <= found.value <= found.high


def test_there_is_no_correlation_with_what_is_always_the_same() -> None:
    assert correlation([1.0] * 9, list(range(9))) is None
    assert correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None


@pytest.mark.parametrize("places", [[1, 2, 3, 4], [4, 3, 2, 1], [2, 1, 4, 3], [7, 3]])
def test_agreement_is_kendalls_against_all_orders(places: list[int]) -> None:
    kept, luck = agreement(places)
    rank = [sorted(places).index(place) for place in places]
    numbers = range(len(places))
    assert kept == pytest.approx(scipy.stats.kendalltau(numbers, rank).statistic)
    taus = [scipy.stats.kendalltau(numbers, order).statistic for order in permutations(numbers)]
    assert luck == pytest.approx(sum(tau >= kept - 1e-9 for tau in taus) / math.factorial(len(places)))


def test_agreement_of_many_is_drawn() -> None:
    kept, luck = agreement(list(range(20)))
    assert kept == 1 and luck < 0.001


def test_the_front_is_what_none_that_is_as_far_from_the_base_beats() -> None:
    deep = [plan((0,) * 6, 3.0), plan((1,) * 6, 2.0), plan((0,) * 7, 1.9), plan((0,) * 8, 2.5), plan((1,) * 8, 2.6)]
    flat = [plan((0,) * 3, 2.2), plan((0,) * 2, 2.1), plan((0,), 4.0)]
    losses = {one: one.selection[0] or 0.0 for one in (*deep, *flat)}
    assert [len(one.order) for one in front(losses, 4)] == [1, 2, 7, 8]
    assert [losses[one] for one in front(losses, 4)] == [4.0, 2.1, 1.9, 2.5]
