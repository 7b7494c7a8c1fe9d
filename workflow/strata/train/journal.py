"""The journal of a run: one JSON line for each step and measurement, beside the store. Volatile: it knows the clock.

`STRATA_TENSORBOARD=1` in the environment writes the same numbers for TensorBoard too.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from strata.disk import write_atomically
from strata.errors import TrainingError

LOG = "log.jsonl"


class Journal:
    """Appends to `<folder>/log.jsonl`; only the first rank has one. Lines of steps that will run again are dropped."""

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / LOG
        for scratch in folder.glob(f".{LOG}.*"):  # of one that was killed, on any machine, at the rewriting below
            scratch.unlink(missing_ok=True)
        kept = [line for line in self._lines() if line["step"] <= step] if step else []
        self._board = _board(folder, step)
        write_atomically(self._file, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._stream = self._file.open("a")

    def write(self, **values: Any) -> None:
        """One line, on the disk's way at once: the log of a job that was killed tells how far it came."""
        line = values | {"time": round(time.time(), 3)}
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()
        if self._board is not None:
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, values["step"])

    def close(self) -> None:
        self._stream.close()
        if self._board is not None:
            self._board.close()

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for line in self._file.read_text().splitlines() if self._file.exists() else ():
            try:
                lines.append(json.loads(line))
            except ValueError:
                continue  # the last one of a job that was killed
        return lines


def _board(folder: Path, step: int) -> Any:
    if os.environ.get("STRATA_TENSORBOARD", "0") in ("", "0"):
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError(
            "STRATA_TENSORBOARD is set, and TensorBoard is not installed",
            where="the environment",
            expected="the package tensorboard",
            got="no such package",
            todo="pip install tensorboard, or unset it",
        ) from None
    return SummaryWriter(folder / "tensorboard", purge_step=step + 1 if step else 0)
