"""A Mistral's config as a Llama's, as SOLAR took it: the same sizes, and nothing left behind that computes."""

from __future__ import annotations

import pytest

from models import SIZES
from strata import families
from strata.architecture import as_llama
from strata.errors import CheckpointError


def test_solars_base_keeps_its_sizes() -> None:
    mistral = {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 32, "vocab_size": 32000,
        "sliding_window": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    llama = as_llama(mistral)
    assert (llama["model_type"], llama["architectures"]) == ("llama", ["LlamaForCausalLM"])
    assert (llama["hidden_size"], llama["intermediate_size"], llama["num_key_value_heads"]) == (4096, 14336, 8)
    assert "sliding_window" not in llama
    assert families.expected_tensors(llama) == families.expected_tensors(mistral)
    deeper = families.expected_tensors({**llama, "num_hidden_layers": 48})
    assert sum(int(shape[0]) * (shape[1] if len(shape) > 1 else 1) for shape in deeper.values()) == 10_731_524_096


def test_a_mistral_with_what_no_llama_has_is_refused() -> None:
    with pytest.raises(CheckpointError, match="new_norm"):
        as_llama({"model_type": "mistral", **SIZES, "new_norm": True})
    scaled = {"type": "linear", "factor": 4.0}
    assert as_llama({"model_type": "mistral", **SIZES, "rope_scaling": scaled})["rope_scaling"] == scaled
