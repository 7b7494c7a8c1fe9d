"""What a training would do, told from its recipe before it runs: what trains, for how long, on which data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from strata.experiment import Experiment
from strata.job import Job
from strata.plan import Plan, inserted, layers_that_train
from strata.training import Dpo, Pretrain, Sft
from strata.variant import Variant

SCHEMAS: dict[str, type[Pretrain] | type[Sft] | type[Dpo]] = {
    schema.operation: schema for schema in (Pretrain, Sft, Dpo)
}
WIDTH = 13  # of the words that the lines of an outline begin with
TOLD = ("learning_rate", "schedule", "beta", "seed")  # where they are not the default


def summary(variant: Variant) -> str:
    """`pretrain 25,000 tokens of speeches`, `sft solar 3 epochs of who, new layers`: what tells variants apart."""
    operation, parameters = variant.job.recipe.operation, variant.job.recipe.parameters
    template = variant.preparations[0].recipe.parameters.get("template")
    words = [operation, *([template] if template else []), _amount(parameters), "of", " and ".join(variant.learns_from)]
    told = [" ".join(words)]
    if parameters["train"] != "all":
        told.append(_named(parameters["train"]))
    for key, default in ((key, SCHEMAS[operation].model_fields.get(key)) for key in TOLD):
        if default and parameters[key] != default.default:
            told.append(f"{key.replace('_', ' ')} {parameters[key]}")
    return ", ".join(told)


def outline(experiment: Experiment, variant: Variant) -> list[str]:
    """A line each for what trains, the steps, the schedule, the data and the held-out text."""
    job, parameters = variant.job, variant.job.recipe.parameters
    shape = job.shape
    assert shape is not None
    trained = shape.parameters if job.trained is None else job.trained
    about = "" if parameters["train"] == "all" or shape.outside is not None else "about "
    lines = [
        f"trains       {_layers(variant.lineage.plan, parameters['train'], shape.layers)}: "
        f"{about}{trained:,} of {shape.parameters:,} parameters ({trained / shape.parameters:.1%})",
        f"steps        {_steps(job)}",
        f"rate         {_schedule(parameters)}",
        f"computes in  {parameters['dtype']} on {parameters['device']}, {job.processes} process"
        + ("es" if job.processes > 1 else ""),
    ]
    lines += [f"{'data' if not n else '':<{WIDTH}}{line}" for n, line in enumerate(_data(experiment, job))]
    if held := parameters.get("heldout"):
        every = f"every {parameters['every']:,} tokens" if "every" in parameters else "ten times"
        name = _source(experiment, job.recipe.sources[held["source"]])
        lines.append(f"held out     {name}: {held['tokens']:,} tokens, measured {every}")
    if stop := parameters.get("stop"):
        id = job.recipe.sources[stop["recovered"]]
        names = ", ".join(name for name, other in experiment.variants.items() if other.job.id == id)
        within = f" or at most {stop['within']:g} nats above" if stop["within"] else ""
        lines.append(f"stops        once the held-out loss is that of {names}{within}")
    return lines


def _amount(parameters: dict[str, Any]) -> str:
    if "tokens" in parameters:
        return f"{parameters['tokens']:,} tokens"
    return f"{parameters['epochs']} epoch" + ("s" if parameters["epochs"] > 1 else "")


def _named(train: str | list[int]) -> str:
    words = {"new": "new layers", "seams": "both sides of seams", "new+norms": "new layers and norms"}
    if isinstance(train, str):
        return words[train]
    listed = ", ".join(map(str, train))
    return f"layers {listed}" if len(listed) <= 30 else f"{len(train)} layers"


def _layers(plan: Plan | None, train: str | list[int], count: int) -> str:
    if train == "all":
        return f"all {count} layers and what is outside them"
    if plan is None:
        return f"{_named(train)}, known once the plan of its parent is"
    layers = layers_that_train(plan, train)
    norms = " and every norm" if train == "new+norms" else ""
    kind = "inserted " if set(layers) == set(inserted(plan)) else ""
    listed = ", ".join(map(str, layers[:12])) + ", ..." * (len(layers) > 12)
    return f"{len(layers)} {kind}layers of {count}{norms} ({listed})"


def _steps(job: Job) -> str:
    parameters, samples = job.recipe.parameters, SCHEMAS[job.recipe.operation].samples
    batch, length = parameters["batch"], parameters["length"]
    each = f"{batch} {samples} of {'at most ' if samples == 'pairs' else ''}{length:,} tokens"
    if "tokens" not in parameters:
        return f"{_amount(parameters)} over its data, a step learns from {each}"
    steps, spare = divmod(parameters["tokens"], batch * length)
    rest = f"; {spare:,} tokens of the budget make no whole step" if spare else ""
    return f"{steps:,}, each of {each}: {batch * length:,} tokens{rest}"


def _schedule(parameters: dict[str, Any]) -> str:
    warm = f"up to {parameters['learning_rate']:g} in the first {parameters['warmup']:.0%}"
    floor = f"{parameters['floor']:g} of it" if parameters["floor"] else "0"
    last = f"in the last {parameters['decay']:.0%}" if parameters["schedule"] == "wsd" else "from there on"
    kinds = {key: f"{value:g} times that for {key}" for key, value in parameters["multipliers"].items()}
    return ", ".join([f"{parameters['schedule']}: {warm}, down to {floor} {last}", *kinds.values()])


def _data(experiment: Experiment, job: Job) -> Iterator[str]:
    sources, data = job.recipe.sources, job.recipe.parameters["data"]
    for part in data:
        number, share = part if isinstance(part, list) else (part, None)
        tokens = experiment.jobs[sources[number]].recipe.parameters
        rows = f", {tokens['rows']:,} of its rows" if "rows" in tokens else ""
        template = f", template {tokens['template']}" if "template" in tokens else ""
        told = f"{share:.1%} " if share is not None and len(data) > 1 else ""
        yield f"{told}{_source(experiment, sources[number])}{rows}{template}"


def _source(experiment: Experiment, tokens: str) -> str:
    """The config's name for the source of these tokens."""
    source = experiment.jobs[tokens].recipe.sources[0]
    return next(name for name, job in experiment.sources.items() if job.id == source)
