"""Ranks: the processes that train one model together. One process is a rank of one, and needs no process group.

Ranks read the variables that torchrun sets. `launch` starts them on one machine, or through Slurm's srun on several:
unlike torchrun it hands a signal on, waits for the snapshot however long that takes, and keeps the exit code.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from strata.errors import Preempted

STOP = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)  # SIGUSR1 is NCCL's
PATIENCE = timedelta(hours=2)  # while one rank writes a large checkpoint, the others wait for it
PR_SET_PDEATHSIG = 1  # of prctl(2)
# What srun tells its tasks, as torchrun would.
AS_RANK = 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID exec "$@"'


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that train together, and its device."""

    rank: int
    size: int
    device: Any

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, samples: Sequence[int]) -> Sequence[int]:
        """This rank's part of a step's samples."""
        part = len(samples) // self.size
        return samples[self.rank * part : (self.rank + 1) * part]

    def total(self, values: Sequence[float]) -> list[float]:
        """The sums over ranks."""
        return self._reduced(values, "SUM") if self.size > 1 else list(values)

    def highest(self, value: int) -> int:
        """The largest over ranks: how they agree on what comes next."""
        return int(self._reduced([value], "MAX")[0]) if self.size > 1 else value

    def _reduced(self, values: Sequence[float], how: str) -> list[float]:
        import torch
        from torch import distributed

        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(tensor, getattr(distributed.ReduceOp, how))
        return [float(value) for value in tensor.tolist()]

    def told(self, value: Any) -> Any:
        """What the first rank has, on every rank."""
        if self.size == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, 0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """What every rank has, on every rank."""
        if self.size == 1:
            return [value]
        from torch import distributed

        boxes: list[Any] = [None] * self.size
        distributed.all_gather_object(boxes, value)
        return boxes


def is_rank() -> bool:
    """Whether a launcher has started this process as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Whether this process is the one that speaks and writes: the only one, or the first of several."""
    return not is_rank() or os.environ["RANK"] == "0"


@contextmanager
def signals() -> Iterator[list[int]]:
    """Collects signals that ask to stop, for whoever can stop well. A second Ctrl-C stops at once."""
    got: list[int] = []

    def handler(number: int, _: object) -> None:
        if number == signal.SIGINT and got:
            raise KeyboardInterrupt
        got.append(number)

    before = {number: signal.signal(number, handler) for number in STOP}
    try:
        yield got
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """Join the other ranks, where there are any."""
    import torch
    from torch import distributed

    size = int(os.environ["WORLD_SIZE"]) if is_rank() else 1
    local = int(os.environ.get("LOCAL_RANK", 0))
    place = torch.device(f"cuda:{local}" if device == "cuda" else "cpu")
    if device == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(place)
    if size == 1:
        yield Ranks(0, 1, place)
        return
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    _end_with_launcher()
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), size, place)
    finally:
        distributed.destroy_process_group()


def _end_with_launcher() -> None:
    """Let the system send SIGTERM when the launcher has died, even by kill -9: a snapshot, and the GPUs are free."""
    with suppress(AttributeError):  # Linux's alone
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def launch(command: Sequence[str], count: int, nodes: int = 1) -> None:
    """Run `count` ranks of a command on this machine, or on the nodes of this Slurm job, and wait for all of them.

    When one fails the others are stopped; a signal to this process reaches all of them.

    Raises:
        SystemExit: with the exit code of the rank that failed first, or 75 when all were stopped by a signal and left
            a snapshot; they have said why.
    """
    spread = nodes > 1 and "SLURM_JOB_ID" in os.environ
    here = socket.gethostname() if spread else "127.0.0.1"  # a job's script runs on its first node, as does rank 0
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    common = os.environ | {"MASTER_ADDR": here, "MASTER_PORT": str(port)}
    each = count // nodes if spread else count
    common.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // each)))
    ranks: list[subprocess.Popen[bytes]] = []
    before = {number: signal.signal(number, lambda got, _: _send(ranks, got)) for number in STOP}
    try:
        if spread:
            ranks.append(_start(_srun(command, count, nodes), common))
        for rank in range(0 if spread else count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            ranks.append(_start(command, common | place))
        while any(rank.poll() is None for rank in ranks):
            if failed := [rank.returncode for rank in ranks if rank.returncode not in (None, 0, Preempted.exit_code)]:
                _stop(ranks)
                raise SystemExit(failed[0] if failed[0] > 0 else 128 - failed[0])
            time.sleep(0.05)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _stop(ranks)
    codes = {rank.returncode for rank in ranks}
    if codes - {0}:
        code = max(codes, key=lambda code: (code != Preempted.exit_code, code))
        raise SystemExit(code if code > 0 else 1)


def _srun(command: Sequence[str], count: int, nodes: int) -> list[str]:
    """Slurm's own launcher: it hands signals on, and ends all ranks when one fails. One that ends well may end early,
    while the first still writes."""
    return [
        "srun", f"--nodes={nodes}", f"--ntasks={count}", f"--ntasks-per-node={count // nodes}", "--cpu-bind=none",
        "--kill-on-bad-exit=1", "--wait=0", "bash", "-c", AS_RANK, "bash", *command,
    ]  # fmt: skip


def _start(command: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A rank, or srun. It shares the locks on GPUs, which last until the last of those who hold them ends."""
    return subprocess.Popen(command, env=environment, close_fds=False)  # noqa: S603


def _send(ranks: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    for rank in ranks:
        if rank.poll() is None:
            # Ctrl-C has reached the whole group already; a second one would end it without a snapshot.
            rank.send_signal(signal.SIGUSR2 if number == signal.SIGINT else number)


def _stop(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        if rank.poll() is None:
            rank.kill()
        rank.wait()


def rank_command(arguments: Sequence[str]) -> list[str]:
    """This program again, as a rank."""
    return [sys.executable, "-m", "strata", *arguments]
