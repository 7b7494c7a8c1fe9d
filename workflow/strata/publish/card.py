"""Card: a variant's model card, written from manifests, recipes and sample logs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from strata import __version__, forecast, outline, status
from strata import config as schema
from strata import plan as plans
from strata.document import Document
from strata.errors import PublishError
from strata.experiment import Experiment
from strata.publish.origin import Base, Stack, bases, own_config, stack, steps
from strata.publish.rebuild import to_mergekit
from strata.recipe import TRAINING
from strata.report.formats import difference, interval, number
from strata.report.model_index import to_eval_results
from strata.report.results import results_of
from strata.report.table import Column, Score, scores_of
from strata.store import Object, require
from strata.variant import Variant

DONE = {"pretrain": "continued pretraining", "sft": "instruction tuning", "dpo": "preference tuning"}
MERGED = {
    "linear": "averaging models",
    "slerp": "interpolating models",
    "prune": "taking out layers",
    "screened": "re-stacking layers, as a screen found best",
}


def card(
    root: Path,
    experiment: Experiment,
    loaded: tuple[schema.Config, Document],
    variant: Variant,
    ggufs: Mapping[str, int],
    place: str,
) -> str:
    """The text of README.md: metadata for the hub, then the card.

    Args:
        loaded: the config of the experiment, and where its values stand.
        ggufs: sizes in bytes of the GGUF files beside it, by name.
        place: where it is loaded from: a repository, or a folder.

    Raises:
        StoreError: an ancestor, a source or an evaluation is missing or damaged.
        EvaluationError: a score that belongs to other weights.
        PublishError: huggingface_hub does not take the card for one.
    """
    config, document = loaded
    found = require(root, variant.job.id)
    origin = bases(root, experiment, config, variant.name)
    columns, scores = scores_of(root, experiment, variant.name)
    line = steps(experiment, variant.name)
    trained = [step for step in line if step.job.recipe.operation in TRAINING]
    is_trained = variant.job.recipe.operation in TRAINING
    own = own_config(experiment, document, variant.name)
    layers = stack(root, experiment, variant.name)
    file, notes = _mergekit(root, experiment, origin, layers)
    told = {
        "name": variant.name,
        "opening": _opening(origin, line, found),
        "facts": found.facts,
        "digest": found.digest,
        "id": found.id,
        "bases": origin,
        "steps": [
            {"name": step.name, "told": status.summary(step), "has_parents": bool(step.parents)} for step in line
        ],
        "layers": list(outline.rows(layers.plan, layers.names)) if layers else [],
        "outside": outline.outside(layers.plan, layers.names) if layers else "",
        "mergekit": yaml.safe_dump(file, sort_keys=False, default_flow_style=None) if isinstance(file, dict) else "",
        "without": file,
        "notes": notes,
        "is_trained": is_trained,
        "trainings": [_training(root, experiment, step) for step in trained],
        "scores": _scores(columns, scores),
        "against": status.base_of(experiment, variant.name) if any(score.delta for score in scores) else "",
        "device": experiment.device,
        "place": place,
        "ggufs": list(ggufs.items()),
        "version": __version__,
        "config": own,
        "local": _local(yaml.safe_load(own)),
    }
    results = to_eval_results(results_of(root, experiment, columns, variant.name, scores))
    text = f"---\n{_metadata(variant, origin, experiment, trained, config, results)}\n---\n\n{_rendered(told)}"
    _check(text, variant.name)
    return text


def _rendered(told: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(  # noqa: S701 - Markdown, in which names and pins of a checked config stand
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "cell": lambda text: str(text).replace("|", "\\|").replace("<", "&lt;"),
        "capitalize_first": lambda text: text[:1].upper() + text[1:],
    }
    return environment.get_template("card.md").render(told)


def _metadata(
    variant: Variant,
    origin: Sequence[Base],
    experiment: Experiment,
    trained: Sequence[Variant],
    config: schema.Config,
    results: Sequence[Any],
) -> str:
    from huggingface_hub import ModelCardData

    licenses = list(dict.fromkeys(base.license for base in origin if base.license))
    is_known = all(base.license for base in origin)
    hubs = [base.hub for base in origin if base.hub]
    sources = [config.sources[name] for step in trained for name in step.learns_from]
    datasets = [source.dataset for source in sources if isinstance(source, schema.DatasetSource)]
    is_merge = variant.job.recipe.operation == "merge"
    deeper = max(base.layers for base in origin) < (variant.job.shape.layers if variant.job.shape else 0)
    tags = ["strata", *["depth-up-scaling"] * deeper, *["merge", "mergekit"] * is_merge]
    values: dict[str, Any] = {
        "model_name": variant.name,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": tags,
        "base_model": hubs,
        "base_model_relation": ("merge" if is_merge else "finetune" if trained else None) if hubs else None,
        "datasets": list(dict.fromkeys(datasets)),
        "eval_results": list(results),
    }
    if is_known and len(licenses) == 1 and licenses != ["other"]:
        values["license"] = licenses[0]
    elif is_known:  # several hold at once, which a list would not say
        values |= {"license": "other", "license_name": "-and-".join(licenses)}
    return str(ModelCardData(**{key: value for key, value in values.items() if value}).to_yaml())


def _check(text: str, name: str) -> None:
    """Raise PublishError unless huggingface_hub reads the card back, with nothing of it left out."""
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(text)
    except (ValueError, KeyError, TypeError) as error:
        raise PublishError(
            "huggingface_hub refuses the card", where=f"the model card of `{name}`", expected="valid metadata",
            got=error, todo="report it, with the config",
        ) from None  # fmt: skip
    if str(read) != text:
        raise PublishError(
            "huggingface_hub reads the card otherwise than it is written", where=f"the model card of `{name}`",
            expected="the same metadata", got="other metadata", todo="report it, with the config",
        )  # fmt: skip


def _opening(origin: Sequence[Base], line: Sequence[Variant], found: Object) -> str:
    names = " and ".join(
        f"[{base.hub}](https://huggingface.co/{base.hub})" if base.hub else base.told for base in origin
    )
    done = dict.fromkeys(_done(step) for step in line if step.parents)
    how = f"made from {names} by {', then '.join(done)}" if done else f"{names} in canonical form"
    return f"A language model of {found.facts['layers']} layers, {how}."


def _scores(columns: Sequence[Column], scores: Sequence[Score]) -> list[dict[str, object]]:
    return [
        {
            "title": column.title,
            "score": number(score.estimate),
            "difference": difference(score),
            "interval": interval(score.delta) if score.delta else "",
            "count": column.items,
        }
        for column, score in zip(columns, scores, strict=True)
    ]


def _local(own: Mapping[str, Any]) -> list[str]:
    """The files and folders that the config of a card names, which whoever uses it must have."""
    suites = [name for name in own.get("suites", ()) if name.endswith((".yaml", ".yml"))]
    paths = [source["path"] for source in own["sources"].values() if "path" in source]
    return [f"`{name}`" for name in dict.fromkeys([*suites, *paths, *own.get("task_folders", ())])]


def _done(step: Variant) -> str:
    """What a step does, in words."""
    recipe = step.job.recipe
    return DONE.get(recipe.operation) or MERGED.get(recipe.parameters["method"], "re-stacking layers")


def _training(root: Path, experiment: Experiment, step: Variant) -> dict[str, Any]:
    """What a training did, beside what it was asked for."""
    facts = require(root, step.job.id).facts["training"]
    asked = [(line[: forecast.WIDTH].strip(), line[forecast.WIDTH :]) for line in forecast.outline(experiment, step)]
    return {"name": step.name, "rows": [*asked, ("done", status.trained(facts))]}


def _mergekit(
    root: Path, experiment: Experiment, origin: Sequence[Base], layers: Stack | None
) -> tuple[dict[str, Any] | str, list[str]]:
    """The mergekit file, or why there is none; and what has to be known of the models that it names."""
    if layers is None:
        return "mergekit has no file for mixes of mixes.", []
    sizes = [require(root, experiment.variants[name].job.id).facts["layers"] for name in layers.names]
    if layers.plan == plans.identity(sizes[0]):
        return f"The layers are those of `{layers.names[0]}`, in their order.", []
    known = {base.name: base for base in origin}
    models, notes = [], []
    for name in layers.names:
        base = known.get(name)
        if base and base.hub:
            models.append(base.told)
        else:
            models.append(name)
            notes.append(f"`{name}` is {base.told if base else 'a checkpoint of the config below'}.")
        if base and base.is_renamed:
            notes.append(f"Here `{name}` has a Llama's config, which mergekit does not write.")
    return to_mergekit(layers.plan, models, sizes, layers.family, layers.dtype), notes
