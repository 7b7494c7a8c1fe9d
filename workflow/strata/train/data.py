"""Batches of tokens for the three objectives: any sample by its number alone, read from memory-mapped files.

`Mixture` cuts streams of documents into windows, `Rows` packs whole documents, `Pairs` sets chosen beside rejected
answers. Sample numbers count through all epochs, so a batch depends on nothing but its numbers. B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.errors import TrainingError
from strata.tokens import Tokens
from strata.train.batch import Batch, Row, document_of, learns, padded, window_of
from strata.train.order import Ints, Order, interleaved
from strata.train.packing import pack


class Mixture:
    """Windows of `length` tokens of several sources, by weight: what continued pretraining reads.

    Args:
        samples: of the run; those of a longer run begin with the same ones.

    Raises:
        TrainingError: a source has nothing to predict.
    """

    def __init__(
        self, sources: Sequence[Tokens], weights: Sequence[float], length: int, seed: int, samples: int
    ) -> None:
        self.sources, self.length = sources, length
        self._orders = [Order(count_windows(source, length), seed, number) for number, source in enumerate(sources)]
        self._source, self._turn = interleaved(weights, samples)  # (samples,) each

    def __len__(self) -> int:
        """The windows of all sources."""
        return sum(order.count for order in self._orders)

    def batch(self, indices: Sequence[int]) -> Batch:
        """These samples, (len(indices), length)."""
        numbers = np.asarray(indices, np.int64)
        source, turn, window = self._source[numbers], self._turn[numbers], np.empty_like(numbers)
        for number in np.unique(source).tolist():
            window[source == number] = self._orders[number].items(turn[source == number])
        places = zip(source.tolist(), window.tolist(), strict=True)
        return padded([window_of(self.sources[number], self.length, at) for number, at in places], self.length)

    @property
    def counts(self) -> dict[str, Any]:
        """What came in, and how often the run sees it: nothing is dropped, and only last windows are padded."""
        drawn = np.bincount(self._source, minlength=len(self.sources)).tolist()
        each = [
            {
                "id": source.id,
                "documents": len(source.lengths),
                "tokens": len(source.ids),
                "samples": samples,
                "epochs": samples / order.count,
            }
            for source, order, samples in zip(self.sources, self._orders, drawn, strict=True)
        ]
        read = sum(len(source.ids) - 1 for source in self.sources)
        return _counts(self.sources, np.concatenate([source.lengths for source in self.sources]), {}, len(self)) | {
            "fill": read / (len(self) * self.length),
            "sources": each,
        }


class Rows:
    """Whole documents of at most `length` tokens, packed into rows of `length`: what fine-tuning reads.

    Raises:
        TrainingError: no document fits, or none has anything to learn.
    """

    def __init__(self, sources: Sequence[Tokens], length: int, seed: int) -> None:
        self.sources, self.length = sources, length
        lengths = np.concatenate([source.lengths for source in sources])
        fits, useful = lengths <= length, np.concatenate([learns(source) for source in sources])
        kept = np.flatnonzero(fits & useful)
        dropped = {"too long": int((~fits).sum()), "nothing to learn": int((fits & ~useful).sum())}
        _require(kept, "document", sources, length, dropped)
        documents, self._starts = pack(lengths[kept], length)
        self._documents = kept[documents]  # row by row
        self._first = np.cumsum([0, *(len(source.lengths) for source in sources)])  # document of each source
        self._order = Order(len(self), seed)
        self.counts = _counts(sources, lengths[kept], dropped, len(self)) | {
            "fill": int(lengths[kept].sum()) / (len(self) * length)
        }

    def __len__(self) -> int:
        return len(self._starts) - 1

    def batch(self, indices: Sequence[int]) -> Batch:
        """These samples, (len(indices), length)."""
        rows = self._order.items(np.asarray(indices, np.int64)).tolist()
        return padded([self._row(row) for row in rows], self.length)

    def _row(self, row: int) -> Row:
        numbers = self._documents[self._starts[row] : self._starts[row + 1]]
        sources = np.searchsorted(self._first, numbers, side="right") - 1
        found = [
            document_of(self.sources[source], number)
            for source, number in zip(sources.tolist(), (numbers - self._first[sources]).tolist(), strict=True)
        ]
        ends = np.cumsum([len(document.ids) for document in found])
        ids, labels = (np.concatenate([document[field] for document in found]) for field in (0, 1))
        return Row(ids, labels, ends[:-1])


class Pairs:
    """Chosen and rejected answers to one prompt, both of at most `length` tokens: what preference training reads.

    Raises:
        TrainingError: no pair fits, or none has answers.
    """

    def __init__(self, sources: Sequence[Tokens], length: int, seed: int) -> None:
        self.sources = sources
        kept = [pairs_of(source, length) for source in sources]
        self._pair = np.concatenate(kept)
        self._source = np.repeat(np.arange(len(sources)), [len(pairs) for pairs in kept])
        lengths_P2 = np.concatenate([_by_pair(source.lengths) for source in sources])
        long = int((lengths_P2 > length).any(axis=1).sum())
        dropped = {"too long": long, "nothing to learn": len(lengths_P2) - long - len(self)}
        _require(self._pair, "pair", sources, length, dropped)
        self._order = Order(len(self), seed)
        kept_P2 = [_by_pair(source.lengths)[pairs] for source, pairs in zip(sources, kept, strict=True)]
        self.counts = _counts(sources, np.concatenate(kept_P2).ravel(), dropped, len(self))

    def __len__(self) -> int:
        return len(self._pair)

    def numbers(self, indices: Sequence[int]) -> Ints:
        """Where the pairs of these samples stand among all that are kept, source after source: (N,)."""
        return self._order.items(np.asarray(indices, np.int64))

    def batch(self, indices: Sequence[int]) -> Batch:
        """The pairs of these samples: all chosen, then all rejected, (2 len(indices), the longest)."""
        return self.pairs(self.numbers(indices))

    def pairs(self, numbers: Sequence[int] | Ints) -> Batch:
        """The pairs that stand in these places, as `batch` gives them."""
        places = [(self.sources[self._source[number]], int(self._pair[number])) for number in numbers]
        rows = [document_of(source, 2 * pair + side) for side in (0, 1) for source, pair in places]
        return padded(rows, max(len(row.ids) for row in rows))


def pairs_of(source: Tokens, length: int) -> Ints:
    """The pairs both of whose members have at most `length` tokens and an answer to learn: numbers, ascending."""
    fits, useful = _by_pair(source.lengths) <= length, _by_pair(learns(source))
    return np.flatnonzero((fits & useful).all(axis=1))


def count_windows(source: Tokens, length: int) -> int:
    """How many windows a source has: together they predict each of its tokens but the first once.

    Raises:
        TrainingError: it has fewer than two tokens.
    """
    if len(source.ids) < 2:
        raise TrainingError(
            "there is nothing to predict",
            where=source.id,
            expected="two tokens or more",
            got=len(source.ids),
            todo="take a source with text in it",
        )
    return -(-(len(source.ids) - 1) // length)


def evenly(source: Tokens, length: int, tokens: int) -> list[int]:
    """Windows spread evenly over a source, of about `tokens` tokens together and at least one: for held-out loss."""
    total = count_windows(source, length)
    count = max(1, min(total, tokens // length))
    return [(2 * number + 1) * total // (2 * count) for number in range(count)]


def windows(source: Tokens, length: int, numbers: Sequence[int]) -> Batch:
    """These windows of one source, (len(numbers), length)."""
    return padded([window_of(source, length, number) for number in numbers], length)


def whole_steps(samples: int, batch: int) -> int:
    """The steps of `batch` samples that a run of so many samples has. Raises TrainingError where it has none."""
    if samples < batch:
        raise TrainingError(
            "the run has not one whole batch",
            where="batch",
            expected=f"at most {samples} samples in a batch",
            got=batch,
            todo="take a smaller `batch`, or train on more",
        )
    return samples // batch


def _by_pair(values_D: NDArray[Any]) -> NDArray[Any]:
    """(D,) as (P, 2): documents 2i and 2i + 1 are chosen and rejected of pair i."""
    return values_D.reshape(-1, 2)


def _require(kept: Ints, what: str, sources: Sequence[Tokens], length: int, dropped: dict[str, int]) -> None:
    if not len(kept):
        raise TrainingError(
            f"no {what} can be learnt from",
            where=", ".join(source.id for source in sources),
            expected=f"a {what} of at most {length} tokens with something to learn",
            got=", ".join(f"{count} {reason}" for reason, count in dropped.items()),
            todo="raise `length`, or take other data",
        )


def _counts(sources: Sequence[Tokens], kept_lengths: Ints, dropped: dict[str, int], samples: int) -> dict[str, Any]:
    """What came in, what is kept of it, and the samples of one epoch."""
    return {
        "documents": sum(len(source.lengths) for source in sources),
        "tokens": sum(len(source.ids) for source in sources),
        "kept": {"documents": len(kept_lengths), "tokens": int(kept_lengths.sum())},
        "dropped": dropped,
        "samples": samples,
    }
