"""Samples by number: windows of a mixture, packed rows and pairs lose nothing, learn nothing twice, cross no document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.errors import TrainingError
from strata.tokens import Tokens
from strata.train import data
from strata.train.batch import IGNORED, Batch
from strata.train.data import Mixture, Pairs, Rows
from strata.train.order import Order, interleaved, permutation

GOLDEN = [1, 3, 7, 5, 2, 0, 4, 6]
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=30)
SEEDS = st.integers(0, 1 << 40)


def tokens(
    lengths: Sequence[int], learnt: Sequence[int] | None = None, first: int = 1000, id: str = "tokens-x"
) -> Tokens:
    """Documents of these lengths whose tokens are first, first + 1, ...: each token of the source is another."""
    documents = np.cumsum([0, *lengths]).astype(np.int64)
    ids = np.arange(first, first + documents[-1], dtype=np.uint16)
    loss = None if learnt is None else np.asarray(learnt, np.uint8)
    return Tokens(id, "text", ids, loss, documents, 1 << 16, "", None)


def learnt_of(source: Tokens) -> list[int]:
    """What one epoch may teach: every token but the documents' first, and of these what `loss` says."""
    firsts = set(source.documents[:-1].tolist())
    shown = range(len(source.ids)) if source.loss is None else np.flatnonzero(source.loss).tolist()
    return [int(source.ids[at]) for at in shown if at not in firsts]


def targets(batch: Batch) -> list[int]:
    return batch.labels[batch.labels != IGNORED].tolist()


def same(one: Batch, other: Batch) -> bool:
    fields = ("ids", "labels", "positions")
    return one.tokens == other.tokens and all(np.array_equal(getattr(one, f), getattr(other, f)) for f in fields)


def segments(positions_T: Any) -> list[tuple[int, int]]:
    """Begin and end of every stretch of a row that attention does not leave."""
    starts = np.flatnonzero(positions_T == 0).tolist()
    spans = list(zip(starts, [*starts[1:], len(positions_T)], strict=True))
    for begin, end in spans:
        assert positions_T[begin:end].tolist() == list(range(end - begin))
    return spans


def assert_labels_are_the_next_token_of_the_same_document(batch: Batch, sources: Sequence[Tokens]) -> None:
    """With tokens that are all different, the label of x can only be x + 1, of the document that x is in."""
    where = {
        int(source.ids[at]): (number, document)
        for number, source in enumerate(sources)
        for document, (begin, end) in enumerate(pairwise(source.documents))
        for at in range(begin, end)
    }
    for ids, labels, positions in zip(batch.ids.tolist(), batch.labels.tolist(), batch.positions, strict=True):
        for begin, end in segments(positions):
            assert len({where.get(token) for token in ids[begin:end]}) == 1  # one document, or padding
            assert ids[begin] == 0 or ids[begin:end] == list(range(ids[begin], ids[begin] + end - begin))
        for token, label in zip(ids, labels, strict=True):
            assert label == IGNORED or (label == token + 1 and where[label] == where[token])


# Windows of a stream


def test_windows_follow_each_other_and_documents_keep_apart() -> None:
    source = tokens([3, 4, 2])  # 1000 1001 1002 | 1003 .. 1006 | 1007 1008
    batch = data.windows(source, 4, [0, 1])
    assert batch.ids.tolist() == [[1000, 1001, 1002, 1003], [1004, 1005, 1006, 1007]]
    assert batch.labels.tolist() == [[1001, 1002, IGNORED, 1004], [1005, 1006, IGNORED, 1008]]
    assert batch.positions.tolist() == [[0, 1, 2, 0], [0, 1, 2, 0]]
    assert batch.tokens == 8


def test_the_last_window_is_padded_with_a_document_of_its_own() -> None:
    batch = data.windows(tokens([3, 4]), 4, [1])
    assert batch.ids.tolist() == [[1004, 1005, 0, 0]]
    assert batch.labels.tolist() == [[1005, 1006, IGNORED, IGNORED]]
    assert batch.positions.tolist() == [[0, 1, 0, 1]]
    assert batch.tokens == 2


