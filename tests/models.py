"""Small real models: one config for each family, built by transformers with no tensor of equal values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 272, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 257,
}  # fmt: skip
WINDOW = {"sliding_window": 4, "use_sliding_window": True}
GPT2 = {
    "vocab_size": 272,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
# Of each family, the small config that the others below vary: no layer of it is like the one before it, if there are kinds.
SMALL: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "mistral": {**SIZES, "sliding_window": 4},
    "qwen2": {**SIZES, **WINDOW, "max_window_layers": 2},
    "qwen3": {**SIZES, **WINDOW, "max_window_layers": 2, "head_dim": 16},
    "gemma2": {**SIZES, "head_dim": 8, "sliding_window": 4},
    "gemma3_text": {**SIZES, "head_dim": 8, "sliding_window": 4, "sliding_window_pattern": 2},
    "olmo2": SIZES,
    "smollm3": {**SIZES, **WINDOW, "no_rope_layer_interval": 2},
    "phi3": {**SIZES, "sliding_window": 4},
    "gpt2": GPT2,
    "mixtral": {**SIZES, "num_local_experts": 3},
    "qwen3_moe": {**SIZES, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "decoder_sparse_step": 2},
}  # fmt: skip


def build(family: str, **changes: Any) -> Any:
    """A small random model of a family. No tensor of it is of equal values, as fresh norms and biases are.

    `noise` is the size of what is added to all that a fresh model has.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(changes.pop("seed", 7))
    noise = changes.pop("noise", 0.2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL[family], **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return model.eval()


def save_model(folder: Path, family: str = "llama", **changes: Any) -> Path:
    """A small random model of a family, saved by transformers with a byte-level tokenizer; bfloat16 by default."""
    import torch

    dtype = changes.pop("dtype", torch.bfloat16)
    build(family, **changes).to(dtype).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({byte: number for number, byte in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)


def within_rounding(ours: Any, exact: Any) -> bool:
    """Whether every element is the nearest of its dtype, or as near as a sum in float32 of numbers below 2 can tell."""
    import torch

    bits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}[ours.dtype]
    _, exponent = torch.frexp(exact)
    half = torch.ldexp(torch.ones_like(exact), (exponent - bits - 1).clamp(min=-25 if bits == 11 else -150))
    return bool(((ours.double() - exact).abs() <= half + 2**-22).all())
