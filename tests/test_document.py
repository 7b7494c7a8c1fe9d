"""YAML is read strictly, and every error says where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from strata.document import overlay, read
from strata.errors import ConfigError

Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("text", "what", "todo"),
    [
        ("a: no", "`no` means different things", 'write true, false or "no"'),
        ("a: 1e-5", "`1e-5` means different things", "write 1.0e-5"),
        ("a: 1.5e5", "`1.5e5` means different things", "write 1.5e+5"),
        ("a: 1e6", "`1e6` means different things", 'write 1.0e+6, 1000000 or "1e6"'),
        ("a: 0755", "`0755` means different things", 'or "0755"'),
        ("a: 1:30", "`1:30` means different things", 'or "1:30"'),
        ("a: 0x1f", "`0x1f` means different things", 'or "0x1f"'),
        ("a: .inf", "`.inf` means different things", "decimal"),
        ("a: 2001-01-01", "is not a plain value", 'quote it: "2001-01-01"'),
        ("on: 1", "`on` means different things", '"on"'),
        ("1: 2", "a key is not text", 'quote it: "1"'),
        ("a: 1\nb: 2\na: 3", "duplicate key `a`", "keep one"),
        ("a: !!python/object/apply:os.system [ls]", "YAML tags are not allowed", "plain values"),
        ("a: !!float abc", "YAML tags are not allowed", ""),
        ("a: !!int '3'", "YAML tags are not allowed", "plain values"),
        ("a: &x {b: 1}\nc: {<<: *x}", "only plain keys are allowed", "write the keys out"),
        ("a: &x [*x]", "an alias inside its own anchor", "write the values out"),
        ("", "the file is empty", ""),
        ("- 1", "not a mapping at the top", ""),
        ("a:\n\t- b", "not valid YAML", ""),
        ("a: [", "not valid YAML", ""),
        ("a: 1.0e+999", "`1.0e+999` means different things", "decimal"),
    ],
)
def test_what_yaml_readers_disagree_on_is_refused(write_config: Write, text: str, what: str, todo: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(write_config(text))
    assert what in str(caught.value)
    assert todo in str(caught.value)
    assert "config.yaml" in str(caught.value)


def test_the_message_names_the_line_of_the_key(write_config: Write) -> None:
    with pytest.raises(ConfigError, match=r"config.yaml:3, a\.b\.c"):
        read(write_config("a:\n  b:\n    c: yes"))


def test_plain_values_come_out_as_written(write_config: Write) -> None:
    text = 'a: 25_000\nb: "no"\nc: 1.0e-5\nd: true\ne: null\nf: [x, -3, 0.5]\ng: {h: été}\n'
    assert read(write_config(text)).value == {
        "a": 25000, "b": "no", "c": 1e-5, "d": True, "e": None, "f": ["x", -3, 0.5], "g": {"h": "été"},
    }  # fmt: skip


def test_a_byte_order_mark_and_windows_line_ends_are_fine(write_config: Write) -> None:
    assert read(write_config("\ufeffa: 1\r\nb: x\r\n")).value == {"a": 1, "b": "x"}


def test_other_encodings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes("a: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="not UTF-8"):
        read(tmp_path / "config.yaml")


def test_a_second_file_merges_mappings_and_replaces_lists(write_config: Write) -> None:
    below = read(write_config("a: {b: 1, c: 2}\nd: [1, 2]"))
    above = read(write_config("a: {c: 3}\nd: [4]", "more.yaml"))
    both = overlay(below, above)
    assert both.value == {"a": {"b": 1, "c": 3}, "d": [4]}
    assert "config.yaml:1" in both.where(("a", "b"))
    assert "more.yaml:1" in both.where(("a", "c"))
