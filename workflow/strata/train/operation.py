"""Train: the checkpoint of a pretrain, sft or dpo recipe, from its parent in the store into the store.

The run's state lies in `training/<id>/`, outside what a failed job loses, and a run goes on from its newest snapshot
without being asked.
"""

from __future__ import annotations

import gc
import json
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from strata import progress, store
from strata.checkpoint import Checkpoint, copy_tokenizer, finish, open_checkpoint, verify, write_config
from strata.curves import CURVE
from strata.disk import disk_errors
from strata.errors import TrainingError
from strata.loading import check_device, check_length, decoder_layers
from strata.plan import Plan
from strata.recipe import Recipe, canonical
from strata.store import Built, Object
from strata.tokens import TEMPLATE, Tokens, open_tokens, shared, tokenizer_of
from strata.train import flops, snapshots
from strata.train.batch import Batch
from strata.train.export import Update, export, plan_export
from strata.train.journal import Journal
from strata.train.learner import Learner, make_learner
from strata.train.loop import Run
from strata.train.loop import train as go_on
from strata.train.parallel import Ranks, is_rank, joined, launch, rank_command, signals
from strata.train.sharding import model_of, shard
from strata.train.state import State, home
from strata.train.task import Task, heldout_batches, heldout_loss, preferring, pretraining, tuning

MAX_SHARED = 0.01  # of the held-out passages: large corpora repeat a licence or a greeting


def train(root: Path, recipe: Recipe, processes: int = 1, nodes: int = 1) -> Object | None:
    """Train what a recipe asks for and publish the checkpoint. Returns it, in the process that published it.

    Args:
        processes: how many train together. A process that a launcher has started as one of several joins the others,
            whatever this says.
        nodes: how many machines they are spread over, where this is a job of Slurm's.

    Raises:
        StoreError: an input is missing or damaged.
        TrainingError: data that cannot be trained on, or a run that cannot go on.
        Preempted: a signal came; run again to go on.
    """
    if processes > 1 and not is_rank():
        log = ["--log", progress.log_file] if progress.log_file else []
        launch(rank_command(["--root", str(root), recipe.operation, recipe.canonical, *log]), processes, nodes)
        return store.require(root, recipe.id)
    check_device(recipe.parameters["device"])
    with signals() as stop, joined(recipe.parameters["device"]) as ranks:
        if not ranks.is_first:
            if ranks.told(None):  # the first one builds: it is not in the store yet
                _build(root, recipe, None, ranks, stop)
            return None
        asked: list[bool] = []

        def build(folder: Path) -> Built:
            asked.append(ranks.told(True))
            return _build(root, recipe, folder, ranks, stop)

        done = store.publish(root, recipe, build, wait=ranks.size == 1, stop=stop)
        if not asked:
            ranks.told(False)
        shutil.rmtree(home(root, recipe.id) / "snapshots", ignore_errors=True)
        return done


def _build(root: Path, recipe: Recipe, folder: Path | None, ranks: Ranks, stop: Sequence[int]) -> Built:
    """Every rank calls it; the first has the `folder` to write to, and its result counts."""
    from strata.train.bfloat16 import widened

    parameters = recipe.parameters
    _check_ranks(parameters, ranks)
    parent = store.require(root, recipe.parents[0], verify if ranks.is_first else None)
    sources = [store.require(root, id, store.verify if ranks.is_first else None) for id in recipe.sources]
    tokens = [open_tokens(found) if found.recipe.operation == "tokenize" else None for found in sources]
    check_length(parent, parameters["length"], "`length`")
    opened = open_checkpoint(parent)
    _check_tokenizers(parent, [part for part in tokens if part])
    _check_apart(parameters, sources)
    task = _task(recipe, sources, tokens, parent)
    made_from = {"recipe": recipe.id, "inputs": {found.id: found.digest for found in (parent, *sources)}}
    place = home(root, recipe.id)
    snapshot = snapshots.newest(place / "snapshots", made_from, ranks)
    state = State(**snapshot.state) if snapshot else State(task.steps, task.steps)
    heldout = _heldout(parameters, tokens)
    recovered = sources[parameters["stop"]["recovered"]] if "stop" in parameters else None
    if recovered and state.reference is None:
        state.reference = _reference_loss(recovered, heldout, parameters, ranks)
    learner = make_learner(parent, opened, parameters, ranks)
    made = plan_export(opened, learner, parameters.get("stored"))
    if folder is not None:  # whatever could be wrong with the result but its numbers is wrong now
        write_config(folder, made.config, made.shards)
        _copy_tokenizer(opened, folder, tokens)
    if snapshot:
        snapshots.load(snapshot, learner.tensors())
        learner.went(state.step)
    run = Run(
        task=task, learner=learner, parameters=parameters, ranks=ranks, heldout=heldout,
        journal=Journal(place, state.step) if ranks.is_first else None,
        snapshot=partial(_snapshot, place / "snapshots", learner, made_from, ranks),
        last=lambda: _last(place / "snapshots"),
        operations=flops.operations(opened.config, learner.learnt, parameters["length"]), peak=flops.peak(ranks.device),
        stop=stop, label=f"{recipe.id[: len(recipe.operation) + 9]}",
    )  # fmt: skip
    try:
        with widened(ranks.device, parameters["dtype"]):
            state = go_on(run, state)
    finally:
        if run.journal is not None:
            run.journal.close()
    sha256, update = export(folder, made, learner)
    if folder is None:
        return Built()
    curve = state.curve(recovered.id if recovered else None, task.counts)
    (folder / CURVE).write_text(canonical(curve) + "\n", encoding="utf-8")
    # Training copies its parent's plan: what is new, and where the seams are, stays known.
    plan = Plan.from_json(parent.facts["plan"])
    built = finish(folder, made.config, made.shards, sha256, plan, [parent, *sources])
    learnt = [sources[number].facts for number in _learnt(parameters)]
    return replace(built, facts=built.facts | {"training": _summary(curve, state, learner, learnt, update)})


