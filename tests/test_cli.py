"""The command line: exit codes by kind of error, and one message instead of a traceback."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from conftest import REPOSITORY, strata, write_experiment
from strata import errors


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "dsu"], 2, "did you mean dus?"),
        (["ls", "--configfile", "nope.yaml"], 3, "cannot read the file"),
        (["merge", "{}"], 2, "not a recipe"),
        (
            ["init", '{"operation":"merge","parameters":{},"parents":[],"sources":[],"version":1}'],
            2,
            "another operation or version",
        ),
        (["merge", '{"operation":"merge","parameters":{},"parents":[],"sources":[],"version":99}'], 2, "version 99"),
        (["--root", "other", "redo", "dus"], 2, "redo builds in `results` alone"),
        (["pin", "--suite", "nope.yaml"], 3, "no such suite"),
        (["frobnicate"], 2, "invalid choice"),
    ],
)
def test_a_mistake_is_one_message(tmp_path: Path, llama: Path, arguments: list[str], code: int, message: str) -> None:
    run = strata(write_experiment(tmp_path, llama), *arguments)
    assert run.returncode == code
    assert message in run.stderr
    assert "Traceback" not in run.stderr


def test_a_job_logs_to_its_file_and_says_its_error_in_both_places(tmp_path: Path) -> None:
    recipe = '{"operation":"merge","parameters":{"drop":1,"method":"dus"},"parents":["init-00000000000000000000000000000000"],"sources":[],"version":1}'
    run = strata(tmp_path, "merge", recipe, "--log", "job.log")
    assert run.returncode == 6
    assert "not in the store" in run.stderr
    assert "not in the store" in (tmp_path / "job.log").read_text()


def test_a_log_on_a_full_disk_does_not_hide_what_went_wrong(tmp_path: Path) -> None:
    recipe = '{"operation":"fetch","parameters":{"sha256":"00"},"parents":[],"sources":[],"version":1}'
    run = strata(tmp_path, "fetch", recipe, "--location", str(tmp_path / "nowhere"), "--log", "/dev/full")
    assert run.returncode == 4
    assert run.stderr.count("error: ") == 1 and "no such file or folder" in run.stderr


def test_ls_before_anything_was_built(tmp_path: Path, llama: Path) -> None:
    run = strata(write_experiment(tmp_path, llama), "ls")
    assert run.returncode == 0
    assert run.stdout.count("missing") == 4
    assert not (tmp_path / "results").exists()


def test_a_closed_pipe_is_no_error(tmp_path: Path, llama: Path) -> None:
    import subprocess
    import sys

    command = f"{sys.executable} -m strata schema | head -1"
    env = {"PYTHONPATH": str(REPOSITORY / "workflow"), "PATH": "/usr/bin:/bin"}
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=env)
    assert (run.stdout, run.stderr) == ("{\n", "")


@pytest.mark.parametrize("operation", ["pretrain", "sft", "dpo"])
def test_training_that_was_stopped_ends_with_75_and_no_error(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """75, which a scheduler's retry answers with another attempt, goes through from the trainer to the shell."""
    import signal
    import sys

    from strata import cli, progress
    from strata.recipe import Recipe
    from strata.train import operation as trainer

    asked = []

    def stopped(root: Path, recipe: Recipe, processes: int, nodes: int) -> None:
        asked.append((root, recipe.operation, processes, nodes))
        raise errors.Preempted("stopped after step 3", todo="run it again")

    monkeypatch.setattr(trainer, "train", stopped)
    monkeypatch.setattr(progress, "terminal", sys.stderr)
    before = signal.getsignal(signal.SIGTERM)
    recipe = Recipe(operation, {}, ("init-" + "0" * 32,)).canonical
    assert cli.main(["--root", str(tmp_path), operation, recipe, "--processes=2"]) == 75
    signal.signal(signal.SIGTERM, before)
    assert asked == [(tmp_path, operation, 2, 1)]
    assert capsys.readouterr().err.startswith("stopped after step 3")
    assert not (tmp_path / "runs").exists()


def test_what_is_made_of_other_weights_may_be_other_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training gave other bits this time: so did the GGUF of it, which is deterministic, and that is no fault."""
    from strata import commands, store
    from strata.errors import NonDeterministic
    from strata.recipe import Recipe

    trained = Recipe("pretrain", {})
    gguf = Recipe("gguf", {"type": "f16"}, (trained.id,))
    smaller = Recipe("quantize", {"type": "q8_0"}, (trained.id,), (gguf.id,))
    now = {r.id: SimpleNamespace(digest="new", recipe=r, path=Path("now")) for r in (trained, gguf, smaller)}
    monkeypatch.setattr(store, "require", lambda root, id: now[id])
    before = {recipe.id: (Path(), "old") for recipe in (trained, gguf, smaller)}
    assert [line.endswith("OTHER CONTENT than before") for line in commands._compared(Path(), before)] == [True] * 3
    with pytest.raises(NonDeterministic):
        list(commands._compared(Path(), before | {trained.id: (Path(), "new")}))


def test_a_merge_of_what_ranks_otherwise_now_may_be_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A screen that was lost, and limited in time, has found another plan: its winner is another model, with one id."""
    from strata import commands, store
    from strata.errors import NonDeterministic
    from strata.recipe import Recipe

    winner = Recipe(
        "merge", {"method": "screened", "depth": 6, "rank": 1}, ("init-" + "0" * 32,), ("screen-" + "0" * 32,)
    )
    for name, ranking in (("then", "1"), ("now", "2"), ("again", "2")):
        (tmp_path / name).mkdir()
        facts = {"facts": {"made_from": {winner.sources[0]: ranking}}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(facts))
    made = SimpleNamespace(digest="new", recipe=winner, path=tmp_path / "now")
    monkeypatch.setattr(store, "require", lambda root, id: made)
    (line,) = commands._compared(Path(), {winner.id: (tmp_path / "then", "old")})
    assert line.endswith("OTHER CONTENT than before")
    with pytest.raises(NonDeterministic):
        list(commands._compared(Path(), {winner.id: (tmp_path / "again", "old")}))
