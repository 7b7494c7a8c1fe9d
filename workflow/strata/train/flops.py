"""Operations of training, counted for the layers that train, and the share of a GPU's peak that a run reaches (MFU).

    per token = 2 F + 2 D + 2 W + attention

F: parameters of all matrices that a token goes through (layers and head; of experts those that are chosen). D: those
from the lowest layer that trains upwards, through which gradients flow. W: those that train. Attention is 4 T Q for
each layer forward, twice that for each layer that gradients flow through, halved because it is causal; T the length of
a sample, Q the width of all heads (Kaplan et al., arXiv 2001.08361, section 2.1, told apart by what trains). For a run
that trains everything this is 6 N + 6 L T Q.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from typing import Any

from strata import families

# Dense bfloat16 operations per second, by a part of the device's name (NVIDIA's data sheets, SXM).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


def operations(config: Mapping[str, Any], learnt: Set[str], length: int) -> float:
    """Floating point operations of training on one token, where these tensors train."""
    family, layers = families.family_of(config), families.depth(config)
    chosen = config.get("num_experts_per_tok") or 1
    matrices: dict[int, float] = {}  # by layer; the head is one above the last
    trained = 0.0
    lowest = layers if learnt else layers + 1
    width = 0
    for name, shape in families.each_tensor(config):
        number, suffix = families.split_name(name)
        part = families.part_of(family, name)
        if number is not None:
            place = number
        elif part == "head" or (part == "embed" and families.tied(config) and name == family.embed[0]):
            place = layers
        else:
            place = -1  # looked up, not multiplied
        if name in learnt:
            lowest = min(lowest, 0 if part == "embed" else place if place >= 0 else layers)
        if len(shape) < 2 or place < 0:
            continue
        count = float(math.prod(shape)) * (chosen / _experts(config) if ".experts." in suffix else 1)
        matrices[place] = matrices.get(place, 0.0) + count
        trained += count * (name in learnt)
        if number == 0 and suffix.endswith(("o_proj.weight", "attn.c_proj.weight")):
            width = shape[0] if family.layers == "transformer.h" else shape[1]
    flowing = sum(count for place, count in matrices.items() if place >= lowest)
    attention = 4 * length * width / 2
    return 2 * (sum(matrices.values()) + flowing + trained) + attention * (layers + 2 * max(0, layers - lowest))


def _experts(config: Mapping[str, Any]) -> int:
    return int(config.get("num_local_experts") or config.get("num_experts") or 1)


def peak(device: Any) -> float | None:
    """The peak of a GPU that is in the table; None for any other device."""
    if device.type != "cuda":
        return None
    import torch

    name = torch.cuda.get_device_name(device)
    return next((rate for part, rate in PEAKS.items() if part in name), None)
