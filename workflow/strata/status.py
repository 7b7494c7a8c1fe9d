"""What is there and what would run: `strata ls`, `show`, `plan` and `why`. Text for people."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from strata import forecast, links, receipts, store
from strata.checkpoint import open_checkpoint
from strata.errors import StoreError, UsageError
from strata.experiment import Experiment
from strata.job import Job
from strata.outline import outline
from strata.plan import Plan
from strata.recipe import TRAINING, Recipe, kind_of
from strata.restack import draft
from strata.screens import ScreenJobs
from strata.store import Object
from strata.train import snapshots
from strata.train.state import home
from strata.variant import Variant

Found = TypeVar("Found")


def variant_of(experiment: Experiment, name: str) -> Variant:
    """The variant with this name. Raises UsageError with the nearest one."""
    return _named_so(experiment.variants, "variant", name)


def screen_of(experiment: Experiment, name: str) -> ScreenJobs:
    """The screen with this name. Raises UsageError with the nearest one."""
    return _named_so(experiment.screens, "screen", name)


def _named_so(known: Mapping[str, Found], what: str, name: str) -> Found:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    raise UsageError(
        f"no such {what}",
        where=f"the config's `{what}s`",
        expected=", ".join(known) or f"a config with {what}s",
        got=name,
        todo=f"did you mean {near[0]}?" if near else "see `strata ls`",
    )


def base_of(experiment: Experiment, name: str) -> str:
    """The variant without parents that this one goes back to, by first parents."""
    while experiment.variants[name].parents:
        name = experiment.variants[name].parents[0]
    return name


def needed(experiment: Experiment, variant: Variant) -> list[Job]:
    """Every job that a variant rests on, inputs first, each once: sources, ancestors, itself, its evaluations."""
    return with_inputs(experiment, (variant.job, *variant.evaluations, *variant.ggufs))


def with_inputs(experiment: Experiment, wanted: Iterable[Job]) -> list[Job]:
    """These jobs and all that they rest on, inputs first, each once."""
    jobs: dict[str, Job] = {}

    def add(job: Job) -> None:
        if job.id not in jobs:
            for id in (*job.recipe.sources, *job.recipe.parents):
                add(experiment.jobs[id])
            jobs[job.id] = job

    for job in wanted:
        add(job)
    return list(jobs.values())


def state(root: Path, job: Job) -> str:
    """`done`, `missing` or `damaged`. Raises StoreError for a store of another version."""
    store.require_version(root)
    try:
        return "done" if store.find(root, job.id) else "missing"
    except StoreError:
        return "damaged"


def stopped_at(root: Path, id: str) -> int | None:
    """The step of the newest snapshot of a run that has not ended; None where there is none."""
    found = snapshots.names(home(root, id) / "snapshots")
    return int(found[0].name.removeprefix("step-")) if found else None


def listing(root: Path, experiment: Experiment) -> str:
    """A line for each variant: what it is made of, how many layers, and how far it is."""
    rows = [("variant", "layers", "made by", "checkpoint", "state")]
    for variant in experiment.variants.values():
        shape = variant.job.shape
        states = [state(root, job) for job in (variant.job, *variant.evaluations)]
        done = sum(s == "done" for s in states[1:])
        progress = f"built, {done} of {len(states) - 1} evaluations"
        if variant.ggufs:
            progress += f", {sum(state(root, job) == 'done' for job in variant.ggufs)} of {len(variant.ggufs)} GGUF"
        if states[0] != "done":
            step = stopped_at(root, variant.job.id)
            progress = states[0] + (f", stopped at step {step:,}" if step else "")
        rows.append((variant.name, str(shape.layers if shape else "?"), summary(variant), variant.job.id, progress))
    for screen in experiment.screens.values():
        states = [state(root, job) for job in screen.rankings]
        progress = states[0]
        if screen.rounds:
            progress += f", {states[1:].count('done')} of {len(screen.rounds)} rounds"
        parameters = screen.job.recipe.parameters
        depths = ", ".join(map(str, parameters["depths"]))
        made_by = f"{screen.parent.name}: screen, at most {parameters['budget']['plans']:,} plans"
        rows.append((screen.name, depths, made_by, screen.job.id, progress))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def summary(variant: Variant) -> str:
    """`base: dus drop 6` for a merge, `dus: pretrain 25,000 tokens` for training, `init` for a base."""
    parameters = variant.job.recipe.parameters
    if not variant.parents:
        return f"init {parameters['architecture']}"
    parents = ", ".join(variant.parents)
    if variant.job.recipe.operation in TRAINING:
        return f"{parents}: {forecast.summary(variant)}"
    method = parameters["method"]
    told = {key: value for key, value in parameters.items() if not key.endswith(("method", "_from"))}
    if told.get("rank") == 1:
        del told["rank"]  # of a screen's plans the best
    if method == "slices" and len(variant.parents) == 1:
        told["slices"] = [[start, stop] for _, start, stop in told["slices"]]
    rest = [f"{key} {_short(value)}".removeprefix(f"{method} ") for key, value in told.items()]
    measured = (job.recipe.parameters for job in variant.preparations if job.recipe.operation == "analyze")
    rest += [f"({on['documents']} documents, {on['tokens']} tokens)" for on in measured]
    return f"{parents}: {' '.join([method, *rest])}"


def _short(value: Any) -> str:
    """A parameter in a table's cell."""
    text = value if isinstance(value, str) else f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
    return text if len(text) <= 40 else f"({len(value)} entries)"