@given(LENGTHS, st.integers(1, 9), SEEDS)
def test_an_epoch_of_windows_learns_every_token_but_the_documents_first_once(
    lengths: list[int], length: int, seed: int
) -> None:
    source = tokens([*lengths, 2])
    mixture = Mixture([source], [1.0], length, seed, 3 * data.count_windows(source, length))
    epochs = [mixture.batch(range(e * len(mixture), (e + 1) * len(mixture))) for e in range(3)]
    for epoch in epochs:
        assert sorted(targets(epoch)) == learnt_of(source)
        assert epoch.tokens == len(source.ids) - 1
        assert_labels_are_the_next_token_of_the_same_document(epoch, [source])


@given(LENGTHS, st.data())
def test_windows_learn_only_what_loss_says(lengths: list[int], draw: st.DataObject) -> None:
    count = sum(lengths) + 2
    source = tokens([*lengths, 2], draw.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    every = data.windows(source, 5, range(data.count_windows(source, 5)))
    assert targets(every) == learnt_of(source)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_file_is_read_where_the_window_is(dtype: Any, tmp_path: Path) -> None:
    source = tokens([5, 9, 1, 30])
    source.ids.astype(dtype).tofile(tmp_path / "tokens.bin")
    mapped = Tokens(**{**vars(source), "ids": np.memmap(tmp_path / "tokens.bin", dtype, "r")})
    for make in (lambda s: Mixture([s], [1], 7, 1, 20), lambda s: Rows([s], 16, 1)):
        assert same(make(mapped).batch(range(4)), make(source).batch(range(4)))
        assert make(mapped).batch([0]).ids.dtype == np.int64


def test_held_out_windows_lie_evenly_over_the_source() -> None:
    source = tokens([1001])  # 100 windows of 10
    assert data.evenly(source, 10, 50) == [10, 30, 50, 70, 90]
    assert data.evenly(source, 10, 59) == [10, 30, 50, 70, 90]
    assert data.evenly(source, 10, 3) == [50]
    assert data.evenly(source, 10, 5000) == list(range(100))


@given(st.integers(2, 300), st.integers(1, 20), st.integers(0, 400))
def test_held_out_windows_are_different_ones(length: int, window: int, wanted: int) -> None:
    found, total = data.evenly(tokens([length]), window, wanted), data.count_windows(tokens([length]), window)
    assert sorted(set(found)) == found and found[0] >= 0 and found[-1] < total
    assert len(found) == max(1, min(total, wanted // window))


# A mixture of sources


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any), st.integers(1, 300))
def test_every_prefix_of_a_mixture_has_each_sources_share(weights: list[int], samples: int) -> None:
    sources, turns = interleaved(weights, samples)
    for number, weight in enumerate(weights):
        mine = sources == number
        share = weight / sum(weights)
        assert (
            np.abs(np.cumsum(mine) - np.arange(1, samples + 1) * share).max() <= (1 + share * len(weights)) / 2 + 1e-6
        )
        assert turns[mine].tolist() == list(range(mine.sum()))


def test_shares_do_not_drift_in_a_long_run() -> None:
    sources, _ = interleaved([0.7, 0.2, 0.07, 0.03], 300_000)
    for number, share in enumerate([0.7, 0.2, 0.07, 0.03]):
        assert np.abs(np.cumsum(sources == number) - np.arange(1, 300_001) * share).max() < 2


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5), st.integers(1, 100), st.integers(0, 100))
def test_a_longer_run_begins_with_the_same_samples(weights: list[float], samples: int, more: int) -> None:
    for short, long in zip(interleaved(weights, samples), interleaved(weights, samples + more), strict=True):
        assert short.tolist() == long[:samples].tolist()


