"""Garbage: what a variant, a config's last run or a job at work needs is never removed, and nothing without being told."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from strata import garbage, store
from strata.errors import StoreError
from strata.lease import lease
from strata.recipe import Recipe
from strata.scratch import is_alive, scratch_folder
from strata.store import Built, Object

BASE = Recipe("init", {"source": "x"})
CHILD = Recipe("merge", {"method": "dus", "drop": 1}, parents=(BASE.id,))
OTHER = Recipe("merge", {"method": "dus", "drop": 2}, parents=(BASE.id,))


def build(folder: Path) -> Built:
    (folder / "a").write_text("12345")
    return Built()


def publish(root: Path, *recipes: Recipe, days: float = 2) -> list[Object]:
    """Objects that have been there for some days."""
    made = [store.publish(root, recipe, build) for recipe in recipes]
    for found in made:
        os.utime(found.path, (time.time() - days * 86_400,) * 2)
    return made


def link(root: Path, name: str, recipe: Recipe) -> None:
    (root / "variants").mkdir(exist_ok=True)
    (root / "variants" / name).symlink_to(Path("..", recipe.kind, recipe.id))


def root_of(root: Path, *ids: str) -> Path:
    file = root / "roots" / "config.json"
    store.write_atomically(file, json.dumps({"files": ["config.yaml"], "ids": list(ids)}).encode())
    return file


def found(root: Path, **options: Any) -> set[str]:
    return {piece.path.name for piece in garbage.garbage(root, **options)}


def test_what_nothing_needs_is_garbage_and_is_there_until_it_is_collected(tmp_path: Path) -> None:
    publish(tmp_path, BASE, CHILD)
    assert found(tmp_path) == {BASE.id, CHILD.id}
    store.verify(store.require(tmp_path, CHILD.id))
    pieces = garbage.garbage(tmp_path)
    assert garbage.collect(tmp_path, pieces) == pieces
    assert not list(store.objects(tmp_path)) and not list((tmp_path / "trash").iterdir())
    assert not store.target(tmp_path, CHILD.id).exists()


def test_a_named_variant_keeps_its_parents(tmp_path: Path) -> None:
    publish(tmp_path, BASE, CHILD, OTHER)
    link(tmp_path, "dus", CHILD)
    assert found(tmp_path) == {OTHER.id}
    garbage.collect(tmp_path, garbage.garbage(tmp_path))
    for recipe in (BASE, CHILD):
        store.verify(store.require(tmp_path, recipe.id))


def test_what_a_configs_last_run_needs_is_kept(tmp_path: Path) -> None:
    publish(tmp_path, BASE, CHILD, OTHER)
    root_of(tmp_path, OTHER.id)
    assert found(tmp_path) == {CHILD.id}


def test_what_a_job_at_work_makes_and_reads_is_kept(tmp_path: Path) -> None:
    publish(tmp_path, BASE)
    scratch = scratch_folder(tmp_path / "tmp", CHILD.id)
    with lease(tmp_path, CHILD.id, lambda: None, needs=CHILD.parents):
        assert found(tmp_path, grace=0) == set()
    assert found(tmp_path, grace=0) == {BASE.id, scratch.name}


def test_what_the_dead_left_is_cleared_away_and_what_the_living_hold_is_not(tmp_path: Path) -> None:
    """Of ids that nobody asks for again, too."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with lease(tmp_path, CHILD.id, lambda: None):
        mine = scratch_folder(tmp_path / "tmp", CHILD.id)
        for process in (ended.pid, os.getppid()):
            place = f"{OTHER.id}.{socket.gethostname()}.{process}.01234567"
            (tmp_path / "tmp" / place).mkdir()
            (tmp_path / "leases" / f".{place}").mkdir()
        owner = json.loads((tmp_path / "leases" / CHILD.id / "owner.json").read_text())
        (tmp_path / "leases" / BASE.id).mkdir()
        (tmp_path / "leases" / BASE.id / "owner.json").write_text(json.dumps(owner | {"process": ended.pid}))
        garbage.sweep_dead(tmp_path)
        assert sorted((tmp_path / "tmp").iterdir()) == sorted([mine, tmp_path / "tmp" / place])
        assert sorted(path.name for path in (tmp_path / "leases").iterdir()) == sorted([f".{place}", CHILD.id])


def test_a_process_that_ended_and_that_nobody_asked_how_is_dead() -> None:
    ended = os.fork()
    if not ended:
        os._exit(0)
    os.waitid(os.P_PID, ended, os.WEXITED | os.WNOWAIT)
    assert not is_alive(ended)
    os.waitpid(ended, 0)
    assert not is_alive(ended) and is_alive(os.getpid())


def test_nothing_is_garbage_within_the_grace_period(tmp_path: Path) -> None:
    publish(tmp_path, BASE, days=0.5)
    assert found(tmp_path) == set()
    assert found(tmp_path, grace=0.4) == {BASE.id}


def test_training_state_goes_with_what_was_to_be_trained(tmp_path: Path) -> None:
    trained = Recipe("pretrain", {}, parents=(BASE.id,))
    (tmp_path / "training" / trained.id / "snapshots").mkdir(parents=True)
    root_of(tmp_path, trained.id)
    assert found(tmp_path, grace=0) == set()
    root_of(tmp_path)
    assert found(tmp_path, grace=0) == {trained.id}


@pytest.mark.parametrize(
    "damage", ["a root that is no JSON", "a variant's record that is no JSON", "a link that leads nowhere"]
)
def test_a_store_whose_roots_cannot_be_read_keeps_everything(tmp_path: Path, damage: str) -> None:
    publish(tmp_path, BASE)
    if damage == "a root that is no JSON":
        root_of(tmp_path).write_text("{")
    elif damage == "a variant's record that is no JSON":
        store.write_atomically(tmp_path / "variants" / "dus.json", b"{")
    else:
        link(tmp_path, "gone", CHILD)
    with pytest.raises(StoreError, match=r"root|link"):
        garbage.garbage(tmp_path)


def test_what_a_run_marks_while_garbage_is_collected_comes_back(tmp_path: Path) -> None:
    made = publish(tmp_path, BASE, CHILD)
    pieces = garbage.garbage(tmp_path)
    root_of(tmp_path, BASE.id)
    assert [piece.path.name for piece in garbage.collect(tmp_path, pieces)] == [CHILD.id]
    assert store.require(tmp_path, BASE.id, store.verify) == made[0]
    assert store.target(tmp_path, BASE.id).is_file()


def test_quarantine_is_never_collected(tmp_path: Path) -> None:
    publish(tmp_path, BASE)
    place = store.reject(tmp_path, BASE.id, "a test")
    assert place and found(tmp_path, grace=0) == set() and place.is_dir()
