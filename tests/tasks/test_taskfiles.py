"""Task files of a user's own: pinned, from folders that are allowed, and nothing else of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import tree_sha256, write_experiment
from strata import store
from strata.errors import ConfigError, EvaluationError, SourceError
from strata.experiment import load
from strata.sources import fetch
from strata.tasks import harness, kinds, taskfiles

DEFINITION = """\
task: parity
output_type: multiple_choice
test_split: test
process_docs: !function code.shout
doc_to_text: "{{question}}"
doc_to_target: "{{right}}"
doc_to_choice: [even, odd]
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
OWN = """\
suite: own
version: 1
sources:
  rows: {{path: rows, sha256: {rows}}}
  mine: {{path: mine, sha256: {mine}}}
numerics: {{dtype: float32, batch_size: 3, max_length: 128, add_bos_token: false, seed: 1}}
tasks:
  parity:
    {{kind: harness, task: parity, folder: ., definitions: mine, source: rows, files: {{test: "*.jsonl"}}, shots: 0, metric: acc}}
groups:
  all: [parity]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama: Path) -> Path:
    """A suite of a user's own, with a task file that calls code."""
    monkeypatch.chdir(tmp_path)
    for folder in ("rows", "mine"):
        (tmp_path / folder).mkdir()
    (tmp_path / "mine" / "parity.yaml").write_text(DEFINITION)
    shout = "def shout(rows):\n    return rows.map(lambda row: {'question': row['question'].upper()})\n"
    (tmp_path / "mine" / "code.py").write_text(shout)
    lines = (json.dumps({"question": f"is {n}", "right": n % 2}) + "\n" for n in range(6))
    (tmp_path / "rows" / "rows.jsonl").write_text("".join(lines))
    text = OWN.format(rows=tree_sha256(tmp_path / "rows"), mine=tree_sha256(tmp_path / "mine"))
    (tmp_path / "own.yaml").write_text(text)
    write_experiment(tmp_path, llama, "  base: {init: {source: m}}\n", "[own.yaml]")
    return tmp_path


def allow(folder: Path, *allowed: str) -> None:
    with (folder / "config.yaml").open("a") as file:
        file.write(f"task_folders: [{', '.join(allowed)}]\n")


def test_a_task_file_of_ones_own_loads_from_an_allowed_folder(own: Path) -> None:
    allow(own, "mine")
    experiment = load(["config.yaml"])
    (job,) = experiment.variants["base"].evaluations
    for id in (id for id in job.recipe.sources if id.startswith("fetch-")):
        fetch(Path("results"), experiment.jobs[id].recipe, experiment.jobs[id].location)
    settings = job.recipe.parameters["tasks"]["parity"]
    data, files = (store.require(Path("results"), settings[key]).path / "files" for key in ("source", "definitions"))
    asked = kinds.ask("parity", settings, data, files, 1)
    assert asked.texts["parity/3"] == "IS 3"


@pytest.mark.parametrize("allowed", [(), ("rows",), ("mine/below",), ("./minefield",)])
def test_task_files_from_any_other_folder_are_refused(own: Path, allowed: tuple[str, ...]) -> None:
    allow(own, *allowed)
    with pytest.raises(ConfigError, match="hold code") as caught:
        load(["config.yaml"])
    assert "own.yaml:9" in str(caught.value) and "task_folders" in str(caught.value)


def test_a_link_into_another_folder_does_not_make_it_an_allowed_one(own: Path) -> None:
    (own / "allowed").mkdir()
    (own / "allowed" / "linked").symlink_to(own / "mine")
    (own / "own.yaml").write_text((own / "own.yaml").read_text().replace("path: mine", "path: allowed/linked"))
    allow(own, "allowed")
    with pytest.raises(ConfigError, match="hold code"):
        load(["config.yaml"])


def test_task_files_come_from_where_they_are_allowed_though_data_have_the_same_bytes(own: Path) -> None:
    """Two sources of one pin are one artefact, brought from either place; task files are another."""
    allow(own, "mine")
    (own / "evil").mkdir()
    text = (own / "own.yaml").read_text()
    pin = f"  zz: {{path: evil, sha256: {tree_sha256(own / 'mine')}}}\n"
    (own / "own.yaml").write_text(text.replace("numerics:", pin + "numerics:", 1))
    experiment = load(["config.yaml"])
    (job,) = experiment.variants["base"].evaluations
    found = experiment.jobs[job.recipe.parameters["tasks"]["parity"]["definitions"]]
    assert found.location == "mine" and "evil" in {other.location for other in experiment.jobs.values()}


def test_a_task_file_may_not_include_one_from_outside_its_folder(own: Path) -> None:
    (own / "mine" / "below").mkdir()
    (own / "mine" / "below" / "more.yaml").write_text("include: ../parity.yaml\ntask: more\n")
    settings = {"task": "more", "files": {"test": "*.jsonl"}}
    with pytest.raises(EvaluationError, match="outside its folder"):
        harness.tasks(own / "mine" / "below", own / "rows", settings, 1)


def test_a_definition_is_every_file_below_its_folder(own: Path) -> None:
    before = taskfiles.definition(own / "mine")
    assert taskfiles.definition(own / "mine") == before
    (own / "mine" / "code.py").write_text("import os\n")
    assert taskfiles.definition(own / "mine") != before


def test_code_that_changed_since_it_was_pinned_is_refused(own: Path) -> None:
    allow(own, "mine")
    (own / "mine" / "code.py").write_text("import os\n")
    experiment = load(["config.yaml"])
    (job,) = experiment.variants["base"].evaluations
    source = experiment.jobs[job.recipe.parameters["tasks"]["parity"]["definitions"]]
    with pytest.raises(SourceError, match="wrong checksum"):
        fetch(Path("results"), source.recipe, source.location)


def test_a_folder_that_lm_eval_does_not_have_is_told_when_planning(own: Path) -> None:
    text = (own / "own.yaml").read_text().replace("folder: ., definitions: mine", "folder: nowhere")
    (own / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match="no such folder"):
        load(["config.yaml"])


@pytest.mark.parametrize("folder", ["..", "/etc", "a/../../b", "../mine"])
def test_a_folder_does_not_leave_its_home(own: Path, folder: str) -> None:
    text = (own / "own.yaml").read_text().replace("folder: .,", f"folder: {folder},")
    (own / "own.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load(["config.yaml"])


def test_an_evaluation_follows_lm_evals_task_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of lm-eval may ask another question under the same name: its score is another evaluation."""
    text = (own / "own.yaml").read_text().replace("folder: ., definitions: mine", "folder: gsm8k")
    (own / "own.yaml").write_text(text)
    before = load(["config.yaml"]).variants["base"].evaluations[0].id
    assert load(["config.yaml"]).variants["base"].evaluations[0].id == before
    monkeypatch.setattr(taskfiles, "version", lambda: "0.5.0")
    assert load(["config.yaml"]).variants["base"].evaluations[0].id != before
