"""lm-eval's tasks on pinned data: as lm-eval asks and scores them today, and as the leaderboard's first version did."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
import sixdata
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from conftest import tree_sha256, write_experiment
from models import save_model
from strata import encode, evaluate, store, suite
from strata.errors import EvaluationError
from strata.experiment import load
from strata.initialize import initialize
from strata.merge import merge
from strata.report.page import write_report
from strata.score.statistics import Samples, measure
from strata.sources import fetch
from strata.tasks import harness, splits, taskfiles

SUBJECTS = ["anatomy", "college_physics"]
# sha256 of the requests that lm-eval b281b09 itself made of these rows: its evaluator's loop over its own task classes.
LEADERBOARD = {
    "arc_challenge": "992dada098960a8fdb8bd8065420519b",
    "gsm8k": "d6ae14dc473d3e43f9e42bce8e41f3e7",
    "hellaswag": "74fe984babb27bed7eabebc407e8bef3",
    "mmlu_anatomy": "63e228e30a86ca156639f859e9860e33",
    "mmlu_college_physics": "f4a13626da6b34f80878468b062678ca",
    "truthfulqa_mc2": "a64296c6c19ebcd4c7999f3cd4a6a03c",
    "winogrande": "e40a1a405d6284129d3a3af19b27e305",
}


def subjects() -> list[str]:
    """Of all of MMLU, since lm-eval asks all of its group."""
    folder = taskfiles.installed() / "mmlu" / "default"
    return sorted(file.stem.removeprefix("mmlu_") for file in folder.glob("mmlu_*.yaml"))


def rewritten(name: str, folder: Path, data: Path, **numerics: Any) -> Path:
    """One of the suites that need the hub, on local data and in one job; all else is as it ships."""
    found = yaml.safe_load((suite.FOLDER / f"{name}.yaml").read_text())
    found["sources"] = {
        source: {"path": str(data / source), "sha256": tree_sha256(data / source)} for source in found["sources"]
    }
    found["numerics"] |= {"dtype": "float32", **numerics}
    found["groups"] = {"all": list(found["tasks"])}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(found))
    return file


def requests(task: Any) -> list[list[list[Any]]]:
    """What lm-eval makes of a task: of each question, its (context, continuation or where it ends)."""
    task.build_all_requests(rank=0, world_size=1)
    made: dict[int, list[list[Any]]] = {}
    for one in task.instances:
        context, rest = one.args
        made.setdefault(one.doc_id, []).append([context, rest["until"] if isinstance(rest, dict) else rest])
    return [made[number] for number in range(len(made))]


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("six")
    sixdata.write(folder, SUBJECTS, questions=3)
    yield folder


def ask(name: str, of: str, data: Path, **changes: Any) -> dict[str, Any]:
    """lm-eval's tasks of the task `of` of a suite, perhaps with other settings."""
    found = yaml.safe_load((suite.FOLDER / f"{name}.yaml").read_text())["tasks"][of]
    settings = suite.Harness.model_validate(found | changes).model_dump()
    return harness.tasks(taskfiles.installed() / settings["folder"], data / found["source"], settings, seed=1234)


@pytest.mark.parametrize("task", LEADERBOARD)
def test_requests_of_h6_v1_are_those_of_the_leaderboards_harness(six: Path, task: str) -> None:
    made = ask("h6_v1", "mmlu" if task.startswith("mmlu") else task, six, task=task)
    assert list(made) == [task]
    assert hashlib.sha256(json.dumps(requests(made[task])).encode()).hexdigest()[:32] == LEADERBOARD[task]


def test_the_leaderboard_drew_other_examples_than_lm_eval_does_today(six: Path) -> None:
    today, then = (ask(name, "arc_challenge", six)["arc_challenge"] for name in ("h6", "h6_v1"))
    assert requests(today) != requests(then)
    questions = [[context.split("\n\n")[-1] for context, _ in one] for one in requests(today)]
    assert questions == [[context.split("\n\n")[-1] for context, _ in one] for one in requests(then)]


def test_a_text_that_is_generated_ends_where_the_suite_says(six: Path) -> None:
    today, then = (ask(name, "gsm8k", six)["gsm8k"] for name in ("h6", "h6_v1"))
    assert {tuple(one[0][1]) for one in requests(today)} == {("Question:", "</s>", "<|im_end|>")}
    assert {tuple(one[0][1]) for one in requests(then)} == {(":", "Question:", "Question")}


