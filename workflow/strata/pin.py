"""Pin: fill in what a source's entry lacks (sha256, shape, a hub commit), changing no other byte of the file.

The text is edited in place, by the positions that the reader kept, because YAML writers that keep comments still
re-align, re-quote or re-wrap what they write.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata import config as schema
from strata import sources
from strata.document import Document, Key, read
from strata.errors import SourceError
from strata.store import disk_errors, write_atomically

_SHAPE = "shape"


def pin(file: Path, section: Mapping[str, schema.AnySource], again: bool = False) -> list[str]:
    """Pin the sources of a config or suite file. Returns a line for each that changed.

    Args:
        file: the file that is rewritten, atomically, once all its sources are known.
        section: its `sources`.
        again: measure the shape afresh where there is one already.

    Raises:
        SourceError: a source cannot be had.
    """
    document, said, edits = read(file), [], []
    for name, source in section.items():
        if ("sources", name) not in document.marks:
            continue  # it stands in another file
        found = _measure(source, again)
        if found:
            said.append(f"{name}: {', '.join(found)}")
            edits.append((name, found))
    text = file.read_bytes().decode("utf-8-sig")
    # From the end of the file to its start, so that the positions of what is still to do stay true.
    for name, found in sorted(edits, key=lambda edit: -document.marks["sources", edit[0]].begin):
        text = _edit(text, document, name, found)
    if edits:
        write_atomically(file, text.encode(), file.stat().st_mode & 0o777)
    return said


def _measure(source: schema.AnySource, again: bool) -> dict[str, str]:
    """What the entry lacks, as YAML text by key."""
    entry = source.model_dump(exclude_none=True)
    location = entry.get("path", "")
    lacking: dict[str, str] = {}
    if "hub" in entry and not _is_commit(entry.get("revision", "")):
        entry["revision"] = lacking["revision"] = _commit(entry["hub"], entry.get("revision"))
    if not again and "sha256" in entry and (_SHAPE in entry or not _looks_like_model(entry)):
        return lacking
    with disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / sources.FILES
        folder.mkdir()
        sources.bring(entry, location, folder)
        if "sha256" not in entry:
            lacking["sha256"] = sources.tree_sha256(folder, sources.is_one_file(entry, location))
        if (again or _SHAPE not in entry) and (shape := _shape(folder)) is not None:
            lacking[_SHAPE] = "{" + ", ".join(f"{key}: {value}" for key, value in shape.items()) + "}"
    return lacking


def _looks_like_model(entry: Mapping[str, Any]) -> bool:
    return "hub" in entry or str(entry.get("file", entry.get("path"))).endswith((".gguf", ".safetensors"))


def _is_commit(revision: str) -> bool:
    return len(revision) == 40 and set(revision) <= set("0123456789abcdef")


def _commit(name: str, revision: str | None) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().model_info(name, revision=revision).sha)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise SourceError(
            "cannot resolve the revision", where=f"{name}@{revision or 'main'}", got=str(error).split("\n")[0],
            todo="pin where the hub can be reached, or write the commit's 40 hex digits",
        ) from None  # fmt: skip


def _shape(folder: Path) -> dict[str, Any] | None:
    """The shape of the model in a folder, or None when it holds none. Reads headers only."""
    from strata import shapes

    return shapes.shape_of(folder)


def _edit(text: str, document: Document, source: str, found: Mapping[str, str]) -> str:
    """`text` with these keys of one source set; done from behind, so that positions before an edit stay true."""
    key: Key = ("sources", source)
    old = [name for name in found if (*key, name) in document.marks]
    new = [f"{name}: {value}" for name, value in found.items() if name not in old]
    begin, end = document.marks[key].begin, _end(text, document, key)
    if text[begin] == "{":
        body = text[: end - 1].rstrip()
        comma = "" if body.endswith(("{", ",")) else ","
        text = f"{body}{comma if new else ''}{' ' if new else ''}{', '.join(new)}{text[end - 1 :]}"
    else:
        indent = " " * (begin - (text.rfind("\n", 0, begin) + 1))
        line_end = text.find("\n", end)  # a comment behind the last value stays where it is
        line_end = len(text) if line_end < 0 else line_end
        text = text[:line_end] + "".join(f"\n{indent}{line}" for line in new) + text[line_end:]
    for name in sorted(old, key=lambda name: -document.marks[*key, name].begin):
        begin, end = document.marks[*key, name].begin, _end(text, document, (*key, name))
        text = text[:begin] + (" " if text[begin - 1] == ":" else "") + found[name] + text[end:]
    return text


def _end(text: str, document: Document, key: Key) -> int:
    """Where a value's text ends. YAML lets a block run on over the comments behind it: its last leaf ends it."""
    mark = document.marks[key]
    if text[mark.begin : mark.begin + 1] in ("{", "["):
        return mark.end
    inner = [
        _end(text, document, child) for child in document.marks if len(child) == len(key) + 1 and child[:-1] == key
    ]
    return max(inner, default=mark.end)
