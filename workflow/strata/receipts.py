"""Receipts: what was published where, kept in the results. The report links them, and refuses none: they are history.

results/published/<name>.json       of the folder that a variant was written into
results/published/<name>.hub.json   of the commit that it was uploaded as
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from strata import store
from strata.disk import write_atomically

FOLDER = "published"
KINDS = {"directory": ".json", "hub": ".hub.json"}


@dataclass(frozen=True)
class Receipt:
    """One publication. `place` is a folder as the config calls it, or a repository; `commit` and `url` are of the hub.

    checkpoint, digest: which weights
    files: name -> size in bytes
    card: sha256 of the model card
    """

    kind: str
    variant: str
    place: str
    checkpoint: str
    digest: str
    files: Mapping[str, int]
    card: str = ""
    commit: str = ""
    url: str = ""
    private: bool = True

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def keep(root: Path, receipt: Receipt) -> None:
    """Write a receipt over the last one of its kind."""
    file = root / FOLDER / f"{receipt.variant}{KINDS[receipt.kind]}"
    write_atomically(file, store.encode(asdict(receipt)))


def receipt(root: Path, variant: str, kind: str) -> Receipt | None:
    """The last receipt of a variant, if there is one that can be read."""
    try:
        made = Receipt(**json.loads((root / FOLDER / f"{variant}{KINDS[kind]}").read_bytes()))
        words = (value for name, value in asdict(made).items() if name not in ("files", "private"))
        is_whole = all(isinstance(word, str) for word in words) and made.bytes >= 0
    except (OSError, ValueError, TypeError, AttributeError):
        return None
    return made if is_whole else None
