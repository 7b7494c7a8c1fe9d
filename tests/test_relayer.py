"""A layer keeps its kind wherever it goes: what a config says of it follows, and transformers reads it so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models import SIZES
from strata import families
from strata.errors import CheckpointError
from strata.relayer import relayered

FIVE = {**SIZES, "num_hidden_layers": 5}
WINDOW = {"sliding_window": 4, "use_sliding_window": True}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
# Families and what their models of five layers have of kinds: each has two, which do not alternate with period one or two.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2, windows from a layer on": ("qwen2", {**FIVE, **WINDOW, "max_window_layers": 3}),
    "qwen3, windows from a layer on": ("qwen3", {**FIVE, **WINDOW, "max_window_layers": 3}),
    "qwen3, no windows": ("qwen3", {**FIVE, "max_window_layers": 5}),
    "gemma2": ("gemma2", {**FIVE, "head_dim": 8}),
    "gemma3, by a pattern": ("gemma3_text", {**FIVE, "head_dim": 8, "sliding_window_pattern": 3}),
    "gemma3, by a list": ("gemma3_text", {**FIVE, "head_dim": 8, "layer_types": ["sliding_attention"] + ["full_attention"] * 4}),
    "smollm3": ("smollm3", {**FIVE, **WINDOW, "no_rope_layer_interval": 3}),
    "qwen3_moe, by a step": ("qwen3_moe", {**FIVE, **EXPERTS, "decoder_sparse_step": 2}),
    "qwen3_moe, by a list": ("qwen3_moe", {**FIVE, **EXPERTS, "mlp_only_layers": [0, 3]}),
    "qwen3_moe, by both": ("qwen3_moe", {**FIVE, **EXPERTS, "mlp_only_layers": [1, 4], "decoder_sparse_step": 2}),
    "mistral": ("mistral", FIVE),
    "gpt2": ("gpt2", {"vocab_size": 272, "n_embd": 32, "n_layer": 5, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}),
}  # fmt: skip
STACKS = {
    "deeper, by an odd shift": [0, 1, 2, 1, 2, 3, 3, 4],
    "pruned, by an odd shift": [0, 2, 3],
    "one layer": [4],
    "reversed": [4, 3, 2, 1, 0],
    "as it was": [0, 1, 2, 3, 4],
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def parent(request: pytest.FixtureRequest) -> Any:
    """A config as transformers understands it."""
    from transformers import AutoConfig

    family, sizes = request.param
    return AutoConfig.for_model(family, **sizes)


@pytest.mark.parametrize("layers", STACKS.values(), ids=STACKS)
def test_each_layer_is_of_its_sources_kind_when_transformers_reads_it(
    parent: Any, layers: list[int], tmp_path: Path
) -> None:
    from transformers import AutoConfig

    result = relayered([_stored(parent, tmp_path)], [(0, layer) for layer in layers])
    (tmp_path / "config.json").write_text(json.dumps(result))
    read = AutoConfig.from_pretrained(tmp_path)
    assert read.num_hidden_layers == len(layers)
    for key in ("layer_types", "no_rope_layers"):
        if hasattr(parent, key):
            assert getattr(read, key) == [getattr(parent, key)[layer] for layer in layers], key
    assert _kinds(read) == [_kinds(parent)[layer] for layer in layers]
    read.save_pretrained(tmp_path / "again")  # this, too, validates
    assert _kinds(AutoConfig.from_pretrained(tmp_path / "again")) == _kinds(read)


def _stored(config: Any, folder: Path) -> dict[str, Any]:
    config.save_pretrained(folder)
    stored: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    return stored


def _kinds(config: Any) -> list[tuple[Any, ...]]:
    """What differs between the layers of transformers' model with this config: window, rotation, kind of MLP."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        body = AutoModelForCausalLM.from_config(config).base_model
    kinds = []
    for layer in body.h if config.model_type == "gpt2" else body.layers:
        attention = getattr(layer, "self_attn", None)
        kinds.append((getattr(attention, "sliding_window", None), getattr(attention, "use_rope", None), type(layer.mlp).__name__))  # fmt: skip
    return kinds


