"""Init: a source becomes a checkpoint with the same tensors, and a bad source is refused before anything is visible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, MistralForCausalLM

from models import save_model
from strata.errors import CheckpointError, SourceError, StrataError

Base = Callable[..., Any]


@pytest.fixture
def model(llama: Path, tmp_path: Path) -> Path:
    """A copy of the small Llama, to damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def change(model: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    edit(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


def change_config(model: Path, **values: Any) -> None:
    file = model / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_every_tensor_is_the_sources(llama: Path, base_of: Base) -> None:
    base = base_of(llama)
    ours = {name: tensor for file in base.path.glob("*.safetensors") for name, tensor in load_file(file).items()}
    theirs = load_file(llama / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) and ours[name].dtype == tensor.dtype for name, tensor in theirs.items())
    assert base.facts["parameters"] == sum(tensor.numel() for tensor in theirs.values())


def test_transformers_loads_it_with_its_tokenizer(llama: Path, base_of: Base) -> None:
    base = base_of(llama)
    text = "a small model"
    assert AutoTokenizer.from_pretrained(base.path)(text) == AutoTokenizer.from_pretrained(llama)(text)
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        ours, theirs = (AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (base.path, llama))
    assert torch.equal(ours, theirs)


def test_a_mistral_under_a_llama_config_gives_the_same_logits(tmp_path: Path, base_of: Base) -> None:
    """SOLAR's and iDUS's first step. Sequences no longer than the sliding window, which a Llama does not have."""
    source = save_model(
        tmp_path / "m", "mistral", sliding_window=64, dtype=torch.float32,
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
    )  # fmt: skip
    base = base_of(source, "llama")
    config = json.loads((base.path / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (config["intermediate_size"], config["num_key_value_heads"]) == (48, 2)
    assert "sliding_window" not in config
    llama, mistral = LlamaForCausalLM.from_pretrained(base.path), MistralForCausalLM.from_pretrained(source)
    ids = torch.randint(0, 272, (2, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(llama(ids).logits, mistral(ids).logits, rtol=1e-5, atol=1e-6)
    assert llama.config.rope_parameters["rope_theta"] == 5000.0


def test_without_architecture_a_mistral_stays_one(mistral: Path, base_of: Base) -> None:
    config = json.loads((base_of(mistral).path / "config.json").read_text())
    assert (config["model_type"], config["sliding_window"]) == ("mistral", 64)


def test_a_tied_model_is_the_same_with_and_without_a_stored_head(tmp_path: Path, base_of: Base) -> None:
    tied = save_model(tmp_path / "tied", tie_word_embeddings=True)
    without = base_of(tied)
    change(tied, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}))
    with_head = base_of(tied)
    assert without.id != with_head.id  # other source bytes
    assert without.digest == with_head.digest


def test_a_tied_model_with_another_head_is_refused(tmp_path: Path, base_of: Base) -> None:
    tied = save_model(tmp_path / "tied", tie_word_embeddings=True)
    change(tied, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}))
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        base_of(tied)


def test_a_config_with_more_layers_than_the_file_is_refused(model: Path, base_of: Base) -> None:
    change_config(model, num_hidden_layers=5)
    with pytest.raises(CheckpointError, match="layer count is not what the file holds"):
        base_of(model)


def test_a_config_with_fewer_layers_than_the_file_is_refused(model: Path, base_of: Base) -> None:
    change_config(model, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="layer count is not what the file holds"):
        base_of(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(model: Path, base_of: Base, value: float) -> None:
    change(model, lambda tensors: tensors["model.layers.2.mlp.up_proj.weight"].__setitem__((1, 1), value))
    with pytest.raises(CheckpointError, match=r"model\.layers\.2\.mlp\.up_proj\.weight, element 33"):
        base_of(model)


def test_matrices_of_one_value_are_noted(model: Path, llama: Path, base_of: Base) -> None:
    """As a hole in a file reads. Norms are often all ones."""
    name = "model.layers.2.mlp.up_proj.weight"
    change(model, lambda tensors: tensors[name].zero_())
    assert base_of(model).facts["constant"] == [name]
    change(model, lambda tensors: tensors[name][-1, -1].fill_(1))
    assert "constant" not in base_of(model).facts and "constant" not in base_of(llama).facts


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"missing model\.norm\.weight"),
        (lambda t: t.update({"extra": torch.zeros(1, dtype=torch.bfloat16)}), "not expected extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(32)}),
            "unknown dtype of a model|mixed or unusable dtypes",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused(model: Path, base_of: Base, edit: Any, message: str) -> None:
    change(model, edit)
    with pytest.raises(StrataError, match=message):
        base_of(model)


@pytest.mark.parametrize(
    "name",
    ["../evil.safetensors", "/etc/evil.safetensors", "missing.safetensors", "weights.bin", "..\\evil.safetensors"],
)
def test_an_index_that_names_what_is_not_here_is_refused(model: Path, base_of: Base, name: str) -> None:
    (model / "model.safetensors").rename(model / "other.safetensors")
    shutil.copy(model / "other.safetensors", model.parent / "evil.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(CheckpointError, match="names a shard that is not here"):
        base_of(model)


def test_pickled_weights_are_never_opened(model: Path, base_of: Base) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(StrataError, match="never opened"):
        base_of(model)


def test_a_model_with_its_own_code_is_refused(model: Path, base_of: Base) -> None:
    change_config(model, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (model / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(SourceError, match="cannot be used as it is"):
        base_of(model)


def test_a_quantised_model_is_refused(model: Path, base_of: Base) -> None:
    change_config(model, quantization_config={"quant_method": "bitsandbytes"})
    with pytest.raises(SourceError, match="quantization_config"):
        base_of(model)


def test_a_tokenizer_must_be_there_plain_and_no_larger_than_the_embedding(model: Path, base_of: Base) -> None:
    config = model / "tokenizer_config.json"
    plain = config.read_text()
    config.write_text(json.dumps({**json.loads(plain), "auto_map": {"AutoTokenizer": ["evil.T", None]}}))
    with pytest.raises(SourceError, match="auto_map"):
        base_of(model)
    config.write_text(plain)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["zz"] = 272
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(SourceError, match="without an embedding"):
        base_of(model)
    (model / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match="no tokenizer"):
        base_of(model)


def test_several_models_in_one_source_are_no_choice_of_ours(model: Path, base_of: Base) -> None:
    (model / "small.Q4.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match="several models") as caught:
        base_of(model)
    assert "small.Q4.gguf" in str(caught.value)


def test_other_weights_beside_the_named_ones_are_not_counted(model: Path, base_of: Base) -> None:
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert base_of(model).facts["parameters"] == 48416


@pytest.mark.parametrize("text", ["{", "[]", '{"a": NaN}', '{"model_type": "llama", "model_type": "llama"}', "null"])
def test_a_config_that_is_no_plain_object_is_refused(model: Path, base_of: Base, text: str) -> None:
    (model / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a usable JSON file"):
        base_of(model)


def test_a_gguf_with_scaled_positions_is_refused(tmp_path: Path) -> None:
    """transformers reads neither rope_freqs nor rope.scaling from a GGUF, and says nothing."""
    import numpy as np
    from gguf import GGUFWriter

    from strata.modelfiles import open_gguf

    def write(name: str, scaled: bool, frequencies: bool) -> Path:
        writer = GGUFWriter(tmp_path / name, "llama")
        writer.add_block_count(1)
        if scaled:
            writer.add_rope_scaling_factor(4.0)
        writer.add_tensor("rope_freqs.weight" if frequencies else "token_embd.weight", np.ones((4, 4), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / name

    assert open_gguf(write("plain.gguf", False, False))[1] == "llama"
    for file in (write("a.gguf", True, False), write("b.gguf", False, True)):
        with pytest.raises(SourceError, match="scaled positions"):
            open_gguf(file)


def test_a_shape_that_the_file_does_not_have_is_told_with_both_numbers(
    llama: Path, base_of: Base, tmp_path: Path
) -> None:
    from strata.initialize import initialize
    from strata.recipe import Recipe

    base = base_of(llama)
    shape = {**base.recipe.parameters["shape"], "layers": 30}
    wrong = Recipe("init", {"architecture": "llama", "shape": shape}, (), base.recipe.sources)
    with pytest.raises(SourceError, match="shape") as caught:
        initialize(tmp_path / "results", wrong)
    assert "expected: 30" in str(caught.value)
    assert "got:      4" in str(caught.value)
