"""Errors: each says what, where, what was expected, what was found, and what to do; each kind has an exit code."""

from __future__ import annotations

import ast
import inspect
import re
from contextlib import suppress
from pathlib import Path

import pytest

from conftest import REPOSITORY
from strata import errors
from strata.errors import PlanError, StrataError

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, StrataError)]
# Whoever catches a PlanError knows where in a config it is; to stop is no failure.
NEEDED: dict[str, set[str]] = {"PlanError": {"expected", "got"}, "Preempted": set()}


def raised(file: Path) -> list[tuple[str, str, set[str]]]:
    """Every error of ours that a file makes: the line, its kind, and what it is given by name."""
    found = []
    text = file.read_text()
    for start in re.finditer(r"(?<!class )\b\w+(?=\()", text):
        if start[0] in {kind.__name__ for kind in KINDS}:
            names = {word.arg for word in call(text[start.start() :]).keywords if word.arg}
            found.append((f"{file.name}:{text.count(chr(10), 0, start.start()) + 1}", start[0], names))
    return found


def call(text: str) -> ast.Call:
    """The call that a text begins with; what follows may be no Python, as in a file of rules."""
    for end in re.finditer(r"\)", text):
        with suppress(SyntaxError):
            return next(node for node in ast.walk(ast.parse(text[: end.end()])) if isinstance(node, ast.Call))
    raise AssertionError(text[:80])


def test_every_error_says_where_what_was_expected_and_what_was_found() -> None:
    bare = []
    count = 0
    sources = [*(REPOSITORY / "workflow" / "strata").rglob("*.py"), *(REPOSITORY / "workflow" / "rules").glob("*.smk")]
    for file in sources:
        for line, kind, names in raised(file):
            count += 1
            if not NEEDED.get(kind, {"where", "expected", "got"}) <= names:
                bare.append(line)
    assert count > 150
    assert [line for line in bare if not line.startswith("schema.py")] == []
    assert len(bare) == 1  # several problems of one config, each of which says so


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_says_what_to_do(kind: type[StrataError]) -> None:
    if kind is errors.Preempted:
        return
    error = PlanError("what", ()) if kind is PlanError else kind("what", where="here", expected=1, got=2)
    assert "  do:       " in str(error) and kind.next_step in str(error)
    if kind is not PlanError:
        assert str(kind("what", todo="this")).endswith("do:       this")


def test_every_error_has_an_exit_code_of_its_kind() -> None:
    codes = {kind.__name__: kind.exit_code for kind in StrataError.__subclasses__()}
    assert sorted(codes.values()) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 75]
    for name, code in codes.items():
        assert f"{name}" in (errors.__doc__ or "") and f" {code} " in (errors.__doc__ or "")