def test_a_mixture_takes_each_sources_windows_in_its_own_order() -> None:
    one, two = tokens([41], first=1000), tokens([21], first=2000)  # 10 and 5 windows of 4
    mixture = Mixture([one, two], [3, 1], 4, 7, 40)
    begins = mixture.batch(range(40)).ids[:, 0].tolist()
    drawn = {first: [begin - first for begin in begins if begin - begin % 1000 == first] for first in (1000, 2000)}
    assert [len(drawn[1000]), len(drawn[2000])] == [30, 10]
    for first, windows in ((1000, 10), (2000, 5)):
        epochs = [drawn[first][at : at + windows] for at in range(0, len(drawn[first]), windows)]
        assert all(sorted(epoch) == list(range(0, 4 * windows, 4)) for epoch in epochs)
        assert all(one != other for one, other in pairwise(epochs))


def test_sources_of_one_size_are_not_read_in_step() -> None:
    begins = Mixture([tokens([41]), tokens([41], first=2000)], [1, 1], 4, 7, 20).batch(range(20)).ids[:, 0] % 1000
    assert begins[0::2].tolist() != begins[1::2].tolist()


def test_a_source_of_no_weight_is_not_read() -> None:
    mixture = Mixture([tokens([40]), tokens([40], first=2000)], [1, 0], 4, 1, 20)
    assert mixture.batch(range(20)).ids.max() < 2000
    assert [source["samples"] for source in mixture.counts["sources"]] == [20, 0]


def test_a_mixtures_counts_say_how_often_each_source_is_seen() -> None:
    mixture = Mixture([tokens([20, 21], id="a"), tokens([8], id="b")], [1, 1], 4, 0, 12)
    assert mixture.counts == {
        "documents": 3, "tokens": 49, "kept": {"documents": 3, "tokens": 49}, "dropped": {}, "samples": 12, "fill": 47 / 48,
        "sources": [
            {"id": "a", "documents": 2, "tokens": 41, "samples": 6, "epochs": 0.6},
            {"id": "b", "documents": 1, "tokens": 8, "samples": 6, "epochs": 3.0},
        ],
    }  # fmt: skip


# Packed rows


def test_rows_hold_whole_documents_and_learn_what_loss_says() -> None:
    rows = Rows([tokens([3, 4], learnt=[0, 1, 1, 0, 0, 0, 1])], 9, 0)
    batch = rows.batch([0])
    assert batch.ids.tolist() == [[1000, 1001, 1002, 1003, 1004, 1005, 1006, 0, 0]]
    assert batch.labels.tolist() == [[1001, 1002, IGNORED, IGNORED, IGNORED, 1006, IGNORED, IGNORED, IGNORED]]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 2, 3, 0, 1]]
    assert batch.tokens == 7


@given(LENGTHS, LENGTHS, st.data(), SEEDS)
def test_an_epoch_of_rows_holds_every_document_that_fits_once(
    ones: list[int], others: list[int], draw: st.DataObject, seed: int
) -> None:
    length = draw.draw(st.integers(3, 14))
    mask = draw.draw(st.lists(st.integers(0, 1), min_size=sum(others), max_size=sum(others)))
    sources = [tokens([2, *ones]), tokens(others, mask, first=20_000)]
    rows = Rows(sources, length, seed)
    kept = [
        source.ids[begin:end].tolist()
        for source in sources
        for begin, end in pairwise(source.documents)
        if end - begin <= length and set(source.ids[begin:end].tolist()) & set(learnt_of(source))
    ]
    for epoch in (0, 2):
        batch = rows.batch(range(epoch * len(rows), (epoch + 1) * len(rows)))
        assert sorted(batch.ids[batch.ids > 0].tolist()) == sorted(token for document in kept for token in document)
        expected = [token for source in sources for token in learnt_of(source) if any(token in d for d in kept)]
        assert sorted(targets(batch)) == sorted(expected)
        assert_labels_are_the_next_token_of_the_same_document(batch, sources)
    counts = rows.counts
    assert counts["kept"] == {"documents": len(kept), "tokens": sum(map(len, kept))}
    assert len(kept) + sum(counts["dropped"].values()) == counts["documents"] == len(ones) + len(others) + 1
    assert counts["fill"] == sum(map(len, kept)) / (len(rows) * length)


