"""Garbage: what a variant, a config's last run or a job at work needs is never removed, and nothing without being told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from strata import garbage, inventory, store
from strata.disk import write_atomically
from strata.errors import StoreError
from strata.lease import lease
from strata.recipe import Recipe
from strata.scratch import is_alive, machine, scratch_folder
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
    write_atomically(file, json.dumps({"files": ["config.yaml"], "ids": list(ids)}).encode())
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
    (tmp_path / "roots").mkdir()
    with lease(tmp_path, CHILD.id, lambda: None):
        mine = scratch_folder(tmp_path / "tmp", CHILD.id)
        for process in (ended.pid, os.getppid()):
            place = f"{OTHER.id}.{machine()}.{process}.01234567"
            (tmp_path / "tmp" / place).mkdir()
            (tmp_path / "leases" / f".{place}").mkdir()
        owner = json.loads((tmp_path / "leases" / CHILD.id / "owner.json").read_text())
        (tmp_path / "leases" / BASE.id).mkdir()
        (tmp_path / "leases" / BASE.id / "owner.json").write_text(json.dumps(owner | {"process": ended.pid}))
        for process in (ended.pid, os.getppid()):
            (tmp_path / "roots" / f".a.json.{machine()}.{process}.01234567").touch()
        garbage.sweep_dead(tmp_path)
        assert len(list((tmp_path / "roots").iterdir())) == 1
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


@pytest.mark.parametrize("folder", ["training", "answers"])
def test_the_state_of_work_goes_with_what_was_to_be_made(tmp_path: Path, folder: str) -> None:
    trained = Recipe("pretrain", {}, parents=(BASE.id,))
    (tmp_path / folder / trained.id / "snapshots").mkdir(parents=True)
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
        write_atomically(tmp_path / "variants" / "dus.json", b"{")
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


def test_collecting_without_end_beside_runs_that_publish_loses_nothing_that_is_needed(tmp_path: Path) -> None:
    """Each run marks its root first, as the workflow does, and then publishes a chain, of which each needs the last."""
    ended, errors = threading.Event(), list[Exception]()

    def collect() -> None:
        while not ended.is_set():
            try:
                garbage.collect(tmp_path, garbage.garbage(tmp_path, grace=0))
            except Exception as error:
                errors.append(error)

    collectors = [threading.Thread(target=collect) for _ in range(2)]
    for thread in collectors:
        thread.start()
    try:
        for run in range(30):
            chain: list[Recipe] = []
            for n in range(3):
                parents = (chain[-1].id,) if chain else ()
                chain.append(Recipe("analyze", {"run": run, "n": n}, parents))
            root_of(tmp_path, *(recipe.id for recipe in chain))
            for recipe in chain:
                for parent in recipe.parents:
                    store.require(tmp_path, parent)
                store.publish(tmp_path, recipe, build)
            for recipe in chain:
                store.verify(store.require(tmp_path, recipe.id))
    finally:
        ended.set()
        for thread in collectors:
            thread.join()
    assert not errors
    assert not list((tmp_path / "quarantine").glob("*"))
    garbage.collect(tmp_path, garbage.garbage(tmp_path, grace=0))
    assert set(store.objects(tmp_path)) == {recipe.id for recipe in chain}
    assert not list((tmp_path / "trash").iterdir())


def test_what_is_put_aside_comes_back_when_the_roots_cannot_be_read_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Recipe("pretrain", {}, parents=(BASE.id,))
    publish(tmp_path, BASE, CHILD)
    (tmp_path / "training" / trained.id / "snapshots").mkdir(parents=True)
    pieces = garbage.garbage(tmp_path, grace=0)
    assert len(pieces) == 3
    root_of(tmp_path).write_text("{")
    with pytest.raises(StoreError, match="root cannot be read"):
        garbage.collect(tmp_path, pieces)
    for recipe in (BASE, CHILD):
        store.verify(store.require(tmp_path, recipe.id))
        assert store.target(tmp_path, recipe.id).is_file()
    assert (tmp_path / "training" / trained.id / "snapshots").is_dir()
    assert not list((tmp_path / "trash").iterdir())


def test_with_what_comes_back_comes_what_it_was_made_from(tmp_path: Path) -> None:
    """A root may name an object alone; what that was made from stands in the object, which lies in the trash."""
    publish(tmp_path, BASE, CHILD, OTHER)
    pieces = garbage.garbage(tmp_path)
    root_of(tmp_path, CHILD.id)
    assert [piece.path.name for piece in garbage.collect(tmp_path, pieces)] == [OTHER.id]
    assert set(store.objects(tmp_path)) == {BASE.id, CHILD.id}


def test_the_state_of_a_training_that_a_run_marks_meanwhile_comes_back(tmp_path: Path) -> None:
    trained = Recipe("pretrain", {}, parents=(BASE.id,))
    (tmp_path / "training" / trained.id / "snapshots").mkdir(parents=True)
    pieces = garbage.garbage(tmp_path, grace=0)
    root_of(tmp_path, trained.id)
    assert not garbage.collect(tmp_path, pieces)
    assert (tmp_path / "training" / trained.id / "snapshots").is_dir()


def test_what_another_collection_has_put_aside_is_let_be(tmp_path: Path) -> None:
    """It may bring it back. What a dead one left is older, and goes."""
    publish(tmp_path, BASE, days=5)
    place = garbage._put_aside(tmp_path, tmp_path / BASE.kind / BASE.id)
    assert place and found(tmp_path, grace=0) == set()
    os.utime(place, (time.time() - 2 * 3600,) * 2)
    assert found(tmp_path) == {place.name}


def test_what_a_config_needs_is_kept_without_a_root_being_written(tmp_path: Path) -> None:
    publish(tmp_path, BASE, CHILD, OTHER)
    before = sorted(tmp_path.rglob("*"))
    said = inventory.collect(tmp_path, 1, False, [CHILD.id])
    assert OTHER.id in said and CHILD.id not in said and "nothing was removed" in said
    assert sorted(tmp_path.rglob("*")) == before
    inventory.collect(tmp_path, 1, True, [CHILD.id])
    assert set(store.objects(tmp_path)) == {BASE.id, CHILD.id}


def test_quarantine_is_never_collected(tmp_path: Path) -> None:
    publish(tmp_path, BASE)
    place = store.reject(tmp_path, BASE.id, "a test")
    assert place and found(tmp_path, grace=0) == set() and place.is_dir()
