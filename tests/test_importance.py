"""The least important layers are those of the lowest measure; of equals the higher go."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import REPOSITORY
from strata.errors import ConfigError, StoreError
from strata.importance import Importance, least_important, read_importance
from strata.store import Object

MEASURED: dict[str, Any] = {
    "block_influence": [0.5, 0.1, 0.3, 0.1, 0.2],
    "angular_distance": [[0.5, 0.6, 0.7, 0.9, 1], [0.1, 0.3, 0.4, 0.6], [0.3, 0.3, 0.4], [0.1, 0.4], [0.2]],
    "tokens": 40,
    "documents": 2,
}


def importance(influence: list[float], angular: list[list[float]] | None = None) -> Importance:
    return Importance(tuple(influence), tuple(map(tuple, angular or [])), 1, 1)


def stored(folder: Path, value: Any, layers: int = 5) -> Object:
    (folder / "importance.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return Object("analyze-0", folder, {"facts": {"layers": layers}})


def test_an_analysis_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = read_importance(stored(tmp_path, MEASURED))
    assert found.block_influence == (0.5, 0.1, 0.3, 0.1, 0.2)
    assert found.angular_distance[1:] == ((0.1, 0.3, 0.4, 0.6), (0.3, 0.3, 0.4), (0.1, 0.4), (0.2,))
    assert (found.tokens, found.documents) == (40, 2)
    assert found.layers == 5


@pytest.mark.parametrize(("count", "expected"), [(1, (3,)), (2, (1, 3)), (3, (1, 3, 4)), (4, (1, 2, 3, 4))])
def test_layers_of_the_lowest_influence_go_first(tmp_path: Path, count: int, expected: tuple[int, ...]) -> None:
    assert least_important(read_importance(stored(tmp_path, MEASURED)), count, "block_influence") == expected


@pytest.mark.parametrize(("count", "expected"), [(1, (3,)), (2, (2, 3)), (3, (2, 3, 4)), (4, (1, 2, 3, 4))])
def test_the_block_of_the_smallest_turn_goes_first(tmp_path: Path, count: int, expected: tuple[int, ...]) -> None:
    """Of two layers 1 and 2 turn as little as 2 and 3; of three 1 to 3 as little as 2 to 4: the higher block goes."""
    assert least_important(read_importance(stored(tmp_path, MEASURED)), count, "angular_distance") == expected


def test_a_lower_block_goes_when_it_turns_less() -> None:
    found = importance([1, 1, 1], [[0.3, 0.1, 0.5], [0.2, 0.4], [0.4]])
    assert least_important(found, 2, "angular_distance") == (0, 1)
    assert least_important(found, 1, "angular_distance") == (1,)


@pytest.mark.parametrize("by", ["block_influence", "angular_distance"])
@pytest.mark.parametrize("layers", [2, 7])
def test_among_equals_the_highest_layers_go(layers: int, by: str) -> None:
    found = importance([0.0] * layers, [[0.0] * (layers - layer) for layer in range(layers)])
    for count in range(1, layers):
        assert least_important(found, count, by) == tuple(range(layers - count, layers))


@pytest.mark.parametrize("by", ["block_influence", "angular_distance"])
@pytest.mark.parametrize("count", [-1, 0, 5, 6])
def test_a_count_that_leaves_no_layer_or_takes_none_is_refused(tmp_path: Path, count: int, by: str) -> None:
    with pytest.raises(ConfigError, match="out of range") as caught:
        least_important(read_importance(stored(tmp_path, MEASURED)), count, by)
    assert "1 to 4: the parent has 5 layers" in str(caught.value)
    assert f"got:      {count}" in str(caught.value)


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown measure"):
        least_important(importance([0.1, 0.2]), 1, "magic")


@pytest.mark.parametrize(
    "damage",
    [
        {"block_influence": [0.5, 0.1, 0.3, 0.1]},
        {"block_influence": [0.5, 0.1, 0.3, 0.1, 0.2, 0.2]},
        {"block_influence": [0.5, 0.1, 0.3, 0.1, "0.2"]},
        {"block_influence": [0.5, 0.1, 0.3, 0.1, None]},
        {"block_influence": [0.5, 0.1, 0.3, 0.1, True]},
        {"block_influence": [0.5, 0.1, 0.3, 0.1, float("nan")]},
        {"block_influence": 5},
        {"angular_distance": MEASURED["angular_distance"][:4]},
        {"angular_distance": [*MEASURED["angular_distance"][:4], [0.2, 0.2]]},
        {"angular_distance": [1, 2, 3, 4, 5]},
        {"angular_distance": None},
    ],
)
def test_a_file_without_a_number_for_each_layer_is_damaged(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=r"analyze-0 is damaged: importance.json") as caught:
        read_importance(stored(tmp_path, MEASURED | damage))
    assert "5 layers" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", '{"block_influence": [1, 2, 3, 4, 1e999]}'])
def test_a_file_that_is_something_else_is_damaged(tmp_path: Path, text: str) -> None:
    with pytest.raises(StoreError, match="damaged"):
        read_importance(stored(tmp_path, text))


def test_choosing_layers_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, strata.importance; print([m for m in ('torch', 'numpy', 'transformers') if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow")}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
