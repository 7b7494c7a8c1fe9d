"""Which plans are tried: all where they are few, else the best ones changed; the same for the same scores."""

from __future__ import annotations

from dataclasses import replace

import pytest

from strata.screen.candidates import count, everything, listed, usual
from strata.screen.search import Space, first, following, is_growing
from strata.screen.walk import Order, steps

SPACE = Space(
    n=12,
    depths=(18,),
    families=("dus", "interlocked", "repeat"),
    explicit=(),
    plans=200,
    parents=6,
    children=12,
    seed=1,
)
GROWING = replace(SPACE, families=("blocks",), plans=100)


def cost(order: Order) -> float:
    """Something to make small: plans in which layers 2 to 4 and 7 to 9 run again."""
    return sum(abs(abs(layer - 5.5) - 2.5) for layer in order)


def searched(space: Space) -> dict[Order, float]:
    losses: dict[Order, float] = {}
    candidates, generation = first(space), 0
    while candidates:
        losses |= {one.order: cost(one.order) for one in candidates}
        generation += 1
        candidates = following(space, losses, generation)
    return losses


def test_small_families_are_tried_whole() -> None:
    tried = first(SPACE)
    families = {one.order for family in SPACE.families for one in listed(family, 12, 18)}
    orders = {one.order for one in tried}
    assert orders == families
    assert len(orders) == len(tried)  # plans that two families have are tried once
    assert {one.family for one in tried} == {"dus", "interlocked", "repeat"}
    assert not following(SPACE, {order: 1.0 for order in orders}, 1)


def test_a_budget_below_that_draws_by_the_seed() -> None:
    few = replace(SPACE, plans=10)
    assert len(first(few)) == 10
    assert first(few) == first(few)
    assert first(few) != first(replace(few, seed=2))
    assert {one.order for one in first(few)} < {one.order for one in first(SPACE)}


def test_solars_plan_is_always_tried_for_others_to_beat() -> None:
    tried = [one.order for one in first(replace(SPACE, plans=2))]
    assert usual(12, 18) == tried[0]


def test_given_plans_come_before_all() -> None:
    given = tuple(range(12)) + tuple(range(6))
    assert first(replace(SPACE, explicit=(given,), plans=1))[0].order == given
    assert first(replace(SPACE, explicit=(given,)))[0].family == "explicit"


def test_where_a_family_is_small_enough_it_is_tried_whole() -> None:
    small = replace(SPACE, n=5, depths=(7,), families=("blocks",), plans=count("blocks", 5, 7))
    assert {one.order for one in first(small)} == {one.order for one in everything("blocks", 5, 7)}
    assert not is_growing(small)


@pytest.mark.parametrize("family", ["blocks", "prune"])
def test_an_evolution_ends_with_its_budget_and_finds_better_ones_than_as_many_drawn(family: str) -> None:
    space = replace(GROWING, families=(family,), depths=(18 if family == "blocks" else 6,))
    assert is_growing(space)
    losses = searched(space)
    assert len(losses) == 100
    assert all(len(order) == space.depths[0] for order in losses)
    drawn = first(replace(space, plans=len(losses) * 2))  # half of a budget is drawn
    assert min(losses.values()) < min(cost(one.order) for one in drawn)


def test_half_of_the_budget_is_kept_for_an_evolution() -> None:
    """Or large families would be named in the config and never looked at."""
    assert len(first(replace(SPACE, families=("repeat", "blocks"), plans=40))) == 20


def test_the_same_scores_lead_to_the_same_plans_and_another_seed_to_others() -> None:
    assert list(searched(GROWING)) == list(searched(GROWING))
    assert set(searched(GROWING)) != set(searched(replace(GROWING, seed=2)))


def test_thousands_of_plans_share_their_beginnings() -> None:
    """They are planned, not run: `tests/benchmarks/screen.py` has the time that it takes."""
    space = replace(SPACE, n=80, depths=(100, 120), families=("dus", "interlocked", "repeat", "blocks"), plans=2_000)
    orders = [one.order for one in first(space)]
    assert 0.1 < steps(orders) / sum(map(len, orders)) < 0.6
