"""The Slurm profile from the repository's root: what each job asks for, and what is said where there is no Slurm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPOSITORY, write_experiment
from strata.config import Shape
from strata.job import Job
from strata.recipe import Recipe
from strata.resources import DAY, request


def without_sbatch(folder: Path) -> str:
    """A PATH on which all programs but this one are found."""
    folder.mkdir(exist_ok=True)
    places = [Path(place) for place in os.environ["PATH"].split(os.pathsep) if Path(place).is_dir()]
    for program in (program for place in places if (place / "sbatch").exists() for program in place.iterdir()):
        if program.name != "sbatch" and not (folder / program.name).is_symlink():
            (folder / program.name).symlink_to(program)
    return os.pathsep.join([*(str(place) for place in places if not (place / "sbatch").exists()), str(folder)])


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = without_sbatch(folder.parent / f"{folder.name}-programs")
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "all", *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PATH": path},
    )


@pytest.fixture
def clone(tmp_path: Path, llama: Path) -> Path:
    """The repository's own files with the small experiment's config."""
    for name in ("workflow", "slurm", "profiles", "envs"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "Snakefile", tmp_path)
    return write_experiment(tmp_path, llama)


def test_a_dry_run_resolves_with_resources_for_each_rule(clone: Path) -> None:
    dry = run(clone, "-n")
    assert dry.returncode == 0, dry.stdout
    for rule in ("init", "merge", "evaluate"):
        found = re.search(rf"\n(?:local)?rule {rule}:\n.*?resources: ([^\n]+)", dry.stdout, re.DOTALL)
        assert found, rule
        for name in ("gpu=0", "mem_mb=", "runtime=", "disk_mb="):
            assert name in found[1]
    assert re.search(r"\n(local)?rule fetch:", dry.stdout)


def test_cuda_makes_evaluation_and_nothing_else_ask_for_a_gpu(clone: Path) -> None:
    with (clone / "config.yaml").open("a") as file:
        file.write("device: cuda\n")
    dry = run(clone, "-n").stdout
    gpus = {
        rule: set(re.findall(rf"\n(?:local)?rule {rule}:\n.*?gpu=(\d)", dry, re.DOTALL))
        for rule in ("init", "merge", "evaluate")
    }
    assert gpus == {"init": {"0"}, "merge": {"0"}, "evaluate": {"1"}}


def test_without_sbatch_a_real_run_ends_at_once_with_our_message(clone: Path) -> None:
    real = run(clone)
    assert real.returncode != 0
    assert "there is no `sbatch` on this machine" in real.stdout
    assert "Traceback" not in real.stdout
    assert not (clone / "results").exists() or not list((clone / "results").glob("*/*-*.json"))
    assert run(clone, "-n").returncode == 0  # and no lock is left


def job(operation: str, size: Shape) -> Job:
    parameters = (
        {"device": "cuda", "numerics": {"dtype": "bfloat16"}, "tasks": {"t": {}}} if operation == "evaluate" else {}
    )
    return Job(Recipe(operation, parameters), size)


SOLAR = Shape(family="llama", layers=48, parameters=10_731_524_096, bytes=21_463_048_192, dtype="bfloat16")


def test_every_attempt_asks_for_more() -> None:
    for operation in ("init", "merge", "evaluate"):
        first, second, third = (request(job(operation, SOLAR), attempt) for attempt in (1, 2, 3))
        assert first.mem_mb < second.mem_mb < third.mem_mb
        assert first.runtime < second.runtime < third.runtime
        assert first.disk_mb < second.disk_mb < third.disk_mb
        assert first.gpu == second.gpu == third.gpu


def test_more_tasks_ask_for_more_time() -> None:
    one, three = (
        Job(Recipe("evaluate", job("evaluate", SOLAR).recipe.parameters | {"tasks": tasks}), SOLAR)
        for tasks in ({"a": {}}, {"a": {}, "b": {}, "c": {}})
    )
    assert request(three).runtime > 2 * request(one).runtime
    assert request(three).mem_mb == request(one).mem_mb


def test_a_small_model_has_one_thread_so_that_more_jobs_run_at_a_time() -> None:
    small = SOLAR.model_copy(update={"bytes": 10**7})
    for operation in ("init", "merge", "evaluate"):
        assert request(job(operation, small)).threads == 1 < request(job(operation, SOLAR)).threads
    parameters = job("evaluate", small).recipe.parameters | {"tasks": {"mmlu": {"kind": "harness"}}}
    assert request(Job(Recipe("evaluate", parameters), small)).threads == 4


def test_what_goes_on_asks_for_a_day_at_most_and_what_would_begin_anew_for_all_it_takes() -> None:
    huge = SOLAR.model_copy(update={"bytes": 10**12})
    assert request(job("evaluate", huge)).runtime == DAY < request(job("init", huge)).runtime


def test_memory_holds_the_weights_and_a_merge_holds_none() -> None:
    assert request(job("evaluate", SOLAR)).mem_mb > 21_463
    assert request(job("merge", SOLAR)).mem_mb < 1_000
    assert request(job("merge", SOLAR)).disk_mb > 21_463
