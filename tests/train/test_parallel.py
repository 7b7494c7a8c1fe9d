"""Several processes that train one model: the same result, one answer to a signal, snapshots that fit any number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import lessons
from conftest import REPOSITORY
from lessons import TOKENS, losses, weights
from strata import store
from strata.recipe import Recipe
from strata.train.operation import train
from strata.train.state import home

ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(REPOSITORY / "workflow"), "OMP_NUM_THREADS": "1", "STRATA_SNAPSHOT_SECONDS": "0",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return tmp_path / "results"


def start(root: Path, recipe: Recipe, processes: int, *launcher: str) -> subprocess.Popen[str]:
    command = [
        *(launcher or (sys.executable,)),
        "-m",
        "strata",
        "--root",
        str(root),
        recipe.operation,
        recipe.canonical,
    ]
    more = [] if launcher else ["--processes", str(processes)]
    return subprocess.Popen([*command, *more], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def run(root: Path, recipe: Recipe, processes: int, *launcher: str) -> tuple[int, str]:
    process = start(root, recipe, processes, *launcher)
    _, error = process.communicate(timeout=120)
    return process.returncode, error


def recipe_of(root: Path, **changes: Any) -> Recipe:
    base = lessons.base(root, dtype=torch.float32)
    settings = {"steps": 4, "micro_batch": 1, "sources": [lessons.text(root, base, "other")], **changes}
    return lessons.pretraining(base, lessons.text(root, base), **settings)


def alike(one: Any, other: Any) -> None:
    assert losses(one) == pytest.approx(losses(other), abs=2e-5)
    after = weights(other)
    for name, value in weights(one).items():
        assert torch.allclose(value, after[name], atol=1e-3), name


@pytest.mark.parametrize("train_", ["all", [1, 2]])
def test_two_processes_train_what_one_trains(root: Path, tmp_path: Path, train_: Any) -> None:
    heldout = {"heldout": {"source": 1, "tokens": 128}, "every": 2 * TOKENS, "train": train_}
    recipe = recipe_of(root, **heldout)
    code, error = run(root, recipe, 2)
    assert code == 0, error
    other = tmp_path / "one" / "results"
    alone = train(other, recipe_of(other, **heldout))
    together = store.require(root, recipe.id)
    alike(together, alone)
    if train_ != "all":
        before = weights(store.require(root, recipe.parents[0]))
        frozen = [name for name in before if ".1." not in name and ".2." not in name]
        assert all(torch.equal(before[name], weights(together)[name]) for name in frozen)


@pytest.mark.parametrize(
    ("family", "changes", "settings"),
    [
        ("llama", {"tie_word_embeddings": True}, {}),
        ("llama", {"dtype": torch.bfloat16}, {"train": [1, 2], "dtype": "bfloat16", "activation_checkpointing": True}),
        ("mixtral", {}, {}),
        ("gemma3_text", {"dtype": torch.bfloat16}, {}),
    ],
    ids=["one matrix for embedding and head", "frozen layers in bfloat16", "experts", "buffers that bfloat16 rounds"],
)
def test_every_kind_of_model_comes_to_all_ranks_as_it_is(
    root: Path, tmp_path: Path, family: str, changes: dict[str, Any], settings: dict[str, Any]
) -> None:
    """The first rank reads it and the others have it from there: what one of them lacked would show in the loss."""

    def recipe(root: Path) -> Recipe:
        base = lessons.base(root, family, **{"dtype": torch.float32, **changes})
        return lessons.pretraining(base, lessons.text(root, base), steps=3, micro_batch=1, stored="float32", **settings)

    asked, other = recipe(root), tmp_path / "one" / "results"
    code, error = run(root, asked, 2)
    assert code == 0, error
    together, alone = store.require(root, asked.id), train(other, recipe(other))
    assert losses(together) == pytest.approx(losses(alone), abs=2e-2 if "dtype" in settings else 2e-5)


def test_the_loss_to_get_back_to_is_the_same_for_two_ranks(root: Path, tmp_path: Path) -> None:
    def recipe(root: Path) -> Recipe:
        plain = recipe_of(root, heldout={"source": 1, "tokens": 128}, every=TOKENS)
        stop = {
            "stop": {"recovered": 2, "within": 0.0, "patience": 1}
        }  # the parent itself: at once, if the two measure alike
        return Recipe("pretrain", plain.parameters | stop, plain.parents, (*plain.sources, *plain.parents))

    asked, other = recipe(root), tmp_path / "one" / "results"
    code, error = run(root, asked, 2)
    assert code == 0, error
    together, alone = store.require(root, asked.id), train(other, recipe(other))
    goals = [lessons.curve(found)["reference"]["loss"] for found in (together, alone)]
    assert goals[0] == pytest.approx(goals[1], abs=1e-6)


def test_torchrun_may_start_them_too(root: Path) -> None:
    recipe = recipe_of(root)
    code, error = run(root, recipe, 2, sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2")
    assert code == 0, error
    assert store.find(root, recipe.id) is not None


def wait_for_snapshot(root: Path, id: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while not list((home(root, id) / "snapshots").glob("step-*/state.json")):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.02)


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in found]


def stopped(root: Path, recipe: Recipe, number: signal.Signals, rank: int | None) -> str:
    """Start two ranks, stop them by a signal to the launcher or to one of them, and return what they said."""
    process = start(root, recipe, 2)
    wait_for_snapshot(root, recipe.id, process)
    os.kill(process.pid if rank is None else ranks_of(process)[rank], number)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 75, error
    return error


def test_a_signal_to_one_rank_stops_all_and_two_go_on_bit_for_bit(root: Path, tmp_path: Path) -> None:
    recipe = recipe_of(root, steps=60)
    error = stopped(root, recipe, signal.SIGUSR2, 1)
    assert "it goes on from there" in error and "Traceback" not in error
    code, error = run(root, recipe, 2)
    assert code == 0, error
    other = tmp_path / "other" / "results"
    assert run(other, recipe_of(other, steps=60), 2)[0] == 0
    assert store.require(root, recipe.id).digest == store.require(other, recipe.id).digest


def test_a_signal_to_the_launcher_reaches_all_and_one_process_goes_on_from_the_snapshot_of_two(
    root: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(root, steps=60)
    stopped(root, recipe, signal.SIGTERM, None)
    state = json.loads(sorted((home(root, recipe.id) / "snapshots").glob("*/state.json"))[-1].read_text())["state"]
    assert 0 < state["step"] < 60
    done = train(root, recipe)
    other = tmp_path / "one" / "results"
    alike(done, train(other, recipe_of(other, steps=60)))


def test_ranks_whose_launcher_is_killed_leave_a_snapshot_and_end(root: Path) -> None:
    recipe = recipe_of(root, steps=4000)
    process = start(root, recipe, 2)
    wait_for_snapshot(root, recipe.id, process)
    process.kill()
    _, error = process.communicate(timeout=300)  # which ends when the last of them does
    assert "it goes on from there" in error
    assert store.find(root, recipe.id) is None


def test_a_rank_that_dies_takes_the_others_with_it(root: Path) -> None:
    recipe = recipe_of(root, steps=400)
    process = start(root, recipe, 2)
    wait_for_snapshot(root, recipe.id, process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    process.communicate(timeout=300)
    assert process.returncode not in (0, 75)
    assert store.find(root, recipe.id) is None


def test_an_error_is_said_once_and_keeps_its_exit_code(root: Path) -> None:
    code, error = run(root, recipe_of(root, batch=3, tokens=3 * 32), 2)
    assert code == 10, error
    assert "a multiple of 2 processes" in error and "Traceback" not in error
