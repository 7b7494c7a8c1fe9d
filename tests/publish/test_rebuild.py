"""A plan as a mergekit file: read back and built, it gives the same tensors; what no file can say is said in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import store_model
from models import save_model
from strata import merge, plan
from strata.methods import make_plan
from strata.plan import Layer, Plan, copy
from strata.publish.rebuild import composed, renumbered, to_mergekit
from strata.recipe import Recipe
from strata.standalone import merge_file
from strata.store import Object
from strata.tensors import read_header

TWO = {"embed_from": 0, "norm_from": 0, "head_from": 0}
FILES: dict[str, dict[str, Any]] = {
    "dus": {"method": "dus", "drop": 1},
    "asymmetric": {"method": "dus", "drop": [1, 2]},
    "interlocked": {"method": "interlocked", "drop": 1, "group": 1},
    "repeat": {"method": "repeat", "blocks": [[1, 3]], "times": 3},
    "slices of two": {"method": "slices", "slices": [[0, 0, 3], [1, 2, 4]], "embed_from": 0, "norm_from": 1, "head_from": 1},
    "expansion": {"method": "block_expansion", "groups": 2, "copies": 1, "position": "even"},
    "prune": {"method": "prune", "range": [1, 3]},
    "linear": {"method": "linear", "weights": [0.25, 0.75]},
    "slerp": {"method": "slerp", "weights": [0.7, 0.3]},
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Object]]:
    """A store with two base models of one shape."""
    folder = tmp_path_factory.mktemp("bases")
    models = [save_model(folder / name, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    return folder / "results", [store_model(folder / "results", model) for model in models]


def tensors(folder: Path) -> dict[str, bytes]:
    """The tensors of bfloat16 in a folder; a zero has no sign here, as scaling by 0 leaves one."""
    found = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        found |= {tensor.name: data[tensor.begin : tensor.end] for tensor in read_header(file).tensors}
    words = {name: np.frombuffer(data, "<u2") for name, data in found.items()}
    return {name: np.where(word == 0x8000, 0, word).tobytes() for name, word in words.items()}


def rebuilt(root: Path, made: Plan, parents: list[Object], out: Path) -> dict[str, bytes]:
    """The tensors of what the mergekit file of a plan makes."""
    facts = parents[0].facts
    file = to_mergekit(
        made, [str(p.path) for p in parents], [p.facts["layers"] for p in parents], "llama", facts["dtype"]
    )
    assert isinstance(file, dict), file
    out.mkdir(parents=True)
    (out / "merge.yaml").write_text(yaml.safe_dump(file))
    merge_file(out / "merge.yaml", out / "model", root, [])
    return tensors(out / "model")


@pytest.mark.parametrize("method", FILES)
def test_the_file_of_each_method_makes_what_the_method_makes(
    bases: tuple[Path, list[Object]], method: str, tmp_path: Path
) -> None:
    root, models = bases
    parameters = FILES[method]
    is_two = method in ("slices of two", "linear", "slerp")
    parents = models if is_two else models[:1]
    stored = merge.merge(root, Recipe("merge", parameters, tuple(parent.id for parent in parents)))
    made = Plan.from_json(stored.facts["plan"])
    assert rebuilt(root, made, parents, tmp_path / "out") == tensors(stored.path)


def test_a_chain_of_merges_is_one_file(bases: tuple[Path, list[Object]], tmp_path: Path) -> None:
    root, models = bases
    first = merge.merge(root, Recipe("merge", FILES["dus"], (models[0].id,)))
    second = merge.merge(root, Recipe("merge", {"method": "repeat", "blocks": [[2, 4]], "times": 2}, (first.id,)))
    plans = [Plan.from_json(made.facts["plan"]) for made in (first, second)]
    made = composed(plans[1], [plans[0]])
    assert made and rebuilt(root, made, models[:1], tmp_path / "out") == tensors(second.path)


def test_a_chain_over_an_average_is_one_file_as_far_as_it_copies_it() -> None:
    mixed = make_plan({"method": "linear", "weights": [0.5, 0.5]}, [2, 2])
    chained = composed(plan.copies([0, 1, 1]), [mixed])
    assert chained and chained.layers[2] == mixed.layers[1]
    assert composed(make_plan({"method": "linear", "weights": [0.5, 0.5]}, [2, 2]), [mixed, mixed]) is None


def test_an_inserted_layer_is_still_one_after_another_merge() -> None:
    expanded = make_plan({"method": "block_expansion", "groups": 2, "copies": 1, "position": "even"}, [4])
    assert composed(plan.identity(6), [expanded]) == expanded


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (Plan((copy(0, 0), Layer(((0, 0), (0, 1)), "slerp", (0.5, 0.5)), copy(0, 1))), "some are interpolated"),
        (Plan((copy(0, 0), copy(1, 1)), copy(1, -1)), "takes the embedding as it takes the first layers"),
        (Plan((copy(0, 0), copy(1, 1))), "takes the embedding as it takes the first layers"),
        (Plan((copy(0, 0), Layer(((0, 1),), "linear", (1.0,), (("o_proj", (0.0,)),)), copy(0, 1))), "weights of their own"),
        (
            Plan((copy(0, 0), Layer(((0, 1),), "zero"), Layer(((0, 0), (0, 1)), "linear", (0.5, 0.5)), copy(0, 1))),
            "both inserted and averaged",
        ),
        (make_plan({"method": "slerp", "weights": [0.2, 0.3, 0.5]}, [2, 2, 2]), "two models, not more"),
    ],
)  # fmt: skip
def test_what_no_mergekit_file_can_say_is_said(made: Plan, why: str) -> None:
    told = to_mergekit(made, ["a", "b", "c"], [2, 2, 2], "llama", "bfloat16")
    assert isinstance(told, str) and why in told


@pytest.mark.parametrize("family", ["gemma2", "mixtral", "qwen3_moe"])
def test_a_layer_that_a_scale_cannot_silence_is_no_file(family: str) -> None:
    expanded = make_plan({"method": "block_expansion", "groups": 2, "copies": 1, "position": "even"}, [4])
    assert "adds nothing" in str(to_mergekit(expanded, ["a"], [4], family, "bfloat16"))


def test_parents_take_other_numbers() -> None:
    made = renumbered(Plan((copy(0, 3), Layer(((1, 2), (0, 1)), "linear", (0.5, 0.5)))), {0: 1, 1: 0})
    assert made.layers == (copy(1, 3), Layer(((0, 2), (1, 1)), "linear", (0.5, 0.5))) and made.embed_from == copy(1, -1)
