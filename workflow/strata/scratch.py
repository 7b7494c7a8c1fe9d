"""Scratch: work in progress, under a name that tells whose it is, and what the dead have left of such."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path


def scratch_folder(folder: Path, id: str) -> Path:
    """A new folder for work in progress, under a name that tells `sweep` whose it is."""
    scratch = folder / _name(id)
    scratch.mkdir(parents=True)
    return scratch


def scratch_file(file: Path) -> Path:
    """A hidden name beside a file, for what is to take its place."""
    return file.with_name(_name(f".{file.name}"))


def _name(id: str) -> str:
    return f"{id}.{machine()}.{os.getpid()}.{secrets.token_hex(4)}"


@cache
def machine() -> str:
    """A name of this machine, within which numbers tell processes apart: one of the same host name is another, and so
    is a container that counts its own."""
    known = ""
    with suppress(OSError):
        known += Path("/etc/machine-id").read_text()
    with suppress(OSError):
        known += os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()}-{hashlib.sha256(known.encode()).hexdigest()[:8]}"


def sweep(folder: Path, id: str) -> None:
    """Remove what processes of this machine that are dead left of the same id."""
    for path in folder.glob(f"{id}.{machine()}.*") if folder.is_dir() else ():
        process = path.name.split(".")[-2]
        if process.isdigit() and not is_alive(int(process)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()


def is_alive(process: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:  # no Linux, or it ended just now: taken for alive until the next look
        return True
    return state not in ("Z", "X")  # dead, and nobody has asked how it ended
