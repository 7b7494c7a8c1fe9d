"""Layer plans: which source layers make up a model, in which order. Pure functions, no I/O.

A plan is the one description of every surgery method; whatever builds, counts, draws or trains layers reads it.
Layers count from 0. `parent` is an index into the list of parents.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from strata.errors import ConfigError

Source = tuple[int, int]  # (parent, layer)
MAX_LAYERS = 10_000  # ten times the deepest model there is; a chain of doublings must not fill the memory


@dataclass(frozen=True)
class Layer:
    """One output layer: `transform` of the source layers. A copy has one source and weight 1."""

    sources: tuple[Source, ...]
    transform: str = "copy"
    weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Plan:
    """Output layers from first to last, and the parent that lends embedding, final norm and head."""

    layers: tuple[Layer, ...]
    embed_from: int = 0
    norm_from: int = 0
    head_from: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [[layer.transform, list(layer.weights), list(layer.sources)] for layer in self.layers],
            "embed_from": self.embed_from,
            "norm_from": self.norm_from,
            "head_from": self.head_from,
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        layers = tuple(
            Layer(tuple((parent, layer) for parent, layer in sources), transform, tuple(weights))
            for transform, weights, sources in data["layers"]
        )
        return Plan(layers, data["embed_from"], data["norm_from"], data["head_from"])


@cache
def _copy(layer: int) -> Layer:
    """One object for each layer: a sweep of thousands of plans is resolved in every job of the workflow."""
    return Layer(((0, layer),))


def copies(layers: Iterable[int]) -> Plan:
    """The plan that copies these layers of one parent, in this order."""
    return Plan(tuple(map(_copy, layers)))


def identity(n: int) -> Plan:
    return copies(range(n))


def dus(n: int, drop: int) -> Plan:
    """Depth up-scaling: layers 0..n-drop-1, then drop..n-1 (SOLAR 10.7B, arXiv 2312.15166, section 2).

    Raises:
        ConfigError: `drop` is not in 0..n-1.
    """
    return interlocked(n, drop, n - drop)


def interlocked(n: int, drop: int, group: int) -> Plan:
    """Interlocked DUS: `group` layers of A = 0..n-drop-1, then `group` of B = drop..n-1, and so on (gauss5930/iDUS).

    `group` = n - drop is plain DUS, `group` = 1 is iDUS-1layer, n = 32, drop = 8, group = 8 is iDUS-8layer. A last,
    shorter group is taken as it is, so every `group` gives 2 (n - drop) layers.

    Raises:
        ConfigError: `drop` is not in 0..n-1, or `group` not in 1..n-drop.
    """
    if not 0 <= drop < n:
        raise ConfigError("`drop` is out of range", expected=f"0 to {n - 1}: the parent has {n} layers", got=drop)
    kept = n - drop
    if 2 * kept > MAX_LAYERS:
        raise ConfigError("`drop` leaves too many layers", expected=f"at most {MAX_LAYERS} layers", got=2 * kept)
    if not 1 <= group <= kept:
        raise ConfigError("`group` is out of range", expected=f"1 to {kept} = {n} layers - drop {drop}", got=group)
    order: list[int] = []
    for start in range(0, kept, group):
        stop = min(start + group, kept)
        order += [*range(start, stop), *range(drop + start, drop + stop)]
    return copies(order)


def make_plan(parameters: dict[str, Any], n: int) -> Plan:
    """The plan that a merge's parameters (`method` and its own) make of a parent with `n` layers."""
    match parameters:
        case {"method": "dus", "drop": drop}:
            return dus(n, drop)
        case {"method": "interlocked", "drop": drop, "group": group}:
            return interlocked(n, drop, group)
    raise ConfigError("unknown merge", expected="dus, interlocked", got=parameters)


def seams(plan: Plan) -> tuple[int, ...]:
    """Every i such that output layer i+1 does not follow output layer i in a parent.

    An averaged or inserted layer follows nothing and nothing follows it: it has a seam on both sides.
    """
    return tuple(
        i
        for i, (below, above) in enumerate(zip(plan.layers, plan.layers[1:], strict=False))
        if not _joined(below, above)
    )


def _joined(below: Layer, above: Layer) -> bool:
    if below.transform != "copy" or above.transform != "copy":
        return False
    (parent, layer), (next_parent, next_layer) = below.sources[0], above.sources[0]
    return parent == next_parent and next_layer == layer + 1


def trace(plan: Plan, parents: Sequence[Plan]) -> Plan:
    """`plan`, made of copies, told in the layers of its parents' parents: a chain of merges as one plan of the base."""

    def through(layer: Layer) -> Layer:
        ((parent, index),) = layer.sources
        return parents[parent].layers[index]

    return Plan(tuple(through(layer) for layer in plan.layers), plan.embed_from, plan.norm_from, plan.head_from)
