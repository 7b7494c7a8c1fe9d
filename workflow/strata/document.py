"""YAML read strictly, with the place of every value.

PyYAML composes the node graph and this module builds the values, because the library's own constructor loses what a
user must be told: duplicate keys, and YAML 1.1's readings of `no`, `0755`, `1:30` and `1e-5` (facts: a YAML 1.1
loader gives False, 493, 90 and the *string* "1e-5").
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from strata.errors import ConfigError

Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C parser is ten times faster; same events
Key = tuple[str | int, ...]

_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)$")
_EXPONENT = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_TOKEN = re.compile(r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{20,}")
_TAG = "tag:yaml.org,2002:"
_DEEPEST, _MOST = 100, 300_000


@dataclass(frozen=True)
class Mark:
    """Where a value stands: file, line (from 1) and the character span [begin, end) of its text."""

    file: Path
    line: int
    begin: int
    end: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Document:
    """A YAML tree and where each of its keys stands. `marks[()]` is the whole document."""

    value: dict[str, Any]
    marks: dict[Key, Mark] = field(repr=False)

    def where(self, key: Key) -> str:
        """`config.yaml:12, variants.dus.merge.drop`; the nearest known ancestor lends its line."""
        near = next((self.marks[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.marks), None)
        return ", ".join(str(part) for part in (near, dotted(key)) if part)


def dotted(key: Key) -> str:
    """('variants', 'dus', 'drop') -> 'variants.dus.drop'; list entries as [0]."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def _check_depth(text: str, file: Path) -> None:
    """Raise ConfigError for what is nested too deeply: the C parser composes by recursion, and ends the process."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            where = f"{file}:{event.start_mark.line + 1}" if event.start_mark else file
            raise ConfigError("nested too deeply", where=where, expected=f"at most {_DEEPEST} levels", got="more")


def read(file: Path) -> Document:
    """The document in `file`.

    Raises:
        ConfigError: not there, not UTF-8, not YAML, empty, no mapping; a duplicate key, a token, an ambiguous scalar.
    """
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(
            "cannot read the file", where=file, expected="a file that can be read", got=error.strerror
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the file is not UTF-8", where=file, expected="UTF-8", got=f"byte {error.start}", todo="save it as UTF-8"
        ) from None
    if token := _TOKEN.search(text):  # before anything else, since any other message may quote it
        raise ConfigError(
            "a hub token stands in this file",
            where=f"{file}:{text.count(chr(10), 0, token.start()) + 1}",
            expected="no secret in a config: it is read, logged and shared",
            got="text that has a token's form",
            todo="remove and revoke it; set HF_TOKEN in the environment instead",
        )
    try:
        _check_depth(text, file)
        root = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(
            "not valid YAML", where=f"{file}{line}", expected="YAML 1.1", got=error.problem or error.context
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError("not valid YAML", where=file, expected="YAML 1.1", got=str(error)) from None
    if root is None:
        raise ConfigError("the file is empty", where=file, expected="key: value", got="nothing")
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError(
            "not a mapping at the top",
            where=file,
            expected="key: value",
            got="a list" if isinstance(root, yaml.SequenceNode) else "text",
        )
    marks: dict[Key, Mark] = {}
    try:
        return Document(_build(root, (), file, marks), marks)
    except RecursionError:
        raise ConfigError(
            "an alias inside its own anchor",
            where=file,
            expected="values",
            got="an alias of what it stands in",
            todo="write the values out",
        ) from None


def overlay(below: Document, above: Document) -> Document:
    """`above` laid over `below` as Snakemake does it for `--configfile`: mappings merge deeply, lists replace."""
    value, marks = dict(below.value), dict(below.marks)

    def lay(into: dict[str, Any], new: dict[str, Any], path: Key) -> None:
        for name, item in new.items():
            here = (*path, name)
            if isinstance(item, dict) and isinstance(into.get(name), dict):
                into[name] = dict(into[name])
                lay(into[name], item, here)
                marks[here] = above.marks[here]
            else:
                into[name] = item
                marks.update({key: mark for key, mark in above.marks.items() if key[: len(here)] == here})

    lay(value, above.value, ())
    return Document(value, marks)


def _build(node: yaml.Node, path: Key, file: Path, marks: dict[Key, Mark]) -> Any:
    mark = Mark(file, node.start_mark.line + 1, node.start_mark.index, node.end_mark.index)
    marks.setdefault(path, mark)
    if len(marks) > _MOST:  # a few lines of aliases of aliases make a tree that no memory holds
        raise ConfigError(
            "more values than a config can have",
            where=mark,
            expected=f"at most {_MOST:,}",
            got="more, with what its aliases stand for",
        )
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, f"{mark}, {dotted(path)}".rstrip(", "))
    if node.tag not in (_TAG + "map", _TAG + "seq"):
        raise _tagged(node, mark)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, n), file, marks) for n, item in enumerate(node.value)]
    assert isinstance(node, yaml.MappingNode)
    return {key: _build(value, (*path, key), file, marks) for key, value in _pairs(node, path, file, marks)}


def _pairs(node: yaml.MappingNode, path: Key, file: Path, marks: dict[Key, Mark]) -> Iterator[tuple[str, yaml.Node]]:
    seen: dict[str, int] = {}
    for key_node, value in node.value:
        line = key_node.start_mark.line + 1
        where = f"{file}:{line}" + (f", {dotted(path)}" if path else "")
        if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _TAG + "merge":
            raise ConfigError(
                "only plain keys are allowed",
                where=where,
                expected="text as key",
                got=key_node.tag,
                todo="write the keys out",
            )
        key = _scalar(key_node, where)
        if not isinstance(key, str):
            raise ConfigError(
                "a key is not text",
                where=where,
                expected="text",
                got=key_node.value,
                todo=f'quote it: "{key_node.value}"',
            )
        if key in seen:
            raise ConfigError(
                f"duplicate key `{key}`",
                where=where,
                expected="each key once",
                got=f"also on line {seen[key]}",
                todo="keep one",
            )
        seen[key] = line
        # A block value may start lines below its key: the key's line is where a reader looks.
        marks[(*path, key)] = Mark(file, line, value.start_mark.index, value.end_mark.index)
        yield key, value


def _scalar(node: yaml.ScalarNode, where: str) -> Any:
    text, tag = node.value, node.tag.removeprefix(_TAG)
    if node.style:  # quoted, or a block of text
        if tag != "str":
            raise _tagged(node, where)
        if found := _CONTROL.search(text):
            raise ConfigError(
                "a character that no name or path can have",
                where=where,
                expected="letters that can be printed",
                got=repr(found[0]),
            )
        return text
    if tag == "null":
        return None
    if tag == "bool":
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise _ambiguous(text, where, "YAML reads it as true or false", f'write true, false or "{text}"')
    if tag == "int":
        if _INT.match(text) and len(text) > 30:
            raise ConfigError("a number with too many digits", where=where, expected="at most 30", got=text[:40])
        if _INT.match(text):
            return int(text.replace("_", ""))
        raise _ambiguous(text, where, "YAML reads it in base 8, 16 or 60", f'write a decimal number or "{text}"')
    if tag == "float":
        if ":" not in text and "n" not in text.lower():
            try:
                if math.isfinite(value := float(text.replace("_", ""))):
                    return value
            except ValueError:  # an explicit !!float on something else
                raise _tagged(node, where) from None
        raise _ambiguous(text, where, "not a finite decimal number", "write a decimal number")
    if tag == "str":
        if _EXPONENT.match(text):
            raise _ambiguous(
                text, where, "YAML 1.1 reads it as text, not as a number", f'write {_spelled(text)} or "{text}"'
            )
        return text
    todo = f'quote it: "{text}"' if tag == "timestamp" else "write plain values"
    raise ConfigError(
        f"`{text}` is not a plain value",
        where=where,
        expected="text, a number, true, false or null",
        got=node.tag,
        todo=todo,
    )


def _tagged(node: yaml.Node, where: object) -> ConfigError:
    return ConfigError(
        "YAML tags are not allowed", where=where, expected="plain values", got=node.tag, todo="write the value out"
    )


def _spelled(text: str) -> str:
    """1e-5 -> 1.0e-5, 1e6 -> 1.0e+6, 1000000: the forms that every YAML reader takes for a number, or a whole one."""
    mantissa, exponent = re.split("[eE]", text)
    sign = "" if exponent[0] in "+-" else "+"
    whole = f", {float(text):.0f}" if abs(float(text)) < 1e15 and float(text).is_integer() else ""
    return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{sign}{exponent}{whole}"


def _ambiguous(text: str, where: str, why: str, todo: str) -> ConfigError:
    return ConfigError(
        f"`{text}` means different things to different YAML readers",
        where=where,
        expected="a value that all of them read as one",
        got=why,
        todo=todo,
    )
