"""Scores, their standard errors, and paired differences, from samples. numpy only.

Documents are what was drawn, so every error is one over documents. Bits per byte is a ratio of sums over them, with a
bootstrap; accuracy is a mean over questions, with the closed form clustered by the document that they are about
(Miller, arXiv 2411.00640, section 2.2). Differences are paired: both models saw the same items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.errors import EvaluationError

RESAMPLES = 10_000
SEED = 1234
METRICS = {"bits_per_byte": "bits_per_byte", "continuation": "acc_norm"}
LOWER_IS_BETTER = {"bits_per_byte"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Samples:
    """The items of one task, as `evaluate` stored them, in the order of the suite."""

    kind: str
    items: list[dict[str, Any]]

    @property
    def ids(self) -> list[str]:
        return [item["id"] for item in self.items]

    @property
    def documents(self) -> list[str]:
        """The document that each item is, or is about."""
        return self.ids if self.kind == "bits_per_byte" else [id.rpartition("/")[0] for id in self.ids]


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float


def score(samples: Samples) -> dict[str, Any]:
    """The metric of a task, its value, its standard error and the number of items."""
    estimate = measure(samples)
    return {
        "metric": METRICS[samples.kind],
        "value": estimate.value,
        "error": estimate.error,
        "items": len(samples.items),
    }


def measure(samples: Samples) -> Estimate:
    """The score of these samples with its standard error.

    Raises:
        EvaluationError: fewer than two documents, which say nothing of their own spread.
    """
    if len(set(samples.documents)) < 2:
        raise EvaluationError("no error can be given", expected="2 documents or more", got=len(set(samples.documents)))
    if samples.kind == "bits_per_byte":
        bits, sizes = _bits(samples)
        return Estimate(float(bits.sum() / sizes.sum()), _spread(_resampled(bits, sizes)))
    hits = _hits(samples)
    return Estimate(float(hits.mean()), _clustered_error(hits, samples))


def difference(samples: Samples, base: Samples) -> Estimate:
    """Score minus the base's score, paired by item, with the standard error of that difference.

    Raises:
        EvaluationError: the two did not answer the same items.
    """
    if samples.kind != base.kind or samples.ids != base.ids:
        raise EvaluationError(
            "two evaluations of different items cannot be compared", expected=base.kind, got=samples.kind
        )
    if samples.kind == "bits_per_byte":
        (bits, sizes), (base_bits, base_sizes) = _bits(samples), _bits(base)
        value = float(bits.sum() / sizes.sum() - base_bits.sum() / base_sizes.sum())
        return Estimate(value, _spread(_resampled(bits, sizes) - _resampled(base_bits, base_sizes)))
    gains = _hits(samples) - _hits(base)
    return Estimate(float(gains.mean()), _clustered_error(gains, samples))


def chance(samples: Samples) -> float | None:
    """The score of guessing, where there is one."""
    if samples.kind == "bits_per_byte":
        return None
    return float(np.mean([1 / len(item["choices"]) for item in samples.items]))


def _bits(samples: Samples) -> tuple[Floats, Floats]:
    """Bits and bytes of each document, (D,) each."""
    loglikelihoods = np.array([item["loglikelihood"] for item in samples.items])
    return -loglikelihoods / math.log(2), np.array([float(item["bytes"]) for item in samples.items])


def _hits(samples: Samples) -> Floats:
    """(N,) ones where the true choice has the highest log-likelihood per character (lm-eval's acc_norm)."""
    best = [int(np.argmax(np.array(i["loglikelihoods"]) / np.array(i["characters"], float))) for i in samples.items]
    return np.array([float(choice == item["answer"]) for choice, item in zip(best, samples.items, strict=True)])


def _resampled(bits: Floats, sizes: Floats) -> Floats:
    """(R,) bits per byte of bootstrap samples of documents; the same draws for every model of a suite."""
    draws = np.random.Generator(np.random.PCG64(SEED)).integers(0, len(bits), (RESAMPLES, len(bits)))  # (R, D)
    return np.asarray(bits[draws].sum(1) / sizes[draws].sum(1))


def _spread(values: Floats) -> float:
    return float(values.std(ddof=1))


def _clustered_error(values: Floats, samples: Samples) -> float:
    """Standard error of the mean of `values`, (N,), when those of one document are not independent."""
    names = samples.documents
    rest = values - values.mean()
    sums = np.array([rest[[n == name for n in names]].sum() for name in dict.fromkeys(names)])  # (D,)
    return float(math.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)) / len(values))
