"""Models as others write them: any sharding, hub names, buffers, tied heads, and configs that leave things unsaid."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conftest import store_model
from models import SMALL, build, save_model
from strata.errors import CheckpointError
from strata.foreign import open_model
from strata.shapes import shape_of


def rewrite(folder: Path, change: Any) -> Path:
    """Change the tensors of a saved model."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file, {"format": "pt"})
    return folder


def edit_config(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([[1, 2, 3, 4, 5, 6]])).logits


@pytest.mark.parametrize("family", SMALL)
def test_shards_and_one_file_are_one_checkpoint(family: str, tmp_path: Path) -> None:
    one = store_model(tmp_path / "results", save_model(tmp_path / "one", family))
    many = save_model(tmp_path / "many", family)
    (many / "model.safetensors").unlink()
    build(family).to(torch.bfloat16).save_pretrained(many, max_shard_size="20KB")
    assert len(list(many.glob("model-*"))) > 2
    assert store_model(tmp_path / "results", many).digest == one.digest
    assert torch.equal(logits(one.path), logits(many))


def test_a_gpt2_of_the_hub_lacks_the_prefix_and_carries_its_masks(tmp_path: Path) -> None:
    plain = store_model(tmp_path / "results", save_model(tmp_path / "plain", "gpt2"))

    def as_on_the_hub(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        masks = {f"h.{n}.attn.bias": torch.ones(1, 1, 64, 64) for n in range(4)}
        return renamed | masks | {f"h.{n}.attn.masked_bias": torch.tensor(-1e4) for n in range(4)}

    hub = store_model(tmp_path / "results", rewrite(save_model(tmp_path / "hub", "gpt2"), as_on_the_hub))
    assert hub.digest == plain.digest


def test_an_old_llamas_frequencies_are_no_weights(tmp_path: Path, llama: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(4) for n in range(4)})

    old = store_model(tmp_path / "results", rewrite(save_model(tmp_path / "old"), add))
    assert old.digest == store_model(tmp_path / "results", llama).digest


@pytest.mark.parametrize("family", SMALL)
def test_a_tensor_that_nobody_accounts_for_is_an_error(family: str, tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        layer = next(name for name in tensors if "layers.1." in name or "h.1." in name)
        tensors[layer.rpartition(".")[0] + ".extra"] = torch.ones(3, dtype=torch.bfloat16)

    with pytest.raises(CheckpointError, match="not those that the config asks for") as caught:
        open_model(rewrite(save_model(tmp_path / "m", family), add) / "config.json")
    assert ".extra" in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_tied_head_that_is_stored_is_the_embedding_or_an_error(family: str, tmp_path: Path) -> None:
    def add(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if "embed_tokens" in name or "wte" in name)
        tensors["lm_head.weight"] = tensors[name].clone()

    folder = rewrite(save_model(tmp_path / "m", family, tie_word_embeddings=True), add)
    assert "lm_head.weight" not in open_model(folder / "config.json").tensors

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][0, 0] += 1

    with pytest.raises(CheckpointError, match="differs from the embedding"):
        open_model(rewrite(folder, change) / "config.json")


@pytest.mark.parametrize(
    ("family", "key"), [("qwen2", "layer_types"), ("gemma2", "layer_types"), ("smollm3", "no_rope_layers")]
)
def test_a_per_layer_list_that_an_older_config_lacks_is_written_out(family: str, key: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", family)
    said = json.loads((folder / "config.json").read_text())[key]
    made = store_model(tmp_path / "results", edit_config(folder, **{key: None}))
    assert json.loads((made.path / "config.json").read_text())[key] == said


def test_a_family_that_ties_by_default_says_so(tmp_path: Path) -> None:
    folder = edit_config(save_model(tmp_path / "m", "gemma2"), tie_word_embeddings=None)
    made = store_model(tmp_path / "results", folder)
    assert json.loads((made.path / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_config_that_transformers_does_not_take_is_an_error_in_one_line(tmp_path: Path) -> None:
    folder = edit_config(save_model(tmp_path / "m", "qwen3"), layer_types=None, num_attention_heads="four")
    with pytest.raises(CheckpointError, match="transformers does not take this config"):
        open_model(folder / "config.json")


@pytest.mark.parametrize("family", SMALL)
def test_the_shape_of_every_family(family: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "m", family)
    model = AutoModelForCausalLM.from_pretrained(folder)
    shape = shape_of(folder)
    assert shape is not None
    assert shape["family"] == family and shape["layers"] == 4
    assert shape["parameters"] == model.num_parameters()
    assert (shape["vocabulary"], shape["hidden"]) == (272, 32)
    layers = model.base_model.h if family == "gpt2" else model.base_model.layers
    assert shape["outside"] == model.num_parameters() - sum(p.numel() for p in layers.parameters())
