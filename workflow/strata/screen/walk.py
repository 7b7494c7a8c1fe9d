"""Walk: layer sequences visited as a tree, so that what begins alike is computed once. Pure; knows no torch.

Plans in sorted order share the longest beginnings with their neighbours: the tree needs no nodes, only how many layers
each plan has in common with the one before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Order = tuple[int, ...]  # the layers of a plan, from first to last
State = TypeVar("State")


def common(orders: Sequence[Order]) -> list[int]:
    """How many first layers each of these has in common with the one before it; 0 for the first."""
    shared = [0] * len(orders)
    for place in range(1, len(orders)):
        one, other = orders[place - 1], orders[place]
        length = min(len(one), len(other))
        if one[:length] == other[:length]:
            shared[place] = length
        else:
            shared[place] = next(depth for depth in range(length) if one[depth] != other[depth])
    return shared


def steps(orders: Sequence[Order]) -> int:
    """The layers that `walk` computes: the nodes of the tree that these orders make."""
    ordered = sorted(orders)
    return sum(len(order) - depth for order, depth in zip(ordered, common(ordered), strict=True))


def walk(
    orders: Sequence[Order], start: State, layer: Callable[[int, State], State], leaf: Callable[[Order, State], None]
) -> None:
    """Compute the last state of each order, every shared beginning once, and hand it to `leaf`.

    Held at a time are the states that later orders go on from, at most one for each depth, and the current one.

    Args:
        start: the state before the first layer.
        layer: the state behind layer number n of the base, from the one before it. It must not change its input.
    """
    ordered = sorted(orders)
    shared = common(ordered)
    needed = _needed(shared)
    held = {0: start}
    for order, depth, later in zip(ordered, shared, needed, strict=True):
        state = held[depth]
        held = {at: kept for at, kept in held.items() if at in later}
        for at in range(depth, len(order)):
            state = layer(order[at], state)
            if at + 1 in later:
                held[at + 1] = state
        leaf(order, state)


def _needed(shared: Sequence[int]) -> list[frozenset[int]]:
    """The depths whose states the orders behind each one go on from, before others overwrite them."""
    needed: list[frozenset[int]] = []
    later = frozenset[int]()
    for depth in reversed(shared):
        needed.append(later)
        later = frozenset({depth, *(other for other in later if other < depth)})
    return needed[::-1]