def test_dropped_documents_are_counted_by_reason() -> None:
    source = tokens([4, 9, 3, 1, 2], learnt=[0, 0, 1, 1] + [0] * 8 + [1] + [1, 0, 0] + [1] + [1, 1])
    assert Rows([source], 8, 0).counts == {
        "documents": 5, "tokens": 19, "kept": {"documents": 2, "tokens": 6},
        "dropped": {"too long": 1, "nothing to learn": 2}, "samples": 1, "fill": 0.75,
    }  # fmt: skip


def test_a_short_last_document_lends_its_answer_to_no_other() -> None:
    source = tokens([2, 2, 1], learnt=[0, 1, 0, 0, 1])
    assert Rows([source], 4, 0).counts["dropped"] == {"too long": 0, "nothing to learn": 2}


def test_empty_documents_are_dropped() -> None:
    source = tokens([0, 3, 0, 0, 2, 0], learnt=[0, 1, 1, 0, 1])
    rows = Rows([source], 8, 0)
    assert rows.counts["dropped"] == {"too long": 0, "nothing to learn": 4}
    assert targets(rows.batch([0])) == [1001, 1002, 1004]


# Pairs


def pairs(lengths: Sequence[int], first: int = 1000) -> Tokens:
    """Documents of which the second half of the tokens is learnt."""
    return tokens(lengths, [int(2 * at >= length) for length in lengths for at in range(length)], first)


