"""Instructions and preferences, from the store into the store."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import lessons
from conftest import edit_manifest
from lessons import curve, losses
from strata.errors import TrainingError
from strata.train.operation import train

pytestmark = pytest.mark.usefixtures("one_thread", "held_out_text_may_be_learnt")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


def test_the_template_goes_with_the_checkpoint(root: Path) -> None:
    from transformers import AutoTokenizer

    base = lessons.base(root)
    done = train(root, lessons.sft(base, lessons.instructions(root, base)))
    tokenizer = AutoTokenizer.from_pretrained(done.path)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert "### User:\nHi" in asked and asked.rstrip().endswith("### Assistant:")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dpo_starts_at_ln_2_and_learns_the_preference(root: Path, dtype: str) -> None:
    base = lessons.base(root)
    parent = lessons.merged(root, base, method="dus", drop=1)
    data = lessons.preferences(root, base)
    reference = lessons.reference_of(root, parent, data, dtype)
    done = train(root, lessons.dpo(parent, data, reference, epochs=4, learning_rate=1e-3, dtype=dtype))
    points = curve(done)["steps"]
    assert points[0]["loss"] == pytest.approx(math.log(2), abs=1e-6 if dtype == "float32" else 5e-4)
    assert points[-1]["loss"] < 0.5 and points[-1]["accuracy"] == 1.0 and points[-1]["margin"] > 0


def test_dpo_against_the_reference_of_another_model_stops_at_once(root: Path) -> None:
    """The trap of a reference that is silently the base and not the up-scaled parent."""
    base = lessons.base(root)
    parent = lessons.merged(root, base, method="dus", drop=1)
    data = lessons.preferences(root, base)
    wrong = lessons.reference_of(root, base, data)
    with pytest.raises(TrainingError, match="reference is of other weights"):
        train(root, lessons.dpo(parent, data, wrong))
    edit_manifest(wrong.path / "manifest.json", lambda m: m["facts"].update(checkpoint_digest=parent.digest))
    with pytest.raises(TrainingError, match="first loss is not what it must be"):
        train(root, lessons.dpo(parent, data, wrong))


def test_dpo_of_few_layers_in_bfloat16_starts_at_ln_2_too(root: Path) -> None:
    base = lessons.base(root)
    data = lessons.preferences(root, base)
    reference = lessons.reference_of(root, base, data, "bfloat16")
    done = train(root, lessons.dpo(base, data, reference, dtype="bfloat16", train=[3], label_smoothing=0.1))
    assert losses(done)[0] == pytest.approx(math.log(2), abs=1e-4)


def test_smoothed_labels_keep_the_loss_from_falling_as_far(root: Path) -> None:
    base = lessons.base(root)
    data = lessons.preferences(root, base)
    reference = lessons.reference_of(root, base, data)
    plain, smooth = (
        train(root, lessons.dpo(base, data, reference, epochs=4, learning_rate=1e-3, label_smoothing=share))
        for share in (0.0, 0.2)
    )
    assert losses(smooth)[-1] > losses(plain)[-1] + 0.05
