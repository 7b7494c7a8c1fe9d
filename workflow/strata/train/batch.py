"""Rows of tokens as arrays: a window or a document read from a memory-mapped file, and rows padded to a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from strata.tokens import Tokens
from strata.train.order import Ints

Flags = NDArray[np.bool_]

IGNORED = -100  # the label of a position at which nothing is learnt
PADDING = 0  # any token: padding is a document of its own, and nothing is learnt from it


@dataclass(frozen=True)
class Batch:
    """Rows of tokens. Positions restart at every document and at the padding: attention goes no further back.

    labels[b, t] is the token to predict at position t, which stands at t + 1; `tokens` counts all but padding.
    """

    ids: Ints  # (B, T)
    labels: Ints  # (B, T)
    positions: Ints  # (B, T)
    tokens: int


class Row(NamedTuple):
    """One row before it is padded."""

    ids: Ints  # (N,)
    labels: Ints  # (N,)
    starts: Ints  # of its documents; 0 is one, said or not


def window_of(source: Tokens, length: int, number: int) -> Row:
    """Window w holds the tokens from w * length on, and predicts the one after each: its last is the next one's first.

    Where the token to predict starts a document, nothing is learnt: nothing before it says what it is.
    """
    begin = number * length
    end = min(begin + length, len(source.ids) - 1)  # of the tokens that have one after them
    ids = np.asarray(source.ids[begin : end + 1], np.int64)
    labels = _learnt(source, begin + 1, ids[1:])
    first, stop = np.searchsorted(source.documents, [begin + 1, end + 1])
    starts = np.asarray(source.documents[first:stop], np.int64) - begin
    labels[starts - 1] = IGNORED
    return Row(ids[:-1], labels, starts[starts < end - begin])


def document_of(source: Tokens, number: int) -> Row:
    """A document whole; what would come after its last token is not learnt."""
    begin, end = source.documents[number : number + 2].tolist()
    ids = np.asarray(source.ids[begin:end], np.int64)
    return Row(ids, np.append(_learnt(source, begin + 1, ids[1:]), IGNORED), np.zeros(0, np.int64))


def _learnt(source: Tokens, begin: int, ids: Ints) -> Ints:
    """These tokens, which stand at `begin` of the source, as labels: a copy."""
    if source.loss is None:
        return ids.copy()
    labels: Ints = np.where(source.loss[begin : begin + len(ids)], ids, IGNORED)
    return labels


def learns(source: Tokens) -> Flags:
    """Whether anything of each document is learnt, (D,): its first token is not, whatever `loss` says."""
    some: Flags = source.lengths > 1
    if source.loss is None or not some.any():
        return some
    begins, ends = source.documents[:-1][some] + 1, source.documents[1:][some]
    # From each begin to its end, then on to the next begin. A maximum, because a sum would copy all as wider integers.
    cuts = np.column_stack([begins, ends]).ravel()
    found = np.maximum.reduceat(source.loss, cuts[cuts < len(source.loss)])[::2]
    some[some] = found > 0
    return some


def padded(rows: Sequence[Row], length: int) -> Batch:
    """These rows as arrays of one length, (len(rows), length)."""
    shape = (len(rows), length)
    batch = Batch(
        np.full(shape, PADDING, np.int64),
        np.full(shape, IGNORED, np.int64),
        np.empty(shape, np.int64),
        sum(len(row.ids) for row in rows),
    )
    for number, (ids, labels, starts) in enumerate(rows):
        batch.ids[number, : len(ids)] = ids
        batch.labels[number, : len(ids)] = labels
        marks = np.zeros(length, np.int64)
        marks[starts] = starts
        marks[len(ids) : len(ids) + 1] = len(ids)  # where padding starts, if there is any
        batch.positions[number] = np.arange(length) - np.maximum.accumulate(marks)
    return batch