def test_all_chosen_come_first_then_all_rejected() -> None:
    both = Pairs([pairs([4, 3, 2, 5])], 5, 0)
    batch = both.pairs([0, 1])
    assert batch.ids.tolist() == [
        [1000, 1001, 1002, 1003, 0], [1007, 1008, 0, 0, 0],
        [1004, 1005, 1006, 0, 0], [1009, 1010, 1011, 1012, 1013],
    ]  # fmt: skip
    assert batch.labels.tolist() == [
        [IGNORED, 1002, 1003, IGNORED, IGNORED], [1008, IGNORED, IGNORED, IGNORED, IGNORED],
        [IGNORED, 1006, IGNORED, IGNORED, IGNORED], [IGNORED, IGNORED, 1012, 1013, IGNORED],
    ]  # fmt: skip
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0], [0, 1, 0, 1, 2], [0, 1, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert batch.tokens == 14
    assert both.pairs([0]).ids.shape == (2, 4)


def test_a_pair_is_dropped_if_either_member_is_too_long_or_teaches_nothing() -> None:
    source = pairs([3, 3, 9, 3, 3, 9, 1, 3, 3, 3])
    assert data.pairs_of(source, 8).tolist() == [0, 4]
    assert Pairs([source], 8, 0).counts == {
        "documents": 10, "tokens": 40, "kept": {"documents": 4, "tokens": 12},
        "dropped": {"too long": 2, "nothing to learn": 1}, "samples": 2,
    }  # fmt: skip


def test_numbers_say_where_the_pairs_of_a_batch_stand_among_those_kept() -> None:
    sources = [pairs([3, 3, 9, 9, 4, 4]), pairs([2, 2, 3, 2], first=2000)]
    both = Pairs(sources, 8, 3)
    assert len(both) == 4
    firsts = [both.pairs([number]).ids[0, 0] for number in range(4)]
    assert firsts == [1000, 1024, 2000, 2004]
    for epoch in range(3):
        samples = range(4 * epoch, 4 * epoch + 4)
        numbers = both.numbers(samples)
        assert sorted(numbers.tolist()) == [0, 1, 2, 3]
        assert both.batch(samples).ids[:4, 0].tolist() == [firsts[number] for number in numbers]


# Order


MAKERS: dict[str, Callable[[int], Mixture | Rows | Pairs]] = {
    "mixture": lambda seed: Mixture([tokens([50, 31]), tokens([17], first=2000)], [2, 1], 4, seed, 100),
    "rows": lambda seed: Rows([tokens([8] * 20), tokens([7] * 9, first=2000)], 8, seed),
    "pairs": lambda seed: Pairs([pairs([4, 3] * 20), pairs([6, 6] * 3, first=2000)], 8, seed),
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
@given(numbers=st.lists(st.integers(0, 99), min_size=1, max_size=6), before=st.lists(st.integers(0, 99), max_size=3))
def test_a_batch_depends_on_nothing_but_its_numbers(kind: str, numbers: list[int], before: list[int]) -> None:
    used = MAKERS[kind](5)
    for number in before:
        used.batch([number])
    batch = used.batch(numbers)
    assert same(batch, MAKERS[kind](5).batch(numbers))
    one = MAKERS[kind](5)
    rows = [one.batch([number]).ids[0] for number in numbers]
    for row, whole in zip(rows, batch.ids, strict=False):
        assert np.trim_zeros(row, "b").tolist() == np.trim_zeros(whole, "b").tolist()


@pytest.mark.parametrize("kind", MAKERS)
def test_another_seed_is_another_order_of_the_same_samples(kind: str) -> None:
    one, other = MAKERS[kind](1).batch(range(20)), MAKERS[kind](2).batch(range(20))
    assert not np.array_equal(one.ids, other.ids)
    many = [MAKERS[kind](seed).batch(range(len(MAKERS[kind](seed)))) for seed in (1, 2)]
    if kind != "mixture":
        assert Counter(many[0].ids.ravel().tolist()) == Counter(many[1].ids.ravel().tolist())


def test_a_permutation_is_the_same_in_every_release_of_numpy() -> None:
    assert permutation(8, 1, 2, 3).tolist() == GOLDEN
    others = [permutation(8, *numbers).tolist() for numbers in ((0, 2, 3), (1, 0, 3), (1, 2, 0))]
    assert all(sorted(order) == list(range(8)) and order != GOLDEN for order in others)


@given(st.integers(1, 30), SEEDS, st.lists(st.integers(0, 200), min_size=1))
def test_each_epoch_has_each_item_once(count: int, seed: int, numbers: list[int]) -> None:
    order = Order(count, seed)
    found = order.items(np.asarray(numbers))
    whole = [order.items(np.arange(epoch * count, (epoch + 1) * count)).tolist() for epoch in range(200 // count + 1)]
    assert all(sorted(epoch) == list(range(count)) for epoch in whole)
    assert found.tolist() == [whole[number // count][number % count] for number in numbers]


# What cannot be trained on


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Mixture([tokens([])], [1], 4, 0, 1), "nothing to predict"),
        (lambda: Mixture([tokens([9]), tokens([1])], [1, 1], 4, 0, 1), "nothing to predict"),
        (lambda: data.evenly(tokens([1]), 4, 100), "nothing to predict"),
        (lambda: Rows([tokens([])], 4, 0), "no document can be learnt from"),
        (lambda: Rows([tokens([5, 6])], 4, 0), "2 too long, 0 nothing to learn"),
        (lambda: Rows([tokens([4, 6], learnt=[1] + [0] * 3 + [1] * 6)], 4, 0), "1 too long, 1 nothing to learn"),
        (lambda: Pairs([pairs([])], 4, 0), "no pair can be learnt from"),
        (lambda: Pairs([pairs([4, 5])], 4, 0), "1 too long"),
        (lambda: data.whole_steps(7, 8), "at most 7 samples"),
    ],
)
def test_what_has_nothing_to_learn_is_refused(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(TrainingError) as caught:
        make()
    assert said in str(caught.value) and caught.value.exit_code == 10


def test_a_run_has_as_many_steps_as_whole_batches() -> None:
    assert [data.whole_steps(samples, 4) for samples in (4, 7, 8)] == [1, 1, 2]
