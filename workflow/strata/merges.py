"""Merges as jobs: what a variant's merge makes of its parents' layers, as far as it is known before a weight is read.

Pure, as `experiment` is.
"""

from __future__ import annotations

from collections.abc import Sequence

from strata import config as schema
from strata.document import Key
from strata.errors import ConfigError, PlanError
from strata.job import Job
from strata.lineage import merged
from strata.methods import check_least, make_plan
from strata.plan import Plan
from strata.recipe import Recipe
from strata.setting import Place, Setting, data_of
from strata.surgery import Calibration, Prune
from strata.variant import Variant


def merged_variant(setting: Setting, name: str, variant: schema.MergeVariant, parents: Sequence[Variant]) -> Variant:
    """A variant that is merged of these parents, by a plan that an analysis may have to decide.

    Raises:
        ConfigError: parents that do not fit together, a parameter that does not fit them, a text that is none.
    """
    document, key, jobs = setting.document, ("variants", name), [parent.job for parent in parents]
    shapes = [job.model for job in jobs]
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
            analyses = (_analysis(variant.merge.calibration, jobs[0], setting, key),)
        else:
            plan = make_plan(parameters, [shape.layers for shape in shapes])
            layers = len(plan.layers)
            if len(parents) > 1:  # the only parent is always used; a sweep has thousands
                _check_used(plan, variant.parent_names)
    except PlanError as error:
        raise error.at(document.where((*key, "merge", *error.entry))) from None
    recipe = Recipe("merge", parameters, tuple(job.id for job in jobs), tuple(job.id for job in analyses))
    shape = shapes[plan.embed_from.sources[0][0] if plan else 0].deep(layers)
    job = Job(recipe, shape.cast(parameters["dtype"]) if "dtype" in parameters else shape)
    lineage = merged(plan, [parent.lineage for parent in parents])
    return Variant(name, variant.parent_names, job, plan, lineage, analyses)


def _check_used(plan: Plan, names: Sequence[str]) -> None:
    """Raise PlanError for a parent that lends nothing: it would be built, and be part of the recipe, for nothing."""
    used = {parent for layer in (*plan.layers, *plan.outside.values()) for parent, _ in layer.sources}
    idle = [name for number, name in enumerate(names) if number not in used]
    if idle:
        raise PlanError("a parent lends nothing", (), expected="parents that the merge names", got=", ".join(idle))


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


def _analysis(calibration: Calibration, parent: Job, setting: Setting, key: Key) -> Job:
    """The job that measures the layers of a parent."""
    place = Place(setting.document, (*key, "merge", "calibration"))
    text = data_of(setting, calibration.source, place, "source")
    parameters = calibration.model_dump(exclude={"source"}) | {"device": setting.device}
    return Job(Recipe("analyze", parameters, (parent.id,), (text.id,)), parent.shape)
