"""Model families: what each calls its tensors, and which of them a config asks for.

Names and shapes follow transformers' modeling files; a test holds them against the real classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from strata.errors import CheckpointError

CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
EMBED, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")

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


def layer_name(layer: int, suffix: str) -> str:
    return f"model.layers.{layer}.{suffix}"


def split_name(name: str) -> tuple[int | None, str]:
    """(layer, name within the layer), or (None, name) for a tensor outside the layers."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def expected_tensors(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of exactly the tensors that a model with this config has. A tied head is not stored.

    Raises:
        CheckpointError: the family is unknown, or the config lacks a size.
    """
    family = config.get("model_type")
    if family not in CLASSES:
        raise CheckpointError(
            "unknown model family", where="config.json, model_type", expected=", ".join(CLASSES), got=family
        )
    hidden, inner = size(config, "hidden_size"), size(config, "intermediate_size")
    heads = size(config, "num_attention_heads")
    # Left out, it means "as many as heads" to Llama but 8 to Mistral: there it must be said.
    key_value_heads = size(config, "num_key_value_heads", heads if family == "llama" else None)
    width = size(config, "head_dim", hidden // heads)
    queries, keys = heads * width, key_value_heads * width
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    attention = {"q": (queries, hidden), "k": (keys, hidden), "v": (keys, hidden), "o": (hidden, queries)}
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    for block, parts, bias in (("self_attn", attention, "attention_bias"), ("mlp", mlp, "mlp_bias")):
        for part, shape in parts.items():
            layer[f"{block}.{part}_proj.weight"] = shape
            if family == "llama" and config.get(bias):
                layer[f"{block}.{part}_proj.bias"] = shape[:1]
    tensors: dict[str, tuple[int, ...]] = {EMBED: (size(config, "vocab_size"), hidden), NORM: (hidden,)}
    if not config.get("tie_word_embeddings"):
        tensors[HEAD] = tensors[EMBED]
    for number in range(size(config, "num_hidden_layers")):
        tensors.update({layer_name(number, suffix): shape for suffix, shape in layer.items()})
    return tensors


def size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value < 1 << 31:
        raise CheckpointError(
            "not a usable model config",
            where=f"config.json, {key}",
            expected="a positive whole number",
            got=repr(value),
        )
    return value


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
            "a Llama config has no such key", where="config.json", got=", ".join(unknown),
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
