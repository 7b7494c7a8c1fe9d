"""Several processes on one store: whoever comes second waits, takes what is there, or says that it differs."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from objects import RECIPE, SCORE, never, writing
from strata import store
from strata.errors import NonDeterministic, StoreError
from strata.recipe import Recipe
from strata.store import Built


def test_who_comes_second_waits_for_what_the_first_builds(tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(folder: Path) -> Built:
        begun.set()
        go_on.wait()
        return writing()(folder)

    with ThreadPoolExecutor() as pool:
        first = pool.submit(store.publish, tmp_path, RECIPE, slow)
        begun.wait()
        second = pool.submit(store.publish, tmp_path, RECIPE, never)
        time.sleep(0.1)
        assert not second.done()
        go_on.set()
        assert first.result() == second.result()
    assert not list((tmp_path / "leases").iterdir())


def race(tmp_path: Path, recipe: Recipe, winner: str, loser: str) -> store.Object:
    """Publish `winner` while `loser` is being built, as where leases fail."""

    def slow(folder: Path) -> Built:
        built = writing(loser)(folder)
        store.publish(tmp_path, recipe, writing(winner))
        return built

    with patch.object(store, "lease", lambda *_: nullcontext()):
        return store.publish(tmp_path, recipe, slow)


def test_the_loser_of_a_race_takes_the_winners_object(tmp_path: Path) -> None:
    assert (race(tmp_path, RECIPE, "same", "same").path / "sub" / "a.txt").read_text() == "same"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_two_contents_of_a_deterministic_recipe_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(NonDeterministic, match="two contents"):
        race(tmp_path, RECIPE, "one", "other")
    assert (store.require(tmp_path, RECIPE.id).path / "sub" / "a.txt").read_text() == "one"


def test_of_two_evaluations_the_first_published_wins(tmp_path: Path) -> None:
    assert (race(tmp_path, SCORE, "one", "other").path / "sub" / "a.txt").read_text() == "one"


@pytest.mark.parametrize("leases", ["leases", "no leases"])
def test_eight_processes_racing_for_one_id_agree(tmp_path: Path, leases: str) -> None:
    """Also where leases do nothing, as locks on many file systems of clusters."""
    script = (
        "from pathlib import Path; from strata import store; from strata.recipe import Recipe; from strata.store import Built\n"
        "import contextlib, os, sys, time\n"
        f"if {leases == 'no leases'}: store.lease = lambda *_: contextlib.nullcontext()\n"
        "def build(f):\n (f / 'a').write_text(str(os.getpid())); return Built()\n"
        f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.001)\n"
        "for n in range(50):\n"
        f" print(store.publish(Path({str(tmp_path)!r}), Recipe('evaluate', {{'n': n}}), build).digest)"
    )
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=env) for _ in range(8)
    ]
    time.sleep(2)  # all of them have started, and wait
    (tmp_path / "go").touch()
    outputs = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0] * 8
    assert len(outputs) == 1
    assert len(outputs.pop().split()) == 50
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_is_published_behind_a_look_for_it_is_not_damaged(tmp_path: Path) -> None:
    """Who waits for another looks often, and so at this moment too."""
    read = Path.read_bytes

    def just_before(file: Path) -> bytes:
        if file.name == store.MANIFEST and not file.exists():
            with patch.object(Path, "read_bytes", read):
                store.publish(tmp_path, RECIPE, writing())
            raise FileNotFoundError(errno.ENOENT, "gone", str(file))
        return read(file)

    with patch.object(Path, "read_bytes", just_before):
        store.find(tmp_path, RECIPE.id)
    store.verify(store.publish(tmp_path, RECIPE, writing()))


@pytest.mark.parametrize("gone", [errno.ENOENT, errno.ESTALE])
@pytest.mark.parametrize("at", ["manifest", "file"])
def test_what_is_moved_away_and_made_anew_within_a_look_is_not_damaged(tmp_path: Path, gone: int, at: str) -> None:
    made = store.publish(tmp_path, RECIPE, writing())
    kind, name = (Path, "read_bytes") if at == "manifest" else (store, "_check_file")
    look, looks = getattr(kind, name), []

    def meanwhile(*arguments: Any) -> Any:
        looks.append(arguments)
        if len(looks) == 2:  # the first is for the store's version, or another file
            made.path.chmod(0o755)
            made.path.rename(tmp_path / "away")
            store.publish(tmp_path, RECIPE, writing())
            raise OSError(gone, "gone", str(made.path / "b.txt"))
        return look(*arguments)

    with patch.object(kind, name, meanwhile):
        assert store.find(tmp_path, RECIPE.id) == made
    assert len(looks) > 2


def test_a_rename_that_was_done_and_whose_answer_was_lost_is_done(tmp_path: Path) -> None:
    """NFS asks again, and is told that there is nothing to rename."""
    rename = Path.rename

    def twice(path: Path, place: Path) -> Path:
        rename(path, place)
        return rename(path, place) if "checkpoints" in str(place) else place

    with patch.object(Path, "rename", twice):
        made = store.publish(tmp_path, RECIPE, writing())
    store.verify(made)
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o555
    assert store.publish(tmp_path, RECIPE, never) == made


def test_a_rename_that_was_not_done_is_an_error(tmp_path: Path) -> None:
    def lost(path: Path, place: Path) -> Path:
        raise FileNotFoundError(errno.ENOENT, "gone", str(path))

    with patch.object(Path, "rename", lost), pytest.raises(FileNotFoundError):
        store._rename(tmp_path, tmp_path / "a", store.Object(RECIPE.id, tmp_path / "b", {"digest": "x"}))


def test_what_was_built_anew_while_the_damaged_one_was_looked_at_stays(tmp_path: Path) -> None:
    """Two jobs look closer at one damaged object for minutes; what the first rejects is built again meanwhile."""
    store.publish(tmp_path, RECIPE, writing())

    def check(found: store.Object) -> None:
        store.reject(tmp_path, RECIPE.id, "the first job")
        store.publish(tmp_path, RECIPE, writing())
        raise store.damaged(found.id, found.path, "sha256", "one", "another")

    with pytest.raises(StoreError, match="damaged"):
        store.require(tmp_path, RECIPE.id, check)
    store.verify(store.publish(tmp_path, RECIPE, never))
    assert store.target(tmp_path, RECIPE.id).exists()
