"""B58: kill -9 at any moment of an init or a merge. What is visible is whole, and the same command again finishes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attacks import made

from conftest import REPOSITORY, store_model
from strata import checkpoint, store
from strata.recipe import Recipe

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow")}


def start(root: Path, recipe: Recipe) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "strata", "--root", str(root), recipe.operation, recipe.canonical]
    return subprocess.Popen(command, env=ENVIRONMENT)


def wait_for_work(root: Path, job: subprocess.Popen[bytes]) -> None:
    """Until the job holds its lease, behind half a second of imports, or has ended."""
    while job.poll() is None and not list((root / "leases").glob("*")):
        time.sleep(0.001)


def timing(root: Path, recipe: Recipe) -> tuple[float, float]:
    """How long a job takes to its lease, and from there."""
    started, job = time.monotonic(), start(root, recipe)
    wait_for_work(root, job)
    begun = time.monotonic()
    assert job.wait() == 0
    return begun - started, time.monotonic() - begun


def kill_at_random(tmp_path: Path, model: Path, operation: str, kills: int) -> None:
    plain = tmp_path / "plain"
    base = store_model(plain, model)
    recipe = Recipe("merge", {"method": "dus", "drop": 1}, (base.id,)) if operation == "merge" else base.recipe
    inputs = tmp_path / "inputs"
    shutil.copytree(plain, inputs)
    if operation == "init":
        store.reject(inputs, base.id, "to be made again")
        shutil.rmtree(inputs / "quarantine")
    whole = made(plain, operation, recipe.canonical)
    timed = [timing(Path(shutil.copytree(inputs, tmp_path / f"timed-{number}")), recipe) for number in range(5)]
    starts, works = (min(times) for times in zip(*timed, strict=True))  # the shortest: of those that nothing held up
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)  # shown when it fails
    draw, killed, within = random.Random(seed), 0, 0
    for number in range(kills):
        root = Path(shutil.copytree(inputs, tmp_path / str(number)))
        job = start(root, recipe)
        if number % 4:  # most of them while it works, and some while it starts
            wait_for_work(root, job)
        time.sleep(draw.uniform(0, works if number % 4 else starts + works))
        job.send_signal(signal.SIGKILL)
        killed += job.wait() == -signal.SIGKILL
        within += bool(list((root / "tmp").glob("*")))
        for id in store.objects(root):
            found = store.find(root, id)
            assert found is not None
            (checkpoint.verify if found.recipe.kind == "checkpoints" else store.verify)(found)
        again = made(root, operation, recipe.canonical)
        assert again.manifest == whole.manifest
        assert not [path for name in ("tmp", "leases", "quarantine") for path in (root / name).glob("*")]
        shutil.rmtree(root)
    if kills >= 100:
        assert killed >= 30 and within >= 10, f"{killed} were killed, {within} of them at work: it was too fast"


@pytest.mark.parametrize("operation", ["init", "merge"])
def test_b58_a_job_killed_at_a_few_moments_is_finished_by_the_next(tmp_path: Path, llama: Path, operation: str) -> None:
    kill_at_random(tmp_path, llama, operation, kills=6)


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["init", "merge"])
def test_b58_a_job_killed_at_100_moments_is_finished_by_the_next(tmp_path: Path, llama: Path, operation: str) -> None:
    kill_at_random(tmp_path, llama, operation, kills=100)
