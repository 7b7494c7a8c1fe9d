"""Texts: the first tokens of the first documents of two sources, as batches of rows: one text to choose plans on, and
another to say what they cost. Needs torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from strata import store
from strata.checkpoint import CONFIG
from strata.config import WIDTH
from strata.errors import EvaluationError
from strata.jsonfile import read_object
from strata.loading import check_device, check_length
from strata.recipe import Recipe
from strata.screen.stack import Batch
from strata.store import Object
from strata.tokens import Tokens, open_tokens, shared, tokenizer_of

SHORTEST = 2  # tokens: one to read, one to say
STATES = 1 << 30  # bytes of hidden states that may be held at a time
MAX_SHARED = 0.01  # of the passages of a text: large corpora repeat a licence or a greeting
BEGINNING = 32  # tokens: speeches open with the same words
TEXTS = ("selection", "estimation")


@dataclass(frozen=True)
class Text:
    """What plans are scored on: batches of documents, and how many tokens of each are said, which losses are over."""

    batches: list[Batch]
    targets: tuple[int, ...]


def rows_of(documents: int, tokens: int, width: int, depth: int) -> int:
    """How many documents are read at a time, so that the states of `depth` layers, of `width` bytes each, fit."""
    return max(1, min(documents, STATES // ((depth + 2) * tokens * width)))


def open_text(tokens: Tokens, documents: int, length: int, rows: int, device: str, entry: str) -> Text:
    """The first `length` tokens of the first documents that have two at least, `rows` of them in a batch.

    Raises:
        EvaluationError: there are fewer documents.
    """
    import torch

    able = np.flatnonzero(tokens.lengths >= SHORTEST)[:documents]
    if len(able) < documents:
        raise EvaluationError(
            "too few documents", where=f"`{entry}`", expected=f"{documents} of at least {SHORTEST} tokens",
            got=f"{len(able)} of {len(tokens.lengths)}", todo="lower `documents`, or use a source of more texts",
        )  # fmt: skip
    lengths = np.minimum(tokens.lengths[able], length)
    ids_DT = np.zeros((documents, int(lengths.max())), np.int64)
    for row, (document, size) in enumerate(zip(able, lengths, strict=True)):
        begin = tokens.documents[document]
        ids_DT[row, :size] = tokens.ids[begin : begin + size]
    batches = [
        Batch(
            torch.from_numpy(ids_DT[at : at + rows, : int(lengths[at : at + rows].max())]).to(device),
            torch.from_numpy(lengths[at : at + rows]).to(device),
        )
        for at in range(0, documents, rows)
    ]
    return Text(batches, tuple(int(size) - 1 for size in lengths))


def open_texts(
    root: Path, recipe: Recipe, checkpoint: Object, hidden: int, depth: int, learnt: Sequence[str] = ()
) -> tuple[Text, Text]:
    """The texts that a recipe names first among its sources, in batches of which `depth` states fit into STATES.

    Args:
        hidden: width of a state.
        learnt: tokens that were trained on since the plans were made.

    Raises:
        StoreError: one is missing or damaged.
        EvaluationError: they overlap, or are of another tokenizer, or have too few documents; or were trained on.
    """
    parameters = recipe.parameters
    found = [store.require(root, id, store.verify) for id in recipe.sources[:2]]
    check_device(parameters["device"])
    texts, width = [], hidden * WIDTH[parameters["dtype"]]
    for name, each in zip(TEXTS, found, strict=True):
        tokens, asked = open_tokens(each), parameters[name]
        check_length(checkpoint, asked["tokens"], f"`tokens` of `{name}`")
        _check_tokenizer(checkpoint, tokens)
        rows = 1 if _is_scaled(checkpoint) else rows_of(asked["documents"], asked["tokens"], width, depth)
        texts.append(open_text(tokens, asked["documents"], asked["tokens"], rows, parameters["device"], name))
    selection, estimation = texts
    _check_apart(estimation, found[1], found[0], "the selection text and the estimation text overlap", "chose")
    for id in learnt:
        for text, each in zip(texts, found, strict=True):
            what = "the race trains on the text that it is ranked by"
            _check_apart(text, each, store.require(root, id), what, "was trained on")
    return selection, estimation


def _is_scaled(checkpoint: Object) -> bool:
    """Whether positions are scaled by the length of what is read, so that a document must be read alone."""
    config = read_object(checkpoint.path / CONFIG)
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kinds = [scaling, *(value for value in scaling.values() if isinstance(value, dict))]
    return any(kind.get("rope_type", kind.get("type")) in ("dynamic", "longrope") for kind in kinds)


def _check_apart(text: Text, found: Object, other: Object, what: str, did: str) -> None:
    """Raise EvaluationError where too much of a source is in another one too, or a document that is read is."""
    same, of = shared(found, other)
    copies = _copies(text, open_tokens(other))
    if same > of * MAX_SHARED or copies:
        of_others = f"of its documents and passages in {other.id[:17]}, and none that is read"
        raise EvaluationError(
            what, where=found.path, expected=f"at most {MAX_SHARED:.0%} {of_others}",
            got=f"{same} of {of}, and {copies} of {len(text.targets)} that are read",
            todo=f"take other text for one of them: a loss on what {did} is too low",
        )  # fmt: skip


def _copies(text: Text, tokens: Tokens) -> int:
    """How many documents of a text begin as one of these, as far as both go: `BEGINNING` tokens at least, or all."""
    starts, lengths = np.asarray(tokens.documents[:-1]), tokens.lengths
    count = 0
    for batch in text.batches:
        for ids, size in zip(batch.ids_BT.tolist(), batch.lengths_B.tolist(), strict=True):
            row = np.array(ids[:size])
            able = starts[(lengths >= BEGINNING) if size >= BEGINNING else (lengths == size)]
            head = min(size, BEGINNING)
            alike = able[(tokens.ids[able[:, None] + np.arange(head)] == row[:head]).all(1)] if len(able) else able
            count += any(_is_alike(row, tokens, int(start)) for start in alike)
    return count


def _is_alike(row: np.ndarray, tokens: Tokens, start: int) -> bool:
    end = int(tokens.documents[np.searchsorted(tokens.documents, start, side="right")])
    size = min(len(row), end - start)
    return bool((tokens.ids[start : start + size] == row[:size]).all())


def _check_tokenizer(checkpoint: Object, tokens: Tokens) -> None:
    if tokens.tokenizer != tokenizer_of(checkpoint):
        raise EvaluationError(
            "a text was made by another tokenizer than the parent's", where=tokens.id,
            expected=f"sha256 {tokenizer_of(checkpoint)}", got=tokens.tokenizer, todo="report it",
        )  # fmt: skip
