"""The store on disks that fail, and under any order of events: what is visible is whole, what is valid stays."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conftest import flip
from strata import garbage, store
from strata.disk import write_atomically
from strata.errors import SpaceError, StoreError
from strata.recipe import Recipe
from strata.sources import tree_sha256
from strata.store import Built

RECIPE = Recipe("analyze", {"n": 0})


def build(folder: Path) -> Built:
    (folder / "a").write_text("x" * 9000)
    (folder / "b").write_text("b")
    return Built()


@pytest.mark.parametrize("failure", ["ENOSPC", "EIO", "EROFS"])
@pytest.mark.parametrize("syscall", ["write", "copy_file_range", "fsync", "mkdir", "rename", "chmod", "fchmodat"])
def test_a_call_that_fails_is_told_and_nothing_torn_is_seen(tmp_path: Path, syscall: str, failure: str) -> None:
    """strace makes the n-th such call of a job fail, for every n until there is none."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.txt").write_text("x" * 9000)
    (source / "b.txt").write_text("b")
    recipe = Recipe("fetch", {"sha256": tree_sha256(source, one_file=False)})
    told = 0
    for number in range(1, 40):
        root = tmp_path / str(number)
        root.mkdir()
        job = ["-m", "strata", "--root", str(root), "fetch", recipe.canonical, "--location", str(source)]
        inject = ["-e", f"trace={syscall}", "-e", f"inject={syscall}:error={failure}:when={number}"]
        log = tmp_path / f"{number}.strace"
        done = subprocess.run(
            ["strace", "-f", "-qq", "-o", str(log), *inject, sys.executable, *job], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        found = store.find(root, recipe.id)
        if found:
            store.verify(found)
        if done.returncode:
            assert done.returncode == SpaceError.exit_code, done.stderr
            assert "Traceback" not in done.stderr and "where:" in done.stderr
            assert not list((root / "tmp").glob("*")), "room is taken that nobody gives back"
            told += 1
        again = subprocess.run([sys.executable, *job], capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        store.verify(store.require(root, recipe.id))
        assert stat.S_IMODE((root / "sources" / recipe.id).stat().st_mode) == 0o555
        if "INJECTED" not in log.read_text():
            break
    else:
        raise AssertionError("there was always one more")
    assert told or number == 1


@pytest.mark.parametrize("limit", [1, 100, 700, 4096, 8999, 9000, 12_000])
def test_a_write_that_is_cut_short_is_told_and_nothing_torn_is_seen(tmp_path: Path, limit: int) -> None:
    """No file may be longer than so many bytes: a write that crosses this ends early, and the next one fails."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("x" * 9000)
    recipe = Recipe("fetch", {"sha256": tree_sha256(tmp_path / "source", one_file=False)})
    script = (
        "import resource, sys; from strata import cli\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    job = ["--root", str(tmp_path), "fetch", recipe.canonical, "--location", str(tmp_path / "source")]
    done = subprocess.run([sys.executable, "-B", "-c", script, *job], capture_output=True, text=True)
    assert done.returncode == (0 if limit > 9000 else SpaceError.exit_code) or (limit, done.returncode) == (9000, 0)
    found = store.find(tmp_path, recipe.id)
    assert (found is not None) == (done.returncode == 0)
    if found is None:
        assert "Traceback" not in done.stderr and f"where:    {tmp_path}" in done.stderr
        assert not list((tmp_path / "tmp").glob("*"))
    again = subprocess.run([sys.executable, "-m", "strata", *job], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    store.verify(store.require(tmp_path, recipe.id))


class Machine(RuleBasedStateMachine):
    """A store beside a model of it: what was published, by number, and which numbers a root keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.there: set[int] = set()
        self.kept: set[int] = set()
        self.quarantined = 0

    def teardown(self) -> None:
        subprocess.run(["rm", "-rf", self.root], check=True)

    def recipe(self, number: int) -> Recipe:
        """Of a chain: each is made from the one before."""
        parents = (self.recipe(number - 1).id,) if number else ()
        return Recipe("analyze", {"n": number}, parents)

    @rule(number=st.integers(0, 3))
    def publish(self, number: int) -> None:
        def write(folder: Path) -> Built:
            assert number not in self.there, "built again"
            (folder / "a").write_text(str(number))
            return Built()

        for n in range(number + 1):
            number = n
            store.publish(self.root, self.recipe(n), write)
            self.there.add(n)

    @rule(number=st.integers(0, 3))
    def read(self, number: int) -> None:
        if number in self.there:
            found = store.require(self.root, self.recipe(number).id, store.verify)
            assert (found.path / "a").read_text() == str(number)
        else:
            with pytest.raises(StoreError, match="not in the store"):
                store.require(self.root, self.recipe(number).id)

    @rule(number=st.integers(0, 3), offset=st.integers(0, 400), name=st.sampled_from(["a", "manifest.json"]))
    @precondition(lambda self: self.there)
    def damage(self, number: int, offset: int, name: str) -> None:
        if number in self.there:
            file = self.root / "analyses" / self.recipe(number).id / name
            flip(file, offset % file.stat().st_size)
            with pytest.raises(StoreError, match="quarantine"):
                store.require(self.root, self.recipe(number).id, store.verify)
            self.there.remove(number)
            self.quarantined += 1

    @rule(numbers=st.sets(st.integers(0, 3)))
    def keep(self, numbers: set[int]) -> None:
        ids = [self.recipe(number).id for number in sorted(numbers)]
        write_atomically(self.root / "roots" / "config.json", store.encode({"files": [], "ids": ids}))
        self.kept = numbers

    @rule()
    def collect(self) -> None:
        garbage.collect(self.root, garbage.garbage(self.root, grace=0))
        needed = set(self.kept)
        for number in sorted(self.there, reverse=True):  # what is there tells what it was made from
            if number in needed and number:
                needed.add(number - 1)
        self.there &= needed

    @rule(number=st.integers(0, 3))
    def lose_the_copy(self, number: int) -> None:
        store.target(self.root, self.recipe(number).id).unlink(missing_ok=True)

    @invariant()
    def what_is_there_is_whole_and_nothing_else_is(self) -> None:
        ids = {self.recipe(number).id for number in self.there}
        assert set(store.objects(self.root)) == ids
        for id in ids:
            found = store.find(self.root, id)
            assert found is not None
            store.verify(found)
        place = self.root / "quarantine"
        assert len([path for path in place.glob("*") if path.is_dir()]) == self.quarantined
        assert not list((self.root / "leases").glob("*")) and not list((self.root / "tmp").glob("*"))


TestStore: Any = Machine.TestCase
TestStore.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
