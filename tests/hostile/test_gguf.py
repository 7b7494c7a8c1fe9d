"""A GGUF that is none, or whose counts lie. gguf and transformers read it, and only under a sha256 that is pinned."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from attacks import fetch_and_init, pin_of, refused
from gguf import GGUFWriter


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A GGUF of one tensor, which no model is."""
    file = tmp_path_factory.mktemp("gguf") / "plain.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_block_count(1)
    writer.add_tensor("token_embd.weight", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.read_bytes()


def counts(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


def key(kind: int, value: bytes) -> bytes:
    return counts(0, 1) + struct.pack("<Q", 1) + b"k" + struct.pack("<I", kind) + value


HOSTILE = [
    ("an empty file", lambda plain: b""),
    ("four letters", lambda plain: b"GGUF"),
    ("another format", lambda plain: b"PK\3\4" * 100),
    ("an unknown version", lambda plain: b"GGUF" + struct.pack("<IQQ", 99, 0, 0)),
    ("a count of 2^60 keys", lambda plain: counts(0, 1 << 60)),
    ("a count of 2^60 tensors", lambda plain: counts(1 << 60, 0)),
    ("a text of 2^60 bytes", lambda plain: key(8, struct.pack("<Q", 1 << 60))),
    ("a list of 2^60 numbers", lambda plain: key(9, struct.pack("<IQ", 4, 1 << 60))),
    ("a list of 2^60 lists", lambda plain: key(9, struct.pack("<IQ", 9, 1 << 60))),
    ("an unknown kind of value", lambda plain: key(77, b"")),
    ("a header that is cut short", lambda plain: plain[:100]),
    ("a tensor that is cut short", lambda plain: plain[:-40]),
]  # fmt: skip


@pytest.mark.parametrize("make", [make for _, make in HOSTILE], ids=[what for what, _ in HOSTILE])
def test_a_gguf_that_cannot_be_read_is_refused(tmp_path: Path, llama: Path, plain: bytes, make: object) -> None:
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "m.gguf").write_bytes(make(plain))  # type: ignore[operator]
    root, words = tmp_path / "results", ["not a GGUF file that can be read", "m.gguf"]
    refused(root, 4, words, *fetch_and_init(root, bad, llama))
    refused(root, 4, words, *pin_of(bad, tmp_path))
