"""Architecture: a model's config under another one that computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.errors import CheckpointError
from strata.families import CLASSES

# Of a Mistral config, what a Llama config knows under the same name. Not among them: sliding_window.
_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters", "rope_theta",
    "attention_dropout", "dtype", "torch_dtype", "rope_scaling",
)  # fmt: skip
# And what may be left behind: it says nothing of the forward pass, or nothing that a Llama has.
_LEFT = {
    "architectures", "model_type", "sliding_window", "transformers_version", "_name_or_path", "unk_token_id",
    "output_attentions", "output_hidden_states", "return_dict", "chunk_size_feed_forward", "is_encoder_decoder",
    "id2label", "label2id", "problem_type", "torchscript", "layer_types",
}  # fmt: skip


def as_llama(config: Mapping[str, Any]) -> dict[str, Any]:
    """A Mistral config as a Llama config: same sizes, no sliding window (SOLAR, arXiv 2312.15166, section 2).

    Exact for sequences no longer than the sliding window, where there was one.
    """
    if config.get("model_type") == "llama":
        return dict(config)
    if config.get("model_type") != "mistral":
        raise CheckpointError(
            "cannot be put under a Llama config", where="config.json, model_type", expected="llama, mistral",
            got=config.get("model_type"),
        )  # fmt: skip
    unknown = sorted(key for key, value in config.items() if value and key not in _LEFT and key not in _SHARED)
    if unknown:
        raise CheckpointError(
            "a Llama config has no such key", where="config.json", expected="keys that transformers' LlamaConfig has",
            got=", ".join(unknown),
            todo="leave `architecture` out: the model stays what it is",
        )  # fmt: skip
    llama = {key: config[key] for key in _SHARED if key in config}
    return {
        "architectures": [CLASSES["llama"]],
        "model_type": "llama",
        **llama,
        "attention_bias": False,
        "mlp_bias": False,
    }
