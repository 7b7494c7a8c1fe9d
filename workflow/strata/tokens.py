"""Tokens: training data of one source under one tokenizer, end to end in a file, made once and read in place.

    tokens.bin           every document's tokens, uint16 (a vocabulary of up to 65,536) or uint32, little-endian
    documents.npy        int64 (D + 1,): where each document begins; the last is the number of tokens
    loss.bin             uint8 (tokens,): 1 for a token to learn; not there for text, of which all are
    fingerprints.npy     uint64, sorted: of each source row and of its passages, by which copies are found
    chat_template.jinja  what rows were made texts with; not there for text

Of preferences, documents 2i and 2i + 1 are the chosen and the rejected one of pair i.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from strata import chat, families, rows, store
from strata.chat import Chat, Encoded
from strata.checkpoint import CONFIG, TOKENIZER
from strata.disk import file_sha256
from strata.errors import TrainingError
from strata.loading import ends_of
from strata.progress import bar
from strata.recipe import Recipe, digest
from strata.rows import Conversation, Document
from strata.sources import FILES
from strata.store import Built, Object

PASSAGE = 200  # characters; what is shorter is no passage: a phrase may well stand in two texts
TEMPLATE = "chat_template.jinja"
_TOKENS, _LOSS, _DOCUMENTS, _FINGERPRINTS = "tokens.bin", "loss.bin", "documents.npy", "fingerprints.npy"
_CHUNK = 1 << 20  # characters tokenised at a time
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Tokens:
    """Opened tokens: `ids` (T,) and `loss` (T,) lie on disk; `documents` (D + 1,) says where each document begins."""

    id: str
    format: str
    ids: np.ndarray = field(repr=False)
    loss: np.ndarray | None = field(repr=False)
    documents: np.ndarray = field(repr=False)
    vocabulary: int  # every id is below it
    tokenizer: str  # sha256 of its tokenizer.json
    template: str | None = field(repr=False)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64 (D,)."""
        return np.diff(self.documents)


def open_tokens(found: Object) -> Tokens:
    """Map a stored object's tokens into memory; nothing is read yet."""
    path, facts = found.path, found.facts
    template, loss = path / TEMPLATE, path / _LOSS
    return Tokens(
        id=found.id,
        format=facts["format"],
        ids=np.memmap(path / _TOKENS, _dtype(facts["vocabulary"]), "r"),
        loss=np.memmap(loss, np.uint8, "r") if loss.is_file() else None,
        documents=np.load(path / _DOCUMENTS),
        vocabulary=facts["vocabulary"],
        tokenizer=facts["tokenizer"],
        template=template.read_bytes().decode() if template.is_file() else None,
    )


def fingerprint(text: str) -> int:
    """The first 8 bytes of the sha256 of a text whose every space is one blank."""
    return int(digest(" ".join(text.split()))[:16], 16)


def passages(*texts: str) -> Iterator[str]:
    """What is looked for of a row's texts: all of them as one, then each text and paragraph that is a passage."""
    yield "\n\n".join(texts)
    for text in texts:
        for piece in (text, *re.split(r"\n\s*\n", text)):
            if len(" ".join(piece.split())) >= PASSAGE:
                yield piece


def overlap(found: Object, texts: Mapping[str, str]) -> list[str]:
    """The names of the texts that these tokens were made from, or that have a passage in common with them."""
    known = np.load(found.path / _FINGERPRINTS, mmap_mode="r")
    shared = []
    for name, text in texts.items():
        asked = np.array([fingerprint(passage) for passage in passages(text)], np.uint64)
        places = np.searchsorted(known, asked)
        if bool(np.any(known[np.minimum(places, len(known) - 1)] == asked)):
            shared.append(name)
    return shared


def shared(found: Object, other: Object) -> tuple[int, int]:
    """How many documents and passages of these tokens are in others too, and how many they have."""
    own, others = (np.load(each.path / _FINGERPRINTS, mmap_mode="r") for each in (found, other))
    return int(np.isin(own, others, assume_unique=True).sum()), len(own)


