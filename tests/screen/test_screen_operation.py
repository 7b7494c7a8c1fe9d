"""A screen from its recipe: what is ranked and judged, and that a search which was killed goes on to the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contests import BASE, SCREEN, TEXTS, deeper, make, write_screens
from models import save_model
from strata import store
from strata.errors import CheckpointError, EvaluationError
from strata.score.answers import Answers
from strata.screen import operation
from strata.screen.candidates import everything, listed, usual
from strata.screen.score import Clock
from strata.screen.tried import of_depth, ranked_plan, read_ranking
from strata.store import Object
from strata.train.state import home

BEFORE = ("fetch", "init", "tokenize")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), dtype=torch.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = write_screens(tmp_path_factory.mktemp("screen"), model)
    make(folder, *BEFORE, "screen", "merge")
    return folder


@pytest.fixture
def again(run: Path, tmp_path: Path) -> Path:
    """The same inputs, without what was made of them."""
    shutil.copytree(run, tmp_path / "again", symlinks=True)
    folder = tmp_path / "again"
    for name in ("screens", "training"):
        for path in [folder / "results" / name, *(folder / "results" / name).rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder / "results" / name, ignore_errors=True)
    return folder


def found(folder: Path) -> Object:
    return store.require(folder / "results", deeper(folder).job.id, store.verify)


def losses(path: Path, texts: list[str]) -> list[float]:
    """Document by document, each with its end, by transformers' own loss."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    end = tokenizer.eos_token_id
    ids = [torch.tensor([[*tokenizer(text, add_special_tokens=False).input_ids, end][:40]]) for text in texts]
    with torch.no_grad():
        return [float(model(one, labels=one).loss) * (one.shape[1] - 1) for one in ids]


def test_every_plan_of_the_families_is_ranked_by_its_loss_on_the_selection_text(run: Path) -> None:
    ranking = read_ranking(found(run))
    whole = {6: [*listed("dus", 4, 6), *listed("repeat", 4, 6)], 3: list(everything("prune", 4, 3))}
    for depth in (6, 3):
        plans = of_depth(ranking.plans, depth)
        totals = [plan.total() for plan in plans]
        assert totals == sorted(totals)
        assert {plan.order for plan in plans} == {one.order for one in whole[depth]}
        assert len({plan.order for plan in plans}) == len(plans)
    assert [plan.depth for plan in ranking.plans] == sorted(plan.depth for plan in ranking.plans)


def test_the_best_of_each_depth_are_judged_on_the_estimation_text_and_no_others(run: Path) -> None:
    ranking = read_ranking(found(run))
    for depth in (6, 3):
        judged = [bool(plan.estimation) for plan in of_depth(ranking.plans, depth)]
        usual = [plan.order == (0, 1, 2, 1, 2, 3) for plan in of_depth(ranking.plans, depth)]
        assert judged == [rank < 3 or usual[rank] for rank in range(len(judged))]
    assert len(ranking.base.estimation) == 4


def test_the_base_and_the_plan_that_is_built_lose_what_transformers_says(run: Path) -> None:
    ranking = read_ranking(found(run))
    base = store.require(run / "results", deeper(run).parent.job.id)
    assert ranking.base.selection == pytest.approx(losses(base.path, TEXTS["choose"]), abs=1e-3)
    assert ranking.base.estimation == pytest.approx(losses(base.path, TEXTS["judge"]), abs=1e-3)
    (built,) = (run / "results" / "checkpoints").glob("merge-*.json")
    best = of_depth(ranking.plans, 6)[0]
    assert best.selection == pytest.approx(losses(built.with_suffix(""), TEXTS["choose"]), abs=1e-3)
    assert best.estimation == pytest.approx(losses(built.with_suffix(""), TEXTS["judge"]), abs=1e-3)
    assert abs(best.total() - ranking.base.total()) > 0.1  # or one could stand for the other