@pytest.mark.parametrize(
    ("generated", "today", "then"),
    [
        ("It is 12.\n#### 12", 1.0, 1.0),
        ("It is 1.\n#### 1,2", 1.0, 1.0),
        ("#### 12.", 1.0, 0.0),  # the leaderboard took the full stop for a part of the number
        ("It is 12", 0.0, 0.0),
        ("#### 13\n#### 12", 0.0, 0.0),
    ],
)
def test_an_answer_to_gsm8k_counts_as_each_version_counted_it(
    six: Path, generated: str, today: float, then: float
) -> None:
    for name, expected in (("h6", today), ("h6_v1", then)):
        task = ask(name, "gsm8k", six)["gsm8k"]
        task.build_all_requests(rank=0, world_size=1)
        for one in task.instances:
            one.resps = [generated]
        task.apply_filters()
        (strict,) = [f for f in task._filters if f.name == "strict-match"]
        found = task.process_results(
            {"question": "", "answer": "#### 12"}, [task.instances[0].filtered_resps[strict.name]]
        )
        assert found["exact_match"] == expected


STOCK = {  # lm-eval's name, examples, its key of the score
    "arc_challenge": ("arc_challenge", 25, "acc_norm,none"),
    "hellaswag": ("hellaswag", 10, "acc_norm,none"),
    "mmlu": ("mmlu", 5, "acc,none"),
    "truthfulqa_mc2": ("truthfulqa_mc2", 0, "acc,none"),
    "winogrande": ("winogrande", 5, "acc,none"),
    "gsm8k": ("gsm8k", 5, "exact_match,strict-match"),
}
HUB = {  # what lm-eval's task files call these data sets
    "allenai/ai2_arc": "arc", "Rowan/hellaswag": "hellaswag", "cais/mmlu": "mmlu", "openai/gsm8k": "gsm8k",
    "truthfulqa/truthful_qa": "truthfulqa", "allenai/winogrande": "winogrande",
}  # fmt: skip


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any, dict[str, Any]]]:
    """Both suites scored by us, and all tasks of today by stock lm-eval: (folder, experiment, lm-eval's results)."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("scored")
    rows = sixdata.write(folder / "data", subjects())
    model = save_model(
        folder / "model", max_position_embeddings=8192, num_hidden_layers=2, vocab_size=260,
        bos_token_id=256, eos_token_id=257, pad_token_id=257,
    )  # fmt: skip
    variants = "  base: {init: {source: m}}\n  stacked: {parent: base, merge: {method: dus, drop: 0}}\n"
    names = [str(rewritten(name, folder, folder / "data", batch_size=4)) for name in ("h6", "h6_v1")]
    write_experiment(folder, model, variants, f"[{', '.join(names)}]")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        experiment = load(["config.yaml"])
        for job in experiment.jobs.values():
            run = {
                "fetch": lambda root, recipe, job=job: fetch(root, recipe, job.location),
                "init": initialize,
                "merge": merge,
                "encode": encode.encode,
                "evaluate": evaluate.evaluate,
            }[job.recipe.operation]
            run(Path("results"), job.recipe)

        def of_hub(path: str, name: str | None = None, **_: Any) -> Any:
            files = {
                file.split("/")[-1]: made
                for file, made in rows[HUB[path]].items()
                if name is None or file.startswith(f"{name}/")
            }
            return datasets.DatasetDict({split: datasets.Dataset.from_list(made) for split, made in files.items()})

        patch.setattr(datasets, "load_dataset", of_hub)
        stock = HFLM(
            str(store.require(Path("results"), experiment.variants["base"].job.id).path), dtype="float32", device="cpu",
            softmax_dtype="float32", batch_size=4, max_length=4096, add_bos_token=True,
        )  # fmt: skip
        manager, results = TaskManager(), {}
        for task, (name, shots, _) in STOCK.items():
            results[task] = lm_eval.simple_evaluate(
                stock, tasks=[name], num_fewshot=shots, task_manager=manager, bootstrap_iters=0, log_samples=True
            )
    yield folder, experiment, results


def stored(scored: Any, suite_name: str, task: str) -> Samples:
    folder, experiment, _ = scored
    (job,) = [job for job in experiment.variants["base"].evaluations if job.recipe.parameters["suite"] == suite_name]
    return evaluate.read_samples(store.require(folder / "results", job.id), task)


@pytest.mark.parametrize("task", STOCK)
def test_h6_scores_as_lm_eval_does_today(scored: Any, task: str) -> None:
    name, _, key = STOCK[task]
    theirs = scored[2][task]
    ours = stored(scored, "h6", task)
    expected = theirs["groups"][name] if task == "mmlu" else theirs["results"][name]
    # mc2 is a share of probabilities, which move with their logarithms; the others are counts.
    assert measure(ours).value == pytest.approx(expected[key], rel=1e-3 if task == "truthfulqa_mc2" else 1e-9)
    rows = {
        f"{of}/{row['doc_id']}": row
        for of, samples in theirs["samples"].items()
        for row in samples
        if row["filter"] == key.split(",")[1]
    }
    assert set(rows) == set(ours.ids)
    for item in ours.items:
        if task == "gsm8k":
            assert item["generated"] == rows[item["id"]]["resps"][0][0]
        else:
            expected = [response[0] for response in rows[item["id"]]["filtered_resps"]]
            assert item["loglikelihoods"] == pytest.approx(expected, abs=1e-4)


def test_mmlu_of_the_leaderboard_is_the_plain_mean_over_subjects(scored: Any) -> None:
    """One subject has a question more than the others, so that the two means differ."""
    ours = stored(scored, "h6_v1", "mmlu")
    parts = ours.parts()
    assert len(parts) == 57 and {len(part.items) for part in parts} == {2, 3}
    values = [measure(part).value for part in parts]
    assert measure(ours).value == pytest.approx(sum(values) / 57)
    errors = [measure(part).error for part in parts]
    assert measure(ours).error == pytest.approx(sum(error**2 for error in errors) ** 0.5 / 57)
    assert measure(Samples(ours.kind, ours.items, ours.metric)).value != pytest.approx(sum(values) / 57)


def test_all_six_tasks_of_two_models_make_a_report(scored: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, experiment, _ = scored
    monkeypatch.chdir(folder)
    page = write_report(Path("results"), experiment)
    head, *rows = (page.parent / "scores.csv").read_text().splitlines()
    assert len(rows) == 2 and all(f"{name}/{task}" in head for name in ("h6", "h6_v1") for task in [*STOCK, "average"])
    assert "iDUS-8layer" in page.read_text()


def test_what_was_asked_can_be_read(scored: Any) -> None:
    item = stored(scored, "h6", "winogrande").items[0]
    assert item["question"] == "\n".join(item["choices"]) and all(
        one.endswith(" in case 0.") for one in item["choices"]
    )
    item = stored(scored, "h6", "arc_challenge").items[0]
    assert item["question"].startswith("Question: What is it that") and len(item["choices"]) == 4
    item = stored(scored, "h6", "gsm8k").items[0]
    assert item["target"].endswith(item["target"].split("#### ")[1]) and item["extracted"] == "[invalid]"


def test_a_task_that_does_not_exist_is_told_with_those_that_do(six: Path) -> None:
    with pytest.raises(EvaluationError, match="no such task") as caught:
        ask("h6", "arc_challenge", six, task="arc_hard")
    assert "arc_easy" in str(caught.value) and "arc_hard" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.jsonl", b'{"text": "x"}\n7\n', "a.jsonl, row 2"),
        ("a.jsonl", b"\n", "no rows"),
        ("a.json", b"{}", "not a list of rows"),
    ],
)
def test_a_file_of_a_split_that_holds_no_rows_is_told(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EvaluationError, match=said):
        splits.splits(tmp_path, {"test": name}, "")


def test_a_split_without_a_file_is_told(six: Path) -> None:
    with pytest.raises(EvaluationError, match="no file matches"):
        ask("h6", "gsm8k", six, files={"train": "main/train-*.parquet", "test": "main/exam-*.parquet"})
    with pytest.raises(EvaluationError, match="cannot make its task"):
        ask("h6", "gsm8k", six, files={"train": "main/train-*.parquet"})


@pytest.mark.parametrize(
    ("task", "changes", "told"),
    [
        ("gsm8k", {"metric": "acc"}, "no such metric"),
        ("arc_challenge", {"metric": "mc2"}, "no such metric"),
        ("truthfulqa_mc2", {"metric": "acc"}, "no such metric"),
        ("gsm8k", {"filter": "none"}, "no such filter"),
        ("arc_challenge", {"until": ["x"]}, "for texts that are generated"),
        ("arc_challenge", {"shots": 31}, "fewer examples"),
        ("truthfulqa_mc2", {"shots": 1, "draw": "leaderboard_v1"}, "training split"),
    ],
)
def test_what_could_not_be_scored_is_refused_before_anything_is_computed(
    six: Path, task: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(EvaluationError, match=told):
        ask("h6", task, six, **changes)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test.jsonl", '{"question": "q"}\n'), ("test.jsonl", '{"question": "q", "answer": \n'), ("test.jsonl", ""),
        ("test.jsonl", "3\n"), ("test.json", '{"question": "q", "answer": "#### 1"}'), ("test.jsonl", "\xff"),
        ("test.jsonl", '{"question": "q", "answer": 1}\n{"question": "q", "answer": "b"}\n'),
        ("test.parquet", "no parquet"),
    ],
)  # fmt: skip
def test_rows_that_are_none_are_told(six: Path, tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / name).write_bytes(text.encode("latin-1"))
    train = tmp_path / "gsm8k" / "train.jsonl"
    train.write_text('{"question": "q", "answer": "#### 1"}\n' * 9)
    with pytest.raises(EvaluationError):
        ask("h6", "gsm8k", tmp_path, files={"train": "train.jsonl", "test": name})
