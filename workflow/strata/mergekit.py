"""mergekit's YAML, read as a layer plan: `passthrough`, `linear` and `slerp`, over `slices` or whole `models`.

Follows mergekit 0.1.5: parameters are looked up at the source, then the slice, then the file; a list is a gradient over
the slice's layers; a `filter` is a part of a tensor's name. Unlike there, two layers of one model can be averaged, and
`dtype` is that of the result: sums are taken from the stored values and rounded once. SLERP is taken expert by expert,
and with a tensor of zeros, which has no direction, it is a weighted sum. Norm and head follow the last slice's sources.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Tag
from pydantic_core import PydanticCustomError

from strata import families
from strata.checkpoint import Checkpoint
from strata.document import Document, Key, read
from strata.errors import PlanError
from strata.plan import MAX_LAYERS, OUTSIDE, Layer, Plan, copy
from strata.schema import Dtype, Model, by_form, validate

Gradient = Annotated[list[float], Field(min_length=1)]


class Conditional(Model):
    """A value for the tensors whose name contains `filter`."""

    filter: str | None = None
    value: Annotated[
        Annotated[float, Tag("@plain")] | Annotated[Gradient, Tag("@list")], by_form("a number, or a list of numbers")
    ]


def _alike(values: list[float | Conditional]) -> list[float | Conditional]:
    if len({isinstance(value, Conditional) for value in values}) != 1:
        raise PydanticCustomError("strata", "a list of numbers, or a list of {filter, value}, not both in one")
    return values


Setting = Annotated[
    Annotated[float, Tag("@plain")]
    | Annotated[Conditional, Tag("@mapping")]
    | Annotated[
        list[
            Annotated[
                Annotated[float, Tag("@plain")] | Annotated[Conditional, Tag("@mapping")],
                by_form("a number, or {filter, value}"),
            ]
        ],
        Field(min_length=1),
        AfterValidator(_alike),
        Tag("@list"),
    ],
    by_form("a number, a list of numbers, or a list of {filter, value}"),
]


class Parameters(Model):
    """What the three methods know; a method ignores what is another's, as in mergekit."""

    weight: Setting | None = None
    scale: Setting | None = None
    t: Setting | None = None
    normalize: bool | None = None
    int8_mask: bool | None = None  # how mergekit saves memory in methods that are not here


class InputSlice(Model):
    model: str
    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)]
    parameters: Parameters = Parameters()


class OutputSlice(Model):
    sources: list[InputSlice] = Field(min_length=1)
    base_model: str | None = None
    parameters: Parameters = Parameters()


class InputModel(Model):
    model: str
    parameters: Parameters = Parameters()


class MergeFile(Model):
    """A mergekit file, as far as re-layering and averaging go."""

    name: str | None = None
    merge_method: Literal["passthrough", "linear", "slerp"]
    slices: list[OutputSlice] | None = Field(default=None, min_length=1)
    models: list[InputModel] | None = Field(default=None, min_length=1)
    base_model: str | None = None
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: str | None = None
    parameters: Parameters = Parameters()

    @property
    def names(self) -> list[str]:
        """Every model of the file once, in order; a base model first."""
        used = [source.model for part in self.slices or () for source in part.sources]
        used += [model.model for model in self.models or ()]
        used += [part.base_model for part in self.slices or () if part.base_model]
        return list(dict.fromkeys([*([self.base_model] if self.base_model else []), *used]))


@dataclass(frozen=True)
class Request:
    """A file that has been read: its models by name, and what makes a plan of them once they are open."""

    file: MergeFile
    document: Document

    @property
    def dtype(self) -> Dtype | None:
        return self.file.out_dtype or self.file.dtype


def read_request(file: Path) -> Request:
    """The merge that a mergekit file asks for.

    Raises:
        ConfigError: not YAML; or a key or a method that Strata does not take.
    """
    document = read(file)
    request = Request(validate(MergeFile, document), document)
    if (request.file.slices is None) == (request.file.models is None):
        raise PlanError("give either `slices` or `models`", (), expected="one of them", got="none or both").at(
            document.where(())
        )
    source = request.file.tokenizer_source
    if source not in (None, "base", "union", *request.file.names):
        raise PlanError(
            "no such tokenizer", (), expected=f"base, union, {', '.join(request.file.names)}", got=source
        ).at(document.where(("tokenizer_source",)))
    return request


