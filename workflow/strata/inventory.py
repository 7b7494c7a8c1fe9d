"""Inventory: what is in a store, for people: its objects, one of them, and whether all are what they were."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from strata import checkpoint, garbage, store
from strata.errors import StoreError, UsageError
from strata.recipe import kind_of

_SHORTEST = 8  # characters of a hash that stand for it


def listing(root: Path) -> str:
    """A line for each object: id, bytes, and what keeps it."""
    keeps = {id: name for name, ids in reversed(garbage.roots(root).items()) for id in garbage.needed(root, ids)}
    rows = [(id, f"{garbage.size(_path(root, id)):,}", keeps.get(id, "nothing")) for id in store.objects(root)]
    rows.insert(0, ("object", "bytes", "kept by"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(f"{id:<{widths[0]}}  {size:>{widths[1]}}  {kept}" for id, size, kept in rows)


def description(root: Path, name: str) -> str:
    """What an object is made from, what is in it, and what keeps it. Raises UsageError: no or more than one such id."""
    found = store.require(root, find(root, name))
    keeping = [root_ for root_, ids in garbage.roots(root).items() if found.id in garbage.needed(root, ids)]
    recipe = found.recipe
    lines = [
        found.id,
        f"  digest   {found.digest}",
        f"  recipe   {recipe.canonical}",
        *(f"  parent   {id}" for id in recipe.parents),
        *(f"  source   {id}" for id in recipe.sources),
        *(f"  kept by  {name}" for name in keeping or ["nothing: `strata store gc` would remove it"]),
        *(f"  {entry['size']:>15,}  {file}" for file, entry in found.manifest["files"].items()),
    ]
    return "\n".join(lines)


def verify(root: Path, ids: Iterable[str]) -> Iterator[tuple[str, str, StoreError | None]]:
    """Hash every byte of these objects: each id, what is said of it, and why it is damaged, if it is. Then it goes to
    quarantine."""
    known: checkpoint.Known = {}
    for id in ids:
        try:
            found = store.find(root, id)
            if found:
                checkpoint.verify(found, known) if found.recipe.kind == "checkpoints" else store.verify(found)
            else:
                store.target(root, id).unlink(missing_ok=True)
            yield id, "ok" if found else "not built", None
        except StoreError as error:
            try:
                place = store.reject(root, id, str(error))
            except PermissionError:
                error.details["do"] = store.NOT_OURS
                yield id, "DAMAGED, and another user's", error
                continue
            error.details["do"] = f"run snakemake: it is built anew. What is damaged lies in {place or 'quarantine'}"
            yield id, "DAMAGED, now in quarantine", error


def roots(root: Path) -> str:
    """A line for each root: how many objects it keeps and their bytes, those it shares with others included."""
    lines = []
    for name, ids in garbage.roots(root).items():
        there = [id for id in garbage.needed(root, ids) if _path(root, id).is_dir()]
        lines.append(f"{name}  {len(there)} objects, {sum(garbage.size(_path(root, id)) for id in there):,} bytes")
    return "\n".join(lines) or "no roots: nothing here is kept"


def collect(root: Path, days: float, delete: bool, keep: Collection[str]) -> str:
    """What garbage there is that is so many days old, removed or not, and what else takes room. `keep`: ids that are
    needed beside what the roots need."""
    pieces = garbage.garbage(root, days, keep)
    if delete:
        pieces = garbage.collect(root, pieces, keep)
    lines = [f"{piece.path.relative_to(root)}  {piece.bytes:,} bytes, {piece.age:.1f} days" for piece in pieces]
    total = sum(piece.bytes for piece in pieces)
    lines.append(
        f"{'removed' if delete else 'garbage'}: {len(pieces)}, {total:,} bytes at most, as files can be shared"
    )
    if pieces and not delete:
        lines.append("nothing was removed: add --delete")
    if (root / "quarantine").is_dir():
        lines.append(
            f"in {root / 'quarantine'}: {garbage.size(root / 'quarantine'):,} bytes, for you to look at and remove"
        )
    return "\n".join(lines)


def find(root: Path, name: str) -> str:
    """The one id that begins with `name`, with or without its operation. Raises UsageError: none, or several."""
    plain = name.partition("-")[2] or name
    fits = [id for id in store.objects(root) if id == name or id.startswith(name) or id.split("-")[1].startswith(name)]
    if len(fits) == 1 and (len(plain) >= _SHORTEST or fits[0] == name):
        return fits[0]
    raise UsageError(
        "no such object" if not fits else "more than one object could be meant",
        where=root, expected=f"an id, or at least {_SHORTEST} characters of its hash that no other begins with",
        got=name, todo="see `strata store list`",
    )  # fmt: skip


def _path(root: Path, id: str) -> Path:
    return root / kind_of(id) / id
