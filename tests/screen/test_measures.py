"""What is measured of a base is what a plain reference says of its states, and what it says of a plan can be counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import store_model
from models import save_model
from strata.loading import load_model
from strata.screen.measures import PREDICTORS, Likeness, predictors
from strata.screen.stack import Batch, stack


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("measures")
    return store_model(folder / "results", save_model(folder / "model", dtype=torch.float32))


def states_of(path: Path, ids: torch.Tensor) -> list[torch.Tensor]:
    """(T, D) before each layer and behind the last, before the final norm."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    model.model.norm = torch.nn.Identity()
    with torch.no_grad():
        return [state[0] for state in model(ids[None], output_hidden_states=True).hidden_states]


def test_likeness_is_that_of_a_plain_reference(base: Any) -> None:
    documents = [torch.arange(9) * 7 % 256, torch.arange(5) * 11 % 256]
    ids = torch.zeros(2, 9, dtype=torch.long)
    for row, document in enumerate(documents):
        ids[row, : len(document)] = document
    batch, likeness = Batch(ids, torch.tensor([9, 5])), Likeness(4)
    with stack(load_model(base, "float32", "cpu"), batch, likeness.look(batch.lengths_B)):
        pass
    found = likeness.to_json()
    states = [torch.cat(parts) for parts in zip(*(states_of(base.path, one) for one in documents), strict=True)]
    for a in range(5):
        for b in range(5):
            cosines = torch.nn.functional.cosine_similarity(states[a].double(), states[b].double())
            angle = float((cosines.clamp(-1, 1).arccos() / math.pi).mean()) if a != b else 0.0
            assert found["mismatch"][a][b] == pytest.approx(float((1 - cosines).mean()), abs=1e-6)
            assert found["angle"][a][b] == pytest.approx(angle, abs=1e-6)
    assert min(found["mismatch"][layer][layer + 1] for layer in range(4)) > 1e-3  # or zeros would do


def test_predictors_are_those_of_a_plan_counted_by_hand() -> None:
    mismatch = [[abs(a - b) / 10 for b in range(5)] for a in range(5)]
    angle = [[abs(a - b) / 100 for b in range(5)] for a in range(5)]
    measured = {"mismatch": mismatch, "angle": angle}
    assert predictors((0, 1, 2, 3), 4, measured) == dict.fromkeys(PREDICTORS, 0.0)
    # One seam: layer 1 gets what is behind layer 2, the state 3. Layers 1 and 2 run once more.
    assert predictors((0, 1, 2, 1, 2, 3), 4, measured) == pytest.approx(
        {"seams": 1, "seam_distance": 2, "seam_mismatch": 0.2, "angular_distance": 0.02, "block_influence": 0.2}
    )
    # Without the first and the last layer there is a seam to the embedding, and one to the final norm.
    assert predictors((1, 2), 4, measured) == pytest.approx(
        {"seams": 2, "seam_distance": 2, "seam_mismatch": 0.2, "angular_distance": 0.02, "block_influence": 0.2}
    )
