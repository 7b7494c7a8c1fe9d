"""Links: the human names of checkpoints. A rename runs this and the report, nothing else."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from strata import store
from strata.experiment import Experiment

FOLDER = "variants"


def link_all(root: Path, experiment: Experiment) -> dict[str, str]:
    """Make `variants/<name>` point at each variant's checkpoint and drop names that are gone. Returns name -> id."""
    names = {name: variant.job.id for name, variant in experiment.variants.items()}
    for name, id in names.items():
        _link(root, name, id)
    for path in (root / FOLDER).iterdir():
        name = path.name.removesuffix(".json")
        if (path.is_symlink() and path.name not in names) or (path.suffix == ".json" and name not in names):
            path.unlink()
    store.write_atomically(root / "links.json", store.encode(names))
    return names


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
    store.write_atomically(root / FOLDER / f"{name}.json", store.encode(summary))
    return summary


def _link(root: Path, name: str, id: str) -> None:
    """Point a name at a checkpoint by a relative link, replaced in one rename."""
    link, aim = root / FOLDER / name, str(Path("..", store.target(Path(), id).with_suffix("")))
    if link.is_symlink() and os.readlink(link) == aim:
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    scratch = link.with_name(f".{name}.{secrets.token_hex(4)}")
    scratch.symlink_to(aim)
    scratch.replace(link)
