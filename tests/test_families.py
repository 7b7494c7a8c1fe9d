"""Our tables of tensors are transformers' own, for every family and shape of config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from models import SIZES, SMALL, build
from strata import families
from strata.errors import CheckpointError
from strata.relayer import relayered
from strata.tensors import read_header

BIASED, ONE_GROUP, TIED, UNTIED = (
    {"attention_bias": True}, {"num_key_value_heads": 1}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False},
)  # fmt: skip
VARIED: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in SMALL),
    *((family, TIED) for family in SMALL if family not in ("gemma2", "gemma3_text", "smollm3", "gpt2")),
    *((family, UNTIED) for family in ("gemma2", "gemma3_text", "smollm3", "gpt2")),
    *((family, BIASED) for family in ("qwen3", "gemma2", "gemma3_text", "olmo2", "smollm3", "qwen3_moe")),
    *((family, ONE_GROUP) for family in SMALL if family != "gpt2"),
    *((family, {"num_key_value_heads": None}) for family in ("llama", "qwen2", "qwen3", "olmo2", "smollm3", "phi3")),
    *((family, {"head_dim": 16}) for family in SMALL if family != "gpt2"),
    ("mixtral", {"head_dim": None}),
    ("smollm3", {"mlp_bias": True}),
    ("gpt2", {"n_inner": 40}),
    ("qwen3_moe", {"mlp_only_layers": [1]}),
    ("qwen3_moe", {"mlp_only_layers": [0, 2], "decoder_sparse_step": 1}),
    ("qwen3_moe", {"mlp_only_layers": [0, 1, 2, 3]}),
    ("qwen3_moe", {"decoder_sparse_step": 3}),
]  # fmt: skip


def saved(folder: Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Config and tensors of a model as transformers wrote them."""
    tensors = read_header(folder / "model.safetensors").tensors
    return json.loads((folder / "config.json").read_bytes()), {tensor.name: tensor.shape for tensor in tensors}


