"""The config as recipes: every job of the workflow with its id, known before a weight is read.

Pure: no writes, no network, no torch. Snakemake does it again in every job, so it must stay cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata import config as schema
from strata import plan as plans
from strata import suite as suites
from strata.document import Document, Key
from strata.errors import ConfigError, PlanError, SourceError
from strata.methods import check_least, make_plan
from strata.plan import Plan
from strata.recipe import Recipe
from strata.schema import Device
from strata.surgery import Calibration, Prune


@dataclass(frozen=True)
class Job:
    """One artefact: its recipe, the size of the model it works on, and for a local source where it lies."""

    recipe: Recipe
    shape: schema.Shape | None = None
    location: str = ""

    @property
    def id(self) -> str:
        return self.recipe.id


@dataclass(frozen=True)
class Variant:
    """A row of the table: its checkpoint, its plan in layers of its parents, and its evaluations.

    The plan is None where an analysis decides it; the checkpoint's manifest has it then.
    """

    name: str
    job: Job
    plan: Plan | None
    parents: tuple[str, ...]
    evaluations: tuple[Job, ...]
    analyses: tuple[Job, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """The resolved config. `jobs` holds every artefact by id: two variants with one recipe are one job."""

    device: Device
    suites: tuple[suites.Suite, ...]
    sources: dict[str, Job]
    variants: dict[str, Variant]
    jobs: dict[str, Job]


def load(files: Sequence[str | Path]) -> Experiment:
    """The experiment that these config files describe.

    Raises:
        ConfigError: see `config.load`; a parent that is missing or its own descendant, a range that does not fit.
        SourceError: an unpinned source.
    """
    config, document = schema.load(files)
    return resolve(config, document)


def resolve(config: schema.Config, document: Document) -> Experiment:
    """`load` for a config that was read already."""
    sources = {name: fetch_job(source, document, ("sources", name)) for name, source in config.sources.items()}
    loaded = [suites.load(name, document.where(("suites",))) for name in config.suites]
    names = [suite.suite for suite, _ in loaded]
    if len(set(names)) != len(names):
        raise ConfigError("two suites of one name", where=document.where(("suites",)), got=", ".join(names))
    tests: list[Recipe] = []
    fetched = list(sources.values())
    for suite, text in loaded:
        data = {name: fetch_job(source, text, ("sources", name)) for name, source in suite.sources.items()}
        fetched += data.values()
        tests += [_test(suite, group, data, config.device) for group in suite.groups]
    variants: dict[str, Variant] = {}
    for name in _parents_first(config, document):
        job, plan, analyses = _checkpoint(config, document, name, sources, variants)
        evaluations = tuple(Job(_of(test, job.id), job.shape) for test in tests)
        variants[name] = Variant(name, job, plan, _parents(config, name), evaluations, analyses)
    variants = {name: variants[name] for name in config.variants}
    every = [*fetched, *(job for v in variants.values() for job in (*v.analyses, v.job, *v.evaluations))]
    return Experiment(config.device, tuple(s for s, _ in loaded), sources, variants, {job.id: job for job in every})


def fetch_job(source: schema.Source, document: Document, key: Key) -> Job:
    """The job that brings in a source. Its recipe is the pin, so a moved local path keeps its id."""
    of_suite = f" --suite {document.marks[()].file}" if "tasks" in document.value else ""
    hub = source if isinstance(source, schema.HubSource) else None
    if not (hub.is_pinned if hub else source.sha256):
        raise SourceError(
            f"`{key[-1]}` is not pinned",
            where=document.where(key),
            expected="a revision of 40 hex digits" if hub else "a sha256",
            got=repr(hub.revision) if hub and hub.revision else "none",
            todo=f"run `strata pin{of_suite}`: it fills in what is missing",
        )
    pin = source.model_dump(exclude={"shape", "path"}, exclude_none=True)
    location = source.location if isinstance(source, schema.PathSource) else ""
    return Job(Recipe("fetch", pin), source.shape, location)


def _test(suite: suites.Suite, group: str, data: dict[str, Job], device: str) -> Recipe:
    """The evaluation of one task group, still without a checkpoint."""
    tasks: dict[str, Any] = {}
    for name in suite.groups[group]:
        task = suite.tasks[name].model_dump()
        tasks[name] = {**task, "source": data[task["source"]].id}
    parameters = {
        "suite": suite.suite,
        "suite_version": suite.version,
        "group": group,
        "tasks": tasks,
        "numerics": suite.numerics.model_dump(),
        "device": device,
    }
    return Recipe("evaluate", parameters, (), tuple(sorted({task["source"] for task in tasks.values()})))


def _of(test: Recipe, checkpoint: str) -> Recipe:
    return Recipe(test.operation, test.parameters, (checkpoint,), test.sources)


def _parents(config: schema.Config, name: str) -> tuple[str, ...]:
    variant = config.variants[name]
    return variant.parent_names if isinstance(variant, schema.MergeVariant) else ()


def _parents_first(config: schema.Config, document: Document) -> list[str]:
    """Variant names, every one after its parents. Iterative: a chain of 5,000 variants is no recursion error."""
    order: dict[str, None] = {}
    for start in config.variants:
        stack, path = [(start, iter(_parents(config, start)))], {start: None}
        while stack:
            name, parents = stack[-1]
            parent = next((p for p in parents if p not in order), None)
            if parent is None:
                order[name] = None
                path.pop(stack.pop()[0])
            elif parent not in config.variants:
                raise ConfigError(
                    f"`{name}` has a parent that does not exist",
                    where=document.where(("variants", name, "parent")),
                    expected=", ".join(list(config.variants)[:20]),
                    got=parent,
                )
            elif parent in path:
                names = list(path)
                cycle = [*names[names.index(parent) :], parent]
                raise ConfigError(
                    f"`{parent}` is its own ancestor",
                    where=document.where(("variants", parent, "parent")),
                    got=" <- ".join(cycle),
                    todo="give one of them another parent",
                )
            else:
                path[parent] = None
                stack.append((parent, iter(_parents(config, parent))))
    return list(order)


def _checkpoint(
    config: schema.Config, document: Document, name: str, sources: dict[str, Job], done: dict[str, Variant]
) -> tuple[Job, Plan | None, tuple[Job, ...]]:
    """A variant's job, its plan where it is known before anything runs, and the analyses it rests on."""
    variant, key = config.variants[name], ("variants", name)
    if isinstance(variant, schema.InitVariant):
        return *_init(variant.init, document, key, sources), ()
    parents = [done[parent].job for parent in variant.parent_names]
    shapes = [_shape(parent) for parent in parents]
    _check_alike(shapes, variant, document.where((*key, "merge")))
    try:
        parameters = variant.merge.normal(variant.parent_names)
        if all(shape.dtype == parameters.get("dtype") for shape in shapes):
            del parameters["dtype"]  # what it would be anyway is no other recipe
        analyses: tuple[Job, ...] = ()
        plan = None
        if isinstance(variant.merge, Prune) and variant.merge.least and variant.merge.calibration:
            check_least(shapes[0].layers, variant.merge.least)
            layers = shapes[0].layers - variant.merge.least
            analyses = (_analysis(variant.merge.calibration, parents[0], config.device, sources, document, key),)
        else:
            plan = make_plan(parameters, [shape.layers for shape in shapes])
            layers = len(plan.layers)
            if len(parents) > 1:  # the only parent is always used; a sweep has thousands
                _check_used(plan, variant.parent_names)
    except PlanError as error:
        raise error.at(document.where((*key, "merge", *error.entry))) from None
    recipe = Recipe("merge", parameters, tuple(job.id for job in parents), tuple(job.id for job in analyses))
    shape = shapes[plan.embed_from.sources[0][0] if plan else 0].deep(layers)
    return Job(recipe, shape.cast(parameters["dtype"]) if "dtype" in parameters else shape), plan, analyses


