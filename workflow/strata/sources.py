"""Sources: pinned inputs, brought in once and verified against their pin before anything uses them.

A package is fetched as an archive and read as one; pip neither builds nor installs it. A fetched source is an object
whose files lie under `files/`.
"""

from __future__ import annotations

import fnmatch
import gzip
import lzma
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from strata import store
from strata.disk import file_sha256
from strata.errors import SourceError
from strata.progress import bar
from strata.recipe import Recipe, canonical, digest
from strata.store import Built, Object

FILES = "files"
NOT_HUB_FILES = ["consolidated*"]  # the same weights once more, under other names
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
# What Python's readers of archives raise: RuntimeError for a member with a password or an unknown compression.
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError, RuntimeError)
_NARROW = "leave it out by a narrower `file`, or use another source"
DATASET_FILES = ["*.jsonl", "*.json", "*.parquet", "*.txt"]


def fetch(root: Path, recipe: Recipe, location: str) -> Object:
    """Bring in the source of a fetch recipe, verify its pin, publish it. `location` is the path of a local source.

    Raises:
        SourceError: it cannot be had, or its content is not what the pin says.
    """
    pin = recipe.parameters

    def build(folder: Path) -> Built:
        files = folder / FILES
        files.mkdir()
        bring(pin, location, files)
        actual = tree_sha256(files, is_one_file(pin, location))
        if pin.get("sha256") not in (None, actual):
            raise SourceError(
                "wrong checksum",
                where=name_of(pin, location),
                expected=f"sha256 {pin['sha256']}",
                got=actual,
                todo="if the new content is wanted, remove `sha256` and run `strata pin`",
            )
        return Built(facts={"sha256": actual})

    return store.publish(root, recipe, build)


def name_of(pin: Mapping[str, Any], location: str = "") -> str:
    """What a reader calls this source: `package==1.0, member`, `owner/name@revision` or its path."""
    if "package" in pin:
        return ", ".join([pin["package"], *globs(pin["file"])])
    if "dataset" in pin:
        return ", ".join([f"{pin['dataset']}@{pin['revision']}", *([pin["file"]] if "file" in pin else [])])
    return f"{pin['hub']}@{pin['revision']}" if "hub" in pin else location


def is_one_file(pin: Mapping[str, Any], location: str) -> bool:
    """Whether the pin's sha256 is that of a single file, or that of a list of files."""
    if "package" in pin or "dataset" in pin:
        return isinstance(pin.get("file"), str) and not set("*?[") & set(pin["file"])
    return "hub" not in pin and Path(location).is_file()


