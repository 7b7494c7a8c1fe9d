"""Score: what many plans of one base lose on a text, from one copy of it in memory. Needs torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from strata.disk import write_atomically
from strata.progress import bar
from strata.score.answers import Answers
from strata.screen.stack import stack
from strata.screen.texts import Text
from strata.screen.tried import Nats
from strata.screen.walk import Order, steps, walk

_WRITTEN = 5.0  # seconds between two notes of the time that was spent


class Clock:
    """The seconds that a search has taken, with those of attempts that were killed, and whether there are any left."""

    def __init__(self, file: Path, limit: float) -> None:
        self._file, self._limit = file, limit
        self.seconds = float(file.read_text()) if file.is_file() else 0.0
        self._since, self._written = time.monotonic(), self.seconds

    def is_over(self) -> bool:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        is_over = self.seconds >= self._limit
        if is_over or self.seconds - self._written > _WRITTEN:
            write_atomically(self._file, f"{self.seconds}".encode())
            self._written = self.seconds
        return is_over


class _Over(Exception):
    pass


def score(
    model: Any, text: Text, orders: Iterable[Order], answers: Answers, label: str, clock: Clock | None = None
) -> dict[Order, Nats]:
    """The nats of each document under each of these plans, but for those that the clock leaves no time for.

    Each is kept in `answers` when it is known; a search that begins again does not compute it again.
    """
    ordered = sorted(orders)
    many, batches = len(ordered), len(text.batches)
    asked = [[list(order) for order in ordered], list(text.targets)]
    found = answers.begin(asked, [[line] for line in range(batches * many)])
    lines = [nats for line in found for nats in line.values()]  # batch after batch, plan after plan
    with bar(label, batches * steps(ordered), "layer") as progress:

        def leaf(nats: Callable[[Any], Any]) -> Callable[[Order, Any], None]:
            def keep(order: Order, state: Any) -> None:
                lines.append([value if math.isfinite(value) else None for value in nats(state).tolist()])
                answers.add({len(lines) - 1: lines[-1]})
                if clock and clock.is_over():
                    raise _Over

            return keep

        try:
            for number, batch in enumerate(text.batches):
                left = ordered[max(0, len(lines) - number * many) :]
                if left and clock and clock.is_over():
                    break
                if left:
                    with stack(model, batch) as base:
                        walk(left, base.start, _counted(base.layer, progress), leaf(base.nats))
        except _Over:
            pass
    whole = ordered[: max(0, len(lines) - (batches - 1) * many)]
    return {order: tuple(x for part in lines[place::many] for x in part) for place, order in enumerate(whole)}


def _counted(layer: Callable[[int, Any], Any], progress: Any) -> Callable[[int, Any], Any]:
    def counted(number: int, state: Any) -> Any:
        progress.update(1)
        return layer(number, state)

    return counted
