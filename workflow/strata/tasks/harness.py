"""lm-eval's own tasks, by name, asked of pinned data instead of what the hub serves today.

Prompts, choices, stops and filters are those of the task's file in lm-eval. Its data are files of a source; its file is
one of lm-eval's or of a folder that the config allows, since such a file can hold code.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from strata.errors import EvaluationError
from strata.tasks.splits import splits
from strata.tasks.taskfiles import check_includes, leaves

LEADERBOARD_SEED = 42  # of the Open LLM Leaderboard's first version: lm-eval b281b09, evaluator.py
_UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)  # of data and a task
THEIRS = {"mc2": "acc"}  # lm-eval's names of metrics that are told apart here


def tasks(folder: Path, data: Path, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """lm-eval's tasks of a task, group or tag, by their names there, in order of name.

    Args:
        folder: of the task files.
        data: of the files that hold the splits.
        settings: a suite's task.
        seed: of lm-eval's few-shot draw.

    Raises:
        EvaluationError: no such task, a split without a file, a row that is none, or a kind of task that is not scored.
    """
    from jinja2 import TemplateError
    from lm_eval.api.samplers import ContextSampler
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._yaml_loader import load_yaml

    index = TaskManager(include_path=str(folder), include_defaults=False).task_index
    made: dict[str, Any] = {}
    for name in sorted(leaves(index, settings["task"], folder)):
        check_includes(index[name].yaml_path, folder)
        config = dict(load_yaml(index[name].yaml_path, resolve_func=True))
        found = splits(data, settings["files"], config.get("dataset_name") or "")
        config = _configured(name, config, settings) | {"custom_dataset": lambda found=found, **_: found}
        try:
            task = ConfigurableTask(config=config)
            asked = len(task.eval_docs)
        except (*_UNFIT, TemplateError) as error:
            raise EvaluationError(
                "lm-eval cannot make its task of these data", where=name, expected="the fields that its file names",
                got=f"{type(error).__name__}: {error}"[:300], todo="see `files` in the suite, and the data's fields",
            ) from None  # fmt: skip
        _check(name, task, settings)
        task.set_fewshot_seed(seed)
        if settings["draw"] == "leaderboard_v1" and settings["shots"] and type(task.sampler) is ContextSampler:
            if not task.has_training_docs():
                raise EvaluationError(
                    "the leaderboard's draw is known for tasks with a training split", where=name,
                    expected="`training_split` in its file", got="none", todo="leave `draw` out",
                )  # fmt: skip
            pool = list(task.sampler.df)
            task.sampler.sample = _drawn(pool, leaderboard_draw(asked, len(pool), settings["shots"]))
        made[name] = task
    return made


def _configured(name: str, config: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A task's file as the suite wants it asked, without what its file says of data and groups."""
    for key in ("tag", "group", "task_list", "dataset_path", "dataset_name", "dataset_kwargs", "class"):
        config.pop(key, None)
    config |= {"task": name, "num_fewshot": settings["shots"]}
    if settings["until"] is not None:
        config["generation_kwargs"] = {**config.get("generation_kwargs", {}), "until": settings["until"]}
    if settings["ignore"] is not None:
        config["metric_list"] = [
            one | {"regexes_to_ignore": settings["ignore"]} for one in config.get("metric_list", [])
        ]
    return config


def _check(name: str, task: Any, settings: Mapping[str, Any]) -> None:
    """Refuse before anything is computed what could not be scored afterwards."""
    metrics = {"multiple_choice": ("acc", "acc_norm", "mc2"), "generate_until": ("exact_match",)}
    if task.OUTPUT_TYPE not in metrics:
        raise EvaluationError(
            "lm-eval's task is of a kind that is not scored here",
            where=name,
            expected=", ".join(metrics),
            got=task.OUTPUT_TYPE,
        )
    metric, own = settings["metric"], task._metric_fn_list
    fits = [one for one in metrics[task.OUTPUT_TYPE] if THEIRS.get(one, one) in own]
    fits = [one for one in fits if (one == "mc2") == ("mc2_targets" in task.eval_docs[0])]
    if metric not in fits:
        raise EvaluationError("lm-eval's task has no such metric", where=name, expected=" or ".join(fits), got=metric)
    filters = [one.name for one in task._filters]
    if settings["filter"] not in filters:
        raise EvaluationError(
            "lm-eval's task has no such filter", where=name, expected=", ".join(filters), got=settings["filter"]
        )
    if task.OUTPUT_TYPE != "generate_until" and (settings["until"] or settings["ignore"]):
        raise EvaluationError(
            "`until` and `ignore` are for texts that are generated",
            where=name,
            expected="generate_until",
            got=task.OUTPUT_TYPE,
        )
    if settings["shots"] and settings["shots"] > len(task.sampler.df):
        raise EvaluationError(
            "fewer examples than `shots`", where=name, expected=settings["shots"], got=len(task.sampler.df)
        )


def leaderboard_draw(asked: int, pool: int, shots: int) -> list[list[int]]:
    """The examples of each of `asked` questions, as places in a pool, as the leaderboard's first version drew them.

    One generator shuffled the questions, then drew for each in that order (lm-eval b281b09: evaluator.py, base.py).
    """
    generator = random.Random(LEADERBOARD_SEED)  # noqa: S311
    order = list(range(asked))
    generator.shuffle(order)
    drawn = {question: generator.sample(range(pool), shots) for question in order}
    return [drawn[question] for question in range(asked)]


def question(task: Any, doc: Mapping[str, Any]) -> str:
    """A question as people read it, without the examples before it."""
    if task.multiple_input:
        return "\n".join(_choices(task, doc))
    return str(task.doc_to_text(doc))


def item(task: Any, name: str, metric: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of one of lm-eval's samples: enough to make its score again, and to read it."""
    doc = row["doc"]
    kept: dict[str, Any] = {"id": f"{name}/{row['doc_id']}", "question": question(task, doc)}
    if task.OUTPUT_TYPE == "generate_until":
        return kept | {
            "generated": row["resps"][0][0],
            "extracted": str(row["filtered_resps"][0]),
            "target": str(row["target"]),
            "value": float(row[metric]),
        }
    choices = _choices(task, doc)
    kept |= {"choices": choices, "characters": [len(choice) for choice in task.doc_to_choice(doc)]}
    if metric == "mc2":
        return kept | {"labels": [int(label) for label in doc["mc2_targets"]["labels"]]}
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    right = choices.index(right) if isinstance(right, str) else right
    if not isinstance(right, int) or not 0 <= right < len(choices):
        raise EvaluationError(
            "a question has no right answer",
            where=kept["id"],
            expected=f"one of its {len(choices)} choices",
            got=repr(right),
        )
    return kept | {"answer": right}


def _choices(task: Any, doc: Mapping[str, Any]) -> list[str]:
    """The choices, whole sentences where each has a context of its own (as Winogrande's have)."""
    choices = [str(choice) for choice in task.doc_to_choice(doc)]
    if not task.multiple_input:
        return choices
    return [f"{choice}{task.config.target_delimiter}{task.doc_to_target(doc)}" for choice in choices]


def _drawn(pool: Sequence[Any], places: Sequence[Sequence[int]]) -> Callable[..., list[Any]]:
    """What takes a sampler's place: the examples at these places of the pool for each question, in order."""
    waiting = itertools.cycle(places)
    return lambda n, eval_doc=None, **_: [pool[place] for place in next(waiting)]
