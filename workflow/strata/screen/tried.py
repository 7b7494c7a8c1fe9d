"""Tried: the plans of a screen or a race with what was measured of them, by their ranks. No torch, no numpy.

`plans.json` of either lists them by depth, and those of one depth by their loss on the selection text, the best first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strata import store
from strata.errors import CheckpointError, StoreError
from strata.jsonfile import read_object
from strata.screen.candidates import runs
from strata.screen.walk import Order
from strata.store import Object

PLANS = "plans.json"
Nats = tuple[float | None, ...]  # of each document; None where the model overflowed


@dataclass(frozen=True)
class Tried:
    """A plan and its losses: nats of each document of the selection text and, of the best, of the estimation text.

    `before` is the rank, from 1, that a race began with.
    """

    order: Order
    family: str
    merge: str
    selection: Nats
    estimation: Nats = ()
    before: int = 0

    @property
    def depth(self) -> int:
        return len(self.order)

    @property
    def is_number(self) -> bool:
        return None not in self.selection

    def total(self) -> float:
        """Nats on the selection text, which ranks it; infinite where the model overflowed."""
        return math.fsum(value or 0.0 for value in self.selection) if self.is_number else math.inf

    def mean(self, targets: Sequence[int]) -> float:
        """Nats per token of the selection text, of whose documents `targets` tokens each are said."""
        return self.total() / sum(targets)

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [list(run) for run in runs(self.order)],
            "family": self.family,
            "merge": self.merge,
            "selection": list(self.selection),
            **({"estimation": list(self.estimation)} if self.estimation else {}),
            **({"before": self.before} if self.before else {}),
        }


def ranked(plans: Iterable[Tried]) -> list[Tried]:
    """By depth, then by loss on the selection text; of equals, the first in the order of their layers."""
    return sorted(plans, key=lambda plan: (plan.depth, plan.total(), plan.order))


def of_depth(plans: Sequence[Tried], depth: int) -> list[Tried]:
    return [plan for plan in plans if plan.depth == depth]


@dataclass(frozen=True)
class Ranking:
    """What a screen or a race has stored: its plans as `ranked`, and how many tokens of each document losses are over.

    base: the model that is re-stacked, as it is
    """

    base: Tried
    plans: list[Tried]
    selection: tuple[int, ...]
    estimation: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "base": self.base.to_json(),
            "plans": [plan.to_json() for plan in self.plans],
            "targets": {"selection": list(self.selection), "estimation": list(self.estimation)},
        }


def read_ranking(found: Object) -> Ranking:
    """Raises StoreError: the file holds something else."""
    file = found.path / PLANS
    try:
        told = read_object(file)
        selection, estimation = (tuple(told["targets"][name]) for name in ("selection", "estimation"))
        return Ranking(_plan(told["base"]), [_plan(entry) for entry in told["plans"]], selection, estimation)
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        got = error.details["got"] if isinstance(error, CheckpointError) else error
        raise store.damaged(found.id, file, PLANS, "ranked plans", got) from None


def _plan(entry: Mapping[str, Any]) -> Tried:
    order = tuple(layer for start, stop in entry["layers"] for layer in range(start, stop))
    estimation = tuple(entry.get("estimation", ()))
    return Tried(order, entry["family"], entry["merge"], tuple(entry["selection"]), estimation, entry.get("before", 0))


def ranked_plan(found: Object, depth: int, rank: int) -> Order:
    """The layers of the plan of this rank, from 1. Raises StoreError where there are fewer."""
    plans = of_depth(read_ranking(found).plans, depth)
    if len(plans) < rank:
        raise StoreError(
            f"there is no plan of rank {rank}", where=found.path / PLANS, expected=f"{rank} plans of {depth} layers",
            got=len(plans), todo="its budget ended before: raise it",
        )  # fmt: skip
    if not plans[rank - 1].is_number:
        raise StoreError(
            f"the plan of rank {rank} has no loss", where=found.path / PLANS, expected="a number",
            got=plans[rank - 1].merge, todo="it overflows: take a better rank, or `dtype: float32` in the screen",
        )  # fmt: skip
    return plans[rank - 1].order
