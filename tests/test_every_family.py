"""Every surgery method on every family: the result is what a loose script would make, tensor by tensor, and it runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from conftest import store_model
from models import SMALL, save_model, within_rounding
from strata import checkpoint, families, merge, store
from strata.config import Family
from strata.plan import Plan
from strata.recipe import Recipe
from strata.store import Built

A, B = 0, 1
Tensors = dict[str, torch.Tensor]
# (transform, weights, [(parent, layer)]) of each output layer, written out by hand for parents of four layers.
COPY = {name: ("copy", (1.0,), [name]) for name in [(p, n) for p in (A, B) for n in range(4)]}


def copied(*layers: int, parent: int = A) -> list[Any]:
    return [COPY[parent, layer] for layer in layers]


ZERO_1, ZERO_3 = (("zero", (1.0,), [(A, layer)]) for layer in (1, 3))
OUTSIDE = {"embed_from": A, "norm_from": B, "head_from": B}
MIXED = [["copy", [1.0], [[0, 2]]], ["zero", [1.0], [[0, 1]]], ["linear", [0.25, 0.75], [[0, 0], [0, 2]]],
         ["slerp", [0.7, 0.3], [[0, 1], [0, 3]]]]  # fmt: skip
CASES: dict[str, tuple[dict[str, Any], int, list[Any]]] = {  # name: (parameters, number of parents, layers)
    "dus": ({"method": "dus", "drop": 1}, 1, copied(0, 1, 2, 1, 2, 3)),
    "dus-asymmetric": ({"method": "dus", "drop": [1, 2]}, 1, copied(0, 1, 2, 2, 3)),
    "interlocked": ({"method": "interlocked", "drop": 1, "group": 1}, 1, copied(0, 1, 1, 2, 2, 3)),
    "repeat": ({"method": "repeat", "blocks": [[0, 1], [2, 3]], "times": 3}, 1, copied(0, 0, 0, 1, 2, 2, 2, 3)),
    "slices": (
        {"method": "slices", "slices": [[A, 0, 2], [B, 1, 4]], **OUTSIDE}, 2, copied(0, 1) + copied(1, 2, 3, parent=B),
    ),
    "layers": (
        {"method": "layers", "layers": MIXED, **dict.fromkeys(OUTSIDE, A)}, 1,
        [*copied(2), ZERO_1, ("linear", (0.25, 0.75), [(A, 0), (A, 2)]), ("slerp", (0.7, 0.3), [(A, 1), (A, 3)])],
    ),
    "block_expansion": (
        {"method": "block_expansion", "groups": 2, "copies": 1, "position": "even"}, 1,
        [*copied(0, 1), ZERO_1, *copied(2, 3), ZERO_3],
    ),
    "prune-keep": ({"method": "prune", "keep": [1, 2]}, 1, copied(0, 2, 3)),
    "prune-range": ({"method": "prune", "range": [1, 3]}, 1, copied(0, 3)),
    "prune-least": ({"method": "prune", "least": 2, "by": "block_influence"}, 1, copied(1, 2)),
    "compose": (
        {"method": "compose", "first": 1, "last": 2}, 2, copied(0, 2, 3) + copied(0, 2, 3, parent=B),
    ),
    "linear": ({"method": "linear", "weights": [0.6, 0.4]}, 2, [("linear", (0.6, 0.4), [(A, n), (B, n)]) for n in range(4)]),
    "slerp": ({"method": "slerp", "weights": [0.6, 0.4]}, 2, [("slerp", (0.6, 0.4), [(A, n), (B, n)]) for n in range(4)]),
}  # fmt: skip
# What makes an inserted layer add nothing: parts of names, and the value. Written a second time, by hand.
SILENT = {
    "gemma2": (r"post_(attention|feedforward)_layernorm", -1.0),
    "gemma3_text": (r"post_(attention|feedforward)_layernorm", -1.0),
    "olmo2": (r"post_(attention|feedforward)_layernorm", 0.0),
    "gpt2": (r"c_proj", 0.0),
    "mixtral": (r"o_proj|\.w2\.", 0.0),
}


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("surgery") / "results"


@pytest.fixture(scope="session", params=list(SMALL))
def parents(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Two checkpoints of one family and shape with different weights."""
    made = []
    for seed in (7, 8):
        # Layers 0 and 2 are of one kind, and so are 1 and 3, so that they can be mixed.
        kinds = {"layer_types": ["full_attention", "sliding_attention"] * 2} if "qwen" in request.param[:5] else {}
        kinds = {} if request.param == "qwen3_moe" else kinds
        folder = save_model(tmp_path_factory.mktemp("model") / "m", request.param, seed=seed, **kinds)
        made.append(store_model(root, folder))
    return made[A], made[B]


def load(folder: Path) -> Tensors:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def build(root: Path, parents: tuple[Any, Any], case: str, **extra: Any) -> Any:
    parameters, count, _ = CASES[case]
    sources: tuple[str, ...] = ()
    if "least" in parameters:  # an analysis by which layers 0 and 3 matter least
        recipe = Recipe("analyze", {"made": "by hand"}, (parents[A].id,), ())
        numbers = {"block_influence": [0.1, 0.4, 0.3, 0.2], "angular_distance": [[0.1] * (4 - n) for n in range(4)]}

        def write(folder: Path) -> Built:
            (folder / "importance.json").write_text(json.dumps({**numbers, "tokens": 9, "documents": 1}))
            return Built(facts={"layers": 4, "checkpoint_digest": parents[A].digest})

        sources = (store.publish(root, recipe, write).id,)
    recipe = Recipe("merge", parameters | extra, tuple(parent.id for parent in parents[:count]), sources)
    return merge.merge(root, recipe)


