"""Leases: a second process waits for what the first one makes, and does it itself once that one is dead."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from strata import lease as leases
from strata.errors import ClusterError, Preempted
from strata.lease import at_work, lease, sweep_lease, sweep_leases
from strata.scratch import machine

ID = "merge-0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.02)
    monkeypatch.setattr(leases, "PATIENCE", 0.5)


def hold(root: Path, **changes: object) -> Path:
    """A lease as another process would hold it, without its beat."""
    folder = root / "leases" / ID
    folder.mkdir(parents=True)
    owner = {"host": "elsewhere", "process": 7, "job": "", "restart": -1, "token": "x", "needs": []} | changes
    (folder / "owner.json").write_text(json.dumps(owner))
    return folder


@contextmanager
def beating(folder: Path) -> Iterator[None]:
    """A lease whose owner lives meanwhile."""
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(0.02):
            number += 1
            (folder / "beat").write_text(str(number))

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_a_lease_is_there_while_it_is_held_and_no_longer(tmp_path: Path) -> None:
    with lease(tmp_path, ID, lambda: None) as made:
        assert made is None
        assert json.loads((tmp_path / "leases" / ID / "owner.json").read_text())["process"] == os.getpid()
    assert not list((tmp_path / "leases").iterdir())


def test_it_is_given_back_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), lease(tmp_path, ID, lambda: None):
        raise RuntimeError
    assert not list((tmp_path / "leases").iterdir())


def test_who_waits_gets_what_the_other_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than an owner without a beat would count as alive."""
    monkeypatch.setattr(leases, "PATIENCE", 2)  # a thread that beats may stand still for a while
    since = time.monotonic()
    with (
        beating(hold(tmp_path)),
        lease(tmp_path, ID, lambda: "object" if time.monotonic() - since > 3 else None) as made,
    ):
        assert made == "object"
    assert (tmp_path / "leases" / ID).exists()  # it is the other's


def test_an_owner_whose_beat_stands_still_is_dead(tmp_path: Path) -> None:
    with beating(hold(tmp_path)):
        time.sleep(0.3)
    with lease(tmp_path, ID, lambda: None) as made:
        assert made is None
        assert json.loads((tmp_path / "leases" / ID / "owner.json").read_text())["host"] == machine()
    assert not list((tmp_path / "leases").iterdir())


def test_a_lease_that_does_not_say_whose_it_is_is_waited_for_and_taken(tmp_path: Path) -> None:
    """As where a file system brings a file before its content."""
    (hold(tmp_path) / "owner.json").write_text("")
    since = time.monotonic()
    with lease(tmp_path, ID, lambda: None) as made:
        assert made is None and time.monotonic() - since >= leases.PATIENCE


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PATIENCE", 1e9)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    hold(tmp_path, host=machine(), process=ended.pid)
    with lease(tmp_path, ID, lambda: None) as made:
        assert made is None


def test_a_process_of_that_number_in_a_container_says_nothing_of_its_owner(tmp_path: Path) -> None:
    host, _, mark = machine().rpartition("-")
    hold(tmp_path, host=f"{host}-{mark[::-1]}", process=2**22 + 1)
    since = time.monotonic()
    with lease(tmp_path, ID, lambda: None):
        assert time.monotonic() - since >= leases.PATIENCE


def queued_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lease of this very Slurm job, from before it was queued again."""
    monkeypatch.setattr(leases, "PATIENCE", 1e9)
    monkeypatch.setattr(leases, "BEAT", 0.05)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(leases, "restarts", lambda job: 1)
    return hold(root, job="12", restart=0)


def test_a_job_that_is_queued_again_hardly_waits_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queued_again(tmp_path, monkeypatch)
    with lease(tmp_path, ID, lambda: None) as made:
        assert made is None


def test_but_it_does_while_its_former_self_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a node that has lost Slurm, and not the disk."""
    since = time.monotonic()
    with (
        beating(queued_again(tmp_path, monkeypatch)),
        lease(tmp_path, ID, lambda: "object" if time.monotonic() - since > 1 else None) as made,
    ):
        assert made == "object"


