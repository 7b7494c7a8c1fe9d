"""In which order samples come: what sample number n is, from integers alone, so a run's position is one number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


class Order:
    """Samples drawn from `count` items: each item once in every epoch, each epoch in an order of its own."""

    def __init__(self, count: int, seed: int, source: int = 0) -> None:
        self.count, self.seed, self.source = count, seed, source
        self._last: tuple[int, Ints] = (-1, np.empty(0, np.int64))

    def items(self, numbers: Ints) -> Ints:
        """The items of these samples, (N,) to (N,). Only the epochs that they are in are drawn."""
        epochs, places = np.divmod(numbers, self.count)
        found = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = self._permutation(epoch)[places[here]]
        return found

    def _permutation(self, epoch: int) -> Ints:
        last, order = self._last
        if last != epoch:
            order = permutation(self.count, self.seed, self.source, epoch)
            self._last = (epoch, order)
        return order


def permutation(count: int, seed: int, source: int, epoch: int) -> Ints:
    """A permutation of 0 to count - 1, its own for each (seed, source, epoch).

    Sorted from the raw bits of a generator: numpy promises these for all releases, but not its `permutation`.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, source, epoch]))
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64)


def interleaved(weights: Sequence[float], samples: int) -> tuple[Ints, Ints]:
    """Which source each sample is from, (samples,), and how many of that source come before it, (samples,).

    Sample k of a source of weight w is due at time (k + 1/2) / w, and samples come as they are due. At any time each
    of S sources is within half a sample of its share, so in every prefix within (1 + w S) / 2: points of a golden-ratio
    sequence drift from theirs by the logarithm of their number. More samples begin with the same ones.
    """
    total = sum(weights)
    counts = [int(weight / total * (samples + len(weights))) + 2 if weight else 0 for weight in weights]
    due = np.concatenate(
        [(np.arange(n) + 0.5) / (w / total) if n else [] for n, w in zip(counts, weights, strict=True)]
    )
    first = np.argsort(due, kind="stable")[:samples]
    sources = np.repeat(np.arange(len(weights)), counts)[first]
    turns = np.concatenate([np.arange(n) for n in counts])[first]
    return sources.astype(np.int64), turns.astype(np.int64)