def test_all_that_is_not_of_layers_stays_and_nothing_passed_in_is_changed(parent: Any, tmp_path: Path) -> None:
    stored = _stored(parent, tmp_path)
    text = json.dumps(stored)
    result = relayered([stored], [(0, layer) for layer in (0, 1, 2, 2, 3, 4)])
    assert json.dumps(stored) == text
    changed = {key for key in {**stored, **result} if stored.get(key) != result.get(key)}
    assert changed <= {
        "num_hidden_layers", "n_layer", "layer_types", "no_rope_layers", "max_window_layers", "mlp_only_layers",
        "decoder_sparse_step", "no_rope_layer_interval", "sliding_window_pattern", "_sliding_window_pattern",
    }  # fmt: skip


def test_a_llama_changes_only_in_its_depth() -> None:
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES}
    assert relayered([config], [(0, 0), (0, 3)]) == {**config, "num_hidden_layers": 2}


def test_layers_of_several_parents_keep_what_their_own_said() -> None:
    from transformers import AutoConfig

    early = AutoConfig.for_model("qwen3", **{**FIVE, **WINDOW, "max_window_layers": 1}).to_dict()
    late = AutoConfig.for_model("qwen3", **{**FIVE, **WINDOW, "num_hidden_layers": 3, "max_window_layers": 2}).to_dict()
    result = relayered([early, late], [(0, 0), (1, 1), (0, 1), (1, 2)])
    assert result["layer_types"] == ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
    assert (result["num_hidden_layers"], result["max_window_layers"]) == (4, 2)
    sparse = {"model_type": "qwen3_moe", "num_hidden_layers": 2}
    dense = {"model_type": "qwen3_moe", "num_hidden_layers": 2, "mlp_only_layers": [0, 1]}
    mixed = relayered([sparse, dense], [(0, 0), (1, 0), (0, 1), (1, 1)])
    assert (mixed["mlp_only_layers"], mixed["decoder_sparse_step"]) == ([1, 3], 1)
    assert families.sparse_layers(mixed) == [True, False, True, False]


@pytest.mark.parametrize(
    ("family", "key"), [("qwen2", "layer_types"), ("gemma3_text", "layer_types"), ("smollm3", "no_rope_layers")]
)
def test_a_list_that_the_family_needs_is_not_guessed(family: str, key: str) -> None:
    lists = {"layer_types": ["full_attention"] * 4, "no_rope_layers": [1, 1, 1, 0]}
    config = {"model_type": family, **SIZES, **lists}
    for wrong in (None, "full_attention", lists[key][:3]):
        with pytest.raises(CheckpointError, match=f"missing or has the wrong length\n.*{key}"):
            relayered([{**config, key: wrong}], [(0, 0)])
    del config[key]
    with pytest.raises(CheckpointError, match=key):
        relayered([config], [(0, 0)])


def test_a_list_as_long_as_the_model_is_deep_is_either_known_or_refused() -> None:
    config = {"model_type": "llama", **SIZES}
    for key, value in {"layer_scales": [1.0, 1.0, 0.5, 0.5], "mlp_only_layers": [0, 1, 2, 3]}.items():
        with pytest.raises(CheckpointError, match=f"a list that may be per-layer is not known\n.*{key}"):
            relayered([config, {**config, key: value}], [(0, 0), (1, 1)])
        assert relayered([config, {**config, key: value}], [(0, 0)])["num_hidden_layers"] == 1  # not of this parent
    known = {"eos_token_id": [1, 2, 3, 4], "layer_types": ["a", "b", "c", "d"], "layer_scales": [1.0]}
    result = relayered([{**config, **known}], [(0, 3), (0, 0)])
    assert result == {**config, **known, "num_hidden_layers": 2, "layer_types": ["d", "a"]}


def test_a_layer_whose_number_matters_is_not_moved() -> None:
    gpt2 = {"model_type": "gpt2", "n_layer": 3, "scale_attn_by_inverse_layer_idx": True}
    assert relayered([gpt2], [(0, 0), (0, 1)])["n_layer"] == 2
    with pytest.raises(CheckpointError, match="scale_attn_by_inverse_layer_idx"):
        relayered([gpt2], [(0, 0), (0, 2)])
    with pytest.raises(CheckpointError, match="per_layer_config"):
        relayered([{"model_type": "llama", **SIZES, "per_layer_config": {"1": {"sliding_window": 8}}}], [(0, 0)])


def test_no_other_name_of_the_depth_stays_behind() -> None:
    """transformers takes num_hidden_layers for n_layer, so a stale one would count."""
    assert "num_hidden_layers" not in relayered(
        [{"model_type": "gpt2", "n_layer": 3, "num_hidden_layers": 3}], [(0, 0)]
    )
