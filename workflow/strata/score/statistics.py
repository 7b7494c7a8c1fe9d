"""Scores, their standard errors, and paired differences, from samples. numpy only.

Documents are what was drawn, so every error is one over documents. Bits per byte is a ratio of sums over them, with a
bootstrap; accuracy is a mean over questions, with the closed form clustered by the document that they are about
(Miller, arXiv 2411.00640, section 2.2). Differences are paired: both models saw the same items.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.errors import EvaluationError

RESAMPLES = 10_000
SEED = 1234
METRICS = {"bits_per_byte": "bits_per_byte", "continuation": "acc_norm"}  # others: what the task says
LOWER_IS_BETTER = {"bits_per_byte"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """The items of one task, as `evaluate` stored them, in the order of the suite.

    `metric` has lm-eval's name; or it is mc2, the share that true answers have of the probability of all (TruthfulQA,
    arXiv 2109.07958, section 3). `mean` is over "items" or, of a group of lm-eval's tasks, the plain one over "tasks".
    """

    kind: str
    items: list[dict[str, Any]]
    metric: str = ""
    mean: str = "items"

    def __post_init__(self) -> None:
        object.__setattr__(self, "metric", self.metric or METRICS[self.kind])

    @property
    def ids(self) -> list[str]:
        return [item["id"] for item in self.items]

    @property
    def documents(self) -> list[str]:
        """The document that each item is, or is about."""
        return [id.rpartition("/")[0] for id in self.ids] if self.kind == "continuation" else self.ids

    def parts(self) -> list[Samples]:
        """What the score is the plain mean of: the samples of each of lm-eval's tasks, or all at once."""
        if self.mean == "items":
            return [self]
        found: dict[str, list[dict[str, Any]]] = {}
        for item in self.items:
            found.setdefault(item["id"].rpartition("/")[0], []).append(item)
        return [Samples(self.kind, items, self.metric) for items in found.values()]


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float


def score(samples: Samples) -> dict[str, Any]:
    """The metric of a task, its value, its standard error and the number of items."""
    estimate = measure(samples)
    return {
        "metric": samples.metric,
        "value": estimate.value,
        "error": estimate.error,
        "items": len(samples.items),
        **({"mean": samples.mean} if samples.mean != "items" else {}),
    }


def measure(samples: Samples) -> Estimate:
    """The score of these samples with its standard error.

    Raises:
        EvaluationError: fewer than two documents, which say nothing of their own spread.
    """
    parts = [_measured(part) for part in samples.parts()]
    return mean(parts) if len(parts) > 1 else parts[0]


def _measured(samples: Samples) -> Estimate:
    if len(set(samples.documents)) < 2:
        raise EvaluationError(
            "no error can be given",
            where=samples.metric,
            expected="2 documents or more",
            got=len(set(samples.documents)),
        )
    return estimate(*outcomes(samples), samples.documents)


def value(samples: Samples) -> float:
    """The score alone, of one part."""
    values, sizes = outcomes(samples)
    return float(values.sum() / sizes.sum())


def mean(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean over tasks, whose items have nothing to do with each other."""
    error = math.sqrt(sum(one.error**2 for one in estimates)) / len(estimates)
    return Estimate(sum(one.value for one in estimates) / len(estimates), error)


def chance(samples: Samples) -> float | None:
    """The score of guessing, where there is one."""
    if any("choices" not in item for item in samples.items):
        return None
    guesses = [sum(item.get("labels", (1,))) / len(item["choices"]) for item in samples.items]
    return float(np.mean(guesses))


def outcomes(samples: Samples) -> tuple[Floats, Floats]:
    """What each item adds to the score, and what the sum is divided by, (N,) each: bits and bytes of a document; of a
    question, what its answer is worth (one if it is right), and one."""
    if samples.metric == "bits_per_byte":
        bits = np.array([item["loglikelihood"] for item in samples.items]) / -math.log(2)
        return bits, np.array([float(item["bytes"]) for item in samples.items])
    found = np.array([_outcome(item, samples.metric) for item in samples.items], np.float64)
    return found, np.ones_like(found)


def _outcome(item: dict[str, Any], metric: str) -> float:
    if "value" in item:  # of a text that was generated: lm-eval's verdict
        return float(item["value"])
    if metric == "mc2":
        loglikelihoods = np.array(item["loglikelihoods"])
        likelihoods = np.exp(loglikelihoods - loglikelihoods.max())  # or a long, unlikely answer would underflow
        return float(likelihoods[np.array(item["labels"]) == 1].sum() / likelihoods.sum())
    return float(chosen(item, metric) == item["answer"])


def chosen(item: dict[str, Any], metric: str) -> int:
    """The choice with the highest log-likelihood (lm-eval's acc), or with the highest per character (acc_norm)."""
    divisors = np.array(item["characters"], float) if metric == "acc_norm" else 1.0
    return int(np.argmax(np.array(item["loglikelihoods"]) / divisors))


def estimate(values: Floats, sizes: Floats, documents: list[str]) -> Estimate:
    """sum(values) / sum(sizes) over items (N,), and its standard error over the documents that they are about.

    A ratio has that of a bootstrap of documents; a mean the closed form for clusters.
    """
    if (sizes == 1).all():
        return Estimate(float(values.mean()), _clustered_error(values, documents))
    return Estimate(float(values.sum() / sizes.sum()), float(resampled(values, sizes).std(ddof=1)))


def resampled(values: Floats, sizes: Floats) -> Floats:
    """(R,) ratios of bootstrap samples of documents; the same draws for every model of a suite."""
    draws = np.random.Generator(np.random.PCG64(SEED)).integers(0, len(values), (RESAMPLES, len(values)))  # (R, D)
    return np.asarray(values[draws].sum(1) / sizes[draws].sum(1))


def _clustered_error(values: Floats, documents: list[str]) -> float:
    """Standard error of the mean of `values`, (N,), when those of one document are not independent."""
    _, place = np.unique(documents, return_inverse=True)
    sums = np.bincount(place, values - values.mean())  # (D,)
    return float(math.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(values))
