"""Rebuild: a variant's layers as a mergekit file that makes them again. Pure functions.

A chain of merges becomes one file over the models that it starts from, where one file can say it: mergekit takes the
embedding from the first slice and norm and head from the last, and one method for all slices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from strata.families import FAMILIES
from strata.plan import Layer, Plan, copy

Slice = dict[str, Any]


def composed(plan: Plan, parents: Sequence[Plan]) -> Plan | None:
    """`plan` in the layers of its parents' sources, which all count alike; None where a mix of mixes is no one mix."""
    layers = [_through(layer, [parents[p].layers[index] for p, index in layer.sources]) for layer in plan.layers]
    ends = [
        _through(layer, [parents[p].outside[part] for p, _ in layer.sources]) for part, layer in plan.outside.items()
    ]
    if None in layers or None in ends:
        return None
    return Plan(tuple(layer for layer in layers if layer), *(end for end in ends if end))


def _through(layer: Layer, inner: Sequence[Layer]) -> Layer | None:
    if layer.transform == "copy":
        return inner[0]
    if any(part.transform != "copy" for part in inner):
        return inner[0] if layer.transform == inner[0].transform == "zero" else None
    return replace(layer, sources=tuple(part.sources[0] for part in inner))


def to_mergekit(
    plan: Plan, models: Sequence[str], sizes: Sequence[int], family: str, dtype: str
) -> dict[str, Any] | str:
    """The mergekit file of a plan, as a mapping for YAML; or why there is none, in words.

    Args:
        models: what mergekit calls the plan's parents.
        sizes: how many layers each of them has.
        dtype: of the result.
    """
    kinds = {layer.transform for layer in plan.layers}
    if kinds == {"slerp"} or any(part.transform != "copy" for part in plan.outside.values()):
        return _whole(plan, models, sizes, dtype)
    if "slerp" in kinds:
        return "mergekit has no file for layers of which some are interpolated and others copied."
    ends = (plan.layers[0], plan.embed_from), (plan.layers[-1], plan.norm_from), (plan.layers[-1], plan.head_from)
    if any(layer.sources[0][0] != part.sources[0][0] or layer.weights != (1.0,) for layer, part in ends):
        return (
            "mergekit takes the embedding as it takes the first layers, and norm and head as the last: here they are "
            "made otherwise."
        )
    if any(layer.named for layer in plan.layers):
        return "Some of its tensors have weights of their own, which the plan in manifest.json has."
    if "zero" in kinds and (any(FAMILIES[family].silent.values()) or FAMILIES[family].sparse):
        return "mergekit cannot write an inserted layer of this family, which adds nothing to what passes through."
    is_linear = any(layer.transform == "linear" and len(layer.sources) > 1 for layer in plan.layers)
    if is_linear and "zero" in kinds:
        return "mergekit has no file for both inserted and averaged layers."
    slices = [_slice(plan, first, last, models, family, is_linear) for first, last in _runs(plan)]
    method = (
        {"merge_method": "linear", "parameters": {"normalize": False}} if is_linear else {"merge_method": "passthrough"}
    )
    return {"slices": slices, **method, "dtype": dtype}


def _whole(plan: Plan, models: Sequence[str], sizes: Sequence[int], dtype: str) -> dict[str, Any] | str:
    """Whole models mixed layer by layer with the same weights."""
    mixes = {(layer.transform, layer.weights, tuple(p for p, _ in layer.sources)) for layer in plan.layers}
    mixes |= {(part.transform, part.weights, tuple(p for p, _ in part.sources)) for part in plan.outside.values()}
    in_place = all(index == number for number, layer in enumerate(plan.layers) for _, index in layer.sources)
    transform, weights, parents = next(iter(mixes))
    is_all = len(mixes) == 1 and in_place and all(sizes[parent] == len(plan.layers) for parent in parents)
    if not is_all or any(layer.named for layer in (*plan.layers, *plan.outside.values())):
        return "mergekit has no file for this mix, which the plan in manifest.json has."
    if transform == "slerp" and len(parents) == 2:
        whole = [{"model": models[parent]} for parent in parents]
        t = {"parameters": {"t": weights[1]}}
        return {"models": whole, "merge_method": "slerp", "base_model": models[parents[0]], **t, "dtype": dtype}
    if transform == "slerp":
        return "mergekit interpolates two models, not more."
    told = [
        {"model": models[parent], "parameters": {"weight": weight}}
        for parent, weight in zip(parents, weights, strict=True)
    ]
    return {"models": told, "merge_method": "linear", "parameters": {"normalize": False}, "dtype": dtype}


def _runs(plan: Plan) -> Iterator[tuple[int, int]]:
    """(first, last) of the longest stretches that one slice can tell."""
    first = 0
    for i, (below, above) in enumerate(pairwise(plan.layers)):
        step = [(parent, index + 1) for parent, index in below.sources]
        same = (below.transform, below.weights) == (above.transform, above.weights)
        if not same or step != list(above.sources):
            yield first, i
            first = i + 1
    yield first, len(plan.layers) - 1


def _slice(plan: Plan, first: int, last: int, models: Sequence[str], family: str, is_linear: bool) -> Slice:
    layer = plan.layers[first]
    sources: list[dict[str, Any]] = []
    for (parent, begin), (_, end), weight in zip(layer.sources, plan.layers[last].sources, layer.weights, strict=True):
        source: dict[str, Any] = {"model": models[parent], "layer_range": [begin, end + 1]}
        if layer.transform == "zero":
            silent = [{"filter": module.rpartition(".")[2], "value": 0.0} for module in FAMILIES[family].silent]
            source["parameters"] = {"scale": [*silent, {"value": 1.0}]}
        elif is_linear:
            source["parameters"] = {"weight": weight}
        elif weight != 1.0:
            source["parameters"] = {"scale": weight}
        sources.append(source)
    return {"sources": sources}


def renumbered(plan: Plan, places: Mapping[int, int]) -> Plan:
    """`plan` with its parents under other numbers."""

    def moved(layer: Layer) -> Layer:
        sources = tuple((places[parent], index) for parent, index in layer.sources)
        return copy(*sources[0]) if layer.transform == "copy" else replace(layer, sources=sources)

    return Plan(tuple(map(moved, plan.layers)), *map(moved, plan.outside.values()))