def _check_ranks(parameters: Mapping[str, Any], ranks: Ranks) -> None:
    if ranks.is_first and parameters["batch"] % ranks.size:  # one that fails stops the others
        raise TrainingError(
            "a batch cannot be shared evenly", where="batch", expected=f"a multiple of {ranks.size} processes",
            got=parameters["batch"], todo="change `batch` or `processes`",
        )  # fmt: skip


def _check_tokenizers(parent: Object, tokens: Sequence[Tokens]) -> None:
    """Raise TrainingError for data that another tokenizer has made: its numbers mean other words."""
    own = tokenizer_of(parent)
    for part in tokens:
        if part.tokenizer != own:
            raise TrainingError(
                "the data was made by another tokenizer than the parent's", where=part.id, expected=f"sha256 {own}",
                got=part.tokenizer, todo="report it: a variant's data is made by its own base's tokenizer",
            )  # fmt: skip


def _task(recipe: Recipe, sources: Sequence[Object], tokens: Sequence[Tokens | None], parent: Object) -> Task:
    data: Any = tokens
    match recipe.operation:
        case "pretrain":
            return pretraining(data, recipe.parameters)
        case "sft":
            return tuning(data, recipe.parameters)
    reference = sources[-1]
    if reference.facts["checkpoint_digest"] != parent.digest:
        raise TrainingError(
            "the reference is of other weights than the parent has now", where=reference.path,
            expected=f"content digest {parent.digest}", got=reference.facts["checkpoint_digest"],
            todo="run `strata redo` of the variant: both are made anew",
        )  # fmt: skip
    return preferring(data, reference, recipe.parameters)


def _learnt(parameters: Mapping[str, Any]) -> list[int]:
    """The places of the training data among a recipe's sources."""
    return [entry if isinstance(entry, int) else entry[0] for entry in parameters["data"]]


def _check_apart(parameters: Mapping[str, Any], sources: Sequence[Object]) -> None:
    """Raise TrainingError when held-out text is in the training data, which the names of sources do not tell."""
    if "heldout" not in parameters:
        return
    heldout = sources[parameters["heldout"]["source"]]
    for number in _learnt(parameters):
        same, of = shared(heldout, sources[number])
        if same > of * MAX_SHARED:
            raise TrainingError(
                "the held-out text is in the training data", where=heldout.path,
                expected=f"at most {MAX_SHARED:.0%} of its documents and passages", got=f"{same} of {of}",
                todo="hold other text out, or leave it out of the data",
            )  # fmt: skip


def _heldout(parameters: Mapping[str, Any], tokens: Sequence[Tokens | None]) -> list[Batch]:
    if "heldout" not in parameters:
        return []
    source = tokens[parameters["heldout"]["source"]]
    assert source is not None  # the planner puts tokens there
    return heldout_batches(source, parameters)


def _reference_loss(found: Object, heldout: list[Batch], parameters: Mapping[str, Any], ranks: Ranks) -> float:
    """The held-out loss that is to be regained: the named variant's, measured by the code that measures the run's."""
    from strata.train.bfloat16 import widened

    if ranks.is_first:
        store.verify(found)
    model = model_of(found, ranks)
    shard(model, list(decoder_layers(model)), found, ranks)
    with widened(ranks.device, parameters["dtype"]):
        loss = heldout_loss(model, heldout, parameters["dtype"], replace(ranks, size=1, rank=0))
    del model
    gc.collect()  # FSDP's hooks hold a model that they are of
    return loss


def _copy_tokenizer(opened: Checkpoint, folder: Path, tokens: Sequence[Tokens | None]) -> None:
    """The parent's tokenizer; with the template that a conversation was put together by as its chat template."""
    copy_tokenizer(opened, folder)
    template = next((part.template for part in tokens if part and part.template), None)
    if template is None:
        return
    for name in ("chat_template.json", TEMPLATE):
        (folder / name).unlink(missing_ok=True)
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_bytes())
    if config.pop("chat_template", None) is not None:
        file.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _snapshot(folder: Path, learner: Learner, made_from: Any, ranks: Ranks, state: State) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors(folder, "the folder of snapshots"):
        snapshots.save(folder, state.step, state.to_json(), learner.tensors(), made_from, ranks)


def _last(folder: Path) -> str:
    found = snapshots.names(folder)
    return str(found[0]) if found else "none yet"


def _summary(
    curve: Mapping[str, Any], state: State, learner: Learner, learnt: Sequence[Mapping[str, Any]], update: Update
) -> dict[str, Any]:
    """What a manifest tells of the run. `learnt` are the facts of the tokens that it learnt from."""
    left_out = Counter[str](curve["data"]["dropped"])
    for facts in learnt:
        left_out.update(facts["dropped"])
    losses = [point["loss"] for point in state.heldout]
    return {
        "ended": curve["ended"],
        "steps": state.step,
        "tokens": state.tokens,
        "targets": state.targets,
        "heldout": [losses[0], losses[-1]] if losses else None,
        "trained": sum(parameter.numel() for parameter in learner.trained.values()),
        "rounded": update.rounded,
        "left_out": {reason: count for reason, count in sorted(left_out.items()) if count},
    }
