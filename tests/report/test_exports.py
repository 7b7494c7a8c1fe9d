"""Exports: what others read of a variant's scores, and that it says no more and no less than the table."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import scipy.stats
import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from conftest import read_json, strata
from strata import plan, suite
from strata.errors import SourceError, StoreError, UsageError
from strata.experiment import Experiment, load
from strata.recipe import Recipe
from strata.report.every_eval_ever import _METRICS, to_every_eval_ever
from strata.report.exports import write_exports
from strata.report.model_index import to_model_index
from strata.report.results import Result
from strata.report.table import NAMES, Column, Row, collect
from strata.runs import Run, run_of
from strata.score.statistics import LOWER_IS_BETTER, RESAMPLES, Estimate
from strata.sources import fetch

ROOT = Path("results")
PACKAGE = {
    "package": "every_eval_ever==0.3.0",
    "file": "every_eval_ever/*",
    "sha256": "cc025ee7a9c587435bf02318a9ae0448d7b5a42bc1ec1f910276242aa4825314",
}
COMMIT = "0123456789" * 4
SUITE = f"""\
suite: mine
version: 2
sources:
  exams: {{dataset: owner/exams, revision: {COMMIT}, file: test.jsonl}}
  notes: {{path: /somewhere/private, sha256: {"a" * 64}}}
numerics: {{dtype: bfloat16, batch_size: 4, max_length: 512, add_bos_token: false, seed: 7}}
tasks:
  physics: {{kind: bigbench, source: exams, file: physics.json, shots: 5, items: 40, seed: 1}}
  history: {{kind: bigbench, source: exams, file: history.json, shots: 0, items: 30, seed: 1, metric: acc_norm}}
  text: {{kind: bits_per_byte, source: notes, bytes: 150}}
  next: {{kind: continuation, source: notes, items: 9, choices: 3, characters: [10, 60], seed: 5}}
