"""Rows: training data as a source holds it, brought into one shape; what cannot be one is told with its place.

A .txt file is one document; in others a record is one row. Files are read in order of path, a row at a time. A text may
be empty: many data sets have a few such rows, which `tokens` leaves out and counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from strata.errors import TrainingError
from strata.records import SUFFIXES, decoded, records

ROLES = ("system", "user", "assistant")
_DOCUMENT = ".txt"
_TAKES = {"text": "pretrain", "instructions": "sft", "preferences": "dpo"}  # the operation that learns from a form
_KEYS = {
    "text": "`text`",
    "instructions": "`instruction`, `output` and perhaps `input`; or `messages`; or `prompt` and `completion`",
    "preferences": "`chosen`, `rejected` and `prompt`, which lists of messages may hold as their shared beginning",
}


@dataclass(frozen=True)
class Document:
    """A text to be learnt whole, and where it stands."""

    where: str
    text: str


class Message(NamedTuple):
    """One turn. `input` is Alpaca's second field of a request, which its template tells from the first."""

    role: str
    content: str
    input: str = ""


@dataclass(frozen=True)
class Conversation:
    """Messages of which the first `prompt` are given; the assistant's among the rest are answers, to be learnt."""

    where: str
    messages: tuple[Message, ...]
    prompt: int


def documents(folder: Path) -> Iterator[Document]:
    """The documents below a folder: of .txt files, or the field `text` of rows.

    Raises:
        TrainingError: a file or row that is none; files of several types; no document at all.
    """
    if {file.suffix for file in _files(folder)} == {_DOCUMENT}:
        for file in _files(folder):
            where = file.relative_to(folder).as_posix()
            text = decoded(file.read_bytes(), where, TrainingError)
            yield Document(where, _text(where, {"text": text}, "text", "text"))
    else:
        for where, row in _rows(folder):
            yield Document(where, _text(where, row, "text", "text"))


def examples(folder: Path, form: str) -> Iterator[tuple[Conversation, ...]]:
    """The rows below a folder: one conversation of each for `form` "instructions", the chosen and the rejected one for
    "preferences".

    Raises:
        TrainingError: a file or row that is none, such as one without an answer; files of several types; no row at all.
    """
    read = {"instructions": _instruction, "preferences": _preference}[form]
    for where, row in _rows(folder):
        yield read(where, row)


def _instruction(where: str, row: Mapping[str, Any]) -> tuple[Conversation, ...]:
    """Alpaca's fields, a conversation all of whose answers are learnt, or a prompt and its completion."""
    form = "instructions"
    if "messages" in row:
        messages = _turns(where, row, "messages", form)
        first = next((n for n, message in enumerate(messages) if message.role == "assistant"), len(messages))
        return (_conversation(where, messages[:first], messages[first:]),)
    if "instruction" in row:
        given = row.get("input") and _text(where, row, "input", form)
        request = Message("user", _text(where, row, "instruction", form), given or "")
        return (_conversation(where, (request,), (Message("assistant", _text(where, row, "output", form)),)),)
    prompt = _turns(where, row, "prompt", form, "user")
    return (_conversation(where, prompt, _turns(where, row, "completion", form, "assistant")),)


def _preference(where: str, row: Mapping[str, Any]) -> tuple[Conversation, ...]:
    """What both answers begin with is the prompt, behind `prompt` itself unless they repeat it."""
    form = "preferences"
    answers = [_turns(where, row, key, form, "assistant") for key in ("chosen", "rejected")]
    shared = 0
    while shared < min(map(len, answers)) - 1 and answers[0][shared] == answers[1][shared]:
        shared += 1
    prompt = answers[0][:shared]
    if row.get("prompt") is not None:
        given = _turns(where, row, "prompt", form, "user")
        prompt = prompt if prompt[-len(given) :] == given else given + prompt
    return tuple(_conversation(where, prompt, answer[shared:]) for answer in answers)


def _conversation(where: str, prompt: tuple[Message, ...], rest: tuple[Message, ...]) -> Conversation:
    if not rest or rest[-1].role != "assistant":
        got = ", ".join(message.role for message in prompt + rest)
        raise _wrong("a row ends with no answer", where, "its last message is the assistant's", got)
    if not prompt or rest[0].role != "assistant":
        raise _wrong("an answer has no prompt", where, "a message of the user before the first answer")
    return Conversation(where, prompt + rest, len(prompt))


def _turns(where: str, row: Mapping[str, Any], key: str, form: str, role: str = "") -> tuple[Message, ...]:
    """The messages of a field: a list of them, or, where a role is given, its text."""
    value = row.get(key)
    if isinstance(value, str) and role:
        return (Message(role, _text(where, row, key, form)),)
    if not isinstance(value, list):
        raise _unfit(where, row, key, form, "a text, or a list of messages" if role else "a list of messages")
    messages = []
    for number, entry in enumerate(value, 1):
        place = f"{where}, message {number} of `{key}`"
        if not isinstance(entry, dict) or entry.get("role") not in ROLES:
            got = f"role {entry.get('role')!r}" if isinstance(entry, dict) else type(entry).__name__
            raise _wrong("an unknown role", place, f"{{role: {' | '.join(ROLES)}, content: a text}}", got)
        if entry["role"] != "system" or entry.get("content"):  # many data sets hold empty system messages
            messages.append(Message(entry["role"], _text(place, entry, "content", "")))
    return tuple(messages)


def _text(where: str, row: Mapping[str, Any], key: str, form: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        raise _unfit(where, row, key, form, "a text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _wrong(f"`{key}` is not Unicode", where, got=f"half a pair, character {error.start}") from None
    return value


def _unfit(where: str, row: Mapping[str, Any], key: str, form: str, kind: str) -> TrainingError:
    """The error for a field that is missing or of another type."""
    expected = f"`{key}`: {kind}" + (f"; rows for `{_TAKES[form]}` have {_KEYS[form]}" if form else "")
    got = f"{type(row[key]).__name__}" if row.get(key) is not None else f"keys {', '.join(map(str, row)) or 'none'}"
    what = f"`{key}` is of the wrong type" if row.get(key) is not None else f"`{key}` is missing"
    return _wrong(what, where, expected, got, "rename the fields, or name other data in the config")


def _wrong(what: str, where: str, expected: str = "", got: object = "", todo: str = "") -> TrainingError:
    return TrainingError(what, where=where, expected=expected, got=got, todo=todo or "correct this row in the data")


def _rows(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row with its place."""
    none = True
    for file in _files(folder):
        name = file.relative_to(folder).as_posix()
        if file.suffix == _DOCUMENT:
            todo = "`pretrain` takes it; name other data"
            raise _wrong("a .txt holds a document, no rows", name, "files of rows", todo=todo)
        for where, row in records(file, name, TrainingError):
            none = False
            yield where, row
    if none:
        raise _wrong("the data has no rows", folder.as_posix(), todo="use another source, or another `file` of it")


def _files(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kinds = {file.suffix for file in files}
    if len(kinds) != 1 or not kinds <= {_DOCUMENT, *SUFFIXES}:
        examples = {file.suffix: file.relative_to(folder).as_posix() for file in reversed(files)}
        raise TrainingError(
            "training data must be files of one known type", where=folder,
            expected=f"files of one of {', '.join((_DOCUMENT, *SUFFIXES))}",
            got=", ".join(sorted(examples.values())) or "no file",
            todo="choose with the source's `file`, a glob such as `data/*.jsonl`",
        )  # fmt: skip
    return files
