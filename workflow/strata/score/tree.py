"""Trees: requests with one context as one row, so that a model reads the context once. numpy only.

A row holds a context and, behind it, each of its continuations but for its last token; a branch sees the context and
itself. Requests of one task mostly begin alike (few-shot examples), and a beginning is read once for all its rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
PREFIX = 32  # tokens: contexts that share fewer do not begin alike, as these are not worth a forward pass of their own
PAD = -1  # the branch of padding


class Request(NamedTuple):
    """What is asked of a model: the log-likelihood of a continuation after a context. Both have tokens."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """What a model reads at once of one context. `branches` (T,) is 0 in the context, else the branch's number.

    `answers` has, for each request: its number, the places (n,) whose logits predict it, and its tokens (n,).
    """

    tokens: Ints
    positions: Ints
    branches: Ints
    answers: tuple[tuple[int, Ints, Ints], ...]

    @property
    def scored(self) -> int:
        return sum(len(places) for _, places, _ in self.answers)


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together, behind `prefix` (P,), which all of them begin with."""

    prefix: Ints
    rows: tuple[Row, ...]

    @property
    def is_causal(self) -> bool:
        """Whether every row is plain text, so that the causal mask is the mask."""
        return not len(self.prefix) and all(len(row.answers) == 1 for row in self.rows)

    def arrays(self) -> tuple[Ints, Ints, Ints]:
        """Tokens, positions and branches of all rows, (B, T) each, padded on the right."""
        width = max(len(row.tokens) for row in self.rows)

        def padded(parts: Sequence[Ints], value: int) -> Ints:
            return np.stack([np.pad(part, (0, width - len(part)), constant_values=value) for part in parts])

        return (
            padded([row.tokens for row in self.rows], 0),
            padded([row.positions for row in self.rows], 0),
            padded([row.branches for row in self.rows], PAD),
        )

    def mask(self, branches_BT: Ints) -> NDArray[np.bool_]:
        """Who sees whom: (B, 1, T, P + T). A branch sees prefix, context and itself; padding sees itself too."""
        key, query = branches_BT[:, None, :], branches_BT[:, :, None]
        own = ((key == 0) | (key == query)) & np.tri(branches_BT.shape[1], dtype=bool)
        before = np.ones((*own.shape[:2], len(self.prefix)), bool)
        return np.concatenate([before, own], axis=2)[:, None]


def cut(request: Request, longest: int) -> Request:
    """A request without the beginning that a model of `longest` tokens cannot see, as lm-eval cuts it.

    The last token is predicted and never read, so that one token more than `longest` fits.
    """
    drop = max(0, len(request.context) + len(request.continuation) - (longest + 1))
    return Request(request.context[drop:], request.continuation)


def plan(requests: Sequence[Request], tasks: Sequence[str], rows: int, scored: int, shared: bool) -> list[Batch]:
    """Batches that answer all requests: of at most `rows` rows each, of one task and one beginning, the longest first.

    Nothing but the requests decides what is in which batch, so that a run that goes on makes the same ones.

    Args:
        scored: at most so many logits in a batch, unless one row has more.
        shared: whether requests of one context share a row, and rows of one task that begin alike their beginning.
    """
    batches: list[Batch] = []
    for task in dict.fromkeys(tasks):
        contexts: dict[object, list[int]] = {}
        for number in (number for number, of in enumerate(tasks) if of == task):
            contexts.setdefault(requests[number].context if shared else number, []).append(number)
        for begin, groups in _beginnings(requests, list(contexts.values()), shared):
            made = [_row(requests, group, len(begin)) for group in groups]
            made.sort(key=lambda row: -len(row.tokens))  # stable: rows of one length stay in the requests' order
            prefix = np.array(begin, np.int64)
            batches += [Batch(prefix, tuple(part)) for part in _parts(made, rows, scored)]
    return batches


def _beginnings(
    requests: Sequence[Request], groups: Sequence[list[int]], shared: bool
) -> Iterator[tuple[tuple[int, ...], list[list[int]]]]:
    """What groups of requests with one context begin with, and those that do: nothing, where no other begins alike."""
    alike: dict[tuple[int, ...], list[list[int]]] = {}
    for group in groups:
        context = requests[group[0]].context
        alike.setdefault(context[:PREFIX] if shared and len(context) > PREFIX else (), []).append(group)
    rest: list[list[int]] = []
    for key, found in alike.items():
        if key and len(found) > 1:
            yield _common([requests[group[0]].context for group in found]), found
        else:
            rest += found
    yield (), rest


def _common(contexts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all contexts begin with; at least one token is left to each."""
    low, high = min(contexts), max(contexts)  # of sorted sequences, the outermost two differ first
    most = min(len(context) for context in contexts) - 1
    return low[: next((n for n in range(most) if low[n] != high[n]), most)]


def _row(requests: Sequence[Request], group: Sequence[int], begin: int) -> Row:
    """The row of requests with one context, without the `begin` tokens of the common prefix."""
    context = requests[group[0]].context
    tokens = list(context[begin:])
    positions = list(range(begin, len(context)))
    branches = [0] * len(tokens)
    last = len(tokens) - 1  # predicts the first token of every continuation
    answers = []
    for branch, number in enumerate(group, 1):
        read = requests[number].continuation[:-1]
        places = [last, *range(len(tokens), len(tokens) + len(read))]
        tokens += read
        positions += range(len(context), len(context) + len(read))
        branches += [branch] * len(read)
        answers.append((number, np.array(places, np.int64), np.array(requests[number].continuation, np.int64)))
    return Row(np.array(tokens, np.int64), np.array(positions, np.int64), np.array(branches, np.int64), tuple(answers))


def _parts(made: Sequence[Row], rows: int, scored: int) -> list[list[Row]]:
    parts: list[list[Row]] = []
    for row in made:
        if not parts or len(parts[-1]) == rows or sum(r.scored for r in (*parts[-1], row)) > scored:
            parts.append([])
        parts[-1].append(row)
    return parts
