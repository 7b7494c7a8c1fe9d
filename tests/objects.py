"""A small recipe, and what builds, or does not build, its object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from strata.recipe import Recipe
from strata.store import Built

RECIPE = Recipe("merge", {"method": "dus", "drop": 1})
SCORE = Recipe("evaluate", {"suite": "x"})


def writing(text: str = "hello", **built: Any) -> Any:
    def build(folder: Path) -> Built:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text(text)
        (folder / "b.txt").write_text("b")
        return Built(**built)

    return build


def failing(folder: Path) -> Built:
    (folder / "half.txt").write_text("half")
    raise RuntimeError("died")


def never(folder: Path) -> Built:
    raise AssertionError("built again")
