"""Operations: what surrounds a recipe's job."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest

from strata import operations
from strata.errors import UsageError
from strata.recipe import Recipe

TRAINED = Recipe("pretrain", {"device": "cuda"})


@pytest.mark.parametrize(
    ("recipe", "processes", "nodes", "rank", "held"),
    [
        (TRAINED, 8, 1, None, 8),
        (TRAINED, 1, 1, None, 1),
        (TRAINED, 8, 1, "3", 0),  # its launcher holds them
        (TRAINED, 16, 2, None, 0),  # Slurm has given them, some on another machine
        (Recipe("pretrain", {"device": "cpu"}), 2, 1, None, 0),
        (Recipe("merge", {}), 1, 1, None, 0),
    ],
)
def test_a_job_holds_the_gpus_that_it_uses_on_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, processes: int, nodes: int, rank: str | None, held: int
) -> None:  # fmt: skip
    asked: list[int] = []
    monkeypatch.delenv("RANK", raising=False)
    if rank:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(operations, "gpus", lambda count: nullcontext(asked.append(count)))
    monkeypatch.setattr(operations, "_run", lambda *_: None)
    operations.run(tmp_path, recipe.operation, recipe.canonical, "", processes, nodes)
    assert asked == [held]


def test_a_recipe_of_another_operation_or_version_is_refused(tmp_path: Path) -> None:
    for operation, recipe in (("merge", TRAINED), ("pretrain", Recipe("pretrain", {}, version=99))):
        with pytest.raises(UsageError, match="another operation or version"):
            operations.run(tmp_path, operation, recipe.canonical, "", 1)
