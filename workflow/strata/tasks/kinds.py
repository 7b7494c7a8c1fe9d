"""Kinds: how a task of each kind is put to lm-eval, and what is kept of its samples. One place for all of them.

This module needs lm-eval when a task is put to it; import it where a model is about to be asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from strata.errors import EvaluationError
from strata.sources import globs
from strata.tasks import harness
from strata.tasks.bigbench import questions
from strata.tasks.items import beginning, continuations, read_documents

_OWN = {"test_split": "test", "num_fewshot": 0}
_CHOICES: dict[str, Any] = _OWN | {
    "output_type": "multiple_choice",
    "doc_to_text": lambda doc: doc["context"],
    "doc_to_target": lambda doc: doc["answer"],
    "doc_to_choice": lambda doc: doc["choices"],
    "target_delimiter": " ",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "bits_per_byte": _OWN | {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": lambda doc: doc["text"],
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "continuation": _CHOICES,
    "bigbench": _CHOICES,
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A suite's task as it is put to lm-eval: one of its tasks or, of a group of lm-eval's, several, by name there.

    `texts` are what no training data may hold, by the names of documents: made when they are looked at, since most jobs
    have no training data to hold them against.
    """

    tasks: Mapping[str, Any]
    tell: Callable[[], Mapping[str, str]]

    @cached_property
    def texts(self) -> Mapping[str, str]:
        return self.tell()


def ask(name: str, task: Mapping[str, Any], data: Path, files: Path, seed: int) -> Asked:
    """A task of a suite, made of its data.

    Args:
        data: where the task's source lies.
        files: where lm-eval's task files lie, for a task of lm-eval's.

    Raises:
        EvaluationError: the data does not hold what is asked for.
    """
    if task["kind"] == "harness":
        found = harness.tasks(files, data, task, seed)
        return Asked(found, lambda: _questions(found))
    docs, texts = documents(task, data)
    return Asked({name: _own(name, task["kind"], docs)}, lambda: texts)


def _questions(tasks: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"{name}/{number}": harness.question(task, doc)
        for name, task in tasks.items()
        for number, doc in enumerate(task.eval_docs)
    }


def documents(task: Mapping[str, Any], data: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What is asked in a task of our own, and the texts that no training data may hold, by the names of documents."""
    if task["kind"] == "bigbench":
        drawn = questions(data, globs(task["file"]), shots=task["shots"], items=task["items"], seed=task["seed"])
        return drawn, {item["id"]: item["question"] for item in drawn}
    texts = read_documents(data)
    if task["kind"] == "bits_per_byte":
        return [{"id": name, "text": beginning(text, task["bytes"])} for name, text in texts.items()], texts
    characters, draw = tuple(task["characters"]), {key: task[key] for key in ("items", "choices", "seed")}
    return continuations(texts, characters=characters, **draw), texts


def _own(name: str, kind: str, docs: list[dict[str, Any]]) -> Any:
    import datasets
    from lm_eval.api.task import ConfigurableTask

    data = datasets.DatasetDict({"test": datasets.Dataset.from_list(docs)})
    # lm-eval hands the task's metadata to the loader; these documents need none of it.
    return ConfigurableTask(config={**_SETTINGS[kind], "task": name, "custom_dataset": lambda **_: data})


def item(task: Mapping[str, Any], name: str, asked: Any, row: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a sample of lm-eval's task `asked`, called `name` there: enough to make every number again.

    Raises:
        EvaluationError: a log-likelihood that is not a number.
    """
    doc = row["doc"]
    if task["kind"] == "bits_per_byte":
        loglikelihood, length = row["bits_per_byte"]
        return {"id": doc["id"], "loglikelihood": _finite(loglikelihood, doc["id"]), "bytes": int(length)}
    if task["kind"] == "harness":
        kept = harness.item(asked, name, task["metric"], row)
    else:
        kept = {key: value for key, value in doc.items() if key != "context" or task["kind"] != "bigbench"}
        kept["characters"] = [len(choice) for choice in doc["choices"]]
    if "choices" in kept:
        kept["loglikelihoods"] = [_finite(response[0], kept["id"]) for response in row["filtered_resps"]]
    return kept


def _finite(loglikelihood: Any, where: str) -> float:
    if not math.isfinite(loglikelihood):
        raise EvaluationError(
            "a log-likelihood is not a number", where=where, expected="a finite number", got=loglikelihood,
            todo="the model overflows: try `dtype: float32` in the suite's numerics",
        )  # fmt: skip
    return float(loglikelihood)
