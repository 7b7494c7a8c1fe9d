"""Surgery methods: each is a small pure function from the depths of its parents to a layer plan.

Ranges are half-open, [start, stop), and count from 0. `make_plan` reads a recipe's parameters, in which parents are
numbers; every refusal names the entry of the merge that is wrong and the range it should be in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from strata.errors import PlanError
from strata.plan import MAX_LAYERS, OUTSIDE, Layer, Plan, copies, copy

Range = Sequence[int]  # start, stop


def make_plan(parameters: dict[str, Any], depths: Sequence[int], dropped: Sequence[int] | None = None) -> Plan:
    """The plan that a merge's parameters (`method` and its own) make of parents with these numbers of layers.

    Args:
        dropped: for `prune` with `least`, the layers that its analysis found to matter least.

    Raises:
        PlanError: a parameter does not fit the parents; `entry` says which.
    """
    n = depths[0]
    match parameters:
        case {"method": "dus", "drop": [end, start]}:
            return dus(n, end, start)
        case {"method": "dus", "drop": drop}:
            return dus(n, drop, drop)
        case {"method": "interlocked", "drop": drop, "group": group}:
            return interlocked(n, drop, group)
        case {"method": "repeat", "blocks": blocks, "times": times}:
            return repeat(n, blocks, times)
        case {"method": "slices", "slices": parts, **rest}:
            return slices(depths, parts, *_outside(rest, depths))
        case {"method": "layers", "layers": entries, **rest}:
            return layers(depths, map(Layer.from_json, entries), *_outside(rest, depths))
        case {"method": "block_expansion", "groups": groups, "copies": count, "position": position}:
            return block_expansion(n, groups, count, position)
        case {"method": "prune", "keep": [first, last]}:
            return keep(n, first, last)
        case {"method": "prune", "range": [start, stop]}:
            return cut(n, start, stop)
        case {"method": "prune", "least": least}:
            return without(n, least, dropped)
        case {"method": "compose", "first": first, "last": last}:
            return compose(depths, first, last)
        case {"method": "linear" | "slerp" as method, "weights": weights}:
            return blend(depths, method, weights)
    raise PlanError(
        "unknown merge", ("method",), expected="a merge that workflow/schemas/config.md tells of", got=parameters
    )


def dus(n: int, end: int, start: int) -> Plan:
    """Depth up-scaling: layers 0..n-end-1, then start..n-1 (SOLAR 10.7B, arXiv 2312.15166, section 2: end = start)."""
    for drop in (end, start):
        _within("drop", ("drop",), drop, 0, n - 1, f"the parent has {n} layers")
    _limit(("drop",), 2 * n - end - start)
    return copies([*range(n - end), *range(start, n)])


def interlocked(n: int, drop: int, group: int) -> Plan:
    """Interlocked DUS: `group` layers of A = 0..n-drop-1, then `group` of B = drop..n-1, and so on (gauss5930/iDUS).

    `group` = n - drop is plain DUS, `group` = 1 is iDUS-1layer, n = 32, drop = 8, group = 8 is iDUS-8layer. A last,
    shorter group is taken as it is, so every `group` gives 2 (n - drop) layers.
    """
    _within("drop", ("drop",), drop, 0, n - 1, f"the parent has {n} layers")
    kept = n - drop
    _limit(("drop",), 2 * kept)
    _within("group", ("group",), group, 1, kept, f"{kept} = {n} layers - drop {drop}")
    order: list[int] = []
    for first in range(0, kept, group):
        stop = min(first + group, kept)
        order += [*range(first, stop), *range(drop + first, drop + stop)]
    return copies(order)


def repeat(n: int, blocks: Sequence[Range], times: int = 2) -> Plan:
    """Every block of layers runs `times` times in its place (dnhkng/RYS). One block [m, n - m) is DUS with drop m."""
    _within("times", ("times",), times, 2, MAX_LAYERS, "as often as each block runs")
    for number, (start, stop) in enumerate(blocks):
        floor = blocks[number - 1][1] if number else 0
        _range(("blocks", number), start, stop, n, floor)
    _limit(("times",), n + (times - 1) * sum(stop - start for start, stop in blocks))
    order: list[int] = []
    at = 0
    for start, stop in blocks:
        order += [*range(at, start), *(list(range(start, stop)) * times)]
        at = stop
    return copies([*order, *range(at, n)])


def slices(depths: Sequence[int], parts: Sequence[Sequence[int]], embed: int, norm: int, head: int) -> Plan:
    """Ranges of layers (parent, start, stop) of one or several parents, one after another."""
    for number, (parent, start, stop) in enumerate(parts):
        _range(("slices", number), start, stop, depths[parent], whose=_of(parent, depths))
    _limit(("slices",), sum(stop - start for _, start, stop in parts))
    order = [copy(parent, layer) for parent, start, stop in parts for layer in range(start, stop)]
    return _plan(order, embed, norm, head)


def layers(depths: Sequence[int], entries: Iterable[Layer], embed: int, norm: int, head: int) -> Plan:
    """An explicit list: copies, silent copies, and averages or SLERP of layers of one or several parents."""
    listed = list(entries)
    _limit(("layers",), len(listed))
    for number, layer in enumerate(listed):
        for parent, source in layer.sources:
            _within("a layer", ("layers", number), source, 0, depths[parent] - 1, _of(parent, depths))
    return _plan(listed, embed, norm, head)


def block_expansion(n: int, groups: int, count: int, position: str) -> Plan:
    """LLaMA-Pro (arXiv 2401.02415, section 3.2): on top of each group of layers, silent copies of its top `count`.

    The groups divide all layers (`even`), the upper half (`top`) or the half around the middle (`middle`); where the
    division leaves a rest, groups differ by one layer. The model computes what its parent does until it is trained.
    """
    low, high = {"even": (0, n), "top": (n // 2, n), "middle": (n // 4, n - n // 4)}[position]
    size = high - low
    _within("groups", ("groups",), groups, 1, size, f"the {size} layers of position {position}")
    _within("copies", ("copies",), count, 1, size // groups, f"{size} layers in {groups} groups")
    _limit(("copies",), n + groups * count)
    tops = {low + (number + 1) * size // groups for number in range(groups)}
    order: list[Layer] = []
    for layer in range(n):
        order.append(copy(0, layer))
        if layer + 1 in tops:
            order += [Layer(((0, source),), "zero") for source in range(layer + 1 - count, layer + 1)]
    return Plan(tuple(order))


def keep(n: int, first: int, last: int) -> Plan:
    """Pruning to the first and last layers."""
    _ends(("keep",), n, first, last)
    return copies([*range(first), *range(n - last, n)])


def cut(n: int, start: int, stop: int) -> Plan:
    """Pruning one range of layers."""
    _range(("range",), start, stop, n)
    if stop - start == n:
        raise PlanError("nothing would be left", ("range",), expected=f"at most {n - 1} layers", got=n)
    return copies([*range(start), *range(stop, n)])


def without(n: int, least: int, dropped: Sequence[int] | None) -> Plan:
    """Pruning the `least` layers that an analysis named."""
    check_least(n, least)
    if dropped is None or len(set(dropped) & set(range(n))) != least:
        raise PlanError(
            "the analysis does not fit", ("least",), expected=f"{least} of layers 0 to {n - 1}", got=dropped
        )
    return copies(layer for layer in range(n) if layer not in set(dropped))


def check_least(n: int, least: int) -> None:
    """Raise PlanError unless `least` layers can be taken from n; known before the analysis is."""
    _within("least", ("least",), least, 1, n - 1, f"the parent has {n} layers")


def compose(depths: Sequence[int], first: int, last: int) -> Plan:
    """The first and last layers of each parent, one parent after another; embedding, norm and head of the first."""
    for parent, n in enumerate(depths):
        _ends(("first",), n, first, last, _of(parent, depths))
    _limit(("first",), len(depths) * (first + last))
    return Plan(
        tuple(copy(parent, layer) for parent, n in enumerate(depths) for layer in (*range(first), *range(n - last, n)))
    )


def blend(depths: Sequence[int], method: str, weights: Sequence[float]) -> Plan:
    """`linear` or `slerp` of whole models of one shape, embedding, norm and head included."""
    if len(set(depths)) != 1:
        raise PlanError("the parents differ in depth", ("method",), expected=f"{depths[0]} layers", got=list(depths))
    if len(weights) != len(depths):
        raise PlanError("not a weight for each parent", ("weights",), expected=len(depths), got=len(weights))

    def of(layer: int) -> Layer:
        return Layer(tuple((parent, layer) for parent in range(len(depths))), method, tuple(weights))

    outside = of(OUTSIDE)
    return Plan(tuple(map(of, range(depths[0]))), outside, outside, outside)


def _plan(order: Iterable[Layer], embed: int, norm: int, head: int) -> Plan:
    return Plan(tuple(order), copy(embed, OUTSIDE), copy(norm, OUTSIDE), copy(head, OUTSIDE))


def _outside(parameters: dict[str, Any], depths: Sequence[int]) -> list[int]:
    names = ("embed_from", "norm_from", "head_from")
    for name in names:
        _within("the parent", (name,), parameters[name], 0, len(depths) - 1, "a number of a parent")
    return [parameters[name] for name in names]


def _of(parent: int, depths: Sequence[int]) -> str:
    whose = "the parent" if len(depths) == 1 else f"parent {parent + 1}"
    return f"{whose} has {depths[parent]} layers"


def _within(what: str, entry: tuple[str | int, ...], value: int, low: int, high: int, why: str) -> None:
    if not low <= value <= high:
        said = f"`{what}`" if what == entry[-1] else what
        raise PlanError(f"{said} is out of range", entry, expected=f"{low} to {high}: {why}", got=value)


def _range(entry: tuple[str | int, ...], start: int, stop: int, n: int, floor: int = 0, whose: str = "") -> None:
    if not floor <= start < stop <= n:
        expected = f"[start, stop) with {floor} <= start < stop <= {n}: {whose or f'the parent has {n} layers'}"
        if floor:
            expected += f", and the block before ends at {floor}"
        raise PlanError("a range of layers is empty or out of range", entry, expected=expected, got=[start, stop])


def _ends(entry: tuple[str | int, ...], n: int, first: int, last: int, whose: str = "") -> None:
    if first < 0 or last < 0 or not 1 <= first + last <= n:
        expected = f"two counts that add up to 1 to {n}: {whose or f'the parent has {n} layers'}"
        raise PlanError("the first and last layers do not fit", entry, expected=expected, got=[first, last])


def _limit(entry: tuple[str | int, ...], count: int) -> None:
    if not 1 <= count <= MAX_LAYERS:
        what = "too many layers" if count else "no layer at all"
        raise PlanError(what, entry, expected=f"1 to {MAX_LAYERS} layers", got=count)
