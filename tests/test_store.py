"""The store's promises: visible means complete, nothing valid is lost, nothing damaged is used."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from conftest import edit_manifest, flip
from objects import RECIPE, SCORE, failing, never, writing
from strata import garbage, inventory, store
from strata.errors import SpaceError, StoreError
from strata.recipe import Recipe
from strata.scratch import machine
from strata.store import Built


def test_an_object_is_read_only_and_its_copy_is_its_manifest(tmp_path: Path) -> None:
    made = store.publish(tmp_path, RECIPE, writing(facts={"x": 1}))
    assert made.path == tmp_path / "checkpoints" / RECIPE.id
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [made.path, *made.path.rglob("*")]}
    assert modes == {RECIPE.id: 0o555, "sub": 0o555, "a.txt": 0o444, "b.txt": 0o444, "manifest.json": 0o444}
    copy = store.target(tmp_path, RECIPE.id)
    assert copy.read_bytes() == (made.path / "manifest.json").read_bytes()
    assert stat.S_IMODE(copy.stat().st_mode) == 0o644
    assert store.require(tmp_path, RECIPE.id).facts == {"x": 1}


def test_a_second_publish_builds_nothing_and_restores_the_copy(tmp_path: Path) -> None:
    made = store.publish(tmp_path, RECIPE, writing())
    store.target(tmp_path, RECIPE.id).unlink()
    assert store.publish(tmp_path, RECIPE, never) == made
    assert store.target(tmp_path, RECIPE.id).is_file()


def test_a_builder_that_dies_leaves_nothing_visible(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="died"):
        store.publish(tmp_path, RECIPE, failing)
    assert store.find(tmp_path, RECIPE.id) is None
    assert not store.target(tmp_path, RECIPE.id).exists()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    "syscall", ["write", "fsync", "fchmodat", "chmod", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"]
)
def test_killed_at_any_call_an_object_is_whole_or_not_there(tmp_path: Path, syscall: str) -> None:
    """strace kills the process at the n-th such call, for every n until it gets through."""
    if subprocess.run(["which", "strace"], capture_output=True).returncode:
        pytest.skip("strace is not installed")
    script = (
        "import sys; from pathlib import Path; from strata import store; from strata.recipe import Recipe\n"
        "def build(f):\n"
        " (f / 'sub').mkdir(); (f / 'sub' / 'a.txt').write_text('hello'); (f / 'b.txt').write_text('b')\n"
        " return store.Built()\n"
        "store.publish(Path(sys.argv[1]), Recipe('merge', {'method': 'dus', 'drop': 1}), build)"
    )
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    for number in range(1, 30):
        root = tmp_path / str(number)
        inject = ["-e", f"trace={syscall}", "-e", f"inject={syscall}:signal=KILL:when={number}"]
        command = ["strace", "-f", "-qq", *inject, sys.executable, "-c", script, str(root)]
        code = subprocess.run(command, capture_output=True, env=env).returncode
        found = store.find(root, RECIPE.id)
        if found:
            store.verify(found)
        store.verify(store.publish(root, RECIPE, never if found else writing()))
        for folder in (root / "checkpoints" / RECIPE.id, root / "checkpoints" / RECIPE.id / "sub"):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o555
        assert not [*(root / "tmp").iterdir(), *(root / "leases").iterdir()]
        if code == 0:
            assert found is not None
            break
    else:
        raise AssertionError("never got through")


@pytest.mark.parametrize("name", ["sub/a.txt", "b.txt", "manifest.json"])
@pytest.mark.parametrize("damage", [flip, os.truncate], ids=["flipped", "cut"])
def test_a_file_with_any_byte_flipped_or_cut_at_any_length_is_found(
    tmp_path: Path, damage: Callable[[Path, int], None], name: str
) -> None:
    made = store.publish(tmp_path, RECIPE, writing())
    file = made.path / name
    file.chmod(0o644)
    content = file.read_bytes()
    for offset in range(len(content)):
        damage(file, offset)
        with pytest.raises(StoreError):
            found = store.find(tmp_path, RECIPE.id)
            assert found is not None
            store.verify(found)
        file.write_bytes(content)
    store.verify(store.require(tmp_path, RECIPE.id))


@pytest.mark.parametrize("damage", ["truncate", "append", "remove", "add", "empty manifest", "no manifest"])
def test_a_damaged_object_goes_to_quarantine_and_is_rebuilt_by_the_next_run(tmp_path: Path, damage: str) -> None:
    made = store.publish(tmp_path, RECIPE, writing())
    made.path.chmod(0o755)
    file, manifest = made.path / "b.txt", made.path / "manifest.json"
    for path in (file, manifest):
        path.chmod(0o644)
    match damage:
        case "truncate":
            file.write_text("")
        case "append":
            file.write_text("bb")
        case "remove":
            file.unlink()
        case "add":
            (made.path / "c.txt").write_text("c")
        case "empty manifest":
            manifest.write_text("{}")
        case "no manifest":
            manifest.unlink()
    with pytest.raises(StoreError, match="quarantine"):
        store.publish(tmp_path, RECIPE, never)
    kept = [path for path in (tmp_path / "quarantine").iterdir() if path.is_dir()]
    assert [path.name.split(".")[0] for path in kept] == [RECIPE.id]
    assert (tmp_path / "quarantine" / f"{kept[0].name}.txt").read_text()
    store.verify(store.publish(tmp_path, RECIPE, writing()))


def test_a_file_that_stays_missing_is_damage(tmp_path: Path) -> None:
    made = store.publish(tmp_path, RECIPE, writing())
    made.path.chmod(0o755)
    (made.path / "b.txt").unlink()
    (made.path / "b.txt").symlink_to("nowhere")
    with pytest.raises(StoreError, match="quarantine"):
        store.require(tmp_path, RECIPE.id)


def test_two_files_that_took_each_others_place_are_found(tmp_path: Path) -> None:
    made = store.publish(tmp_path, RECIPE, writing("x"))
    for folder in (made.path, made.path / "sub"):
        folder.chmod(0o755)
    one, other = made.path / "sub" / "a.txt", made.path / "b.txt"
    one.rename(tmp_path / "c")
    other.rename(one)
    (tmp_path / "c").rename(other)
    with pytest.raises(StoreError, match="sha256"):
        store.find(tmp_path, RECIPE.id)


def test_two_recipes_of_one_id_are_told_apart(tmp_path: Path) -> None:
    """Recipes are compared byte for byte, however unlikely two of one hash are."""
    store.publish(tmp_path, RECIPE, writing())
    other = Recipe("merge", {"method": "dus", "drop": 2})
    with patch.object(Recipe, "id", RECIPE.id), pytest.raises(StoreError, match="damaged: recipe"):
        store.publish(tmp_path, other, never)


def test_nobody_may_write_into_an_object_not_even_its_owner() -> None:
    """But for root, whom modes do not bind: so this is done as another user."""
    if os.getuid():
        pytest.skip("root alone can become another user")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    try:
        os.seteuid(65534)
        made = store.publish(folder / "store", RECIPE, writing())
        for act in (
            lambda: (made.path / "b.txt").open("r+b"),
            lambda: (made.path / "new").touch(),
            lambda: (made.path / "sub" / "a.txt").unlink(),
            lambda: made.path.rename(folder / "elsewhere"),
        ):
            with pytest.raises(PermissionError):
                act()
        assert (made.path / "b.txt").read_text() == "b"
    finally:
        os.seteuid(0)
        shutil.rmtree(folder)


def test_another_users_object_that_is_damaged_is_told_as_such(tmp_path: Path) -> None:
    made = store.publish(tmp_path, RECIPE, writing())
    flip(made.path / "b.txt", 0)
    with patch.object(Path, "chmod", side_effect=PermissionError(1, "not yours")):
        with pytest.raises(StoreError) as caught:
            store.require(tmp_path, RECIPE.id)
        ((_, said, error),) = inventory.verify(tmp_path, [RECIPE.id])
    assert "sha256" in str(caught.value) and "another user's" in str(caught.value)
    assert "another user's" in said and "another user's" in str(error)


def test_another_recipe_under_the_same_id_is_never_a_hit(tmp_path: Path) -> None:
    made = store.publish(tmp_path, RECIPE, writing())
    edit_manifest(made.path / "manifest.json", lambda manifest: manifest["recipe"]["parameters"].update(drop=2))
    with pytest.raises(StoreError, match="damaged: id"):
        store.require(tmp_path, RECIPE.id)


@pytest.mark.parametrize(
    "edit", [lambda m: m.update(digest="0"), lambda m: m["facts"].update(x=2), lambda m: m.pop("recipe")]
)
def test_a_manifest_that_was_edited_is_found(tmp_path: Path, edit: Any) -> None:
    made = store.publish(tmp_path, RECIPE, writing(facts={"x": 1}))
    manifest = json.loads((made.path / "manifest.json").read_text())
    edit(manifest)
    (made.path / "manifest.json").chmod(0o644)
    (made.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match="damaged"):
        store.find(tmp_path, RECIPE.id)


def test_a_damaged_input_is_rejected_so_that_the_next_run_builds_it(tmp_path: Path) -> None:
    made = store.publish(tmp_path, RECIPE, writing())
    flip(made.path / "b.txt", 0)
    with pytest.raises(StoreError, match="moved to"):
        store.require(tmp_path, RECIPE.id)
    assert not made.path.exists()
    assert not store.target(tmp_path, RECIPE.id).exists()


def test_a_copy_whose_object_is_gone_is_dropped_by_who_misses_it(tmp_path: Path) -> None:
    store.publish(tmp_path, RECIPE, writing()).path.rename(tmp_path / "gone")
    with pytest.raises(StoreError, match="not in the store"):
        store.require(tmp_path, RECIPE.id)
    assert not store.target(tmp_path, RECIPE.id).exists()


def test_what_a_killed_process_left_is_swept_by_the_next(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = machine()
    for owner in (f"{host}.{dead.pid}", f"{host}.{os.getpid()}", "elsewhere.1"):
        (tmp_path / "tmp" / f"{RECIPE.id}.{owner}.abc").mkdir(parents=True)
    store.publish(tmp_path, RECIPE, writing())
    assert {path.name.split(".")[-2] for path in (tmp_path / "tmp").iterdir()} == {str(os.getpid()), "1"}


@pytest.mark.parametrize(
    "act",
    [
        lambda root: store.publish(root, RECIPE, writing()),
        lambda root: store.find(root, RECIPE.id),
        lambda root: store.require(root, RECIPE.id),
        lambda root: store.reject(root, RECIPE.id, "a test"),
        lambda root: list(inventory.verify(root, [RECIPE.id])),
        lambda root: inventory.listing(root),
        lambda root: garbage.garbage(root),
        lambda root: garbage.collect(root, []),
        lambda root: garbage.sweep_dead(root),
    ],
    ids=["publish", "find", "require", "reject", "verify", "list", "garbage", "collect", "sweep"],
)
@pytest.mark.parametrize("version", ['{"format": 99}', "{", "[]"])
def test_a_store_of_another_version_is_refused_and_left_as_it_is(
    tmp_path: Path, act: Callable[[Path], object], version: str
) -> None:
    store.publish(tmp_path, RECIPE, writing())
    (tmp_path / "store.json").write_text(version)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match="another version"):
        act(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_may_be_moved(tmp_path: Path) -> None:
    store.publish(tmp_path / "a", RECIPE, writing())
    (tmp_path / "a").rename(tmp_path / "b")
    assert store.publish(tmp_path / "b", RECIPE, never).path.is_dir()


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    def full(folder: Path) -> Built:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "x"))

    with pytest.raises(SpaceError, match="the disk is full"):
        store.publish(tmp_path, RECIPE, full)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_real_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        store.publish(disk, RECIPE, writing())

        def large(folder: Path) -> Built:
            (folder / "x").write_bytes(b"x" * (2 << 20))
            return Built()

        with pytest.raises(SpaceError, match="the disk is full"):
            store.publish(disk, SCORE, large)
        store.verify(store.require(disk, RECIPE.id))
        assert list((disk / "tmp").iterdir()) == []
    finally:
        subprocess.run(["umount", disk], check=True)
