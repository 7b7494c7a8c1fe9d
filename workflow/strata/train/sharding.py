"""Sharding: a model spread over the ranks (FSDP2), layer by layer, so that no GPU needs room for all of it.

Only the first rank reads the checkpoint, as it would alone; the others have a layer whole for as long as it takes to
keep a part of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from strata.errors import TrainingError
from strata.loading import empty_model, load_model
from strata.store import Object
from strata.train.parallel import Ranks


def model_of(checkpoint: Object, ranks: Ranks) -> Any:
    """A checkpoint as a float32 model on the CPU; without weights where there are several ranks: `shard` brings them.

    Raises:
        EvaluationError: the model is not the checkpoint.
    """
    return load_model(checkpoint, "float32", "cpu") if ranks.size == 1 else empty_model(checkpoint, "float32")


def shard(model: Any, layers: Sequence[Any], checkpoint: Object, ranks: Ranks) -> None:
    """Spread a checkpoint's model over the ranks, and bring its weights; one rank only moves it to its device.

    Parameters keep the dtype that they have in `model`. Gradients come out as means over the ranks.
    """
    if ranks.size == 1:
        model.to(ranks.device)
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    weights = _weights(load_model(checkpoint, "float32", "cpu")) if ranks.is_first else {}
    names = {tensor: name for name, tensor in _weights(model).items()}
    for unit in (*layers, model):
        for tensor in _fill(unit, names, weights, ranks):
            del names[tensor]  # or, where another unit shares it, it would be two from now on
        fully_shard(unit, mesh=mesh)


def whole(tensor: Any) -> Any:
    """A tensor that may be spread over the ranks, gathered. Every rank must ask for the same ones in the same order."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _weights(model: Any) -> dict[str, Any]:
    """What a model computes with: parameters, and buffers such as the frequencies of rotary positions."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _fill(unit: Any, names: Mapping[Any, str], weights: Mapping[str, Any], ranks: Ranks) -> Iterable[Any]:
    """Put the first rank's weights in place of the empty tensors of a unit, and return those. What modules share stays
    shared.

    Raises:
        TrainingError: a tensor is shared with a unit that has been filled before.
    """
    import torch
    from torch import distributed

    filled: dict[Any, Any] = {}
    for module in unit.modules():
        for key, empty in (*module._parameters.items(), *module._buffers.items()):
            if empty is None or not empty.is_meta:
                continue
            if empty not in filled:
                if empty not in names:
                    raise TrainingError(
                        "a tensor of two layers cannot be spread over processes",
                        where=key,
                        expected="a tensor of one layer",
                        got=type(module).__name__,
                    )
                value = torch.empty(empty.shape, dtype=empty.dtype, device=ranks.device)
                if ranks.is_first:
                    value.copy_(weights[names[empty]].detach())
                distributed.broadcast(value, 0)
                is_parameter = isinstance(empty, torch.nn.Parameter)
                filled[empty] = torch.nn.Parameter(value, empty.requires_grad) if is_parameter else value
            setattr(module, key, filled[empty])
    return filled.keys()
