"""The header parser under random and spoilt bytes: what it accepts obeys the format and is what the library reads."""

from __future__ import annotations

import json
import math
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import pytest
from attacks import encode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from strata.errors import CheckpointError
from strata.tensors import BITS, Header, encode_header, plan_header, read_header

EXAMPLES = int(os.environ.get("STRATA_FUZZ_EXAMPLES", "300"))  # of each test; 300 take seconds
# Hypothesis and not a coverage-guided fuzzer: the parser is a page of Python, and its rules are better told than found.
many = settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
names = st.one_of(st.sampled_from(["a", "b", "model.layers.0.x", "", "../x", "__metadata__", "é"]), st.text(max_size=5))
numbers = st.one_of(st.integers(-2, 20), st.sampled_from([1 << 48, 1 << 63, 10**30, 1.0, 1.5, True, None, "1", []]))
dtypes = st.one_of(st.sampled_from([*BITS, "F4", "f32", "C64"]), st.none(), st.integers(0, 3))
entries = st.fixed_dictionaries(
    {
        "dtype": dtypes,
        "shape": st.lists(numbers, max_size=3),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    },
    optional={"more": st.none()},
)
metadata = st.dictionaries(st.text(max_size=3), st.one_of(st.text(max_size=3), st.none()), max_size=3)
tables = st.dictionaries(names, st.one_of(entries, metadata, st.none(), st.integers()), max_size=4)
specs = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9_.]{0,6}", fullmatch=True),
    st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 3), max_size=3)),
    max_size=4,
)


@pytest.fixture(scope="module")
def file() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder, "x.safetensors")


def held(file: Path, content: bytes) -> Header | None:
    """The header of a file with this content, held against the format's rules and the library; None when refused."""
    file.write_bytes(content)
    try:
        header = read_header(file)
    except CheckpointError as error:
        assert {"where", "expected", "got"} <= {key for key, text in error.details.items() if str(text)}, error
        return None
    length = struct.unpack("<Q", content[:8])[0]
    table = json.loads(content[8 : 8 + length])
    table.pop("__metadata__", None)
    assert header.length == 8 + length and header.size == len(content)
    at = header.length
    for tensor in header.tensors:
        assert tensor.begin == at and tensor.size == math.prod(tensor.shape) * BITS[tensor.dtype] // 8
        assert table[tensor.name] == {
            "dtype": tensor.dtype, "shape": list(tensor.shape),
            "data_offsets": [tensor.begin - header.length, tensor.end - header.length],
        }  # fmt: skip
        at = tensor.end
    assert at == len(content) and table.keys() == {tensor.name for tensor in header.tensors}
    with safe_open(file, "np") as opened:  # what we take, the library must take too
        assert set(opened.keys()) == table.keys()
        for name in table:
            part = opened.get_slice(name)
            assert (part.get_dtype(), part.get_shape()) == (table[name]["dtype"], table[name]["shape"])
    return header


@many
@given(content=st.binary(max_size=200))
def test_random_bytes_are_refused_or_right(file: Path, content: bytes) -> None:
    held(file, content)


@many
@given(text=st.binary(max_size=120), data=st.binary(max_size=16))
def test_a_random_header_of_the_right_length_is_refused_or_right(file: Path, text: bytes, data: bytes) -> None:
    held(file, encode(text, data))


@many
@given(table=tables, size=st.integers(0, 40))
def test_a_random_table_is_refused_or_right(file: Path, table: dict[str, Any], size: int) -> None:
    held(file, encode(table, b"\0" * size))


@many
@given(
    specs=specs, edits=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3), cut=st.integers(-3, 3)
)
def test_a_good_file_that_was_spoilt_is_refused_or_right(
    file: Path, specs: dict[str, tuple[str, list[int]]], edits: list[tuple[int, int]], cut: int
) -> None:
    header = plan_header((name, dtype, tuple(shape)) for name, (dtype, shape) in specs.items())
    content = bytearray(encode_header(header) + b"\0" * (header.size - header.length))
    assert held(file, bytes(content)) == header
    for place, value in edits:
        content[place % len(content)] = value
    held(file, bytes(content[: len(content) + min(cut, 0)]) + b"\0" * max(cut, 0))


@many
@given(specs=specs, order=st.randoms(use_true_random=False), space=st.sampled_from(["", " ", "\n\t "]))
def test_any_order_and_any_spacing_of_a_good_table_is_read_as_the_library_does(
    file: Path, specs: dict[str, tuple[str, list[int]]], order: Any, space: str
) -> None:
    listed = list(specs.items())
    order.shuffle(listed)
    table, end = {}, 0
    for name, (dtype, shape) in listed:
        size = math.prod(shape) * BITS[dtype] // 8
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    shuffled = dict(order.sample(sorted(table.items()), len(table)))
    text = json.dumps(shuffled, separators=(f",{space}", f":{space}")) + space
    read = held(file, encode(text.encode(), b"\0" * end))
    assert read is not None and len(read.tensors) == len(specs)
