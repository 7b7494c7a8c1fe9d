"""Stages of training as jobs: tokens, reference log-probabilities, and the training itself.

Pure, as `experiment` is. Whatever would be wrong with a run and can be known before it starts is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from strata.config import Shape
from strata.document import Key
from strata.job import Job
from strata.lineage import Lineage, taught
from strata.plan import Plan, classes, identity, layers_that_train
from strata.recipe import Recipe
from strata.setting import Place, Setting, data_of
from strata.training import Dpo, Heldout, Pretrain, Rows, Sft
from strata.variant import Variant

Training = Pretrain | Sft | Dpo
FORMATS = {"pretrain": "text", "sft": "instructions", "dpo": "preferences"}


def trained_variant(
    setting: Setting, name: str, training: Training, parent: Variant, recovered: Variant | None, key: Key = ()
) -> Variant:
    """A variant that trains, with the jobs that prepare it.

    Args:
        recovered: the variant that `stop` names.
        key: where the config says it; by default, in the variant of that name.

    Raises:
        ConfigError: numbers that do not fit each other, data that cannot be used, layers that are not there.
    """
    place = Place(setting.document, key or ("variants", name, training.operation))
    shape, plan = parent.job.model, parent.lineage.plan
    _check_numbers(training, place)
    _check_layers(training, plan, shape.layers, place)
    parameters = training.normal(setting.device)
    if parameters.get("stored") == shape.dtype:
        del parameters["stored"]  # what it would be anyway is no other recipe
    tokens, parameters["data"] = _data(setting, training, parent.lineage, place)
    preparations, sources = tokens, [job.id for job in tokens]
    if not isinstance(training, Dpo) and training.heldout:
        job = _heldout(setting, training, training.heldout, parent.lineage, place)
        parameters["heldout"] = {"source": len(sources), "tokens": training.heldout.tokens}
        preparations, sources = [*preparations, job], [*sources, job.id]
        if training.every:
            parameters["every"] = training.every
        elif isinstance(training, Pretrain):
            parameters["every"] = max(training.tokens // 10, training.batch * training.length)
    if isinstance(training, Pretrain) and training.stop and recovered:
        _check_recovery(parent, recovered, place)
        parameters["stop"] = training.stop.model_dump() | {"recovered": len(sources)}
        sources = [*sources, recovered.job.id]
    if isinstance(training, Dpo):
        keys = ("length", "dtype", "device")
        reference = Recipe("reference", {key: parameters[key] for key in keys}, (parent.job.id,), tuple(sources))
        preparations, sources = [*preparations, Job(reference, shape)], [*sources, reference.id]
    job = Job(
        Recipe(training.operation, parameters, (parent.job.id,), tuple(sources)),
        shape.cast(parameters["stored"]) if "stored" in parameters else shape,
        processes=training.processes,
        nodes=training.nodes,
        trained=_trained(training, plan, shape),
    )
    lineage = taught(parent.lineage, [job.recipe for job in tokens], _template(training, parent.lineage))
    names = tuple(source for _, source, weight, _ in _entries(training) if weight)
    plan = identity(shape.layers)
    return Variant(name, (parent.name,), job, plan, lineage, tuple(preparations), learns_from=names)


def _trained(training: Training, plan: Plan | None, shape: Shape) -> int:
    """How many parameters train; every norm of `new+norms` left out, which are few."""
    if plan is None or training.train == "all":
        return shape.parameters
    layers = len(layers_that_train(plan, training.train))
    return (shape.parameters - (shape.outside or 0)) * layers // shape.layers


def _check_numbers(training: Training, place: Place) -> None:
    """Raise ConfigError for a batch that cannot be divided, or a schedule that does not fit its run."""
    batch, share = training.batch, training.batch // training.processes
    if batch % training.processes:
        raise place.error(
            "the batch cannot be divided among the processes", "batch",
            expected=f"a multiple of {training.processes} processes", got=batch,
        )  # fmt: skip
    if training.processes % training.nodes:
        raise place.error(
            "the processes cannot be divided among the nodes", "processes",
            expected=f"a multiple of {training.nodes} nodes", got=training.processes,
        )  # fmt: skip
    if (training.micro_batch or 1) > batch:
        raise place.error(
            "the micro-batch is larger than the batch", "micro_batch", expected=f"at most {batch}",
            got=training.micro_batch,
        )  # fmt: skip
    if share % min(training.micro_batch or share, share):
        of = f"{share}, each process's share of the batch" if training.processes > 1 else f"the batch, {batch}"
        raise place.error(
            "the batch is no multiple of the micro-batch", "micro_batch",
            expected=f"a divisor of {of}", got=training.micro_batch,
        )  # fmt: skip
    if training.schedule != "wsd" and training.decay is not None:
        raise place.error(
            f"`decay` is for the schedule wsd; {training.schedule} falls from the warm-up to the end", "decay",
            got=training.decay, todo="remove it",
        )  # fmt: skip
    if training.warmup + training.falling > 1:
        raise place.error(
            "warm-up and decay are longer than the run", "decay" if training.decay is not None else "warmup",
            expected="at most 1 together", got=f"{training.warmup} + {training.falling}",
        )  # fmt: skip
    if isinstance(training, Pretrain) and training.tokens < batch * training.length:
        raise place.error(
            "the token budget is smaller than one batch", "tokens",
            expected=f"at least {batch} x {training.length} tokens: {batch * training.length:,}",
            got=f"{training.tokens:,}",
        )  # fmt: skip
    if not isinstance(training, Dpo) and training.heldout is None:
        for key in ("every", "stop"):
            if getattr(training, key, None):
                raise place.error(f"`{key}` without `heldout`", key, todo="add `heldout: {source: NAME}`")


def _check_layers(training: Training, plan: Plan | None, count: int, place: Place) -> None:
    """Raise ConfigError where nothing would train, or a layer is named that the parent does not have."""
    if isinstance(training.train, list):
        for number, layer in enumerate(training.train):
            if layer >= count:
                expected = f"0 to {count - 1}: the parent has {count} layers"
                raise place.error("no such layer", "train", number, expected=expected, got=layer)
    if plan is None:
        return
    if isinstance(training.train, str) and not layers_that_train(plan, training.train):
        lacks = "seams" if training.train == "seams" else "inserted layers"
        raise place.error(f"the parent has no {lacks}", "train", expected="all, or layer numbers", got=training.train)
    multipliers = training.multipliers.normal()
    if not multipliers:
        return
    present = _classes(training.train, plan)
    for key in sorted(multipliers.keys() - present):
        expected = ", ".join(sorted(present))
        raise place.error(f"no layer that trains is of the class `{key}`", "multipliers", key, expected=expected)
    if all(multipliers.get(key) == 0 for key in present):
        raise place.error("nothing would train", "multipliers", expected="one above 0")


def _classes(train: str | list[int], plan: Plan) -> set[str]:
    """The classes of `multipliers` that the tensors which train are of."""
    whole = train in ("all", "new+norms")  # every layer has a norm
    found = classes(plan)
    layers = range(len(found)) if whole else layers_that_train(plan, train)
    return {found[layer] for layer in layers} | ({"rest"} if whole else set())


def _check_recovery(parent: Variant, recovered: Variant, place: Place) -> None:
    name = recovered.name
    if recovered.job.id == parent.job.id:
        raise place.error(
            f"`{name}` is what the training starts from: it would have recovered at step 0", "stop", "recovered",
            todo="name the model that the parent was made from",
        )  # fmt: skip
    if recovered.lineage.tokenizer != parent.lineage.tokenizer:
        raise place.error(
            f"`{name}` has another tokenizer, so that losses per token say nothing", "stop", "recovered",
            expected="a variant of the same base",
        )  # fmt: skip


def _entries(training: Training) -> Iterator[tuple[tuple[str | int, ...], str, float, int | None]]:
    """(entry, source, weight, rows) of each part of the data."""
    if isinstance(training, Pretrain):
        for name, weight in training.data.items():
            yield ("data", name), name, weight, None
    else:
        for number, part in enumerate(training.data):
            is_plain = isinstance(part, str)
            entry = ("data", number) if is_plain else ("data", number, "source")
            yield (
                entry,
                part if isinstance(part, str) else part.source,
                1.0,
                part.rows if isinstance(part, Rows) else None,
            )


def _data(setting: Setting, training: Training, lineage: Lineage, place: Place) -> tuple[list[Job], list[Any]]:
    """The tokens of the training data, and which of them the recipe's `data` names with which share.

    The order of a mapping says nothing, and the recipe has none of it: a mixture is sorted by id.
    """
    parts: list[tuple[Job, float]] = []
    seen: dict[str, str] = {}
    for entry, name, weight, rows in _entries(training):
        source = data_of(setting, name, place, *entry)
        if source.id in setting.tested:
            raise place.error(
                f"`{name}` is what the suite {setting.tested[source.id]} is scored on", *entry,
                todo="train on something else: the scores would say nothing",
            )  # fmt: skip
        if source.id in seen:
            raise place.error("the same data twice", *entry, got=f"{seen[source.id]} and {name}")
        seen[source.id] = name
        parts.append((_tokens(training, lineage, source, rows), weight))
    if not isinstance(training, Pretrain):
        return [job for job, _ in parts], list(range(len(parts)))
    total = sum(weight for _, weight in parts)
    if not total:
        raise place.error("the weights are all 0", "data", expected="a weight above 0")
    parts = sorted(((job, weight) for job, weight in parts if weight), key=lambda part: part[0].id)
    return [job for job, _ in parts], [[i, round(weight / total, 12)] for i, (_, weight) in enumerate(parts)]


def _heldout(setting: Setting, training: Training, heldout: Heldout, lineage: Lineage, place: Place) -> Job:
    """The tokens of the held-out text. A suite's documents may be held out: no step learns from them."""
    source = data_of(setting, heldout.source, place, "heldout", "source")
    if source.id in {setting.sources[name].id for _, name, _, _ in _entries(training)}:
        raise place.error(f"`{heldout.source}` is held out, and trained on", "heldout", "source")
    if source.id in lineage.sources:
        raise place.error(f"`{heldout.source}` is held out, and an ancestor has learnt from it", "heldout", "source")
    return _tokens(training, lineage, source, None)


def _template(training: Training, lineage: Lineage) -> str | None:
    """`own` is the chat template that the parent carries: the one it was tuned with, where it was."""
    if isinstance(training, Pretrain):
        return None
    return lineage.template if training.template == "own" else training.template


def _tokens(training: Training, lineage: Lineage, source: Job, rows: int | None) -> Job:
    parameters: dict[str, Any] = {"format": FORMATS[training.operation]}
    if template := _template(training, lineage):
        parameters["template"] = template
    if rows:
        parameters["rows"] = rows
    return Job(Recipe("tokenize", parameters, (lineage.tokenizer,), (source.id,)))
