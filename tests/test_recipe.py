"""Ids follow from what an artefact is made of, and from nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from strata import recipe
from strata.errors import UsageError
from strata.recipe import Recipe, canonical


def test_an_id_is_the_operation_and_128_bits_of_the_canonical_json() -> None:
    made = Recipe("merge", {"method": "dus", "drop": 6}, ("init-" + "0" * 32,))
    assert made.canonical == (
        '{"operation":"merge","parameters":{"drop":6,"method":"dus"},"parents":["init-00000000000000000000000000000000"],'
        '"sources":[],"version":1}'
    )
    assert made.id == "merge-" + recipe.digest(made.canonical)[:32]


def test_key_order_does_not_matter_but_values_do() -> None:
    one, same = Recipe("merge", {"drop": 1, "method": "dus"}), Recipe("merge", {"method": "dus", "drop": 1})
    other = Recipe("merge", {"method": "dus", "drop": 2})
    assert one.id == same.id != other.id


def test_the_hash_seed_of_the_process_does_not_matter() -> None:
    code = "from strata.recipe import Recipe; print(Recipe('merge', {'b': 1, 'a': {'d': 2, 'c': 3}}).id)"
    ids = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in "012"
    }  # fmt: skip
    assert len(ids) == 1


def test_nan_is_no_parameter() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"a": float("nan")})


def test_json_round_trip() -> None:
    made = Recipe("fetch", {"path": "é"}, (), ("fetch-" + "0" * 32,))
    assert Recipe.from_json(made.canonical) == made


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"operation":"merge"}',
        '{"operation":"x","version":1,"parameters":{},"parents":[],"sources":[]}',
    ],
)
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a recipe"):
        Recipe.from_json(text)
