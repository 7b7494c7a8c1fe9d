"""Splits: the rows of a data set's files, as lm-eval's tasks take them, in memory and without its caches."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.errors import EvaluationError
from strata.records import SUFFIXES, records


def splits(data: Path, files: Mapping[str, str], name: str) -> Any:
    """The splits of one of lm-eval's tasks; `{name}` in a pattern is what its file calls the data set's part."""
    import datasets

    found = {}
    for split, pattern in files.items():
        wanted = pattern.replace("{name}", name)
        matching = sorted(path for path in data.rglob("*") if path.is_file() and _is(path.relative_to(data), wanted))
        if not matching:
            raise EvaluationError(
                "no file matches", where=data, expected=wanted, got="none", todo=f"mend `files`, {split}"
            )
        rows = [row for path in matching for _, row in records(path, str(path), EvaluationError)]
        if not rows:
            raise EvaluationError(
                "a split has no rows", where=data, expected="rows", got=wanted, todo=f"mend `files`, {split}"
            )
        try:
            found[split] = datasets.Dataset.from_list(rows)
        except (ValueError, TypeError) as error:  # pyarrow's errors are such
            raise EvaluationError(
                "rows differ in the types of their fields",
                where=matching[0],
                expected="one type for each field",
                got=str(error)[:200],
            ) from None
    return datasets.DatasetDict(found)


def _is(path: Path, pattern: str) -> bool:
    return path.suffix in SUFFIXES and len(path.parts) == len(Path(pattern).parts) and path.match(pattern)
