"""Surgery methods against the published lists, their properties for any parameters, and what they refuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata import methods, plan
from strata.errors import ConfigError, PlanError
from strata.plan import MAX_LAYERS, OUTSIDE, Plan, copy

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


def test_the_two_copies_may_lose_different_counts() -> None:
    assert order(methods.dus(4, 1, 2)) == [0, 1, 2, 2, 3]
    assert order(methods.dus(4, 3, 0)) == [0, 0, 1, 2, 3]


def test_a_repeated_block_is_what_rys_calls_one_and_dus_is_the_middle_one() -> None:
    assert order(methods.repeat(6, [[2, 4]])) == [0, 1, 2, 3, 2, 3, 4, 5]
    assert order(methods.repeat(6, [[0, 1], [4, 6]], 3)) == [0, 0, 0, 1, 2, 3, 4, 5, 4, 5, 4, 5]
    assert methods.repeat(32, [[8, 24]]) == methods.dus(32, 8, 8)
    assert methods.repeat(32, [[8, 16], [16, 24]]) == methods.interlocked(32, 8, 8)


def test_slices_are_taken_one_after_another() -> None:
    made = methods.slices([4, 6], [[0, 0, 2], [1, 3, 6]], 0, 1, 1)
    assert [layer.sources[0] for layer in made.layers] == [(0, 0), (0, 1), (1, 3), (1, 4), (1, 5)]
    assert (made.embed_from, made.norm_from, made.head_from) == (copy(0, OUTSIDE), copy(1, OUTSIDE), copy(1, OUTSIDE))


def test_block_expansion_is_llama_pros_list() -> None:
    made = methods.block_expansion(32, 8, 1, "even")
    assert plan.inserted(made) == (4, 9, 14, 19, 24, 29, 34, 39)  # its `extend_layers` for 32 -> 40
    assert order(made)[:6] == [0, 1, 2, 3, 3, 4]


def test_several_copies_are_those_of_a_groups_top_layers() -> None:
    made = methods.block_expansion(6, 2, 2, "even")
    assert order(made) == [0, 1, 2, 1, 2, 3, 4, 5, 4, 5]
    assert plan.inserted(made) == (3, 4, 8, 9)


@pytest.mark.parametrize(
    ("position", "sources"), [("even", [3, 7, 11, 15]), ("top", [9, 11, 13, 15]), ("middle", [5, 7, 9, 11])]
)
def test_where_a_block_expansion_inserts(position: str, sources: list[int]) -> None:
    made = methods.block_expansion(16, 4, 1, position)
    assert [layer.sources[0][1] for layer in made.layers if layer.transform == "zero"] == sources


def test_groups_that_do_not_divide_differ_by_one_layer() -> None:
    made = methods.block_expansion(30, 8, 1, "even")
    tops = [layer.sources[0][1] for layer in made.layers if layer.transform == "zero"]
    assert tops[-1] == 29 and {b - a for a, b in zip([-1, *tops], tops, strict=False)} == {3, 4}


def test_pruning() -> None:
    assert order(methods.keep(6, 2, 1)) == [0, 1, 5]
    assert order(methods.cut(6, 1, 4)) == [0, 4, 5]
    assert order(methods.without(6, 2, (4, 1))) == [0, 2, 3, 5]


def test_compose_takes_both_ends_of_each_model_and_the_rest_from_the_first() -> None:
    made = methods.compose([4, 3], 1, 2)
    assert [layer.sources[0] for layer in made.layers] == [(0, 0), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2)]
    assert {layer.sources for layer in made.outside.values()} == {((0, OUTSIDE),)}


def test_a_blend_mixes_the_parts_outside_the_layers_too() -> None:
    made = methods.blend([2, 2, 2], "linear", [0.5, 0.25, 0.25])
    assert all(layer.transform == "linear" and len(layer.sources) == 3 for layer in (*made.layers, made.embed_from))


DEPTHS = st.integers(1, 60)


@st.composite
def merges(draw: st.DrawFn) -> tuple[dict[str, Any], list[int], int]:
    """Parameters that fit, the depths of the parents, and how many layers must come out."""
    n, other = draw(DEPTHS), draw(DEPTHS)
    count, more = draw(st.integers(0, n - 1)), draw(st.integers(0, n - 1))
    start = draw(st.integers(0, n - 1))
    stop = draw(st.integers(start + 1, n))
    first = draw(st.integers(0, min(n, other)))
    last = draw(st.integers(1 - min(first, 1), min(n, other) - first)) if first < min(n, other) else 0
    groups = draw(st.integers(1, n))
    outside = dict.fromkeys(("embed_from", "norm_from", "head_from"), 0)
    cases: list[tuple[dict[str, Any], list[int], int]] = [
        ({"method": "dus", "drop": count}, [n], 2 * (n - count)),
        ({"method": "dus", "drop": [count, more]}, [n], 2 * n - count - more),
        ({"method": "repeat", "blocks": [[start, stop]], "times": 3}, [n], n + 2 * (stop - start)),
        (
            {"method": "slices", "slices": [[0, start, stop], [1, 0, other]], **outside},
            [n, other],
            stop - start + other,
        ),
        ({"method": "layers", "layers": [["copy", [1.0], [[0, start]]]], **outside}, [n], 1),
        ({"method": "block_expansion", "groups": groups, "copies": 1, "position": "even"}, [n], n + groups),
        ({"method": "linear", "weights": [0.5, 0.5]}, [n, n], n),
        ({"method": "slerp", "weights": [0.3, 0.7]}, [n, n], n),
    ]
    if first + last:
        cases.append(({"method": "compose", "first": first, "last": last}, [n, other], 2 * (first + last)))
        cases.append(({"method": "prune", "keep": [first, last]}, [n], first + last))
    if stop - start < n:
        cases.append(({"method": "prune", "range": [start, stop]}, [n], n - (stop - start)))
    return draw(st.sampled_from(cases))


@given(merges())
def test_every_plan_has_its_count_lies_within_its_parents_and_reads_back(
    merge: tuple[dict[str, Any], list[int], int],
) -> None:
    parameters, depths, count = merge
    made = methods.make_plan(parameters, depths)
    assert len(made.layers) == count
    assert all(0 <= source < depths[parent] for layer in made.layers for parent, source in layer.sources)
    assert Plan.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert methods.make_plan(json.loads(json.dumps(parameters)), depths) == made


@given(merges())
def test_a_plan_told_through_identities_is_itself_and_its_seams_are_the_breaks(
    merge: tuple[dict[str, Any], list[int], int],
) -> None:
    parameters, depths, _ = merge
    made = methods.make_plan(parameters, depths)
    assert (
        plan.trace(made, [plan.of(number, plan.identity(n)) for number, n in enumerate(depths)]).layers == made.layers
    )
    follows = [
        below.transform != "zero" != above.transform
        and [(parent, layer + 1) for parent, layer in below.sources] == list(above.sources)
        for below, above in zip(made.layers, made.layers[1:], strict=False)
    ]
    assert plan.seams(made) == tuple(number for number, joined in enumerate(follows) if not joined)


LISTED: dict[str, Any] = {"embed_from": 0, "norm_from": 0, "head_from": 0}


@pytest.mark.parametrize(
    ("parameters", "depths", "entry", "expected"),
    [
        ({"method": "dus", "drop": 4}, [4], ("drop",), "0 to 3: the parent has 4 layers"),
        ({"method": "dus", "drop": [0, 4]}, [4], ("drop",), "0 to 3"),
        ({"method": "dus", "drop": -1}, [4], ("drop",), "0 to 3"),
        ({"method": "interlocked", "drop": 1, "group": 4}, [4], ("group",), "1 to 3: 3 = 4 layers - drop 1"),
        ({"method": "repeat", "blocks": [[1, 1]], "times": 2}, [4], ("blocks", 0), "start < stop <= 4"),
        ({"method": "repeat", "blocks": [[0, 2], [1, 3]], "times": 2}, [4], ("blocks", 1), "the block before ends at 2"),
        ({"method": "repeat", "blocks": [[0, 4]], "times": 10**9}, [4], ("times",), f"2 to {MAX_LAYERS}"),
        ({"method": "repeat", "blocks": [[0, 4]], "times": 9_999}, [4], ("times",), f"1 to {MAX_LAYERS} layers"),
        ({"method": "slices", "slices": [[0, 0, 2], [0, 3, 9]], **LISTED}, [4], ("slices", 1), "stop <= 4: the parent"),
        ({"method": "slices", "slices": [[0, 3, 1]], **LISTED}, [4], ("slices", 0), "start < stop"),
        ({"method": "slices", "slices": [[0, 0, 4]] * 2501, **LISTED}, [4], ("slices",), f"1 to {MAX_LAYERS}"),
        ({"method": "layers", "layers": [["copy", [1.0], [[1, 5]]]], **LISTED}, [9, 5], ("layers", 0), "0 to 4: parent 2"),
        ({"method": "layers", "layers": [], **LISTED}, [4], ("layers",), "1 to"),
        ({"method": "layers", "layers": [["copy", [1.0], [[0, 0]]]] * 1_000_000, **LISTED}, [4], ("layers",), "10000"),
        ({"method": "block_expansion", "groups": 5, "copies": 1, "position": "even"}, [4], ("groups",), "1 to 4"),
        ({"method": "block_expansion", "groups": 3, "copies": 1, "position": "top"}, [4], ("groups",), "1 to 2"),
        ({"method": "block_expansion", "groups": 2, "copies": 3, "position": "even"}, [4], ("copies",), "1 to 2"),
        ({"method": "prune", "keep": [3, 2]}, [4], ("keep",), "add up to 1 to 4"),
        ({"method": "prune", "keep": [0, 0]}, [4], ("keep",), "add up to 1 to 4"),
        ({"method": "prune", "range": [0, 4]}, [4], ("range",), "at most 3 layers"),
        ({"method": "prune", "range": [2, 5]}, [4], ("range",), "stop <= 4"),
        ({"method": "compose", "first": 2, "last": 3}, [6, 4], ("first",), "add up to 1 to 4"),
        ({"method": "linear", "weights": [0.5, 0.5]}, [4, 5], ("method",), "4 layers"),
        ({"method": "slerp", "weights": [1.0]}, [4, 4], ("weights",), "2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_its_entry_and_range(
    parameters: dict[str, Any], depths: list[int], entry: tuple[str | int, ...], expected: str
) -> None:
    with pytest.raises(PlanError) as caught:
        methods.make_plan(parameters, depths)
    assert caught.value.entry == entry
    assert expected in str(caught.value)


def test_an_analysis_of_another_model_is_refused() -> None:
    for dropped in (None, (0, 0), (3, 9)):
        with pytest.raises(PlanError, match="does not fit"):
            methods.without(4, 2, dropped)
