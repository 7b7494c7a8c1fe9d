"""What the config says of a merge: each method's normal form in a recipe, and mistakes told with their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strata import experiment
from strata.errors import ConfigError

Write = Callable[..., Path]
SHAPE = (
    "{family: llama, layers: 4, parameters: 100, bytes: 200, dtype: bfloat16, vocabulary: 16, hidden: 8, outside: 20}"
)
SOURCES = f"""\
sources:
  m: {{path: model, sha256: {"a" * 64}, shape: {SHAPE}}}
  o: {{path: other, sha256: {"b" * 64}, shape: {SHAPE}}}
  text: {{path: text, sha256: {"c" * 64}}}
"""
TEXT = (
    SOURCES
    + """\
variants:
  a: {init: {source: m}}
  b: {init: {source: o}}
  x: {%s, merge: {method: %s}}
suites: []
"""
)


def resolved(write_config: Write, parents: str, merge: str, **changes: str) -> experiment.Experiment:
    text = TEXT % (parents, merge)
    for old, new in changes.items():
        text = text.replace(old, new)
    return experiment.load([write_config(text)])


ONE, TWO = "parent: a", "parents: [a, b]"


@pytest.mark.parametrize(
    ("parents", "merge", "normal", "layers"),
    [
        (ONE, "dus, drop: [1, 1]", {"method": "dus", "drop": 1}, 6),
        (ONE, "dus, drop: [1, 2]", {"method": "dus", "drop": [1, 2]}, 5),
        (ONE, "dus, drop: 1, dtype: bfloat16", {"method": "dus", "drop": 1}, 6),
        (ONE, "dus, drop: 1, dtype: float16", {"method": "dus", "drop": 1, "dtype": "float16"}, 6),
        (ONE, "repeat, blocks: [[1, 3]]", {"method": "repeat", "blocks": [[1, 3]], "times": 2}, 6),
        (
            ONE, "slices, slices: [[0, 2], [1, 4]]",
            {"method": "slices", "slices": [[0, 0, 2], [0, 1, 4]], "embed_from": 0, "norm_from": 0, "head_from": 0}, 5,
        ),
        (
            TWO, "slices, slices: [{parent: b, layers: [0, 2]}, {parent: a, layers: [1, 4]}]",
            {"method": "slices", "slices": [[1, 0, 2], [0, 1, 4]], "embed_from": 1, "norm_from": 0, "head_from": 0}, 5,
        ),
        (
            TWO, "layers, layers: [{parent: a, layer: 3}, {zero: {parent: b, layer: 1}}], head_from: a",
            {
                "method": "layers", "layers": [["copy", [1.0], [[0, 3]]], ["zero", [1.0], [[1, 1]]]],
                "embed_from": 0, "norm_from": 1, "head_from": 0,
            }, 2,
        ),
        (
            ONE, "layers, layers: [0, {linear: [1, 2], weights: [1, 3]}, {slerp: [1, 2], t: 0.25}]",
            {
                "method": "layers",
                "layers": [
                    ["copy", [1.0], [[0, 0]]], ["linear", [0.25, 0.75], [[0, 1], [0, 2]]],
                    ["slerp", [0.75, 0.25], [[0, 1], [0, 2]]],
                ],
                "embed_from": 0, "norm_from": 0, "head_from": 0,
            }, 3,
        ),
        (
            ONE, "block_expansion, groups: 2",
            {"method": "block_expansion", "groups": 2, "copies": 1, "position": "even"}, 6,
        ),
        (ONE, "prune, keep: [1, 2]", {"method": "prune", "keep": [1, 2]}, 3),
        (ONE, "prune, range: [1, 2]", {"method": "prune", "range": [1, 2]}, 3),
        (TWO, "compose, first: 1, last: 1", {"method": "compose", "first": 1, "last": 1}, 4),
        (TWO, "linear", {"method": "linear", "weights": [0.5, 0.5]}, 4),
        (TWO, "linear, weights: [2, 6]", {"method": "linear", "weights": [0.25, 0.75]}, 4),
        (TWO, "slerp", {"method": "slerp", "weights": [0.5, 0.5]}, 4),
        (TWO, "slerp, t: 0.25", {"method": "slerp", "weights": [0.75, 0.25]}, 4),
    ],
)  # fmt: skip
def test_the_normal_form_of_each_method(
    write_config: Write, parents: str, merge: str, normal: dict[str, Any], layers: int
) -> None:
    job = resolved(write_config, parents, merge).variants["x"].job
    assert job.recipe.parameters == normal
    assert job.shape is not None and job.shape.layers == layers


def test_pruning_by_importance_rests_on_an_analysis_of_its_own(write_config: Write) -> None:
    text = "prune, least: 2, by: block_influence, calibration: {source: text, documents: 3}"
    found = resolved(write_config, ONE, text)
    (analysis,) = found.variants["x"].preparations
    assert analysis.recipe.parameters == {"documents": 3, "tokens": 512, "dtype": "float32", "device": "cpu"}
    assert analysis.recipe.parents == (found.variants["a"].job.id,)
    assert found.variants["x"].job.recipe.sources == (analysis.id,)
    assert found.variants["x"].job.recipe.parameters == {"method": "prune", "least": 2, "by": "block_influence"}
    assert found.variants["x"].plan is None
    assert analysis.id in found.jobs


def test_two_measures_and_counts_share_one_analysis(write_config: Write) -> None:
    tail = "calibration: {source: text}"
    one = resolved(write_config, ONE, f"prune, least: 2, by: block_influence, {tail}")
    two = resolved(write_config, ONE, f"prune, least: 1, by: angular_distance, {tail}")
    assert one.variants["x"].preparations == two.variants["x"].preparations
    assert one.variants["x"].job.id != two.variants["x"].job.id


def test_a_deeper_shape_is_exact_when_the_sources_says_what_lies_outside_the_layers(write_config: Write) -> None:
    shape = resolved(write_config, ONE, "dus, drop: 1").variants["x"].job.shape
    assert shape is not None and (shape.parameters, shape.bytes) == (20 + 80 // 4 * 6, 2 * (20 + 80 // 4 * 6))
    about = resolved(write_config, ONE, "dus, drop: 1", **{", outside: 20": ""}).variants["x"].job.shape
    assert about is not None and about.parameters == 150
    cast = resolved(write_config, ONE, "dus, drop: 1, dtype: float32").variants["x"].job.shape
    assert cast is not None and (cast.dtype, cast.bytes) == ("float32", 4 * cast.parameters)


@pytest.mark.parametrize(
    ("parents", "merge", "expected"),
    [
        (ONE, "dus, drop: 4", ["`drop` is out of range", "config.yaml:8, variants.x.merge.drop", "0 to 3"]),
        (ONE, "dus, drop: [1, 2, 3]", ["variants.x.merge.drop", "at most 2 items"]),
        (ONE, "dus, drop: {a: 1}", ["variants.x.merge.drop", "a number, or [number, number]"]),
        (ONE, "dus, drop: 1.0", ["variants.x.merge.drop", "integer", "1.0"]),
        (ONE, "repeat, blocks: []", ["variants.x.merge.blocks", "at least 1 item"]),
        (ONE, "repeat, blocks: [[1, 9]]", ["variants.x.merge.blocks[0]", "stop <= 4", "[1, 9]"]),
        (ONE, "slices, slices: [[0, 2], [-1, 2]]", ["variants.x.merge.slices[1][0]", "greater than or equal to 0"]),
        (TWO, "slices, slices: [[0, 2]]", ["variants.x.merge.slices[0]", "no parent is named", "a, b"]),
        (TWO, "slices, slices: [{parent: c, layers: [0, 1]}]", ["slices[0]", "not one of the parents", "a, b", "c"]),
        (ONE, "slices, slices: [[0, 2]], head_from: b", ["merge.head_from", "not one of the parents"]),
        (ONE, "layers, layers: [0, {layr: 1}]", ["layers[1]", "layer, zero, linear, slerp", "layr"]),
        (ONE, "layers, layers: [0, one]", ["layers[1]", "integer", "'one'"]),
        (ONE, "layers, layers: [0, {linear: [1, 2], weights: [0, 0]}]", ["layers[1]", "not all 0"]),
        (ONE, "layers, layers: [0, {slerp: [1, 2], t: 1.5}]", ["layers[1].t", "less than or equal to 1"]),
        (ONE, "block_expansion, groups: 2, position: bottom", ["merge.position", "'even', 'middle' or 'top'"]),
        (ONE, "prune", ["variants.x.merge", "one of `keep`, `range` and `least`"]),
        (ONE, "prune, keep: [1, 1], range: [1, 2]", ["one of `keep`, `range` and `least`"]),
        (ONE, "prune, least: 2", ["`least`, `by` and `calibration` go together"]),
        (
            ONE, "prune, least: 4, by: block_influence, calibration: {source: text}",
            ["variants.x.merge.least", "1 to 3: the parent has 4 layers"],
        ),
        (
            ONE, "prune, least: 2, by: block_influence, calibration: {source: txt}",
            ["merge.calibration.source", "no such source", "m, o, text"],
        ),
        (ONE, "linear", ["`linear` takes 2 parents or more"]),
        (TWO, "dus, drop: 1", ["`dus` takes exactly one parent"]),
        (TWO, "linear, weights: [1]", ["variants.x.merge.weights", "2 weights"]),
        (TWO, "linear, weights: [-1, 2]", ["variants.x.merge.weights[0]", "greater than or equal to 0"]),
        (TWO, "slerp, t: 0.5, weights: [1, 2]", ["variants.x.merge.t", "without `weights`"]),
        (ONE, "merge, drop: 1", ["unknown method", "dus, interlocked, repeat", "slerp"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_the_variant_the_entry_and_what_it_should_be(
    write_config: Write, parents: str, merge: str, expected: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        resolved(write_config, parents, merge)
    for text in expected:
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("change", "merge", "key"),
    [
        ({"vocabulary: 16": "vocabulary: 17"}, "slices, slices: [{parent: b, layers: [0, 2]}]", "vocabulary"),
        ({"hidden: 8": "hidden: 16"}, "compose, first: 1, last: 1", "hidden"),
        ({"family: llama": "family: mistral"}, "linear", "family"),
        ({"dtype: bfloat16": "dtype: float32"}, "linear", "dtype"),
        ({"layers: 4": "layers: 5"}, "slerp", "layers"),
        ({"parameters: 100": "parameters: 101"}, "slerp", "parameters"),
    ],
)
def test_parents_that_differ_are_refused_before_anything_runs(
    write_config: Write, change: dict[str, str], merge: str, key: str
) -> None:
    ((old, new),) = change.items()
    text = TEXT % (TWO, merge)
    first, _, rest = text.partition("  o: ")
    changed = first + "  o: " + rest.replace(old, new, 1)
    with pytest.raises(ConfigError, match=f"the parents differ in {key}") as caught:
        experiment.load([write_config(changed)])
    assert "variants.x.merge" in str(caught.value)
    assert "a " in str(caught.value) and "b " in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_dtype_that_one_parent_has_already_is_kept_where_they_differ(write_config: Write, dtype: str) -> None:
    text = (TEXT % (TWO, f"linear, dtype: {dtype}")).replace("dtype: bfloat16", "dtype: float32", 1)
    assert experiment.load([write_config(text)]).variants["x"].job.recipe.parameters["dtype"] == dtype


def test_weights_of_one_ratio_are_one_recipe(write_config: Write) -> None:
    ids = {resolved(write_config, TWO, f"linear, weights: {w}").variants["x"].job.id for w in ("[1, 2]", "[0.3, 0.6]")}
    assert len(ids) == 1


def test_a_dtype_of_its_own_lets_parents_differ_in_theirs(write_config: Write) -> None:
    text = (TEXT % (TWO, "linear, dtype: float16")).replace("dtype: bfloat16", "dtype: float32", 1)
    job = experiment.load([write_config(text)]).variants["x"].job
    assert job.shape is not None and job.shape.dtype == "float16"
