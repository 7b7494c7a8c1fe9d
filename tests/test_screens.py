"""Screens and races as jobs, known before anything has run; and what of a config cannot be, told where and why."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from contests import BASE, RACE, SCREEN, WINNER, deeper, load, write_screens
from models import save_model
from strata import config, experiment
from strata.errors import ConfigError
from strata.publish.origin import own_config
from strata.resources import request
from strata.status import needed


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def check_refused(folder: Path, expected: list[str]) -> None:
    """Loading the config is one error, with each of these words."""
    with pytest.raises(ConfigError) as caught:
        load(folder)
    for part in expected:
        assert part in str(caught.value)


def test_a_screen_is_one_job_over_its_parent_and_two_texts(model: Path, tmp_path: Path) -> None:
    screen = deeper(write_screens(tmp_path, model))
    assert [job.recipe.operation for job in screen.jobs] == ["tokenize", "tokenize", "screen"]
    assert screen.job.recipe.parents == (screen.parent.job.id,)
    assert screen.job.recipe.sources == tuple(job.id for job in screen.texts)
    assert screen.rankings == (screen.job,)


def test_a_race_is_known_by_rounds_and_ranks_before_any_plan_is(model: Path, tmp_path: Path) -> None:
    screen = deeper(write_screens(tmp_path, model, SCREEN + RACE))
    assert [len(round.merged) for round in screen.rounds] == [3, 2]
    assert [round.trained[0].job.recipe.parameters["tokens"] for round in screen.rounds] == [256, 512]
    before = screen.job.id
    for round in screen.rounds:
        for rank, (merged, trained) in enumerate(zip(round.merged, round.trained, strict=True), 1):
            assert merged.job.recipe.parameters == {"method": "screened", "depth": 6, "rank": rank}
            assert merged.job.recipe.sources == (before,)
            assert trained.job.recipe.parents == (merged.job.id,)
        assert round.ranking.recipe.parents == tuple(one.job.id for one in round.trained)
        before = round.ranking.id


def test_the_winner_rests_on_the_race_where_there_was_one(model: Path, tmp_path: Path) -> None:
    flat = WINNER.replace("won", "flat").replace("depth: 6", "depth: 3")
    made = load(write_screens(tmp_path, model, SCREEN + RACE, BASE + WINNER + flat))
    screen = made.screens["deeper"]
    assert made.variants["won"].job.recipe.sources == (screen.rounds[-1].ranking.id,)
    assert made.variants["flat"].job.recipe.sources == (screen.job.id,)
    assert (made.variants["won"].job.model.layers, made.variants["flat"].job.model.layers) == (6, 3)
    waits = {job.id for job in needed(made, made.variants["won"])}
    assert {job.id for job in screen.jobs} <= waits
    assert {job.id for job in screen.jobs} <= made.jobs.keys()


def test_names_and_what_is_the_default_are_not_part_of_an_id(model: Path, tmp_path: Path) -> None:
    one = deeper(write_screens(tmp_path / "one", model)).job
    two = deeper(write_screens(tmp_path / "two", model, SCREEN + "    budget: {plans: 200}\n    dtype: float32\n")).job
    assert one == two
    for other in ("    budget: {plans: 201}\n", "    search: {seed: 5}\n", "    plans: [[0, 1, 2]]\n"):
        assert deeper(write_screens(tmp_path / "three", model, SCREEN + other)).job.id != one.id
    by_tokens = SCREEN + "    budget: {plans: 300, tokens: 32_159}\n"  # 200 plans on 160 tokens each, and not one more
    assert deeper(write_screens(tmp_path / "five", model, by_tokens)).job == one
    race = deeper(write_screens(tmp_path / "four", model, SCREEN + RACE))
    assert race.job == one  # a race goes on from a screen that is there


def test_of_equal_plans_that_a_race_and_a_variant_build_there_is_one_job(model: Path, tmp_path: Path) -> None:
    """The first of the screen, asked for by name, is the first runner."""
    made = load(write_screens(tmp_path, model, SCREEN + RACE.replace("rounds: 2", "rounds: 1")))
    runner = made.screens["deeper"].rounds[0].merged[0]
    without = load(write_screens(tmp_path / "b", model, SCREEN)).variants["won"]
    assert runner.job.id == without.job.id


def test_what_chose_a_plan_counts_as_learnt_from(model: Path, tmp_path: Path) -> None:
    """A score on the selection text would be too good."""
    healed = "  healed: {parent: won, pretrain: {data: {diary: 1}, tokens: 256, length: 64, batch: 2, heldout: {source: TEXT, tokens: 64}}}\n"
    with pytest.raises(ConfigError, match="learn"):
        load(write_screens(tmp_path / "a", model, SCREEN, BASE + WINNER + healed.replace("TEXT", "choose")))
    load(write_screens(tmp_path / "b", model, SCREEN, BASE + WINNER + healed.replace("TEXT", "judge")))


def test_a_screen_asks_for_time_by_its_budget(model: Path, tmp_path: Path) -> None:
    small = deeper(write_screens(tmp_path / "a", model, SCREEN)).job
    text = "selection: {source: choose, documents: 4, tokens: 40}"
    large = SCREEN.replace(text, "selection: {source: choose, documents: 4, tokens: 256}")
    many = deeper(write_screens(tmp_path / "b", model, large + "    budget: {plans: 100_000}\n")).job
    limited = deeper(write_screens(tmp_path / "c", model, large + "    budget: {plans: 100_000, minutes: 1}\n")).job
    assert request(small).runtime < request(limited).runtime < request(many).runtime
    assert request(limited).runtime == request(small).runtime + 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("[6, 3]\n    families: [dus, repeat, prune]", "[6, 9]\n    families: [dus, prune]"), ["no plan has this depth", "screens.deeper.depths[1]", "9, of a parent with 4 layers", "dus, prune"]),
        (("families: [dus, repeat, prune]", "families: [interlocked]"), ["no plan has this depth", "screens.deeper.depths[1]", "3, of a parent"]),
        (("families: [dus, repeat, prune]", "families: []"), ["give `families`, or `plans`"]),
        (("depths: [6, 3]", "depths: [6, 6]"), ["a depth twice"]),
        (("depths: [6, 3]", "depths: []"), ["screens.deeper.depths", "at least 1"]),
        (("finalists: 3", "budget: {plans: 1}\n    plans: [[0, 1, 2], [0, 1, 3]]"), ["2 `plans`, of which the budget has room for 1"]),
        (("finalists: 3", "plans: [[0, 1, 4]]"), ["no such layer", "screens.deeper.plans[0][2]", "0 to 3", "4"]),
        (("finalists: 3", "plans: [[0, 1]]"), ["a plan of another depth", "screens.deeper.plans[0]", "2 layers"]),
        (("finalists: 3", "finalists: 0"), ["screens.deeper.finalists", "0"]),
        (("finalists: 3", "budget: {plans: 0}"), ["screens.deeper.budget.plans", "greater than 0"]),
        (("finalists: 3", "budget: {tokens: 0}"), ["screens.deeper.budget.tokens", "greater than 0"]),
        (("finalists: 3", "budget: {tokens: 159}"), ["screens.deeper", "fewer than the 160 that one plan is scored on"]),
        (("finalists: 3", "budget: {minutes: 0}"), ["screens.deeper.budget.minutes", "greater than 0"]),
        (("source: judge", "source: choose"), ["chosen on the text that is to say", "screens.deeper.estimation.source"]),
        (("source: judge", "source: m"), ["screens.deeper.estimation.source", "a model, not data"]),
        (("source: judge", "source: jugde"), ["screens.deeper.estimation.source", "jugde"]),
        (("documents: 4, tokens: 40}\n    estimation", "documents: 1, tokens: 40}\n    estimation"), ["screens.deeper.selection.documents", "2"]),
        (("parent: base", "parent: bsae"), ["no such variant", "screens.deeper.parent", "bsae"]),
        (("families: [dus", "families: [dos"), ["screens.deeper.families[0]", "dos"]),
    ],
)  # fmt: skip
def test_a_screen_that_cannot_be_is_told_where_and_why(
    model: Path, tmp_path: Path, change: tuple[str, str], expected: list[str]
) -> None:
    assert change[0] in SCREEN
    check_refused(write_screens(tmp_path, model, SCREEN.replace(*change), BASE), expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("depth: 6, ", ""), ["give the `depth` of the race"]),
        (("depth: 6, ", "depth: 5, "), ["no plan has this depth", "screens.deeper.race.depth", "one of 3, 6"]),
        (("rounds: 2", "rounds: 3"), ["nothing would be left to decide", "screens.deeper.race.rounds", "1 to 2"]),
        (("plans: 3", "plans: 1"), ["screens.deeper.race.plans", "2"]),
        (("plans: 3", "plans: 99"), ["the screen has fewer plans", "screens.deeper.race.plans", "99"]),
        (("batch: 2}", "batch: 2, every: 64}"), ["screens.deeper.race.pretrain.every", "without `heldout`"]),
        (("batch: 2}", "batch: 2, heldout: {source: judge, tokens: 64}, stop: {recovered: base}}"), ["stop where they like", "screens.deeper.race.pretrain.stop"]),
        (("{diary: 1}", "{choose: 1}"), ["screens.deeper.race.pretrain.data.choose", "which it is ranked by"]),
    ],
)  # fmt: skip
def test_a_race_that_cannot_be_is_told_where_and_why(
    model: Path, tmp_path: Path, change: tuple[str, str], expected: list[str]
) -> None:
    assert change[0] in RACE
    check_refused(write_screens(tmp_path, model, SCREEN + RACE.replace(*change), BASE), expected)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("screen: deeper", "screen: depeer"), ["no such screen", "variants.won.merge.screen", "deeper", "depeer"]),
        (("depth: 6", "depth: 7"), ["no plans of this depth", "variants.won.merge.depth", "3, 6", "7"]),
        (("depth: 6", "depth: 6, rank: 3"), ["no plan has this rank", "variants.won.merge.rank", "1 to 2"]),
        (("parent: base", "parent: other"), ["of another parent", "variants.won.parent", "base", "other"]),
    ],
)  # fmt: skip
def test_a_winner_that_cannot_be_is_told_where_and_why(
    model: Path, tmp_path: Path, change: tuple[str, str], expected: list[str]
) -> None:
    other = "  other: {parent: base, merge: {method: dus, drop: 1}}\n"
    variants = BASE + other + WINNER.replace(*change)
    check_refused(write_screens(tmp_path, model, SCREEN + RACE, variants), expected)


def test_the_config_of_a_winners_card_makes_the_same_recipes(model: Path, tmp_path: Path) -> None:
    """With its screen and, where that decided, its race; without what it does not rest on."""
    flat = WINNER.replace("won", "flat").replace("depth: 6", "depth: 3")
    other = "  other: {parent: base, merge: {method: dus, drop: 1}}\n"
    folder = write_screens(tmp_path, model, SCREEN + RACE, BASE + WINNER + flat + other)
    loaded = config.load([folder / "config.yaml"])
    made = experiment.resolve(*loaded)
    for name, has_race in (("won", True), ("flat", False), ("other", None)):
        text = own_config(made, loaded[1], name)
        own = yaml.safe_load(text)
        (tmp_path / "own.yaml").write_text(text)
        again = experiment.load([tmp_path / "own.yaml"])
        assert again.variants[name].job.id == made.variants[name].job.id
        assert set(own["variants"]) == {"base", name}
        assert ("race" in own["screens"]["deeper"] if "screens" in own else None) is has_race


def test_a_rank_beyond_the_plans_that_there_are_is_told_without_a_race(model: Path, tmp_path: Path) -> None:
    flat = WINNER.replace("depth: 6", "depth: 3, rank: 9")
    with pytest.raises(ConfigError, match="no plan has this rank") as caught:
        load(write_screens(tmp_path, model, SCREEN, BASE + flat))
    assert "1 to 4: so many are tried at most" in str(caught.value)


def test_what_a_race_has_trained_on_has_chosen_too(model: Path, tmp_path: Path) -> None:
    made = load(write_screens(tmp_path, model, SCREEN + RACE))
    trained = made.screens["deeper"].rounds[-1].trained[0].lineage
    assert made.variants["won"].lineage.learnt == trained.learnt
    assert len(trained.learnt) == 2


def test_a_screen_is_not_called_as_a_variant_is(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a variant is called so"):
        load(write_screens(tmp_path, model, SCREEN, BASE + WINNER.replace("won", "deeper")))


def test_selection_on_what_a_suite_scores_is_refused(model: Path, tmp_path: Path) -> None:
    write_screens(tmp_path, model, SCREEN.replace("source: choose", "source: notes"), BASE, "[tiny.yaml]")
    notes = next(line for line in (tmp_path / "tiny.yaml").read_text().splitlines() if "notes:" in line)
    text = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(
        text.replace("screens:", f"{notes}\nscreens:", 1).replace("tiny.yaml", str(tmp_path / "tiny.yaml"))
    )
    with pytest.raises(ConfigError, match="what the suite tiny is scored on"):
        load(tmp_path)
