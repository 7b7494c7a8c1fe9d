"""The config as recipes: every job of the workflow with its id, known before a weight is read.

Pure: no writes, no network, no torch. Snakemake does it again in every job, so it must stay cheap.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from strata import config as schema
from strata import plan as plans
from strata import suite as suites
from strata import surgery
from strata.document import Document, Key
from strata.errors import ConfigError, SourceError
from strata.job import Job
from strata.lineage import Lineage
from strata.merges import merged_variant
from strata.recipe import Recipe
from strata.schema import Device
from strata.screens import ScreenJobs, screened, screened_variant
from strata.setting import Place, Setting
from strata.stages import trained_variant
from strata.tasks import taskfiles
from strata.variant import Variant

LLAMAS = ("llama", "mistral")  # the families that llama.cpp runs as a Llama


@dataclass(frozen=True)
class Experiment:
    """The resolved config. `jobs` holds every artefact by id: two variants with one recipe are one job."""

    device: Device
    suites: tuple[suites.Suite, ...]
    sources: dict[str, Job]
    variants: dict[str, Variant]
    screens: dict[str, ScreenJobs]
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
        raise ConfigError(
            "two suites of one name",
            where=document.where(("suites",)),
            expected="a name of its own for each",
            got=", ".join(names),
        )
    tests: list[Recipe] = []
    fetched = list(sources.values())
    tested: dict[str, str] = {}
    for suite, text in loaded:
        suites.check_code(suite, text, config.task_folders)
        data = {name: fetch_job(source, text, ("sources", name)) for name, source in suite.sources.items()}
        # Task files are another artefact than data of the same bytes: they come from where the config allows.
        used = {
            task.definitions for task in suite.tasks.values() if isinstance(task, suites.Harness) and task.definitions
        }
        code = {name: fetch_job(suite.sources[name], text, ("sources", name), code=True) for name in used}
        fetched += [*data.values(), *code.values()]
        tested |= {job.id: suite.suite for job in data.values()}
        tests += [_test(suite, group, data, code, config.device) for group in suite.groups]
    setting = Setting(config.device, document, sources, tested)
    variants: dict[str, Variant] = {}
    screens: dict[str, ScreenJobs] = {}
    encoded: dict[str, tuple[Job, ...]] = {}
    for name in _parents_first(config, document):
        made = _variant(config, name, setting, variants, screens)
        tokenizer = made.lineage.tokenizer
        if tokenizer not in encoded:
            encoded[tokenizer] = tuple(Job(_encoding(test, tokenizer)) for test in tests)
        encodings = encoded[tokenizer]
        evaluations = tuple(
            Job(_of(test, encoding, made), made.job.shape) for test, encoding in zip(tests, encodings, strict=True)
        )
        made = replace(
            made,
            encodings=encodings,
            evaluations=evaluations,
            publish=config.variants[name].publish or schema.Publish(),
        )
        variants[name] = _with_ggufs(made, config.variants[name].gguf, document)
    variants = {name: variants[name] for name in config.variants}
    _check_places(variants, document)
    screens = {name: _screen(config, name, setting, variants, screens) for name in config.screens}
    made_of = [job for screen in screens.values() for job in screen.jobs]
    every = [*fetched, *made_of, *(job for variant in variants.values() for job in variant.jobs)]
    jobs = {job.id: job for job in every}
    return Experiment(config.device, tuple(s for s, _ in loaded), sources, variants, screens, jobs)


def fetch_job(source: schema.Source, document: Document, key: Key, code: bool = False) -> Job:
    """The job that brings in a source. Its recipe is the pin, so a moved local path keeps its id; that of task files,
    which hold `code`, says so."""
    of_suite = f" --suite {document.marks[()].file}" if "tasks" in document.value else ""
    hub = source if isinstance(source, schema.Repository) else None
    if not (hub.is_pinned if hub else source.sha256):
        raise SourceError(
            f"`{key[-1]}` is not pinned",
            where=document.where(key),
            expected="a revision of 40 hex digits" if hub else "a sha256",
            got=repr(hub.revision) if hub and hub.revision else "none",
            todo=f"run `strata pin{of_suite}`: it fills in what is missing",
        )
    pin = source.model_dump(exclude={"shape", "path", "license"}, exclude_none=True) | (
        {"task_files": True} if code else {}
    )
    location = source.location if isinstance(source, schema.PathSource) else ""
    return Job(Recipe("fetch", pin), source.shape, location)


def _test(suite: suites.Suite, group: str, data: dict[str, Job], code: dict[str, Job], device: str) -> Recipe:
    """The evaluation of one task group, still without a checkpoint."""
    tasks: dict[str, Any] = {}
    for name in suite.groups[group]:
        definition = suite.tasks[name]
        task = {**definition.model_dump(), "source": data[definition.source].id}
        if isinstance(definition, suites.Harness):
            task["lm_eval"] = taskfiles.version()
            if definition.definitions:
                task["definitions"] = code[definition.definitions].id
            else:
                task["definition"] = taskfiles.definition(taskfiles.installed() / definition.folder)
        tasks[name] = task
    parameters = {
        "suite": suite.suite,
        "suite_version": suite.version,
        "group": group,
        "tasks": tasks,
        "numerics": suite.numerics.model_dump(),
        "device": device,
    }
    sources = {task[key] for task in tasks.values() for key in ("source", "definitions") if task.get(key)}
    return Recipe("evaluate", parameters, (), tuple(sorted(sources)))


def _encoding(test: Recipe, tokenizer: str) -> Recipe:
    """What the variants that carry one tokenizer are asked, as tokens."""
    numerics = test.parameters["numerics"]
    parameters = {"tasks": test.parameters["tasks"], **{key: numerics[key] for key in ("seed", "add_bos_token")}}
    return Recipe("encode", parameters, (tokenizer,), test.sources)


def _of(test: Recipe, encoding: Job, variant: Variant) -> Recipe:
    """The evaluation of one variant. What its lineage has learnt is a source, so that overlap can be refused."""
    sources = (*test.sources, encoding.id, *variant.lineage.learnt)
    return Recipe(test.operation, test.parameters, (variant.job.id,), sources)


def _with_ggufs(made: Variant, types: Sequence[str], document: Document) -> Variant:
    """The variant with the jobs of its files for llama.cpp: one is written, the others are made from that one."""
    if not types:
        return made
    place, shape = ("variants", made.name, "gguf"), made.job.model
    if shape.family not in LLAMAS:
        raise ConfigError(
            "no GGUF is written of this family", where=document.where(place), expected=" or ".join(LLAMAS),
            got=shape.family, todo="remove `gguf`",
        )  # fmt: skip
    if len(set(types)) < len(types):
        raise ConfigError("a type twice", where=document.where(place), expected="each once", got=", ".join(types))
    written = Job(Recipe("gguf", {"type": "f16"}, (made.job.id,)), shape)
    jobs = {"f16": written} | {
        kind: Job(Recipe("quantize", {"type": kind}, (made.job.id,), (written.id,)), shape)
        for kind in types
        if kind != "f16"
    }
    return replace(made, conversion=written, ggufs=tuple(jobs[kind] for kind in types))


def _check_places(variants: Mapping[str, Variant], document: Document) -> None:
    """Raise ConfigError for two variants that would be published to one place, or one within the results."""
    taken: dict[tuple[str, str], str] = {}
    for name, variant in variants.items():
        for key in ("directory", "hub"):
            place = getattr(variant.publish, key)
            if place is None:
                continue
            is_folder = key == "directory"
            place = os.path.normpath(Path(place).expanduser().absolute()) if is_folder else place.lower()
            where = document.where(("variants", name, "publish", key))
            if is_folder and Path("results").absolute() in (Path(place), *Path(place).parents):
                raise ConfigError(
                    "a variant is published into the results", where=where, expected="a folder elsewhere", got=place
                )
            if (other := taken.setdefault((key, place), name)) != name:
                raise ConfigError(
                    "two variants are published to one place", where=where, expected="a place of its own for each",
                    got=f"{place}, as of `{other}`",
                )  # fmt: skip


def _waits_for(config: schema.Config, name: str) -> dict[str, Key]:
    """The variants that must be resolved before this one, and where it names them."""
    variant = config.variants[name]
    names: dict[str, Key] = {parent: ("variants", name, "parent") for parent in variant.parent_names}
    if isinstance(variant, schema.MergeVariant) and isinstance(variant.merge, surgery.Screened):
        screen = config.screens.get(variant.merge.screen)
        if screen:  # one that is not there is told when the variant is resolved
            names.setdefault(screen.parent, ("screens", variant.merge.screen, "parent"))
    if isinstance(variant, schema.PretrainVariant) and variant.pretrain.stop:
        names.setdefault(variant.pretrain.stop.recovered, ("variants", name, "pretrain", "stop", "recovered"))
    return names


def _parents_first(config: schema.Config, document: Document) -> list[str]:
    """Variant names, every one after those it waits for. Iterative: a chain of 5,000 variants is no recursion error."""
    order: dict[str, None] = {}
    for start in config.variants:
        stack, path = [(start, iter(_waits_for(config, start).items()))], {start: None}
        while stack:
            name, others = stack[-1]
            other, key = next(((o, key) for o, key in others if o not in order), ("", ()))
            if not other:
                order[name] = None
                path.pop(stack.pop()[0])
            elif other not in config.variants:
                what = f"`{name}` has a parent that does not exist" if key[-1] == "parent" else "no such variant"
                expected = ", ".join(list(config.variants)[:20])
                raise ConfigError(what, where=document.where(key), expected=expected, got=other)
            elif other in path:
                names = list(path)
                raise _cycle(config, document, [*names[names.index(other) :], other])
            else:
                path[other] = None
                stack.append((other, iter(_waits_for(config, other).items())))
    return list(order)


def _cycle(config: schema.Config, document: Document, names: list[str]) -> ConfigError:
    """The error for variants that wait for each other in a circle, told where one names another's loss, if one does."""
    keys = [_waits_for(config, name)[other] for name, other in itertools.pairwise(names)]
    recovery = next((number for number, key in enumerate(keys) if key[-1] == "recovered"), None)
    told = " <- ".join(names)
    if recovery is None:
        where, todo = document.where(("variants", names[0], "parent")), "give one of them another parent"
        return ConfigError(
            f"`{names[0]}` is its own ancestor",
            where=where,
            expected="a parent that is not made from it",
            got=told,
            todo=todo,
        )
    return ConfigError(
        f"`{names[recovery]}` is to get back to the loss of a variant that is made after it",
        where=document.where(keys[recovery]), expected="a variant that is made before it", got=told,
        todo="name one that its parent was made from",
    )  # fmt: skip


