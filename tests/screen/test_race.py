"""A race is ranked after its training, by the same measure as its screen, and its rounds go from one to the next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from contests import BASE, RACE, SCREEN, TEXTS, WINNER, deeper, load, make, write_screens
from models import save_model
from pages import check_page
from strata import store
from strata.errors import EvaluationError, StoreError
from strata.recipe import Recipe
from strata.redo import outdated
from strata.report.screen_page import screens_html
from strata.report.screened import told
from strata.screen.race import race
from strata.screen.texts import open_texts
from strata.screen.tried import Ranking, of_depth, read_ranking
from strata.screens import ScreenJobs
from strata.status import description, listing, planned


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("race")
    model = save_model(folder / "model", dtype=torch.float32)
    write_screens(folder, model, SCREEN + RACE, BASE + WINNER)
    make(folder)
    return folder


def ranking(folder: Path, number: int) -> Ranking:
    return read_ranking(store.require(folder / "results", deeper(folder).rankings[number].id))


def test_the_best_of_a_round_go_on_to_the_next(run: Path) -> None:
    screened, first, second = (ranking(run, number) for number in range(3))
    assert {plan.order for plan in first.plans} == {plan.order for plan in of_depth(screened.plans, 6)[:3]}
    assert {plan.order for plan in second.plans} == {plan.order for plan in first.plans[:2]}
    for plan in first.plans:
        assert of_depth(screened.plans, 6)[plan.before - 1].order == plan.order
    for plan in second.plans:
        assert first.plans[plan.before - 1].order == plan.order
    totals = [plan.total() for plan in first.plans]
    assert totals == sorted(totals)
    assert all(plan.estimation for plan in first.plans)


def test_a_trained_plan_loses_what_transformers_says_and_less_than_untrained(run: Path) -> None:
    screen = deeper(run)
    best = ranking(run, 2).plans[0]
    path = run / "results" / "checkpoints" / screen.rounds[1].trained[best.before - 1].job.id
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for name, nats in (("choose", best.selection), ("judge", best.estimation)):
        for text, value in zip(TEXTS[name], nats, strict=True):
            ids = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id][:40]
            with torch.no_grad():
                mean = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
            assert float(mean) * (len(ids) - 1) == pytest.approx(value, abs=1e-3)
    untrained = next(plan for plan in ranking(run, 0).plans if plan.order == best.order)
    assert best.total() < untrained.total()


def test_the_winner_is_the_untrained_plan_of_what_came_first(run: Path) -> None:
    won = load(run).variants["won"]
    made = store.require(run / "results", won.job.id)
    order = [layer[2][0][1] for layer in made.facts["plan"]["layers"]]
    assert order == list(ranking(run, 2).plans[0].order)


def test_a_checkpoint_of_another_plan_than_has_its_rank_is_refused(run: Path) -> None:
    recipe = deeper(run).rounds[0].ranking.recipe
    swapped = Recipe("race", recipe.parameters, recipe.parents[::-1], recipe.sources)
    with pytest.raises(StoreError, match="of another plan than has its rank"):
        race(run / "results", swapped)


def test_training_on_what_ranks_is_refused(run: Path, tmp_path: Path) -> None:
    """Under another name than the text's: what both say tells."""
    folder = tmp_path / "race"
    folder.mkdir()
    model = save_model(folder / "model", dtype=torch.float32)
    write_screens(folder, model, SCREEN + RACE, BASE)
    text = (folder / "config.yaml").read_text()
    for number in range(4):
        shutil.copy(folder / "choose" / f"{number}.txt", folder / "diary" / f"x{number}.txt")
    from conftest import tree_sha256

    lines = [
        f"  diary: {{path: {folder / 'diary'}, sha256: {tree_sha256(folder / 'diary')}}}"
        if "  diary: {" in line
        else line
        for line in text.splitlines()
    ]
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")
    make(folder, "fetch", "init", "tokenize", "screen")
    recipe = deeper(folder).rounds[0].ranking.recipe
    with pytest.raises(EvaluationError, match="the race trains on the text that it is ranked by"):
        base = store.require(folder / "results", deeper(folder).parent.job.id)
        open_texts(folder / "results", recipe, base, 32, 6, recipe.sources[3:])


def test_a_round_that_has_not_ended_is_told(run: Path) -> None:
    """Of a race of days the screen, and the rounds before, can be looked at."""
    made = load(run)
    last = run / "results" / "screens" / made.screens["deeper"].rounds[1].ranking.id
    last.rename(last.with_name("away"))
    try:
        assert "1 of 2 rounds of the race have ended" in told(run / "results", made.screens["deeper"])
        assert "1 of 2 rounds have ended" in screens_html(run / "results", made)
    finally:
        last.with_name("away").rename(last)


def test_a_text_that_is_held_out_of_the_training_may_judge_it(run: Path) -> None:
    race = RACE.replace("batch: 2}", "batch: 2, heldout: {source: judge, tokens: 64}}")
    folder = write_screens(run / "held", run / "model", SCREEN + race, BASE)
    recipe = deeper(folder).rounds[0].ranking.recipe
    assert recipe.sources[1] not in recipe.sources[3:] and len(recipe.sources) == 4


def test_the_page_tells_of_all_of_it(run: Path) -> None:
    page = screens_html(run / "results", load(run))
    check_page(page, 1 + 2 * 7 - 1 + 3)  # plans of depth 3 repeat no block
    assert "The race, at 6 layers" in page
    assert "damage, not the ceiling" in page
    for plan in ranking(run, 1).plans:
        assert plan.merge in page
    assert page == screens_html(run / "results", load(run))


def test_the_terminal_tells_of_it_too(run: Path) -> None:
    made = load(run)
    lines = told(run / "results", made.screens["deeper"]).splitlines()
    best = ranking(run, 2).plans[0]
    assert any(best.merge in line and "after 512 tokens" in line for line in lines)
    assert "done, 2 of 2 rounds" in listing(run / "results", made)
    assert "layers      0" in description(run / "results", made, "won")
    assert "race-" in planned(run / "results", made, "won")


def test_what_rests_on_other_weights_is_made_again_with_all_that_follows(run: Path) -> None:
    made = load(run)
    won = made.variants["won"]
    root = run / "results"
    assert outdated(root, won) == []
    screen: ScreenJobs = made.screens["deeper"]
    from conftest import edit_manifest

    file = root / "screens" / screen.job.id / "manifest.json"
    before = file.read_bytes()
    made_from = {screen.parent.job.id: "0" * 64}
    edit_manifest(file, lambda manifest: manifest["facts"].update(made_from=made_from))
    with pytest.raises(EvaluationError, match="ranks by other content") as caught:
        screens_html(root, made)
    assert "strata redo deeper" in str(caught.value)
    assert [job.id for job in outdated(root, won)] == [
        job.id for job in won.preparations if job.recipe.operation != "tokenize"
    ]
    file.write_bytes(before)
    assert outdated(root, won) == []
