"""What the config says of a merge: a schema for each surgery method, and its normal form in a recipe.

A normal form names no variants: parents are numbers, defaults are written out, and two ways to say one thing are one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from strata.errors import PlanError
from strata.plan import Layer
from strata.schema import Count, Dtype, Model, Name, Share, Weight, by_form, by_key, by_key_value

MANY = 1_000
Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]
Entry = tuple[str | int, ...]


class Method(Model):
    """What every method has. `parents` is the fewest and the most it takes."""

    parents: ClassVar[tuple[int, int]] = (1, 1)
    dtype: Dtype | None = Field(default=None, description="stored dtype; default: the parents', byte for byte")

    def normal(self, names: Sequence[str]) -> dict[str, Any]:
        """The parameters in a recipe. Raises PlanError for a parent that is not among `names`."""
        return self.model_dump(exclude_none=True)


class Dus(Method):
    """Depth up-scaling: layers 0..n-drop-1, then drop..n-1 (SOLAR 10.7B)."""

    method: Literal["dus"]
    drop: Annotated[
        Annotated[Count, Tag("@plain")] | Annotated[Pair, Tag("@list")], by_form("a number, or [number, number]")
    ] = Field(description="layers cut off the end of the first copy and off the start of the second, or one for each")

    def normal(self, names: Sequence[str]) -> dict[str, Any]:
        same = isinstance(self.drop, list) and self.drop[0] == self.drop[1]
        return super().normal(names) | ({"drop": self.drop[0]} if same and isinstance(self.drop, list) else {})


class Interlocked(Method):
    """Interlocked DUS: `group` layers of the first copy, then `group` of the second, and so on (iDUS)."""

    method: Literal["interlocked"]
    drop: Count = Field(description="as for `dus`")
    group: int = Field(gt=0, description="layers taken at a time; 1 is iDUS-1layer, n - drop is plain DUS")


class Repeat(Method):
    """Blocks of layers that run several times, each in its place (RYS)."""

    method: Literal["repeat"]
    blocks: list[Pair] = Field(min_length=1, description="[start, stop) of each block, from bottom to top")
    times: int = Field(default=2, ge=2, description="how often each block runs")


class Outside(Method):
    """Where the parts outside the layers come from, by name of a parent."""

    parents = (1, MANY)
    embed_from: Name | None = Field(default=None, description="parent that lends the embedding, config and tokenizer")
    norm_from: Name | None = Field(default=None, description="parent that lends the final norm")
    head_from: Name | None = Field(default=None, description="parent that lends the head")

    def outside(self, names: Sequence[str], first: int, last: int) -> dict[str, Any]:
        """As mergekit: embedding from the first layer's parent, norm and head from the last one's."""
        defaults = (("embed_from", first), ("norm_from", last), ("head_from", last))
        dtype = {"dtype": self.dtype} if self.dtype else {}
        return dtype | {key: _number(getattr(self, key), names, (key,), default) for key, default in defaults}


class SliceOf(Model):
    """A range of layers of one of several parents."""

    parent: Name
    layers: Pair = Field(description="[start, stop)")


class Slices(Outside):
    """Ranges of layers, one after another, from one parent or several."""

    method: Literal["slices"]
    slices: list[
        Annotated[
            Annotated[Pair, Tag("@list")] | Annotated[SliceOf, Tag("@mapping")],
            by_form("[start, stop), or {parent: NAME, layers: [start, stop]}"),
        ]
    ] = Field(
        min_length=1, description="`[start, stop]` of the only parent, or `{parent: NAME, layers: [start, stop]}`"
    )

    def normal(self, names: Sequence[str]) -> dict[str, Any]:
        parts = []
        for number, part in enumerate(self.slices):
            name, (start, stop) = (part.parent, part.layers) if isinstance(part, SliceOf) else (None, part)
            parts.append([_number(name, names, ("slices", number)), start, stop])
        return {"method": "slices", "slices": parts} | self.outside(names, parts[0][0], parts[-1][0])


class LayerOf(Model):
    """A layer of one of several parents."""

    parent: Name | None = Field(default=None, description="default: the only parent")
    layer: Count


AnyLayer = Annotated[
    Annotated[Count, Tag("@plain")] | Annotated[LayerOf, Tag("@mapping")],
    by_form("a layer's number, or {parent: NAME, layer: number}"),
]


class ZeroLayer(Model):
    """A layer that adds nothing until it is trained, as block expansion inserts."""

    zero: AnyLayer


class LinearLayer(Model):
    """The weighted average of several layers."""

    linear: list[AnyLayer] = Field(min_length=2)
    weights: list[Weight] | None = Field(default=None, description="relative; default: equal")


class SlerpLayer(Model):
    """The spherical interpolation of two layers."""

    slerp: list[AnyLayer] = Field(min_length=2, max_length=2)
    t: Share = Field(default=0.5, description="0 is the first layer, 1 the second")


class Layers(Outside):
    """An explicit list of output layers: copies, and averages or SLERP of layers, also within one parent."""

    method: Literal["layers"]
    layers: list[
        Annotated[
            Annotated[Count, Tag("@plain")]
            | Annotated[
                Annotated[LayerOf, Tag("@layer")]
                | Annotated[ZeroLayer, Tag("@zero")]
                | Annotated[LinearLayer, Tag("@linear")]
                | Annotated[SlerpLayer, Tag("@slerp")],
                by_key("layer", "zero", "linear", "slerp"),
                Tag("@mapping"),
            ],
            by_form("a layer's number, or a mapping with layer, zero, linear or slerp"),
        ]
    ] = Field(min_length=1, description="from bottom to top; a number is a copy of that layer of the only parent")

    def normal(self, names: Sequence[str]) -> dict[str, Any]:
        listed = [self._layer(entry, names, ("layers", number)) for number, entry in enumerate(self.layers)]
        parents = [layer.sources[0][0] for layer in listed]
        entries = [layer.to_json() for layer in listed]
        return {"method": "layers", "layers": entries} | self.outside(names, parents[0], parents[-1])

    @staticmethod
    def _layer(entry: Any, names: Sequence[str], where: Entry) -> Layer:
        if isinstance(entry, ZeroLayer):
            return Layer((_source(entry.zero, names, where),), "zero")
        if isinstance(entry, LinearLayer):
            sources = tuple(_source(layer, names, where) for layer in entry.linear)
            return Layer(sources, "linear", _shares(entry.weights, len(sources), where))
        if isinstance(entry, SlerpLayer):
            return Layer(tuple(_source(layer, names, where) for layer in entry.slerp), "slerp", (1 - entry.t, entry.t))
        return Layer((_source(entry, names, where),))


class BlockExpansion(Method):
    """LLaMA-Pro: silent copies on top of each group of layers. The model stays what it was until it is trained."""

    method: Literal["block_expansion"]
    groups: int = Field(gt=0, description="groups that the layers are divided into")
    copies: int = Field(default=1, gt=0, description="copies on top of each group, of its top layers")
    position: Literal["even", "middle", "top"] = Field(
        default="even", description="which layers are divided: all, the half around the middle, or the upper half"
    )


class Calibration(Model):
    """The text on which the importance of layers is measured, in a job of its own."""

    source: Name = Field(description="a name in `sources`; every file is a document")
    documents: int = Field(default=16, gt=0, description="how many, in order of their names")
    tokens: int = Field(default=512, ge=2, description="of each document, from its start")
    dtype: Dtype = Field(default="float32", description="of weights and activations while measuring")


class Prune(Method):
    """Fewer layers: keep the first and last, cut a range, or drop those that matter least on a calibration text."""

    method: Literal["prune"]
    keep: Pair | None = Field(default=None, description="how many of the first and of the last layers stay")
    range: Pair | None = Field(default=None, description="[start, stop) is cut out")
    least: int | None = Field(default=None, gt=0, description="how many are dropped by what `calibration` measures")
    by: Literal["block_influence", "angular_distance"] | None = Field(
        default=None, description="with `least`: single layers (ShortGPT), or the best block of layers (Gromov et al.)"
    )
    calibration: Calibration | None = Field(default=None, description="with `least`")

    @model_validator(mode="after")
    def _one_way(self) -> Prune:
        if [self.keep, self.range, self.least].count(None) != 2:
            raise PydanticCustomError("strata", "give one of `keep`, `range` and `least`")
        if (self.least is None) != (self.by is None) or (self.least is None) != (self.calibration is None):
            raise PydanticCustomError("strata", "`least`, `by` and `calibration` go together")
        return self

    def normal(self, names: Sequence[str]) -> dict[str, Any]:
        return self.model_dump(exclude_none=True, exclude={"calibration"})


class Compose(Method):
    """The first and last layers of each of several parents; embedding, norm and head of the first."""

    parents = (1, MANY)
    method: Literal["compose"]
    first: Count = Field(description="layers of each parent's start")
    last: Count = Field(description="layers of each parent's end")


class Linear(Method):
    """The weighted average of whole models of one shape."""

    parents = (2, MANY)
    method: Literal["linear"]
    weights: list[Weight] | None = Field(default=None, description="one for each parent, relative; default: equal")

    def normal(self, names: Sequence[str]) -> dict[str, Any]:
        shares = _shares(self.weights, len(names), ("weights",))
        return super().normal(names) | {"weights": list(shares)}


class Slerp(Method):
    """The spherical interpolation of whole models of one shape; of more than two, one after another."""

    parents = (2, MANY)
    method: Literal["slerp"]
    t: Share | None = Field(default=None, description="for two parents: 0 is the first, 1 the second; default 0.5")
    weights: list[Weight] | None = Field(default=None, description="instead of `t`: one for each parent, relative")

    def normal(self, names: Sequence[str]) -> dict[str, Any]:
        if self.t is not None and (self.weights or len(names) != 2):
            raise PlanError(
                "`t` is for two parents, without `weights`",
                ("t",),
                expected="two parents and no `weights`, or no `t`",
                got=self.t,
            )
        weights = self.weights if self.t is None else [1 - self.t, self.t]
        shares = _shares(weights, len(names), ("weights",))
        return self.model_dump(exclude_none=True, exclude={"t"}) | {"weights": list(shares)}


class Screened(Method):
    """The best plan that a screen has found: its layers are known when the screen, and its race if it has one, is."""

    method: Literal["screened"]
    screen: Name = Field(description="a name in `screens`, of the same parent")
    depth: int = Field(gt=0, description="number of layers; one of the screen's `depths`")
    rank: int = Field(default=1, gt=0, description="1 is the best: after the race of this depth, where there was one")

    def normal(self, names: Sequence[str]) -> dict[str, Any]:
        """Without the screen's name: its id is among the recipe's sources."""
        return self.model_dump(exclude_none=True, exclude={"screen"})


METHODS = (
    "dus", "interlocked", "repeat", "slices", "layers", "block_expansion", "prune", "compose", "linear", "slerp",
    "screened",
)  # fmt: skip
Merge = Annotated[
    Annotated[Dus, Tag("@dus")]
    | Annotated[Interlocked, Tag("@interlocked")]
    | Annotated[Repeat, Tag("@repeat")]
    | Annotated[Slices, Tag("@slices")]
    | Annotated[Layers, Tag("@layers")]
    | Annotated[BlockExpansion, Tag("@block_expansion")]
    | Annotated[Prune, Tag("@prune")]
    | Annotated[Compose, Tag("@compose")]
    | Annotated[Linear, Tag("@linear")]
    | Annotated[Slerp, Tag("@slerp")]
    | Annotated[Screened, Tag("@screened")],
    by_key_value("method", *METHODS),
]


def _number(name: str | None, names: Sequence[str], entry: Entry, default: int | None = None) -> int:
    """The place of a parent's name. Without a name: the default, or the only parent."""
    if name is None and (default is not None or len(names) == 1):
        return default or 0
    if name not in names:
        what = "no parent is named" if name is None else "not one of the parents"
        raise PlanError(what, entry, expected=", ".join(names), got=name or "")
    return names.index(name)


def _source(layer: int | LayerOf, names: Sequence[str], entry: Entry) -> tuple[int, int]:
    name, number = (layer.parent, layer.layer) if isinstance(layer, LayerOf) else (None, layer)
    return _number(name, names, entry), number


def _shares(weights: Sequence[float] | None, count: int, entry: Entry) -> tuple[float, ...]:
    """Weights as shares of one."""
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count or not sum(given):
        raise PlanError("the weights do not fit", entry, expected=f"{count} weights, not all 0", got=given)
    return tuple(round(weight / sum(given), 12) for weight in given)  # 1:2 and 0.3:0.6 are one recipe