def reference(family: str, bases: list[Tensors], layers: list[Any], case: str) -> tuple[Tensors, set[str]]:
    """Every tensor of the result, mixes in float64, and the names of those."""
    prefix = r"(transformer\.h|model\.layers)"
    made: Tensors = {}
    mixed: set[str] = set()
    for number, (transform, weights, sources) in enumerate(layers):
        (first, layer), *_ = sources
        for name in bases[first]:
            if not re.match(rf"{prefix}\.{layer}\.", name):
                continue
            given = [bases[p][re.sub(rf"^{prefix}\.{layer}\.", rf"\g<1>.{n}.", name)] for p, n in sources]
            target = re.sub(rf"^{prefix}\.{layer}\.", rf"\g<1>.{number}.", name)
            made[target] = mix(family, transform, weights, name, given)
            mixed |= {target} & ({target} if transform in ("linear", "slerp") else set())
    for name in (name for name in bases[A] if not re.match(prefix, name)):
        part = "embed" if re.search("embed|wte|wpe", name) else "rest"
        if case in ("linear", "slerp"):
            made[name] = mix(family, case, layers[0][1], name, [base[name] for base in bases])
            mixed.add(name)
        else:
            made[name] = bases[B if case == "slices" and part == "rest" else A][name]
    return made, mixed


def mix(family: str, transform: str, weights: tuple[float, ...], name: str, given: list[torch.Tensor]) -> torch.Tensor:
    if transform == "zero":
        pattern, value = SILENT.get(family, (r"o_proj|down_proj", 0.0))
        return torch.full_like(given[0], value) if re.search(pattern, name) else given[0]
    if transform == "copy":
        return given[0]
    exact = [tensor.double() for tensor in given]
    if transform == "slerp":
        left, right = exact
        cosine = float((left * right).sum() / left.norm() / right.norm())
        if abs(cosine) <= 0.9995:
            angle = torch.tensor(cosine, dtype=torch.float64).acos()
            return (torch.sin(weights[0] * angle) * left + torch.sin(weights[1] * angle) * right) / torch.sin(angle)
    return weights[0] * exact[0] + weights[1] * exact[1]


@pytest.mark.parametrize("case", CASES)
def test_the_result_is_the_reference_tensor_by_tensor_and_runs(root: Path, parents: tuple[Any, Any], case: str) -> None:
    _, count, layers = CASES[case]
    made = build(root, parents, case)
    family = json.loads((made.path / "config.json").read_text())["model_type"]
    ours, (expected, mixed) = load(made.path), reference(family, [load(p.path) for p in parents[:count]], layers, case)
    assert ours.keys() == expected.keys()
    for name, tensor in expected.items():
        assert within_rounding(ours[name], tensor) if name in mixed else torch.equal(ours[name], tensor), name
    checkpoint.verify(made)  # digests, taken over or computed, are those of the bytes
    assert [layer.to_json()[2] for layer in Plan.from_json(made.facts["plan"]).layers] == [
        [list(source) for source in sources] for _, _, sources in layers
    ]
    assert made.facts["inserted"] == [n for n, (transform, *_) in enumerate(layers) if transform == "zero"]
    model = AutoModelForCausalLM.from_pretrained(made.path)
    assert type(model).__name__ == families.CLASSES[family]
    assert model.config.num_hidden_layers == len(layers)
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 2, 3, 4, 5, 6, 7]])).logits).all()


def test_an_identity_plan_is_its_parent_and_writes_what_it_writes(root: Path, parents: tuple[Any, Any]) -> None:
    entries = [["copy", [1.0], [[0, layer]]] for layer in range(4)]
    parameters = {"method": "layers", "layers": entries, **dict.fromkeys(OUTSIDE, A)}
    same = merge.merge(root, Recipe("merge", parameters, (parents[A].id,)))
    texts = [
        AutoModelForCausalLM.from_pretrained(found.path).generate(torch.tensor([[1, 2, 3]]), do_sample=False, max_new_tokens=12)
        for found in (parents[A], same)
    ]  # fmt: skip
    assert torch.equal(*texts)
    assert load(same.path).keys() == load(parents[A].path).keys()


@pytest.mark.parametrize("position", ["even", "middle", "top"])
def test_block_expansion_keeps_the_logits_exactly(
    root: Path, position: str, tmp_path: Path, parents: tuple[Any, Any]
) -> None:
    family = json.loads((parents[A].path / "config.json").read_text())["model_type"]
    base = store_model(root, save_model(tmp_path / "m", family, dtype=torch.float32))
    parameters = {"method": "block_expansion", "groups": 1, "copies": 2, "position": position}
    grown = merge.merge(root, Recipe("merge", parameters, (base.id,)))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])  # longer than the sliding window of those that have one
    with torch.no_grad():
        before, after = (AutoModelForCausalLM.from_pretrained(found.path)(ids).logits for found in (base, grown))
    assert len(grown.facts["inserted"]) == 2
    assert torch.equal(before, after)


def test_another_dtype_is_rounded_once_and_says_how_much(root: Path, parents: tuple[Any, Any]) -> None:
    made = build(root, parents, "dus", dtype="float16")
    ours, base = load(made.path), load(parents[A].path)
    embedding = next(name for name in ours if re.search("embed|wte", name))
    assert ours[embedding].dtype == torch.float16
    assert torch.equal(ours[embedding], base[embedding].to(torch.float16))
    assert 0 <= made.facts["rounding"] < 1
    assert json.loads((made.path / "config.json").read_text())["dtype"] == "float16"
    checkpoint.verify(made)


def test_the_config_knows_the_families_that_there_are() -> None:
    assert set(Family.__args__) == set(families.FAMILIES)
