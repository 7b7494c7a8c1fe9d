"""What each job asks a cluster for, from its recipe and the size of its model. Pure; profiles only map it.

Numbers are upper bounds: weights that a process holds, plus what Python and its libraries take, growing with every
attempt after one was killed.
"""

from __future__ import annotations

from dataclasses import dataclass

from strata.config import WIDTH, Shape
from strata.job import Job
from strata.recipe import TRAINING

MB = 1_000_000
LIBRARIES_MB = {
    "fetch": 500,
    "init": 2_500,
    "analyze": 2_500,
    "screen": 5_000,
    "race": 5_000,
    "merge": 900,
    "tokenize": 3_000,
    "reference": 3_000,
    **dict.fromkeys(TRAINING, 3_000),
    "encode": 3_000,
    "evaluate": 3_000,
    "gguf": 2_000,
    "quantize": 2_000,
}  # resident before a weight is read
MINUTES = {
    "fetch": 120, "init": 20, "analyze": 30, "screen": 30, "race": 30, "merge": 20, "tokenize": 120, "reference": 30,
    **dict.fromkeys(TRAINING, 30), "encode": 40, "evaluate": 20,
    "gguf": 20, "quantize": 20,
}  # fmt: skip
TASK_MINUTES = {"encode": 20, "evaluate": 40}  # for each of a group's tasks
THREADS = {"fetch": 1, "init": 2, "encode": 2, "gguf": 1}  # 4 for the rest
SMALL_MB = 50  # a smaller model is built, and scored on a small suite, in less time than Python starts in
# Operations per second of a training step: half of what 2 cores do with a 0.2 B model in float32, and a tenth of what
# an H100 can in bfloat16. An upper bound of the time, not a forecast.
SPEED = {"cpu": 4e10, "cuda": 1e14}
ROWS = 50_000  # of a source of rows, where the config does not say how many are used
DAY = 1_440  # minutes: what takes longer is stopped, and the next attempt goes on from what it has (`retries`)
NEVER = 365 * DAY  # for what would begin anew

ACROSS = ("tasks", "tasks_per_node", "tasks_per_gpu", "cpus_per_task", "gres", "mpi")


@dataclass(frozen=True)
class Request:
    """Resources of one attempt of a job, in Snakemake's names and units; memory and disk on each of its machines."""

    threads: int
    mem_mb: int
    runtime: int  # minutes
    disk_mb: int
    gpus: int  # in all
    processes: int  # that train together
    nodes: int  # machines that they are spread over

    @property
    def gpu(self) -> int:
        """GPUs that are asked for as a sum. On several nodes they are asked for by node, or one might get more."""
        return self.gpus if self.nodes == 1 else 0


