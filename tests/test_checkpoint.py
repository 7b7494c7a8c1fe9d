"""A checkpoint has exactly the tensors its config asks for, and its digest covers every byte that matters."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import flip
from models import SIZES
from strata import checkpoint, families, store
from strata.errors import CheckpointError, StoreError
from strata.merge import merge
from strata.recipe import Recipe, canonical, digest

CONFIG = {"model_type": "llama", **SIZES, "tie_word_embeddings": False}


def specs(**changes: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: ("BF16", shape) for name, shape in families.expected_tensors({**CONFIG, **changes}).items()}


def test_exactly_the_configs_tensors_pass(tmp_path: Path) -> None:
    checkpoint.check_exact(CONFIG, specs(), tmp_path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (specs(num_hidden_layers=3), "expected: 4"),
        (specs(num_hidden_layers=5), "got:      5 layers"),
        ({**specs(), "model.layers.0.extra.weight": ("BF16", (1,))}, "not expected model.layers.0.extra.weight"),
        ({k: v for k, v in specs().items() if k != "model.norm.weight"}, "missing model.norm.weight"),
        (specs(vocab_size=300), r"model.embed_tokens.weight is \(300, 32\), not \(272, 32\)"),
        ({**specs(), "model.norm.weight": ("F32", (32,))}, "mixed or unusable dtypes"),
        ({k: ("I8", s) for k, (_, s) in specs().items()}, "mixed or unusable dtypes"),
    ],
)
def test_anything_else_is_named(tmp_path: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        checkpoint.check_exact(CONFIG, tensors, tmp_path)


def test_one_shard_for_each_layer() -> None:
    shards = checkpoint.plan_shards(((name, *spec) for name, spec in specs().items()), CONFIG)
    assert list(shards) == [f"model-{n:05d}-of-00006.safetensors" for n in range(1, 7)]
    members = [{families.split_name(tensor.name)[0] for tensor in header.tensors} for header in shards.values()]
    assert members == [{None}, {0}, {1}, {2}, {3}, {None}]


def test_verify_names_the_tensor_whose_bytes_changed(llama: Path, base_of: Callable[..., Any]) -> None:
    base = base_of(llama)
    checkpoint.verify(base)
    shard = base.path / "model-00003-of-00006.safetensors"
    flip(shard, shard.stat().st_size - 1)
    store.require(base.path.parents[1], base.id)  # cheap checks do not read weights
    with pytest.raises(StoreError, match=r"model\.layers\.1\."):
        checkpoint.verify(base)


@pytest.mark.parametrize(
    ("layer", "told"),
    [(0, "of {base}, which is damaged too"), (5, "of {base}, which is whole")],
    ids=["linked", "copied"],
)
def test_a_wrong_digest_of_a_copy_names_the_parent_that_it_came_from(
    llama: Path, base_of: Callable[..., Any], layer: int, told: str
) -> None:
    base = base_of(llama)
    made = merge(base.path.parents[1], Recipe("merge", {"method": "dus", "drop": 1}, (base.id,)))
    shard = made.path / f"model-{layer + 2:05d}-of-00008.safetensors"
    flip(shard, shard.stat().st_size - 1)
    with pytest.raises(StoreError) as caught:
        checkpoint.verify(made)
    assert f"model.layers.{layer}." in str(caught.value)
    source = {0: 0, 5: 3}[layer]
    assert re.search(rf"copied from model\.layers\.{source}\.\S+ {told.format(base=base.id)}", str(caught.value))


def test_what_was_hashed_under_one_name_is_not_hashed_under_another(
    llama: Path, base_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(llama)
    made = merge(base.path.parents[1], Recipe("merge", {"method": "dus", "drop": 1}, (base.id,)))
    known: checkpoint.Known = {}
    checkpoint.verify(base, known)
    before = len(known)
    checkpoint.verify(made, known)
    assert len(known) - before == 3 * 9  # layers 3 to 5; embedding, layers 0 to 2, norm and head are links


def test_a_changed_header_is_found_without_reading_weights(llama: Path, base_of: Callable[..., Any]) -> None:
    base = base_of(llama)
    flip(base.path / "model-00003-of-00006.safetensors", 20)
    with pytest.raises(StoreError, match="sha256 of the header"):
        store.require(base.path.parents[1], base.id)


def test_the_digest_covers_config_tokenizer_and_tensors(llama: Path, base_of: Callable[..., Any]) -> None:
    base = base_of(llama)
    entries = json.loads((base.path / "tensors.json").read_text())
    tokenizer = {
        name: checkpoint.file_sha256(base.path / name) for name in checkpoint.TOKENIZER if (base.path / name).is_file()
    }
    assert "tokenizer.json" in tokenizer
    content = {
        "config": json.loads((base.path / "config.json").read_text()),
        "tokenizer": tokenizer,
        "tensors": entries,
    }
    assert base.digest == digest(canonical(content))


def test_nothing_volatile_is_in_the_config(llama: Path, base_of: Callable[..., Any]) -> None:
    config = json.loads((base_of(llama).path / "config.json").read_text())
    assert not {"transformers_version", "_name_or_path"} & set(config)
    assert config["dtype"] == "bfloat16"


def test_no_tensor_of_a_trained_checkpoint_is_told_to_be_a_copy(base_of: Callable[..., Any], llama: Path) -> None:
    """Its manifest has its parent's plan, in which layers are copies; the tensors are its own."""
    base = base_of(llama)
    plan = replace(base, manifest=base.manifest | {"recipe": Recipe("merge", {}, (base.id,)).to_json()})
    trained = replace(base, manifest=base.manifest | {"recipe": Recipe("sft", {}, (base.id,)).to_json()})
    name = "model.layers.0.mlp.up_proj.weight"
    sha256 = checkpoint.open_checkpoint(base).tensors[name].sha256
    assert checkpoint._origin(plan, name, sha256) == f"it was copied from {name} of {base.id}, which is whole"
    assert checkpoint._origin(trained, name, sha256) == ""
