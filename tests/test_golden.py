"""Stores of former versions: what they hold is read, verified and built on for as long as there is Strata."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lessons import losses
from strata import checkpoint, importance, inventory, store
from strata.llamacpp.convert import convert
from strata.merge import merge
from strata.recipe import KINDS, VERSIONS
from strata.screen.operation import screen
from strata.screen.race import race
from strata.screen.tried import read_ranking
from strata.tokens import tokenize
from strata.train.operation import train

GOLDEN = sorted((Path(__file__).parent / "golden").glob("store-*.tar.gz"))


def held(file: Path) -> set[str]:
    """The operations that an archive has results of."""
    with tarfile.open(file) as archive:
        return {name.split("/")[1].split("-")[0] for name in archive.getnames() if "/" in name}


def holding(*operations: str) -> Any:
    """A test for each archive and each of these operations that it has a result of."""
    pairs = [(file, operation) for file in GOLDEN for operation in operations if operation in held(file)]
    ids = [f"{file.name.split('.')[0]}-{operation}" for file, operation in pairs]
    return pytest.mark.parametrize(("golden", "operation"), pairs, indirect=["golden"], ids=ids)


@pytest.fixture(params=GOLDEN, ids=lambda file: file.name.split(".")[0])
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path / "store", filter="data")
    return tmp_path / "store"


def test_they_hold_every_kind_of_object() -> None:
    assert set().union(*map(held, GOLDEN)) == set(KINDS)


def test_every_object_verifies(golden: Path) -> None:
    said = {id: (word, error) for id, word, error in inventory.verify(golden, list(store.objects(golden)))}
    assert set(said.values()) == {("ok", None)}


def test_an_object_is_a_hit_for_its_recipe(golden: Path) -> None:
    for id in store.objects(golden):
        found = store.require(golden, id)
        assert found.recipe.id == id
        assert store.publish(golden, found.recipe, lambda _: pytest.fail("built again")).digest == found.digest


def put_aside(golden: Path, operation: str) -> store.Object:
    """The object of an operation, moved away so that it can be made again as far as its recipe is of today's version."""
    (id,) = [id for id in store.objects(golden) if id.startswith(f"{operation}-")][:1]
    old = store.require(golden, id)
    if old.recipe.version != VERSIONS[operation]:
        pytest.skip(f"{operation} is done in another way today, and has other ids")
    store.reject(golden, id, "to be built again")
    return old


@holding("merge", "tokenize", "gguf")
def test_what_rests_on_no_machine_is_made_again_to_the_byte(golden: Path, operation: str) -> None:
    old = put_aside(golden, operation)
    made = {"merge": merge, "tokenize": tokenize, "gguf": convert}[operation](golden, old.recipe)
    assert (made.id, made.digest) == (old.id, old.digest)
    assert made.manifest["files"] == old.manifest["files"]
    if operation == "merge":
        checkpoint.verify(made, {})


@holding("pretrain", "sft", "dpo")
def test_training_goes_as_it_went(golden: Path, operation: str) -> None:
    """From the same parent, tokens and references: the losses are those of then, as far as machines agree."""
    old = put_aside(golden, operation)
    (curve,) = (golden / "quarantine").glob(f"{old.id}.*/curve.json")
    then = [point["loss"] for point in json.loads(curve.read_text())["steps"]]
    assert losses(train(golden, old.recipe)) == pytest.approx(then, rel=1e-3)


@holding("screen", "race")
def test_plans_lose_what_they_lost(golden: Path, operation: str) -> None:
    old = put_aside(golden, operation)
    (file,) = (golden / "quarantine").glob(f"{old.id}.*/plans.json")
    then = json.loads(file.read_text())["plans"]
    now = [
        plan.to_json() for plan in read_ranking({"screen": screen, "race": race}[operation](golden, old.recipe)).plans
    ]
    assert [plan["merge"] for plan in now] == [plan["merge"] for plan in then]
    assert [sum(plan["selection"]) for plan in now] == pytest.approx([sum(p["selection"]) for p in then], rel=1e-4)


@holding("analyze")
def test_an_analysis_is_read(golden: Path, operation: str) -> None:
    (id,) = [id for id in store.objects(golden) if id.startswith(operation)]
    assert len(importance.read_importance(store.require(golden, id)).block_influence) == 4
