"""Surgery as a user runs it: every kind of method in one experiment, and a plan that an analysis decides."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from conftest import REPOSITORY, build, read_json, snakemake, strata, write_experiment
from strata import experiment

VARIANTS = """\
  base: {init: {source: m}}
  pro: {parent: base, merge: {method: block_expansion, groups: 2}}
  mixed: {parent: base, merge: {method: layers, layers: [0, {linear: [1, 2]}, 3]}}
  least: {parent: base, merge: {method: prune, least: 2, by: block_influence, calibration: {source: notes, documents: 2, tokens: 32}}}
  block: {parent: base, merge: {method: prune, least: 1, by: angular_distance, calibration: {source: notes, documents: 2, tokens: 32}}}
  blend: {parents: [base, mixed-4], merge: {method: slerp, t: 0.5}}
  mixed-4: {parent: mixed, merge: {method: repeat, blocks: [[1, 2]]}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    folder = write_experiment(tmp_path_factory.mktemp("surgery"), llama, VARIANTS)
    text = (folder / "config.yaml").read_text()
    notes = next(line for line in (folder / "tiny.yaml").read_text().splitlines() if "notes:" in line)
    (folder / "config.yaml").write_text(text.replace("variants:", f"{notes}\nvariants:", 1))
    build(folder, without={"analyze"})
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout
    return folder


def test_a_model_that_only_gained_silent_layers_scores_as_its_base(run: Path) -> None:
    lines = (run / "results/report/scores.csv").read_text().splitlines()
    rows = {row["variant"]: row for row in csv.DictReader(lines)}
    assert rows.keys() == {"base", "pro", "mixed", "least", "block", "blend", "mixed-4"}
    for key in ("tiny/text/bits_per_byte", "tiny/next/acc_norm"):
        for column in (key, f"{key}/error"):
            assert rows["pro"][column] == rows["base"][column]
        assert (rows["pro"][f"{key}/difference"], rows["pro"][f"{key}/p"]) == ("0.0", "1.0")
    assert (rows["pro"]["layers"], rows["least"]["layers"], rows["block"]["layers"]) == ("6", "2", "3")


def test_two_prunings_share_one_analysis_and_a_second_run_does_nothing(run: Path) -> None:
    assert len(list((run / "results/analyses").glob("analyze-*.json"))) == 1
    again = snakemake(run)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout


def test_a_plan_is_told_before_and_after_its_analysis_decided_it(run: Path, tmp_path: Path) -> None:
    told = strata(run, "plan", "least").stdout
    assert "which ones is decided by" in told and "done" in told and "of base" in told
    before = strata(run, "--root", str(tmp_path / "none"), "plan", "least").stdout
    assert "missing" in before and "2 layers" in before
    assert "exact: read from the parents' headers" in strata(run, "plan", "pro").stdout
    shown = strata(run, "show", "mixed").stdout
    assert "sum of 1 of base (0.5) and 2 of base (0.5)" in shown


def test_the_layers_that_go_are_those_the_analysis_measured_as_least(run: Path) -> None:
    analysis = next((run / "results/analyses").glob("analyze-*/importance.json"))
    influence = read_json(analysis)["block_influence"]
    manifest = read_json(run / "results/variants/least/manifest.json")
    kept = [sources[0][1] for _, _, sources in manifest["facts"]["plan"]["layers"]]
    assert sorted(influence[layer] for layer in range(4) if layer not in kept) == sorted(influence)[:2]
    assert manifest["facts"]["made_from"].keys() == {*manifest["recipe"]["parents"], *manifest["recipe"]["sources"]}


def test_the_report_draws_mixes_and_inserted_layers(run: Path) -> None:
    page = (run / "results/report/report.html").read_text()
    assert "pro: layer 2 is an inserted copy of layer 1 of base" in page
    assert "blend: layer 1 is a SLERP of" in page


def test_the_shipped_example_of_every_method_is_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = experiment.load(["config.yaml", "workflow/examples/methods.yaml"])
    used = {job.recipe.parameters.get("method") for job in found.jobs.values() if job.recipe.operation == "merge"}
    assert used == {
        "dus", "interlocked", "repeat", "slices", "layers", "block_expansion", "prune", "compose", "linear", "slerp",
        "screened",
    }  # fmt: skip
