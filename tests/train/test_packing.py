"""Packing: whole documents into rows, with little space left over."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from strata.train.packing import pack


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 40))
def test_packing_loses_nothing_and_no_two_rows_would_fit_in_one(lengths: list[int], capacity: int) -> None:
    documents, starts = pack(np.asarray(lengths), capacity)
    assert sorted(documents.tolist()) == list(range(len(lengths)))
    rows = [documents[begin:end].tolist() for begin, end in pairwise(starts)]
    held = sorted(sum(lengths[document] for document in row) for row in rows)
    assert all(rows) and held[-1] <= capacity
    assert len(rows) == 1 or held[0] + held[1] > capacity


def test_a_document_goes_into_the_fullest_row_that_it_fits() -> None:
    documents, starts = pack(np.asarray([4, 7, 6, 3]), 10)
    assert [documents[begin:end].tolist() for begin, end in pairwise(starts)] == [
        [1, 3],
        [0, 2],
    ]
