"""The table is made from the samples alone, and refuses what it cannot stand for."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conftest import edit_manifest, flip, tree_sha256
from pages import check_page
from strata import methods, plan, store
from strata.config import Shape
from strata.errors import EvaluationError, StoreError
from strata.experiment import Experiment, load
from strata.job import Job
from strata.lineage import Lineage
from strata.recipe import Recipe
from strata.report import formats
from strata.report import table as tables
from strata.report.comparison import holm
from strata.report.flips import Flip
from strata.report.page import to_html, verify_scores, write_report
from strata.report.table import collect, versus
from strata.store import Built, Object
from strata.variant import Variant


@pytest.fixture
def experiment(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.chdir(finished)
    return load(["config.yaml"])


ROOT = Path("results")


def rows() -> list[dict[str, str]]:
    with (ROOT / "report" / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_one_row_for_each_variant_with_its_facts(experiment: Experiment) -> None:
    table = {row["variant"]: row for row in rows()}
    assert list(table) == ["base", "dus", "same", "stacked"]
    assert [table[name]["layers"] for name in table] == ["4", "6", "6", "8"]
    assert [table[name]["seams"] for name in table] == ["0", "1", "1", "1"]
    for name, variant in experiment.variants.items():
        facts = store.require(ROOT, variant.job.id).facts
        assert int(table[name]["parameters"]) == facts["parameters"]
        scores = store.require(ROOT, variant.evaluations[0].id).facts["scores"]
        assert float(table[name]["tiny/text/bits_per_byte"]) == pytest.approx(scores["text"]["value"], rel=1e-12)
        assert float(table[name]["tiny/next/acc_norm/error"]) == pytest.approx(scores["next"]["error"], rel=1e-12)


def test_the_difference_is_the_difference_of_the_scores(experiment: Experiment) -> None:
    base, *others = rows()
    for key in ("tiny/text/bits_per_byte", "tiny/next/acc_norm"):
        assert base[f"{key}/difference"] == ""
        for row in others:
            assert float(row[f"{key}/difference"]) == pytest.approx(float(row[key]) - float(base[key]), abs=1e-12)
            assert float(row[f"{key}/difference_error"]) >= 0


def test_every_difference_has_an_interval_a_test_and_what_it_could_find(experiment: Experiment) -> None:
    _, *others = rows()
    ps = []
    for key in ("tiny/text/bits_per_byte", "tiny/next/acc_norm"):
        for row in others:
            low, high, value = (float(row[f"{key}/{name}"]) for name in ("low", "high", "difference"))
            assert low <= value <= high
            assert float(row[f"{key}/detectable"]) > high - value
            assert int(row[f"{key}/wins"]) + int(row[f"{key}/losses"]) <= 12
            ps.append((float(row[f"{key}/p"]), float(row[f"{key}/p_adjusted"])))
    assert all(p <= adjusted for p, adjusted in ps)


def test_two_names_of_one_checkpoint_are_one_comparison(experiment: Experiment) -> None:
    """`dus` and `same` are one: Holm's correction counts four differences, not six."""
    _, dus, same, stacked = rows()
    found = [
        row[f"{key}/{name}"]
        for name in ("p", "p_adjusted")
        for row in (dus, stacked)
        for key in ("tiny/text/bits_per_byte", "tiny/next/acc_norm")
    ]
    ps, adjusted = [float(p) for p in found[:4]], [float(p) for p in found[4:]]
    assert adjusted == pytest.approx(holm(ps))
    assert dus["tiny/text/bits_per_byte/p_adjusted"] == same["tiny/text/bits_per_byte/p_adjusted"]


def test_one_variant_is_held_against_any_other(experiment: Experiment) -> None:
    found = versus(ROOT, experiment, "stacked", "dus")
    table = {row["variant"]: row for row in rows()}
    for column, one in found:
        key = f"tiny/{column.task}/{column.metric}"
        assert one.difference.value == pytest.approx(float(table["stacked"][key]) - float(table["dus"][key]))
    told = formats.comparison("stacked", "dus", found)
    assert "stacked minus dus" in told and told.count("four times of five") == 2


def test_latex_has_every_score_and_difference_and_no_character_that_breaks_it(experiment: Experiment) -> None:
    lines = (ROOT / "report" / "scores.tex").read_text().splitlines()
    assert lines[1] == r"\begin{tabular}{lrrrr}" and lines[-1] == r"\end{tabular}"
    body = [line for line in lines if line.endswith(r"\\")]
    assert all(line.count(" & ") == 4 for line in body)
    assert len(body) == 1 + 4 + 3  # the head, the variants, and the differences of all but the base
    for line in body:
        assert not re.search(r"(?<!\\)[&%#_]", line.replace(" & ", " "))


