"""Leases: who is at work on an id, so that a second process waits for what the first one makes.

    <root>/leases/<id>/owner.json   who: host, process, the scheduler's job; and what it reads meanwhile
    <root>/leases/<id>/beat         changes for as long as its owner lives

A lease saves work and carries no correctness: where it fails, two processes make one object, and the store takes the
first. Clocks of machines are never compared: who waits sees by its own whether the beat goes on.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from strata.errors import ClusterError, Preempted
from strata.scratch import is_alive, machine, scratch_folder, sweep
from strata.slurm import restarts

BEAT = 5.0  # seconds between two beats
PATIENCE = 90.0  # seconds without one after which an owner counts as dead: long for a network's file system
SILENT = 7 * 86_400  # seconds without one after which nothing is kept for an owner: a job may stand still for days
_Made = TypeVar("_Made")
_logger = logging.getLogger(__name__)


@contextmanager
def lease(
    root: Path,
    id: str,
    find: Callable[[], _Made | None],
    needs: Sequence[str] = (),
    wait: bool = True,
    stop: Sequence[int] = (),
) -> Iterator[_Made | None]:
    """Hold the lease of an id. Waits while another process holds it and lives.

    Args:
        needs: ids that must stay in the store in the meantime.
        wait: or else step back: where several machines would stand still for one that waits.
        stop: signals that came, of who catches them: one ends the wait.

    Yields:
        What `find` found while waiting; or None, and then it is the caller's to make.

    Raises:
        ClusterError: another process is at work on it, and this one is not to wait.
        Preempted: a signal came while it waited.
    """
    folder = root / "leases" / id
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = _self() | {"needs": list(needs)}
    made = _wait(folder, own, find, wait, stop)
    if made is not None:
        yield made
        return
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(folder, own, ended), daemon=True)
    thread.start()
    try:
        yield None
    finally:
        ended.set()
        thread.join()
        if _owner(folder) == own:
            _put_aside(folder)


def _wait(
    folder: Path, own: dict[str, Any], find: Callable[[], _Made | None], wait: bool, stop: Sequence[int]
) -> _Made | None:
    """Return what was made in the meantime, or take the lease and return None."""
    said, pause = False, min(BEAT, PATIENCE / 10)
    seen, silent, looked = None, 0.0, time.monotonic()
    while True:
        if _acquire(folder, own):
            made = find()  # another may have made it and ended since the caller looked
            if made is not None:
                _put_aside(folder)
            return made
        made = find()
        if made is not None:
            return made
        owner, beat = _owner(folder), _read(folder / "beat")
        if (owner, beat) != seen:
            if seen and owner and owner == seen[0] and not wait:  # it lives: its beat went on
                raise ClusterError(
                    "another process is at work on this", where=folder, expected="one process for each object",
                    got=_told(owner),
                    todo="let it end, or end it, and run again",
                )  # fmt: skip
            seen, silent = (owner, beat), 0.0
        now = time.monotonic()
        silent += min(now - looked, 2 * pause)  # a file server that is away stops both alike
        looked = now
        if silent > _patience(owner, own):
            _logger.info("the lease of %s is taken over from %s, which is dead", folder.name, _told(owner))
            _put_aside(folder)
            continue
        if not said:
            _logger.warning("waiting for %s, which is at work on %s", _told(owner), folder.name)
            said = True
        if stop:
            raise Preempted(
                "stopped by a signal while it waited for another process", where=folder, got=_told(owner),
                todo="run the same command again",
            )  # fmt: skip
        time.sleep(pause)


def _acquire(folder: Path, own: dict[str, Any]) -> bool:
    """Take a lease that nobody holds, by the rename of a folder that says already whose it is."""
    mine = scratch_folder(folder.parent, f".{folder.name}")
    try:
        (mine / "owner.json").write_text(json.dumps(own))
        mine.rename(folder)
    except OSError as error:
        if error.errno == errno.ENOENT and _owner(folder) == own:  # a rename that NFS has done, and asked for again
            return True
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    finally:
        shutil.rmtree(mine, ignore_errors=True)
    return True


def at_work(root: Path) -> dict[str, list[str]]:
    """The ids that processes are at work on, alive or not, and what each needs; not of those silent for a week."""
    folders = [folder for folder in (root / "leases").glob("[!.]*") if not _is_silent(folder)]
    found = {folder.name: _owner(folder) for folder in folders}
    return {id: owner["needs"] if owner else [] for id, owner in found.items()}


def sweep_lease(root: Path, id: str) -> None:
    """Remove what processes that are known to be dead left of an id's lease, once the id is there: who was killed just
    behind its publication would be at work for ever, and keep all that it read from being garbage."""
    folder = root / "leases" / id
    if folder.is_dir():
        owner = _owner(folder)
        if owner is None or _patience(owner, _self()) < PATIENCE:  # nobody: a power cut kept the folder, not who it was
            _put_aside(folder)
    sweep(folder.parent, f".{id}")


def sweep_leases(root: Path) -> None:
    """End the leases of processes that are known to be dead: of what nobody makes again, nobody sweeps."""
    own = _self()
    for folder in (root / "leases").glob("[!.]*"):
        if not _patience(_owner(folder), own) or _is_silent(folder):
            _put_aside(folder)


def _put_aside(folder: Path) -> None:
    """End a lease by a rename: of several that wait for a dead owner one does it, and who is killed at it leaves a
    lease that says whose it is, or none."""
    aside = scratch_folder(folder.parent, f".{folder.name}")
    with suppress(FileNotFoundError):
        folder.rename(aside)  # in place of the empty folder
    shutil.rmtree(aside, ignore_errors=True)


def _beat(folder: Path, own: dict[str, Any], ended: threading.Event) -> None:
    number = 0
    while not ended.wait(BEAT):
        if (_owner(folder) or own) != own:  # taken over by one that thought us dead: it is that one's now
            return
        number += 1
        with suppress(OSError):  # a full disk: whoever waits will do the work as well
            (folder / "beat").write_text(str(number))


def _self() -> dict[str, Any]:
    job = os.environ.get("SLURM_JOB_ID", "")
    return {
        "host": machine(),
        "process": os.getpid(),
        "job": job,
        "restart": restarts(job) if job else -1,
        "token": secrets.token_hex(8),
    }


def _owner(folder: Path) -> dict[str, Any] | None:
    """Who holds a lease; None while it is being taken, or when nobody does."""
    try:
        found = json.loads(_read(folder / "owner.json"))
    except ValueError:
        return None
    known = isinstance(found, dict) and found.keys() == {*_self(), "needs"} and isinstance(found["restart"], int)
    return found if known else None


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _patience(owner: dict[str, Any] | None, own: dict[str, Any]) -> float:
    """Seconds without a beat after which an owner counts as dead. None for a process of this machine that is not there;
    few for this very job before it was queued again: its node may have lost Slurm, and not the disk."""
    if owner is None:
        return PATIENCE
    if owner["host"] == own["host"] and not is_alive(owner["process"]):
        return 0.0
    was_queued_again = own["job"] and owner["job"] == own["job"] and 0 <= owner["restart"] < own["restart"]
    return min(3 * BEAT, PATIENCE) if was_queued_again else PATIENCE


def _is_silent(folder: Path) -> bool:
    """Whether nobody can be at work any more, as far as the clocks of machines agree within days."""
    with suppress(OSError):
        last = max(file.stat().st_mtime for file in (folder, *folder.iterdir()))
        return time.time() - last > SILENT
    return False


def _told(owner: dict[str, Any] | None) -> str:
    if owner is None:
        return "a process that did not say who it is"
    job = f", Slurm job {owner['job']}" if owner["job"] else ""
    return f"process {owner['process']} on {owner['host']}{job}"
