"""Layer plans: which source layers make up a model, in which order, and where the parts outside the layers come from.

A plan is the one description of every surgery method; whatever builds, counts, draws or trains layers reads it.
Layers count from 0. `parent` is an index into the list of parents. Pure functions, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

Source = tuple[int, int]  # (parent, layer)
OUTSIDE = -1  # in place of a layer: the parent's tensors outside the layers
MAX_LAYERS = 10_000  # ten times the deepest model there is; a chain of doublings must not fill the memory


@dataclass(frozen=True)
class Layer:
    """One output layer, or one part outside the layers: a transform of its sources.

    copy      the one source, byte for byte
    zero      a copy that adds nothing to the residual stream: what block expansion inserts
    linear    the sum over i of weights[i] * source i, as given; one source with a weight is scaling
    slerp     spherical interpolation of the sources, weights[i] the share of source i

    `named` holds (text, weights): a tensor whose name contains the text takes these weights; the first match wins.
    """

    sources: tuple[Source, ...]
    transform: str = "copy"
    weights: tuple[float, ...] = (1.0,)
    named: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def weights_of(self, name: str) -> tuple[float, ...]:
        """The weights for one tensor of this layer."""
        return next((weights for text, weights in self.named if text in name), self.weights)

    def to_json(self) -> list[Any]:
        named = [[text, list(weights)] for text, weights in self.named]
        return [self.transform, list(self.weights), [list(source) for source in self.sources], *([named] * bool(named))]

    @staticmethod
    def from_json(data: Sequence[Any]) -> Layer:
        transform, weights, sources, *rest = data
        named = tuple((text, tuple(others)) for text, others in rest[0]) if rest else ()
        return Layer(tuple((parent, layer) for parent, layer in sources), transform, tuple(weights), named)


@cache
def copy(parent: int, layer: int) -> Layer:
    """One object for each layer: a sweep of thousands of plans is resolved in every job of the workflow."""
    return Layer(((parent, layer),))


WHOLE = copy(0, OUTSIDE)  # the first parent's tensors outside the layers


@dataclass(frozen=True)
class Plan:
    """Output layers from first to last, and what embedding, final norm and head are made of."""

    layers: tuple[Layer, ...]
    embed_from: Layer = WHOLE
    norm_from: Layer = WHOLE
    head_from: Layer = WHOLE

    @property
    def outside(self) -> dict[str, Layer]:
        """The parts outside the layers, by the names that `families` gives them."""
        return {"embed": self.embed_from, "norm": self.norm_from, "head": self.head_from}

    @property
    def is_bytes(self) -> bool:
        """Whether it copies and averages nothing: such a merge reads no weight."""
        return all(part.transform in ("copy", "zero") for part in (*self.layers, *self.outside.values()))

    def to_json(self) -> dict[str, Any]:
        """A part that is a copy is written as the number of its parent."""
        parts = {
            f"{name}_from": part.sources[0][0] if part.transform == "copy" else part.to_json()
            for name, part in self.outside.items()
        }
        return {"layers": [layer.to_json() for layer in self.layers], **parts}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Plan:
        parts = (data[f"{name}_from"] for name in ("embed", "norm", "head"))
        return Plan(
            tuple(map(Layer.from_json, data["layers"])),
            *(copy(part, OUTSIDE) if isinstance(part, int) else Layer.from_json(part) for part in parts),
        )


def of(parent: int, plan: Plan) -> Plan:
    """`plan`, which has one parent, with that parent under another number."""
    return replace(plan, layers=tuple(copy(parent, layer.sources[0][1]) for layer in plan.layers))


def copies(layers: Iterable[int]) -> Plan:
    """The plan that copies these layers of one parent, in this order."""
    return Plan(tuple(copy(0, layer) for layer in layers))


def identity(n: int) -> Plan:
    return copies(range(n))


def inserted(plan: Plan) -> tuple[int, ...]:
    """The output layers that block expansion put in: what its training trains."""
    return tuple(i for i, layer in enumerate(plan.layers) if layer.transform == "zero")


def seams(plan: Plan) -> tuple[int, ...]:
    """Every i such that output layer i+1 does not follow output layer i in a parent.

    An inserted layer, or one averaged of different layers, follows nothing and nothing follows it: it has a seam on
    both sides. Averages of whole models, layer by layer, follow each other as the layers of one model do.
    """
    places = [_place(layer) for layer in plan.layers]
    return tuple(i for i in range(len(places) - 1) if not _joined(places[i], places[i + 1]))


def beside_seams(plan: Plan) -> tuple[int, ...]:
    """The output layers on either side of a seam."""
    return tuple(sorted({layer for i in seams(plan) for layer in (i, i + 1)}))


def _place(layer: Layer) -> tuple[tuple[int, ...], int] | None:
    """(parents, the one layer number that they lend), or None where there is no such number."""
    numbers = {number for _, number in layer.sources}
    if layer.transform == "zero" or len(numbers) != 1:
        return None
    return tuple(parent for parent, _ in layer.sources), numbers.pop()


def _joined(below: tuple[tuple[int, ...], int] | None, above: tuple[tuple[int, ...], int] | None) -> bool:
    return below is not None and above is not None and below[0] == above[0] and below[1] + 1 == above[1]


def layers_that_train(plan: Plan, train: str | Sequence[int]) -> tuple[int, ...]:
    """The layers that `train` names whole: all, new, new+norms (whose norms are apart), seams, or a list."""
    if not isinstance(train, str):
        return tuple(train)
    if train == "seams":
        return beside_seams(plan)
    return tuple(range(len(plan.layers))) if train == "all" else inserted(plan)


def classes(plan: Plan) -> tuple[str, ...]:
    """What each layer is to training: `new` where it was inserted, else `seams` beside a seam, else `rest`."""
    new, beside = set(inserted(plan)), set(beside_seams(plan))
    return tuple("new" if i in new else "seams" if i in beside else "rest" for i in range(len(plan.layers)))


def trace(plan: Plan, parents: Sequence[Plan]) -> Plan:
    """`plan` told in the layers of its parents' parents: a chain of merges as one plan of its bases.

    A mix of mixes comes out as one mix of all their sources, which says where a layer comes from, not how to make it.
    """

    def through(layer: Layer) -> Layer:
        below = [parents[parent].layers[index] for parent, index in layer.sources]
        if layer.transform in ("copy", "zero") or all(inner.transform == "copy" for inner in below):
            sources = tuple(source for inner in below for source in inner.sources)
            transform = below[0].transform if layer.transform == "copy" else layer.transform
            is_one = layer.transform in ("copy", "zero")
            return Layer(sources, transform, below[0].weights if is_one else layer.weights)
        shares = zip(layer.weights, below, strict=True)
        weights = tuple(share * weight for share, inner in shares for weight in inner.weights)
        return Layer(tuple(source for inner in below for source in inner.sources), layer.transform, weights)

    return replace(plan, layers=tuple(through(layer) for layer in plan.layers))