def tree_sha256(folder: Path, one_file: bool) -> str:
    """sha256 of the file, or over the sorted lines `<sha256>  <member>` of several."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if one_file:
        return file_sha256(files[0])
    lines = sorted(f"{file_sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files)
    return digest("".join(lines))


def bring(pin: Mapping[str, Any], location: str, folder: Path) -> None:
    """Copy the files of a source into `folder`, unverified. Raises SourceError when there are none."""
    if "package" in pin:
        _package(pin["package"], globs(pin["file"]), folder)
    elif "hub" in pin:
        _hub(pin["hub"], pin["revision"], folder, HUB_FILES, NOT_HUB_FILES)
    elif "dataset" in pin:
        _hub(pin["dataset"], pin["revision"], folder, [pin["file"]] if "file" in pin else DATASET_FILES, [], "dataset")
    elif location:
        _local(Path(location), pin.get("file", "*"), folder)
    else:
        raise SourceError(
            "nobody says where this local source lies",
            where=canonical(pin),
            expected="--location",
            got="nothing",
            todo="give it",
        )
    if not any(path.is_file() for path in folder.rglob("*")):
        raise SourceError(
            "no file matches", where=name_of(pin, location), expected=pin.get("file", "a file"), got="none"
        )


def _local(path: Path, pattern: str, folder: Path) -> None:
    if not path.exists():
        raise SourceError(
            "no such file or folder",
            where=path.absolute(),
            expected="the source",
            got="nothing",
            todo="put it there, or change `path`",
        )
    found = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    home = path.parent if path.is_file() else path
    for file in found:
        member = file.relative_to(home).as_posix()
        if path.is_file() or fnmatch.fnmatchcase(member, pattern):
            if not path.is_file() and not file.resolve().is_relative_to(home.resolve()):
                raise SourceError(
                    "a link that leaves the folder", where=file, expected=f"below {home.resolve()}", got=file.resolve()
                )
            _place(folder, member, partial(_copy, file))


def _copy(file: Path, to: Path) -> None:
    if not os.access(file, os.R_OK):
        raise SourceError(
            "cannot read the file", where=file, expected="a file that can be read", got="permission denied",
            todo="check its permissions",
        )  # fmt: skip
    shutil.copyfile(file, to)


def _hub(name: str, revision: str, folder: Path, wanted: list[str], unwanted: list[str], kind: str = "model") -> None:
    """Through huggingface_hub and its cache; HF_HUB_OFFLINE and HF_TOKEN are read by it, here, in the job."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        snapshot = Path(
            snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted)
        )
    except LocalEntryNotFoundError:
        raise SourceError(
            "not in the hub's cache, and the hub cannot be reached",
            where=f"{name}@{revision}",
            expected="its files in HF_HUB_CACHE, or a network",
            got="neither",
            todo="fetch it where there is a network, or unset HF_HUB_OFFLINE",
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise SourceError(
            "the hub refused",
            where=f"{name}@{revision}",
            expected="the files of this revision",
            got=str(error).split("\n")[0],
        ) from None
    for file in sorted(snapshot.rglob("*")):
        # The cache may hold more than was asked for, such as pickles that another program wanted.
        member = file.relative_to(snapshot).as_posix()
        if file.is_file() and _matches(member, wanted) and not _matches(member, unwanted):
            _place(folder, member, partial(_copy, file))


def _matches(member: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(member, pattern) for pattern in patterns)


def globs(file: str | list[str]) -> list[str]:
    """What a config or suite says under `file`, as a list."""
    return [file] if isinstance(file, str) else file


def _package(package: str, patterns: list[str], folder: Path) -> None:
    unmatched = dict.fromkeys(patterns)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archive = _download(package, Path(scratch))
        try:
            with _members(archive) as members:
                for member, copy in members:
                    matched = [pattern for pattern in patterns if _matches(member, [pattern]) or member == pattern]
                    for pattern in matched:
                        unmatched.pop(pattern, None)
                    if matched:
                        _place(folder, member, copy)
        except _BROKEN as error:
            raise SourceError(
                "the archive cannot be read", where=f"{package}, {archive.name}",
                expected="a wheel or a source archive", got=str(error).split("\n")[0],
                todo="try again; if it stays so, the index has a broken file",
            ) from None  # fmt: skip
    if unmatched:
        raise SourceError("no file matches", where=package, expected=", ".join(unmatched), got="none of that name")


def _download(package: str, folder: Path) -> Path:
    """Fetch the archive of one release from the first index that has it; the index's own hash is checked."""
    from pypi_simple import NoSuchProjectError, PyPISimple
    from requests import RequestException

    project, version = package.split("==")
    reached: list[str] = []
    for endpoint in _indexes():
        with PyPISimple(endpoint) as index:
            try:
                page = index.get_project_page(project)
                releases = [item for item in page.packages if item.version == version]
                wanted = min(releases, key=lambda item: _preference(item.filename), default=None)
                if wanted is None:
                    reached.append(f"{_public(endpoint)} has no version {version}")
                    continue
                index.download_package(wanted, folder / wanted.filename, progress=_progress(wanted.filename))
                return folder / str(wanted.filename)
            except NoSuchProjectError:
                reached.append(f"{_public(endpoint)} has no {project}")
            except (RequestException, ValueError, OSError) as error:
                reached.append(_public(f"{endpoint}: {error}")[:300])
    raise SourceError(
        "the package cannot be fetched",
        where=package,
        expected="an archive of this version",
        got="; ".join(reached),
        todo="check the name and the network; the index is pip's (`pip config get global.index-url`)",
    )


def _public(text: str) -> str:
    """Text without the user and password that a URL in it may hold."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _preference(filename: str) -> tuple[int, str]:
    """A wheel for every platform, then the sdist, then any wheel: the same choice on every machine."""
    if filename.endswith("-none-any.whl"):
        return 0, filename
    return (1 if filename.endswith((".tar.gz", ".zip")) else 2), filename


def _indexes() -> list[str]:
    """The indexes that pip is set up with on this machine."""

    def asked(key: str, variable: str) -> list[str]:
        if variable in os.environ:
            return os.environ[variable].split()
        command = [sys.executable, "-m", "pip", "config", "get", f"global.{key}"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()  # noqa: S603

    endpoints = asked("index-url", "PIP_INDEX_URL") or ["https://pypi.org/simple/"]
    return [url for url in endpoints + asked("extra-index-url", "PIP_EXTRA_INDEX_URL") if url.startswith("http")]


def _progress(name: str) -> Callable[[int | None], Any]:
    return lambda size: bar(name, size, "B")


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, Callable[[Path], Any]]]]:
    """Names of an archive's files and how to copy each; an sdist's one top folder is left off."""

    def copier(open_member: Callable[[], IO[bytes] | None]) -> Callable[[Path], Any]:
        def copy(target: Path) -> None:
            with open_member() as source, target.open("wb") as sink:  # type: ignore[union-attr]
                shutil.copyfileobj(source, sink, 1 << 20)

        return copy

    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as zipped:
            skip = 0 if archive.suffix == ".whl" else 1
            files = [name for name in zipped.namelist() if not name.endswith("/")]
            yield ((_without_top(name, skip), copier(partial(zipped.open, name))) for name in files)
    else:
        with tarfile.open(archive) as tarred:
            yield (
                (_without_top(item.name, 1), copier(partial(tarred.extractfile, item)))
                for item in tarred
                if item.isfile()
            )


def _without_top(name: str, skip: int) -> str:
    return "/".join(PurePosixPath(name).parts[skip:])


def _place(folder: Path, member: str, copy: Callable[[Path], Any]) -> None:
    """Copy one member to its place below `folder`, refusing a name that would leave it."""
    path = PurePosixPath(member)
    parts = path.parts
    # Not by the first part: of "//x", which POSIX lets mean something of its own, that is "//".
    if not parts or path.is_absolute() or ".." in parts or "\\" in member or "\0" in member:
        raise SourceError(
            "an unsafe file name",
            where=repr(member)[:200],
            expected="one below the source's folder",
            got="one outside of it",
            todo=_NARROW,
        )
    target = folder.joinpath(*parts)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise SourceError(
            "a file and a folder of one name", where=repr(member), expected="one of them", got="both", todo=_NARROW
        ) from None
    if target.exists():
        raise SourceError("two files of one name", where=repr(member), expected="one", got="two", todo=_NARROW)
    copy(target)
