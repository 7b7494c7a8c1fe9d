"""bfloat16 on a CPU that cannot multiply it: what comes of float32 is what bfloat16 comes to."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

import lessons
from lessons import curve, losses
from strata.train import bfloat16
from strata.train.bfloat16 import Widened, products
from strata.train.operation import train

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
    ("device", "can", "expected"),
    [("cpu", True, nullcontext), ("cpu", False, Widened), ("cuda", False, nullcontext)],
)
def test_only_a_cpu_that_cannot_multiply_is_helped(monkeypatch: Any, device: str, can: bool, expected: type) -> None:
    monkeypatch.setattr(bfloat16, "_multiplies", lambda: can)
    assert type(products(torch.device(device))) is expected


@pytest.mark.usefixtures("one_thread", "held_out_text_may_be_learnt")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_and_measuring_go_that_way_where_they_must(
    monkeypatch: Any, tmp_path: Path, checkpointing: bool
) -> None:
    """With it the losses are those without, within bfloat16; the products of every step and measurement are widened."""
    runs, widened = [], []
    monkeypatch.setattr(bfloat16, "_widen", lambda tensor, widen=bfloat16._widen: widened.append(1) or widen(tensor))
    for can in (False, True):
        monkeypatch.setattr(bfloat16, "_multiplies", lambda can=can: can)
        root = tmp_path / str(can) / "results"
        root.parent.mkdir()
        base = lessons.base(root)
        data = lessons.text(root, base)
        recipe = lessons.pretraining(
            base, data, dtype="bfloat16", heldout={"source": 0, "tokens": 256}, activation_checkpointing=checkpointing
        )
        done = train(root, recipe)
        runs.append((losses(done), [point["loss"] for point in curve(done)["heldout"]], len(widened)))
    assert runs[0][0] == pytest.approx(runs[1][0], rel=2e-3) and runs[0][1] == pytest.approx(runs[1][1], rel=2e-3)
    assert 0 < runs[0][2] == runs[1][2]


@pytest.mark.usefixtures("one_thread")
def test_so_does_a_reference(monkeypatch: Any, tmp_path: Path) -> None:
    """And DPO begins at ln 2 from it, or training would refuse it."""
    monkeypatch.setattr(bfloat16, "_multiplies", lambda: False)
    widened: list[int] = []
    monkeypatch.setattr(bfloat16, "_widen", lambda tensor, widen=bfloat16._widen: widened.append(1) or widen(tensor))
    root = tmp_path / "results"
    base = lessons.base(root)
    data = lessons.preferences(root, base)
    reference = lessons.reference_of(root, base, data, "bfloat16")
    assert widened
    train(root, lessons.dpo(base, data, reference, dtype="bfloat16"))
