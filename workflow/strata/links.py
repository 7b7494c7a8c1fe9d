"""Links: the human names of checkpoints. A rename runs this and the report, nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from strata import store
from strata.disk import write_atomically
from strata.errors import StoreError
from strata.experiment import Experiment
from strata.scratch import scratch_file

FOLDER = "variants"
DONE = f"{FOLDER}/.links.json"  # name -> id, written when all links stand; it goes when the folder goes


def link_all(root: Path, experiment: Experiment) -> dict[str, str]:
    """Make `variants/<name>` point at each variant's checkpoint and drop names that are gone. Returns name -> id."""
    names = {name: variant.job.id for name, variant in experiment.variants.items()}
    for name, id in names.items():
        _link(root, name, id)
    for path in (root / FOLDER).iterdir():
        name = path.name.removesuffix(".json")
        if (path.is_symlink() and path.name not in names and not name.startswith(".")) or (
            path.suffix == ".json" and _is_stale(path, experiment, name)
        ):
            path.unlink()
    write_atomically(root / DONE, store.encode(names))
    return names


def _is_stale(file: Path, experiment: Experiment, name: str) -> bool:
    """Whether a variant's summary is of another checkpoint or other evaluations than the config's."""
    if name not in experiment.variants:
        return not file.name.startswith(".")
    summary, variant = json.loads(file.read_bytes()), experiment.variants[name]
    made = (summary["checkpoint"], summary["evaluations"])
    return made != (variant.job.id, [job.id for job in variant.evaluations])


def link_one(root: Path, experiment: Experiment, name: str) -> dict[str, Any]:
    """Link one variant and write `variants/<name>.json`: its checkpoint and its scores."""
    variant = experiment.variants[name]
    checkpoint = store.require(root, variant.job.id)
    _link(root, name, checkpoint.id)
    scores: dict[str, Any] = {}
    for job in variant.evaluations:
        facts = store.require(root, job.id).facts
        scores |= {f"{job.recipe.parameters['suite']}/{task}": score for task, score in facts["scores"].items()}
    summary = {
        "variant": name,
        "checkpoint": checkpoint.id,
        "digest": checkpoint.digest,
        "evaluations": [job.id for job in variant.evaluations],
        "scores": scores,
    }
    write_atomically(root / FOLDER / f"{name}.json", store.encode(summary))
    return summary


def _link(root: Path, name: str, id: str) -> None:
    """Point a name at a checkpoint by a relative link, replaced in one rename."""
    link, aim = root / FOLDER / name, str(Path("..", store.target(Path(), id).with_suffix("")))
    if link.is_symlink() and os.readlink(link) == aim:
        return
    if link.is_dir() and not link.is_symlink():
        raise StoreError(
            "a folder stands where a variant's link belongs",
            where=link,
            expected="a link, or nothing",
            got="a folder",
            todo="move it away",
        )
    link.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_file(link)
    scratch.symlink_to(aim)
    scratch.replace(link)