groups: {{all: [physics, history, text, next]}}
"""
ROW = Row(
    "dus", "base: dus drop 1", "base", f"merge-{'0' * 32}", "d" * 64, 2, 10, plan.identity(2), ("base",), (), (),
    "bfloat16", None, None,
)  # fmt: skip
VERSIONS = {"lm_eval": "0.4.13", "torch": "2.13.0", "transformers": "5.23.0"}
TASKS = {  # metric, items, documents
    "physics": ("acc", 40, 40),
    "history": ("acc_norm", 30, 30),
    "text": ("bits_per_byte", 3, 3),
    "next": ("acc_norm", 9, 3),
}


@pytest.fixture
def results(tmp_path: Path) -> list[Result]:
    """A score for each task of a suite whose data is in part on the hub."""
    (tmp_path / "mine.yaml").write_text(SUITE)
    mine, _ = suite.load(str(tmp_path / "mine.yaml"))
    return [
        Result(
            mine,
            Column("mine", task, metric, items, None),
            Estimate(0.1 + 0.2 * number, 0.01 / 3),
            documents,
            documents - 1,
            "e" * 64,
            f"evaluations/evaluate-{'1' * 32}/{task}.jsonl",
            "f" * 64,
            Run(1000 + number, 2000 + number, VERSIONS),
        )
        for number, (task, (metric, items, documents)) in enumerate(TASKS.items())
    ]


@pytest.fixture
def experiment(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    monkeypatch.chdir(finished)
    return load(["config.yaml"])


def model_index(text: str) -> tuple[str, list[EvalResult]]:
    return model_index_to_eval_results(yaml.safe_load(text)["model-index"])


def by_name(record: dict[str, Any]) -> dict[str, Any]:
    return {result["evaluation_name"]: result for result in record["evaluation_results"]}


def test_the_hubs_client_reads_back_one_result_for_each_task(results: list[Result]) -> None:
    text = to_model_index(ROW, results)
    name, found = model_index(text)
    assert name == "dus"
    assert eval_results_to_model_index(name, found) == yaml.safe_load(text)["model-index"]
    assert [(one.metric_type, one.metric_value) for one in found] == [
        (TASKS[result.column.task][0], result.estimate.value) for result in results
    ]
    assert all(one.metric_args["standard_error"] == 0.01 / 3 for one in found if one.metric_args)
    assert found[2].metric_args == {"standard_error": 0.01 / 3, "items": 3, "documents": 3}


def test_a_dataset_of_the_hub_is_named_with_its_commit(results: list[Result]) -> None:
    _, (physics, *_) = model_index(to_model_index(ROW, results))
    assert (physics.dataset_type, physics.dataset_revision) == ("owner/exams", COMMIT)
    assert physics.dataset_name == "physics (mine, 5-shot)"


def test_two_tasks_of_one_dataset_keep_their_own_number_of_examples(results: list[Result]) -> None:
    """The client groups by dataset, config, split and revision, and would give the second the arguments of the first."""
    _, found = model_index(to_model_index(ROW, results))
    arguments = [one.dataset_args or {} for one in found]
    assert [told.get("num_few_shot") for told in arguments] == [5, 0, None, None]
    assert [told.get("file") for told in arguments] == ["physics.json", "history.json", None, None]


def test_local_data_is_told_by_its_checksum_and_not_by_its_path(results: list[Result]) -> None:
    index, record = to_model_index(ROW, results), to_every_eval_ever(ROW, results)
    text = model_index(index)[1][2]
    assert (text.dataset_type, text.dataset_revision) == ("notes", None)
    assert text.dataset_args and text.dataset_args["sha256"] == "a" * 64
    assert by_name(json.loads(record))["mine/text"]["source_data"] == {
        "dataset_name": "notes", "source_type": "other", "additional_details": {"sha256": "a" * 64},
    }  # fmt: skip
    assert "private" not in index + record


def test_a_record_says_what_was_scored_with_what_and_when(results: list[Result]) -> None:
    record = json.loads(to_every_eval_ever(ROW, results))
    assert record["evaluation_id"] == "mine/dus/2003"
    assert record["retrieved_timestamp"] == "2003"  # the end of the last evaluation
    assert [result["evaluation_timestamp"] for result in record["evaluation_results"]] == [
        "1000",
        "1001",
        "1002",
        "1003",
    ]
    assert (record["eval_library"]["name"], record["eval_library"]["version"]) == ("lm_eval", "0.4.13")
    assert record["model_info"]["inference_engine"] == {"name": "transformers", "version": "5.23.0"}
    assert record["model_info"]["additional_details"]["content_digest"] == f"sha256:{'d' * 64}"
    assert record["source_metadata"]["source_type"] == "evaluation_run"


def test_each_score_has_its_error_the_interval_and_how_they_were_made(results: list[Result]) -> None:
    found = by_name(json.loads(to_every_eval_ever(ROW, results)))
    for result in results:
        told = found[result.name]["score_details"]
        uncertainty = told["uncertainty"]
        interval = uncertainty["confidence_interval"]
        assert (told["score"], uncertainty["standard_error"]["value"]) == (result.estimate.value, result.estimate.error)
        expected = scipy.stats.t.interval(
            0.95, result.documents - 1, loc=result.estimate.value, scale=result.estimate.error
        )
        assert (interval["lower"], interval["upper"]) == pytest.approx(expected, rel=1e-9)
        assert uncertainty["num_samples"] == result.column.items
    errors = {name: one["score_details"]["uncertainty"] for name, one in found.items()}
    assert errors["mine/text"]["num_bootstrap_samples"] == RESAMPLES
    assert [name for name in errors if "num_bootstrap_samples" in errors[name]] == ["mine/text"]
    assert {name: told["standard_error"]["method"] for name, told in errors.items()} == {
        "mine/physics": "analytic",
        "mine/history": "analytic",
        "mine/text": "bootstrap",
        "mine/next": "analytic, clustered by 3 documents",
    }
    lower = [name for name, one in found.items() if one["metric_config"]["lower_is_better"]]
    assert lower == ["mine/text"]


def test_a_record_has_what_moves_a_score_beside_the_model(results: list[Result]) -> None:
    found = by_name(json.loads(to_every_eval_ever(ROW, results)))
    assert found["mine/physics"]["source_data"] == {
        "dataset_name": "owner/exams", "source_type": "hf_dataset", "hf_repo": "owner/exams",
        "additional_details": {"revision": COMMIT, "file": "test.jsonl"},
    }  # fmt: skip
    settings = {name: one["generation_config"]["additional_details"] for name, one in found.items()}
    assert settings["mine/physics"]["num_fewshot"] == "5" and "num_fewshot" not in settings["mine/text"]
    assert settings["mine/next"]["characters"] == "[10,60]"
    assert {told["numerics_dtype"] for told in settings.values()} == {"bfloat16"}
    assert {told["suite_version"] for told in settings.values()} == {"2"}


def test_the_organization_is_part_of_the_name_where_one_is_given(results: list[Result]) -> None:
    info = json.loads(to_every_eval_ever(ROW, results, "my-lab"))["model_info"]
    assert (info["id"], info["developer"], info["name"]) == ("my-lab/dus", "my-lab", "dus")
    nobody = json.loads(to_every_eval_ever(ROW, results))
    assert nobody["model_info"]["id"] == "dus" and "developer" not in nobody["model_info"]
    assert nobody["source_metadata"]["source_organization_name"] == "unknown"


def test_who_made_a_base_is_not_claimed(results: list[Result]) -> None:
    base = json.loads(to_every_eval_ever(replace(ROW, name="base"), results))
    assert base["source_metadata"]["evaluator_relationship"] == "other"
    assert json.loads(to_every_eval_ever(ROW, results))["source_metadata"]["evaluator_relationship"] == "first_party"


def test_without_a_run_record_times_and_versions_are_unknown(results: list[Result]) -> None:
    record = json.loads(to_every_eval_ever(ROW, [replace(result, run=None) for result in results]))
    assert record["retrieved_timestamp"] == record["eval_library"]["version"] == "unknown"
    assert not any("evaluation_timestamp" in result for result in record["evaluation_results"])


def test_versions_that_differ_between_evaluations_are_all_told(results: list[Result]) -> None:
    newer = replace(results[0], run=Run(1, 2, VERSIONS | {"lm_eval": "0.4.14"}))
    assert json.loads(to_every_eval_ever(ROW, [newer, *results[1:]]))["eval_library"]["version"] == "0.4.13, 0.4.14"


def test_every_variant_is_exported_with_the_scores_of_the_table(experiment: Experiment) -> None:
    table = collect(ROOT, experiment)
    folders = write_exports(ROOT, experiment)
    assert [folder.name for folder in folders] == ["base", "dus", "same", "stacked"]
    for row, folder in zip(table.rows, folders, strict=True):
        assert folder == ROOT / "report" / "export" / row.name
        expected = [score.estimate.value for score in row.scores]
        _, index = model_index((folder / "model-index.yaml").read_text())
        record = json.loads((folder / "every_eval_ever.json").read_text())
        assert [one.metric_value for one in index] == expected
        assert [one["score_details"]["score"] for one in record["evaluation_results"]] == expected
        assert record["model_info"]["additional_details"]["content_digest"] == f"sha256:{row.digest}"


def test_a_record_points_at_its_sample_logs(experiment: Experiment) -> None:
    (folder,) = write_exports(ROOT, experiment, ["dus"])
    found = by_name(json.loads((folder / "every_eval_ever.json").read_text()))
    assert list(found) == ["tiny/text", "tiny/next"]
    for told in (one["score_details"]["details"] for one in found.values()):
        log = (ROOT / told["file_path"]).read_bytes()
        assert told["hash_algorithm"] == "sha256" and told["checksum"] == hashlib.sha256(log).hexdigest()
        assert int(told["total_rows"]) == log.count(b"\n")


def test_times_are_those_of_the_run_records(experiment: Experiment) -> None:
    (folder,) = write_exports(ROOT, experiment, ["dus"])
    record = json.loads((folder / "every_eval_ever.json").read_text())
    run = run_of(ROOT, experiment.variants["dus"].evaluations[0].id)
    assert run and record["retrieved_timestamp"] == str(run.ended)
    assert {result["evaluation_timestamp"] for result in record["evaluation_results"]} == {str(run.started)}
    assert record["eval_library"]["version"] == run.versions["lm_eval"]


def test_an_average_is_not_exported(experiment: Experiment) -> None:
    """It follows from the others."""
    text = Path("tiny.yaml").read_text().replace("groups:", "average: [next]\ngroups:")
    Path("tiny.yaml").write_text(text)
    (folder,) = write_exports(ROOT, load(["config.yaml"]), ["dus"])
    assert list(by_name(read_json(folder / "every_eval_ever.json"))) == ["tiny/text", "tiny/next"]
    assert len(model_index((folder / "model-index.yaml").read_text())[1]) == 2


def test_an_export_is_the_same_bytes_again(experiment: Experiment) -> None:
    files = [file for folder in write_exports(ROOT, experiment) for file in sorted(folder.iterdir())]
    before = [file.read_bytes() for file in files]
    write_exports(ROOT, experiment)
    assert [file.read_bytes() for file in files] == before


def test_a_variant_is_exported_while_another_is_unfinished(experiment: Experiment, tmp_path: Path) -> None:
    (ROOT / "evaluations" / experiment.variants["stacked"].evaluations[0].id).rename(ROOT / "gone")
    (folder,) = write_exports(ROOT, experiment, ["dus"], tmp_path / "out")
    assert sorted(file.name for file in folder.iterdir()) == ["every_eval_ever.json", "model-index.yaml"]
    with pytest.raises(StoreError, match=r"`stacked` cannot be exported\n.*\n.*\n.*not scored on tiny"):
        write_exports(ROOT, experiment, ["dus", "stacked"], tmp_path / "none")
    with pytest.raises(StoreError):
        write_exports(ROOT, experiment, [], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_variant_that_does_not_exist_is_refused(experiment: Experiment) -> None:
    with pytest.raises(UsageError, match="no such variant"):
        write_exports(ROOT, experiment, ["dsu"])


def test_the_command_says_where_the_files_are(finished: Path) -> None:
    run = strata(finished, "export", "dus", "same", "--to", "out", "--organization", "my-lab")
    assert (run.returncode, run.stdout) == (0, "out/dus\nout/same\n")
    record = json.loads((finished / "out" / "dus" / "every_eval_ever.json").read_text())
    assert record["model_info"]["id"] == "my-lab/dus"


def test_without_a_suite_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scores to export"):
        write_exports(tmp_path, Experiment("cpu", (), {}, {}, {}, {}))


VALIDATE = """\
import json, sys
from pathlib import Path
from every_eval_ever.validator.validation_core import validate_aggregate
said = {}
for file in sys.argv[1:]:
    id = json.loads(Path(file).read_text())["model_info"]["id"]
    path = f"data/some/my-lab/{id.split('/')[-1]}/01234567-89ab-4def-8123-456789abcdef.json"
    report = validate_aggregate(Path(file), repo_path=path, run_semantic_checks=True)
    said[file] = [one["msg"] for one in report.errors + report.warnings]
