"""Garbage: what no root needs. Roots are what the last run of each config needs, the named variants and jobs at work.

    <root>/roots/<name>.json   ids, written when a run starts; `name` is that of its config files
    <root>/trash/              on its way out, for as long as it takes to look at the roots once more; then gone

Nothing is removed that came into being within the grace period, and a store whose roots cannot all be read keeps all.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from strata import store
from strata.disk import write_atomically
from strata.errors import StoreError
from strata.experiment import Experiment
from strata.lease import at_work, sweep_leases
from strata.recipe import digest, kind_of
from strata.scratch import sweep
from strata.store import MANIFEST

GRACE = 1.0  # days
TRASH = "trash"
SETTLED = 1 / 24  # days after which a collection is over: what is in the trash then was left by one that was killed
_DAY = 86_400  # seconds
_WORK = ("training", "answers", "tmp")  # folders of what is kept of work that was stopped, and of work in progress


@dataclass(frozen=True)
class Piece:
    """An object, or what is left of work on one, that no root needs."""

    path: Path
    bytes: int
    age: float  # days


def mark(root: Path, files: Sequence[str], experiment: Experiment) -> Path:
    """Make everything that these config files need a root, in place of what their last run needed."""
    store.require_version(root)
    places = [str(Path(file).resolve()) for file in files]
    name = "+".join(re.sub(r"[^a-z0-9_-]", "_", Path(file).stem.lower())[:40] for file in files)
    file = root / "roots" / f"{name}-{digest(chr(10).join(places))[:8]}.json"
    write_atomically(file, store.encode({"files": places, "ids": sorted(experiment.jobs)}))
    return file


def sweep_dead(root: Path) -> None:
    """Remove work in progress and leases of processes that are known to be dead, of whatever id. Nothing reads them."""
    store.require_version(root)
    sweep_leases(root)
    sweep(root / "tmp", "*")
    for folder in (root, *(path for path in root.glob("*") if path.is_dir())):
        sweep(folder, ".*")  # what was to take the place of a small file, and of leases


def roots(root: Path) -> dict[str, list[str]]:
    """What keeps objects, by name, and which.

    Raises:
        StoreError: a root cannot be read, or a variant's link leads nowhere: nobody knows what it needs. Or the store
            is of another version.
    """
    store.require_version(root)
    found: dict[str, list[str]] = {}
    for file in sorted((root / "roots").glob("[!.]*.json")):
        found[f"roots/{file.name}"] = _ids(file, "ids")
    for link in sorted((root / "variants").glob("[!.]*")):
        if link.is_symlink():
            if not (link / MANIFEST).is_file():
                raise StoreError(
                    "a variant's link leads nowhere", where=link, expected="a checkpoint", got=link.readlink(),
                    todo="run snakemake: it builds the variant again, or drops the name",
                )  # fmt: skip
            found[f"variants/{link.name}"] = [link.readlink().name]
        elif link.suffix == ".json":
            found[f"variants/{link.name}"] = _ids(link, "evaluations")
    return found | {f"leases/{id}": [id, *needs] for id, needs in at_work(root).items()}


def _ids(file: Path, key: str) -> list[str]:
    """The ids that a root keeps."""
    try:
        return list(map(str, json.loads(file.read_bytes())[key]))
    except (OSError, ValueError, KeyError, TypeError):
        raise StoreError(
            "a root cannot be read",
            where=file,
            expected=f"JSON with `{key}`",
            got="something else",
            todo="mend it, or remove it when nothing of it is needed",
        ) from None


def needed(root: Path, ids: Iterable[str]) -> set[str]:
    """These ids and all that their objects were made from."""
    found: set[str] = set()
    waiting = list(ids)
    while waiting:
        id = waiting.pop()
        if id not in found:
            found.add(id)
            try:
                recipe = json.loads((root / kind_of(id) / id / MANIFEST).read_bytes())["recipe"]
                waiting += [*recipe["sources"], *recipe["parents"]]
            except (OSError, ValueError, KeyError, TypeError):
                pass  # not built, or damaged: what it says of its parents counts for nothing
    return found


def garbage(root: Path, grace: float = GRACE, keep: Iterable[str] = ()) -> list[Piece]:
    """What no root needs, nor one of the ids to `keep`, and has been there for `grace` days. Raises StoreError as
    `roots`."""
    # What there is comes first: work that begins after this is in no list, and what began before has its lease.
    folders = [root / kind_of(id) / id for id in store.objects(root)]
    folders += [path for name in (*_WORK, TRASH) for path in (root / name).glob("*") if path.is_dir()]
    is_needed = _needs(root, keep)
    pieces = [piece for path in folders if not is_needed(path) and (piece := _piece(path))]
    return [piece for piece in pieces if piece.age >= (SETTLED if piece.path.parent.name == TRASH else grace)]


def collect(root: Path, pieces: Sequence[Piece], keep: Iterable[str] = ()) -> list[Piece]:
    """Remove pieces of garbage, but for those that have become needed since. Returns what was removed.

    All are put aside first, and then the roots are read again. A run marks its root first and then looks whether what
    it builds on is there: so either it misses a piece, or the piece is brought back here. As all are where the roots
    cannot be read any more.
    """
    places: dict[Path, Piece] = {}
    kept = list(keep)
    try:
        for piece in pieces:
            if place := _put_aside(root, piece.path):
                places[place] = piece
        while back := _needed_again(root, places, kept):  # and then what those were made from
            _bring_back(root, back)
            places = {place: piece for place, piece in places.items() if place not in back}
    except BaseException:
        _bring_back(root, places)
        raise
    for place in places:
        for path in (place, *(path for path in place.rglob("*") if path.is_dir())):
            path.chmod(0o755)
        shutil.rmtree(place)
    return list(places.values())


def _needed_again(root: Path, places: Mapping[Path, Piece], keep: Iterable[str]) -> dict[Path, Piece]:
    is_needed = _needs(root, keep)
    return {place: piece for place, piece in places.items() if is_needed(piece.path)}


def _needs(root: Path, keep: Iterable[str]) -> Callable[[Path], bool]:
    """Tells whether a folder of the store is needed now. Of work in progress, what is being made is; of objects and
    the state of a training, what a root keeps."""
    busy = at_work(root)
    ids = needed(root, (*keep, *(id for ids in roots(root).values() for id in ids)))
    return lambda path: _id(path) in busy if path.parent.name == "tmp" else path.name in ids


def _piece(path: Path) -> Piece | None:
    """A folder as garbage; None when it has gone meanwhile."""
    try:
        return Piece(path, size(path), (time.time() - path.stat().st_mtime) / _DAY)
    except FileNotFoundError:
        return None


def _put_aside(root: Path, path: Path) -> Path | None:
    """Move a folder into the trash; None when it has gone meanwhile, or is another user's. There its age begins anew,
    so that another collection does not remove what this one may bring back."""
    place = root / TRASH / f"{_id(path)}.{secrets.token_hex(4)}"
    place.parent.mkdir(exist_ok=True)
    try:
        path.chmod(0o755)  # a folder that is read-only cannot be moved to another parent
    except (FileNotFoundError, PermissionError):
        return None
    try:
        os.utime(path)
        if _is_object(root, path):
            store.target(root, path.name).unlink(missing_ok=True)
        path.rename(place)
    except FileNotFoundError:
        return None
    return place


def _bring_back(root: Path, places: Mapping[Path, Piece]) -> None:
    """Put folders back to where they were, unless others have been made in their place."""
    failed: list[Exception] = []
    for place, piece in places.items():
        try:
            if not place.exists():  # it is back already, or turned out to be damaged
                continue
            if _is_object(root, piece.path):
                store.restore(root, piece.path.name, place)
            elif not piece.path.exists():
                place.rename(piece.path)
        except (StoreError, OSError) as error:  # that one; and on with the others
            failed.append(error)
    if failed:
        raise failed[0]


def size(folder: Path) -> int:
    """Bytes of all files below a folder: more than becomes free where other objects share them."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _id(path: Path) -> str:
    return path.name.partition(".")[0]


def _is_object(root: Path, path: Path) -> bool:
    return path.parent.name not in (TRASH, *_WORK) and path.parent.parent == root
