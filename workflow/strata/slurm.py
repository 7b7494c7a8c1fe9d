"""Watch over the jobs of a run on Slurm, for what Snakemake's plugin does not see or does not explain.

The plugin waits without end for a job that was preempted and not queued again, and for one that lost its node while it
counts on Slurm to queue it again. Slurm is asked to do so; where it refuses, the run ends. A job that was killed for
its memory is told of as such, with what to change.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from strata.errors import ClusterError

LOOK = 20.0  # seconds between two looks
TRIES = 5  # at the start of a run, until Slurm tells which jobs are not of this run
WATCHED = 60  # seconds: three looks, of which one at least is answered
SEEN = 240  # seconds: the plugin looks every three minutes at least, and looking takes time
FIELDS = ("JobID", "State", "exit_code", "Comment", "STDOUT", "WorkDir")
AWAY = re.compile(r"unable to contact|timed out|connect failure|zero bytes|standby|no answer", re.IGNORECASE)
KILLED = re.compile(r"exceeded (job )?memory limit|oom[-_]kill", re.IGNORECASE)  # slurmstepd's words in a job's log


@dataclass(frozen=True)
class SlurmJob:
    """One job as Slurm has it."""

    id: str
    state: str
    code: str  # of its exit, or the signal that ended it
    rule: str
    log: Path


def watch(
    folder: Path, requeues: bool, say: Callable[[str], None], end: Callable[[ClusterError], None]
) -> Callable[[], None]:
    """Look after the jobs that are submitted in a folder from now on, in a thread of its own.

    Args:
        requeues: whether the plugin leaves a job that lost its node to Slurm; or else it has failed.
        say: told what the user should know.
        end: told why the run cannot go on; then nothing more is watched.

    Returns:
        What looks once more, at the end of a run that failed.
    """
    done = {job.id for job in _first(folder)}  # of earlier runs
    stranded = ("PREEMPTED", "NODE_FAIL") if requeues else ("PREEMPTED",)

    def go_on() -> None:
        pause = threading.Event()
        while not pause.wait(LOOK):
            refusal = _look(folder, stranded, done, say)
            if refusal is not None:
                end(refusal)
                return

    def last() -> None:
        _tell_of_memory(jobs(folder) or [], done, say)

    threading.Thread(target=go_on, daemon=True).start()
    return last


def _first(folder: Path) -> list[SlurmJob]:
    """The jobs that there are at the start of a run, asked for until Slurm answers, but not without end."""
    for _ in range(TRIES):
        found = jobs(folder)
        if found is not None:
            return found
        time.sleep(LOOK / TRIES)
    return []


def _look(folder: Path, stranded: Sequence[str], done: set[str], say: Callable[[str], None]) -> ClusterError | None:
    """Queue again what is stranded. Returns why the run cannot go on where Slurm refuses; while the controller is away,
    the next look asks again."""
    found = jobs(folder) or []
    _tell_of_memory(found, done, say)
    for job in found:
        if job.state in stranded and job.id not in done:
            refusal = _queue_again(job.id)
            if AWAY.search(refusal):
                continue
            if refusal:
                return _cannot_go_on(job, refusal)
            say(f"Slurm job {job.id} ({job.rule}) was in state {job.state}; it is queued again")
    return None


def _tell_of_memory(found: list[SlurmJob], done: set[str], say: Callable[[str], None]) -> None:
    for job in found:
        if job.id not in done and is_out_of_memory(job):
            done.add(job.id)
            say(str(out_of_memory(job)))


def jobs(folder: Path) -> list[SlurmJob] | None:
    """Snakemake's jobs in a folder, queued, running or ended a short while ago; None while Slurm does not answer."""
    form = ",".join(f"{field}:|" for field in FIELDS)
    said = _told("squeue", "--me", "--states=all", "--noheader", f"--Format={form}")
    if said is None:
        return None
    rows = [line.split("|") for line in said.splitlines()]
    return [
        SlurmJob(id, state, code, comment.partition("_")[2].partition("_wildcards_")[0], Path(log.replace("%j", id)))
        for id, state, code, comment, log, place in (row[:6] for row in rows if len(row) > 5)
        if comment.startswith(("rule_", "group_")) and Path(place) == folder
    ]


