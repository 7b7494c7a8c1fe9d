"""bfloat16 on CPUs that cannot multiply it: the products are of float32, and rounded. Needs torch.

oneDNN multiplies matrices of bfloat16 on CPUs with AVX-512; on others torch falls back to a plain loop that is more
than ten times slower than float32. Either sums in float32 and rounds once, so to widen the factors, multiply and round
differs from them by the order of the sum alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
MULTIPLYING = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    ATTENTION,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}


def products(device: torch.device) -> AbstractContextManager[object]:
    """Inside, on a CPU that cannot, bfloat16 is multiplied by way of float32, forwards and backwards.

    Not within torch.inference_mode, where a linear map comes whole and not as the product it is made of.
    """
    return Widened() if device.type == "cpu" and not _multiplies() else nullcontext()


def _multiplies() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Widened(TorchDispatchMode):  # type: ignore[misc]
    """Computes products of bfloat16 tensors in float32; their results are bfloat16, and all else is left alone."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
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
