"""The state of a run: what is known at the end of a step, beside the tensors. Plain values, which a snapshot keeps."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


def home(root: Path, id: str) -> Path:
    """Where the state of a run lies while it lasts, and its log: no part of the store, and no output of a job."""
    return root / "training" / id


@dataclass
class State:
    """Where a run stands, and its curve so far.

    `steps` is how many the run will have; a recovery shortens it. `good` counts measurements in a row that met the
    reference's loss. `tokens` are those of documents, `targets` those that were learnt.
    """

    steps: int
    planned: int
    step: int = 0
    tokens: int = 0
    targets: int = 0
    good: int = 0
    recovered: bool = False
    reference: float | None = None
    losses: list[dict[str, Any]] = field(default_factory=list)
    heldout: list[dict[str, Any]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def curve(self, reference: str | None, data: dict[str, Any]) -> dict[str, Any]:
        """What the finished checkpoint keeps of the run; nothing in it depends on the clock."""
        return {
            "steps": self.losses,
            "heldout": self.heldout,
            "reference": None if self.reference is None else {"id": reference, "loss": self.reference},
            "ended": "recovered" if self.recovered else "budget",
            "data": data,
        }