def description(root: Path, experiment: Experiment, name: str) -> str:
    """Recipe, plan, digest and scores of one variant."""
    variant = variant_of(experiment, name)
    found = store.find(root, variant.job.id)
    lines = [
        f"{name}: {summary(variant)}",
        f"checkpoint  {variant.job.id}",
        f"digest      {found.digest if found else '(not built)'}",
    ]
    trains = variant.job.recipe.operation in TRAINING
    plan = Plan.from_json(found.facts["plan"]) if found and not trains else variant.plan
    names = variant.parents or ("its source",)
    told = (
        outline(plan, names)
        if plan
        else [f"{_layers(variant)} of {names[0]}, chosen by a measurement that has not been made"]
    )
    lines += [f"{'layers' if not number else '':<12}{line}" for number, line in enumerate(told)]
    if found:
        facts = found.facts
        lines.append(f"size        {facts['parameters']:,} parameters, {facts['bytes']:,} bytes, {facts['dtype']}")
        if "rounding" in facts:
            lines.append(f"rounding    {facts['rounding']:.2g}, the largest relative error of the change of dtype")
        if "training" in facts:
            lines.append(f"trained     {trained(facts['training'])}")
    for job in variant.ggufs:
        gguf = store.find(root, job.id)
        size = f"{gguf.manifest['files']['model.gguf']['size']:,} bytes" if gguf else "(not built)"
        lines.append(f"gguf        {job.recipe.parameters['type']}: {job.id}, {size}")
    for kind in receipts.KINDS:
        if made := receipts.receipt(root, name, kind):
            old = "" if found and found.digest == made.digest else ", of other weights than it has now"
            lines.append(f"published   {made.url or made.place}: {len(made.files)} files, {made.bytes:,} bytes{old}")
    for job in variant.evaluations:
        suite, result = job.recipe.parameters["suite"], store.find(root, job.id)
        for task, score in (result.facts["scores"] if result else {}).items():
            number = f"{score['metric']} {score['value']:.4f} ± {score['error']:.4f} (n={score['items']})"
            lines.append(f"score       {suite}/{task} {number}")
        if not result:
            lines.append(f"score       {suite} (not evaluated)")
    return "\n".join([*lines, "recipe", json.dumps(variant.job.recipe.to_json(), indent=2)])


def trained(facts: dict[str, Any]) -> str:
    """What training did: `12 steps, 24,576 tokens, 8,192 parameters, held-out loss 3.712 -> 3.091`."""
    steps = f"{facts['steps']:,} step{'s' * (facts['steps'] != 1)}"
    told = f"{steps}, {facts['tokens']:,} tokens, {facts['trained']:,} parameters"
    if facts["heldout"]:
        told += ", held-out loss " + " -> ".join(f"{loss:.3f}" for loss in facts["heldout"])
    told += ", stopped as recovered" if facts["ended"] == "recovered" else ""
    told += f", {facts['rounded']:.1%} of the update rounded away" if facts["rounded"] else ""
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in facts["left_out"].items())
    return told + (f", left out: {left_out}" if left_out else "")


