"""Run records: when, where and how a job ran. Volatile, beside the store, never part of an id or a table."""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from strata import store
from strata.disk import write_atomically

PACKAGES = ("torch", "transformers", "lm_eval", "safetensors", "gguf", "llama_cpp", "numpy", "snakemake")
_CALLED = {"llama_cpp": "llama-cpp-python"}  # where a distribution has another name than its module


@contextmanager
def recorded(root: Path, id: str) -> Iterator[None]:
    """Write `runs/<id>.json` when the block ends well: host, time, seconds, peak memory, versions of what it loaded.

    Of several processes that train together the first is recorded. A job that finds its object in the store leaves the
    record of the one that made it.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    file = root / "runs" / f"{id}.json"
    is_hit = file.exists() and store.target(root, id).with_suffix("").is_dir()
    yield
    if os.environ.get("RANK", "0") != "0" or is_hit:
        return
    record = {
        "id": id,
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - clock, 2),
        "peak_memory_mb": peak_memory_mb(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "versions": _versions(),
    }
    write_atomically(file, (json.dumps(record, indent=1) + "\n").encode())


class Cost(NamedTuple):
    """What a job took: of one that was stopped and went on, its last part."""

    seconds: float
    peak_memory_mb: int | None


def cost(root: Path, id: str) -> Cost | None:
    """The cost of the job that made an artefact, if there is a record of it."""
    try:
        record = json.loads((root / "runs" / f"{id}.json").read_bytes())
        memory = record["peak_memory_mb"]
        return Cost(float(record["seconds"]), None if memory is None else int(memory))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class Run(NamedTuple):
    """When the job that made an artefact started and ended, in seconds since 1970, and the versions it ran with."""

    started: int
    ended: int
    versions: dict[str, str]


def run_of(root: Path, id: str) -> Run | None:
    """The run of the job that made an artefact, if there is a record of it."""
    try:
        record = json.loads((root / "runs" / f"{id}.json").read_bytes())
        started = datetime.fromisoformat(record["started"]).timestamp()
        versions = {str(name): str(version) for name, version in record["versions"].items()}
        return Run(int(started), int(started + record["seconds"]), versions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _versions() -> dict[str, str]:
    loaded = [package for package in PACKAGES if package in sys.modules]
    if not loaded:
        return {}  # and spare a merge the 20 ms of looking for them
    from importlib.metadata import version

    return {package: version(_CALLED.get(package, package)) for package in loaded}


def peak_memory_mb() -> int | None:
    """The most memory this process has held. Not getrusage's: that one starts at the parent's size."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) // 1024 if found else None
