"""What each job asks a cluster for, from its recipe and the size of its model. Pure; profiles only map it.

Numbers are upper bounds: weights that a process holds, plus what Python and its libraries take, growing with every
attempt after one was killed.
"""

from __future__ import annotations

from dataclasses import dataclass

from strata.config import WIDTH, Shape
from strata.experiment import Job

MB = 1_000_000
LIBRARIES_MB = {
    "fetch": 500,
    "init": 2_500,
    "analyze": 2_500,
    "merge": 900,
    "evaluate": 3_000,
}  # resident before a weight is read


@dataclass(frozen=True)
class Request:
    """Resources of one attempt of a job, in Snakemake's names and units."""

    threads: int
    mem_mb: int
    runtime: int  # minutes
    disk_mb: int
    gpu: int


def request(job: Job, attempt: int = 1) -> Request:
    """What to ask for. Memory and time grow by half of the first request with every further attempt."""
    operation = job.recipe.operation
    size_mb = job.shape.bytes // MB if job.shape else 0
    cuda = operation in ("analyze", "evaluate") and job.recipe.parameters["device"] == "cuda"
    memory = LIBRARIES_MB[operation] + _weights_mb(job)
    minutes = {"fetch": 120, "init": 20, "analyze": 30, "merge": 20, "evaluate": 60}[operation] + size_mb // 200
    growth = 1 + 0.5 * (attempt - 1)
    return Request(
        threads={"fetch": 1, "init": 2, "analyze": 4, "merge": 4, "evaluate": 4}[operation],
        mem_mb=round(memory * growth),
        runtime=round(minutes * growth),
        disk_mb=1_000 if operation in ("analyze", "evaluate") else 100 + round(1.1 * size_mb),
        gpu=int(cuda),
    )


def _weights_mb(job: Job) -> int:
    """Memory for weights: init of a GGUF dequantises through float32, a merge holds none, a forward pass casts."""
    shape: Shape | None = job.shape
    if shape is None or job.recipe.operation in ("fetch", "merge"):
        return 0
    parameters = job.recipe.parameters
    cast = parameters.get("numerics", parameters).get("dtype", "float32")
    width = 6 if job.recipe.operation == "init" else WIDTH[cast] * 3 // 2
    return shape.parameters * width // MB
