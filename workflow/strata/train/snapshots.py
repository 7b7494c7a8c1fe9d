"""Snapshots: the state of a run at the end of a step, complete or not there, from which it goes on bit for bit.

    <folder>/step-00000012/     the tensors, as torch's distributed checkpoints write them, and state.json

state.json is written last, with the sha256 of every other file; the folder gets its name by one rename. A snapshot may
be loaded by another number of ranks than wrote it.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata import store
from strata.disk import file_sha256, sync, write_atomically
from strata.scratch import scratch_folder, sweep
from strata.train.parallel import Ranks

KEPT = 2  # the newest, and one more should the newest turn out to be damaged
STATE = "state.json"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that is whole: where it lies, and the run's state in plain values."""

    path: Path
    state: dict[str, Any]


def save(
    folder: Path, step: int, state: Mapping[str, Any], tensors: Mapping[str, Any], made_from: Any, ranks: Ranks
) -> None:
    """Write the snapshot of a step, and drop all but the newest KEPT. Every rank calls it.

    Args:
        tensors: what the run changes; under FSDP this rank's part of them.
        made_from: what a run must share with the one that goes on from here: recipe, content of its inputs.
    """
    name = f"step-{step:08d}"
    if ranks.is_first:
        sweep(folder, "step-*")  # a job that was killed wrote another step's, as a rule
    scratch = Path(ranks.told(str(scratch_folder(folder, name)) if ranks.is_first else ""))
    try:
        _write(scratch, tensors, ranks)
        own = {file.name: file_sha256(file) for file in scratch.glob(f"__{ranks.rank}_*")}
        files = {name: sha256 for part in ranks.gathered(own) for name, sha256 in part.items()}
        if ranks.is_first:
            files[".metadata"] = file_sha256(scratch / ".metadata")
            write_atomically(
                scratch / STATE, store.encode({"made_from": made_from, "state": dict(state), "files": files})
            )
            final = folder / name
            shutil.rmtree(final, ignore_errors=True)  # a damaged one: a whole one would have been gone on from
            scratch.rename(final)
            sync(folder)
            _drop(folder, final)
        ranks.told(None)  # nobody goes on before it stands
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # on a full disk it is what fills it


def _write(scratch: Path, tensors: Mapping[str, Any], ranks: Ranks) -> None:
    with _quiet():
        from torch.distributed import checkpoint

        writer = checkpoint.FileSystemWriter(scratch, sync_files=True)
        try:
            checkpoint.save(dict(tensors), storage_writer=writer, no_dist=ranks.size == 1)
        except checkpoint.CheckpointException as error:  # no `Exception`: it wraps what each rank has met
            met = [failure for failure, _ in error.failures.values()]
            seen = [one for failure in met for one in (failure, failure.__context__) if isinstance(one, OSError)]
            raise (seen or met)[0] from None


def _drop(folder: Path, final: Path) -> None:
    """Keep KEPT snapshots: this one and those before it. Of later steps are those that were passed over."""
    kept = [path for path in names(folder) if path.name <= final.name][:KEPT]
    for path in names(folder):
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)  # a second process that took this one for dead drops them too


def newest(folder: Path, made_from: Any, ranks: Ranks) -> Snapshot | None:
    """The newest whole snapshot of a run made from the same. What is damaged or foreign is passed over, and said so."""
    found = None
    if ranks.is_first:
        for path in names(folder):
            found, problem = _read(path, made_from)
            if found:
                break
            _logger.warning("snapshot %s is not used: %s", path, problem)
    return ranks.told(found)  # type: ignore[no-any-return]


def load(snapshot: Snapshot, tensors: Mapping[str, Any]) -> None:
    """Fill these tensors, in place, from a snapshot. Raises TrainingError for one that torch has not written."""
    with _quiet():
        from torch import distributed
        from torch.distributed import checkpoint

        from strata.train.metadata import Reader

        reader = Reader(snapshot.path)
        reader.read_metadata()  # here, since torch wraps what it meets into an error of its own
        checkpoint.load(dict(tensors), storage_reader=reader, no_dist=not distributed.is_initialized())


def names(folder: Path) -> list[Path]:
    """The snapshots in a folder, the newest first, whole or not."""
    found = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit())
    return sorted(found, reverse=True)


def _read(path: Path, made_from: Any) -> tuple[Snapshot | None, str]:
    """The snapshot at a path, or why it is none."""
    try:
        written = json.loads((path / STATE).read_bytes())
        if written["made_from"] != made_from:
            return None, "it is of another recipe, or of other content of its inputs"
        for name, sha256 in written["files"].items():
            if file_sha256(path / name) != sha256:
                return None, f"{name} is damaged"
        return Snapshot(path, written["state"]), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"{type(error).__name__}: {error}"


@contextmanager
def _quiet() -> Any:
    """Without torch's notes on using its distributed checkpoints in one process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