def _check_used(plan: Plan, names: Sequence[str]) -> None:
    """Raise PlanError for a parent that lends nothing: it would be built, and be part of the recipe, for nothing."""
    used = {parent for layer in (*plan.layers, *plan.outside.values()) for parent, _ in layer.sources}
    idle = [name for number, name in enumerate(names) if number not in used]
    if idle:
        raise PlanError("a parent lends nothing", (), expected="parents that the merge names", got=", ".join(idle))


def _shape(job: Job) -> schema.Shape:
    assert job.shape is not None  # every checkpoint has one: init refuses a source without
    return job.shape


def _check_alike(shapes: Sequence[schema.Shape], variant: schema.MergeVariant, where: str) -> None:
    """Raise ConfigError for parents that cannot be put together, as far as their shapes tell; merge sees the rest."""
    keys = ["family", "vocabulary", "hidden"] + ["dtype"] * (variant.merge.dtype is None)
    is_blend = variant.merge.method in ("linear", "slerp")
    keys += ["layers"] * is_blend + ["parameters"] * (is_blend and all(shape.outside is not None for shape in shapes))
    for key in keys:
        values = [getattr(shape, key) for shape in shapes]
        if len(set(values) - {None}) > 1:
            told = ", ".join(f"{name} {value}" for name, value in zip(variant.parent_names, values, strict=True))
            todo = "say which the result shall have: `dtype: bfloat16`" if key == "dtype" else ""
            raise ConfigError(f"the parents differ in {key}", where=where, expected="one", got=told, todo=todo)


def _analysis(
    calibration: Calibration, parent: Job, device: str, sources: dict[str, Job], document: Document, key: Key
) -> Job:
    """The job that measures the layers of a parent."""
    where = document.where((*key, "merge", "calibration", "source"))
    text = _source(calibration.source, sources, where)
    if text.shape is not None:
        raise ConfigError(f"`{calibration.source}` is a model, not a text", where=where, expected="a source of texts")
    parameters = calibration.model_dump(exclude={"source"}) | {"device": device}
    return Job(Recipe("analyze", parameters, (parent.id,), (text.id,)), parent.shape)


def _source(name: str, sources: dict[str, Job], where: str) -> Job:
    if name not in sources:
        raise ConfigError("no such source", where=where, expected=", ".join(sources), got=name)
    return sources[name]


def _init(init: schema.Init, document: Document, key: Key, sources: dict[str, Job]) -> tuple[Job, Plan]:
    source = _source(init.source, sources, document.where((*key, "init", "source")))
    if source.shape is None:
        raise SourceError(
            f"`{init.source}` has no shape",
            where=document.where(("sources", init.source)),
            todo="run `strata pin`: it reads the shape from the file",
        )
    family = init.architecture or source.shape.family
    shape = source.shape.model_copy(update={"family": family})
    parameters = {"architecture": family, "shape": source.shape.model_dump(exclude_none=True)}
    return Job(Recipe("init", parameters, (), (source.id,)), shape), plans.identity(shape.layers)