def tokenizer_of(checkpoint: Object) -> str:
    """sha256 of a checkpoint's tokenizer.json: tokens fit a model that has the same. Raises TrainingError: none."""
    entry = checkpoint.manifest["files"].get("tokenizer.json")
    if entry is None:
        raise TrainingError(
            "a checkpoint has no tokenizer.json", where=checkpoint.path, expected="tokenizer.json", got="none",
            todo="save its tokenizer with transformers' `save_pretrained` into the source",
        )  # fmt: skip
    return str(entry["sha256"])


def tokenize(root: Path, recipe: Recipe) -> Object:
    """Make the tokens of a source under a checkpoint's tokenizer, and publish them.

    Raises:
        StoreError: the tokenizer or the source is missing or damaged.
        TrainingError: a row that is none, a tokenizer that does not do, fewer rows than asked for.
    """
    return store.publish(root, recipe, lambda folder: _build(root, recipe, folder))


@dataclass
class _Tally:
    """What is counted on the way."""

    fingerprints: array[int] = field(default_factory=lambda: array("Q"))
    dropped: Counter[str] = field(default_factory=Counter)

    def see(self, *texts: str) -> None:
        self.fingerprints.extend(fingerprint(passage) for passage in passages(*texts))


def _build(root: Path, recipe: Recipe, folder: Path) -> Built:
    checkpoint = store.require(root, recipe.parents[0], _verify_tokenizer)
    source = store.require(root, recipe.sources[0], store.verify).path / FILES
    parameters, tally = recipe.parameters, _Tally()
    tokenizer, vocabulary = _open_tokenizer(checkpoint)
    if parameters["format"] == "text":
        texts = _texts(tokenizer, rows.documents(source), tally)
    else:
        opened = chat.open_chat(tokenizer, parameters["template"], ends_of(checkpoint))
        (folder / TEMPLATE).write_bytes(opened.template.encode())
        kept = partial(_kept, opened, source, parameters["format"])
        texts = _conversations(opened, _drawn(kept, parameters.get("rows"), tally), tally)
    facts = _write(folder, texts, vocabulary, f"{recipe.id[:17]} tokens")
    if not facts["documents"]:
        raise TrainingError(
            "no row is left to learn from", where=recipe.sources[0],
            expected="one row at least",
            got=", ".join(f"{count} left out: {why}" for why, count in tally.dropped.items()), todo="take other data",
        )  # fmt: skip
    np.save(folder / _FINGERPRINTS, np.unique(np.frombuffer(tally.fingerprints, np.uint64)))
    return Built(
        facts={
            "format": parameters["format"],
            **facts,
            "vocabulary": vocabulary,
            "tokenizer": tokenizer_of(checkpoint),
            "dropped": dict(tally.dropped),
        }
    )


def _verify_tokenizer(checkpoint: Object) -> None:
    """Hash what of a checkpoint is read here, which is no weight."""
    tokenizer_of(checkpoint)
    for name in sorted({CONFIG, *TOKENIZER} & checkpoint.manifest["files"].keys()):
        expected, actual = checkpoint.manifest["files"][name]["sha256"], file_sha256(checkpoint.path / name)
        if expected != actual:
            raise store.damaged(checkpoint.id, checkpoint.path / name, "sha256", expected, actual)


