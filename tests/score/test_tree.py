"""Trees: what a row holds of requests with one context, and who sees whom in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.score.tree import PAD, PREFIX, Request, cut, plan

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple)
BEGINNINGS = st.sampled_from([(), (7,) * PREFIX, (8,) * (PREFIX + 3)])
CONTEXTS = st.builds(lambda begin, rest: (*begin, *rest), BEGINNINGS, TOKENS)
REQUESTS = st.lists(st.builds(Request, CONTEXTS, TOKENS), min_size=1, max_size=12)


@given(REQUESTS, st.integers(1, 4), st.integers(1, 20), st.booleans())
def test_every_request_is_answered_once_from_what_it_may_see(
    requests: list[Request], rows: int, scored: int, shared: bool
) -> None:
    """Whatever is asked: at each scored place, the tokens that can be seen from there, by position, are the request."""
    batches = plan(requests, ["t"] * len(requests), rows, scored, shared)
    answered = []
    for batch in batches:
        assert len(batch.rows) <= rows
        assert len(batch.rows) == 1 or sum(row.scored for row in batch.rows) <= scored
        tokens, positions, branches = batch.arrays()
        mask = batch.mask(branches)
        for row, part in enumerate(batch.rows):
            for number, places, targets in part.answers:
                context, continuation = requests[number]
                assert tuple(targets) == continuation
                for known, place in enumerate(places):
                    seen = mask[row, 0, place, len(batch.prefix) :]
                    text = dict(enumerate(batch.prefix)) | dict(
                        zip(positions[row][seen], tokens[row][seen], strict=True)
                    )
                    assert len(text) == len(batch.prefix) + seen.sum()
                    assert tuple(text[n] for n in sorted(text)) == context + continuation[:known]
                answered.append(number)
    assert sorted(answered) == list(range(len(requests)))


def test_a_context_is_read_once_for_all_its_continuations() -> None:
    context = tuple(range(10))
    (batch,) = plan([Request(context, (n, 7, 8)) for n in range(4)], ["t"] * 4, 8, 100, shared=True)
    assert [len(row.tokens) for row in batch.rows] == [10 + 4 * 2]
    (apart,) = plan([Request(context, (n, 7, 8)) for n in range(4)], ["t"] * 4, 8, 100, shared=False)
    assert [len(row.tokens) for row in apart.rows] == [12] * 4 and apart.is_causal


def test_what_a_task_begins_with_is_read_once_and_other_tasks_do_not_shorten_it() -> None:
    shots = tuple(range(PREFIX + 8))
    ours = [Request((*shots, n), (1, 2)) for n in (90, 91, 92)]
    others = [Request((n,), (1, 2)) for n in (5, 6)]
    first, second = plan([*ours, *others], ["a"] * 3 + ["b"] * 2, 8, 100, shared=True)
    assert tuple(first.prefix) == shots and [len(row.tokens) for row in first.rows] == [2, 2, 2]
    assert not len(second.prefix) and second.is_causal


def test_a_task_of_several_files_has_a_beginning_for_each() -> None:
    """As with few-shot examples from each file. A question that begins as no other is read without one."""
    one, other = tuple(range(PREFIX + 8)), tuple(range(100, PREFIX + 105))
    contexts = [(*one, 1), (*other, 2), (*other, 3), (*one, 4), (5,) * (PREFIX + 9)]
    batches = plan([Request(context, (1,)) for context in contexts], ["a"] * 5, 8, 100, shared=True)
    assert [tuple(batch.prefix) for batch in batches] == [one, other, ()]
    assert [[number for row in batch.rows for number, *_ in row.answers] for batch in batches] == [[0, 3], [1, 2], [4]]


def test_a_short_common_beginning_is_not_worth_a_pass() -> None:
    shots = tuple(range(PREFIX - 1))
    (batch,) = plan([Request((*shots, n), (1,)) for n in (90, 91)], ["a"] * 2, 8, 100, shared=True)
    assert not len(batch.prefix)


def test_a_context_that_others_go_on_from_keeps_its_last_token() -> None:
    """It predicts the continuation, so it must be read with the row."""
    shots = tuple(range(PREFIX + 1))
    (batch,) = plan([Request(shots, (1,)), Request((*shots, 5, 6), (1,))], ["a"] * 2, 8, 100, shared=True)
    assert tuple(batch.prefix) == shots[:-1]
    assert sorted(tuple(row.tokens) for row in batch.rows) == [(PREFIX,), (PREFIX, 5, 6)]


def test_the_longest_rows_come_first_and_padding_is_on_the_right() -> None:
    requests = [Request((1,) * n, (2,)) for n in (2, 5, 3)]
    (batch,) = plan(requests, ["t"] * 3, 8, 100, shared=True)
    tokens, _, branches = batch.arrays()
    assert [len(row.tokens) for row in batch.rows] == [5, 3, 2]
    assert np.array_equal(branches == PAD, tokens == 0)
    assert not (branches[:, 0] == PAD).any()


@pytest.mark.parametrize(
    ("longest", "left"), [(9, (0, 1, 2, 3, 4)), (6, (0, 1, 2, 3, 4)), (5, (1, 2, 3, 4)), (2, (4,))]
)
def test_a_request_that_is_too_long_loses_its_beginning(longest: int, left: tuple[int, ...]) -> None:
    assert cut(Request((0, 1, 2, 3, 4), (5, 6)), longest) == (left, (5, 6))
