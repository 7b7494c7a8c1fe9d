"""Candidates: the plans of each family that give a model of n layers a certain depth.

A plan is a sequence of copies of one base's layers. Small families are listed whole; `blocks` and `prune` grow beyond
any list and are described by what can be changed in them: blocks that run twice, layers that are left out. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb
from typing import Literal

from strata import methods
from strata.plan import Plan
from strata.screen.walk import Order

Family = Literal["dus", "interlocked", "repeat", "blocks", "prune"]
Block = tuple[int, int]  # [start, stop)


@dataclass(frozen=True)
class Candidate:
    """A plan to try: its layers, its family, and the merge that makes it, in the words of the config."""

    order: Order
    family: str
    merge: str


def listed(family: Family, n: int, depth: int) -> Iterator[Candidate]:
    """All plans of a family, or of `blocks` and `prune` those with one block, or one range."""
    return {"dus": _dus, "interlocked": _interlocked, "repeat": _repeat, "blocks": _block, "prune": _cut}[family](
        n, depth
    )


def count(family: Family, n: int, depth: int) -> int:
    """How many plans the family has."""
    added = depth - n
    if family == "blocks":
        # k blocks of `added` layers in all, among the n - added layers that run once
        return (
            sum(comb(n - added + k, k) * comb(added - 1, k - 1) for k in range(1, added + 1)) if 0 < added <= n else 0
        )
    if family == "prune":
        return comb(n, depth) if 0 < depth < n else 0
    return sum(1 for _ in listed(family, n, depth))


def distinct(families: Iterable[Family], n: int, depth: int, most: int) -> int:
    """How many plans the families have together, what several of them have counted once; `most`, if there are more."""
    orders = set[Order]()
    for family in families:
        whole = family in ("blocks", "prune") and count(family, n, depth)
        for candidate in everything(family, n, depth) if whole else listed(family, n, depth):
            orders.add(candidate.order)
            if len(orders) == most:
                return most
    return len(orders)


def everything(family: Family, n: int, depth: int) -> Iterator[Candidate]:
    """All plans of `blocks` or `prune`; ask `count` first."""
    if family == "prune":
        yield from (pruned(n, dropped) for dropped in combinations(range(n), n - depth))
    else:
        yield from (repeated(n, blocks) for blocks in _all_blocks(n, depth - n, 0))


def _all_blocks(n: int, added: int, first: int) -> Iterator[tuple[Block, ...]]:
    if not added:
        yield ()
    for start in range(first, n):
        for stop in range(start + 1, min(n, start + added) + 1):
            yield from (((start, stop), *rest) for rest in _all_blocks(n, added - (stop - start), stop))


def explicit(order: Order) -> Candidate:
    return Candidate(order, "explicit", f"layers, layers: {list(order)}")


def repeated(n: int, blocks: tuple[Block, ...]) -> Candidate:
    """Blocks that run twice, each in its place."""
    written = ", ".join(f"[{start}, {stop}]" for start, stop in blocks)
    return Candidate(order_of(methods.repeat(n, blocks)), "blocks", f"repeat, blocks: [{written}]")


def pruned(n: int, dropped: tuple[int, ...]) -> Candidate:
    """The layers that are not among these."""
    start, stop = dropped[0], dropped[-1] + 1
    if stop - start == len(dropped):
        return Candidate(order_of(methods.cut(n, start, stop)), "prune", f"prune, range: [{start}, {stop}]")
    order = tuple(layer for layer in range(n) if layer not in set(dropped))
    return Candidate(order, "prune", "slices, slices: " + str([list(run) for run in runs(order)]))


def usual(n: int, depth: int) -> Order | None:
    """SOLAR's plan (arXiv 2312.15166, section 2), of a model that grows: as many layers dropped on either side."""
    drop, is_odd = divmod(2 * n - depth, 2)
    return order_of(methods.dus(n, drop, drop)) if not is_odd and n < depth <= 2 * n else None


def block_of(order: Order, n: int) -> Block | None:
    """The one block that runs twice or more often to make this order; None where it is made otherwise."""
    added = len(order) - n
    start = next((after for before, after in pairwise(order) if after <= before), None)
    if added <= 0 or start is None:
        return None
    for length in range(1, n - start + 1):
        block = (start, start + length)
        if added % length == 0 and order_of(methods.repeat(n, [block], added // length + 1)) == order:
            return block
    return None


def blocks_of(order: Order, n: int) -> tuple[Block, ...] | None:
    """The blocks that run twice to make this order; None where it is made otherwise."""
    found = tuple((after, before + 1) for before, after in pairwise(order) if after <= before)
    fits = all(0 <= start < stop <= n for start, stop in found)
    fits = fits and all(one[1] <= other[0] for one, other in pairwise(found))
    return found if found and fits and repeated(n, found).order == order else None


def runs(order: Order) -> list[Block]:
    """The order as ranges [start, stop) of layers that follow each other."""
    found: list[Block] = []
    for layer in order:
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return found


def _dus(n: int, depth: int) -> Iterator[Candidate]:
    """Layers 0..n-end-1, then start..n-1, wherever the cuts are; SOLAR's are as far from both ends."""
    for end in range(n):
        start = 2 * n - depth - end
        if 0 <= start < n - end:
            drop = f"{end}" if end == start else f"[{end}, {start}]"
            yield Candidate(order_of(methods.dus(n, end, start)), "dus", f"dus, drop: {drop}")


def _interlocked(n: int, depth: int) -> Iterator[Candidate]:
    """Two copies of which groups of layers are taken in turn, for every size of a group."""
    drop, is_odd = divmod(2 * n - depth, 2)
    if not is_odd and 0 <= drop < n and depth > n:
        for group in range(1, n - drop + 1):
            merge = f"interlocked, drop: {drop}, group: {group}"
            yield Candidate(order_of(methods.interlocked(n, drop, group)), "interlocked", merge)


def _repeat(n: int, depth: int) -> Iterator[Candidate]:
    """One block that runs twice or more often."""
    added = depth - n
    for length in range(1, n + 1):
        if added > 0 and added % length == 0:
            times = added // length + 1
            for start in range(n - length + 1):
                merge = f"repeat, blocks: [[{start}, {start + length}]]" + (f", times: {times}" if times > 2 else "")
                order = order_of(methods.repeat(n, [(start, start + length)], times))
                yield Candidate(order, "repeat", merge)


def _block(n: int, depth: int) -> Iterator[Candidate]:
    """One block that runs twice."""
    added = depth - n
    for start in range(n - added + 1) if 0 < added <= n else ():
        yield repeated(n, ((start, start + added),))


def _cut(n: int, depth: int) -> Iterator[Candidate]:
    """One range of layers left out."""
    cut = n - depth
    for start in range(n - cut + 1) if 0 < cut < n else ():
        yield pruned(n, tuple(range(start, start + cut)))


def order_of(plan: Plan) -> Order:
    """The layers of a plan of one base, from first to last."""
    return tuple(layer.sources[0][1] for layer in plan.layers)
