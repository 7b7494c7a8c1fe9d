"""Evaluate: one checkpoint on one task group, scored by lm-eval, kept with every item's log-likelihoods.

We own the items, the numerics and the files; lm-eval owns the requests and the scoring. One process per job, one
model per process, and none of lm-eval's caches, which do not tell models apart.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from strata import store
from strata.checkpoint import verify
from strata.encode import encodings_of, put
from strata.errors import EvaluationError
from strata.loading import check_device, check_length, check_loaded, go_offline
from strata.recipe import KINDS, Recipe, canonical, digest, kind_of
from strata.score import generator
from strata.score.answers import Answers
from strata.score.encodings import Encodings
from strata.score.statistics import Samples, score, value
from strata.store import Built, Object
from strata.tasks.harness import THEIRS
from strata.tasks.kinds import Asked, item
from strata.tokens import overlap


def evaluate(root: Path, recipe: Recipe) -> Object:
    """Score the checkpoint of an evaluation recipe and publish the samples and scores.

    Raises:
        StoreError: the checkpoint or the data is missing or damaged.
        EvaluationError: the loaded model is not the checkpoint, or a score cannot be recomputed from its samples.
    """
    done = store.publish(root, recipe, lambda folder: _build(root, recipe, folder))
    shutil.rmtree(_answers(root, recipe), ignore_errors=True)
    return done


def _answers(root: Path, recipe: Recipe) -> Path:
    """Where a model's answers are kept while it is evaluated, outside what a failed job loses."""
    return root / "answers" / recipe.id


def _build(root: Path, recipe: Recipe, folder: Path) -> Built:
    go_offline()
    # Every byte that is scored is hashed first: a merge takes its digests from its parents and reads no weight.
    checkpoint = store.require(root, recipe.parents[0], verify)
    for source in recipe.sources:
        if kind_of(source) in (KINDS["fetch"], KINDS["tokenize"]):
            store.require(root, source, store.verify)
    numerics = recipe.parameters["numerics"]
    tasks: Mapping[str, Any] = recipe.parameters["tasks"]
    asked: dict[str, Asked] = {}
    for name, task in tasks.items():
        asked[name] = put(root, name, task, numerics["seed"])
        _check_unseen(root, name, asked[name], recipe.sources)
    check_length(checkpoint, numerics["max_length"], "`numerics.max_length` of the suite")
    answers = Answers(_answers(root, recipe), checkpoint.digest)
    results = _run(checkpoint, recipe.parameters, asked, encodings_of(root, recipe, checkpoint), answers)
    scores: dict[str, Any] = {}
    for name, task in tasks.items():
        items, arguments = [], []
        for part, of in asked[name].tasks.items():
            rows = [row for row in results["samples"][part] if row["filter"] == task.get("filter", "none")]
            rows.sort(key=lambda row: int(row["doc_id"]))
            found = [item(task, part, of, row) for row in rows]
            _agree(part, Samples(task["kind"], found, task.get("metric", "")), results["results"][part], task)
            items += found
            arguments += [row["arguments"] for row in rows]
        _write_lines(folder / f"{name}.jsonl", items)
        samples = Samples(task["kind"], items, task.get("metric", ""), task.get("mean", "items"))
        scores[name] = {"kind": task["kind"], **score(samples), "requests": digest(canonical(arguments))}
    return Built(facts={"checkpoint": checkpoint.id, "checkpoint_digest": checkpoint.digest, "scores": scores})


def read_samples(found: Object, task: str) -> Samples:
    """The stored items of one task, from which every number in the report is made."""
    told = found.facts["scores"][task]
    # Not splitlines: it also splits at U+2028 and its like, which stand unescaped in the texts.
    lines = (found.path / f"{task}.jsonl").read_text(encoding="utf-8").split("\n")
    items = [json.loads(line) for line in lines if line]
    return Samples(told["kind"], items, told["metric"], told.get("mean", "items"))


def _check_unseen(root: Path, name: str, asked: Asked, sources: Sequence[str]) -> None:
    """Refuse a task of which the checkpoint's training data, the tokens among `sources`, holds a document."""
    for id in sources:
        seen = overlap(store.require(root, id), asked.texts) if kind_of(id) == KINDS["tokenize"] else []
        if seen:
            raise EvaluationError(
                "the checkpoint was trained on what it would be scored on", where=f"task {name}, document {seen[0]}",
                expected="no document of a task, nor a passage of one, in training data",
                got=f"{len(seen)} of {len(asked.texts)} documents in {id}",
                todo="leave these documents out of the training data, or score on others",
            )  # fmt: skip


def _run(
    checkpoint: Object,
    parameters: Mapping[str, Any],
    asked: Mapping[str, Asked],
    encodings: Encodings,
    answers: Answers,
) -> Any:
    """lm-eval's results for these tasks, with samples."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import lm_eval
    import torch
    import transformers

    numerics = parameters["numerics"]
    check_device(parameters["device"])
    transformers.set_seed(numerics["seed"])  # Python, numpy and torch
    torch.use_deterministic_algorithms(True, warn_only=True)
    tasks = {name: task for one in asked.values() for name, task in one.tasks.items()}
    outputs = {name: task.OUTPUT_TYPE for name, task in tasks.items()}
    if numerics["generation"] == "vllm" and "generate_until" in outputs.values():
        model = generator.load(checkpoint, numerics, parameters["device"], outputs)
    else:
        model = _load(checkpoint, numerics, parameters["device"], encodings, answers)
    loaded = {"tasks": tasks, "groups": {}, "group_map": {}}
    results = lm_eval.evaluate(model, loaded, bootstrap_iters=0, log_samples=True)
    if results is None:
        raise EvaluationError(
            "lm-eval returned nothing", where=checkpoint.path, expected="results of rank 0", got="nothing"
        )
    return results


def _load(checkpoint: Object, numerics: Mapping[str, Any], device: str, encodings: Encodings, answers: Answers) -> Any:
    from strata.score.scorer import Scorer

    model = Scorer(
        pretrained=str(checkpoint.path),
        dtype=numerics["dtype"],
        softmax_dtype="float32",
        attn_implementation=numerics["attention"],
        device=device,
        batch_size=numerics["batch_size"],
        max_length=numerics["max_length"],
        add_bos_token=numerics["add_bos_token"],
        trust_remote_code=False,
        use_safetensors=True,
        encodings=encodings,
        answers=answers,
        name=checkpoint.id[:14],
    )
    check_loaded(checkpoint, model.model)
    return model


def _agree(part: str, samples: Samples, theirs: Mapping[str, Any], task: Mapping[str, Any]) -> None:
    """The score made from the samples must be the one that lm-eval reports.

    Its mc2 has no value where all answers to a question are so unlikely that their probabilities underflow.
    """
    key = f"{THEIRS.get(samples.metric, samples.metric)},{task.get('filter', 'none')}"
    if key not in theirs:
        got = ", ".join(name for name in theirs if "," in name)
        raise EvaluationError("lm-eval's task has no such metric", where=part, expected=key, got=got)
    ours = value(samples)
    underflow = samples.metric == "mc2" and math.isnan(theirs[key]) and math.isfinite(ours)
    if not underflow and not math.isclose(ours, theirs[key], rel_tol=1e-9):
        raise EvaluationError(
            "the score cannot be recomputed from its samples", where=part, expected=theirs[key], got=ours
        )


def _write_lines(file: Path, items: list[dict[str, Any]]) -> None:
    file.write_text("".join(canonical(item) + "\n" for item in items), encoding="utf-8")
