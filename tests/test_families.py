"""Our table of tensors is transformers' own, for every shape of config."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import SIZES
from strata import families
from strata.errors import CheckpointError


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("heads", [{}, {"head_dim": 16}, {"num_key_value_heads": 1}, {"num_key_value_heads": 4}])
@pytest.mark.parametrize("bias", [{}, {"attention_bias": True}, {"mlp_bias": True}])
def test_llama(tied: bool, heads: dict[str, Any], bias: dict[str, Any]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    _same(LlamaForCausalLM, LlamaConfig(**{**SIZES, **heads, **bias, "tie_word_embeddings": tied}))


@pytest.mark.parametrize("heads", [{}, {"head_dim": 16}])
def test_mistral(heads: dict[str, Any]) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    _same(MistralForCausalLM, MistralConfig(**{**SIZES, **heads}))


def _same(model_of: Any, config: Any) -> None:
    import torch

    with torch.device("meta"):
        state = model_of(config).state_dict()
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert families.expected_tensors(config.to_dict()) == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_solars_base_keeps_its_sizes() -> None:
    mistral = {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 32000,
        "sliding_window": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    llama = families.as_llama(mistral)
    assert (llama["model_type"], llama["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (llama["hidden_size"], llama["intermediate_size"], llama["num_key_value_heads"]) == (4096, 14336, 8)
    assert "sliding_window" not in llama
    assert families.expected_tensors(llama) == families.expected_tensors(mistral)
    deeper = families.expected_tensors({**llama, "num_hidden_layers": 48})
    assert sum(int(shape[0]) * (shape[1] if len(shape) > 1 else 1) for shape in deeper.values()) == 10_731_524_096


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"model_type": "gpt9"}, "model_type"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"model_type": "mistral", "num_key_value_heads": None}, "num_key_value_heads"),
    ],
)
def test_an_unusable_config_is_refused_by_key(change: dict[str, Any], where: str) -> None:
    with pytest.raises(CheckpointError, match=where):
        families.expected_tensors({"model_type": "llama", **SIZES, **change})


def test_a_mistral_with_what_no_llama_has_is_refused() -> None:
    with pytest.raises(CheckpointError, match="new_norm"):
        families.as_llama({"model_type": "mistral", **SIZES, "new_norm": True})
    scaled = {"type": "linear", "factor": 4.0}
    assert families.as_llama({"model_type": "mistral", **SIZES, "rope_scaling": scaled})["rope_scaling"] == scaled


def test_only_the_first_number_of_a_name_is_the_layer() -> None:
    assert families.split_name("model.layers.3.mlp.experts.0.up_proj.weight") == (3, "mlp.experts.0.up_proj.weight")
    assert families.split_name("model.norm.weight") == (None, "model.norm.weight")
