"""Sums and spherical interpolation of stored tensors, against float64."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import within_rounding
from strata import arithmetic
from strata.errors import CheckpointError
from strata.tensors import Tensor, read_header

CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def combined(
    folder: Path, transform: str, weights: tuple[float, ...], given: list[torch.Tensor], dtype: torch.dtype
) -> tuple[torch.Tensor, float]:
    sources = []
    for number, tensor in enumerate(given):
        file = folder / f"{number}.safetensors"
        save_file({"x": tensor}, file)
        sources.append((file, read_header(file).tensors[0]))
    errors = [0.0]
    target = Tensor("x", CODES[dtype], tuple(given[0].shape), 0)
    data = b"".join(arithmetic.combine(transform, weights, sources, target, errors))
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(given[0].shape), max(errors)


def slerp(t: float, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a, b = a.double(), b.double()
    angle = torch.acos((a * b).sum() / a.norm() / b.norm())
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("transform", ["linear", "slerp"])
def test_the_result_is_the_rounded_float64_one(tmp_path: Path, dtype: torch.dtype, transform: str) -> None:
    torch.manual_seed(1)
    a, b = (torch.randn(33, 7).to(dtype) for _ in range(2))
    made, _ = combined(tmp_path, transform, (0.3, 0.7), [a, b], dtype)
    exact = slerp(0.7, a, b) if transform == "slerp" else 0.3 * a.double() + 0.7 * b.double()
    assert within_rounding(made, exact)
    assert int((made != exact.to(dtype)).sum()) <= 3  # a sum may fall on the other side of a tie


def test_tensors_are_read_in_chunks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    given = [torch.randn(101).to(torch.bfloat16) for _ in range(3)]
    whole, _ = combined(tmp_path, "slerp", (0.2, 0.3, 0.5), given, torch.bfloat16)
    monkeypatch.setattr(arithmetic, "CHUNK", 7)
    assert torch.equal(combined(tmp_path, "slerp", (0.2, 0.3, 0.5), given, torch.bfloat16)[0], whole)


@pytest.mark.parametrize(
    ("gram", "weights", "expected"),
    [
        ([[1, 0], [0, 1]], (0.5, 0.5), (math.sqrt(0.5), math.sqrt(0.5))),  # a right angle, halved
        ([[4, 0], [0, 9]], (0.5, 0.5), (math.sqrt(0.5), math.sqrt(0.5))),  # lengths are left as they are
        ([[1, 1], [1, 1]], (0.4, 0.6), (0.4, 0.6)),  # collinear: a weighted sum
        ([[1, -1], [-1, 1]], (0.5, 0.5), (0.5, 0.5)),  # opposite: likewise, as everywhere in the field
        ([[0, 0], [0, 1]], (0.25, 0.75), (0.25, 0.75)),  # a tensor of zeros has no direction
        ([[1, 0], [0, 1]], (1.0, 0.0), (1.0, 0.0)),
        ([[1, 0], [0, 1]], (0.0, 1.0), (0.0, 1.0)),
    ],
)
def test_slerp_factors(gram: list[list[float]], weights: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert arithmetic.slerp_coefficients(gram, weights) == pytest.approx(expected, abs=1e-12)


def test_slerp_of_three_is_that_of_the_third_with_that_of_the_first_two(tmp_path: Path) -> None:
    torch.manual_seed(3)
    a, b, c = (torch.randn(50) for _ in range(3))
    made, _ = combined(tmp_path, "slerp", (0.2, 0.3, 0.5), [a, b, c], torch.float32)
    assert torch.allclose(made.double(), slerp(0.5, slerp(0.6, a, b), c), rtol=1e-6, atol=1e-7)


def test_a_change_of_dtype_tells_its_largest_relative_error(tmp_path: Path) -> None:
    given = torch.tensor([1.0, 1.0 + 2**-9, 3.0])
    made, error = combined(tmp_path, "linear", (1.0,), [given], torch.bfloat16)
    assert torch.equal(made, given.to(torch.bfloat16))
    assert error == pytest.approx(2**-9 / (1 + 2**-9))


def test_scaling_by_zero_keeps_signs_as_a_product_does(tmp_path: Path) -> None:
    made, _ = combined(tmp_path, "linear", (0.0,), [torch.tensor([-2.0, 3.0])], torch.float32)
    assert made.signbit().tolist() == [True, False]


def test_a_result_beyond_the_dtype_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not finite") as caught:
        combined(tmp_path, "linear", (1.0,), [torch.tensor([1.0, 70_000.0])], torch.float16)
    assert "tensor x" in str(caught.value) and "bfloat16 or float32" in str(caught.value)


def test_a_source_that_is_not_finite_is_not_blamed_on_the_dtype(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not finite") as caught:
        combined(tmp_path, "linear", (0.5, 0.5), [torch.tensor([1.0, float("nan")]), torch.ones(2)], torch.float32)
    assert "sources without NaN" in str(caught.value)
