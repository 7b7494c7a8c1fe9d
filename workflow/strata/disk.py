"""The disk: small files that are seen whole or not at all, durable names, hashes, and what is said when it fails."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from strata.errors import SpaceError
from strata.scratch import scratch_file


def write_atomically(file: Path, data: bytes, mode: int = 0o644) -> None:
    """Write a small file so that readers see the old or the new one, never a part."""
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_file(file)
    try:
        scratch.write_bytes(data)
        scratch.chmod(mode)
        sync(scratch)
        scratch.replace(file)
    finally:
        scratch.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, outlast a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_sha256(file: Path) -> str:
    """sha256 of a file's bytes, in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unusable(error: OSError) -> SpaceError:
    """The error for a path that the system refuses, for reasons of its own."""
    return SpaceError(
        "a path cannot be used", where=error.filename or "see the log", got=error.strerror,
        expected="a path that can be read, and written where results go",
    )  # fmt: skip


@contextmanager
def disk_errors(root: Path, name: str = "the store") -> Iterator[None]:
    """Turn a full or read-only disk into an error that names it. Raises SpaceError."""
    try:
        yield
    except OSError as error:
        where = error.filename2 or error.filename or root  # of a copy, the first is what was read
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(root).free if root.is_dir() else 0
            todo = "free some space and run again: nothing half-written was left"
            raise SpaceError(
                "the disk is full",
                where=where,
                expected="room for what is written",
                got=f"{free:,} bytes free",
                todo=todo,
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            todo = "make it writable, or use another folder"
            raise SpaceError(
                f"cannot write to {name}",
                where=where,
                expected="a place that takes files",
                got=error.strerror,
                todo=todo,
            ) from None
        error.filename = error.filename or str(root)  # a write that fails does not tell where
        raise