def plan_of(request: Request, models: Mapping[str, Checkpoint]) -> Plan:
    """The layer plan of a request; parents are numbered as in `request.file.names`.

    Raises:
        PlanError: a range that a model does not have, sources of unlike lengths, or a parameter that is missing.
    """
    try:
        return _plan(request.file, models)
    except PlanError as error:
        raise error.at(request.document.where(error.entry)) from None


def _plan(file: MergeFile, models: Mapping[str, Checkpoint]) -> Plan:
    slices: list[tuple[Key, OutputSlice]] = [
        (("slices", number), part) for number, part in enumerate(file.slices or ())
    ]
    slices = slices or [_whole(file, models)]
    within = {name: _suffixes(model) for name, model in models.items()}
    layers: list[Layer] = []
    for key, part in slices:
        count = _check(file, key, part, models)
        if len(layers) + count > MAX_LAYERS:
            raise PlanError("too many layers", key, expected=f"at most {MAX_LAYERS}", got=len(layers) + count)
        mix = _Mix(file, key, part, families.family_of(models[file.names[0]].config))
        for step in range(count):
            numbers = [source.layer_range[0] + step for source in mix.sources]
            tensors = within[mix.sources[0].model][numbers[0]]
            layers.append(mix.layer(numbers, len(layers), tensors, step / (count - 1) if count > 1 else 1.0))
    outside: list[Layer] = []
    ends = (("embed", slices[0]), ("norm", slices[-1]), ("head", slices[-1]))
    for kind, (key, part) in ends:
        mix = _Mix(file, key, part, families.family_of(models[file.names[0]].config))
        tensors = [name for name in models[mix.sources[0].model].tensors if families.part_of(mix.family, name) == kind]
        tied = kind == "head" and not tensors
        outside.append(outside[0] if tied else mix.layer([OUTSIDE] * len(mix.sources), OUTSIDE, tensors, 0.0))
    return Plan(tuple(layers), *outside)


def _whole(file: MergeFile, models: Mapping[str, Checkpoint]) -> tuple[Key, OutputSlice]:
    """`models:` as the one slice that it stands for; a base model that is not among them comes last."""
    listed = [(model.model, model.parameters) for model in file.models or ()]
    if file.base_model and file.base_model not in [name for name, _ in listed]:
        listed.append((file.base_model, Parameters()))
    sources = [InputSlice(model=name, layer_range=[0, models[name].layers], parameters=own) for name, own in listed]
    return ("models",), OutputSlice(sources=sources)


def _check(file: MergeFile, key: Key, part: OutputSlice, models: Mapping[str, Checkpoint]) -> int:
    """The number of layers that a slice gives."""
    lengths = []
    for number, source in enumerate(part.sources):
        start, stop, n = *source.layer_range, models[source.model].layers
        if not 0 <= start < stop <= n:
            expected = f"[start, stop) with 0 <= start < stop <= {n}: {source.model} has {n} layers"
            where = (*key, "sources", number, "layer_range") if key[0] == "slices" else (*key, number)
            raise PlanError("a range of layers is empty or out of range", where, expected=expected, got=[start, stop])
        lengths.append(stop - start)
    if len(set(lengths)) != 1:
        raise PlanError("the sources of a slice differ in length", key, expected="one length", got=lengths)
    fewest, most = {"passthrough": (1, 1), "linear": (1, 1_000), "slerp": (2, 2)}[file.merge_method]
    if not fewest <= len(lengths) <= most:
        expected = f"{fewest}" if fewest == most else f"{fewest} or more"
        raise PlanError(
            f"`{file.merge_method}` takes another number of sources", key, expected=expected, got=len(lengths)
        )
    if file.merge_method == "slerp" and (part.base_model or file.base_model) not in {s.model for s in part.sources}:
        raise PlanError(
            "`slerp` starts at a base model",
            key,
            expected="`base_model`, one of the two sources",
            got=part.base_model or file.base_model or "none",
        )
    return lengths[0]


