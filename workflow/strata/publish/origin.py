"""Origin: what a variant comes from, as its card tells it: steps, base models and licences, a config of its own."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import yaml

from strata import config as schema
from strata import status, store
from strata.document import Document
from strata.experiment import Experiment
from strata.modelfiles import find_model
from strata.plan import Plan, identity
from strata.publish.rebuild import composed, renumbered
from strata.recipe import TRAINING
from strata.screens import ScreenJobs
from strata.sources import FILES, name_of
from strata.variant import Variant


@dataclass(frozen=True)
class Base:
    """A model that a variant was made from: its name in the config, what it is, where on the hub, and its licence.

    `is_renamed` where it was put under another family's config than its own.
    """

    name: str
    told: str
    pin: str
    hub: str | None
    license: str | None
    layers: int
    is_renamed: bool


@dataclass(frozen=True)
class Stack:
    """The layers of a variant in those of `names`: the nearest ancestors that were not merged.

    `family` and `dtype` are those of the model before it was trained, if it was.
    """

    plan: Plan
    names: tuple[str, ...]
    family: str
    dtype: str


def steps(experiment: Experiment, name: str) -> list[Variant]:
    """A variant and all that it was made from, ancestors first, each once."""
    found: dict[str, Variant] = {}
    waiting = [name]
    while waiting:
        variant = experiment.variants[waiting[-1]]
        unknown = [parent for parent in variant.parents if parent not in found]
        waiting += unknown
        if not unknown:
            found[waiting.pop()] = variant
    return list(found.values())


def bases(root: Path, experiment: Experiment, config: schema.Config, name: str) -> list[Base]:
    """The models that a variant goes back to.

    Raises:
        StoreError: the source of one is missing or damaged.
    """
    found = []
    for variant in steps(experiment, name):
        entry = config.variants[variant.name]
        if not isinstance(entry, schema.InitVariant):
            continue
        source, pin = config.sources[entry.init.source], variant.job.recipe.sources[0]
        parameters = experiment.jobs[pin].recipe.parameters
        held = f"sha256 `{source.sha256}`" if source.sha256 else f"commit `{parameters['revision']}`"
        told = name_of(parameters) or "a local model"
        hub = source.hub if isinstance(source, schema.HubSource) else None
        layers = variant.job.shape.layers if variant.job.shape else 0
        is_renamed = entry.init.architecture not in (None, source.shape.family if source.shape else None)
        found.append(Base(variant.name, told, held, hub, source.license or _said(root, pin), layers, is_renamed))
    return found


def _said(root: Path, id: str) -> str | None:
    """The licence that a GGUF names."""
    model = find_model(store.require(root, id).path / FILES)
    if model is None or model.suffix != ".gguf":
        return None
    from gguf import GGUFReader

    field = GGUFReader(model).fields.get("general.license")
    told = str(field.contents()).lower() if field else ""
    return told if re.fullmatch(schema.LICENSE, told) else None


def stack(root: Path, experiment: Experiment, name: str) -> Stack | None:
    """The layers of a variant, through all merges. None where they are mixes of mixes, which no one plan tells.

    Training keeps every layer in its place: what was trained last stands for what it was trained from.
    """
    variant = experiment.variants[name]
    while variant.job.recipe.operation in TRAINING:
        variant = experiment.variants[variant.parents[0]]
    made: dict[str, Stack | None] = {}
    for step in steps(experiment, variant.name):
        made[step.name] = _stacked(root, step, [made[parent] for parent in step.parents])
    return made[variant.name]


def _stacked(root: Path, step: Variant, parents: Sequence[Stack | None]) -> Stack | None:
    facts = store.require(root, step.job.id).facts
    if step.job.recipe.operation != "merge":
        return Stack(identity(facts["layers"]), (step.name,), facts["family"], facts["dtype"])
    known = [parent for parent in parents if parent]
    if len(known) < len(parents):
        return None
    names = tuple(dict.fromkeys(name for parent in known for name in parent.names))
    places = [{n: names.index(name) for n, name in enumerate(parent.names)} for parent in known]
    plans = [renumbered(parent.plan, place) for parent, place in zip(known, places, strict=True)]
    plan = composed(Plan.from_json(facts["plan"]), plans)
    return Stack(plan, names, facts["family"], facts["dtype"]) if plan else None


def own_config(experiment: Experiment, document: Document, name: str) -> str:
    """A config that makes this variant and scores it, and nothing else: the same recipes, and so the same ids.

    Of the places of local files the names alone are left: a source's sha256 says which it is.
    """
    variant = experiment.variants[name]
    value = copy.deepcopy(document.value)
    names = _needed_names(experiment, variant)
    jobs = {job.id for each in names for job in status.needed(experiment, experiment.variants[each])}
    sources = {key for key, job in experiment.sources.items() if job.id in jobs}
    own: dict[str, Any] = {key: value[key] for key in ("device",) if key in value}
    own |= {key: [_without_place(entry) for entry in value[key]] for key in ("suites", "task_folders") if key in value}
    own["sources"] = {
        key: source | ({"path": _without_place(source["path"])} if "path" in source else {})
        for key, source in value["sources"].items()
        if key in sources
    }
    own["variants"] = {
        key: {word: part for word, part in entry.items() if word != "publish" and (word != "gguf" or key == name)}
        for key, entry in value["variants"].items()
        if key in names
    }
    if screens := {key: screen for key, screen in experiment.screens.items() if screen.job.id in jobs}:
        own["screens"] = {
            key: {word: part for word, part in value["screens"][key].items() if word != "race" or _raced(screen, jobs)}
            for key, screen in screens.items()
        }
    return str(yaml.dump(own, Dumper=_Plain, sort_keys=False, width=110, allow_unicode=True, default_flow_style=None))


def _raced(screen: ScreenJobs, jobs: set[str]) -> bool:
    return any(round.ranking.id in jobs for round in screen.rounds)


class _Plain(yaml.SafeDumper):
    """Writes what is used twice twice, and no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _needed_names(experiment: Experiment, variant: Variant) -> set[str]:
    """The variants whose checkpoints a variant rests on, by name: ancestors, and those whose loss is to be regained."""
    needed = {job.id for job in status.needed(experiment, variant)}
    return {name for name, other in experiment.variants.items() if other.job.id in needed}


def _without_place(path: str) -> str:
    """The last part of a path, which tells nothing of whose machine it was on."""
    return PurePath(path).name