def test_scores_can_be_made_again_from_the_sample_logs(experiment: Experiment) -> None:
    assert "6 scores in 3 evaluations" in verify_scores(ROOT, experiment)


def test_a_score_that_is_not_that_of_its_samples_is_found(experiment: Experiment) -> None:
    found = store.require(ROOT, experiment.variants["stacked"].evaluations[0].id)
    edit_manifest(
        found.path / "manifest.json", lambda manifest: manifest["facts"]["scores"]["next"].update(value=0.5001)
    )
    with pytest.raises(EvaluationError, match="score of next is not that of its samples"):
        verify_scores(ROOT, experiment)


@pytest.mark.parametrize("name", ["scores.csv", "scores.md", "scores.tex", "report.html"])
def test_a_report_that_was_edited_or_is_old_is_found(experiment: Experiment, name: str) -> None:
    file = ROOT / "report" / name
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(EvaluationError, match="not that of its samples") as caught:
        verify_scores(ROOT, experiment)
    assert name in str(caught.value)


def test_a_partial_report_shows_what_is_finished_and_the_gaps(experiment: Experiment) -> None:
    evaluation = experiment.variants["stacked"].evaluations[0].id
    before = (ROOT / "report" / "scores.csv").read_bytes()
    (ROOT / "evaluations" / evaluation).rename(ROOT / "gone")
    (ROOT / "logs" / f"{evaluation}.log").write_text("what went wrong")
    page = write_report(ROOT, experiment, partial=True)
    with (page.parent / "scores.csv").open() as file:
        assert [row["variant"] for row in csv.DictReader(file)] == ["base", "dus", "same"]
    for text in (page.read_text(), (page.parent / "scores.md").read_text()):
        assert "stacked is missing: not scored on tiny (log: " in text and f"{evaluation}.log" in text
    check_page(page.read_text(), pictures=3)
    assert (ROOT / "report" / "scores.csv").read_bytes() == before
    with pytest.raises(StoreError):
        write_report(ROOT, experiment)


def test_without_its_base_a_variant_stands_without_differences(experiment: Experiment) -> None:
    (ROOT / "evaluations" / experiment.variants["base"].evaluations[0].id).rename(ROOT / "gone")
    table = collect(ROOT, experiment, partial=True)
    assert [row.name for row in table.rows] == ["dus", "same", "stacked"] and table.gaps[0][0] == "base"
    assert all(score.delta is None for row in table.rows for score in row.scores)


def test_a_partial_report_of_nothing_is_no_report(experiment: Experiment) -> None:
    (ROOT / "evaluations").rename(ROOT / "gone")
    with pytest.raises(StoreError, match="no variant is built and scored"):
        write_report(ROOT, experiment, partial=True)


def test_it_is_the_same_bytes_again(experiment: Experiment) -> None:
    files = sorted((ROOT / "report").iterdir())
    before = [file.read_bytes() for file in files]
    write_report(ROOT, experiment)
    assert [file.read_bytes() for file in files] == before


def test_markdown_has_errors_on_every_number(experiment: Experiment) -> None:
    lines = (ROOT / "report" / "scores.md").read_text().splitlines()
    assert lines[0].count("|") == lines[2].count("|") == 10
    assert re.search(
        r"\| dus \| base: dus drop 1 \| 6 \| .* \| 1 \| \d\.\d{3} ± 0\.\d{3} \| [+-]0\.\d{3} ± 0\.\d{3}(?: \*)? \|",
        lines[3],
    )


def test_the_page_is_self_contained_and_well_formed(experiment: Experiment) -> None:
    page = (ROOT / "report" / "report.html").read_text()
    check_page(page, pictures=3)
    assert "Recovery" not in page and "trained" not in page


def test_a_score_of_other_weights_is_refused(experiment: Experiment) -> None:
    id = experiment.variants["stacked"].job.id
    edit_manifest(ROOT / "checkpoints" / id / "manifest.json", lambda manifest: manifest.update(digest="0" * 64))
    with pytest.raises(EvaluationError, match="`stacked` belongs to other weights"):
        write_report(ROOT, experiment)


def test_a_variant_made_from_other_content_than_its_parent_has_is_refused(experiment: Experiment) -> None:
    base = ROOT / "checkpoints" / experiment.variants["base"].job.id / "manifest.json"
    edit_manifest(base, lambda manifest: manifest.update(digest="0" * 64))
    evaluation = ROOT / "evaluations" / experiment.variants["base"].evaluations[0].id / "manifest.json"
    edit_manifest(evaluation, lambda manifest: manifest["facts"].update(checkpoint_digest="0" * 64))
    with pytest.raises(EvaluationError, match="`dus` was made from other content"):
        write_report(ROOT, experiment)


