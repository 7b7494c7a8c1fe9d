"""Training as a user runs it: DUS, continued pretraining, instructions, preferences, in one experiment."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import REPOSITORY, build, read_json, snakemake, strata, tree_sha256, write_experiment, write_lessons

SMALL = "length: 64, batch: 2, learning_rate: 2.0e-3"
VARIANTS = f"""\
  base: {{init: {{source: m}}}}
  dus: {{parent: base, merge: {{method: dus, drop: 1}}}}
  healed: {{parent: dus, pretrain: {{data: {{diary: 1}}, tokens: 2560, heldout: {{source: notes, tokens: 256}}, {SMALL}}}}}
  twin: {{parent: dus, pretrain: {{data: {{diary: 1}}, tokens: 2560, heldout: {{source: notes, tokens: 256}}, {SMALL}}}}}
  control: {{parent: base, pretrain: {{data: {{diary: 1}}, tokens: 2560, heldout: {{source: notes, tokens: 256}}, {SMALL}}}}}
  tuned: {{parent: healed, sft: {{data: [rows], template: solar, epochs: 1, length: 128, batch: 2}}}}
  aligned: {{parent: tuned, dpo: {{data: [pairs], template: own, length: 128, batch: 2, train: [0, 5]}}}}
  stepwise: {{parent: aligned, dpo: {{data: [pairs], template: own, length: 128, batch: 2}}}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    folder = write_experiment(tmp_path_factory.mktemp("training"), llama, VARIANTS)
    (folder / "diary").mkdir()
    for day in range(3):
        (folder / "diary" / f"{day}.txt").write_text(
            " ".join(f"On day {day} I counted {n * 3} ants." for n in range(60))
        )
    sources = write_lessons(folder)
    notes = next(line for line in (folder / "tiny.yaml").read_text().splitlines() if "notes:" in line)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("variants:", f"{sources}{notes}\nvariants:", 1))
    build(folder, without={"sft", "reference"})
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout
    return folder


def test_each_stage_is_one_job_and_a_second_run_does_nothing(run: Path) -> None:
    results = run / "results"
    made = sorted(path.name.partition("-")[0] for path in results.glob("*/*-*.json") if path.parent.name != "runs")
    counts = {name: made.count(name) for name in ("tokenize", "reference", "pretrain", "sft", "dpo")}
    assert counts == {"tokenize": 4, "reference": 2, "pretrain": 2, "sft": 1, "dpo": 2}
    assert "Nothing to be done" in snakemake(run).stdout
    assert not list(results.glob("training/*/snapshots"))


def test_the_table_and_the_page_tell_what_was_trained(run: Path) -> None:
    lines = (run / "results/report/scores.csv").read_text().splitlines()
    rows = {row["variant"]: row for row in csv.DictReader(lines)}
    assert float(rows["healed"]["heldout_after"]) < float(rows["healed"]["heldout_before"])
    assert (rows["healed"]["seams"], rows["aligned"]["seams"]) == ("1", "1")
    page = (run / "results/report/report.html").read_text()
    assert "Recovery" in page and "control" in page


def test_each_step_of_stepwise_dpo_is_held_to_the_one_before(run: Path) -> None:
    """Its reference is of the parent's weights, so that its first loss is ln 2 again, and falls from there."""
    for name, parent in (("aligned", "tuned"), ("stepwise", "aligned")):
        manifest = read_json(run / "results/variants" / name / "manifest.json")
        (reference,) = (id for id in manifest["recipe"]["sources"] if id.startswith("reference-"))
        held = read_json(run / "results/references" / reference / "manifest.json")["facts"]["checkpoint_digest"]
        assert held == read_json(run / "results/variants" / parent / "manifest.json")["digest"]
        losses = [step["loss"] for step in read_json(run / "results/variants" / name / "curve.json")["steps"]]
        assert losses[0] == pytest.approx(math.log(2), abs=1e-4) and losses[-1] < losses[0]


def test_the_chain_keeps_plan_and_template(run: Path) -> None:
    variants = run / "results" / "variants"
    plans = {
        name: read_json(variants / name / "manifest.json")["facts"]["plan"] for name in ("dus", "healed", "aligned")
    }
    assert plans["dus"] == plans["healed"] == plans["aligned"]
    templates = {(variants / name / "chat_template.jinja").read_text() for name in ("tuned", "aligned")}
    assert len(templates) == 1 and "### User:" in templates.pop()
    curve = read_json(variants / "aligned" / "curve.json")
    assert curve["steps"][0]["loss"] == pytest.approx(0.693147, abs=1e-4)


def test_commands_tell_of_training(run: Path) -> None:
    assert "pretrain 2,560 tokens of diary" in strata(run, "ls").stdout
    assert "held-out loss" in strata(run, "show", "healed").stdout
    assert strata(run, "verify").returncode == 0
    assert "nothing to build" in strata(run, "why", "aligned").stdout


def test_data_that_a_suite_is_scored_on_is_refused_by_its_content(run: Path) -> None:
    """The same words under another name: planning cannot know, the evaluation does."""
    (run / "copied").mkdir()
    (run / "copied" / "other.txt").write_text((run / "documents" / "ant.txt").read_text())
    more = f"""\
sources:
  copied: {{path: copied, sha256: {tree_sha256(run / "copied")}}}
variants:
  cheat: {{parent: base, pretrain: {{data: {{copied: 1}}, tokens: 128, {SMALL}}}}}
"""
    (run / "more.yaml").write_text(more)
    done = snakemake(run, "results/variants/cheat.json", "--configfile", "more.yaml")
    assert done.returncode != 0 and "trained on what it would be scored on" in done.stdout and "ant" in done.stdout


def test_a_job_that_is_stopped_goes_on_with_the_next_attempt(run: Path) -> None:
    """As on a cluster: the job is told to stop, ends with 75, and `retries` submits it again."""
    more = f"variants:\n  long: {{parent: base, pretrain: {{data: {{diary: 1}}, tokens: 64_000, {SMALL}}}}}\n"
    (run / "long.yaml").write_text(more)
    goal = ("results/variants/long.json", "--configfile", "long.yaml", "--retries", "1")
    command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--cores", "2", *goal]
    process = subprocess.Popen(command, cwd=run, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 300
    while not has_begun(run):
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.1)
    jobs = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if is_training(path, run)]
    os.kill(jobs[0], signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "stopped by a signal" in output and "Trying to restart job" in output
    made = read_json(run / "results" / "variants" / "long.json")["checkpoint"]
    log = (run / "results" / "training" / made / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == list(range(1, 501))


def has_begun(run: Path) -> bool:
    """Whether a run whose checkpoint does not stand yet has done a step."""
    logs = run.glob("results/training/pretrain-*/log.jsonl")
    checkpoints = run / "results" / "checkpoints"
    return any("loss" in log.read_text() for log in logs if not (checkpoints / log.parent.name).exists())


def is_training(command: Path, run: Path) -> bool:
    try:
        words = command.read_bytes().split(b"\0")
        return words[1:4] == [b"-m", b"strata", b"pretrain"] and (command.parent / "cwd").resolve() == run.resolve()
    except OSError:
        return False
