"""The table is made from the samples alone, and refuses what it cannot stand for."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conftest import edit_manifest
from strata import figures, methods, plan, report, store
from strata.errors import EvaluationError
from strata.experiment import Experiment, load


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


def test_it_is_the_same_bytes_again(experiment: Experiment) -> None:
    files = sorted((ROOT / "report").iterdir())
    before = [file.read_bytes() for file in files]
    report.write_report(ROOT, experiment)
    assert [file.read_bytes() for file in files] == before


def test_markdown_has_errors_on_every_number(experiment: Experiment) -> None:
    lines = (ROOT / "report" / "scores.md").read_text().splitlines()
    assert lines[0].count("|") == lines[2].count("|") == 10
    assert re.search(
        r"\| dus \| base: dus drop 1 \| 6 \| .* \| 1 \| \d\.\d{3} ± 0\.\d{3} \| [+-]0\.\d{3} ± 0\.\d{3} \|", lines[3]
    )


def test_the_page_is_self_contained_and_well_formed(experiment: Experiment) -> None:
    page = (ROOT / "report" / "report.html").read_text()

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.stack: list[str] = []
            self.links: list[str] = []

        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            self.links += [value or "" for name, value in attributes if name in ("src", "href")]
            if tag not in ("meta", "br", "rect", "line", "circle"):
                self.stack.append(tag)

        def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            if tag not in ("rect", "line", "circle"):
                assert self.stack.pop() == tag

    reader = Reader()
    reader.feed(page)
    assert (reader.stack, reader.links) == ([], [])
    assert page.count("<svg") == 3
    assert "http" not in page


def test_a_score_of_other_weights_is_refused(experiment: Experiment) -> None:
    id = experiment.variants["stacked"].job.id
    edit_manifest(ROOT / "checkpoints" / id / "manifest.json", lambda manifest: manifest.update(digest="0" * 64))
    with pytest.raises(EvaluationError, match="`stacked` belongs to other weights"):
        report.write_report(ROOT, experiment)


def test_a_variant_made_from_other_content_than_its_parent_has_is_refused(experiment: Experiment) -> None:
    base = ROOT / "checkpoints" / experiment.variants["base"].job.id / "manifest.json"
    edit_manifest(base, lambda manifest: manifest.update(digest="0" * 64))
    evaluation = ROOT / "evaluations" / experiment.variants["base"].evaluations[0].id / "manifest.json"
    edit_manifest(evaluation, lambda manifest: manifest["facts"].update(checkpoint_digest="0" * 64))
    with pytest.raises(EvaluationError, match="`dus` was made from other content"):
        report.write_report(ROOT, experiment)


def test_scores_of_other_requests_are_not_compared(experiment: Experiment) -> None:
    manifest = ROOT / "evaluations" / experiment.variants["stacked"].evaluations[0].id / "manifest.json"
    edit_manifest(manifest, lambda manifest: manifest["facts"]["scores"]["next"].update(requests="0" * 64))
    with pytest.raises(EvaluationError, match="answered different requests"):
        report.write_report(ROOT, experiment)


def test_a_layer_plan_draws_each_layer_with_its_source() -> None:
    made = methods.dus(4, 1, 1)
    picture = figures.layer_plans([("base", plan.identity(4), ()), ("dus", made, plan.seams(made))], ["base"])
    assert "dus: layer 3 is layer 1 of base" in picture
    assert picture.count("<title>") == 10
    assert picture.count('class="seam"') == 1
    colour = dict(re.findall(r'<title>base: layer (\d)[^<]*</title>\n<rect[^>]* fill="(#\w+)"', picture))
    assert len(set(colour.values())) == 4


def test_mixes_and_inserted_layers_are_drawn_as_such() -> None:
    grown = methods.block_expansion(4, 1, 1, "even")
    mixed = methods.blend([4, 4], "slerp", [0.5, 0.5])
    picture = figures.layer_plans([("pro", grown, plan.seams(grown)), ("mix", mixed, ())], ["a", "b"])
    assert "pro: layer 4 is an inserted copy of layer 3 of a" in picture
    assert "mix: layer 2 is a SLERP of layer 2 of a and layer 2 of b" in picture
    assert picture.count("<rect x") == 5 + 1 + 4 * 2 + 40  # squares, one hollow, bands, the key


def test_pictures_of_large_sweeps_say_what_they_leave_out() -> None:
    many = [(f"v{n}", plan.identity(2), ()) for n in range(figures.ROWS + 1)]
    assert f"the first {figures.ROWS} of {figures.ROWS + 1} variants" in figures.layer_plans(many, ["base"])
    assert f"of {figures.ROWS + 1} variants" in figures.scores(
        "x", [(f"v{n}", 1.0, 0.1) for n in range(figures.ROWS + 1)], None
    )


@pytest.mark.parametrize(("low", "high"), [(0.96, 2.35), (0.25, 0.63), (0, 0), (-3, 1000), (1e-6, 2e-6)])
def test_ticks_are_few_round_and_enclose(low: float, high: float) -> None:
    ticks = figures._ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high
    assert 2 <= len(ticks) <= 9


def test_names_cannot_break_the_page() -> None:
    assert "<script>" not in figures.scores("<script>", [("<script>", 1.0, 0.1)], None)