def test_scores_of_other_requests_are_not_compared(experiment: Experiment) -> None:
    manifest = ROOT / "evaluations" / experiment.variants["stacked"].evaluations[0].id / "manifest.json"
    edit_manifest(manifest, lambda manifest: manifest["facts"]["scores"]["next"].update(requests="0" * 64))
    with pytest.raises(EvaluationError, match="answered different requests"):
        write_report(ROOT, experiment)


def test_a_trained_variant_is_traced_once_although_its_manifest_has_its_parents_plan() -> None:
    """Told twice, layer 5 of a model of 4 layers stacked to 6 would be looked up in the base."""
    stacked, again = methods.dus(4, 1, 1), methods.dus(6, 0, 0)
    made = {
        "base": ((), "init", plan.identity(4)),
        "dus": (("base",), "merge", stacked),
        "healed": (("dus",), "pretrain", stacked),
        "twice": (("healed",), "merge", again),
    }
    shape = Shape(family="llama", layers=4, parameters=10, bytes=20, dtype="bfloat16")
    variants = {
        name: Variant(name, parents, Job(Recipe(operation, {"of": name}), shape), None, Lineage(None, ""))
        for name, (parents, operation, _) in made.items()
    }
    plans = {variants[name].job.id: made[name][2] for name in made}
    found = Experiment("cpu", (), {}, variants, {}, {})
    known: dict[str, plan.Plan] = {}
    traced = tables.trace(lambda id: Object(id, ROOT, {"facts": {"plan": plans[id].to_json()}}), found, "twice", known)
    assert known["healed"] == known["dus"] == stacked
    assert [layer.sources[0][1] for layer in traced.layers] == [0, 1, 2, 1, 2, 3] * 2


TRAINED = """\
  healed: {parent: dus, pretrain: {<run>, stop: {recovered: base}}}
  control: {parent: base, pretrain: {<run>}}
  again: {parent: healed, pretrain: {<run>, seed: 2}}
  blind: {parent: dus, pretrain: {data: {prose: 1.0}, tokens: 9_600, length: 32, batch: 4}}
""".replace("<run>", "data: {prose: 1.0}, heldout: {source: verse, tokens: 256}, tokens: 12_800, length: 32, batch: 4")
LOSSES = {"healed": [3.75, 3.25, 2.9375], "control": [3.0, 2.875, 2.8125, 2.75], "again": [2.9375, 2.8125], "blind": []}
ROUNDED = {"healed": 0.25, "control": 0.0, "again": 0.875, "blind": 0.5}