def _screen(
    config: schema.Config, name: str, setting: Setting, done: dict[str, Variant], screens: dict[str, ScreenJobs]
) -> ScreenJobs:
    """A screen, resolved once."""
    screen = config.screens[name]
    if name in config.variants:
        expected = "another name: `strata redo` takes both"
        raise Place(setting.document, ("screens", name)).error("a variant is called so", expected=expected, got=name)
    if screen.parent not in done:
        raise Place(setting.document, ("screens", name)).error(
            "no such variant", "parent", expected=", ".join(list(config.variants)[:20]), got=screen.parent
        )
    if name not in screens:
        screens[name] = screened(setting, name, screen, done[screen.parent])
    return screens[name]


def _variant(
    config: schema.Config, name: str, setting: Setting, done: dict[str, Variant], screens: dict[str, ScreenJobs]
) -> Variant:
    """A variant, still without its evaluations."""
    variant = config.variants[name]
    if isinstance(variant, schema.InitVariant):
        return _init(name, variant.init, setting)
    if isinstance(variant, schema.MergeVariant) and isinstance(variant.merge, surgery.Screened):
        if variant.merge.screen not in config.screens:
            place = Place(setting.document, ("variants", name, "merge"))
            raise place.error("no such screen", "screen", expected=", ".join(config.screens), got=variant.merge.screen)
        made = _screen(config, variant.merge.screen, setting, done, screens)
        return screened_variant(setting, name, variant.merge, done[variant.parent_names[0]], made)
    if isinstance(variant, schema.MergeVariant):
        return merged_variant(setting, name, variant, [done[parent] for parent in variant.parent_names])
    stop = variant.pretrain.stop if isinstance(variant, schema.PretrainVariant) else None
    recovered = done[stop.recovered] if stop else None
    return trained_variant(setting, name, variant.training, done[variant.parent], recovered)


def _init(name: str, init: schema.Init, setting: Setting) -> Variant:
    place = Place(setting.document, ("variants", name, "init"))
    source = setting.sources.get(init.source)
    if source is None:
        raise place.error("no such source", "source", expected=", ".join(setting.sources), got=init.source)
    if source.shape is None:
        raise SourceError(
            f"`{init.source}` has no shape",
            where=setting.document.where(("sources", init.source)),
            expected="`shape`, as `strata pin` writes it",
            got="no shape",
            todo="run `strata pin`: it reads the shape from the file",
        )
    family = init.architecture or source.shape.family
    shape = source.shape.model_copy(update={"family": family})
    parameters = {"architecture": family, "shape": source.shape.model_dump(exclude_none=True)}
    job, plan = Job(Recipe("init", parameters, (), (source.id,)), shape), plans.identity(shape.layers)
    return Variant(name, (), job, plan, Lineage(plan, tokenizer=job.id))