def test_a_look_that_fails_does_not_end_the_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a file server is away for a moment."""
    monkeypatch.setattr(leases, "_read", lambda file: "")
    with lease(tmp_path, ID, lambda: None):
        beat = tmp_path / "leases" / ID / "beat"
        for number in ("1", "3"):
            until = time.monotonic() + 10
            while not beat.exists() or beat.read_text() < number:
                assert time.monotonic() < until
                time.sleep(0.01)


def test_time_in_which_nobody_could_look_counts_for_nobodys_death(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def slow() -> str | None:
        looks.append(None)
        time.sleep(leases.PATIENCE)
        return "object" if len(looks) > 3 else None

    hold(tmp_path)
    with lease(tmp_path, ID, slow) as made:
        assert made == "object"


def test_a_signal_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PATIENCE", 1e9)
    stop: list[int] = []
    hold(tmp_path)
    threading.Timer(0.1, stop.append, [15]).start()
    with pytest.raises(Preempted, match="waited"), lease(tmp_path, ID, lambda: None, stop=stop):
        pass
    assert (tmp_path / "leases" / ID).exists()  # it is the other's


def test_a_rename_whose_answer_was_lost_has_taken_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def twice(path: Path, place: Path) -> Path:
        rename(path, place)
        return rename(path, place) if place.name == ID else place

    monkeypatch.setattr(Path, "rename", twice)
    with lease(tmp_path, ID, lambda: None) as made:
        assert made is None


def test_nothing_is_kept_for_who_has_been_silent_for_a_week(tmp_path: Path) -> None:
    folder = hold(tmp_path, needs=["x"])
    for days, there in ((6, True), (8, False)):
        for path in (folder, *folder.iterdir()):
            os.utime(path, (0, time.time() - days * 86_400))
        assert at_work(tmp_path) == ({ID: ["x"]} if there else {})
        sweep_leases(tmp_path)
        assert folder.exists() == there


@pytest.mark.parametrize(("before", "now"), [(1, 1), (-1, 1), (0, -1), (2, 1)])
def test_an_owner_in_the_same_job_may_be_alive_unless_the_job_was_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, now: int
) -> None:
    """Two nodes of one allocation, or Slurm did not say."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr(leases, "restarts", lambda job: now)
    hold(tmp_path, job="12", restart=before)
    since = time.monotonic()
    with lease(tmp_path, ID, lambda: None) as made:
        assert made is None and time.monotonic() - since >= leases.PATIENCE


def test_what_the_dead_left_behind_is_swept_and_what_the_living_hold_is_not(tmp_path: Path) -> None:
    """Who is killed between publishing an object and giving its lease back never comes for it again."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folder = hold(tmp_path, host=machine(), process=ended.pid)
    folder.with_name(f".{ID}.{machine()}.{ended.pid}.0123").mkdir()
    sweep_lease(tmp_path, ID)
    assert not list((tmp_path / "leases").iterdir())
    (hold(tmp_path) / "owner.json").write_text("")
    sweep_lease(tmp_path, ID)
    assert not list((tmp_path / "leases").iterdir())
    for owner in ({"host": machine(), "process": os.getpid()}, {"host": "elsewhere"}):
        folder = hold(tmp_path, **owner)
        sweep_lease(tmp_path, ID)
        assert folder.is_dir()
        shutil.rmtree(folder)


def test_who_is_not_to_wait_steps_back_from_the_living_and_takes_over_from_the_dead(tmp_path: Path) -> None:
    with (
        beating(hold(tmp_path, job="7")),
        pytest.raises(ClusterError, match="Slurm job 7"),
        lease(tmp_path, ID, lambda: None, wait=False),
    ):
        pass
    assert (tmp_path / "leases" / ID).exists()
    with lease(tmp_path, ID, lambda: None, wait=False) as made:
        assert made is None


def test_a_lease_that_was_taken_over_is_left_to_its_new_owner(tmp_path: Path) -> None:
    """As after a machine was cut off for a while: it goes on, and must not end the other's lease."""
    with lease(tmp_path, ID, lambda: None):
        owner = tmp_path / "leases" / ID / "owner.json"
        owner.write_text(json.dumps(json.loads(owner.read_text()) | {"host": "elsewhere", "token": "x"}))
        time.sleep(0.1)
    assert json.loads(owner.read_text())["host"] == "elsewhere"


def test_of_many_that_come_at_once_one_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "PATIENCE", 60)
    made: list[int] = []

    def work(number: int) -> None:
        with lease(tmp_path, ID, lambda: made[0] if made else None) as found:
            if found is None:
                time.sleep(0.2)
                made.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
