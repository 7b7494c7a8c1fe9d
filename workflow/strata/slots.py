"""Slots: which GPUs of this machine a job may use, so that jobs side by side have GPUs of their own.

A GPU is held by a lock on a file of its name in the machine's folder for temporary files. It ends when the process
that took it and the ranks that it has started have all ended, in whichever way. So too within an allocation of a
scheduler, where several jobs may run side by side.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from strata.errors import ClusterError

VISIBLE = "CUDA_VISIBLE_DEVICES"
LOOK = 2.0  # seconds between two looks for a free GPU
_logger = logging.getLogger(__name__)


@contextmanager
def gpus(count: int) -> Iterator[None]:
    """See only `count` GPUs, which no other job of this user's on this machine sees meanwhile, as far as they share a
    folder for temporary files. Waits until so many are free.

    Raises:
        ClusterError: this machine has fewer.
    """
    if not count:
        yield
        return
    there = visible()
    if there and count > len(there):  # where there is none, whoever opens one says so
        raise ClusterError(
            "a job asks for more GPUs than this machine has", where=VISIBLE if VISIBLE in os.environ else "nvidia-smi",
            expected=f"at most {len(there)}: {', '.join(there)}", got=count,
            todo="set `processes` of the variant to what there is, or run it on a cluster",
        )  # fmt: skip
    with ExitStack() as held:
        if there:
            mine = _held(held, there, count)
            before = os.environ.get(VISIBLE)
            os.environ[VISIBLE] = ",".join(mine)
            held.callback(_put_back, before)
        yield


def visible() -> list[str]:
    """The GPUs that this process may use, as CUDA names them. Found without torch, which would open them."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    listed = _listed()
    parts = re.findall(r"UUID: (MIG-[0-9a-f-]+)", listed)  # a GPU that is cut into parts is used by its parts
    return parts or re.findall(r"UUID: (GPU-[0-9a-f-]+)", listed)


def _listed() -> str:
    try:
        return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout  # noqa: S607
    except (OSError, subprocess.CalledProcessError):
        return ""


def _held(stack: ExitStack, names: Sequence[str], count: int) -> list[str]:
    """The names of GPUs that are locked until the stack ends: all at once or none, so that no two jobs wait for what
    the other holds."""
    folder = Path(tempfile.gettempdir(), f"strata-gpus-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    files = {name: folder / file for name, file in zip(names, _files(names), strict=True)}
    said = False
    while True:
        with ExitStack() as tried:
            mine: list[str] = []
            for name, file in files.items():
                if len(mine) < count and _lock(tried, file):
                    mine.append(name)
            if len(mine) == count:
                stack.enter_context(tried.pop_all())
                return mine
        if not said:
            _logger.warning("waiting for %d of %d GPUs: other jobs hold them", count, len(names))
            said = True
        time.sleep(LOOK)


def _files(names: Sequence[str]) -> list[str]:
    """The names of GPUs' locks: a number stands for the GPU of that number, so that who names it by UUID waits for it.

    Not within a scheduler's job, for each of which GPUs may be numbered anew, or given to several on purpose: there a
    number is one of that job's. Nor where GPUs differ, which CUDA numbers by their speed and not as they are listed.
    """
    job = [os.environ[key] for key in ("SLURM_JOB_ID", "SLURM_STEP_ID") if key in os.environ]
    listed = _listed() if not job and any(name.isdigit() for name in names) else ""
    found = re.findall(r"^GPU (\d+): (.*) \(UUID: (GPU-[0-9a-f-]+)\)$", listed, re.MULTILINE)
    alike = len({model for _, model, _ in found}) == 1 and "MIG-" not in listed
    known = {number: uuid for number, _, uuid in found} if alike else {}
    full = [".".join([*(job if name.isdigit() else []), known.get(name, name)]) for name in names]
    return [re.sub(r"\W", "_", name) for name in full]


def _lock(stack: ExitStack, file: Path) -> bool:
    """Lock a file until the stack ends, unless another process has. It is removed while it is still locked, so who has
    opened it meanwhile sees that it is no longer the file of that name."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_it = file.stat().st_ino == os.fstat(handle).st_ino
    except (BlockingIOError, FileNotFoundError):
        is_it = False
    if not is_it:
        os.close(handle)
        return False
    os.set_inheritable(handle, True)  # ranks that outlive their launcher still use its GPUs
    stack.callback(os.close, handle)
    stack.callback(file.unlink, missing_ok=True)
    return True


def _put_back(before: str | None) -> None:
    os.environ.pop(VISIBLE, None)
    if before is not None:
        os.environ[VISIBLE] = before
