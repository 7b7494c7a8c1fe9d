"""Search: which plans to try next, from what the ones before have cost. Pure: the same scores lead to the same plans.

First all that is small: every plan of a family that the budget has room for, or a draw of them. Then, for `blocks` and
`prune` where those are more than can be tried, an evolution: the best plans so far, each changed a little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from strata.screen.candidates import (
    Block,
    Candidate,
    Family,
    blocks_of,
    count,
    everything,
    explicit,
    listed,
    pruned,
    repeated,
    usual,
)
from strata.screen.walk import Order

GROWING: tuple[Family, ...] = ("blocks", "prune")
ATTEMPTS = 50  # at another plan, for each that is wanted


@dataclass(frozen=True)
class Space:
    """What is searched: plans of these depths, made of a base of `n` layers.

    plans: how many may be tried at most
    parents, children: of a generation of the evolution
    """

    n: int
    depths: tuple[int, ...]
    families: tuple[Family, ...]
    explicit: tuple[Order, ...]
    plans: int
    parents: int
    children: int
    seed: int


def first(space: Space) -> list[Candidate]:
    """The first generation: explicit plans, SOLAR's, which others are to beat, then all of the families, or as many as
    there is room for, drawn."""
    found = {order: explicit(order) for order in space.explicit}
    drawn: dict[Order, Candidate] = {}
    for depth in space.depths:
        for family in space.families:
            whole = family in GROWING and 0 < count(family, space.n, depth) <= space.plans
            for candidate in everything(family, space.n, depth) if whole else listed(family, space.n, depth):
                is_first = candidate.order == usual(space.n, depth)
                (found if is_first else drawn).setdefault(candidate.order, candidate)
    drawn = {order: candidate for order, candidate in drawn.items() if order not in found}
    most = -(-space.plans // 2) if is_growing(space) else space.plans  # the other half is for changes of the best
    room = max(0, most - len(found))
    chosen = list(drawn.values())
    if len(chosen) > room:
        chosen = Random(f"{space.seed}").sample(chosen, room)  # noqa: S311
    return [*list(found.values())[: space.plans], *chosen]


def is_growing(space: Space) -> bool:
    """Whether a family has more plans than may be tried, and is searched by changing the best."""
    return bool(_searches(space))


def _searches(space: Space) -> list[tuple[Family, int]]:
    return [
        (family, depth)
        for depth in space.depths
        for family in GROWING
        if family in space.families and count(family, space.n, depth) > space.plans
    ]


def following(space: Space, losses: Mapping[Order, float], generation: int) -> list[Candidate]:
    """The next generation, from the losses of all that were tried; empty when the budget or the space is used up."""
    searches = _searches(space)
    room, made = space.plans - len(losses), dict[Order, Candidate]()
    for number, (family, depth) in enumerate(searches):
        rng = Random(f"{space.seed} {generation} {family} {depth}")  # noqa: S311
        pool = _best(space, losses, family, depth)
        wanted = min(space.children, -(-(room - len(made)) // (len(searches) - number)))
        for _ in range(wanted * ATTEMPTS):
            if wanted <= 0 or not pool:
                break
            candidate = _changed(space.n, family, rng.choice(pool), rng)
            if candidate and candidate.order not in losses and candidate.order not in made:
                made[candidate.order] = candidate
                wanted -= 1
    return list(made.values())


def _best(space: Space, losses: Mapping[Order, float], family: Family, depth: int) -> list[Order]:
    """The best plans of a depth that a change can go on from."""
    able = [o for o in losses if len(o) == depth and (family == "prune" or blocks_of(o, space.n))]
    able = [order for order in able if family == "blocks" or len(set(order)) == len(order)]
    return sorted(able, key=lambda order: (losses[order], order))[: space.parents]


def _changed(n: int, family: Family, order: Order, rng: Random) -> Candidate | None:
    """A plan like this one, as deep and of the same family; None where the change makes no plan."""
    if family == "prune":
        dropped = sorted(set(range(n)) - set(order))
        dropped[rng.randrange(len(dropped))] = rng.choice(order)
        return pruned(n, tuple(sorted(dropped)))
    blocks = list(blocks_of(order, n) or ())
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice((_move, _trade, _split, _join))(blocks, n, rng)
        blocks.sort()
    fits = all(0 <= start < stop <= n for start, stop in blocks)
    return repeated(n, tuple(blocks)) if fits and all(a[1] <= b[0] for a, b in pairwise(blocks)) else None


def _move(blocks: list[Block], n: int, rng: Random) -> None:
    """One block a few layers up or down."""
    place, by = rng.randrange(len(blocks)), rng.choice((-3, -2, -1, 1, 2, 3))
    start, stop = blocks[place]
    blocks[place] = (start + by, stop + by)


def _trade(blocks: list[Block], n: int, rng: Random) -> None:
    """One block longer by a layer at one of its ends, another shorter."""
    if len(blocks) > 1:
        one, other = rng.sample(range(len(blocks)), 2)
        (start, stop), (first, last) = blocks[one], blocks[other]
        blocks[one] = rng.choice(((start - 1, stop), (start, stop + 1)))
        blocks[other] = rng.choice(((first + 1, last), (first, last - 1)))


def _split(blocks: list[Block], n: int, rng: Random) -> None:
    """One block in two, the second of which goes anywhere."""
    place = rng.randrange(len(blocks))
    start, stop = blocks[place]
    if stop - start > 1:
        at = rng.randrange(start + 1, stop)
        to = rng.randrange(n - (stop - at) + 1)
        blocks[place : place + 1] = [(start, at), (to, to + stop - at)]


def _join(blocks: list[Block], n: int, rng: Random) -> None:
    """Two neighbours as one block, where the first of them begins."""
    if len(blocks) > 1:
        place = rng.randrange(len(blocks) - 1)
        (start, stop), (first, last) = blocks[place : place + 2]
        blocks[place : place + 2] = [(start, stop + last - first)]
