"""Places: where a variant went besides the store, with its sizes, for the report to link."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from strata import store
from strata.errors import StoreError
from strata.experiment import Experiment
from strata.receipts import KINDS, Receipt, receipt
from strata.report.table import Table
from strata.store import Object


@dataclass(frozen=True)
class Place:
    """One publication of a variant: what it is, where it is linked to, its files and bytes.

    `note` says what a reader must know of it, such as that it is of other weights than the table's.
    """

    variant: str
    what: str
    text: str
    link: str
    files: int
    bytes: int
    note: str = ""


def places(root: Path, experiment: Experiment, table: Table, page: Path) -> list[Place]:
    """All that is known to be published of the table's variants; links are relative to the folder of the `page`."""
    found = []
    for row in table.rows:
        variant = experiment.variants[row.name]
        for job in variant.ggufs:
            if gguf := _found(root, job.id):
                kind, types = job.recipe.parameters["type"], gguf.facts.get("types", {})
                file = next(name for name in gguf.manifest["files"] if name.endswith(".gguf"))
                size = gguf.manifest["files"][file]["size"]
                link = os.path.relpath(gguf.path / file, page)
                made_of = ", ".join(f"{count} {name}" for name, count in types.items())
                note = f"tensors: {made_of}" if made_of else ""
                note = _note(gguf.facts["checkpoint_digest"], row.digest) or note
                found.append(Place(row.name, f"GGUF {kind}", f"{gguf.id[:-24]}/{file}", link, 1, size, note))
        for kind in KINDS:
            if made := receipt(root, row.name, kind):
                found.append(_of(made, row.digest, page))
    return found


def _found(root: Path, id: str) -> Object | None:
    """A GGUF file; none where it is damaged, which is told by whoever needs it."""
    with suppress(StoreError):
        return store.find(root, id)
    return None


def _of(made: Receipt, digest: str, page: Path) -> Place:
    note = _note(made.digest, digest)
    if made.kind == "hub":
        who = "private" if made.private else "public"
        what, text = f"hub, {who}", f"{made.place} at {made.commit[:12]}"
        link = made.url if made.url.startswith(("https://", "http://")) else ""
    else:
        folder = Path(made.place).expanduser()
        what, text, link = "folder", made.place, os.path.relpath(folder, page)
        note = note if folder.is_dir() else "no longer there: `strata publish` writes it again"
    return Place(made.variant, what, text, link, len(made.files), made.bytes, note)


def _note(digest: str, wanted: str) -> str:
    return "" if digest == wanted else "of other weights than this table's: publish it again"