class _Mix:
    """One output slice: its sources in the order of the weights, and the weights of each tensor at each height."""

    def __init__(self, file: MergeFile, key: Key, part: OutputSlice, family: families.Family) -> None:
        self.file, self.key, self.part, self.family = file, key, part, family
        self.sources = list(part.sources)
        if file.merge_method == "slerp":  # t = 0 is the base model; of one model twice, the first stays the first
            base = part.base_model or file.base_model
            self.sources.sort(key=lambda source: source.model != base)
        scopes = [file.parameters, part.parameters, *(source.parameters for source in part.sources)]
        self.is_filtered = any(
            _is_filtered(setting) for scope in scopes for setting in (scope.t, scope.weight, scope.scale)
        )

        if self.is_filtered and family.sparse:
            raise PlanError(
                "a filter on a mixture of experts", key, got=file.merge_method,
                expected="no `filter`: mergekit's names are those of fused experts, which no file has",
            )  # fmt: skip

    def layer(self, numbers: Sequence[int], new: int, tensors: Sequence[str], height: float) -> Layer:
        """The output layer `new` of layers `numbers` of the sources; `tensors` are the names within it."""

        def full(number: int, tensor: str) -> str:
            return tensor if number == OUTSIDE else families.layer_name(self.family, number, tensor)

        weights = {
            tensor: self._weights([full(number, tensor) for number in numbers], full(new, tensor), height)
            for tensor in (tensors if self.is_filtered else tensors[:1])
        }
        common = max(weights.values(), key=list(weights.values()).count, default=(1.0,))
        named = tuple((tensor, own) for tensor, own in weights.items() if own != common)
        parents = (self.file.names.index(source.model) for source in self.sources)
        sources = tuple(zip(parents, numbers, strict=True))
        if self.file.merge_method == "passthrough" and common == (1.0,) and not named:
            return copy(*sources[0])
        return Layer(sources, "slerp" if self.file.merge_method == "slerp" else "linear", common, named)

    def _weights(self, inputs: Sequence[str], output: str, height: float) -> tuple[float, ...]:
        if self.file.merge_method == "slerp":
            t = self._require("t", None, output, height)
            return (1 - t, t)
        if self.file.merge_method == "passthrough":
            scale = self._find("scale", self.sources[0], inputs[0], height)
            return (1.0,) if scale is None else (scale,)
        pairs = zip(self.sources, inputs, strict=True)
        weights = [self._require("weight", source, name, height) for source, name in pairs]
        scopes = (self.part.parameters, self.file.parameters)
        normalize = next((scope.normalize for scope in scopes if scope.normalize is not None), True)
        total = sum(weights) if normalize else 1.0
        if not total:
            raise PlanError("the weights add up to 0", self.key, expected="a sum that can be divided by", got=weights)
        return tuple(weight / total for weight in weights)

    def _require(self, name: str, source: InputSlice | None, tensor: str, height: float) -> float:
        value = self._find(name, source, tensor, height)
        if value is None:
            raise PlanError(f"missing parameter `{name}`", self.key, expected=f"a value for {tensor}", got="none")
        return value

    def _find(self, name: str, source: InputSlice | None, tensor: str, height: float) -> float | None:
        scopes = [*([source.parameters] if source else []), self.part.parameters, self.file.parameters]
        values = (_value(getattr(scope, name), tensor, height) for scope in scopes)
        return next((value for value in values if value is not None), None)


def _value(setting: Any, tensor: str, height: float) -> float | None:
    """A setting's value for one tensor, `height` being 0 at a slice's first layer and 1 at its last."""
    if isinstance(setting, Conditional):
        setting = [setting]
    if isinstance(setting, list) and isinstance(setting[0], Conditional):
        matching = (c for c in setting if c.filter in (None, "*") or c.filter in tensor)
        return next((_value(condition.value, tensor, height) for condition in matching), None)
    if isinstance(setting, list):
        place = height * (len(setting) - 1)
        below = int(place)
        above = min(len(setting) - 1, below + 1)
        return float((1 - (place - below)) * setting[below] + (place - below) * setting[above])
    return None if setting is None else float(setting)


def _is_filtered(setting: Any) -> bool:
    return isinstance(setting[0] if isinstance(setting, list) else setting, Conditional)


def _suffixes(model: Checkpoint) -> list[list[str]]:
    """The names within each layer."""
    layers: list[list[str]] = [[] for _ in range(model.layers)]
    for name in model.tensors:
        layer, suffix = families.split_name(name)
        if layer is not None:
            layers[layer].append(sys.intern(suffix))
    return layers
