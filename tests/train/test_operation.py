"""Training from the store into the store: what it writes, what it leaves alone, and that it can stop and go on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import lessons
from conftest import edit_manifest
from lessons import curve, losses, weights
from models import SMALL, build
from strata import checkpoint, store
from strata.errors import TrainingError, UsageError
from strata.train import loop
from strata.train.operation import train
from strata.train.state import home

pytestmark = pytest.mark.usefixtures("one_thread", "held_out_text_may_be_learnt")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


# What it writes


@pytest.mark.parametrize("family", SMALL)
def test_every_family_trains_and_comes_out_as_a_checkpoint_that_loads(root: Path, family: str) -> None:
    base = lessons.base(root, family)
    done = train(root, lessons.pretraining(base, lessons.text(root, base), steps=4))
    checkpoint.verify(done)
    assert losses(done)[-1] < losses(done)[0]
    before, after = weights(base), weights(done)
    assert {name: (t.dtype, t.shape) for name, t in before.items()} == {n: (t.dtype, t.shape) for n, t in after.items()}
    from transformers import AutoModelForCausalLM

    _, info = AutoModelForCausalLM.from_pretrained(done.path, output_loading_info=True, use_safetensors=True)
    assert not any(info.values())
    same = lessons.merged(root, base, method="slices", slices=[[0, 0, 4]], embed_from=0, norm_from=0, head_from=0)
    assert (done.path / "config.json").read_bytes() == (same.path / "config.json").read_bytes()


def test_a_run_takes_its_parents_plan_and_says_what_it_did(root: Path) -> None:
    base = lessons.base(root)
    parent = lessons.merged(root, base, method="block_expansion", groups=2, copies=1, position="even")
    data = lessons.text(root, base)
    done = train(root, lessons.pretraining(parent, data, heldout={"source": 0, "tokens": 64}, train="new"))
    facts = done.facts
    assert facts["plan"] == parent.facts["plan"] and facts["inserted"] == parent.facts["inserted"] == [2, 5]
    assert facts["made_from"] == {parent.id: parent.digest, data.id: data.digest}
    told = facts["training"]
    assert (told["ended"], told["steps"]) == ("budget", 6)
    assert told["heldout"] == [curve(done)["heldout"][0]["loss"], curve(done)["heldout"][-1]["loss"]]
    assert told["trained"] == sum(
        weights(done)[name].numel() for name in weights(done) if ".2." in name or ".5." in name
    )


def test_nothing_in_the_object_depends_on_the_clock(root: Path, tmp_path: Path) -> None:
    base = lessons.base(root)
    done = train(root, lessons.pretraining(base, lessons.text(root, base)))
    again = tmp_path / "again" / "results"
    other = lessons.base(again)
    twin = train(again, lessons.pretraining(other, lessons.text(again, other)))
    assert done.manifest == twin.manifest


def test_the_state_of_a_run_goes_when_its_checkpoint_stands_and_the_log_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_SNAPSHOT_SECONDS", "0")
    base = lessons.base(root)
    done = train(root, lessons.pretraining(base, lessons.text(root, base)))
    assert [path.name for path in home(root, done.id).iterdir()] == ["log.jsonl"]
    lines = [json.loads(line) for line in (home(root, done.id) / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert all(
        {"tokens", "loss", "lr", "grad_norm", "tokens_per_second", "mfu", "memory_mb"} <= line.keys() for line in lines
    )


def test_what_is_there_already_is_not_trained_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = lessons.base(root)
    recipe = lessons.pretraining(base, lessons.text(root, base))
    done = train(root, recipe)
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("a step"))
    assert train(root, recipe).digest == done.digest


def test_the_stored_dtype_is_the_parents_or_the_one_that_is_asked_for(root: Path) -> None:
    base = lessons.base(root)
    data = lessons.text(root, base)
    assert train(root, lessons.pretraining(base, data, steps=2)).facts["dtype"] == "bfloat16"
    done = train(root, lessons.pretraining(base, data, steps=2, stored="float32", train=[1]))
    assert done.facts["dtype"] == "float32"
    before, after = weights(base), weights(done)
    assert all(value.dtype == torch.float32 for value in after.values())
    assert all(torch.equal(before[name].float(), after[name]) for name in before if ".1." not in name)
    assert not torch.equal(
        before["model.layers.1.mlp.up_proj.weight"].float(), after["model.layers.1.mlp.up_proj.weight"]
    )


@pytest.mark.parametrize("rate", [1e-6, 1e-3])
def test_a_run_says_how_much_of_its_update_the_stored_dtype_took_back(root: Path, rate: float) -> None:
    """Against what the same run keeps in float32: its update, and the update that the bfloat16 checkpoint has."""
    base = lessons.base(root)
    data = lessons.text(root, base)
    settings = {"steps": 3, "learning_rate": rate, "train": [1]}
    kept = train(root, lessons.pretraining(base, data, stored="float32", **settings))
    rounded = train(root, lessons.pretraining(base, data, **settings))
    before, masters, after = weights(base), weights(kept), weights(rounded)
    moved = sum(float((masters[n].double() - before[n].double()).square().sum()) for n in before)
    lost = sum(float((masters[n].double() - after[n].double()).square().sum()) for n in before)
    assert kept.facts["training"]["rounded"] == 0.0
    assert rounded.facts["training"]["rounded"] == pytest.approx((lost / moved) ** 0.5, rel=1e-6)
    assert (rounded.facts["training"]["rounded"] > 0.5) == (rate == 1e-6)


# What it leaves alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("merge", "train_", "moves"),
    [
        ({"method": "block_expansion", "groups": 2, "copies": 1, "position": "even"}, "new", lambda name: ".2." in name or ".5." in name),
        ({"method": "block_expansion", "groups": 2, "copies": 1, "position": "even"}, "new+norms", lambda name: ".2." in name or ".5." in name or "norm" in name),
        ({"method": "dus", "drop": [1, 1]}, "seams", lambda name: ".2." in name or ".3." in name),
        ({"method": "dus", "drop": [1, 1]}, [0, 4], lambda name: ".0." in name or ".4." in name),
        ({"method": "dus", "drop": [1, 1]}, "all", lambda name: True),
    ],
)  # fmt: skip
def test_frozen_tensors_come_out_bit_equal_and_the_others_move(
    root: Path, merge: dict[str, Any], train_: Any, moves: Any, dtype: str
) -> None:
    base = lessons.base(root)
    parent = lessons.merged(root, base, **merge)
    recipe = lessons.pretraining(
        parent, lessons.text(root, base), train=train_, dtype=dtype, learning_rate=2e-2, stored="bfloat16"
    )
    done = train(root, recipe)
    before, after = weights(parent), weights(done)
    for name, value in before.items():
        assert torch.equal(value, after[name]) != moves(name), name


def test_a_shard_of_which_nothing_trained_is_the_parents_file(root: Path) -> None:
    base = lessons.base(root)
    done = train(root, lessons.pretraining(base, lessons.text(root, base), train=[1]))
    same = [
        file.name
        for file in done.path.glob("*.safetensors")
        if (base.path / file.name).stat().st_ino == file.stat().st_ino
    ]
    assert sorted(same) == [f"model-{n:05d}-of-00006.safetensors" for n in (1, 2, 4, 5, 6)]


def test_what_never_trains_has_neither_gradient_nor_state(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(loop, "_note", lambda run, *_: seen.append(run.learner))
    base = lessons.base(root)
    train(root, lessons.pretraining(base, lessons.text(root, base), steps=1, train=[2], dtype="bfloat16"))
    model, optimizer = seen[0].model, seen[0].optimizer
    for name, parameter in model.named_parameters():
        is_trained = name.startswith("model.layers.2.")
        assert (parameter in optimizer.state) == parameter.requires_grad == is_trained
        is_frozen_matrix = not is_trained and "_proj" in name  # all else is float32, so that it computes the same
        assert parameter.dtype == (torch.bfloat16 if is_frozen_matrix else torch.float32), name


# Steps and what they do


def test_masters_are_float32_so_that_small_steps_add_up(root: Path) -> None:
    """AdamW at 1e-5 on a bfloat16 weight of 0.02 never moves it; a hundred steps on a master do."""
    base = lessons.base(root)
    data = lessons.text(root, base)
    done = train(
        root,
        lessons.pretraining(base, data, steps=100, learning_rate=1e-5, weight_decay=0.0, warmup=0.0, decay=0.0, dtype="bfloat16", stored="float32"),
    )  # fmt: skip
    moved = (
        weights(done)["model.layers.0.mlp.up_proj.weight"] - weights(base)["model.layers.0.mlp.up_proj.weight"].float()
    ).abs()
    assert moved.max() > 3e-4


@pytest.mark.parametrize("changes", [{"micro_batch": 1}, {"micro_batch": 4}, {"activation_checkpointing": True}])
def test_accumulation_and_checkpointing_change_nothing_but_rounding(root: Path, changes: dict[str, Any]) -> None:
    base = lessons.base(root, dtype=torch.float32)
    data = lessons.text(root, base)
    one, other = (train(root, lessons.pretraining(base, data, **settings)) for settings in ({}, changes))
    assert one.id != other.id
    assert losses(one) == pytest.approx(losses(other), abs=1e-5)
    for name, value in weights(one).items():
        assert torch.allclose(value, weights(other)[name], atol=2e-4), name


def test_the_loss_is_the_mean_over_targets_not_over_micro_batches(root: Path) -> None:
    """Answers of one token and of many: a mean of means would weigh the short one as much."""
    base = lessons.base(root, dtype=torch.float32)
    data = lessons.instructions(root, base)
    one, other = (train(root, lessons.sft(base, data, micro_batch=size)) for size in (1, 4))
    assert losses(one) == pytest.approx(losses(other), abs=1e-5)


def test_the_first_loss_is_that_of_the_models_own_logits(root: Path) -> None:
    import numpy as np
    from transformers import AutoModelForCausalLM

    base = lessons.base(root, dtype=torch.float32)
    data = lessons.text(root, base, documents=1)
    done = train(root, lessons.pretraining(base, data, steps=1, heldout={"source": 0, "tokens": 10**6}))
    ids = torch.from_numpy(np.fromfile(data.path / "tokens.bin", "<u2").astype("int64"))
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    total = count = 0.0
    for start in range(0, len(ids) - 1, 32):
        window = ids[start : start + 33]
        logits = model(window[None, :-1], use_cache=False).logits[0].detach()
        total += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
        count += len(window) - 1
    assert curve(done)["heldout"][0]["loss"] == pytest.approx(total / count, abs=1e-5)


def test_learning_rates_are_multiplied_by_group(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(loop, "_note", lambda run, *_: seen.append(run.learner))
    base = lessons.base(root)
    parent = lessons.merged(root, base, method="dus", drop=[1, 1])
    train(
        root,
        lessons.pretraining(
            parent, lessons.text(root, base), steps=1, warmup=0.0, decay=0.0, multipliers={"seams": 0.5, "rest": 0.1}
        ),
    )
    names = {id(parameter): name for name, parameter in seen[0].model.named_parameters()}
    for group in seen[0].optimizer.param_groups:
        for parameter in group["params"]:
            at_seam = any(f".{layer}." in names[id(parameter)] for layer in (2, 3))
            assert group["lr"] == pytest.approx(2e-3 * (0.5 if at_seam else 0.1))


@pytest.mark.parametrize("family", ["gpt2"])
def test_dropout_is_off(root: Path, family: str) -> None:
    base = lessons.base(root, family, dtype=torch.float32)
    data = lessons.text(root, base, documents=1)
    done = train(
        root,
        lessons.pretraining(
            base, data, steps=1, batch=1, micro_batch=1, tokens=32, heldout={"source": 0, "tokens": 10**6}
        ),
    )
    again = train(
        root, lessons.pretraining(base, data, steps=1, batch=1, micro_batch=1, tokens=32, activation_checkpointing=True)
    )
    assert losses(done) == pytest.approx(losses(again), abs=1e-6)


# What cannot be


@pytest.mark.parametrize("asked", ["abc", "-1", "nan"])
def test_a_time_between_snapshots_that_is_none_is_told(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATA_SNAPSHOT_SECONDS", asked)
    with pytest.raises(UsageError, match="not a number of seconds"):
        loop.snapshot_seconds(0.0)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_step_and_snapshot(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_SNAPSHOT_SECONDS", "0")
    base = lessons.base(root)
    recipe = lessons.pretraining(base, lessons.text(root, base))
    step = loop._step

    def broken(run: Any, state: Any) -> None:
        if state.step == 3:
            with torch.no_grad():
                next(run.learner.model.parameters()).fill_(math.nan)
        step(run, state)

    monkeypatch.setattr(loop, "_step", broken)
    with pytest.raises(TrainingError, match="not a number") as caught:
        train(root, recipe)
    assert "step 3" in str(caught.value) and "step-00000003" in str(caught.value)
    assert store.find(root, recipe.id) is None


def test_a_sample_beyond_the_models_positions_is_refused(root: Path) -> None:
    base = lessons.base(root)
    with pytest.raises(Exception, match="beyond the model's positions"):
        train(root, lessons.pretraining(base, lessons.text(root, base), length=1024, tokens=4096))


def test_data_of_another_tokenizer_is_refused(root: Path) -> None:
    base = lessons.base(root)
    data = lessons.text(root, base)
    edit_manifest(data.path / "manifest.json", lambda m: m["facts"].update(tokenizer="0" * 64))
    with pytest.raises(TrainingError, match="another tokenizer"):
        train(root, lessons.pretraining(base, data))


def test_a_generation_config_that_transformers_would_not_save_is_no_loss(root: Path) -> None:
    """`save_pretrained` raises on it after the training; here it is copied as it is."""
    folder = root.parent / "odd"
    from conftest import store_model
    from models import save_model

    save_model(folder)
    (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.7}')
    base = store_model(root, folder)
    done = train(root, lessons.pretraining(base, lessons.text(root, base), steps=1))
    assert (done.path / "generation_config.json").read_text() == '{"do_sample": false, "temperature": 0.7}'


def test_a_tied_head_is_trained_once_and_stored_once(root: Path) -> None:
    base = lessons.base(root, "gemma2")
    done = train(root, lessons.pretraining(base, lessons.text(root, base), steps=2))
    assert "lm_head.weight" not in weights(done)
    model = build("gemma2")
    assert done.facts["training"]["trained"] == model.num_parameters()


@pytest.mark.parametrize("family", SMALL)
def test_a_model_that_is_mostly_frozen_computes_what_the_whole_one_does(root: Path, family: str) -> None:
    """In bfloat16 too: DPO's first loss is ln 2 to rounding, and a recovery compares like with like."""
    base = lessons.base(root, family)
    data = lessons.text(root, base)
    first = [
        curve(train(root, lessons.pretraining(base, data, steps=1, dtype="bfloat16", train=which, heldout={"source": 0, "tokens": 256})))["heldout"][0]
        for which in ("all", [1])
    ]  # fmt: skip
    assert first[0]["loss"] == first[1]["loss"]


def test_held_out_text_that_is_in_the_data_is_refused_whatever_its_name(root: Path) -> None:
    base = lessons.base(root)
    data = lessons.text(root, base)
    copied = lessons.fetched(root, "copied", {"x.txt": (root.parent / "text" / "1.txt").read_text(), "y.txt": "Else."})
    heldout = lessons.tokens(root, base, copied)
    with pytest.raises(TrainingError, match="held-out text is in the training data"):
        train(root, lessons.pretraining(base, data, sources=[heldout], heldout={"source": 1, "tokens": 64}))


def test_rows_that_are_left_out_are_counted_in_the_manifest(root: Path) -> None:
    base = lessons.base(root)
    done = train(root, lessons.sft(base, lessons.instructions(root, base, rows=20), length=80))
    data = curve(done)["data"]
    assert done.facts["training"]["left_out"] == {"too long": data["dropped"]["too long"]}
    assert 0 < data["dropped"]["too long"] == 20 - data["kept"]["documents"]
