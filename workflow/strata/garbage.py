"""Garbage: what no root needs. Roots are what the last run of each config needs, the named variants and jobs at work.

    <root>/roots/<name>.json   ids, written when a run starts; `name` is that of its config files
    <root>/trash/              on its way out, for as long as it takes to look at the roots once more

Nothing is removed that came into being within the grace period, and a store whose roots cannot all be read keeps all.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from strata import store
from strata.errors import StoreError
from strata.experiment import Experiment
from strata.lease import at_work, sweep_leases
from strata.recipe import digest, kind_of
from strata.scratch import sweep
from strata.store import MANIFEST

GRACE = 1.0  # days
TRASH = "trash"
_DAY = 86_400  # seconds


@dataclass(frozen=True)
class Piece:
    """An object, or what is left of work on one, that no root needs."""

    path: Path
    bytes: int
    age: float  # days


def mark(root: Path, files: Sequence[str], experiment: Experiment) -> Path:
    """Make everything that these config files need a root, in place of what their last run needed."""
    places = [str(Path(file).resolve()) for file in files]
    name = "+".join(re.sub(r"[^a-z0-9_-]", "_", Path(file).stem.lower())[:40] for file in files)
    file = root / "roots" / f"{name}-{digest(chr(10).join(places))[:8]}.json"
    store.write_atomically(file, store.encode({"files": places, "ids": sorted(experiment.jobs)}))
    return file


def sweep_dead(root: Path) -> None:
    """Remove work in progress and leases of processes that are known to be dead, of whatever id. Nothing reads them."""
    sweep_leases(root)
    sweep(root / "tmp", "*")


def roots(root: Path) -> dict[str, list[str]]:
    """What keeps objects, by name, and which.

    Raises:
        StoreError: a root cannot be read, or a variant's link leads nowhere: nobody knows what it needs.
    """
    found: dict[str, list[str]] = {}
    for file in sorted((root / "roots").glob("[!.]*.json")):
        found[f"roots/{file.name}"] = _ids(file, "ids")
    for link in sorted((root / "variants").glob("[!.]*")):
        if link.is_symlink():
            if not (link / MANIFEST).is_file():
                raise StoreError(
                    "a variant's link leads nowhere", where=link, got=link.readlink(),
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
            "a root cannot be read", where=file, todo="mend it, or remove it when nothing of it is needed"
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


def garbage(root: Path, grace: float = GRACE) -> list[Piece]:
    """What no root needs and has been there for `grace` days. Raises StoreError as `roots`."""
    busy, kept = at_work(root), _kept(root)
    folders = [root / kind_of(id) / id for id in store.objects(root) if id not in kept]
    folders += [path for path in (root / "training").glob("*-*") if path.name not in kept]
    folders += [path for path in (root / "tmp").glob("*") if _id(path) not in busy]
    folders += list((root / TRASH).glob("*"))  # of a collection that was killed
    pieces = [Piece(path, size(path), (time.time() - path.stat().st_mtime) / _DAY) for path in folders]
    return [piece for piece in pieces if piece.age >= grace]


def collect(root: Path, pieces: Sequence[Piece]) -> list[Piece]:
    """Remove pieces of garbage, but for those that have become needed since. Returns what was removed.

    All are put aside first, and then the roots are read again. A run marks its root first and then looks whether what
    it builds on is there: so either it misses a piece, or the piece is brought back here.
    """
    places = {root / TRASH / f"{piece.path.name}.{secrets.token_hex(4)}": piece for piece in pieces}
    (root / TRASH).mkdir(exist_ok=True)
    for place, piece in places.items():
        if _is_object(root, piece.path):
            store.target(root, piece.path.name).unlink(missing_ok=True)
        piece.path.chmod(0o755)  # a folder that is read-only cannot be moved to another parent
        piece.path.rename(place)
    kept = _kept(root)
    back = [place for place, piece in places.items() if _is_object(root, piece.path) and piece.path.name in kept]
    for place in back:
        store.restore(root, places[place].path.name, place)
    for place in places.keys() - set(back):
        for path in (place, *(path for path in place.rglob("*") if path.is_dir())):
            path.chmod(0o755)
        shutil.rmtree(place)
    return [piece for place, piece in places.items() if place not in back]


def size(folder: Path) -> int:
    """Bytes of all files below a folder: more than becomes free where other objects share them."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _kept(root: Path) -> set[str]:
    return needed(root, (id for ids in roots(root).values() for id in ids))


def _id(path: Path) -> str:
    return path.name.partition(".")[0]


def _is_object(root: Path, path: Path) -> bool:
    return path.parent.name not in (TRASH, "tmp", "training") and path.parent.parent == root
