"""What people are told of variants, and what `redo` puts away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import strata
from strata import experiment, redo, status, store
from strata.experiment import Experiment
from strata.train.state import home

SHAPE = "{family: llama, layers: 4, parameters: 100, bytes: 200, dtype: bfloat16, outside: 20}"
CONFIG = f"""\
sources:
  m: {{path: model, sha256: {"a" * 64}, shape: {SHAPE}}}
  old: {{path: old, sha256: {"b" * 64}}}
variants:
  base: {{init: {{source: m}}}}
  dus: {{parent: base, merge: {{method: dus, drop: 1}}}}
  healed: {{parent: dus, pretrain: {{data: {{old: 1}}, tokens: 10_000, train: seams}}}}
suites: []
"""


@pytest.fixture
def loaded(write_config: Callable[..., Path]) -> Experiment:
    return experiment.load([write_config(CONFIG)])


def test_a_training_is_listed_with_its_parent_its_budget_and_its_data(loaded: Experiment, tmp_path: Path) -> None:
    line = status.listing(tmp_path / "results", loaded).splitlines()[3]
    assert "dus: pretrain 10,000 tokens of old, both sides of seams" in line and line.endswith("missing")


def test_the_plan_of_a_training_says_what_trains_and_how_large_it_is(loaded: Experiment, tmp_path: Path) -> None:
    told = status.planned(tmp_path / "results", loaded, "healed")
    assert "140 parameters, 280 bytes of bfloat16" in told
    assert "2 layers of 6 (2, 3): 40 of 140 parameters (28.6%)" in told


def test_why_names_the_variant_that_tokens_are_for(loaded: Experiment, tmp_path: Path) -> None:
    lines = status.reasons(tmp_path / "results", loaded, "healed").splitlines()
    (tokens,) = (line for line in lines if "tokenize-" in line)
    assert tokens.endswith("missing  (healed)")


def test_a_trained_variant_is_shown_in_layers_of_its_parent_with_what_was_learnt(
    loaded: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healed = loaded.variants["healed"]
    facts: dict[str, Any] = {
        "parameters": 140, "bytes": 280, "dtype": "bfloat16", "plan": healed.lineage.plan.to_json() if healed.lineage.plan else {},
        "training": {
            "ended": "recovered", "steps": 7, "tokens": 7_168, "trained": 40, "heldout": [3.71234, 3.0656],
            "rounded": 0.4321, "left_out": {"too long": 3},
        },
    }  # fmt: skip
    found = SimpleNamespace(facts=facts, digest="0" * 64)
    monkeypatch.setattr(store, "find", lambda root, id: found if id == healed.job.id else None)
    told = status.description(tmp_path, loaded, "healed")
    assert "0-5  0-5 of dus" in told
    expected = (
        "7 steps, 7,168 tokens, 40 parameters, held-out loss 3.712 -> 3.066, stopped as recovered, "
        "43.2% of the update rounded away, left out: 3 too long"
    )
    assert expected in told


def test_redo_starts_a_training_over_and_not_from_its_snapshots(loaded: Experiment, tmp_path: Path) -> None:
    mine, others = (home(tmp_path, loaded.variants[name].job.id) for name in ("healed", "dus"))
    for folder in (mine, others):
        (folder / "snapshots").mkdir(parents=True)
    assert redo.reject(tmp_path, loaded, "healed", "redo") == {}
    assert (mine.exists(), others.exists()) == (False, True)
    assert list((tmp_path / "quarantine").glob(f"training-{mine.name}.*/snapshots"))  # nothing is deleted


def test_a_redo_that_fails_brings_back_nothing_that_rests_on_other_content(
    write_config: Callable[..., Path], tmp_path: Path
) -> None:
    """A checkpoint that was built anew with other weights, and whose evaluation failed then."""
    loaded = experiment.load([write_config(CONFIG.replace("suites: []", "suites: [quick]"))])
    variant = loaded.variants["healed"]
    recipes = [variant.job.recipe, *(job.recipe for job in variant.evaluations)]

    def writing(text: str) -> Callable[[Path], store.Built]:
        def build(folder: Path) -> store.Built:
            (folder / "a").write_text(text)
            return store.Built()

        return build

    for anew, back in (("old", len(recipes)), ("new", 0)):
        for recipe in recipes:
            store.publish(tmp_path, recipe, writing("old"))
        moved = redo.reject(tmp_path, loaded, "healed", "redo")
        assert len(moved) == len(recipes) > 1
        store.publish(tmp_path, recipes[0], writing(anew))
        assert len(redo.restore(tmp_path, moved)) == back
        assert all((store.find(tmp_path, recipe.id) is not None) == bool(back) for recipe in recipes[1:])


def test_redo_touches_nothing_that_a_process_is_at_work_on(write_config: Callable[..., Path], tmp_path: Path) -> None:
    """As a job of Slurm's that runs on when its snakemake was killed."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    job = experiment.load([tmp_path / "config.yaml"]).variants["healed"].job
    state = home(tmp_path / "results", job.id)
    state.mkdir(parents=True)
    (tmp_path / "results" / "leases" / job.id).mkdir(parents=True)
    run = strata(tmp_path, "redo", "healed")
    assert (run.returncode, "at work on healed" in run.stderr, state.exists()) == (9, True, True)


def test_redo_of_a_dpo_takes_its_reference_along_when_that_is_of_other_weights(
    write_config: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aligned = "  aligned: {parent: dus, dpo: {data: [old], template: solar}}\n"
    variant = experiment.load([write_config(CONFIG.replace("suites:", f"{aligned}suites:"))]).variants["aligned"]
    tokens, reference = variant.preparations
    made = {
        job.id: SimpleNamespace(id=job.id, recipe=job.recipe, facts=facts)
        for job, facts in ((reference, {"checkpoint_digest": "1"}), (tokens, {}))
    }
    for digest, expected in (("1", []), ("2", [reference])):
        parent = {variant.job.recipe.parents[0]: SimpleNamespace(digest=digest)}
        monkeypatch.setattr(store, "find", lambda root, id, found=made | parent: found.get(id))
        assert redo.outdated(tmp_path, variant) == expected


def test_redo_of_what_was_not_begun_is_refused(loaded: Experiment, tmp_path: Path) -> None:
    assert "nothing to redo" in strata(tmp_path, "redo", "healed").stderr


def test_a_run_that_was_stopped_tells_its_step(loaded: Experiment, tmp_path: Path) -> None:
    snapshots = home(tmp_path, loaded.variants["healed"].job.id) / "snapshots"
    for step in (200, 319):
        (snapshots / f"step-{step:08d}").mkdir(parents=True)
    (snapshots / "step-00000400.host.1.ab").mkdir()  # was being written
    lines = {line.split()[0]: line for line in status.listing(tmp_path, loaded).splitlines()}
    assert lines["healed"].endswith("missing, stopped at step 319") and lines["dus"].endswith("missing")
