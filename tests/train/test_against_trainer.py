"""transformers' Trainer as an oracle: the same losses over 20 steps of the same batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lessons
from lessons import losses
from strata.tokens import open_tokens
from strata.train.data import Mixture
from strata.train.operation import train

SETTINGS = lessons.SETTINGS | {"warmup": 0.0, "decay": 0.0}
STEPS, LENGTH, BATCH = 20, SETTINGS["length"], SETTINGS["batch"]


def one_document(root: Path, init: Any, windows: int) -> Any:
    """Tokens of one document, which fill so many windows to the last: a byte is a token, and one ends the text."""
    text = " ".join(f"The ant walks over field {n * 7 % 11}." for n in range(2 * windows))[: windows * LENGTH]
    return lessons.tokens(root, init, lessons.fetched(root, "document", {"1.txt": text}))


def theirs(init: Any, samples: list[dict[str, Any]], folder: Path) -> list[float]:
    """Trainer's losses over these samples, in this order."""
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    class Same(Trainer):  # type: ignore[misc]
        def get_decay_parameter_names(self, model: Any) -> list[str]:
            """It decays embeddings and head; here, as ours, the layers' matrices alone."""
            return [name for name, parameter in model.named_parameters() if ".layers." in name and parameter.dim() == 2]

    micro = SETTINGS["micro_batch"]
    trainer = Same(
        AutoModelForCausalLM.from_pretrained(init.path, dtype=torch.float32),
        TrainingArguments(
            output_dir=str(folder), use_cpu=True, report_to="none", save_strategy="no", logging_steps=1,
            disable_tqdm=True, max_steps=STEPS, per_device_train_batch_size=micro,
            gradient_accumulation_steps=BATCH // micro, train_sampling_strategy="sequential",
            learning_rate=SETTINGS["learning_rate"], lr_scheduler_type="constant",
            weight_decay=SETTINGS["weight_decay"], adam_beta1=SETTINGS["betas"][0], adam_beta2=SETTINGS["betas"][1],
            adam_epsilon=SETTINGS["epsilon"], max_grad_norm=SETTINGS["clip"],
        ),
        train_dataset=samples,
    )  # fmt: skip
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_twenty_steps_have_the_losses_of_transformers_trainer(root: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    init = lessons.base(root)
    data = one_document(root, init, windows=100)
    done = train(root, lessons.pretraining(init, data, STEPS, **SETTINGS))
    read = Mixture([open_tokens(data)], [1.0], LENGTH, SETTINGS["seed"], STEPS * BATCH).batch(range(STEPS * BATCH))
    ids = np.concatenate([read.ids, read.labels[:, -1:]], axis=1)  # it shifts the labels itself
    assert (ids >= 0).all()  # no padding and no second document
    expected = theirs(init, [{"input_ids": row, "labels": row} for row in ids], tmp_path / "trainer")
    assert losses(done) == pytest.approx(expected, abs=1e-4) and len(expected) == STEPS
    assert expected[-1] < expected[0] - 1


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"