def request(job: Job, attempt: int = 1) -> Request:
    """What to ask for. Memory, time and disk grow by half of the first request with every further attempt."""
    operation, parameters = job.recipe.operation, job.recipe.parameters
    size_mb = job.shape.bytes // MB if job.shape else 0
    uses_model = operation in ("analyze", "screen", "race", "reference", "evaluate", *TRAINING)
    minutes = MINUTES[operation] + _task_minutes(job, size_mb) + _training_minutes(job) + _screen_minutes(job)
    growth = 1 + 0.5 * (attempt - 1)
    longest = DAY if operation in (*TRAINING, "screen", "evaluate") else NEVER
    return Request(
        threads=1 if _is_brief(job, size_mb) else THREADS.get(operation, 4) * job.processes,
        mem_mb=round((LIBRARIES_MB[operation] * job.processes // job.nodes + _weights_mb(job)) * growth),
        runtime=min(round(minutes * growth), longest),
        disk_mb=round(_disk_mb(job, size_mb) * growth),
        gpus=job.processes if uses_model and parameters["device"] == "cuda" else 0,
        processes=job.processes,
        nodes=job.nodes,
    )


def across(asked: Request) -> dict[str, int | str | None]:
    """What Slurm's plugin is told besides of a job that runs on several nodes: a task for each process. None is left
    out, as all is of a job on one node."""
    if asked.nodes == 1:
        return dict.fromkeys(ACROSS)
    each = asked.processes // asked.nodes
    return {
        "tasks": asked.processes if each == 1 else None,  # the plugin takes one or the other
        "tasks_per_node": each if each > 1 else None,
        "tasks_per_gpu": 0,  # or it would take `tasks` for it
        "cpus_per_task": asked.threads // asked.processes,
        "gres": f"gpu:{each}" if asked.gpus else None,
        "mpi": "srun",
    }


def _is_brief(job: Job, size_mb: int) -> bool:
    """Whether one thread is as good as several, so that more such jobs run at a time. lm-eval's tasks may be large."""
    tasks = job.recipe.parameters.get("tasks", {}).values()
    is_small = job.shape is not None and size_mb < SMALL_MB
    return is_small and job.recipe.operation not in TRAINING and all(task.get("kind") != "harness" for task in tasks)


def _weights_mb(job: Job) -> int:
    """Memory for weights: a GGUF that is read and a reference go through float32, a merge holds none, a forward pass
    casts, a GGUF is written tensor by tensor."""
    shape, parameters = job.shape, job.recipe.parameters
    if shape is None or job.recipe.operation in ("fetch", "merge"):
        return 0
    if job.recipe.operation in ("gguf", "quantize"):  # the largest, in float32, thrice
        return 12 * (shape.vocabulary or 128_000) * (shape.hidden or 8_192) // MB
    if job.recipe.operation in TRAINING:
        return _training_mb(job, shape)
    cast = parameters.get("numerics", parameters).get("dtype", "float32")
    width = 6 if job.recipe.operation in ("init", "reference") else WIDTH[cast] * 3 // 2
    # A reference's logits on a CPU: of four pairs, four vectors of the vocabulary in float32, as above.
    on_cpu = job.recipe.operation == "reference" and parameters["device"] == "cpu"
    logits = 8 * 16 * parameters["length"] * (shape.vocabulary or 50_000) if on_cpu else 0
    return int(shape.parameters * width + logits) // MB


def _training_mb(job: Job, shape: Shape) -> int:
    """Memory of the machine, not of its GPUs: all of it on a CPU; beside GPUs, what passes through on the way.

    A parameter that trains has a master, a gradient and AdamW's two averages, 4 bytes each, and 12 bytes more while
    they are written to a snapshot; a frozen one has its weight, which is read from a file.
    """
    parameters = job.recipe.parameters
    trained = shape.parameters if job.trained is None else job.trained
    weights = 8 * shape.parameters  # as stored and as computed with, by the first process: others get it by layers
    if parameters["device"] == "cuda":
        return (weights + 12 * trained // job.nodes) // MB
    # Kept for the backward pass: about 25 vectors of the hidden width for each token and layer; then four of the
    # vocabulary's, in float32: logits, their copy, their logarithms and their gradient. Pairs have two members.
    tokens = parameters["micro_batch"] * parameters["length"] * (2 if job.recipe.operation == "dpo" else 1)
    layers = 2 if parameters["activation_checkpointing"] else shape.layers
    vectors = 25 * (shape.hidden or 4_096) * layers * WIDTH[parameters["dtype"]]
    activations = tokens * (vectors + 16 * (shape.vocabulary or 50_000)) * job.processes // job.nodes
    # bfloat16 may go by way of float32: the largest matrix, the head, stands in it then, and so does its gradient.
    widened = 8 * (shape.vocabulary or 50_000) * (shape.hidden or 4_096) * (parameters["dtype"] == "bfloat16")
    return int(weights + 28 * trained + activations + widened) // MB


def _task_minutes(job: Job, size_mb: int) -> int:
    """A model is read once for each task, or once in all; how many questions a task has is not known yet."""
    operation = job.recipe.operation
    tasks = len(job.recipe.parameters["tasks"]) if operation in TASK_MINUTES else 1
    return tasks * (TASK_MINUTES.get(operation, 0) + size_mb // 200)


def _training_minutes(job: Job) -> int:
    """Six operations for each parameter and token of training, two of a forward pass alone."""
    parameters, shape = job.recipe.parameters, job.shape
    if job.recipe.operation not in (*TRAINING, "reference") or shape is None:
        return 0
    tokens: int = parameters.get("tokens") or ROWS * parameters["length"] * parameters.get("epochs", 1)
    operations = (2 if job.recipe.operation == "reference" else 6) * shape.parameters * tokens
    return round(operations / SPEED[parameters["device"]] / job.processes / 60)


def _screen_minutes(job: Job) -> int:
    """A forward pass for each plan on the selection text, of models that are as deep as the deepest."""
    parameters, shape = job.recipe.parameters, job.shape
    if job.recipe.operation != "screen" or shape is None:
        return 0
    text, budget = parameters["selection"], parameters["budget"]
    size = shape.deep(max(parameters["depths"])).parameters
    tokens = budget["plans"] * text["documents"] * text["tokens"]
    minutes = round(2 * size * tokens / SPEED[parameters["device"]] / 60)
    return int(min(minutes, budget.get("minutes", minutes)))


def _disk_mb(job: Job, size_mb: int) -> int:
    """A checkpoint is written once; of snapshots, with masters and averages, two stand while one takes over."""
    if job.recipe.operation in TRAINING:
        trained = job.trained or (job.shape.parameters if job.shape else 0)
        return 1_000 + round(1.1 * size_mb) + 3 * 12 * trained // MB
    if job.recipe.operation in ("analyze", "screen", "race", "reference", "encode", "evaluate"):
        return 1_000
    return 4_000 if job.recipe.operation == "tokenize" else 100 + round(1.1 * size_mb)
