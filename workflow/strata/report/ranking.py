"""Ranking: what a screen's numbers say, and how surely. Losses in nats per token, errors over documents. No torch.

A plan is chosen on one text and judged on another, which had no part in the choice: its loss there is no better for
having been the best of many. Two plans are compared on the same documents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from strata.report.comparison import LEVEL, student_quantile
from strata.score.statistics import SEED, Floats, resampled
from strata.screen.tried import Nats, Tried

RESAMPLES = 2_000
FEW = 8  # plans whose orders are counted out: 40,320


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float

    def __format__(self, shown: str) -> str:
        """`3.512 [3.401, 3.623]` for `.3f`."""
        return f"{self.value:{shown}} [{self.low:{shown}}, {self.high:{shown}}]"

    @property
    def is_clear(self) -> bool:
        """Of a difference: that it is one, by its interval."""
        return self.low > 0 or self.high < 0


def loss(nats: Nats, targets: Sequence[int]) -> Measured | None:
    """Nats per token of a plan; None where it was not measured or overflowed."""
    return _over_documents(np.array(nats, np.float64), targets) if nats and None not in nats else None


def gap(nats: Nats, other: Nats, targets: Sequence[int]) -> Measured | None:
    """What one plan loses more than another on the same documents; None where one of them is not known."""
    if not nats or not other or None in nats or None in other:
        return None
    return _over_documents(np.array(nats, np.float64) - np.array(other, np.float64), targets)


def _over_documents(nats_D: Floats, targets: Sequence[int]) -> Measured:
    """A ratio of sums; its error is a bootstrap's over documents. They are few: the interval is Student's, and the
    variance is divided by one less than their number, as a sample's is."""
    sizes_D, free = np.array(targets, np.float64), len(targets) - 1
    value = float(nats_D.sum() / sizes_D.sum())
    error = float(resampled(nats_D, sizes_D).std(ddof=1)) * math.sqrt(len(targets) / free)
    margin = student_quantile(1 - LEVEL / 2, free) * error
    return Measured(value, value - margin, value + margin)


def correlation(xs: Sequence[float], ys: Sequence[float]) -> Measured | None:
    """Spearman's rank correlation, with the percentile interval of a bootstrap over pairs.

    None where there are fewer than four, or one side is all the same.
    """
    if len(xs) < 4 or len(set(xs)) < 2 or len(set(ys)) < 2:
        return None
    pairs = np.array([xs, ys])
    draws = np.random.Generator(np.random.PCG64(SEED)).integers(0, len(xs), (RESAMPLES, len(xs)))
    drawn = _correlated(_ranks(pairs[0][draws]), _ranks(pairs[1][draws]))
    low, high = np.quantile(drawn[np.isfinite(drawn)], (LEVEL / 2, 1 - LEVEL / 2))
    whole = _correlated(_ranks(pairs[:1]), _ranks(pairs[1:]))
    return Measured(float(whole[0]), float(low), float(high))


def _ranks(values_RN: Floats) -> Floats:
    """Ranks within each row; equal values share the mean of theirs."""
    import pandas as pd

    return np.asarray(pd.DataFrame(values_RN.T).rank().to_numpy().T, np.float64)


def _correlated(left_RN: Floats, right_RN: Floats) -> Floats:
    left, right = (ranks - ranks.mean(1, keepdims=True) for ranks in (left_RN, right_RN))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((left * right).sum(1) / np.sqrt((left**2).sum(1) * (right**2).sum(1)))


def agreement(places: Sequence[int]) -> tuple[float, float]:
    """How well an order was kept: Kendall's tau of 0, 1, 2, ... and these places, and the share of all orders that keep
    it as well or better. Few enough are counted out, of more some are drawn.
    """
    kept = _tau(np.array([places]))[0]
    if len(places) <= FEW:
        others = np.array(list(permutations(range(len(places)))))
    else:
        random = np.random.Generator(np.random.PCG64(SEED))
        others = random.permuted(np.tile(np.arange(len(places)), (10_000, 1)), axis=1)
    return float(kept), float((_tau(others) >= kept - 1e-12).mean())


def _tau(orders_RN: Any) -> Floats:
    left, right = np.triu_indices(orders_RN.shape[1], 1)
    return np.asarray(np.sign(orders_RN[:, right] - orders_RN[:, left]).mean(1))


def front(losses: Mapping[Tried, float], n: int) -> list[Tried]:
    """The plans that none loses less than which is as deep or deeper; below the base's n layers, as flat or flatter."""
    found: list[Tried] = []
    for side in (1, -1):
        best = float("inf")
        for plan in sorted(losses, key=lambda plan: (-side * plan.depth, losses[plan])):
            if (plan.depth - n) * side > 0 and losses[plan] < best:
                best = losses[plan]
                found.append(plan)
    return sorted(found, key=lambda plan: plan.depth)
