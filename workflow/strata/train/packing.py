"""Packing: whole documents into rows of one length, with little space left over."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict

import numpy as np

from strata.train.order import Ints


def pack(lengths_D: Ints, capacity: int) -> tuple[Ints, Ints]:
    """Best-fit decreasing (Johnson, 1973): the longest first, each into the fullest row that it fits, in O(D log D).

    Args:
        lengths_D: of each document, 1 to `capacity`.

    Returns:
        The documents row by row, (D,), and where each row starts in them, (rows + 1,).
    """
    lengths, row_of = lengths_D.tolist(), np.empty(len(lengths_D), np.int64)
    spaces: list[int] = []  # that some row has left, ascending, each once
    rows_with: defaultdict[int, list[int]] = defaultdict(list)  # space -> rows that have so much left
    rows = 0
    for document in np.argsort(-lengths_D, kind="stable").tolist():
        at = bisect_left(spaces, lengths[document])
        if at == len(spaces):
            row, space, rows = rows, capacity, rows + 1
        else:
            space = spaces[at]
            row = rows_with[space].pop()
            if not rows_with[space]:
                del spaces[at]
        if left := space - lengths[document]:
            if not rows_with[left]:
                insort(spaces, left)
            rows_with[left].append(row)
        row_of[document] = row
    starts = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rows))])
    return np.argsort(row_of, kind="stable").astype(np.int64), starts.astype(np.int64)
