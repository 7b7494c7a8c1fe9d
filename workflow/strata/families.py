"""Model families: what each calls its tensors, which of them a config asks for, and what of a config is a layer's.

Names, shapes and defaults follow transformers' configuration and modeling files; the tests hold them against what
transformers saves. A family is a row of tables; a new one needs a row, and code only for a rule that no other has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strata.errors import CheckpointError
from strata.plan import MAX_LAYERS

Config = Mapping[str, Any]
Tensors = Mapping[str, str]  # name within a layer -> its dimensions, in the words of `_dimensions`
Shape = tuple[int, ...]

MAX_EXPERTS = 10_000  # of a layer: a config that says more must not fill the memory with names
_LAYER = re.compile(r"(?:model\.layers|transformer\.h)\.(0|[1-9][0-9]*)\.(.+)")
_UNKNOWN_PARTS = ("add_cross_attention", "per_layer_config")  # true, they add tensors or change some layers' shapes
_EXPERT = re.compile(r"\.experts\.[0-9]+\.")
_NORM = re.compile(r".*(?:norm|\bln_[12f])\.(?:weight|bias)")


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table: where a family's tensors are, what shapes they have, what its configs leave unsaid."""

    architecture: str
    layers: str = "model.layers"  # prefix of the layers' tensors
    depth: str = "num_hidden_layers"  # the config's key for the number of layers
    embed: tuple[str, ...] = ("model.embed_tokens.weight",)  # of tokens, then of positions
    norm: tuple[str, ...] = ("model.norm.weight",)
    head: str = "lm_head.weight"
    tensors: Tensors  # of every layer
    optional: Mapping[str, Tensors] = field(default_factory=dict)  # of every layer, where the config sets this key
    dense: Tensors = field(default_factory=dict)  # of a layer with one MLP
    sparse: Tensors = field(default_factory=dict)  # of a layer with a mixture of experts; `*` is each of them
    silent: Mapping[str, float]  # the modules that decide what a layer adds to the residual stream: value for "nothing"
    keys: Mapping[str, str] = field(default_factory=dict)  # Llama's key -> this family's, where it has another
    defaults: Config = field(default_factory=dict)  # what transformers assumes when a config.json lacks the key
    per_layer: tuple[str, ...] = ()  # the lists without which transformers derives a layer's kind from its number
    stale: tuple[str, ...] = ()  # what such a list replaces, or another name for a key that a new depth changes


_NORMS = {"input_layernorm.weight": "hidden", "post_attention_layernorm.weight": "hidden"}
_POST_NORMS = {"post_attention_layernorm.weight": "hidden", "post_feedforward_layernorm.weight": "hidden"}
_ATTENTION = {
    "self_attn.q_proj.weight": "queries hidden", "self_attn.k_proj.weight": "keys hidden",
    "self_attn.v_proj.weight": "keys hidden", "self_attn.o_proj.weight": "hidden queries",
}  # fmt: skip
_QKV_BIAS = {"self_attn.q_proj.bias": "queries", "self_attn.k_proj.bias": "keys", "self_attn.v_proj.bias": "keys"}
_ATTENTION_BIAS = {"attention_bias": {**_QKV_BIAS, "self_attn.o_proj.bias": "hidden"}}
_HEAD_NORMS = {"self_attn.q_norm.weight": "width", "self_attn.k_norm.weight": "width"}
_MLP = {
    "mlp.gate_proj.weight": "inner hidden", "mlp.up_proj.weight": "inner hidden",
    "mlp.down_proj.weight": "hidden inner",
}  # fmt: skip
_MLP_BIAS = {"mlp_bias": {"mlp.gate_proj.bias": "inner", "mlp.up_proj.bias": "inner", "mlp.down_proj.bias": "hidden"}}
_GEMMA = {**_NORMS, **_POST_NORMS, "pre_feedforward_layernorm.weight": "hidden", **_ATTENTION}

_WRITERS = {"self_attn.o_proj": 0.0, "mlp.down_proj": 0.0}
# Where a norm follows the block, the norm is silenced: behind it, a writer of zeros has a gradient of 1/sqrt(eps).
_OLMO_WRITERS = {"post_attention_layernorm": 0.0, "post_feedforward_layernorm": 0.0}
_GEMMA_WRITERS = dict.fromkeys(_OLMO_WRITERS, -1.0)  # Gemma's norms scale by 1 + weight


def _sizes(vocab: int, hidden: int, inner: int, layers: int, heads: int, groups: int | None) -> dict[str, int | None]:
    """Sizes as the defaults of a family; `groups` None: as many as heads."""
    return {
        "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": groups,
    }  # fmt: skip