print(json.dumps(said))
"""
METRIC_FIELDS = """\
import json
from every_eval_ever.converters.common.metrics import metric_config_fields
from every_eval_ever.converters.lm_eval.utils import LM_EVAL_HARNESS_ID, LM_EVAL_METRIC_BOUNDS
from every_eval_ever.eval_types import MetricConfig
fields = {
    name: MetricConfig(**metric_config_fields(name, harness=LM_EVAL_HARNESS_ID, bounds_table=LM_EVAL_METRIC_BOUNDS))
    for name in ("bits_per_byte", "acc", "acc_norm", "exact_match")
}
print(json.dumps({name: one.model_dump(mode="json") for name, one in fields.items()}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of every_eval_ever, run where they lie: to be installed it asks for another Python and another hub."""
    try:
        found = fetch(tmp_path_factory.mktemp("package") / "results", Recipe("fetch", PACKAGE), "")
    except SourceError as error:
        if error.what != "the package cannot be fetched":
            raise
        pytest.skip("no package index can be reached")
    return Path(found.path / "files")


def asked(package: Path, script: str, *files: Path) -> Any:
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, files)],
        env=os.environ | {"PYTHONPATH": str(package)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def objections(package: Path, *files: Path) -> dict[Path, list[str]]:
    """What the package's own schema, models and checks have against these records."""
    schema = jsonschema.Draft7Validator(read_json(package / "every_eval_ever" / "schemas" / "eval.schema.json"))
    said = asked(package, VALIDATE, *files)
    return {
        file: [*(error.message for error in schema.iter_errors(read_json(file))), *said[str(file)]] for file in files
    }


def test_every_eval_ever_takes_a_record(package: Path, results: list[Result], tmp_path: Path) -> None:
    unrecorded = [replace(result, run=None) for result in results]
    texts = {
        "whole": to_every_eval_ever(ROW, results, "my-lab"),
        "of-a-base": to_every_eval_ever(replace(ROW, name="base"), results, "my-lab"),
        "without-records": to_every_eval_ever(ROW, unrecorded, "my-lab"),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    files = [tmp_path / name for name in texts]
    assert objections(package, *files) == {file: [] for file in files}


def test_every_eval_ever_takes_the_record_of_a_run(package: Path, experiment: Experiment) -> None:
    files = [folder / "every_eval_ever.json" for folder in write_exports(ROOT, experiment, organization="my-lab")]
    assert objections(package, *files) == {file: [] for file in files}


def test_without_an_organization_a_record_only_lacks_its_place_in_the_datastore(
    package: Path, results: list[Result], tmp_path: Path
) -> None:
    (tmp_path / "record").write_text(to_every_eval_ever(ROW, results))
    (told,) = objections(package, tmp_path / "record")[tmp_path / "record"]
    assert "names no datastore directory" in told


def test_the_objections_are_those_of_a_reader(package: Path, results: list[Result], tmp_path: Path) -> None:
    record = json.loads(to_every_eval_ever(ROW, results, "my-lab"))
    record["evaluation_results"][0]["metric_config"]["lower_is_better"] = "perhaps"
    record["evaluation_results"][1]["score_details"]["score"] = 1.5  # an accuracy
    (tmp_path / "record").write_text(json.dumps(record))
    told = " ".join(objections(package, tmp_path / "record")[tmp_path / "record"])
    assert "'perhaps' is not of type 'boolean'" in told and "1.5 is outside" in told


def test_metrics_are_called_as_every_eval_evers_own_converter_calls_them(package: Path) -> None:
    for name, fields in asked(package, METRIC_FIELDS).items():
        keys = ("metric_id", "metric_kind", "metric_unit", "min_score", "max_score")
        assert tuple(fields[key] for key in keys) == _METRICS[name]
        assert fields["lower_is_better"] == (name in LOWER_IS_BETTER)
    assert set(_METRICS) == set(NAMES) - {"score"}  # of averages, which are not exported
