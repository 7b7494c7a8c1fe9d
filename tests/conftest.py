"""Small real models, and a store to put them in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from models import save_model

os.environ["HF_HUB_OFFLINE"] = "1"
# Timings belong in benchmarks; and what fails does so for whoever runs it again.
settings.register_profile("untimed", deadline=None, derandomize=True)
settings.load_profile("untimed")
REPOSITORY = Path(__file__).parents[1]
LONG = ("workflow", "train", "tasks", "slurm", "publish")  # folders of tests whose fixtures run for a minute and more


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long begins first, so that processes which share the files end together."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)


def shape_text(folder: Path) -> str:
    """The shape of a saved model, as `strata pin` would write it."""
    from strata.shapes import shape_of

    shape = shape_of(folder)
    assert shape is not None
    return "{" + ", ".join(f"{key}: {value}" for key, value in shape.items()) + "}"


def tree_sha256(folder: Path) -> str:
    """The pin of a folder, written here a second time so that the package's own is tested against it."""
    lines = sorted(
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(folder).as_posix()}\n"
        for file in folder.rglob("*")
        if file.is_file()
    )
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(
        tmp_path_factory.mktemp("mistral"),
        "mistral",
        sliding_window=64,
        rope_parameters={"rope_theta": 5000.0, "rope_type": "default"},
    )


def store_model(root: Path, folder: Path, architecture: str | None = None) -> Any:
    """Fetch and init a saved model into a store; returns its object."""
    from strata.initialize import initialize
    from strata.recipe import Recipe
    from strata.shapes import shape_of
    from strata.sources import fetch

    shape = shape_of(folder)
    assert shape is not None
    source = fetch(root, Recipe("fetch", {"sha256": tree_sha256(folder)}), str(folder))
    parameters = {"architecture": architecture or shape["family"], "shape": shape}
    return initialize(root, Recipe("init", parameters, (), (source.id,)))


@pytest.fixture
def base_of(tmp_path: Path) -> Callable[..., Any]:
    """Fetch and init a saved model into `tmp_path/results`; returns its object."""

    def build(folder: Path, architecture: str | None = None) -> Any:
        return store_model(tmp_path / "results", folder, architecture)

    return build


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    """Write tmp_path/config.yaml from its lines."""

    def write(text: str, name: str = "config.yaml") -> Path:
        file = tmp_path / name
        file.write_text(text)
        return file

    return write


def flip(file: Path, offset: int) -> None:
    """Change one byte of a read-only file."""
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[offset] ^= 0xFF
    file.write_bytes(data)


def edit_manifest(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and seal it again, as only a program with bad intent or a bug would."""
    from strata.store import encode, seal

    manifest = read_json(file)
    edit(manifest)
    file.chmod(0o644)
    file.write_bytes(encode(manifest | {"seal": seal(manifest)}))


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


SUITE = """\
suite: tiny
version: 1
sources:
  notes: {{path: {documents}, sha256: {sha256}}}
numerics: {{dtype: float32, batch_size: 3, max_length: 128, add_bos_token: false, seed: 1}}
tasks:
  text: {{kind: bits_per_byte, source: notes, bytes: 150}}
  next: {{kind: continuation, source: notes, items: 9, choices: 3, characters: [10, 60], seed: 5}}
groups:
  all: [text, next]
"""

VARIANTS = """\
  base: {init: {source: m}}
  dus: {parent: base, merge: {method: dus, drop: 1}}
  same: {parent: base, merge: {method: dus, drop: 1}}
  stacked: {parent: base, merge: {method: dus, drop: 0}}
"""


def write_experiment(folder: Path, model: Path, variants: str = VARIANTS, suites: str = "[tiny.yaml]") -> Path:
    """A whole small experiment in `folder`: documents, a suite and a config over a saved model."""
    documents = folder / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    for name in ("ant", "bee", "cow"):
        lines = (f"The {name} number {n} walks over field {n * 7 % 11}." for n in range(12))
        (documents / f"{name}.txt").write_text(" ".join(lines))
    (folder / "tiny.yaml").write_text(SUITE.format(documents=documents, sha256=tree_sha256(documents)))
    source = f"{{path: {model}, sha256: {tree_sha256(model)}, shape: {shape_text(model)}}}"
    (folder / "config.yaml").write_text(f"sources:\n  m: {source}\nvariants:\n{variants}suites: {suites}\n")
    return folder


def write_lessons(folder: Path) -> str:
    """Rows and pairs to learn from, beside a `diary` that is there. Returns the three as sources of a config."""
    rows = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(2, 14)]
    pairs = [{"prompt": f"Is {n} odd?", "chosen": "yes" if n % 2 else "no", "rejected": "a fish"} for n in range(8)]
    for name, data in (("rows", rows), ("pairs", pairs)):
        (folder / name).mkdir()
        (folder / name / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    return "".join(
        f"  {name}: {{path: {name}, sha256: {tree_sha256(folder / name)}}}\n" for name in ("diary", "rows", "pairs")
    )


def snakemake(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the workflow in `folder`; stdout and stderr come back together."""
    command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--cores", "2", *arguments]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    return subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def build(folder: Path, without: Collection[str] = ()) -> None:
    """Make what the config in a folder asks for in this process, without starting one for each job.

    Args:
        without: operations that are left for a run of the workflow, with all that is made from what they make.
    """
    from strata import cli, experiment
    from strata.status import needed

    before = Path.cwd()
    os.chdir(folder)
    try:
        made = experiment.load(["config.yaml"])
        jobs = {job.id: job for variant in made.variants.values() for job in needed(made, variant)}
        left = {id for id, job in jobs.items() if job.recipe.operation in without}
        for job in jobs.values():
            if left & {job.id, *job.recipe.parents, *job.recipe.sources}:
                left.add(job.id)
                continue
            assert cli.main([job.recipe.operation, job.recipe.canonical, "--location", job.location]) == 0, job.id
    finally:
        os.chdir(before)


def strata(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command of the package in `folder`."""
    env = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY / "workflow"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.run(
        [sys.executable, "-m", "strata", *arguments], cwd=folder, env=env, capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    folder = write_experiment(tmp_path_factory.mktemp("finished"), llama)
    run = snakemake(folder)
    assert run.returncode == 0, run.stdout
    return folder


@pytest.fixture
def finished(finished_once: Path, tmp_path: Path) -> Path:
    """A finished run of the small experiment, this test's own to change."""
    return Path(shutil.copytree(finished_once, tmp_path / "run", symlinks=True))


@pytest.fixture
def one_thread() -> None:
    """As in another process, so that results are the same to the bit."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def held_out_text_may_be_learnt(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """One small text does for both, but where that is what is tested."""
    from strata.train import operation

    if "held_out_text_that_is_in_the_data" not in request.node.name:
        monkeypatch.setattr(operation, "MAX_SHARED", 1.0)
