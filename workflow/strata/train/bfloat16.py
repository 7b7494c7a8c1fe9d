"""bfloat16 on CPUs that cannot multiply it: by way of float32. Needs torch.

oneDNN multiplies matrices of bfloat16 where the CPU has instructions that help it: AVX-512, or Arm's for bfloat16. On
other CPUs torch falls back to a plain loop that is more than ten times slower than float32. Both sum in float32 and
round once, so to widen the factors, multiply and round differs from them by the order of the sum; attention besides
keeps its probabilities unrounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
# What linear maps, einsum and attention of other kinds are made of by the time that autograd is through with them.
MULTIPLYING = frozenset({
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    ATTENTION,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
})  # fmt: skip


def widened(device: torch.device, dtype: str) -> AbstractContextManager[object]:
    """Inside, what computes in `dtype` multiplies by way of float32, where the device needs that for bfloat16.

    Forwards and backwards; not within torch.inference_mode, where a linear map comes whole.
    """
    needed = device.type == "cpu" and dtype == "bfloat16" and not _multiplies()
    return Widened() if needed else nullcontext()


def _multiplies() -> bool:
    """Whether torch multiplies matrices of bfloat16 by oneDNN on this CPU, and not by its loop."""
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Widened(TorchDispatchMode):  # type: ignore[misc]
    """Computes products of bfloat16 tensors in float32; their results are bfloat16, and all else is left alone."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        assert not torch.is_inference_mode_enabled(), "products would pass by unseen"
        kwargs = kwargs or {}
        if func not in MULTIPLYING or args[0].dtype != torch.bfloat16:
            return func(*args, **kwargs)
        args, kwargs = tree_map_only(torch.Tensor, _widen, (args, kwargs))
        made = func(*args, **kwargs)
        if func == ATTENTION:
            return made[0].bfloat16(), *made[1:]  # the logarithms of its sums are float32 always
        return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, made)


def _widen(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