@pytest.mark.parametrize(("family", "changes"), VARIED, ids=lambda value: str(value) if value else "")
def test_the_tensors_are_those_that_transformers_saves(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = build(family, **changes)
    model.save_pretrained(tmp_path)
    config, tensors = saved(tmp_path)
    assert families.expected_tensors(config) == tensors
    assert families.family_of(config).architecture == type(model).__name__
    assert families.depth(config) == len(model.base_model.h if family == "gpt2" else model.base_model.layers)


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


@pytest.mark.parametrize("family", [family for family in families.FAMILIES if family not in ("llama", "mistral")])
def test_a_key_left_out_is_transformers_default_of_that_family(family: str) -> None:
    from transformers import AutoConfig

    default = AutoConfig.for_model(family).to_dict()
    assert families.expected_tensors({"model_type": family}) == families.expected_tensors(default)
    for key in families.explicit_keys(family):
        left_out = {name: value for name, value in default.items() if name != key}
        assert families.expected_tensors(left_out) == families.expected_tensors(default), key
    assert families.tied({"model_type": family}) is default["tie_word_embeddings"]


def test_experts_are_counted_under_the_hubs_key_and_under_transformers_own() -> None:
    from transformers import AutoConfig

    sizes = {key: value for key, value in SMALL["qwen3_moe"].items() if key != "num_experts"}
    for counts in ({"num_experts": 2}, {"num_local_experts": 2}, {"num_experts": 3, "num_local_experts": 2}):
        assert AutoConfig.for_model("qwen3_moe", **sizes, **counts).num_experts == 2
        expected = families.expected_tensors({"model_type": "qwen3_moe", **sizes, **counts})
        assert expected["model.layers.1.mlp.gate.weight"] == (2, 32)


def test_what_a_stored_config_must_say_is_there_to_be_read_from_transformers() -> None:
    from transformers import AutoConfig

    for family in families.FAMILIES:
        assert set(families.explicit_keys(family)) <= set(AutoConfig.for_model(family).to_dict()), family
    assert families.explicit_keys("llama") == families.explicit_keys("mistral") == ()
    assert {"layer_types", "no_rope_layers", "tie_word_embeddings"} <= set(families.explicit_keys("smollm3"))
    assert {"mlp_only_layers", "decoder_sparse_step"} <= set(families.explicit_keys("qwen3_moe"))


def test_a_large_mixture_takes_no_time() -> None:
    import time

    times = []
    for _ in range(5):
        begin = time.perf_counter()
        tensors = families.expected_tensors({"model_type": "qwen3_moe", "num_hidden_layers": 94})
        times.append(time.perf_counter() - begin)
        assert len(tensors) == 36945
    assert min(times) < 0.2


# Block expansion


@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("changes", [{}, BIASED], ids=["", "biased"])
def test_a_silenced_copy_changes_no_logit(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    build(family, **changes).save_pretrained(tmp_path / "parent")
    config, _ = saved(tmp_path / "parent")
    tensors = load_file(tmp_path / "parent/model.safetensors")
    layers = [0, 1, 1, 2, 2, 3]  # the second of each pair is the inserted one
    fill: dict[str, dict[str, Any]] = {"silent": {}, "loud": {}}
    found = families.FAMILIES[family]
    for name, tensor in tensors.items():
        layer, suffix = families.split_name(name)
        for new, source in enumerate(layers):
            value = families.silenced(config, source, suffix)
            target = name if layer is None else families.layer_name(found, new, suffix)
            if layer in (None, source):
                inserted = layer is not None and new > 0 and layers[new - 1] == source and value is not None
                fill["silent"][target] = torch.full_like(tensor, value) if inserted else tensor.clone()
                fill["loud"][target] = tensor.clone()
    tokens = torch.arange(24).reshape(2, 12) * 11 % 272
    logits = {}
    for name, state in {"parent": None, **fill}.items():
        if state is not None:
            (tmp_path / name).mkdir()
            deeper = relayered([config], [(0, layer) for layer in layers])
            (tmp_path / name / "config.json").write_text(json.dumps(deeper))
            save_file(state, tmp_path / name / "model.safetensors", {"format": "pt"})
            assert saved(tmp_path / name)[1] == families.expected_tensors(deeper)
        with torch.no_grad():
            logits[name] = AutoModelForCausalLM.from_pretrained(tmp_path / name)(tokens).logits
    assert torch.equal(logits["silent"], logits["parent"])
    assert not torch.allclose(logits["loud"], logits["parent"], atol=1e-3)


@pytest.mark.parametrize(
    ("family", "suffix", "value"),
    [
        ("llama", "self_attn.o_proj.weight", 0.0),
        ("llama", "mlp.down_proj.bias", 0.0),
        ("llama", "post_attention_layernorm.weight", None),
        ("qwen2", "self_attn.v_proj.bias", None),
        ("olmo2", "post_attention_layernorm.weight", 0.0),
        ("olmo2", "self_attn.o_proj.weight", None),
        ("gemma2", "post_feedforward_layernorm.weight", -1.0),
        ("gemma3_text", "post_attention_layernorm.weight", -1.0),
        ("gemma3_text", "pre_feedforward_layernorm.weight", None),
        ("gpt2", "mlp.c_proj.bias", 0.0),
        ("gpt2", "attn.c_attn.bias", None),
        ("mixtral", "block_sparse_moe.experts.12.w2.weight", 0.0),
        ("mixtral", "block_sparse_moe.experts.2.w1.weight", None),
        ("qwen3_moe", "mlp.experts.0.down_proj.weight", 0.0),
        ("qwen3_moe", "mlp.down_proj.weight", 0.0),
        ("qwen3_moe", "mlp.gate.weight", None),
    ],
)
def test_the_last_to_act_before_the_residual_stream_is_silenced(family: str, suffix: str, value: float | None) -> None:
    """A zeroed writer with a norm behind it would have a gradient of 1/sqrt(eps): there the norm is silenced."""
    assert families.silenced({"model_type": family}, 0, suffix) == value


# Names


def test_only_the_first_number_of_a_name_is_the_layer() -> None:
    assert families.split_name("model.layers.3.mlp.experts.0.up_proj.weight") == (3, "mlp.experts.0.up_proj.weight")
    assert families.split_name("transformer.h.11.attn.c_attn.bias") == (11, "attn.c_attn.bias")
    for outside in ("model.norm.weight", "transformer.wte.weight", "x.model.layers.3.a", "model.layers.03.a", "h.0.a"):
        assert families.split_name(outside) == (None, outside)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_tensor_is_of_a_layer_or_of_one_part(family: str) -> None:
    found = families.FAMILIES[family]
    parts: dict[str | None, int] = {}
    for name in families.expected_tensors({"model_type": family, **SMALL[family], **UNTIED}):
        layer, suffix = families.split_name(name)
        if layer is None:
            part = families.part_of(found, name)
            parts[part] = parts.get(part, 0) + 1
        else:
            assert families.layer_name(found, layer, suffix) == name
            assert families.part_of(found, name) is None
    assert parts == {"embed": len(found.embed), "norm": len(found.norm), "head": 1}


@pytest.mark.parametrize(
    ("family", "name", "canonical"),
    [
        ("gpt2", "wte.weight", "transformer.wte.weight"),
        ("gpt2", "ln_f.bias", "transformer.ln_f.bias"),
        ("gpt2", "h.10.attn.c_attn.bias", "transformer.h.10.attn.c_attn.bias"),
        ("gpt2", "transformer.h.0.mlp.c_fc.bias", "transformer.h.0.mlp.c_fc.bias"),
        ("gpt2", "lm_head.weight", "lm_head.weight"),
        ("gpt2", "h.10.attn.bias", None),
        ("gpt2", "transformer.h.0.attn.masked_bias", None),
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", None),
        ("llama", "model.layers.0.self_attn.o_proj.bias", "model.layers.0.self_attn.o_proj.bias"),
        ("llama", "h.0.attn.bias", "h.0.attn.bias"),
        ("qwen3", "visual.patch_embed", "visual.patch_embed"),
    ],
)
def test_a_foreign_name_becomes_ours_and_a_buffer_is_left_behind(family: str, name: str, canonical: str | None) -> None:
    assert families.canonical_name(family, name) == canonical


# Configs that cannot be used, and those of SOLAR


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"model_type": "gpt9"}, "model_type"),
        ({"model_type": None}, "model_type"),
        ({"model_type": ["llama"]}, "model_type"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"model_type": "mistral", "num_key_value_heads": None}, "num_key_value_heads"),
        ({"model_type": "gpt2", "n_layer": 0}, "n_layer"),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, "decoder_sparse_step"),
        ({"model_type": "qwen3_moe", "mlp_only_layers": "0"}, "mlp_only_layers"),
        ({"model_type": "gpt2", "add_cross_attention": True}, "add_cross_attention"),
        ({"per_layer_config": {"0": {"intermediate_size": 8}}}, "per_layer_config"),
    ],
)
def test_an_unusable_config_is_refused_by_key(change: dict[str, Any], where: str) -> None:
    with pytest.raises(CheckpointError, match=where):
        families.expected_tensors({"model_type": "llama", **SIZES, **change})


def test_an_unknown_family_is_refused_with_those_that_are_known() -> None:
    for ask in (
        lambda: families.family_of({}),
        lambda: families.depth({"model_type": "gpt9"}),
        lambda: families.explicit_keys("gpt9"),
        lambda: families.canonical_name("gpt9", "wte.weight"),
        lambda: families.silenced({"model_type": "gpt9"}, 0, "mlp.down_proj.weight"),
    ):
        with pytest.raises(CheckpointError, match="unknown model family") as refused:
            ask()
        assert refused.value.details["expected"] == ", ".join(families.FAMILIES)