@pytest.fixture
def trained(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """The small experiment with four variants more, as if they had been trained and scored."""
    monkeypatch.chdir(finished)
    config = Path("config.yaml").read_text()
    for name in ("prose", "verse"):
        Path(name).mkdir()
        (Path(name) / "text.txt").write_text(f"Some {name} that no suite has.")
        config = config.replace(
            "variants:", f"  {name}: {{path: {name}, sha256: {tree_sha256(Path(name))}}}\nvariants:"
        )
    Path("config.yaml").write_text(config.replace("suites:", TRAINED + "suites:"))
    experiment = load(["config.yaml"])
    for name, losses in LOSSES.items():
        publish_trained(experiment, name, losses)
    write_report(ROOT, experiment)
    return experiment


def publish_trained(experiment: Experiment, name: str, losses: list[float]) -> None:
    """A checkpoint with a curve, a measurement every 3,200 tokens; its parent's scores are its own."""
    variant = experiment.variants[name]
    above = experiment.variants[variant.parents[0]]
    parent = store.require(ROOT, above.job.id)
    base = experiment.variants["base"].job.id
    recovered = "stop" in variant.job.recipe.parameters
    tokens = 3200 * (len(losses) - 1 if losses else 3)
    curve: dict[str, Any] = {
        "steps": [{"step": n, "tokens": 128 * (n + 1), "loss": 3.0} for n in range(tokens // 128)],
        "heldout": [{"step": 25 * n, "tokens": 3200 * n, "loss": loss} for n, loss in enumerate(losses)],
        "reference": {"id": base, "loss": 3.0} if recovered else None,
        "ended": "recovered" if recovered else "budget",
        "data": {},
    }

    def train(folder: Path) -> Built:
        (folder / "curve.json").write_text(json.dumps(curve))
        learnt = {"training": {"rounded": ROUNDED[name]}}
        return Built(facts=parent.facts | learnt | {"made_from": {parent.id: parent.digest}})

    checkpoint = store.publish(ROOT, variant.job.recipe, train)
    for job, other in zip(variant.evaluations, above.evaluations, strict=True):
        scored = store.require(ROOT, other.id)

        def score(folder: Path, scored: Object = scored) -> Built:
            shutil.copytree(scored.path, folder, dirs_exist_ok=True)
            folder.chmod(0o755)
            (folder / store.MANIFEST).unlink()
            return Built(facts=scored.facts | {"checkpoint_digest": checkpoint.digest})

        store.publish(ROOT, job.recipe, score)


def test_what_training_did_is_in_the_table(trained: Experiment) -> None:
    table = {row["variant"]: row for row in rows()}
    columns = ("trained_tokens", "heldout_before", "heldout_after", "ended", "rounded")
    assert {name: tuple(row[column] for column in columns) for name, row in table.items()} == {
        **dict.fromkeys(("base", "dus", "same", "stacked"), ("", "", "", "", "")),
        "healed": ("6400", "3.75", "2.9375", "recovered", "0.25"),
        "control": ("9600", "3.0", "2.75", "budget", "0.0"),
        "again": ("3200", "2.9375", "2.8125", "budget", "0.875"),
        "blind": ("9600", "", "", "budget", "0.5"),
    }


def test_markdown_has_the_loss_before_and_after_training(trained: Experiment) -> None:
    head, _, *lines = (ROOT / "report" / "scores.md").read_text().splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ")[5:7] for line in lines if line.startswith("|")}
    assert head.split(" | ")[5:7] == ["tokens trained", "held-out loss"]
    assert cells["healed"] == ["6,400", "3.750 → 2.938"]
    assert [cell.strip() for cell in cells["dus"] + cells["blind"]] == ["", "", "9,600", ""]
    assert "recovery curve" in "".join(lines)


def test_a_variant_that_lost_most_of_its_update_to_its_dtype_is_pointed_out(trained: Experiment) -> None:
    for name in ("scores.md", "report.html"):
        (told,) = re.findall(r"(\w+): storing it as (\w+) rounded (\d+)%", (ROOT / "report" / name).read_text())
        assert told == ("again", trained_dtype(trained), "88"), name


def test_a_base_with_a_matrix_of_one_value_is_pointed_out(experiment: Experiment) -> None:
    table = collect(ROOT, experiment)
    assert not formats.warnings(table)
    table = replace(table, rows=(replace(table.rows[0], constant=("model.layers.1.w", "x")), *table.rows[1:]))
    (told,) = formats.warnings(table)
    assert told.startswith("base: one value throughout in 2 of its source's matrices, the first of them model.layers.1")


def test_a_question_with_html_in_it_is_shown_as_text(experiment: Experiment) -> None:
    table = collect(ROOT, experiment)
    question = Flip("d/1", "<script>alert(1)</script> & so on", ("<b>yes</b>", "no"), 0, 1, 0)
    place = next(n for n, column in enumerate(table.columns) if column.task == "next")
    row = table.rows[1]
    scores = (*row.scores[:place], replace(row.scores[place], flips=(question,)), *row.scores[place + 1 :])
    shown = to_html(
        ROOT, replace(table, rows=(table.rows[0], replace(row, scores=scores), *table.rows[2:])), experiment, ROOT
    )
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so on" in shown and "&lt;b&gt;yes&lt;/b&gt;" in shown
    assert "<script>alert" not in shown and "<b>yes" not in shown


def trained_dtype(experiment: Experiment) -> str:
    return str(store.require(ROOT, experiment.variants["again"].job.id).facts["dtype"])


def test_the_page_shows_how_each_variant_recovered(trained: Experiment) -> None:
    page = (ROOT / "report" / "report.html").read_text()
    check_page(page, pictures=4)
    chart = next(part for part in page.split("<svg")[1:] if "polyline" in part)
    assert chart.count("<polyline") == 3
    assert "verse: 256 held-out tokens, 32 at a time, in float32" in chart
    assert "healed: 2.9375 nats after 6,400 tokens: recovered" in chart
    for told in ("3.000, reference", "2.750, control", "2.812, after healed"):
        assert told in chart
    assert "Losses of two charts do not compare" not in page


def test_a_report_with_curves_is_the_same_bytes_again(trained: Experiment) -> None:
    before = (ROOT / "report" / "report.html").read_bytes()
    write_report(ROOT, trained)
    assert (ROOT / "report" / "report.html").read_bytes() == before


def test_a_damaged_curve_is_no_report(trained: Experiment) -> None:
    flip(store.require(ROOT, trained.variants["healed"].job.id).path / "curve.json", 40)
    with pytest.raises(StoreError, match="damaged"):
        write_report(ROOT, trained)
