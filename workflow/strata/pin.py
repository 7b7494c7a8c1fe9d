"""Pin: fill in what a source's entry lacks (sha256, shape, a hub commit), changing no other byte of the file.

The text is edited in place, by the positions that the reader kept, because YAML writers that keep comments still
re-align, re-quote or re-wrap what they write.
"""

from __future__ import annotations

import copy
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

import yaml

from strata import config as schema
from strata import shapes, sources
from strata.disk import disk_errors, write_atomically
from strata.document import Document, Key, read
from strata.errors import CheckpointError, ConfigError, SourceError


def pin(
    file: Path, section: Mapping[str, schema.AnySource], models: Collection[str] = (), again: bool = False
) -> list[str]:
    """Pin the sources of a config or suite file. Returns a line for each that changed.

    Args:
        file: the file that is rewritten, atomically, once all its sources are known.
        section: its `sources`.
        models: names of sources that must have a shape.
        again: measure shapes afresh where there are some already.

    Raises:
        SourceError: a source cannot be had, or is no model although it must be.
        ConfigError: the file is written in a way that cannot be edited safely; the error says what to add.
    """
    document = read(file)
    found = {
        name: lacking
        for name, source in section.items()
        if ("sources", name) in document.marks and (lacking := _measure(name, source, name in models, again))
    }
    if found:
        _rewrite(file.resolve(), document, found)
    return [f"{name}: {', '.join(lacking)}" for name, lacking in found.items()]


def _measure(name: str, source: schema.AnySource, is_model: bool, again: bool) -> dict[str, str]:
    """What the entry lacks, as YAML text by key."""
    entry = source.model_dump(exclude_none=True)
    location = source.location if isinstance(source, schema.PathSource) else ""
    lacking: dict[str, str] = {}
    if isinstance(source, schema.HubSource) and not source.is_pinned:
        entry["revision"] = lacking["revision"] = _commit(source.hub, source.revision)
    if isinstance(source, schema.DatasetSource) and not source.is_pinned:
        entry["revision"] = lacking["revision"] = _commit(source.dataset, source.revision, "dataset")
    is_model = is_model or source.shape is not None
    wants_shape = is_model and (again or source.shape is None or source.sha256 is None)
    is_local = isinstance(source, schema.PathSource)  # cheap to look at again; others cannot change behind a pin
    if source.sha256 is not None and not wants_shape and not is_local:
        return lacking
    with disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / sources.FILES
        folder.mkdir()
        sources.bring(entry, location, folder)
        actual = sources.tree_sha256(folder, sources.is_one_file(entry, location))
        if source.sha256 is None:
            lacking["sha256"] = actual
        elif actual != source.sha256:
            raise SourceError(
                f"`{name}` is not what its sha256 says", where=sources.name_of(entry, location),
                expected=source.sha256, got=actual, todo="if the new content is wanted, remove `sha256` and pin again",
            )  # fmt: skip
        if wants_shape:
            try:
                shape = shapes.shape_of(folder)
            except (SourceError, CheckpointError) as error:  # in a folder that will be gone: tell it as the user does
                told = str(error.details["where"]).replace(str(folder), sources.name_of(entry, location), 1)
                raise error.at(told) from None
            if shape is None:
                raise SourceError(
                    f"`{name}` holds no model",
                    where=sources.name_of(entry, location),
                    expected="config.json and weights",
                    got="neither",
                )
            lacking["shape"] = "{" + ", ".join(f"{key}: {value}" for key, value in shape.items()) + "}"
    if is_model and isinstance(source, schema.HubSource) and source.license is None:
        lacking |= _license(source.hub, entry["revision"])
    return lacking


def _rewrite(file: Path, document: Document, found: Mapping[str, Mapping[str, str]]) -> None:
    """Put the new keys into the file, once the edited text is known to say the old config and them, nothing else."""
    raw = file.read_bytes().decode()
    text = raw.removeprefix("\ufeff")
    # From the end of the file to its start, so that the positions of what is still to do stay true.
    for name in sorted(found, key=lambda name: -document.marks["sources", name].begin):
        text = _edit(text, document, name, found[name])
    expected = copy.deepcopy(document.value)
    for name, lacking in found.items():
        expected["sources"][name] |= {key: yaml.safe_load(value) for key, value in lacking.items()}
    with tempfile.TemporaryDirectory() as scratch:
        trial = Path(scratch) / file.name
        trial.write_bytes(text.encode())
        try:
            said = read(trial).value
        except ConfigError:
            said = {}
    if said != expected:
        lines = (f"{name}: {key}: {value}" for name, lacking in found.items() for key, value in lacking.items())
        raise ConfigError(
            "this file cannot be edited safely",
            where=file,
            expected="a block for each source",
            got="another form",
            todo="write these yourself: " + "; ".join(lines),
        )
    kept = raw[: len(raw) - len(raw.removeprefix("\ufeff"))]
    write_atomically(file, (kept + text).encode(), file.stat().st_mode & 0o777)


def _commit(name: str, revision: str | None, kind: str = "model") -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().repo_info(name, revision=revision, repo_type=kind).sha)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise SourceError(
            "cannot resolve the revision", where=f"{name}@{revision or 'main'}", expected="a commit",
            got=str(error).split("\n")[0],
            todo="pin where the hub can be reached, or write the commit's 40 hex digits",
        ) from None  # fmt: skip


def _license(name: str, revision: str) -> dict[str, str]:
    """The licence that a model's card on the hub names. Nothing where there is none, or the hub cannot be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        data = HfApi().model_info(name, revision=revision).card_data
    except (HfHubHTTPError, OSError, ValueError):
        return {}
    told = data.get("license") if data else None
    return {"license": told} if isinstance(told, str) and re.fullmatch(schema.LICENSE, told) else {}


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
        feed = "\r\n" if text[:line_end].endswith("\r") else "\n"
        line_end -= len(feed) - 1
        text = text[:line_end] + "".join(f"{feed}{indent}{line}" for line in new) + text[line_end:]
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
