"""Layer plans against the published lists."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata import methods, plan
from strata.errors import ConfigError
from strata.plan import Layer, Plan

# The three 48-entry lists of gauss5930/iDUS, src/iDUS.py, written out.
ORIGINAL = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23,
    8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
]  # fmt: skip
INTERLOCKED_1 = [
    0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 8, 16, 9, 17, 10, 18, 11, 19,
    12, 20, 13, 21, 14, 22, 15, 23, 16, 24, 17, 25, 18, 26, 19, 27, 20, 28, 21, 29, 22, 30, 23, 31,
]  # fmt: skip
INTERLOCKED_8 = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15,
    16, 17, 18, 19, 20, 21, 22, 23, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
]  # fmt: skip


def order(made: Plan) -> list[int]:
    return [layer.sources[0][1] for layer in made.layers]


def test_dus_is_solars_list() -> None:
    assert order(methods.dus(32, 8, 8)) == ORIGINAL


@pytest.mark.parametrize(("group", "expected"), [(24, ORIGINAL), (1, INTERLOCKED_1), (8, INTERLOCKED_8)])
def test_interlocked_is_each_list_of_idus(group: int, expected: list[int]) -> None:
    assert order(methods.interlocked(32, 8, group)) == expected


@pytest.mark.parametrize(("group", "count"), [(24, 1), (12, 3), (8, 2), (6, 7), (4, 11), (2, 23), (1, 47)])
def test_seam_counts(group: int, count: int) -> None:
    assert len(plan.seams(methods.interlocked(32, 8, group))) == count


def test_dropping_nothing_stacks_the_model_on_itself() -> None:
    assert order(methods.dus(3, 0, 0)) == [0, 1, 2, 0, 1, 2]
    assert plan.seams(methods.dus(3, 0, 0)) == (2,)


def test_an_averaged_layer_has_a_seam_on_both_sides() -> None:
    average = Layer(((0, 0), (0, 1)), "linear", (0.5, 0.5))
    assert plan.seams(Plan((Layer(((0, 0),)), average, Layer(((0, 1),)), Layer(((0, 2),))))) == (0, 1)


@given(st.data(), st.integers(1, 40))
def test_every_interlocked_plan_holds_each_kept_layer_in_order(data: st.DataObject, n: int) -> None:
    drop = data.draw(st.integers(0, n - 1))
    group = data.draw(st.integers(1, n - drop))
    made = order(methods.interlocked(n, drop, group))
    assert len(made) == 2 * (n - drop)
    assert sorted(made) == sorted([*range(n - drop), *range(drop, n)])
    # Taking every other group apart gives back the two copies, each from bottom to top.
    first, second, at = [], [], 0
    while at < len(made):
        size = min(group, (len(made) - at) // 2)
        first += made[at : at + size]
        second += made[at + size : at + 2 * size]
        at += 2 * size
    assert (first, second) == (list(range(n - drop)), list(range(drop, n)))


@pytest.mark.parametrize(("n", "drop", "group"), [(4, 4, 1), (4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 4), (4, 1, -1)])
def test_out_of_range_is_refused(n: int, drop: int, group: int) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        methods.interlocked(n, drop, group)


def test_a_chain_of_doublings_is_stopped_before_it_fills_the_memory() -> None:
    with pytest.raises(ConfigError, match="too many layers"):
        methods.dus(9_000, 0, 0)


def test_a_chain_of_merges_reads_as_one_plan_of_the_base() -> None:
    below = methods.dus(4, 1, 1)  # 0 1 2 1 2 3
    above = methods.dus(6, 4, 4)  # 0 1 4 5
    assert order(plan.trace(above, [below])) == [0, 1, 2, 3]
    assert plan.seams(plan.trace(above, [below])) == ()


def test_json_round_trip() -> None:
    made = methods.interlocked(6, 2, 2)
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made
