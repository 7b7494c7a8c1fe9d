"""JSON of foreign models, read strictly: an object with unique keys and finite numbers, or an error with the file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from strata.errors import CheckpointError

MAX_SIZE = 100_000_000  # bytes; the largest tokenizers have 35 MB


def parse(text: str) -> dict[str, Any]:
    """The object that `text` holds. Raises ValueError for a duplicate key, NaN, infinity, or anything but an object."""

    def unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in pairs:
            if key in table:
                raise ValueError(f"duplicate key {key!r}")
            table[key] = value
        return table

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a number")

    def finite(text: str) -> float:
        if math.isinf(value := float(text)):  # 1e400
            raise ValueError(f"{text[:20]} is too large a number")
        return value

    if not text.lstrip().startswith("{"):
        raise ValueError("does not start with {")
    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_float=finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    assert isinstance(value, dict)
    return value


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`. Raises CheckpointError."""
    try:
        if (size := file.stat().st_size) > MAX_SIZE:
            raise ValueError(f"{size:,} bytes, more than {MAX_SIZE:,}")
        text = file.read_bytes().decode()
        value = parse(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # refuses half of a surrogate pair, which no file can hold
        return value
    except (OSError, ValueError) as error:
        raise CheckpointError(
            "not a usable JSON file", where=file, expected="an object with unique keys", got=error
        ) from None