def test_the_variant_that_is_built_records_the_plan(run: Path) -> None:
    (built,) = (run / "results" / "checkpoints").glob("merge-*.json")
    layers = json.loads(built.read_text())["facts"]["plan"]["layers"]
    order = of_depth(read_ranking(found(run)).plans, 6)[0].order
    assert [layer[2][0][1] for layer in layers] == list(order)


def test_targets_are_the_tokens_that_are_said(run: Path) -> None:
    ranking = read_ranking(found(run))
    assert ranking.selection == tuple(min(len(text.encode()) + 1, 40) - 1 for text in TEXTS["choose"])


def stop_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    add, left = Answers.add, [count]

    def stopped(self: Answers, answered: Any) -> None:
        add(self, answered)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    monkeypatch.setattr(Answers, "add", stopped)


@pytest.mark.parametrize("after", [1, 7, 15])
def test_a_killed_search_goes_on_where_it_was_and_ends_the_same(
    run: Path, again: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    job = deeper(again).job
    with monkeypatch.context() as patch:
        stop_after(after, patch)
        with pytest.raises(KeyboardInterrupt):
            operation.screen(again / "results", job.recipe)
    assert not (again / "results" / "screens" / job.id).exists()
    assert list(home(again / "results", job.id).glob("*.jsonl"))

    said: list[int] = []
    add = Answers.add
    monkeypatch.setattr(Answers, "add", lambda self, answered: (said.append(1), add(self, answered)))
    operation.screen(again / "results", job.recipe)
    whole = read_ranking(found(run))
    assert read_ranking(found(again)) == whole
    assert (found(again).path / "measures.json").read_bytes() == (found(run).path / "measures.json").read_bytes()
    everything = 1 + len(whole.plans) + 1 + sum(bool(plan.estimation) for plan in whole.plans)
    assert len(said) == everything - after
    assert not home(again / "results", job.id).exists()


def test_batches_do_not_change_what_is_found(run: Path, again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long text is read in parts, so that the states of one fit."""
    monkeypatch.setattr("strata.screen.texts.STATES", 1)
    operation.screen(again / "results", deeper(again).job.recipe)
    one, other = read_ranking(found(run)), read_ranking(found(again))
    assert [plan.order for plan in one.plans] == [plan.order for plan in other.plans]
    assert one.plans[0].selection == pytest.approx(other.plans[0].selection, abs=1e-4)


def test_time_that_is_up_ends_the_search_and_what_was_tried_is_ranked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_screens(
        tmp_path, model, SCREEN + "    budget: {plans: 200, minutes: 1}\n", "  base: {init: {source: m}}\n"
    )
    make(folder, *BEFORE)
    asked = [0]

    def is_over(self: Clock) -> bool:
        asked[0] += 1
        return asked[0] > 6

    monkeypatch.setattr(Clock, "is_over", is_over)
    operation.screen(folder / "results", deeper(folder).job.recipe)
    tried = [plan.order for plan in read_ranking(found(folder)).plans]
    assert 0 < len(tried) < 10
    assert usual(4, 6) in tried  # SOLAR's comes first, whatever is drawn


def test_a_time_that_is_up_before_one_plan_is_an_error_and_no_empty_screen(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_screens(tmp_path, model, SCREEN + "    budget: {minutes: 1}\n", BASE)
    make(folder, *BEFORE)
    monkeypatch.setattr(Clock, "is_over", lambda self: True)
    with pytest.raises(EvaluationError, match="before one plan was scored"):
        operation.screen(folder / "results", deeper(folder).job.recipe)
    assert not (folder / "results" / "screens" / deeper(folder).job.id).exists()


def test_the_clock_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("strata.screen.score.time.monotonic", lambda: now[0])
    clock = Clock(tmp_path / "seconds", 60)
    now[0] += 50
    assert not clock.is_over()
    clock = Clock(tmp_path / "seconds", 60)
    now[0] += 9
    assert not clock.is_over()
    now[0] += 2
    assert clock.is_over()


@pytest.mark.parametrize("many", [0, 200])
def test_overlapping_texts_are_refused(model: Path, tmp_path: Path, many: int) -> None:
    """Two sources, but what one says the other says too; also where that is little of a large one."""
    folder = write_screens(tmp_path, model)
    for number in range(many):
        (folder / "judge" / f"x{number}.txt").write_text(f"Nothing of what the others say, {number} times.")
    shutil.copy(folder / "choose" / "0.txt", folder / "judge" / "0.txt")
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(_pinned_again(text, folder / "judge"))
    make(folder, *BEFORE)
    with pytest.raises(EvaluationError, match="overlap") as caught:
        operation.screen(folder / "results", deeper(folder).job.recipe)
    assert "at most 1%" in str(caught.value) and "and 1 of 4 that are read" in str(caught.value)


def _pinned_again(text: str, folder: Path) -> str:
    from conftest import tree_sha256

    lines = text.splitlines(keepends=True)
    return "".join(
        f"  judge: {{path: {folder}, sha256: {tree_sha256(folder)}}}\n" if line.startswith("  judge:") else line
        for line in lines
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("{source: choose, documents: 5, tokens: 40}", ["too few documents", "`selection`", "5 of at least 2 tokens", "4 of 4"]),
        ("{source: choose, documents: 4, tokens: 300}", ["`tokens` of `selection`", "256", "300"]),
    ],
)  # fmt: skip
def test_a_text_that_does_not_do_is_told(model: Path, tmp_path: Path, asked: str, expected: list[str]) -> None:
    screen = SCREEN.replace("{source: choose, documents: 4, tokens: 40}", asked)
    folder = write_screens(tmp_path, model, screen)
    make(folder, *BEFORE)
    with pytest.raises(EvaluationError) as caught:
        operation.screen(folder / "results", deeper(folder).job.recipe)
    for part in expected:
        assert part in str(caught.value)


def test_a_base_that_overflows_is_an_error_and_a_plan_that_does_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Path, again: Path
) -> None:
    bad = (0, 1, 1, 1, 2, 3)
    real = operation.score

    def overflowing(model: Any, text: Any, orders: Any, *rest: Any, **options: Any) -> Any:
        scored = real(model, text, orders, *rest, **options)
        return {order: (None, *nats[1:]) if order == bad else nats for order, nats in scored.items()}

    monkeypatch.setattr(operation, "score", overflowing)
    operation.screen(again / "results", deeper(again).job.recipe)
    assert of_depth(read_ranking(found(again)).plans, 6)[-1].order == bad

    monkeypatch.setattr(operation, "score", lambda model, text, orders, *rest: dict.fromkeys(orders, (None,)))
    store.reject(again / "results", deeper(again).job.id, "a test")
    with pytest.raises(EvaluationError, match="the base's loss is not a number"):
        operation.screen(again / "results", deeper(again).job.recipe)


def test_a_rank_that_no_plan_has_is_told(run: Path) -> None:
    with pytest.raises(store.StoreError, match="no plan of rank 99"):
        ranked_plan(found(run), 6, 99)


def test_a_plan_without_a_loss_is_not_built(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("strata.screen.tried.Tried.is_number", False)
    with pytest.raises(store.StoreError, match="the plan of rank 1 has no loss"):
        ranked_plan(found(run), 6, 1)


def test_a_base_that_no_merge_could_build_is_not_screened(tmp_path: Path) -> None:
    """GPT-2 can divide by a layer's number: what a layer does then depends on where it stands."""
    folder = write_screens(tmp_path, save_model(tmp_path / "gpt2", "gpt2", scale_attn_by_inverse_layer_idx=True))
    make(folder, *BEFORE)
    with pytest.raises(CheckpointError, match="scale_attn_by_inverse_layer_idx"):
        operation.screen(folder / "results", deeper(folder).job.recipe)
