"""Snapshots: the newest whole one of the same run is there to go on from, and nothing half-written stays beside it."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.metadata import BytesStorageMetadata

from strata.disk import disk_errors
from strata.errors import SpaceError, TrainingError
from strata.scratch import machine
from strata.train import snapshots
from strata.train.parallel import Ranks

ALONE = Ranks(0, 1, torch.device("cpu"))


def save(folder: Path, step: int, made_from: str = "this") -> None:
    snapshots.save(folder, step, {"step": step}, {"a": torch.full((5,), float(step))}, made_from, ALONE)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


def test_a_snapshot_gives_back_state_and_tensors(tmp_path: Path) -> None:
    save(tmp_path, 3)
    found = snapshots.newest(tmp_path, "this", ALONE)
    assert found is not None and found.state == {"step": 3}
    tensors = {"a": torch.zeros(5)}
    snapshots.load(found, tensors)
    assert tensors["a"].tolist() == [3.0] * 5


def test_metadata_that_would_run_something_is_not_opened(tmp_path: Path) -> None:
    """It is a pickle; and whoever can write it can write its checksum, too."""
    save(tmp_path, 3)
    found = snapshots.newest(tmp_path, "this", ALONE)
    assert found is not None

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    table = pickle.loads((found.path / ".metadata").read_bytes())
    table.state_dict_metadata["a"] = BytesStorageMetadata()  # then torch unpickles what lies in the tensor's place
    for bad in (pickle.dumps(Evil()), pickle.dumps(table), pickle.dumps(5), b"", b"\x80"):
        (found.path / ".metadata").write_bytes(bad)
        with pytest.raises(TrainingError, match="not what torch writes"):
            snapshots.load(found, {"a": torch.zeros(5)})
    assert not (tmp_path / "ran").exists()


def test_the_two_newest_stay(tmp_path: Path) -> None:
    for step in (3, 5, 9):
        save(tmp_path, step)
    assert steps(tmp_path) == [5, 9]


def test_snapshots_that_were_passed_over_do_not_outlive_those_of_the_run_that_goes_on(tmp_path: Path) -> None:
    """Those of a parent that was since made anew may be of later steps: counted as newer, they pushed out the run's."""
    for step in (80, 90):
        save(tmp_path, step, "another")
    assert snapshots.newest(tmp_path, "this", ALONE) is None
    save(tmp_path, 10)
    found = snapshots.newest(tmp_path, "this", ALONE)
    assert found is not None and found.state == {"step": 10}
    assert steps(tmp_path) == [10]


def test_what_a_killed_process_left_of_another_step_goes(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    left = tmp_path / f"step-00000004.{machine()}.{dead.pid}.0a1b2c3d"
    own = tmp_path / f"step-00000004.{machine()}.{os.getpid()}.0a1b2c3d"
    for path in (left, own):
        path.mkdir()
    save(tmp_path, 7)
    assert not left.exists() and own.exists()


def test_a_full_disk_is_told_as_such_and_leaves_the_snapshot_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch wraps what went wrong into an exception that is none: not even `except Exception` sees it."""
    save(tmp_path, 3)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileSystemWriter, "write_data", full)
    with pytest.raises(SpaceError, match="the disk is full"), disk_errors(tmp_path):
        save(tmp_path, 7)
    assert steps(tmp_path) == [3]