def _open_tokenizer(checkpoint: Object) -> tuple[Any, int]:
    """A checkpoint's tokenizer, and one more than its largest id."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # this process forks none
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    vocabulary = 1 + max(tokenizer.get_vocab().values())
    config = json.loads((checkpoint.path / CONFIG).read_bytes())
    defaults = families.family_of(config).defaults
    embedding = families.size(config, "vocab_size", defaults.get("vocab_size"))
    if vocabulary > embedding:
        raise TrainingError(
            "the tokenizer has more tokens than the model", where=checkpoint.path,
            expected=f"ids below {embedding:,}, the rows of the embedding", got=f"{vocabulary:,} tokens",
            todo="use the model's own tokenizer, without tokens added to it",
        )  # fmt: skip
    return tokenizer, vocabulary


def _texts(tokenizer: Any, documents: Iterable[Document], tally: _Tally) -> Iterator[Encoded]:
    """The tokens of each document between begin-of-text, where the tokenizer itself puts one, and end-of-text.

    What looks like a special token in a document is text, and stays text.
    """
    begin, end = chat.begin_of_text(tokenizer), chat.end_of_text(tokenizer)
    for chunk in _chunks(_filled(documents, tally), lambda document: len(document.text)):
        texts = [document.text for document in chunk]
        encoded = tokenizer(
            texts, add_special_tokens=False, split_special_tokens=True, return_attention_mask=False, verbose=False
        )
        for text, ids in zip(texts, encoded.input_ids, strict=True):
            tally.see(text)
            yield Encoded(np.array([*begin, *ids, end]), None, len(text.encode()))


def _filled(documents: Iterable[Document], tally: _Tally) -> Iterator[Document]:
    for document in documents:
        if document.text.strip():
            yield document
        else:
            tally.dropped["empty"] += 1


def _conversations(opened: Chat, kept: Iterable[tuple[Conversation, ...]], tally: _Tally) -> Iterator[Encoded]:
    def size(row: tuple[Conversation, ...]) -> int:
        return sum(len(message.content) for conversation in row for message in conversation.messages)

    for chunk in _chunks(kept, size):
        conversations = [conversation for row in chunk for conversation in row]
        for conversation in conversations:
            tally.see(*(text for _, *texts in conversation.messages for text in texts if text))
        yield from chat.encode(opened, conversations)


def _kept(opened: Chat, source: Path, form: str, tally: _Tally) -> Iterator[tuple[int, tuple[Conversation, ...]]]:
    """The rows that can be learnt from, with their numbers in the source; the others are counted."""
    for number, row in enumerate(rows.examples(source, form)):
        if len({conversation.messages for conversation in row}) < len(row):
            tally.dropped["chosen equals rejected"] += 1
        elif not all(message.content.strip() for conversation in row for message in conversation.messages):
            tally.dropped["empty"] += 1
        elif any(chat.holds_special(opened, conversation) for conversation in row):
            tally.dropped["holds a special token"] += 1
        else:
            yield number, row


def _drawn(
    kept: Callable[[_Tally], Iterator[tuple[int, tuple[Conversation, ...]]]], size: int | None, tally: _Tally
) -> Iterator[tuple[Conversation, ...]]:
    """All rows, or `size` of them: the first in an order of hashes of their numbers, as they stand in the source."""
    if size is not None:
        numbers = [number for number, _ in kept(_Tally())]
        if size > len(numbers):
            raise TrainingError(
                "fewer rows than asked for", where="rows", expected=f"{len(numbers):,} or less", got=f"{size:,}",
                todo="lower `rows`, or leave it out to take all",
            )  # fmt: skip
        drawn = set(sorted(numbers, key=lambda number: digest(str(number)))[:size])
    for number, row in kept(tally):
        if size is None or number in drawn:
            yield row


def _chunks(items: Iterable[_Item], size: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Lists of items of some megabyte each."""
    chunk: list[_Item] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += size(item)
        if held >= _CHUNK:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _write(folder: Path, texts: Iterable[Encoded], vocabulary: int, name: str) -> dict[str, int]:
    """Write tokens, loss and where documents begin, as they come. Returns the counts of the facts."""
    dtype, begins, targets, size = _dtype(vocabulary), array("q", [0]), 0, 0
    with (folder / _TOKENS).open("wb") as tokens, (folder / _LOSS).open("wb") as losses, bar(name, None, "tok") as done:
        for ids, loss, length in texts:
            if ids.min() < 0 or ids.max() >= vocabulary:
                raise TrainingError(
                    "a token is not in the vocabulary", where=name, expected=f"below {vocabulary}", got=ids.max()
                )
            tokens.write(ids.astype(dtype).tobytes())
            losses.write(b"" if loss is None else loss.tobytes())
            begins.append(begins[-1] + len(ids))
            targets += len(ids) if loss is None else int(loss.sum())
            size += length
            done.update(len(ids))
    if (folder / _LOSS).stat().st_size == 0:
        (folder / _LOSS).unlink()
    np.save(folder / _DOCUMENTS, np.frombuffer(begins, np.int64))
    return {"documents": len(begins) - 1, "tokens": begins[-1], "targets": targets, "bytes": size}


def _dtype(vocabulary: int) -> np.dtype[Any]:
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")
