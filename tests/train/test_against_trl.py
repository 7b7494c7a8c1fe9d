"""TRL as an oracle: the same losses on the same rows, of instruction and of preference training.

TRL is given texts, the template written out here, and pads each document to a row of its own; Strata reads the tokens
of its store, of instructions packed into rows. The wrong reference that TRL takes by default is shown last.
"""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import lessons
from lessons import losses
from strata.tokens import open_tokens
from strata.train.data import Pairs, Rows
from strata.train.operation import train

SAME = {"schedule": "wsd", "warmup": 0.0, "decay": 0.0, "weight_decay": 0.0, "learning_rate": 5e-4, "length": 128}
USER, ASSISTANT = "### User:\n", "\n\n### Assistant:\n"
INSTRUCTIONS = [{"prompt": f"Count to {n}.", "completion": "1 2 3 4 5 6 7 8 9 10"[: n + 5]} for n in range(16)]
PREFERENCES = [{"prompt": f"What is {n}?", "chosen": "a number", "rejected": f"no, {n} is a fish"} for n in range(12)]
LN_2 = pytest.approx(math.log(2), abs=1e-5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


def stored(root: Path, init: Any, form: str, rows: list[dict[str, str]]) -> Any:
    """Tokens of these rows, in SOLAR's template."""
    source = lessons.fetched(root, form, {"rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    return lessons.tokens(root, init, source, format=form, template="solar")


def asked(row: dict[str, str]) -> dict[str, str]:
    """A row with its prompt in SOLAR's template. TRL itself puts the end-of-text token behind the answers."""
    return row | {"prompt": USER + row["prompt"] + ASSISTANT}


def load(found: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(found.path, dtype=torch.float32)


def theirs(kind: str, model: Any, init: Any, rows: list[dict[str, str]], batch: int, folder: Path, **more: Any) -> Any:
    """The losses of TRL's trainer over these rows, in this order, with the settings of `lessons` and SAME."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer

    settings = lessons.SETTINGS | SAME
    arguments = getattr(trl, f"{kind}Config")(
        output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", save_strategy="no", disable_tqdm=True,
        gradient_checkpointing=False, per_device_train_batch_size=batch, max_steps=len(rows) // batch, logging_steps=1,
        train_sampling_strategy="sequential", max_length=None, learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant", weight_decay=0.0, adam_beta1=settings["betas"][0],
        adam_beta2=settings["betas"][1], adam_epsilon=settings["epsilon"], max_grad_norm=settings["clip"], **more,
    )  # fmt: skip
    trainer = getattr(trl, f"{kind}Trainer")(
        model, args=arguments, train_dataset=Dataset.from_list([asked(row) for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(init.path),
    )  # fmt: skip
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def documents(batch: Any) -> list[list[int]]:
    """The documents of packed rows, row by row, without the padding."""
    found = []
    for ids, labels, positions in zip(batch.ids, batch.labels, batch.positions, strict=True):
        starts = [place for place, position in enumerate(positions) if position == 0]
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True):
            if (labels[start:end] >= 0).any():
                found.append(ids[start:end].tolist())
    return found


def test_instruction_tuning_has_trls_losses(root: Path, tmp_path: Path) -> None:
    """Two documents to a packed row, four rows in two micro-batches: to TRL, eight padded rows in one batch."""
    from transformers import AutoTokenizer

    init = lessons.base(root)
    data = stored(root, init, "instructions", INSTRUCTIONS)
    done = train(root, lessons.sft(init, data, **SAME))
    tokenizer = AutoTokenizer.from_pretrained(init.path)
    by_text = {USER + row["prompt"] + ASSISTANT + row["completion"] + "</s>": row for row in INSTRUCTIONS}
    seen = Rows([open_tokens(data)], SAME["length"], lessons.SETTINGS["seed"]).batch(range(4 * len(losses(done))))
    rows = [by_text[tokenizer.decode(ids)] for ids in documents(seen)]
    assert len(rows) == 3 * len(INSTRUCTIONS)
    expected = theirs("SFT", load(init), init, rows, 8, tmp_path / "trl")
    assert losses(done) == pytest.approx(expected, abs=1e-5) and len(expected) == 6
    assert expected[-1] < expected[0] - 0.1  # the updates are the same too, not the first loss alone


def test_preference_training_has_trls_losses(root: Path, tmp_path: Path) -> None:
    init = lessons.base(root)
    data = stored(root, init, "preferences", PREFERENCES)
    done = train(root, lessons.dpo(init, data, lessons.reference_of(root, init, data), **SAME))
    numbers = Pairs([open_tokens(data)], SAME["length"], lessons.SETTINGS["seed"]).numbers(range(4 * len(losses(done))))
    rows = [PREFERENCES[number] for number in numbers]
    expected = theirs("DPO", load(init), init, rows, 4, tmp_path / "trl", beta=0.1, precompute_ref_log_probs=True)
    assert losses(done) == pytest.approx(expected, abs=1e-5) and len(expected) == 6
    assert losses(done)[0] == LN_2 and expected[0] == LN_2
    assert expected[-1] < expected[0] - 0.1


def test_trl_compares_an_upscaled_model_with_its_base_unless_told_not_to(root: Path, tmp_path: Path) -> None:
    """It loads the reference from `config._name_or_path`, which for a model made in memory is that of the base."""
    init = lessons.base(root)
    parent = lessons.merged(root, init, method="dus", drop=1)
    data = stored(root, init, "preferences", PREFERENCES)

    def first_of_trl(name: str, **more: Any) -> float:
        return theirs("DPO", upscaled(load(init)), init, PREFERENCES[:4], 4, tmp_path / name, beta=0.1, **more)[0]

    assert abs(first_of_trl("default") - math.log(2)) > 1e-3
    assert first_of_trl("told", precompute_ref_log_probs=True) == LN_2
    assert losses(train(root, lessons.dpo(parent, data, lessons.reference_of(root, parent, data), **SAME)))[0] == LN_2


def upscaled(model: Any) -> Any:
    """Layers 0 to 2, then 1 to 3, put together in memory: DUS with `drop: 1`."""
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList([*layers[:3], *(deepcopy(layer) for layer in layers[1:])])
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = 6
    return model
