"""The base's layers in any order, from one copy of them: every score is that of the checkpoint built so."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import store_model
from models import SMALL, save_model
from strata.config import Family
from strata.loading import load_model
from strata.merge import merge
from strata.recipe import Recipe
from strata.screen.stack import Batch, stack
from strata.screen.walk import walk

PLANS = {
    "dus": (0, 1, 2, 1, 2, 3),
    "dus, two cuts": (0, 1, 2, 2, 3),
    "interlocked": (0, 1, 1, 2, 2, 3),
    "repeat": (0, 0, 0, 1, 2, 2, 2, 3),
    "prune": (0, 3),
    "without the ends": (1, 2),
    "explicit": (3, 1, 0, 2, 2),
    "base": (0, 1, 2, 3),
}
LENGTHS = (12, 7, 9)  # tokens of the documents: longer than any window of the small models


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stack") / "results"


def documents() -> list[torch.Tensor]:
    return [torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length)) for length in LENGTHS]


def batch() -> Batch:
    ids = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, document in enumerate(documents()):
        ids[row, : len(document)] = document
    return Batch(ids, torch.tensor(LENGTHS))


def of_checkpoint(path: Path) -> list[float]:
    """What transformers' own loss makes of a folder, document by document, nothing filled up."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        return [float(model(ids[None], labels=ids[None]).loss) * (len(ids) - 1) for ids in documents()]


@pytest.mark.parametrize("family", SMALL)
def test_every_plan_scores_as_the_checkpoint_built_so(root: Path, tmp_path: Path, family: Family) -> None:
    base = store_model(root, save_model(tmp_path / family, family, dtype=torch.float32))
    model = load_model(base, "float32", "cpu")
    scores: dict[tuple[int, ...], list[float]] = {}
    with stack(model, batch()) as read:
        walk(
            list(PLANS.values()),
            read.start,
            read.layer,
            lambda order, state: scores.update({order: read.nats(state).tolist()}),
        )
    for name, order in PLANS.items():
        entries = [["copy", [1.0], [[0, layer]]] for layer in order]
        outside = dict.fromkeys(("embed_from", "norm_from", "head_from"), 0)
        built = merge(root, Recipe("merge", {"method": "layers", "layers": entries, **outside}, (base.id,)))
        assert scores[order] == pytest.approx(of_checkpoint(built.path), abs=1e-4), name
    assert len({round(sum(nats), 3) for nats in scores.values()}) == len(PLANS)  # or the test could not fail
    assert model(batch().ids_BT).logits.shape == (3, 12, 272)  # it has its layers again
