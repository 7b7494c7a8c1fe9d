"""bfloat16 on a CPU that cannot multiply it: what comes of float32 is what bfloat16 comes to."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention
from torch.utils._python_dispatch import TorchDispatchMode

import lessons
from lessons import curve, losses
from models import SMALL, build
from strata.train import bfloat16
from strata.train.batch import Batch
from strata.train.bfloat16 import Widened, widened
from strata.train.objectives import language_loss
from strata.train.operation import train
from strata.train.task import predict

ULP = 2**-8  # the width of bfloat16's last place, relative to the number
A, B, C = torch.randn(3, 6, 40, 40, generator=torch.Generator().manual_seed(1)).bfloat16()
Q, K, V = torch.randn(3, 2, 4, 16, 8, generator=torch.Generator().manual_seed(2)).bfloat16()
CASES: dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]] = {
    "mm": (torch.mm, (A[0], B[0])),
    "addmm": (torch.addmm, (C[0], A[0], B[0])),
    "a linear map": (torch.nn.functional.linear, (A, B[0], C[0, 0])),
    "bmm": (torch.bmm, (A, B)),
    "baddbmm": (torch.baddbmm, (C, A, B)),
    "attention": (lambda *qkv: attention(*qkv, is_causal=True), (Q, K, V)),
    "masked attention": (lambda *qkv: attention(*qkv, attn_mask=torch.ones(16, 16).tril().bool()), (Q, K, V)),
}


def computed(compute: Callable[..., Any], given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """The result and the gradient of each argument."""
    leaves = [tensor.clone().requires_grad_() for tensor in given]
    made = compute(*leaves)
    made.float().square().sum().backward()
    return [made.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("name", CASES)
def test_products_of_bfloat16_are_those_of_float32_rounded_once(name: str) -> None:
    compute, given = CASES[name]
    with Widened():
        ours = computed(compute, given)[0]
    assert torch.equal(ours, compute(*(tensor.float() for tensor in given)).bfloat16())


@pytest.mark.parametrize("name", CASES)
def test_they_and_their_gradients_are_torchs_own_within_rounding(name: str) -> None:
    with Widened():
        ours = computed(*CASES[name])
    for one, other in zip(ours, computed(*CASES[name]), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one.float() - other.float()).abs().max() <= 4 * ULP * other.float().abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_other_dtypes_are_left_alone(name: str, dtype: torch.dtype) -> None:
    compute, given = CASES[name]
    given = tuple(tensor.to(dtype) for tensor in given)
    with Widened():
        ours = computed(compute, given)
    assert all(map(torch.equal, ours, computed(compute, given)))


@pytest.mark.parametrize(
    ("device", "dtype", "can", "expected"),
    [
        ("cpu", "bfloat16", False, Widened),
        ("cpu", "bfloat16", True, nullcontext),
        ("cpu", "float32", False, nullcontext),
        ("cuda", "bfloat16", False, nullcontext),
    ],
)
def test_only_what_a_cpu_cannot_multiply_is_widened(
    monkeypatch: Any, device: str, dtype: str, can: bool, expected: type
) -> None:
    monkeypatch.setattr(bfloat16, "_multiplies", lambda: can)
    assert type(widened(torch.device(device), dtype)) is expected


def test_a_torch_without_onednn_is_one_that_cannot(monkeypatch: Any) -> None:
    """It has no operation that could be asked."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert type(widened(torch.device("cpu"), "bfloat16")) is Widened


PRODUCT = re.compile(r"mm$|mv$|dot$|linear|matmul|einsum|conv|attention")


class Passing(TorchDispatchMode):  # type: ignore[misc]
    """Notes every operation that multiplies tensors of bfloat16 and comes as far as torch's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removesuffix("_backward")
        if PRODUCT.search(name) and any(isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 for x in args):
            self.seen.add(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", SMALL)
def test_no_product_of_any_family_passes_by(family: str, checkpointing: bool) -> None:
    """Of one document a row, and of packed rows, which attention sees a mask for."""
    model = build(family).train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    ids = np.arange(2 * 24).reshape(2, 24) % 200
    apart, packed = np.tile(np.arange(24), (2, 1)), np.tile(np.arange(24) % 10, (2, 1))
    for positions in (apart, packed):
        with Passing() as plain:
            language_loss(*predict(model, Batch(ids, ids, positions, ids.size), "bfloat16")).backward()
        with Passing() as passing, Widened():
            language_loss(*predict(model, Batch(ids, ids, positions, ids.size), "bfloat16")).backward()
        assert "aten::mm" in plain.seen
        assert passing.seen == set()


def counted(monkeypatch: Any) -> list[int]:
    """An entry for each tensor that is widened from now on."""
    found: list[int] = []
    monkeypatch.setattr(bfloat16, "_widen", lambda tensor, widen=bfloat16._widen: found.append(1) or widen(tensor))
    return found


@pytest.mark.usefixtures("one_thread", "held_out_text_may_be_learnt")
def test_training_goes_that_way_where_it_must_and_comes_to_the_same(monkeypatch: Any, tmp_path: Path) -> None:
    """The losses of its steps and on held-out text are those of torch's own products, within bfloat16."""
    runs, count = [], counted(monkeypatch)
    for can in (False, True):
        monkeypatch.setattr(bfloat16, "_multiplies", lambda can=can: can)
        root = tmp_path / str(can) / "results"
        root.parent.mkdir()
        base = lessons.base(root)
        recipe = lessons.pretraining(
            base, lessons.text(root, base), dtype="bfloat16", heldout={"source": 0, "tokens": 256}
        )
        done = train(root, recipe)
        runs.append((losses(done), [point["loss"] for point in curve(done)["heldout"]], len(count)))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=2e-3) and runs[0][1] == pytest.approx(runs[1][1], rel=2e-3)
    assert 0 < runs[0][2] == runs[1][2]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("can", [(False, False), (False, True), (True, False)])
def test_dpo_begins_at_ln_2_from_a_reference_of_either_way(
    monkeypatch: Any, tmp_path: Path, can: tuple[bool, bool]
) -> None:
    """As on a cluster of unlike machines: training refuses a first loss that is too far from it."""
    root, count = tmp_path / "results", counted(monkeypatch)
    base = lessons.base(root)
    data = lessons.preferences(root, base)
    monkeypatch.setattr(bfloat16, "_multiplies", lambda: can[0])
    reference = lessons.reference_of(root, base, data, "bfloat16")
    assert bool(count) != can[0]
    monkeypatch.setattr(bfloat16, "_multiplies", lambda: can[1])
    train(root, lessons.dpo(base, data, reference, dtype="bfloat16"))
