"""Task files: the YAML by which lm-eval knows its tasks, lm-eval's own or a user's. They can hold code."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from strata.disk import file_sha256
from strata.errors import EvaluationError
from strata.recipe import digest

_INCLUDE = re.compile(r"""^["']?include["']?\s*:\s*["']?([^"'\n#]+)""", re.MULTILINE)


def installed() -> Path:
    """The folder of the task files that lm-eval brings, found without importing it."""
    found = importlib.util.find_spec("lm_eval")
    assert found and found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "tasks"


def version() -> str:
    """Of lm-eval, whose code draws examples, puts prompts together and filters what was generated."""
    return importlib.metadata.version("lm_eval")


def definition(folder: Path) -> str:
    """sha256 over the task files below a folder, code included: it changes with what a task asks."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return digest("".join(f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files))


def leaves(index: Mapping[str, Any], name: str, folder: Path) -> Iterator[str]:
    """The tasks that a name stands for: a task, or all of a group or tag."""
    if name not in index:
        known = ", ".join(sorted(index)[:20]) + ", …" * (len(index) > 20)
        raise EvaluationError("lm-eval has no such task in this folder", where=folder, expected=known, got=name)
    entry = index[name]
    if entry.kind.name == "TASK":
        yield name
    elif entry.kind.name == "TAG":
        yield from entry.tags
    elif entry.kind.name == "GROUP":
        members = entry.cfg["task"] if isinstance(entry.cfg["task"], list) else [entry.cfg["task"]]
        for member in members:
            if not isinstance(member, str):
                raise EvaluationError(
                    "a group of lm-eval that changes its tasks cannot be asked here", where=entry.yaml_path,
                    expected="names of tasks", got=str(member)[:200], todo="name its tasks one by one in the suite",
                )  # fmt: skip
            yield from leaves(index, member, folder)
    else:
        raise EvaluationError(
            "a task of lm-eval that is made by code cannot be asked here",
            where=entry.yaml_path,
            expected="YAML alone",
            got=entry.kind.name.lower(),
        )


def check_includes(file: Path, folder: Path) -> None:
    """Refuse a task file that rests on one outside the folder, whose content the evaluation's id would not cover."""
    for named in _INCLUDE.findall(file.read_text(encoding="utf-8")):
        included = (file.parent / named.strip()).resolve()
        if not included.is_relative_to(folder.resolve()):
            raise EvaluationError(
                "a task file includes one from outside its folder", where=file, expected=f"a file below {folder}",
                got=named.strip(), todo="name a folder in the suite that holds both",
            )  # fmt: skip
        if included.is_file():
            check_includes(included, folder)
