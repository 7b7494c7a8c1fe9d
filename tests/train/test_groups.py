"""What trains and how fast: read from the plan, told in tensor names, for every family."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import SIZES, SMALL, build
from strata import families, methods, plan
from strata.errors import ConfigError
from strata.plan import Plan
from strata.train.groups import decays, trainable

EXPANDED = methods.block_expansion(4, 2, 1, "even")  # 0 1 1' 2 3 3': new 2 and 5, seams 1|2, 2|3 and 4|5
SCALED = methods.dus(4, 1, 1)  # 0 1 2 1 2 3: the seam is 2|3
OUTSIDE = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
NORMS = {"input_layernorm.weight", "post_attention_layernorm.weight"}


def config(made: Plan, family: str = "llama", **changes: Any) -> dict[str, Any]:
    """A config as transformers writes it, with as many layers as the plan."""
    from transformers import AutoConfig

    depth = {families.FAMILIES[family].depth: len(made.layers)}
    sizes = {key: value for key, value in SMALL[family].items() if key != "layer_types"}
    return AutoConfig.for_model(family, **{**sizes, **changes, **depth}).to_dict() | {"model_type": family}


def rates(made: Plan, train: Any, family: str = "llama", **multipliers: float) -> dict[str, float]:
    return trainable(made, config(made, family), train, multipliers)


def layers_of(names: Any) -> set[int | None]:
    return {families.split_name(name)[0] for name in names}


def of_layers(made: Plan, layers: set[int]) -> set[str]:
    """Every tensor of these layers."""
    return {name for name in families.expected_tensors(config(made)) if families.split_name(name)[0] in layers}


def test_all_is_every_tensor_at_the_same_rate() -> None:
    assert rates(SCALED, "all") == dict.fromkeys(families.expected_tensors(config(SCALED)), 1.0)


def test_new_is_the_inserted_layers_whole_and_nothing_else() -> None:
    assert rates(EXPANDED, "new").keys() == of_layers(EXPANDED, {2, 5})


def test_seams_are_the_layers_on_both_sides_of_each() -> None:
    assert rates(SCALED, "seams").keys() == of_layers(SCALED, {2, 3})
    assert rates(EXPANDED, "seams").keys() == of_layers(EXPANDED, {1, 2, 3, 4, 5})


def test_new_and_norms_are_the_new_layers_and_the_norms_of_all() -> None:
    found = rates(EXPANDED, "new+norms").keys()
    others = {f"model.layers.{layer}.{norm}" for layer in (0, 1, 3, 4) for norm in NORMS}
    assert found == of_layers(EXPANDED, {2, 5}) | others | {"model.norm.weight"}


def test_a_list_is_those_layers() -> None:
    assert rates(SCALED, [0, 5]).keys() == of_layers(SCALED, {0, 5})


def test_multipliers_are_of_classes_and_a_new_layer_is_no_seam() -> None:
    found = rates(EXPANDED, "all", new=1.0, seams=0.5, rest=0.25)
    by_layer = {layer: {found[name] for name in found if families.split_name(name)[0] == layer} for layer in range(6)}
    assert by_layer == {0: {0.25}, 1: {0.5}, 2: {1.0}, 3: {0.5}, 4: {0.5}, 5: {1.0}}
    assert {found[name] for name in OUTSIDE} == {0.25}


def test_a_multiplier_of_zero_freezes() -> None:
    found = rates(SCALED, "all", rest=0)
    assert layers_of(found) == {2, 3}
    assert set(found.values()) == {1.0}


def test_a_tied_head_is_not_a_tensor_of_its_own() -> None:
    tied = trainable(SCALED, config(SCALED, tie_word_embeddings=True), "all", {})
    assert "lm_head.weight" not in tied and "model.embed_tokens.weight" in tied


@pytest.mark.parametrize(
    ("made", "train", "multipliers", "said"),
    [
        (SCALED, "new", {}, "nothing would train.*0 of them new"),
        (SCALED, "new+norms", {}, "nothing would train.*0 of them new"),
        (plan.identity(4), "seams", {}, "nothing would train.*0 seams"),
        (SCALED, [], {}, "nothing would train"),
        (SCALED, "seams", {"seams": 0}, "nothing would train"),
        (SCALED, [0, 6], {}, "out of range.*0 to 5.*6"),
        (SCALED, [-1], {}, "out of range.*0 to 5.*-1"),
        (SCALED, "all", {"new": 2.0}, "class `new`.*0 of them new"),
        (plan.identity(4), "all", {"seams": 2.0}, "class `seams`.*0 seams"),
        (EXPANDED, "new", {"rest": 0.1}, "class `rest`.*expected: +new"),
    ],
)
def test_what_would_train_nothing_is_refused(made: Plan, train: Any, multipliers: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rates(made, train, **multipliers)
    assert re.search(said, str(caught.value), re.DOTALL)


@given(st.data())
def test_every_plan_has_each_tensor_in_one_class(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    made = data.draw(
        st.sampled_from([methods.dus(n, 1, 1), methods.block_expansion(n, 1, 1, "even"), plan.identity(n)])
    )
    model = {**SIZES, "model_type": "llama", "num_hidden_layers": len(made.layers)}
    every = trainable(made, model, "all", {})
    assert every.keys() == families.expected_tensors(model).keys()
    for train in ("new", "seams", "new+norms"):
        try:
            assert trainable(made, model, train, {}).keys() <= every.keys()
        except ConfigError:
            assert not (plan.seams(made) if train == "seams" else plan.inserted(made))


@pytest.mark.parametrize("family", SMALL)
def test_norms_are_the_tensors_of_modules_that_are_called_norms(family: str) -> None:
    model = build(family)
    norms = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if "Norm" in type(module).__name__
        for parameter, _ in module.named_parameters()
    }
    tensors = families.expected_tensors(model.config.to_dict())
    assert {name for name in tensors if families.is_norm(name)} == norms
    assert all(len(tensors[name]) == 1 for name in norms)


@pytest.mark.parametrize("family", SMALL)
def test_weight_decay_is_on_the_linear_maps_of_the_layers(family: str) -> None:
    tensors = families.expected_tensors(config(plan.identity(4), family, tie_word_embeddings=False))
    found = {name for name, shape in tensors.items() if decays(name, shape, families.FAMILIES[family])}
    assert found == {
        name for name, shape in tensors.items() if len(shape) > 1 and families.split_name(name)[0] is not None
    }
    assert not found & {name for name in tensors if families.is_norm(name) or name.endswith("bias")}
    left = {name for name in tensors.keys() - found if len(tensors[name]) > 1}
    gpt2 = {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"}
    assert left == (gpt2 if family == "gpt2" else {"model.embed_tokens.weight", "lm_head.weight"})
