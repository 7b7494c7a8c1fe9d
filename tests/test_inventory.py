"""Inventory: what `strata store` tells and does, as a user sees it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from conftest import flip, write_experiment
from strata import cli, garbage, store
from strata.errors import StoreError, UsageError
from strata.experiment import load
from strata.recipe import Recipe
from strata.store import Built

OLD = Recipe("analyze", {"tokens": 99})


def build(folder: Path) -> Built:
    (folder / "a").write_text("12345")
    return Built()


@pytest.fixture
def project(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose sources are fetched, and an object that nothing needs."""
    write_experiment(tmp_path, llama)
    monkeypatch.chdir(tmp_path)
    for job in load(["config.yaml"]).jobs.values():
        if job.recipe.operation == "fetch":
            assert cli.main(["fetch", job.recipe.canonical, "--location", job.location]) == 0
    made = store.publish(Path("results"), OLD, build)
    os.utime(made.path, (time.time() - 3 * 86_400,) * 2)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert cli.main(["store", *arguments]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out + err


def test_gc_tells_what_it_would_remove_and_removes_it_when_told(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the config needs stays, although no run has made it a root."""
    before = set(store.objects(Path("results")))
    told = said(capsys, "gc", "--days", "0")
    assert OLD.id in told and "nothing was removed: add --delete" in told
    assert [id for id in before if id in told] == [OLD.id]
    assert set(store.objects(Path("results"))) == before
    assert "removed: 1" in said(capsys, "gc", "--delete")
    assert set(store.objects(Path("results"))) == before - {OLD.id}


def test_a_list_and_an_object_say_what_keeps_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    garbage.mark(Path("results"), ["config.yaml"], load(["config.yaml"]))
    lines = {line.split()[0]: line for line in said(capsys, "list").splitlines()}
    assert lines[OLD.id].endswith("nothing")
    (kept,) = {line.split()[-1] for id, line in lines.items() if id.startswith("fetch")}
    assert kept.startswith("roots/config-")
    assert "would remove it" in said(capsys, "show", OLD.id.split("-")[1][:8])
    assert kept in said(capsys, "roots")


def test_verify_finds_a_flipped_byte_and_deletes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "verify").count("  ok") == len(set(store.objects(Path("results"))))
    flip(Path("results", "analyses", OLD.id, "a"), 2)
    told = said(capsys, "verify", code=StoreError.exit_code)
    assert f"{OLD.id}  DAMAGED, now in quarantine" in told and "sha256" in told
    (place,) = Path("results", "quarantine").glob(f"{OLD.id}.????????")
    assert (place / "a").read_bytes() != b"12345"


@pytest.mark.parametrize("name", ["", "analyze", "0000000000000000", "../x", OLD.id.split("-")[1][:4]])
def test_a_name_that_does_not_stand_for_one_object_is_told(
    project: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert "strata store list" in said(capsys, "show", name, code=UsageError.exit_code)
