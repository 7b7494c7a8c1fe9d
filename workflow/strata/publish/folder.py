"""Folder: a variant as a plain folder, its files and its card, written whole or not at all.

A folder that stands there is replaced where it holds nothing but what was published before, and refused otherwise.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from strata import checkpoint as checkpoints
from strata import config as schema
from strata import store
from strata.disk import disk_errors, file_sha256, sync
from strata.document import Document
from strata.errors import PublishError
from strata.experiment import Experiment
from strata.llamacpp.convert import FILE, open_tokenizer
from strata.llamacpp.library import check_tokens, is_here
from strata.llamacpp.quantize import check_source
from strata.publish.card import card
from strata.receipts import Receipt, keep, receipt
from strata.recipe import digest
from strata.scratch import scratch_folder, sweep
from strata.status import variant_of
from strata.store import MANIFEST, Object
from strata.tensors import copy_range

CARD = "README.md"
Contents = Mapping[str, Path | bytes]  # name -> the file to copy, or what to write


@dataclass(frozen=True)
class Assembly:
    """All that is published of a variant. `ggufs` are the GGUF files among the contents, with their sha256."""

    checkpoint: Object
    contents: Contents
    ggufs: Mapping[str, str]


def publish(root: Path, experiment: Experiment, loaded: tuple[schema.Config, Document], name: str) -> Receipt:
    """Write a variant into the folder that its `publish` names. One that holds the same already is left as it is.

    Raises:
        UsageError: no such variant, or one without a `directory`.
        StoreError: something of the variant is missing, damaged, or made of other weights.
        PublishError: another thing stands there.
        SpaceError: no room, or no permission.
    """
    variant = variant_of(experiment, name)
    place = variant.publish.directory
    if place is None:
        raise nowhere(name, "directory")
    made_of = assemble(root, experiment, loaded, name, f"./{Path(place).name}")
    target = Path(place).expanduser()
    with disk_errors(target.parent, "the folder to publish into"):
        _put_back(target)
        if not _holds(target, made_of.contents):
            _check_ours(target, made_of, receipt(root, name, "directory"))
            _write(target, made_of)
    found = made_of.checkpoint
    made = Receipt("directory", name, place, found.id, found.digest, sizes(made_of.contents), card_sha256(made_of))
    keep(root, made)
    return made


def card_sha256(made_of: Assembly) -> str:
    """Which card it is."""
    return digest(_bytes(made_of.contents[CARD]))


def nowhere(name: str, key: str) -> PublishError:
    return PublishError(
        f"`{name}` is not to be published there", where=f"variants.{name}.publish", expected=f"`{key}`", got="none",
        todo=f"add `publish: {{{key}: ...}}` to the variant",
    )  # fmt: skip


def assemble(
    root: Path, experiment: Experiment, loaded: tuple[schema.Config, Document], name: str, place: str
) -> Assembly:
    """All files of a variant that is published: the checkpoint's, its GGUF files and its card. Every byte is checked.

    Args:
        place: where the card says that it is loaded from.
    """
    variant = variant_of(experiment, name)
    found = store.require(root, variant.job.id, checkpoints.verify)
    contents: dict[str, Path | bytes] = {file: found.path / file for file in (*found.manifest["files"], MANIFEST)}
    ggufs: dict[str, str] = {}
    for job in variant.ggufs:
        gguf = store.require(root, job.id, store.verify)
        check_source(gguf, found)
        if not gguf.facts.get("tokens_checked", True) and is_here():
            check_tokens(gguf.path / FILE, open_tokenizer(found), found.path)
        file = f"{name}-{job.recipe.parameters['type'].upper()}.gguf"  # as the hub's viewer reads names
        contents[file] = gguf.path / FILE
        ggufs[file] = gguf.manifest["files"][FILE]["sha256"]
    told = {file: size for file, size in sizes(contents).items() if file in ggufs}
    contents[CARD] = card(root, experiment, loaded, variant, told, place).encode()
    return Assembly(found, contents, ggufs)


def sizes(contents: Contents) -> dict[str, int]:
    """The size in bytes of each file."""
    return {
        name: len(source) if isinstance(source, bytes) else source.stat().st_size for name, source in contents.items()
    }


def write_files(folder: Path, contents: Contents, link: bool = False) -> None:
    """Write the files into a new folder, as files of their own; or, to be only read, as links to those of the store."""
    for name, source in contents.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            file.write_bytes(source)
            sync(file)
        elif link:
            file.symlink_to(source.resolve())
        else:
            _copy(source, file)


def _copy(source: Path, target: Path) -> None:
    """A copy that shares blocks with its source where the file system can."""
    with source.open("rb") as reading, target.open("xb") as writing:
        copy_range(reading.fileno(), 0, os.fstat(reading.fileno()).st_size, writing.fileno(), 0)
        os.fsync(writing.fileno())


def _holds(target: Path, contents: Contents) -> bool:
    """Whether the folder has these files and no others, as far as names, sizes and what is small tell."""
    if not target.is_dir():
        return False
    present = {file.relative_to(target).as_posix(): file for file in target.rglob("*") if not file.is_dir()}
    if present.keys() != contents.keys() or any(file.is_symlink() for file in present.values()):
        return False
    if {name: file.stat().st_size for name, file in present.items()} != sizes(contents):
        return False
    small = (CARD, MANIFEST)  # the manifest has the sha256 of all that is small, and the digest of all
    return all(present[name].read_bytes() == _bytes(contents[name]) for name in small)


def _bytes(source: Path | bytes) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _write(target: Path, made_of: Assembly) -> None:
    """Write beside it, look at every byte of the copy, then put it in its place."""
    found, contents = made_of.checkpoint, made_of.contents
    target.parent.mkdir(parents=True, exist_ok=True)
    label = f".{target.name}"
    sweep(target.parent, label)
    scratch = scratch_folder(target.parent, label)
    try:
        own = {name: source for name, source in contents.items() if name in (*found.manifest["files"], MANIFEST)}
        write_files(scratch, own)
        checkpoints.verify(Object(found.id, scratch, found.manifest))
        write_files(scratch, {name: source for name, source in contents.items() if name not in own})
        for name, sha256 in made_of.ggufs.items():
            if (actual := file_sha256(scratch / name)) != sha256:
                raise store.damaged(found.id, scratch / name, "sha256 of the copy", sha256, actual)
        sync(scratch)
        if target.exists():
            target.rename(_previous(target))
        try:
            scratch.rename(target)
        finally:
            _put_back(target)
        sync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _previous(target: Path) -> Path:
    """Where the folder that is replaced stands for a moment."""
    return target.with_name(f".{target.name}.previous")


def _put_back(target: Path) -> None:
    """What was to be replaced, and was not, as whoever did it died, takes its place again; else it goes."""
    previous = _previous(target)
    if previous.is_dir() and target.exists():
        shutil.rmtree(previous)
    elif previous.is_dir():
        previous.rename(target)


def _check_ours(target: Path, made_of: Assembly, last: Receipt | None) -> None:
    """Raise PublishError unless the folder is missing, empty, or holds what was published there and nothing else.

    Args:
        last: what is known to have been published; without it, the sealed manifest in the folder tells.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise _taken(target, "a file or a link")
    present = {file.relative_to(target).as_posix() for file in target.rglob("*") if not file.is_dir()}
    if not present:
        return
    ours = set(last.files) if last else listed(target) | made_of.ggufs.keys()
    if CARD in present and last and digest((target / CARD).read_bytes()) != last.card:
        raise _taken(target, f"a {CARD} that was changed since")
    if MANIFEST not in present or present - ours:
        raise _taken(target, checkpoints.some(present - ours or present))


def listed(folder: Path) -> set[str]:
    """The files of a published checkpoint as its manifest in the folder names them; nothing where there is none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        is_sealed = manifest["seal"] == store.seal(manifest)
        return {*manifest["files"], MANIFEST, CARD} if is_sealed else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _taken(target: Path, got: str) -> PublishError:
    return PublishError(
        "something else stands where a variant is to be published", where=target.absolute(),
        expected="no folder, an empty one, or what was published there before", got=got,
        todo="move it away, or name another `directory`",
    )  # fmt: skip