FAMILIES: dict[str, Family] = {
    # No default size for Llama and Mistral, whose configs say them all. Left out, the number of key-value heads means
    # "as many as heads" to Llama but 8 to Mistral: there it must be said.
    "llama": Family(
        architecture="LlamaForCausalLM", tensors={**_NORMS, **_ATTENTION}, dense=_MLP, silent=_WRITERS,
        optional={**_ATTENTION_BIAS, **_MLP_BIAS}, defaults={"num_key_value_heads": None},
    ),
    "mistral": Family(
        architecture="MistralForCausalLM", tensors={**_NORMS, **_ATTENTION}, dense=_MLP, silent=_WRITERS,
    ),
    "qwen2": Family(
        architecture="Qwen2ForCausalLM", tensors={**_NORMS, **_ATTENTION, **_QKV_BIAS}, dense=_MLP, silent=_WRITERS,
        defaults={**_sizes(151936, 4096, 22016, 32, 32, 32), "tie_word_embeddings": False},
        per_layer=("layer_types",),
    ),
    "qwen3": Family(
        architecture="Qwen3ForCausalLM", tensors={**_NORMS, **_ATTENTION, **_HEAD_NORMS}, dense=_MLP, silent=_WRITERS,
        optional=_ATTENTION_BIAS, per_layer=("layer_types",),
        defaults={**_sizes(151936, 4096, 22016, 32, 32, 32), "head_dim": 128, "tie_word_embeddings": False},
    ),
    "gemma2": Family(
        architecture="Gemma2ForCausalLM", tensors=_GEMMA, dense=_MLP, silent=_GEMMA_WRITERS,
        optional=_ATTENTION_BIAS, per_layer=("layer_types",),
        defaults={**_sizes(256000, 2304, 9216, 26, 8, 4), "head_dim": 256, "tie_word_embeddings": True},
    ),
    "gemma3_text": Family(
        architecture="Gemma3ForCausalLM", tensors={**_GEMMA, **_HEAD_NORMS}, dense=_MLP, silent=_GEMMA_WRITERS,
        optional=_ATTENTION_BIAS, per_layer=("layer_types",),
        stale=("sliding_window_pattern", "_sliding_window_pattern"),
        defaults={**_sizes(262208, 2304, 9216, 26, 8, 4), "head_dim": 256, "tie_word_embeddings": True},
    ),
    "olmo2": Family(
        architecture="Olmo2ForCausalLM", dense=_MLP, silent=_OLMO_WRITERS, optional=_ATTENTION_BIAS,
        tensors={  # unlike Qwen3's, its norms of queries and keys are over all heads at once
            **_POST_NORMS, **_ATTENTION, "self_attn.q_norm.weight": "queries", "self_attn.k_norm.weight": "keys",
        },
        defaults={**_sizes(50304, 4096, 11008, 32, 32, None), "tie_word_embeddings": False},
    ),
    "smollm3": Family(
        architecture="SmolLM3ForCausalLM", tensors={**_NORMS, **_ATTENTION}, dense=_MLP, silent=_WRITERS,
        optional={**_ATTENTION_BIAS, **_MLP_BIAS}, per_layer=("layer_types", "no_rope_layers"),
        stale=("no_rope_layer_interval",),
        defaults={**_sizes(128256, 2048, 11008, 36, 16, 4), "tie_word_embeddings": True},
    ),
    "phi3": Family(
        architecture="Phi3ForCausalLM", silent=_WRITERS,
        tensors={**_NORMS, "self_attn.qkv_proj.weight": "qkv hidden", "self_attn.o_proj.weight": "hidden queries"},
        dense={"mlp.gate_up_proj.weight": "gate_up hidden", "mlp.down_proj.weight": "hidden inner"},
        defaults={**_sizes(32064, 3072, 8192, 32, 32, None), "tie_word_embeddings": False},
    ),
    "gpt2": Family(
        architecture="GPT2LMHeadModel", layers="transformer.h", depth="n_layer",
        embed=("transformer.wte.weight", "transformer.wpe.weight"),
        norm=("transformer.ln_f.weight", "transformer.ln_f.bias"),
        tensors={  # its Conv1D weights stand input first
            "ln_1.weight": "hidden", "ln_1.bias": "hidden", "ln_2.weight": "hidden", "ln_2.bias": "hidden",
            "attn.c_attn.weight": "hidden qkv", "attn.c_attn.bias": "qkv",
            "attn.c_proj.weight": "queries hidden", "attn.c_proj.bias": "hidden",
        },
        dense={
            "mlp.c_fc.weight": "hidden inner", "mlp.c_fc.bias": "inner",
            "mlp.c_proj.weight": "inner hidden", "mlp.c_proj.bias": "hidden",
        },
        silent={"attn.c_proj": 0.0, "mlp.c_proj": 0.0},
        keys={
            "hidden_size": "n_embd", "intermediate_size": "n_inner", "num_attention_heads": "n_head",
            "max_position_embeddings": "n_positions",
        },
        defaults={
            "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024,
            "num_key_value_heads": None, "tie_word_embeddings": True,
        },
        stale=("num_hidden_layers",),
    ),
    "mixtral": Family(
        architecture="MixtralForCausalLM", tensors={**_NORMS, **_ATTENTION},
        sparse={
            "block_sparse_moe.gate.weight": "experts hidden",
            "block_sparse_moe.experts.*.w1.weight": "inner hidden",
            "block_sparse_moe.experts.*.w2.weight": "hidden inner",
            "block_sparse_moe.experts.*.w3.weight": "inner hidden",
        },
        silent={"self_attn.o_proj": 0.0, "block_sparse_moe.experts.*.w2": 0.0},
        defaults={**_sizes(32000, 4096, 14336, 32, 32, 8), "num_local_experts": 8, "tie_word_embeddings": False},
    ),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM", tensors={**_NORMS, **_ATTENTION, **_HEAD_NORMS}, dense=_MLP,
        sparse={
            "mlp.gate.weight": "experts hidden", "mlp.experts.*.gate_proj.weight": "expert hidden",
            "mlp.experts.*.up_proj.weight": "expert hidden", "mlp.experts.*.down_proj.weight": "hidden expert",
        },
        silent={**_WRITERS, "mlp.experts.*.down_proj": 0.0}, optional=_ATTENTION_BIAS,
        defaults={
            **_sizes(151936, 2048, 6144, 24, 32, 4), "num_local_experts": 128, "moe_intermediate_size": 768,
            "decoder_sparse_step": 1, "mlp_only_layers": (), "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
CLASSES = {model_type: family.architecture for model_type, family in FAMILIES.items()}


def family_of(config: Config) -> Family:
    """The family that a config names. Raises CheckpointError when it is none of ours."""
    family = FAMILIES.get(name) if isinstance(name := config.get("model_type"), str) else None
    if family is None:
        raise CheckpointError(
            "unknown model family", where="config.json, model_type", expected=", ".join(FAMILIES), got=name
        )
    return family


def size(config: Config, key: str, default: int | None = None, most: int = (1 << 31) - 1) -> int:
    """A size that a config gives, or the default where it is left out or null.

    Raises:
        CheckpointError: neither is a positive whole number, or it is more than `most`.
    """
    value = config.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= most:
        raise _unusable(key, f"a whole number from 1 to {most:,}", value)
    return value


def _unusable(key: str, expected: str, got: object) -> CheckpointError:
    return CheckpointError(
        "not a usable model config", where=f"config.json, {key}", expected=expected, got=repr(got)[:200]
    )


def depth(config: Config) -> int:
    """The number of layers. Raises CheckpointError when the family is unknown or the number unusable."""
    family = family_of(config)
    return size(config, family.depth, family.defaults.get(family.depth), MAX_LAYERS)


def tied(config: Config) -> bool:
    """Whether the head is the embedding, and so not stored. Raises CheckpointError when the family is unknown."""
    value = config.get("tie_word_embeddings")
    if value is not None and not isinstance(value, bool):
        raise _unusable("tie_word_embeddings", "true or false", value)
    return bool(family_of(config).defaults.get("tie_word_embeddings") if value is None else value)


def layer_name(family: Family, layer: int, suffix: str) -> str:
    """The full name of a layer's tensor."""
    return f"{family.layers}.{layer}.{suffix}"


def split_name(name: str) -> tuple[int | None, str]:
    """(layer, name within the layer), or (None, name) for a tensor outside the layers."""
    match = _LAYER.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def part_of(family: Family, name: str) -> str | None:
    """Which part of the model a tensor outside the layers is: embed, norm or head; None for any other name."""
    parts = (("embed", family.embed), ("norm", family.norm), ("head", (family.head,)))
    return next((part for part, names in parts if name in names), None)


def is_norm(name: str) -> bool:
    """Whether a tensor is a norm's: of a layer, of queries and keys, or the final one."""
    return _NORM.fullmatch(name) is not None


def canonical_name(model_type: str, name: str) -> str | None:
    """The name here of a tensor in a foreign file; None for a buffer, which holds no weights.

    Every name that no rule knows is returned as it is. Raises CheckpointError when the family is unknown.
    """
    if family_of({"model_type": model_type}).layers == "transformer.h":
        # The hub's GPT-2 files were written from the model without its head, and with its causal masks.
        name = f"transformer.{name}" if re.match(r"(h\.[0-9]+|wte|wpe|ln_f)\.", name) else name
        return None if re.fullmatch(r"transformer\.h\.[0-9]+\.attn\.(masked_)?bias", name) else name
    return None if name.endswith("rotary_emb.inv_freq") else name


def explicit_keys(model_type: str) -> tuple[str, ...]:
    """The keys that a stored config must not leave to a default, which changes by family, layer number and release.

    None for Llama and Mistral. Raises CheckpointError when the family is unknown.
    """
    family = family_of({"model_type": model_type})
    return (*family.per_layer, *(key for key, value in family.defaults.items() if value is not None))


def expected_tensors(config: Config) -> dict[str, Shape]:
    """Name and shape of exactly the tensors that a model with this config has on disk. A tied head is not stored.

    Raises:
        CheckpointError: the family is unknown, the config lacks a size, or it asks for what no table here has.
    """
    return dict(each_tensor(config))


def each_tensor(config: Config) -> Iterator[tuple[str, Shape]]:
    """`expected_tensors` one by one, for where a second table of 20,000 names would be too much memory."""
    family, sizes = family_of(config), _dimensions(config)
    for key in _UNKNOWN_PARTS:
        if config.get(key):
            raise CheckpointError(
                "the model has parts that Strata does not know",
                where=f"config.json, {key}",
                expected="no such parts",
                got=config[key],
            )
    for name in family.norm:
        yield name, (sizes["hidden"],)
    for name, rows in zip(family.embed, ("vocab", "positions"), strict=False):
        yield name, (sizes[rows], sizes["hidden"])
    if not tied(config):
        yield family.head, (sizes["vocab"], sizes["hidden"])
    common = [family.tensors, *(extra for key, extra in family.optional.items() if config.get(key))]
    kinds = [dict(_expand([*common, mlp], sizes)) for mlp in (family.dense, family.sparse)]
    for layer, sparse in enumerate(sparse_layers(config)):
        prefix = layer_name(family, layer, "")
        for suffix, shape in kinds[sparse].items():
            yield prefix + suffix, shape


def _expand(tables: Sequence[Tensors], sizes: Mapping[str, int]) -> Iterator[tuple[str, Shape]]:
    for table in tables:
        for suffix, dimensions in table.items():
            shape = tuple(sizes[dimension] for dimension in dimensions.split())
            for expert in range(sizes["experts"] if "*" in suffix else 1):
                yield suffix.replace("*", str(expert)), shape


def _dimensions(config: Config) -> dict[str, int]:
    """What the words of the tables mean to this config."""
    family = family_of(config)

    def get(key: str, default: int | None = None) -> int:
        key = family.keys.get(key, key)
        return size(config, key, family.defaults.get(key, default))

    hidden, heads = get("hidden_size"), get("num_attention_heads")
    inner = get("intermediate_size", 4 * hidden if "intermediate_size" in family.keys else None)  # GPT-2's rule
    width = get("head_dim", hidden // heads)
    # Null is "as many as heads", even where a config that does not have the key at all means another number.
    groups = {"num_key_value_heads": config.get("num_key_value_heads", family.defaults.get("num_key_value_heads"))}
    keys = width * size(groups, "num_key_value_heads", heads if "num_key_value_heads" in family.defaults else None)
    sizes = {
        "vocab": get("vocab_size"), "hidden": hidden, "inner": inner, "width": width, "queries": heads * width,
        "keys": keys, "qkv": heads * width + 2 * keys, "gate_up": 2 * inner,
    }  # fmt: skip
    if len(family.embed) > 1:
        sizes["positions"] = get("max_position_embeddings")
    if family.sparse:
        # transformers 5 writes the first name, the hub's Qwen3 has the second; given both, the first counts.
        key = "num_local_experts" if config.get("num_local_experts") is not None else "num_experts"
        sizes["experts"] = size(config, key, family.defaults["num_local_experts"], MAX_EXPERTS)
        sizes["expert"] = get("moe_intermediate_size", inner)
    return sizes


def sparse_layers(config: Config) -> list[bool]:
    """For each layer, whether its MLP is a mixture of experts.

    Raises:
        CheckpointError: the family is unknown, or the config's rule for it is not one.
    """
    family, layers = family_of(config), depth(config)
    if not (family.dense and family.sparse):
        return [bool(family.sparse)] * layers
    step, dense = size(config, "decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if not isinstance(dense, (list, tuple)) or any(type(layer) is not int for layer in dense):
        raise _unusable("mlp_only_layers", "a list of layers", dense)
    without = set(dense)
    return [layer not in without and (layer + 1) % step == 0 for layer in range(layers)]


def silenced(config: Config, layer: int, suffix: str) -> float | None:
    """What every element of this tensor is in an inserted copy of the layer that changes nothing (LLaMA-Pro).

    None for a tensor that is copied. With the others set, the copy adds exactly zero to the residual stream, and what
    it adds can be learned. No family of today needs `layer`: names alone tell dense layers from mixtures.

    Raises:
        CheckpointError: the family is unknown.
    """
    module = _EXPERT.sub(".experts.*.", suffix).rpartition(".")[0]
    return family_of(config).silent.get(module)