@cache
def restarts(job: str) -> int:
    """How often Slurm has queued a job again; -1 where it does not say. Asked of Slurm, since Snakemake's plugin takes
    SLURM_RESTART_COUNT away from its jobs."""
    said = _told("scontrol", "show", "job", "--oneliner", job) or ""
    found = re.search(rf"^JobId={re.escape(job)} .*\bRestarts=(\d+)", said, re.MULTILINE)
    return int(found[1]) if found else -1


def is_out_of_memory(job: SlurmJob) -> bool:
    """Slurm says so of some jobs; of others only their log does, or that they were killed by signal 9."""
    if job.state != "FAILED":
        return job.state == "OUT_OF_MEMORY"
    try:
        return job.code.endswith(":9") or job.code == "9" or bool(KILLED.search(job.log.read_text(errors="replace")))
    except OSError:
        return False


def out_of_memory(job: SlurmJob) -> ClusterError:
    """What a user is told of a job that was killed for its memory."""
    return ClusterError(
        f"a job of `{job.rule}` was killed for want of memory", where=f"Slurm job {job.id}",
        expected="its memory within `mem_mb`", got=f"{job.state}; log: {job.log}",
        todo=f"each retry asks for more; or raise `mem_mb` of {job.rule} under `set-resources` in slurm/profile.yaml",
    )  # fmt: skip


def check_job_age(status_command: str, has_accounts: bool, first_look: float, say: Callable[[str], None]) -> None:
    """See that Slurm remembers a job that has ended until the plugin asks for it, and until the watch does.

    Args:
        status_command: that the plugin is to ask, squeue or sacct. It takes squeue where there are no accounts, and
            sacct where there are and squeue forgets within three times `first_look`.
        first_look: seconds until it asks first.
        say: told what the watch will not see.

    Raises:
        ClusterError: Slurm forgets sooner, and the plugin would wait for the job without end.
    """
    found = re.search(r"^MinJobAge\s*=\s*(\d+)", _told("scontrol", "show", "config") or "", re.MULTILINE)
    age = int(found[1]) if found else 0  # it does not say; and 0 is for ever
    asks_sacct = has_accounts and (status_command == "sacct" or age < 3 * first_look)
    if 0 < age < SEEN and not asks_sacct:
        raise ClusterError(
            "Slurm forgets jobs that have ended sooner than Snakemake asks squeue for them",
            where="MinJobAge in slurm.conf", expected=f"at least {SEEN} seconds", got=age,
            todo="set `slurm-status-command: sacct` in slurm/profile.yaml" if has_accounts
            else "ask who runs the cluster to raise it",
        )  # fmt: skip
    if 0 < age < WATCHED:
        say(
            f"Slurm forgets jobs {age} seconds after their end (MinJobAge). One that is preempted and not queued again "
            "may not be seen, and this run would wait for it: look at the queue when it stands still"
        )


def _told(*query: str) -> str | None:
    """What a command of Slurm's says; None where it does not answer."""
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=60)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if run.returncode else run.stdout


def _queue_again(job: str) -> str:
    """Ask Slurm to queue a job again. Returns why it does not, or nothing."""
    try:
        run = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)  # noqa: S603, S607
    except (OSError, subprocess.TimeoutExpired):
        return "no answer"
    return (run.stderr.strip() or f"exit code {run.returncode}") if run.returncode else ""


def _cannot_go_on(job: SlurmJob, refusal: str) -> ClusterError:
    return ClusterError(
        "a job has ended in a state that Snakemake would wait on without end, and Slurm does not queue it again",
        where=f"Slurm job {job.id}, rule {job.rule}", expected="a job that ends, or is queued again",
        got=f"{job.state}; scontrol: {refusal}",
        todo="run the same command again: finished work is kept. `slurm-requeue: true` in the profile lets Slurm do it",
    )  # fmt: skip
