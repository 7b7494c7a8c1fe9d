"""A checkpoint as a GGUF file: what gguf's own reader finds in it is the checkpoint, and what would be lost is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers_of import save_tokenizer_of

from conftest import store_model
from models import build, save_model
from strata import store
from strata.errors import CheckpointError, SourceError, StoreError
from strata.llamacpp import convert as module
from strata.llamacpp.convert import FILE, convert
from strata.llamacpp.probes import PROBES
from strata.recipe import Recipe

Base = Callable[..., Any]


@pytest.fixture(autouse=True)
def without_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where llama.cpp is not installed: what it says of such a file is tested beside, where it is."""
    monkeypatch.setattr(module, "is_here", lambda: False)


def converted(root: Path, checkpoint: Any) -> tuple[Any, GGUFReader]:
    made = convert(root, Recipe("gguf", {"type": "f16"}, (checkpoint.id,)))
    return made, GGUFReader(made.path / FILE)


def saved(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A model with a tokenizer that has merges, as llama.cpp wants it."""
    save_model(folder, family, **{"vocab_size": 700, **changes})
    save_tokenizer_of(folder, "smollm")
    return folder


def value(reader: GGUFReader, key: str) -> Any:
    return reader.fields[key].contents() if key in reader.fields else None


def unpermuted(rows: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """transformers' order of the rows of queries and keys, from that of llama.cpp."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


def test_every_tensor_is_the_checkpoints_in_the_order_that_llama_cpp_rotates(tmp_path: Path, base_of: Base) -> None:
    base = base_of(saved(tmp_path / "model"))
    made, reader = converted(tmp_path / "results", base)
    stored = {name: t for file in base.path.glob("*.safetensors") for name, t in load_file(file).items()}
    names = {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head", "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    seen = set()
    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        name = f"{names[parts[-2]]}.weight"
        name = f"model.layers.{parts[1]}.{name}" if parts[0] == "blk" else name
        data = tensor.data.reshape(tuple(reversed(tensor.shape.tolist())))
        heads = {"attn_q": 4, "attn_k": 2}.get(parts[-2])
        ours = unpermuted(data, heads) if heads else data
        assert ours.dtype == (np.float32 if ours.ndim == 1 else np.float16), name
        assert np.array_equal(ours, stored[name].float().numpy().astype(ours.dtype)), name
        seen.add(name)
    assert seen == set(stored)
    assert made.facts["tensors"] == len(stored)
    assert made.facts["rounding"] < 1e-6  # float16 has more digits than bfloat16, but not so near to 0
    assert (made.facts["checkpoint"], made.facts["checkpoint_digest"]) == (base.id, base.digest)
    assert value(reader, "strata.checkpoint.digest") == base.digest
    assert made.facts["tokens_checked"] is False


def test_a_tied_head_is_not_written_twice(tmp_path: Path, base_of: Base) -> None:
    _, reader = converted(tmp_path / "results", base_of(saved(tmp_path / "model", tie_word_embeddings=True)))
    assert "output.weight" not in {tensor.name for tensor in reader.tensors}


def test_the_file_says_what_the_config_says(tmp_path: Path, base_of: Base) -> None:
    base = base_of(saved(tmp_path / "model", head_dim=16, rms_norm_eps=1e-5, max_position_embeddings=128))
    _, reader = converted(tmp_path / "results", base)
    said = {key.removeprefix("llama."): value(reader, key) for key in reader.fields if key.startswith("llama.")}
    assert said == {
        "block_count": 4, "context_length": 128, "embedding_length": 32, "feed_forward_length": 48, "attention.head_count": 4,
        "attention.head_count_kv": 2, "attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16,
        "vocab_size": 700, "attention.layer_norm_rms_epsilon": pytest.approx(1e-5), "rope.freq_base": 10_000.0,
    }  # fmt: skip
    assert value(reader, "general.architecture") == "llama" and value(reader, "general.file_type") == 1
    assert (value(reader, "tokenizer.ggml.bos_token_id"), value(reader, "tokenizer.ggml.eos_token_id")) == (1, 2)
    assert value(reader, "tokenizer.ggml.add_bos_token") is False


def test_a_window_is_the_longest_context_where_llama_cpp_has_none(tmp_path: Path, base_of: Base) -> None:
    base = base_of(saved(tmp_path / "model", "mistral", sliding_window=64))
    assert value(converted(tmp_path / "results", base)[1], "llama.context_length") == 64


def test_a_mistral_that_says_nothing_of_a_window_has_the_one_that_transformers_takes(
    tmp_path: Path, base_of: Base
) -> None:
    model = saved(tmp_path / "model", "mistral", max_position_embeddings=8192)
    config = json.loads((model / "config.json").read_text())
    del config["sliding_window"]
    (model / "config.json").write_text(json.dumps(config))
    assert value(converted(tmp_path / "results", base_of(model))[1], "llama.context_length") == 4096


def test_what_ends_an_answer_besides_the_tokenizers_end_is_named(tmp_path: Path, base_of: Base) -> None:
    model = saved(tmp_path / "model", eos_token_id=2)
    (model / "generation_config.json").write_text('{"eos_token_id": [2, 40, 30]}')
    _, reader = converted(tmp_path / "a", store_model(tmp_path / "a", model))
    assert [value(reader, f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot", "eom")] == [2, 30, 40]
    (model / "generation_config.json").write_text('{"eos_token_id": [2, 40, 30, 20]}')
    with pytest.raises(CheckpointError, match="number of tokens that end an answer"):
        converted(tmp_path / "b", store_model(tmp_path / "b", model))


def test_the_chat_template_comes_along(tmp_path: Path, base_of: Base) -> None:
    _, reader = converted(tmp_path / "results", base_of(saved(tmp_path / "model")))
    assert "### {{ m.role }}:" in value(reader, "tokenizer.chat_template")
    assert value(reader, "tokenizer.ggml.pre") == "smollm"


@pytest.mark.parametrize("kind", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_model_from_a_gguf_splits_text_as_the_file_says(tmp_path: Path, base_of: Base, kind: str) -> None:
    """transformers reads every byte-level tokenizer of a GGUF as GPT-2's."""
    save_tokenizer_of(save_model(tmp_path / "model", vocab_size=700), kind)
    made, _ = converted(tmp_path / "results", base_of(tmp_path / "model"))
    (tmp_path / "file").mkdir()
    shutil.copy(made.path / FILE, tmp_path / "file" / "model.gguf")
    again = store_model(tmp_path / "again", tmp_path / "file")
    before, after = (Tokenizer.from_file(str(folder / "tokenizer.json")) for folder in (tmp_path / "model", again.path))
    texts = [*PROBES, "In 1945 12,345 of 1,234,567 had 00:59 left."]
    assert [after.encode(text).ids for text in texts] == [before.encode(text).ids for text in texts]


def test_a_gguf_that_splits_text_in_a_way_that_is_not_known_is_refused(tmp_path: Path, base_of: Base) -> None:
    made, _ = converted(tmp_path / "results", base_of(saved(tmp_path / "model")))
    (tmp_path / "file").mkdir()
    data = (made.path / FILE).read_bytes()
    assert data.count(b"smollm") == 1
    (tmp_path / "file" / "model.gguf").write_bytes(data.replace(b"smollm", b"sm0llm"))
    with pytest.raises(SourceError, match="splits text in a way that is not known") as caught:
        store_model(tmp_path / "again", tmp_path / "file")
    assert "sm0llm" in str(caught.value)


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip


def test_llama_3s_scaling_is_what_transformers_divides_by(tmp_path: Path, base_of: Base) -> None:
    base = base_of(saved(tmp_path / "model", rope_parameters=LLAMA3))
    _, reader = converted(tmp_path / "results", base)
    (divisors,) = (tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight")
    scaled = build("llama", rope_parameters=LLAMA3).model.rotary_emb.inv_freq
    plain = build("llama", rope_parameters={"rope_type": "default", "rope_theta": 5000.0}).model.rotary_emb.inv_freq
    assert np.allclose(divisors, (plain / scaled).numpy(), rtol=1e-5) and divisors.max() > 1


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}, "rope_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, base_of: Base, changes: dict[str, Any], what: str
) -> None:
    base = base_of(saved(tmp_path / "model", **changes))
    with pytest.raises(CheckpointError, match=what):
        converted(tmp_path / "results", base)
    assert not list((tmp_path / "results" / "gguf").glob("*"))


def test_a_weight_that_float16_cannot_hold_is_refused_and_rounding_is_told(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = 70_000.0
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="float16 cannot hold") as caught:
        converted(tmp_path / "a", store_model(tmp_path / "a", model))
    assert "blk.1.ffn_up.weight" in str(caught.value)
    tensors["model.layers.1.mlp.up_proj.weight"][0] = torch.tensor([1e-7] * 32).bfloat16()
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    made, _ = converted(tmp_path / "b", store_model(tmp_path / "b", model))
    assert 0 < made.facts["rounding"] < 1e-3


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    made = [converted(tmp_path / name, store_model(tmp_path / name, model))[0] for name in ("a", "b")]
    assert made[0].manifest == made[1].manifest


def test_a_damaged_checkpoint_is_not_converted(tmp_path: Path, base_of: Base) -> None:
    base = base_of(saved(tmp_path / "model"))
    shard = next(base.path.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        converted(tmp_path / "results", base)
    assert store.find(tmp_path / "results", base.id) is None
