"""Answers: what a model has said so far, batch by batch, so that an evaluation that was stopped goes on behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from strata.recipe import canonical, digest
from strata.score.engine import Answer
from strata.score.tree import Batch, Request


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

    def begin(self, asked: Sequence[Request], batches: Sequence[Batch]) -> list[dict[int, Answer]]:
        """Start the next call. Returns the answers that are there already, of the first batches."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = self._folder / f"{self._calls}.jsonl"
        self._calls += 1
        made = [[number for row in batch.rows for number, *_ in row.answers] for batch in batches]
        head = canonical({"model": self._digest, "asked": digest(canonical([asked, made]))})
        # What follows the last line's end was cut short.
        lines = self._file.read_bytes().split(b"\n")[:-1] if self._file.exists() else []
        kept = lines[1:] if lines[:1] == [head.encode()] else []
        found = []
        for line, numbers in zip(kept, made, strict=False):
            answered = _read(line)
            if list(answered) != numbers:
                break
            found.append(answered)
        self._file.write_bytes(b"".join(line + b"\n" for line in [head.encode(), *kept[: len(found)]]))
        return found

    def add(self, answered: Mapping[int, Answer]) -> None:
        """Keep the answers of one batch more."""
        line = canonical([[number, *one] for number, one in answered.items()])
        with self._file.open("ab") as file:
            file.write(line.encode() + b"\n")


def _read(line: bytes) -> dict[int, Answer]:
    try:
        return {number: Answer(loglikelihood, greedy) for number, loglikelihood, greedy in json.loads(line)}
    except ValueError:
        return {}
