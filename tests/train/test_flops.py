"""Operations of training on one token, against counts by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from models import SMALL
from strata import families
from strata.train.flops import operations, peak

LENGTH, WIDTH = 128, 32
# Sizes of models.py: hidden 32, inner 48, vocabulary 272; heads 4 x 8, of keys and values 2 x 8.
ATTENTION, MLP, HEAD = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48, 272 * 32
ATTENDED = 2 * LENGTH * WIDTH  # of a layer forward: two products of 2 operations, half of them masked


def config_of(family: str, **changes: Any) -> dict[str, Any]:
    return AutoConfig.for_model(family, **{**SMALL[family], **changes}).to_dict()


def every(config: dict[str, Any]) -> set[str]:
    return {name for name, _ in families.each_tensor(config)}


def of_layers(config: dict[str, Any], *layers: int) -> set[str]:
    return {name for name in every(config) if families.split_name(name)[0] in layers}


@pytest.mark.parametrize(
    ("family", "matrices"),
    [
        ("llama", 4 * (ATTENTION + MLP) + HEAD),
        ("gpt2", 4 * 12 * 32 * 32 + HEAD),  # tied: the embedding is the head, and counts once
        ("gemma2", 4 * (ATTENTION + MLP) + HEAD),  # likewise
        ("phi3", 4 * (ATTENTION + MLP) + HEAD),  # queries, keys and values in one matrix
    ],
)
def test_training_everything_takes_6_n_and_6_l_t_q(family: str, matrices: int) -> None:
    config = config_of(family)
    assert operations(config, every(config), LENGTH) == 6 * matrices + 6 * 4 * LENGTH * WIDTH


def test_of_experts_those_count_that_a_token_goes_through() -> None:
    config = config_of("mixtral")
    layer = ATTENTION + 3 * 32 + 2 * MLP  # the router over three experts, and two of them
    assert operations(config, every(config), LENGTH) == 6 * (4 * layer + HEAD) + 6 * 4 * LENGTH * WIDTH


def test_a_layer_of_experts_beside_one_without() -> None:
    """Of qwen3_moe's layers here every second has experts, of width 16; its heads are 8 wide as the others'."""
    config = config_of("qwen3_moe", head_dim=8)
    expert = 3 * 32 * 16
    matrices = 2 * (ATTENTION + MLP) + 2 * (ATTENTION + 3 * 32 + 2 * expert) + HEAD
    assert operations(config, every(config), LENGTH) == 6 * matrices + 6 * 4 * LENGTH * WIDTH


@pytest.mark.parametrize(
    ("layers", "flows"),
    [((2, 5), 4), ((5,), 1), ((0, 3), 6)],
)
def test_gradients_flow_from_the_lowest_layer_that_trains_upwards(layers: tuple[int, ...], flows: int) -> None:
    config = config_of("llama", num_hidden_layers=6)
    layer = ATTENTION + MLP
    expected = 2 * (6 * layer + HEAD) + 2 * (flows * layer + HEAD) + 2 * len(layers) * layer
    assert operations(config, of_layers(config, *layers), LENGTH) == expected + ATTENDED * (6 + 2 * flows)


def test_a_norm_that_trains_costs_no_product_but_lets_gradients_flow() -> None:
    config = config_of("llama")
    norm = {"model.layers.1.input_layernorm.weight"}
    layer = ATTENTION + MLP
    assert operations(config, norm, LENGTH) == 2 * (4 * layer + HEAD) + 2 * (3 * layer + HEAD) + ATTENDED * (4 + 2 * 3)


def test_nothing_that_trains_is_the_forward_pass_alone() -> None:
    config = config_of("llama")
    assert operations(config, set(), LENGTH) == 2 * (4 * (ATTENTION + MLP) + HEAD) + ATTENDED * 4


def test_an_embedding_is_looked_up_and_yet_gradients_flow_down_to_it() -> None:
    config = config_of("llama")
    matrices = 4 * (ATTENTION + MLP) + HEAD
    learnt = {"model.embed_tokens.weight"}
    assert operations(config, learnt, LENGTH) == 2 * 2 * matrices + 6 * 4 * LENGTH * WIDTH


@pytest.mark.parametrize(
    ("name", "rate"), [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Tesla T4", None)]
)
def test_the_peak_is_told_by_the_devices_name(monkeypatch: pytest.MonkeyPatch, name: str, rate: float | None) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak(SimpleNamespace(type="cuda")) == rate


def test_a_cpu_has_no_peak() -> None:
    assert peak(torch.device("cpu")) is None
