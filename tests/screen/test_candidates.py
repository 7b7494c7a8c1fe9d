"""The plans of each family: those that the config's merges make, no more and no fewer."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from strata.methods import make_plan
from strata.screen.candidates import (
    Candidate,
    Family,
    block_of,
    blocks_of,
    count,
    everything,
    explicit,
    listed,
    pruned,
    repeated,
    usual,
)
from strata.surgery import Merge

FAMILIES: tuple[Family, ...] = ("dus", "interlocked", "repeat", "blocks", "prune")
REAL = 30  # layers of the default experiment's base


def made_by_the_merge(candidate: Candidate, n: int) -> tuple[int, ...]:
    """The layers that the config's own merge makes of the words that the candidate tells."""
    method, _, rest = candidate.merge.partition(", ")
    merge: Any = TypeAdapter(Merge).validate_python(
        yaml.safe_load("{method: " + method + (f", {rest}" if rest else "") + "}")
    )
    plan = make_plan(merge.normal(["base"]), [n])
    return tuple(layer.sources[0][1] for layer in plan.layers)


@pytest.mark.parametrize(
    ("family", "depth"),
    [
        *(("dus", depth) for depth in (7, 8, 10, 12)),
        *(("interlocked", depth) for depth in (8, 10, 12)),
        *(("repeat", depth) for depth in (7, 8, 10, 12, 13, 18)),
        *(("blocks", depth) for depth in (7, 8, 10, 12)),
        *(("prune", depth) for depth in (1, 3, 5)),
    ],
)
def test_a_candidate_is_what_its_merge_makes(family: Family, depth: int) -> None:
    n = 6
    found = list(listed(family, n, depth))
    assert found
    for candidate in [*found, *(everything(family, n, depth) if family in ("blocks", "prune") else ())]:
        assert len(candidate.order) == depth
        assert made_by_the_merge(candidate, n) == candidate.order, candidate.merge


@pytest.mark.parametrize("n", [1, 2, 5, 6])
@pytest.mark.parametrize("family", ["blocks", "prune"])
def test_everything_is_counted_without_being_listed(family: Family, n: int) -> None:
    for depth in range(1, n) if family == "prune" else range(n + 1, 2 * n + 1):
        orders = [candidate.order for candidate in everything(family, n, depth)]
        assert len(orders) == len(set(orders)) == count(family, n, depth) > 0


def test_blocks_are_all_ways_to_run_some_layers_twice_in_place() -> None:
    """By hand: runs of layers that are marked; each is one block, and neighbours are two blocks or one."""
    n, depth = 4, 6
    by_hand = set()
    for blocks in (
        b for size in (1, 2) for b in combinations([(i, j) for i in range(n) for j in range(i + 1, n + 1)], size)
    ):
        if sum(j - i for i, j in blocks) == depth - n and all(a[1] <= b[0] for a, b in pairwise(blocks)):
            order: list[int] = []
            at = 0
            for i, j in blocks:
                order += [*range(at, j), *range(i, j)]
                at = j
            by_hand.add((*order, *range(at, n)))
    assert {candidate.order for candidate in everything("blocks", n, depth)} == by_hand


def test_dus_has_every_two_cuts_and_interlocked_every_group() -> None:
    assert [c.merge for c in listed("dus", REAL, 48)] == [
        f"dus, drop: [{end}, {12 - end}]" if end != 6 else "dus, drop: 6" for end in range(13)
    ]
    assert [c.merge for c in listed("interlocked", REAL, 48)][:2] == [
        "interlocked, drop: 6, group: 1",
        "interlocked, drop: 6, group: 2",
    ]
    assert count("interlocked", REAL, 48) == 24
    assert not count("interlocked", REAL, 47)  # two copies of as many layers are even
    assert count("repeat", REAL, 48) == sum(REAL - length + 1 for length in (1, 2, 3, 6, 9, 18))


def test_the_usual_plan_is_solars() -> None:
    assert usual(32, 48) == (*range(24), *range(8, 32))
    assert usual(32, 47) is None
    assert usual(4, 9) is None


def test_blocks_are_read_back_from_an_order() -> None:
    for candidate in everything("blocks", 5, 8):
        blocks = blocks_of(candidate.order, 5)
        assert blocks is not None
        assert repeated(5, blocks).order == candidate.order
    assert blocks_of((0, 1, 2, 3, 4), 5) is None
    assert blocks_of((0, 0, 0, 1, 2, 3, 4), 5) is None  # a third run
    assert blocks_of((1, 0, 2, 3, 4, 0), 5) is None


def test_one_block_is_read_back_however_often_it_runs() -> None:
    for candidate in listed("repeat", 6, 10):
        block = block_of(candidate.order, 6)
        assert block is not None
        assert candidate.merge.startswith(f"repeat, blocks: [[{block[0]}, {block[1]}]]")
    assert block_of((*range(4), *range(2, 6)), 6) == (2, 4)  # a DUS
    assert block_of((0, 1, 1, 2, 3, 4, 4, 5), 6) is None
    assert block_of(tuple(range(6)), 6) is None


def test_pruned_plans_say_what_stays_or_what_goes() -> None:
    assert pruned(6, (2, 3)).merge == "prune, range: [2, 4]"
    assert made_by_the_merge(pruned(6, (1, 4)), 6) == (0, 2, 3, 5)
    assert made_by_the_merge(explicit((3, 1, 0)), 6) == (3, 1, 0)


@pytest.mark.parametrize(
    ("family", "depth"), [("dus", 13), ("interlocked", 6), ("repeat", 6), ("blocks", 13), ("prune", 6)]
)
def test_a_family_has_nothing_beyond_its_depths(family: Family, depth: int) -> None:
    assert count(family, 6, depth) == len(list(listed(family, 6, depth))) == 0
