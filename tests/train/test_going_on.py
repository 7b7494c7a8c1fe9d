"""A run that is stopped goes on as if it had not been, and one that has recovered ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lessons
from lessons import TOKENS, curve
from strata.errors import Preempted
from strata.recipe import Recipe
from strata.train import loop
from strata.train.operation import train
from strata.train.state import home

pytestmark = pytest.mark.usefixtures("one_thread", "held_out_text_may_be_learnt")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


def stopping(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Let a signal come while these steps run, one after another."""
    once = set(steps)
    step = loop._step

    def interrupted(run: Any, state: Any) -> None:
        step(run, state)
        if state.step in once:
            once.discard(state.step)
            import os
            import signal

            os.kill(os.getpid(), signal.SIGUSR2)

    monkeypatch.setattr(loop, "_step", interrupted)


# Stopping and going on


def test_a_run_that_was_stopped_twice_ends_bit_for_bit_as_one_that_was_not(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an epoch ends: the four documents are 48 windows, so step 12 is the last of the first one."""
    base = lessons.base(root)
    heldout = {"heldout": {"source": 0, "tokens": 64}, "every": 3 * TOKENS}
    recipe = lessons.pretraining(base, lessons.text(root, base), steps=16, **heldout)
    whole = train(root, recipe)
    other = tmp_path / "other" / "results"
    parent = lessons.base(other)
    lessons.text(other, parent)
    stopping(monkeypatch, 3, 12)
    for step in (3, 12):
        with pytest.raises(Preempted) as caught:
            train(other, recipe)
        assert caught.value.exit_code == 75 and f"step-{step:08d}" in str(caught.value)
    done = train(other, recipe)
    assert done.manifest == whole.manifest and curve(done) == curve(whole)
    lines = [json.loads(line) for line in (home(other, done.id) / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 17))


@pytest.mark.parametrize("operation", ["sft", "dpo"])
def test_the_other_objectives_go_on_bit_for_bit_too(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    def recipe(root: Path) -> Recipe:
        base = lessons.base(root)
        if operation == "sft":
            return lessons.sft(base, lessons.instructions(root, base))
        data = lessons.preferences(root, base)
        return lessons.dpo(base, data, lessons.reference_of(root, base, data))

    whole = train(root, recipe(root))
    other = tmp_path / "other" / "results"
    again = recipe(other)
    stopping(monkeypatch, 1, 2)
    for _ in range(2):
        with pytest.raises(Preempted):
            train(other, again)
    assert train(other, again).manifest == whole.manifest


def test_the_newest_snapshot_that_is_whole_wins(root: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("STRATA_SNAPSHOT_SECONDS", "0")
    base = lessons.base(root)
    recipe = lessons.pretraining(base, lessons.text(root, base))
    stopping(monkeypatch, 4)
    with pytest.raises(Preempted):
        train(root, recipe)
    folder = home(root, recipe.id) / "snapshots"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000004"]
    data = next((folder / "step-00000004").glob("*.distcp"))
    data.write_bytes(data.read_bytes()[:-1])
    steps = []
    monkeypatch.setattr(loop, "_note", lambda run, entry, *_: steps.append(entry["step"]))
    train(root, recipe)
    assert steps == [4, 5, 6]
    assert "step-00000004 is not used" in caplog.text and "is damaged" in caplog.text


def test_a_snapshot_of_other_parents_is_not_gone_on_from(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = lessons.base(root)
    recipe = lessons.pretraining(base, lessons.text(root, base))
    stopping(monkeypatch, 4)
    with pytest.raises(Preempted):
        train(root, recipe)
    state = next((home(root, recipe.id) / "snapshots").glob("*/state.json"))
    written = json.loads(state.read_text())
    written["made_from"]["inputs"][base.id] = "0" * 64
    state.write_text(json.dumps(written))
    steps = []
    monkeypatch.setattr(loop, "_note", lambda run, entry, *_: steps.append(entry["step"]))
    train(root, recipe)
    assert steps == [1, 2, 3, 4, 5, 6]


# Recovery


def test_a_run_ends_when_the_references_loss_is_regained_and_has_decayed_by_then(root: Path) -> None:
    base = lessons.base(root)
    worse = lessons.merged(root, base, method="dus", drop=0)
    data = lessons.text(root, base)
    stop = {"stop": {"recovered": 1, "within": 0.0, "patience": 2}, "heldout": {"source": 0, "tokens": 128}}
    recipe = lessons.pretraining(
        worse, data, steps=100, sources=[base], every=TOKENS, learning_rate=1e-3, warmup=0.0, decay=0.5, **stop
    )
    done = train(root, recipe)
    found = curve(done)
    assert found["ended"] == done.facts["training"]["ended"] == "recovered"
    target = found["reference"]["loss"]
    assert found["reference"]["id"] == base.id
    below = [point["step"] for point in found["heldout"] if point["loss"] <= target]
    recovered = next(step for step in below if step - 1 in below)
    last = found["steps"][-1]["step"]
    assert recovered < last < 100 and last == pytest.approx(recovered / 0.5, abs=1)
    rates = [point["lr"] for point in found["steps"]]
    assert rates[recovered - 1] == pytest.approx(1e-3) and rates[-1] <= 1e-3 / 2


def test_a_recovery_is_counted_on_and_the_warm_up_goes_on_where_a_run_is_stopped(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(root: Path) -> Recipe:
        base = lessons.base(root)
        worse = lessons.merged(root, base, method="dus", drop=0)
        stop = {"stop": {"recovered": 1, "within": 0.0, "patience": 3}, "heldout": {"source": 0, "tokens": 128}}
        return lessons.pretraining(
            worse, lessons.text(root, base), steps=100, sources=[base], every=TOKENS, warmup=0.2, decay=0.5, **stop
        )

    whole = train(root, recipe(root))
    rates = [point["lr"] for point in curve(whole)["steps"]]
    recovered = len(rates) // 2
    assert 3 <= recovered < 20  # in the warm-up, which has 20 steps
    assert rates[:recovered] == pytest.approx([2e-3 * (step + 1) / 20 for step in range(recovered)])
    assert all(rate < 2e-3 * (step + 1) / 20 for step, rate in enumerate(rates) if step >= recovered)
    other = tmp_path / "other" / "results"
    again = recipe(other)
    stopping(monkeypatch, *range(1, len(rates)))
    for _ in rates[1:]:
        with pytest.raises(Preempted):
            train(other, again)
    assert train(other, again).manifest == whole.manifest


def test_the_references_loss_is_what_a_run_on_it_would_measure_first(root: Path) -> None:
    base = lessons.base(root)
    data = lessons.text(root, base)
    heldout = {"heldout": {"source": 0, "tokens": 128}}
    stop = {"stop": {"recovered": 1, "within": 0.0, "patience": 1}}
    control = train(root, lessons.pretraining(base, data, steps=1, **heldout))
    healed = train(root, lessons.pretraining(base, data, steps=2, sources=[base], **heldout, **stop))
    assert curve(healed)["reference"]["loss"] == curve(control)["heldout"][0]["loss"]
