"""Arithmetic merges, a chunk at a time: weighted sums and spherical interpolation of stored tensors, with torch.

Sums are taken in float32, in float64 where float32 goes in or comes out, and rounded once. Memory is a few chunks,
whatever the size of the tensors.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from strata.errors import CheckpointError
from strata.tensors import Tensor

CHUNK = 1 << 20  # elements
COLLINEAR = 0.9995  # |cosine| above which SLERP is a weighted sum, as everywhere in the field
_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}

torch.set_num_threads(1)  # shards are written in parallel


def combine(
    transform: str,
    weights: Sequence[float],
    sources: Sequence[tuple[Path, Tensor]],
    target: Tensor,
    errors: list[float],
) -> Iterator[bytes]:
    """The bytes of `target`: `linear` or `slerp` of the sources, in chunks.

    Where one source only changes its dtype, the largest relative error of that is added to `errors`.

    Raises:
        CheckpointError: the result is not finite in the target's dtype.
    """
    work = torch.float64 if "F32" in (target.dtype, *(tensor.dtype for _, tensor in sources)) else torch.float32
    with ExitStack() as stack:
        files = [(stack.enter_context(file.open("rb")).fileno(), tensor) for file, tensor in sources]
        count = math.prod(target.shape)
        coefficients = tuple(weights)
        if transform == "slerp":
            coefficients = slerp_coefficients(_gram(files, count), weights)
        is_cast = len(files) == 1 and coefficients == (1.0,)
        for begin in range(0, count, CHUNK):
            total: Any = None
            for (handle, tensor), coefficient in zip(files, coefficients, strict=True):
                values = _read(handle, tensor, begin, count).to(work)
                total = values.mul_(coefficient) if total is None else total.add_(values, alpha=coefficient)
            result = total.to(_TYPES[target.dtype])
            if not bool(torch.isfinite(result).all()):
                whole = bool(torch.isfinite(total).all())
                raise CheckpointError(
                    "the result is not finite",
                    where=f"tensor {target.name}",
                    expected=f"numbers that {target.dtype} can hold" if whole else "sources without NaN or infinity",
                    got="NaN or infinity",
                    todo="choose a `dtype` with a larger range: bfloat16 or float32" if whole else "mend the model",
                )
            if is_cast:
                errors.append(float(((result.to(work) - total).abs() / total.abs().clamp_min(1e-45)).max()))
            yield result.view(torch.uint8).numpy().tobytes()


def slerp_coefficients(gram: Sequence[Sequence[float]], weights: Sequence[float]) -> tuple[float, ...]:
    """The factors of each tensor in their spherical interpolation, from all their scalar products `gram`.

    Of two, with t = weights[1] / (weights[0] + weights[1]) and the angle o between them: sin((1-t) o) / sin o and
    sin(t o) / sin o (Shoemake 1985), applied to the tensors as they are, not to their directions; 1-t and t where they
    are collinear or one is zero. Of more, each next one is interpolated with the result so far, which is a sum of the
    tensors before it, so that scalar products are all it takes.
    """
    factors = [1.0]
    total = weights[0]
    for new in range(1, len(weights)):
        total += weights[new]
        t = weights[new] / total if total else 0.0
        known = range(len(factors))
        norm = math.sqrt(max(sum(factors[i] * factors[j] * gram[i][j] for i in known for j in known), 0.0))
        other = math.sqrt(gram[new][new])
        product = sum(factors[i] * gram[i][new] for i in known)
        cosine = product / (norm * other) if norm * other else 1.0
        if abs(cosine) > COLLINEAR:
            below, above = 1 - t, t
        else:
            angle = math.acos(cosine)
            below, above = math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)
        factors = [below * factor for factor in factors] + [above]
    return tuple(factors)


def _gram(files: Sequence[tuple[int, Tensor]], count: int) -> list[list[float]]:
    """All scalar products, summed in float64."""
    gram = [[0.0] * len(files) for _ in files]
    for begin in range(0, count, CHUNK):
        values = [_read(handle, tensor, begin, count).to(torch.float64) for handle, tensor in files]
        for i, left in enumerate(values):
            for j, right in enumerate(values[: i + 1]):
                gram[i][j] += float(torch.dot(left, right))
    for i in range(len(files)):
        for j in range(i):
            gram[j][i] = gram[i][j]
    return gram


def _read(handle: int, tensor: Tensor, begin: int, count: int) -> Any:
    """Elements [begin, begin + CHUNK) of a stored tensor, as a flat torch tensor."""
    dtype = _TYPES[tensor.dtype]
    wanted = min(CHUNK, count - begin) * dtype.itemsize
    buffer = bytearray(wanted)
    found = os.preadv(handle, [buffer], tensor.begin + begin * dtype.itemsize)
    if found != wanted:
        raise CheckpointError(
            "the file ended early", where=f"tensor {tensor.name}", expected=f"{wanted} bytes", got=found
        )
    return torch.frombuffer(buffer, dtype=dtype)
