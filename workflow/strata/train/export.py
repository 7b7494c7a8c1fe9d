"""Export: a trained model as the files of a canonical checkpoint. What did not train is the parent's, bit for bit.

A shard of which nothing trained is the parent's file; in the others, what is frozen is copied from it. What a narrow
dtype rounds off of the masters is measured: a weight that moved by less than the dtype can tell is the parent's again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata import plan
from strata.checkpoint import DTYPES, Checkpoint, check_exact, write_shard
from strata.errors import TrainingError
from strata.recipe import digest
from strata.restack import Draft, draft, write
from strata.tensors import Header, copy_range, write_at
from strata.train.learner import Learner
from strata.train.sharding import whole


@dataclass
class Update:
    """What training changed: sums of squares, over the tensors that trained, of its move and of what rounding took."""

    moved: float = 0.0
    lost: float = 0.0

    @property
    def rounded(self) -> float:
        """The norm of what rounding took over the norm of the move: 0 keeps all, 1 brings the parent back.

        Never over 1 where the parent has the same dtype: its weight is a candidate for the nearest one.
        """
        return math.sqrt(self.lost / self.moved) if self.moved else 0.0


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


def export(folder: Path | None, made: Draft, learner: Learner) -> tuple[dict[str, str], Update]:
    """Write the files of a trained model. Returns each tensor's sha256, and what became of the update.

    Every rank calls it; the first has the `folder` and writes.

    Raises:
        TrainingError: a trained tensor is not finite in the dtype that it is stored in.
    """
    sha256: dict[str, str] = {}
    update = Update()
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
                    values |= _bytes(learner, name, full, made.parents[0], header, update)
        if folder is not None:
            sha256 |= _write(folder / file, header, values, made)
    return sha256, update


def _trained(header: Header, learner: Learner) -> bool:
    return any(tensor.name in learner.learnt for tensor in header.tensors)


def _changed(header: Header, made: Draft, learner: Learner) -> set[str]:
    """The tensors of a file that are written from the model: those that trained, and all where the dtype changes."""
    before = made.parents[0].tensors
    return {t.name for t in header.tensors if t.name in learner.learnt or t.dtype != before[t.name].tensor.dtype}


def _bytes(
    learner: Learner, name: str, parameter: Any, parent: Checkpoint, header: Header, update: Update
) -> dict[str, Any]:
    """What a file holds of a parameter: its bytes by tensor, in the dtype of the file. Adds to the `update`."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    dtypes = {tensor.name: DTYPES[tensor.dtype] for tensor in header.tensors}
    found = {}
    for tensor, master in revert_weight_conversion(learner.model, {name: parameter.cpu()}).items():
        value = master.to(getattr(torch, dtypes[tensor])).contiguous()
        if not value.isfinite().all():
            raise TrainingError(
                "a trained weight is not finite", where=tensor, expected=f"numbers of {dtypes[tensor]}",
                got="NaN or infinity",
                todo="lower the learning rate",
            )  # fmt: skip
        if tensor in learner.learnt:
            update.moved += _distance(master, _read(parent, tensor))
            update.lost += _distance(master, value)
        found[tensor] = value.view(torch.uint8).numpy()
    return found


def _distance(master: Any, other: Any) -> float:
    """The squared norm of a difference."""
    import torch

    return float(torch.linalg.vector_norm(master - other.to(master.dtype), dtype=torch.float64)) ** 2


def _read(parent: Checkpoint, name: str) -> Any:
    """A stored tensor."""
    import torch

    stored = parent.tensors[name]
    with (parent.path / stored.file).open("rb") as stream:
        stream.seek(stored.tensor.begin)
        data = bytearray(stream.read(stored.tensor.end - stored.tensor.begin))
    dtype = getattr(torch, DTYPES[stored.tensor.dtype])
    return torch.frombuffer(data, dtype=dtype).reshape(stored.tensor.shape)


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
