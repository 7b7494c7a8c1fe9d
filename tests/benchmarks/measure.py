"""Run a command and measure it from outside: wall time, and the peak memory of its whole process tree."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
INTERVAL = 0.02  # seconds between looks at the process tree


@dataclass(frozen=True)
class Run:
    seconds: float
    peak_mb: float
    peak_anonymous_mb: float  # of that, what no file backs: a mapped file counts as resident while it is cached
    output: str


def measure(command: list[str], folder: Path) -> Run:
    """Run `command` in `folder`. Memory is the sum of the resident sizes of its processes, so shared pages count twice.

    Raises:
        RuntimeError: the command failed; its output is in the message.
    """
    log = folder / ".benchmark.log"
    peak, anonymous, start = 0, 0, time.monotonic()
    with log.open("w") as sink:
        process = subprocess.Popen(command, cwd=folder, stdout=sink, stderr=subprocess.STDOUT)
        root = psutil.Process(process.pid)
        while process.poll() is None:
            now = _memory(root)
            peak, anonymous = max(peak, now[0]), max(anonymous, now[1])
            time.sleep(INTERVAL)
    seconds, output = time.monotonic() - start, log.read_text()
    log.unlink()
    if process.returncode:
        raise RuntimeError(f"{command} exited with {process.returncode}:\n{output[-3000:]}")
    return Run(seconds, peak / 1e6, anonymous / 1e6, output)


def repeat(command: list[str], folder: Path, count: int) -> tuple[float, float, str]:
    """Median seconds, largest peak in MB, and the last output, of `count` runs after one that is not counted."""
    runs = [measure(command, folder) for _ in range(count + 1)][1:]
    return statistics.median(run.seconds for run in runs), max(run.peak_mb for run in runs), runs[-1].output


def snakemake(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), *arguments]


def machine() -> str:
    """The machine in a line, to stand under every table."""
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}, Python {platform.python_version()}"


def _memory(root: psutil.Process) -> tuple[int, int]:
    """Resident bytes of a process tree, and those of them that are anonymous."""
    total, anonymous = 0, 0
    try:
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0, 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
        anonymous += _anonymous(process.pid)
    return total, anonymous


def _anonymous(pid: int) -> int:
    """RssAnon of a process; 0 where the system does not tell (not Linux), or the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
