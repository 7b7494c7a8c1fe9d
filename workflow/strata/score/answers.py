"""Answers: what a model has said so far, batch by batch, so that an evaluation that was stopped goes on behind it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strata.recipe import canonical, digest


class Answers:
    """A file of answers for each of an evaluation's calls of the model, below `folder`.

    Its first line says which model was asked (`digest`, of its content) and what, in which batches; each other one is a
    batch. A file that answers something else counts for nothing, and so does a line that was cut short or is not that
    of the next batch, as two processes might leave it, with all that follows.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self._folder = folder
        self._digest = digest
        self._calls = 0
        self._file = folder

    def begin(self, asked: Sequence[Any], batches: Sequence[Sequence[int]]) -> list[dict[int, Any]]:
        """Start the next call: what is asked, each as JSON, in batches of numbers. Returns the answers that are there
        already, of the first batches."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / f"{self._calls}.jsonl"
        self._calls += 1
        head = canonical({"model": self._digest, "asked": _digest(asked), "batches": digest(canonical(batches))})
        # What follows the last line's end was cut short.
        lines = self._file.read_bytes().split(b"\n")[:-1] if self._file.exists() else []
        kept = lines[1:] if lines[:1] == [head.encode()] else []
        found: list[dict[int, Any]] = []
        for line, numbers in zip(kept, batches, strict=False):
            answered = _read(line)
            if list(answered) != list(numbers):
                break
            found.append(answered)
        self._file.write_bytes(b"".join(line + b"\n" for line in [head.encode(), *kept[: len(found)]]))
        return found

    def add(self, answered: Mapping[int, Any]) -> None:
        """Keep the answers of one batch more."""
        with self._file.open("ab") as file:
            file.write(canonical(list(answered.items())).encode() + b"\n")


def _digest(asked: Sequence[Any]) -> str:
    """One after the other: as one text, the requests of a few-shot task can be hundreds of megabytes."""
    found = hashlib.sha256()
    for one in asked:
        found.update(canonical(one).encode() + b"\n")
    return found.hexdigest()


def _read(line: bytes) -> dict[int, Any]:
    try:
        return {number: answer for number, answer in json.loads(line)}
    except (TypeError, ValueError):
        return {}
