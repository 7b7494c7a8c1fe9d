"""Records: what files of data hold, one at a time; what cannot be read is told with its place.

A line of .jsonl, an element of the list in a .json and a record of .parquet are one record, a dict. Only a .json is
read whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from strata.errors import StrataError

_BATCH = 1024  # records of a parquet file held at a time
_Error = type[StrataError]


def records(file: Path, name: str, error: _Error) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every record of a file with its place, such as `a.jsonl, row 3`; for .jsonl the number is that of the line.

    Args:
        file: its suffix is one of `SUFFIXES`.
        name: what messages call it.

    Raises:
        error: the file is not of its type, or a record has no fields.
    """
    for number, record in _READERS[file.suffix](file, name, error):
        where = f"{name}, row {number}"
        if not isinstance(record, dict):
            raise error(
                "a row is not an object of fields", where=where, expected="{field: value, ...}",
                got=type(record).__name__, todo="correct this row in the data",
            )  # fmt: skip
        yield where, record


def decoded(data: bytes, where: str, error: _Error) -> str:
    """Text of UTF-8, with or without a mark at its beginning. Raises error: it is none."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as found:
        raise error(
            "not UTF-8", where=where, got=f"byte {found.start}", todo="convert the file to UTF-8"
        ) from None  # fmt: skip


def _jsonl(file: Path, name: str, error: _Error) -> Iterator[tuple[int, Any]]:
    with file.open("rb") as stream:  # bytes: text would also be split at other ends of lines, inside of strings
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, _parsed(line, f"{name}, row {number}", "a JSON object on every line", error)


def _json(file: Path, name: str, error: _Error) -> Iterator[tuple[int, Any]]:
    value = _parsed(file.read_bytes(), name, "one JSON list; name a file of a row on every line .jsonl", error)
    if not isinstance(value, list):
        raise error(
            "a .json file is not a list of rows", where=name, expected="[{...}, ...]", got=type(value).__name__,
            todo="correct the file, or name other data",
        )  # fmt: skip
    return enumerate(value, 1)


def _parquet(file: Path, name: str, error: _Error) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            yield from enumerate((row for batch in opened.iter_batches(_BATCH) for row in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, OSError) as found:
        got = str(found).split("\n")[0]
        raise error(
            "cannot be read as parquet", where=name, got=got, todo="replace the file by one that can"
        ) from None  # fmt: skip


def _parsed(data: bytes, where: str, expected: str, error: _Error) -> Any:
    try:
        return json.loads(decoded(data, where, error))
    except (ValueError, RecursionError) as found:
        raise error(
            "not JSON", where=where, expected=expected, got=str(found), todo="correct this row in the data"
        ) from None  # fmt: skip


_READERS: dict[str, Callable[[Path, str, _Error], Iterator[tuple[int, Any]]]] = {
    ".jsonl": _jsonl, ".json": _json, ".parquet": _parquet,
}  # fmt: skip
SUFFIXES = tuple(_READERS)
