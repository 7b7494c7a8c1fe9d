"""Progress of long jobs: a bar on the terminal, once a job has run for ten seconds."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any, TextIO

DELAY = 10.0  # seconds
log_file = ""  # where everything else goes, once `log_to` was called
terminal: TextIO = sys.stderr  # what the job was started with; `log_to` moves everything else into the log


def bar(name: str, total: int | None, unit: str = "it") -> Any:
    """A tqdm bar (a context manager with `update`). Where there is no terminal it writes a line every half minute."""
    from tqdm import tqdm

    interval = 0.5 if terminal.isatty() else 30.0
    return tqdm(
        desc=name, total=total, unit=unit, unit_scale=True, delay=DELAY, mininterval=interval, maxinterval=interval,
        file=terminal, dynamic_ncols=True, leave=False,
    )  # fmt: skip


def log_to(path: str) -> None:
    """Send what this process and its libraries print to a file; bars and errors still reach the terminal."""
    global terminal, log_file
    log_file = path
    terminal = os.fdopen(os.dup(2), "w", buffering=1)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def say(message: str) -> None:
    """Tell the user, and the log where there is one."""
    print(message, file=terminal)
    if terminal is not sys.stderr:
        with suppress(OSError):  # which may lie on the disk that is full
            print(message, file=sys.stderr, flush=True)  # into the log as well
