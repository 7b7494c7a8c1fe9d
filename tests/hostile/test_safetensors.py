"""B1-B15 and more: a model.safetensors that is none, at the three doors that a model comes in by."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
from attacks import copy_of, encode, fetch_and_init, merge_of, pin_of, refused

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}'
NOTHING = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}


class Bomb:
    """What a pickle would run, were it opened."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('the pickle ran')",))


HOSTILE = [
    ("B1", "an empty file", b"", "the header's length"),
    ("B2", "seven bytes", b"1234567", "the header's length"),
    ("B3", "a header of 2^63 bytes", struct.pack("<Q", 1 << 63) + b"{}", "the header's length"),
    ("B4", "a header that is longer than the file", struct.pack("<Q", 3) + b"{}", "the header's length"),
    ("B5", "a header of 100 MB of spaces", struct.pack("<Q", 100_000_000) + b" " * 100_000_000, "2 to 16777216 bytes"),
    ("B5", "a header of 16 MB of spaces", encode(b" " * (16 << 20)), "does not start with {"),
    ("B6", "a header that is not UTF-8", encode(b'{"\xff":1}'), "unique keys"),
    ("B7", "a header that is a list", encode(b"[1]"), "does not start with {"),
    ("B8", "many tensors over the same bytes", encode({f"t{n}": ONE for n in range(50_000)}), "no holes, no overlap"),
    ("B9", "a hole before the data", encode({"a": {**ONE, "data_offsets": [4, 12]}}, b"\0" * 12), "no holes"),
    ("B10", "an archive behind the data", encode({"a": ONE}, b"\0" * 8 + b"PK\3\4"), "the file's size"),
    ("B11", "a tensor that is cut short", encode({"a": ONE}, b"\0" * 7), "the file's size"),
    ("B12", "one name twice, as two dtypes", encode(TWO), "duplicate key 'a'"),
    ("B13", "a shape that overflows", encode({"a": {**ONE, "shape": [1 << 62, 8, 0]}}), "non-negative whole numbers"),
    ("B13", "a product that overflows", encode({"a": {**ONE, "shape": [1 << 40, 1 << 40]}}), "bytes for F32"),
    ("B13+", "a million dimensions", encode({"a": {**ONE, "shape": [(1 << 48) - 1] * 900_000}}), "at most 32 dimensions"),
    ("B14", "an unknown dtype", encode({"a": {**ONE, "dtype": "F33"}}), "a dtype of"),
    ("B15", "a name that climbs", encode({"../../x": ONE}), "a tensor's name"),
    ("B15", "a name with a NUL", encode({"a\0b": ONE}), "a tensor's name"),
    ("B15", "a name with a line end", encode({"a\nb": ONE}), "a tensor's name"),
    ("B15", "a name of 10 kB", encode({"a" * 10_000: ONE}), "a tensor's name"),
    ("B15", "an empty name", encode({"": ONE}), "a tensor's name"),
    ("B15+", "half of a surrogate pair as a name", encode({"\ud800": ONE}), "a tensor's name"),
    ("B15+", "a name in another alphabet's a", encode({"\u0430": ONE}), "a tensor's name"),
    ("B16+", "metadata that is not text", encode({"a": ONE, "__metadata__": {"k": 1}}), "__metadata__"),
    ("B38", "a pickle under a safetensors' name", pickle.dumps(Bomb()), "the header's length"),
    ("B38", "a pickle as the header", encode(pickle.dumps(Bomb())), "the header"),
    ("+", "a header nested 100,000 deep", encode(b'{"x":' * 100_000), "nested too deeply"),
    ("+", "a number of 5,000 digits", encode(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b"]}}"), "the header"),
    ("+", "a number beyond all floats", encode(b'{"a":1e400}'), "too large a number"),
    ("+", "ten thousand tensors of no bytes", encode({f"t{n}": NOTHING for n in range(10_000)}, b""), "layer count"),
    ("+", "a file of nothing but a header", encode(b"{}", b""), "layer count"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "rule"), [case[2:] for case in HOSTILE], ids=[f"{n}-{t}" for n, t, *_ in HOSTILE])
def test_a_file_that_breaks_a_rule_of_the_format_is_refused_at_every_door(
    tmp_path: Path, llama: Path, content: bytes, rule: str
) -> None:
    root, bad = tmp_path / "results", copy_of(llama, tmp_path / "bad")
    (bad / "model.safetensors").write_bytes(content)
    words = ["bad", rule, "expected:", "got:"]
    if len(content) < 1 << 20:
        refused(root, 5, words[1:], *fetch_and_init(root, bad, llama))
        pin = pin_of(bad, tmp_path)
        before = Path(pin[-1]).read_bytes()
        refused(root, 5, words, *pin)
        assert Path(pin[-1]).read_bytes() == before
    refused(root, 5, words, *merge_of(bad, tmp_path))
    assert not (tmp_path / "out").exists()
