"""One schema: its errors say what is wrong, where, what was expected, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import REPOSITORY
from strata import config, reference
from strata.errors import ConfigError

GOOD = """\
sources:
  m: {path: model, sha256: %s, shape: {family: llama, layers: 4, parameters: 10, bytes: 20, dtype: bfloat16}}
variants:
  base: {init: {source: m}}
  dus: {parent: base, merge: {method: dus, drop: 1}}
""" % ("a" * 64)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("drop: 1", "drp: 1", ["unknown key `drp`", "config.yaml:5, variants.dus.merge.drp", "write `drop`"]),
        ("sources:", "sorces:", ["unknown key `sorces`", "config.yaml:1, sorces", "write `sources`"]),
        ("parent: base", "parnt: base", ["unknown key `parnt`", "variants.dus.parnt", "write `parent`"]),
        ("drop: 1", 'drop: "1"', ["not a valid value", "variants.dus.merge.drop", "integer", "'1'"]),
        ("drop: 1", "drop: 1.5", ["variants.dus.merge.drop", "integer"]),
        ("drop: 1", "drop: -1", ["variants.dus.merge.drop", "greater than or equal to 0", "-1"]),
        (", drop: 1", "", ["missing key `drop`", "add `drop:`"]),
        ("method: dus", "method: dsu", ["unknown method", "dus, interlocked", "'dsu'"]),
        ("method: dus, ", "", ["missing key `method`"]),
        ("  dus:", "  Dus:", ["not a valid name", "variants.Dus", "a-z"]),
        ("  dus:", '  "a;touch x":', ["not a valid name"]),
        ("init: {source: m}", "initt: {source: m}", ["cannot tell what this is", "init, merge, pretrain, sft, dpo", "initt"]),
        ("merge: {method: dus, drop: 1}", "pretrian: {tokens: 9}", ["cannot tell what this is", "pretrain", "parent, pretrian"]),
        ("parent: base, merge: {method: dus, drop: 1}", "pretrain: {data: {m: 1}, tokens: 9}", ["missing key `parent`", "variants.dus"]),
        ("path: model", "dataset: model, file: a", ["sources.m.dataset", "owner/name"]),
        ("path: model", "dataset: a/b", ["missing key `file`", "sources.m"]),
        ("path: model", "datset: a/b", ["cannot tell what this is", "package, hub, dataset, path"]),
        ("parent: base, ", "", ["give either `parent` or `parents`"]),
        ("parent: base", "parents: [base, base]", ["exactly one parent"]),
        ("a" * 64, "abc", ["sources.m.sha256", "64 hex digits"]),
        ("family: llama", "family: lama", ["sources.m.shape.family", "'llama', 'mistral'", "'lama'"]),
        ("variants:", "device: gpu\nvariants:", ["device", "'cpu' or 'cuda'"]),
        ("sources:", "__use_yte__: true\nsources:", ["makes a config run code"]),
        ("path: model", "path: hf_abcdefghijklmnopqrstuvwx", ["a hub token stands in this file", "config.yaml:2"]),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place_and_the_next_step(
    write_config: Callable[..., Path], old: str, new: str, expected: list[str]
) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        config.load([write_config(GOOD.replace(old, new, 1))])
    for text in expected:
        assert text in str(caught.value)
    assert "hf_abcdefghijklmnopqrstuvwx" not in str(caught.value)


def test_several_mistakes_are_told_at_once(write_config: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match="2 problems"):
        config.load([write_config(GOOD.replace("drop: 1", "drp: 1").replace("family: llama", "family: x"))])


def test_defaults(write_config: Callable[..., Path]) -> None:
    loaded, _ = config.load([write_config(GOOD)])
    assert (loaded.device, loaded.suites) == ("cpu", ["quick"])


def test_the_shipped_schema_and_reference_are_up_to_date() -> None:
    schemas = REPOSITORY / "workflow" / "schemas"
    assert (schemas / "config.schema.json").read_text() == reference.json_schema()
    assert (schemas / "config.md").read_text() == reference.markdown()


def test_the_json_schema_agrees_with_the_loader(write_config: Callable[..., Path]) -> None:
    import json

    import jsonschema

    from strata.document import read

    validator = jsonschema.Draft202012Validator(json.loads(reference.json_schema()))
    validator.validate(read(REPOSITORY / "config.yaml").value)
    validator.validate(read(write_config(GOOD)).value)
    assert not validator.is_valid(read(write_config(GOOD.replace("drop: 1", "drp: 1"))).value)
    trained = (
        GOOD + "  x: {parent: dus, sft: {data: [m, {source: m, rows: 3}], template: own, clip: 1, train: [0, 1]}}\n"
    )
    validator.validate(read(write_config(trained)).value)
    assert not validator.is_valid(read(write_config(trained.replace("rows: 3", "rows: none"))).value)