def planned(root: Path, experiment: Experiment, name: str) -> str:
    """What a merge would make: layers, seams, parameters and bytes; what training would do. Nothing is built.

    The sizes are exact where the parents are in the store, whose headers are then read and checked.

    Raises:
        CheckpointError: the parents in the store do not fit together.
    """
    variant = variant_of(experiment, name)
    shape = variant.job.shape
    assert shape is not None
    lines = [f"{name}: {summary(variant)}", f"{shape.layers} layers"]
    if variant.plan is None:
        deciding = [job for job in variant.preparations if kind_of(job.id) in ("analyses", "screens")]
        lines += ["  which ones is decided by:", *(f"  {job.id}  {state(root, job)}" for job in deciding)]
        built = store.find(root, variant.job.id)
        plan = Plan.from_json(built.facts["plan"]) if built else None
    else:
        plan = variant.plan
    trains = variant.job.recipe.operation in TRAINING
    parents = [store.find(root, id) for id in variant.job.recipe.parents]
    if plan and variant.parents and all(parents):
        opened = [open_checkpoint(parent) for parent in parents if parent]
        made = draft(plan, opened, variant.job.recipe.parameters.get("stored" if trains else "dtype"))
        plan = made.plan
        tensors = [tensor for header in made.shards.values() for tensor in header.tensors]
        count, size = sum(math.prod(tensor.shape) for tensor in tensors), sum(tensor.size for tensor in tensors)
        basis = "exact: read from the parents' headers"
    else:
        count, size = shape.parameters, shape.bytes
        exact = shape.outside is not None or not variant.parents
        basis = "from the `shape` of the source" if exact else "about: `strata pin --shape` makes it exact"
    if plan and not trains:
        lines += [f"  {line}" for line in outline(plan, variant.parents or ("its source",))]
    lines.append(f"{count:,} parameters, {size:,} bytes of {shape.dtype} ({basis})")
    return "\n".join([*lines, *(forecast.outline(experiment, variant) if trains else [])])


def _layers(variant: Variant) -> int:
    return variant.job.shape.layers if variant.job.shape else 0


def reasons(root: Path, experiment: Experiment, name: str) -> str:
    """What would run for a variant, and because of which change since it was last linked."""
    variant = variant_of(experiment, name)
    jobs = [(job, state(root, job)) for job in needed(experiment, variant)]
    todo = [(job, what) for job, what in jobs if what != "done"]
    lines = [f"{name}: {'nothing to build' if not todo else f'{len(todo)} of {len(jobs)} jobs would run'}"]
    lines += [f"  {job.id}  {what}{_named(experiment, job)}" for job, what in todo]
    copies = [job for job, what in jobs if what == "done" and not store.target(root, job.id).exists()]
    lines += [f"  {job.id}  built; only its manifest copy is written again" for job in copies]
    before = _linked(root, name)
    if before is None:
        lines.append("It has not been built under this name before.")
    elif before.id == variant.job.id:
        lines.append("Its checkpoint's recipe has not changed.")
    else:
        lines.append(f"Its recipe has changed since {before.id}:")
        lines += [f"  {change}" for change in _changes(root, experiment, before.recipe, variant.job.recipe)]
    return "\n".join(lines)


def _named(experiment: Experiment, job: Job) -> str:
    names = [n for n, v in experiment.variants.items() if job in v.jobs]
    return f"  ({', '.join(names)})" if names else ""


def _linked(root: Path, name: str) -> Object | None:
    link = root / links.FOLDER / name
    try:
        return store.find(root, link.readlink().name)
    except (OSError, StoreError, UsageError):
        return None


def _changes(root: Path, experiment: Experiment, old: Recipe, new: Recipe, place: str = "") -> Iterator[str]:
    """What differs between two recipes, followed up into the parents where only those differ."""
    before, after = _flat(old.to_json()), _flat(new.to_json())
    for key in sorted(before.keys() | after.keys()):
        if key.startswith(("parents", "sources")) or before.get(key) == after.get(key):
            continue
        yield f"{place}{key}: {before.get(key, '(none)')} -> {after.get(key, '(none)')}"
    for was, now in zip((*old.parents, *old.sources), (*new.parents, *new.sources), strict=False):
        if was != now:
            found, job = store.find(root, was), experiment.jobs.get(now)
            if found and job:
                yield from _changes(root, experiment, found.recipe, job.recipe, f"{place}{found.recipe.operation}: ")
            else:
                yield f"{place}{was} -> {now}"


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}".lstrip(".")).items()}
    return {path: value}
