"""Redo: what is put away to be built again, and brought back when that fails."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

from strata import links, store
from strata.errors import StoreError
from strata.experiment import Experiment
from strata.job import Job
from strata.recipe import kind_of
from strata.status import variant_of
from strata.store import Object
from strata.train.state import home
from strata.variant import Variant


def results_of(variant: Variant) -> tuple[Job, ...]:
    """What is the variant's own, and built again when it is: its checkpoint, then what is made from that."""
    conversion = (variant.conversion,) if variant.conversion else ()
    return tuple(dict.fromkeys((variant.job, *variant.evaluations, *conversion, *variant.ggufs)))


def jobs_of(root: Path, experiment: Experiment, name: str) -> tuple[Job, ...]:
    """What is built again for a variant or a screen: what is its own, behind what is outdated of what it waits for.

    Raises:
        UsageError: there is neither of this name.
    """
    if name in experiment.screens:
        return tuple(job for job in experiment.screens[name].jobs if kind_of(job.id) != "tokens")
    variant = variant_of(experiment, name)
    return (*outdated(root, variant), *results_of(variant))


def goals_of(root: Path, experiment: Experiment, name: str) -> list[str]:
    """The files that snakemake is asked for, to have it again."""
    if name in experiment.screens:
        return [str(store.target(root, job.id)) for job in experiment.screens[name].rankings]
    return [str(root / links.FOLDER / f"{name}.json")]


def outdated(root: Path, variant: Variant) -> list[Job]:
    """What a variant waits for that was made of other content than is there now, and what follows from that."""
    found: dict[str, Job] = {}
    for job in variant.preparations:
        try:
            made = store.find(root, job.id)
            is_old = made is not None and (bool(found.keys() & _inputs(job)) or _is_of_others(root, made))
        except StoreError:
            continue  # what is damaged is built again anyway
        if is_old:
            found[job.id] = job
    return list(found.values())


def _inputs(job: Job) -> set[str]:
    return {*job.recipe.parents, *job.recipe.sources}


def _is_of_others(root: Path, made: Object) -> bool:
    """That something was made of other content than is there now."""
    made_from = dict(made.facts.get("made_from", {}))
    if kind_of(made.id) in ("analyses", "references"):
        made_from[made.recipe.parents[0]] = made.facts["checkpoint_digest"]
    there = {id: store.find(root, id) for id in made_from}
    return any(now is not None and now.digest != made_from[id] for id, now in there.items())


def reject(root: Path, experiment: Experiment, name: str, reason: str) -> dict[str, tuple[Path, str]]:
    """Move what is built again to quarantine, and the state of training.

    Returns id -> (where it went, content digest) of those that were whole.
    """
    moved = {}
    for job in jobs_of(root, experiment, name):
        try:
            found = store.find(root, job.id)
        except StoreError:
            found = None
        place = store.reject(root, job.id, reason)
        if place and found:
            moved[job.id] = (place, found.digest)
        state = home(root, job.id)
        if state.exists():
            place = root / "quarantine" / f"training-{job.id}.{secrets.token_hex(4)}"
            place.parent.mkdir(parents=True, exist_ok=True)
            state.rename(place)
    if name in experiment.variants:
        (root / links.FOLDER / f"{name}.json").unlink(missing_ok=True)
    return moved


def restore(root: Path, moved: Mapping[str, tuple[Path, str]]) -> list[str]:
    """Bring back what `reject` has moved away, up to what was built anew meanwhile with other content: what
    follows was made from the old. Returns what is as it was before."""
    back = []
    for id, (place, digest) in moved.items():
        anew = store.find(root, id)
        if anew is None:
            store.restore(root, id, place)
        elif anew.digest != digest:
            break
        back.append(id)
    return back
