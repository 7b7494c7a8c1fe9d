"""Paired comparisons of two models on the same items: how large a difference is, and whether it is one. numpy only.

Both models answered the same items, so what counts is the difference on each. Its error is over documents, as that of
a score (Miller, arXiv 2411.00640, sections 2.2 and 4.2); documents are few, so intervals are Student's, not normal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from strata.errors import EvaluationError
from strata.score.statistics import LOWER_IS_BETTER, Estimate, Samples, estimate, mean, outcomes

LEVEL = 0.05  # of every test, and intervals cover 1 - LEVEL
POWER = 0.8  # of a test for the smallest difference that it is said to detect
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(200)


@dataclass(frozen=True)
class Comparison:
    """A model against another one, on one task.

    difference: its score minus the other's, with the standard error of that
    interval: of the difference, 95 %
    p: of a difference as large if there were none: McNemar's exact test where items are right or wrong, else Student's
        on the difference's error; normal for a plain mean over tasks
    wins, losses, ties: items on which it did better, worse or alike
    detectable: the true difference that this test would find four times of five
    """

    difference: Estimate
    interval: tuple[float, float]
    p: float
    wins: int
    losses: int
    ties: int
    detectable: float


def compare(samples: Samples, other: Samples) -> Comparison:
    """One model against another.

    Raises:
        EvaluationError: the two did not answer the same items.
    """
    if (samples.metric, samples.mean, samples.ids) != (other.metric, other.mean, other.ids):
        raise EvaluationError(
            "two evaluations of different items cannot be compared",
            where="their samples",
            expected=f"{other.metric} of {len(other.ids)} items",
            got=f"{samples.metric} of {len(samples.ids)}",
        )
    parts = [_compared(*pair) for pair in zip(samples.parts(), other.parts(), strict=True)]
    return average(parts) if len(parts) > 1 else parts[0]


def _compared(samples: Samples, other: Samples) -> Comparison:
    (ours, sizes), (theirs, _) = outcomes(samples), outcomes(other)
    gains = ours - theirs
    found = estimate(gains, sizes, samples.documents)
    value, error = found.value, found.error
    freedom = len(set(samples.documents)) - 1
    margin = student_quantile(1 - LEVEL / 2, freedom) * error
    better = -gains if samples.metric in LOWER_IS_BETTER else gains
    wins, losses = int((better > 0).sum()), int((better < 0).sum())
    binary = bool(np.isin(ours, (0, 1)).all() and np.isin(theirs, (0, 1)).all())
    return Comparison(
        found,
        (value - margin, value + margin),
        mcnemar(wins, losses) if binary else student_p(_ratio(value, error), freedom),
        wins, losses, len(gains) - wins - losses,
        margin + student_quantile(POWER, freedom) * error,
    )  # fmt: skip


def average(comparisons: Sequence[Comparison]) -> Comparison:
    """The comparison of two plain means over tasks, whose items have nothing to do with each other."""
    found = mean([one.difference for one in comparisons])
    value, error = found.value, found.error
    margin = student_quantile(1 - LEVEL / 2, math.inf) * error
    wins, losses, ties = (sum(getattr(one, name) for one in comparisons) for name in ("wins", "losses", "ties"))
    p = student_p(_ratio(value, error), math.inf)
    detectable = margin + student_quantile(POWER, math.inf) * error
    return Comparison(found, (value - margin, value + margin), p, wins, losses, ties, detectable)


def _ratio(value: float, error: float) -> float:
    """A difference in units of its error; models that are one model differ by nothing."""
    return value / error if error else math.copysign(math.inf, value) if value else 0.0


def holm(ps: Sequence[float]) -> list[float]:
    """Each p adjusted for all of them (Holm, 1979): below 0.05, it stands although so many were looked at."""
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = largest
    return adjusted


def mcnemar(wins: int, losses: int) -> float:
    """The exact two-sided p of so uneven a split of the items that two models answer differently (McNemar, 1947)."""
    n, few = wins + losses, min(wins, losses)
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(few + 1)]
    return min(1.0, 2 * sum(math.exp(log - n * math.log(2)) for log in logs))


def student_p(t: float, freedom: float) -> float:
    """Two-sided p of Student's t, which is normal at infinite freedom.

    With t = sqrt(freedom) tan(angle), its density is proportional to cos(angle)^(freedom - 1).
    """
    if math.isinf(freedom):
        return math.erfc(abs(t) / math.sqrt(2))
    angle = math.atan(abs(t) / math.sqrt(freedom))
    angles = (_NODES + 1) * angle / 2
    inside = float((np.cos(angles) ** (freedom - 1) @ _WEIGHTS) * angle / 2)
    log_whole = math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2) + math.log(math.pi) / 2  # of both sides
    return max(0.0, 1 - 2 * inside / math.exp(log_whole))


@cache
def student_quantile(probability: float, freedom: float) -> float:
    """The t that is not exceeded with a probability over 1/2, by halving."""
    low, high = 0.0, 1.0
    while student_p(high, freedom) > 2 * (1 - probability):
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > 2 * (1 - probability) else (low, middle)
    return (low + high) / 2
