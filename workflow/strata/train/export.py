"""Export: a trained model as the files of a canonical checkpoint. What did not train is the parent's, bit for bit.

A shard of which nothing trained is the parent's file; in the others, what is frozen is copied from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata import plan
from strata.checkpoint import DTYPES, Checkpoint, check_exact, write_shard
from strata.errors import TrainingError
from strata.recipe import digest
from strata.restack import Draft, draft, write
from strata.tensors import Header, copy_range, write_at
from strata.train.learner import Learner
from strata.train.parallel import Ranks, whole


def plan_export(opened: Checkpoint, learner: Learner, dtype: str | None) -> Draft:
    """The files that the run will write, held against the config and the model before the first step.

    Raises:
        CheckpointError: they would not be exactly what the config asks for.
        TrainingError: the model's parameters are not the checkpoint's tensors.
    """
    made = draft(plan.identity(opened.layers), [opened], dtype)
    planned = {tensor.name: tensor.spec for header in made.shards.values() for tensor in header.tensors}
    check_exact(made.config, planned, opened.path)
    held = [name for names in learner.stored.values() for name in names]
    if sorted(held) != sorted(planned):
        raise TrainingError(
            "the model's parameters are not the checkpoint's tensors",
            where=opened.path,
            expected=f"{len(planned)} tensors",
            got=", ".join(sorted(set(held) ^ set(planned))[:5]),
        )
    return made


def export(folder: Path | None, made: Draft, learner: Learner, ranks: Ranks) -> dict[str, str]:
    """Write the files of a trained model. Returns each tensor's sha256.

    Every rank calls it; the first has the `folder` and writes.

    Raises:
        TrainingError: a trained tensor is not finite in the dtype that it is stored in.
    """
    sha256: dict[str, str] = {}
    if folder is not None:
        idle = [file for file, header in made.shards.items() if not _trained(header, learner)]
        sha256 |= write(folder, made, "export", files=idle)[0]
    for file, header in made.shards.items():
        if not _trained(header, learner):
            continue
        values: dict[str, Any] = {}
        changed = _changed(header, made, learner)
        for name, parameter in learner.parameters.items():
            if learner.stored[name][0] in changed:
                full = whole(parameter.detach())
                if folder is not None:
                    values |= _bytes(learner, name, full, header)
        if folder is not None:
            sha256 |= _write(folder / file, header, values, made)
    return sha256


def _trained(header: Header, learner: Learner) -> bool:
    return any(tensor.name in learner.learnt for tensor in header.tensors)


def _changed(header: Header, made: Draft, learner: Learner) -> set[str]:
    """The tensors of a file that are written from the model: those that trained, and all where the dtype changes."""
    before = made.parents[0].tensors
    return {t.name for t in header.tensors if t.name in learner.learnt or t.dtype != before[t.name].tensor.dtype}


def _bytes(learner: Learner, name: str, parameter: Any, header: Header) -> dict[str, Any]:
    """What a file holds of a parameter: its bytes by tensor, in the dtype of the file."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in header.tensors}
    found = {}
    for tensor, value in revert_weight_conversion(learner.model, {name: parameter.cpu()}).items():
        value = value.to(getattr(torch, dtypes[tensor])).contiguous()
        if not value.isfinite().all():
            raise TrainingError(
                "a trained weight is not finite", where=tensor, expected=f"numbers of {dtypes[tensor]}",
                todo="lower the learning rate",
            )  # fmt: skip
        found[tensor] = value.view(torch.uint8).numpy()
    return found


def _write(file: Path, header: Header, values: Mapping[str, Any], made: Draft) -> dict[str, str]:
    """Write one shard: trained tensors from their values, frozen ones from the parent. Returns each one's sha256."""
    (parent,) = made.parents
    sha256: dict[str, str] = {}

    def fill(handle: int) -> None:
        for tensor in header.tensors:
            if tensor.name in values:
                write_at(handle, values[tensor.name], tensor.begin)
                sha256[tensor.name] = digest(values[tensor.name])
            else:
                stored = parent.tensors[tensor.name]
                with (parent.path / stored.file).open("rb") as stream:
                    copy_range(stream.fileno(), stored.tensor.begin, stored.tensor.end, handle, tensor.begin)
                sha256[tensor.name] = stored.sha256

    write_shard(file, header, fill)
    return sha256
