"""The strict reader: a bad file beside the rule it breaks. The writer: what the library reads back, and determinism."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata import tensors
from strata.errors import CheckpointError
from strata.tensors import copy_range, plan_header, read_header

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def encode(table: Any, data: bytes = b"\0" * 8) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "the header's length"),
        (b"1234567", "the header's length"),
        (struct.pack("<Q", 0) + b"{}", "the header's length"),
        (struct.pack("<Q", 1 << 63) + b"{}", "the header's length"),
        (struct.pack("<Q", 3) + b"{}", "the header's length"),
        (encode(b"\xff\xfe{}"), "unique keys"),
        (encode(b"\xef\xbb\xbf{}"), "unique keys"),
        (encode(b"[1]"), "unique keys"),
        (encode(b'{"a":1'), "unique keys"),
        (encode(b"[" * 100_000), "unique keys"),
        (encode(b'{"x":' * 100_000), "unique keys"),
        (encode(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"I32","shape":[2],"data_offsets":[0,8]}}'), "duplicate key 'a'"),
        (encode({"a": ONE}, b"\0" * 8 + b"PK\3\4"), "the file's size"),
        (encode({"a": ONE}, b"\0" * 7), "the file's size"),
        (encode({"a": {**ONE, "data_offsets": [4, 12]}}, b"\0" * 12), "no holes"),
        (encode({"a": ONE, "b": {**ONE, "data_offsets": [4, 12]}}, b"\0" * 12), "no overlap"),
        (encode({"a": {**ONE, "data_offsets": [8, 0]}}), "8 bytes"),
        (encode({"a": {**ONE, "data_offsets": [-8, 0]}}), "two data offsets"),
        (encode({"a": {**ONE, "data_offsets": [0.0, 8.0]}}), "two data offsets"),
        (encode({"a": {**ONE, "shape": [3]}}), "12 bytes"),
        (encode({"a": {**ONE, "shape": [-2]}}), "non-negative"),
        (encode({"a": {**ONE, "shape": [1 << 62, 8, 0], "data_offsets": [0, 0]}}, b""), "non-negative"),
        (encode({"a": {**ONE, "shape": [True, 2]}}), "non-negative"),
        (encode({"a": {**ONE, "dtype": "F33"}}), "a dtype of"),
        (encode({"a": {**ONE, "dtype": "f32"}}), "a dtype of"),
        (encode({"a": {**ONE, "dtype": []}}), "a dtype of"),
        (encode({"a": {**ONE, "extra": 1}}), "dtype, shape and data_offsets"),
        (encode({"../../x": ONE}), "a tensor's name"),
        (encode({"": ONE}), "a tensor's name"),
        (encode({"a\0b": ONE}), "a tensor's name"),
        (encode({"a": ONE, "__metadata__": {"k": 1}}), "__metadata__"),
        (encode({"a": ONE, "__metadata__": None}), "__metadata__"),
        (encode(b'{"__metadata__":{},"__metadata__":{}}', b""), "duplicate key '__metadata__'"),
        (encode(b'{"__metadata__":{"k":"1","k":"2"}}', b""), "duplicate key 'k'"),
        (encode(b'  {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'), "does not start with {"),
        (encode({"\ud800": ONE}), "a tensor's name"),
        (encode({"a": {**ONE, "dtype": "F4"}}), "a dtype of"),
        (encode({"a": {**ONE, "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}), "bytes for F32"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_with_the_rule_it_breaks(tmp_path: Path, content: bytes, rule: str) -> None:
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert rule in str(caught.value)
    assert "bad.safetensors" in str(caught.value)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_.]{0,12}", fullmatch=True),
        st.tuples(st.sampled_from(["F32", "BF16", "U8", "I64"]), st.lists(st.integers(0, 4), max_size=3)),
        max_size=8,
    )
)
def test_what_we_write_the_library_reads(specs: dict[str, tuple[str, list[int]]]) -> None:
    import tempfile

    from safetensors import safe_open

    header = plan_header((name, dtype, tuple(shape)) for name, (dtype, shape) in specs.items())
    again = plan_header((name, dtype, tuple(shape)) for name, (dtype, shape) in reversed(specs.items()))
    raw = tensors.encode_header(header)
    assert header == again
    assert len(raw) == header.length and len(raw) % tensors.ALIGNMENT == 0
    assert header.sha256 == hashlib.sha256(raw).hexdigest()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "x.safetensors")
        file.write_bytes(raw + b"\0" * (header.size - len(raw)))
        assert read_header(file) == header
        with safe_open(file, "pt") as opened:
            assert set(opened.keys()) == set(specs)
            for name, (_, shape) in specs.items():
                assert list(opened.get_tensor(name).shape) == shape


def test_what_the_library_writes_we_read(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file(
        {"a": torch.arange(6).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)},
        tmp_path / "x.safetensors",
        {"format": "pt"},
    )
    header = read_header(tmp_path / "x.safetensors")
    assert [(t.name, t.dtype, t.shape, t.size) for t in header.tensors] == [
        ("a", "I64", (2, 3), 48),
        ("b", "BF16", (4,), 8),
    ]


@pytest.mark.parametrize(
    "refusal", [None, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, "short", "nothing"]
)
def test_a_range_is_copied_whatever_the_kernel_grants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Any
) -> None:
    real = os.copy_file_range

    def copy(source: int, target: int, count: int, begin: int, offset: int) -> int:
        if refusal == "short":
            return real(source, target, min(count, 1000), begin, offset)
        if refusal == "nothing":
            return 0
        raise OSError(refusal, "refused")

    if refusal is not None:
        monkeypatch.setattr(os, "copy_file_range", copy)
    monkeypatch.setattr(tensors, "_CHUNK", 777)
    data = os.urandom(10_000)
    (tmp_path / "a").write_bytes(data)
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("wb") as target:
        copy_range(source.fileno(), 123, 9_000, target.fileno(), 50)
    assert (tmp_path / "b").read_bytes() == b"\0" * 50 + data[123:9_000]


def test_a_full_disk_is_not_mistaken_for_an_old_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    (tmp_path / "a").write_bytes(b"x" * 10)
    with (
        (tmp_path / "a").open("rb") as source,
        (tmp_path / "b").open("wb") as target,
        pytest.raises(OSError, match="No space"),
    ):
        copy_range(source.fileno(), 0, 10, target.fileno(), 0)


def test_a_source_that_ends_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10)
    with (
        (tmp_path / "a").open("rb") as source,
        (tmp_path / "b").open("wb") as target,
        pytest.raises(OSError, match="ended early"),
    ):
        copy_range(source.fileno(), 0, 11, target.fileno(), 0)
