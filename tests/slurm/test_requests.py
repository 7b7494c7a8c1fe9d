"""The README's table of what jobs ask for, held against what they do ask for."""

from __future__ import annotations

from typing import Any

from conftest import REPOSITORY
from strata.config import Shape
from strata.job import Job
from strata.recipe import TRAINING, Recipe
from strata.resources import across, request


def shape(layers: int, parameters: int, hidden: int, vocabulary: int) -> Shape:
    return Shape(
        family="llama", layers=layers, parameters=parameters, bytes=2 * parameters, dtype="bfloat16", hidden=hidden,
        vocabulary=vocabulary,
    )  # fmt: skip


MODELS = {
    "7B": shape(32, 7_241_732_096, 4_096, 32_000),
    "10.7B": shape(48, 10_731_524_096, 4_096, 32_000),
    "70B": shape(80, 70_553_706_496, 8_192, 128_256),
}
TRAINED: dict[str, Any] = {
    "length": 4_096, "batch": 16, "micro_batch": 1, "dtype": "bfloat16", "device": "cuda", "activation_checkpointing": True,
}  # fmt: skip
PARAMETERS: dict[str, dict[str, Any]] = {
    "init": {}, "merge": {}, "tokenize": {}, "encode": {"tasks": {"one": {}}},
    "analyze": {"dtype": "bfloat16", "device": "cuda"},
    "screen": {
        "dtype": "bfloat16", "device": "cuda", "depths": [48], "budget": {"plans": 500},
        "selection": {"documents": 64, "tokens": 1_024},
    },
    "race": {"dtype": "bfloat16", "device": "cuda"},
    "reference": {"dtype": "bfloat16", "device": "cuda", "length": 4_096},
    "pretrain": TRAINED | {"tokens": 1_000_000_000},
    "sft": TRAINED | {"epochs": 3},
    "dpo": TRAINED | {"epochs": 1},
    "evaluate": {"device": "cuda", "numerics": {"dtype": "bfloat16"}, "tasks": {"one": {}}},
    "gguf": {}, "quantize": {},
}  # fmt: skip


def job(operation: str, size: Shape) -> Job:
    """A job on GPUs; training on 8, and a 70B's on 16 of two nodes."""
    if operation in ("tokenize", "encode"):
        return Job(Recipe(operation, PARAMETERS[operation]))
    if operation not in TRAINING:
        return Job(Recipe(operation, PARAMETERS[operation]), size)
    large = size.parameters > 5e10
    return Job(Recipe(operation, PARAMETERS[operation]), size, processes=16 if large else 8, nodes=2 if large else 1)


def cell(operation: str, size: Shape) -> str:
    """Memory, time, disk and GPUs of a first attempt, as the README has them."""
    asked = request(job(operation, size))
    gpus = f", 2 nodes of {across(asked)['gres']}" if asked.nodes > 1 else f", {asked.gpu} GPU" if asked.gpu else ""
    time = f"{asked.runtime} min" if asked.runtime < 600 else f"{asked.runtime / 60:.0f} h"
    return f"{asked.mem_mb / 1000:.0f} GB, {time}, {asked.disk_mb / 1000:.0f} GB{gpus}"


def table() -> str:
    rows = [f"| `{name}` | " + " | ".join(cell(name, size) for size in MODELS.values()) + " |\n" for name in PARAMETERS]
    return f"| memory, time, disk | {' | '.join(MODELS)} |\n|---|{'---:|' * len(MODELS)}\n{''.join(rows)}"


def test_the_readme_says_what_each_stage_asks_for() -> None:
    assert table() in (REPOSITORY / "README.md").read_text(), f"the table in README.md must be:\n\n{table()}"
