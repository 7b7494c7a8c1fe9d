"""safetensors files as headers and byte ranges: a strict reader, a deterministic writer, no torch and no numpy.

The reader refuses what the format's README forbids and what the reference parser lets through (duplicate names, odd
tensor names). Headers are padded to 4096 bytes, so that file systems that share blocks can share tensor data.
Format: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import struct
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from strata import jsonfile
from strata.errors import CheckpointError

ALIGNMENT = 4096
MAX_HEADER = 16 << 20  # bytes: 100,000 tensors. The reference parser's 100 MB would take a minute and 1 GB to refuse
MAX_DIMENSIONS = 32  # the product of a million of them takes minutes
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,512}")
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ETXTBSY}
_CHUNK = 8 << 20


Spec = tuple[str, tuple[int, ...]]  # (dtype, shape)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file. Its data begins at byte `begin` of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def spec(self) -> Spec:
        """(dtype, shape), one object for all tensors that share them."""
        return _spec(self.dtype, self.shape)

    @property
    def size(self) -> int:
        """Bytes of data."""
        return BITS[self.dtype] // 8 * math.prod(self.shape)

    @property
    def end(self) -> int:
        return self.begin + self.size


@dataclass(frozen=True, slots=True)
class Header:
    """A parsed or planned header: its tensors in order, the bytes before their data, the bytes of the whole file.

    `sha256` is that of the bytes before the data. They are not kept: a model of 20,000 tensors has megabytes of them.
    """

    tensors: tuple[Tensor, ...]
    length: int
    size: int
    sha256: str


def read_header(file: Path) -> Header:
    """The header of a safetensors file, every rule of the format checked; its data is not read.

    Raises:
        CheckpointError: names the file, the tensor where there is one, and the rule.
    """
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise _bad(file, "the header's length", f"2 to {min(MAX_HEADER, max(size - 8, 0))} bytes", length)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(
            "cannot read the file", where=file, expected="a file that can be read", got=error.strerror
        ) from None
    sha256, begin = hashlib.sha256(start + text).hexdigest(), 8 + length
    table = _parse(text, file)
    del text
    tensors = []
    while table:  # entry by entry: the table of 20,000 tensors is larger than what is made of it
        name, item = table.popitem()
        tensors.append(_tensor(name, item, begin, file))
    tensors.reverse()
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    position = begin
    for tensor in tensors:
        if tensor.begin != position:
            raise _bad(file, f"tensor {tensor.name}", f"data at byte {position}: no holes, no overlap", tensor.begin)
        position = tensor.end
    if position != size:
        raise _bad(file, "the file's size", f"{position} bytes, as the header says", size)
    return Header(tuple(tensors), begin, size, sha256)


def plan_header(specs: Iterable[tuple[str, str, tuple[int, ...]]]) -> Header:
    """The header of a file that holds these (name, dtype, shape): widest dtype first, then by name, as the library."""
    end, tensors = 0, []
    for name, dtype, shape in sorted(specs, key=lambda spec: (-BITS[spec[1]], spec[0])):
        begin, end = end, end + BITS[dtype] // 8 * math.prod(shape)
        tensors.append(Tensor(name, dtype, shape, begin))
    raw = _encode(tensors, 0)
    shifted = tuple(Tensor(t.name, t.dtype, t.shape, t.begin + len(raw)) for t in tensors)
    return Header(shifted, len(raw), len(raw) + end, hashlib.sha256(raw).hexdigest())


def encode_header(header: Header) -> bytes:
    """The bytes before the data of a planned header. Its one metadata key stands first, as the library has it."""
    return _encode(header.tensors, header.length)


def _encode(tensors: Iterable[Tensor], data: int) -> bytes:
    """A header, padded; offsets are told from byte `data` of the file."""
    table = {
        t.name: {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": [t.begin - data, t.end - data]}
        for t in tensors
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **table}, separators=(",", ":")).encode()
    length = -(len(text) + 8) % ALIGNMENT + len(text)
    return struct.pack("<Q", length) + text.ljust(length)


def write_at(handle: int, data: Any, offset: int) -> int:
    """Write all of a buffer at `offset` of an open file, however little the system takes at a time. Returns its end."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
    return offset


def copy_range(source: int, begin: int, end: int, target: int, offset: int) -> None:
    """Copy bytes [begin, end) of one open file to `offset` of another, in the kernel where it can.

    `copy_file_range` shares blocks on file systems with reflinks; on the errors of those that cannot, and between
    file systems, it falls back to reading and writing.
    """
    while begin < end:
        try:
            copied = os.copy_file_range(source, target, end - begin, begin, offset)
        except OSError as error:
            if error.errno not in _NO_KERNEL_COPY:
                raise
            copied = 0
        if not copied:
            copied = os.pwrite(target, os.pread(source, min(_CHUNK, end - begin), begin), offset)
        if not copied:
            raise OSError(errno.EIO, "the source ended early")
        begin, offset = begin + copied, offset + copied


def _parse(text: bytes, file: Path) -> dict[str, Any]:
    try:
        decoded = text.decode()
        if not decoded.startswith("{"):
            raise ValueError("does not start with {")
        table = jsonfile.parse(decoded)
    except ValueError as error:
        raise _bad(file, "the header", "a JSON object with unique keys", error) from None
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(file, "__metadata__", "text values", type(metadata).__name__)
    return table


def _tensor(name: str, item: Any, start: int, file: Path) -> Tensor:
    if not _NAME.fullmatch(name):
        raise _bad(file, "a tensor's name", "1 to 512 of A-Z a-z 0-9 _ . -", repr(name[:80]))
    where = f"tensor {name}"
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise _bad(file, where, "dtype, shape and data_offsets", item)
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _bad(file, where, f"a dtype of {', '.join(BITS)}", dtype)
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise _bad(file, where, "a shape of non-negative whole numbers", shape)
    if len(shape) > MAX_DIMENSIONS:
        raise _bad(file, where, f"at most {MAX_DIMENSIONS} dimensions", len(shape))
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        raise _bad(file, where, "two data offsets", offsets)
    begin, end = offsets
    size = BITS[dtype] // 8 * math.prod(shape)
    if end - begin != size:
        raise _bad(file, where, f"{size} bytes for {dtype} {shape}", end - begin)
    return Tensor(name, sys.intern(dtype), _shape(*shape), start + begin)


@cache
def _spec(dtype: str, shape: tuple[int, ...]) -> Spec:
    return dtype, shape


@cache
def _shape(*shape: int) -> tuple[int, ...]:
    """One object for each shape: a model has few shapes and many tensors."""
    return shape


def _bad(file: Path, what: str, expected: str, got: object) -> CheckpointError:
    return CheckpointError(
        "not a valid safetensors file", where=f"{file}, {what}", expected=expected, got=str(got)[:200]
    )
