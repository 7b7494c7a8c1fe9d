"""The watch over a run's jobs, with a stand-in for Slurm that says what a test wants."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest

from strata import slurm
from strata.errors import ClusterError


class Cluster:
    """What squeue tells, what scontrol was asked, and what the user was told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told, self.ended = folder, list[str](), list[ClusterError]()

    def has(self, *rows: str) -> None:
        """Rows of `id|state|exit code|comment`; each job's log is `<id>.log`."""
        (self.folder / "queue").write_text("".join(f"{row}|{self.folder}/%j.log|{self.folder}|\n" for row in rows))

    def asked(self) -> list[str]:
        file = self.folder / "asked"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    programs = {
        "squeue": f'cat "{tmp_path}/queue"',
        "scontrol": f'echo "$@" >> "{tmp_path}/asked"; [ ! -e "{tmp_path}/refuses" ] || {{ echo no >&2; exit 1; }}',
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(slurm, "LOOK", 0.05)
    return Cluster(tmp_path)


def watch(cluster: Cluster, *rows: str, stranded: Sequence[str] = ("PREEMPTED",)) -> None:
    """Four looks at a run whose jobs come to these states, as the thread takes them."""
    done = {job.id for job in slurm.jobs(cluster.folder) or []}
    cluster.has(*rows)
    for _ in range(4):
        refusal = slurm._look(cluster.folder, stranded, done, cluster.told.append)
        if refusal is not None:
            cluster.ended.append(refusal)
            return


PREEMPTED = "7|PREEMPTED|15|rule_pretrain_wildcards_abc"


def test_a_preempted_job_is_queued_again(cluster: Cluster) -> None:
    cluster.has()
    watch(cluster, PREEMPTED)
    assert "requeue 7" in cluster.asked() and "is queued again" in cluster.told[0] and not cluster.ended


def test_where_slurm_refuses_the_run_ends_once_with_the_reason(cluster: Cluster) -> None:
    cluster.has()
    (cluster.folder / "refuses").touch()
    watch(cluster, PREEMPTED)
    (error,) = cluster.ended
    assert error.exit_code == 9 and "rule pretrain" in str(error) and "PREEMPTED; scontrol: no" in str(error)


def test_while_the_controller_is_away_it_is_asked_again(cluster: Cluster) -> None:
    cluster.has()
    away = "slurm_requeue error: Unable to contact slurm controller (connect failure)"
    count = 'n=$(wc -l < "$0.asked" 2> /dev/null || echo 0); echo >> "$0.asked"'
    (cluster.folder / "scontrol").write_text(
        f'#!/bin/sh\n{count}\n[ "$n" -ge 2 ] || {{ echo "{away}" >&2; exit 1; }}\n'
    )
    watch(cluster, PREEMPTED)
    assert not cluster.ended and "is queued again" in cluster.told[0]


def test_a_job_that_lost_its_node_has_failed_where_the_plugin_takes_it_so(cluster: Cluster) -> None:
    lost = PREEMPTED.replace("PREEMPTED", "NODE_FAIL")
    cluster.has()
    watch(cluster, lost)
    assert not cluster.asked()
    watch(cluster, lost, stranded=("PREEMPTED", "NODE_FAIL"))
    assert not cluster.asked()  # it is an earlier run's by now
    cluster.has()
    watch(cluster, lost, stranded=("PREEMPTED", "NODE_FAIL"))
    assert "requeue 7" in cluster.asked()


@pytest.mark.parametrize(
    ("age", "command", "has_accounts", "is_well"),
    [
        (300, "squeue", False, True),
        (240, "squeue", False, True),
        (180, "squeue", False, False),
        (120, "squeue", True, False),
        (120, "sacct", True, True),
        (120, "sacct", False, False),  # the plugin asks squeue then
        (40, "squeue", True, True),
        (40, "squeue", False, False),
        (0, "squeue", False, True),  # for ever
    ],
)
def test_a_slurm_that_forgets_jobs_too_soon_is_refused(
    cluster: Cluster, age: int, command: str, has_accounts: bool, is_well: bool
) -> None:
    """Below three times its first look, 15 seconds, the plugin asks sacct by itself."""
    (cluster.folder / "scontrol").write_text(f'#!/bin/sh\necho "MinJobAge               = {age} sec"\n')
    told: list[str] = []
    with nullcontext() if is_well else pytest.raises(ClusterError, match=f"got: +{age}"):
        slurm.check_job_age(command, has_accounts, 15, told.append)
    assert bool(told) == (is_well and age == 40)


@pytest.mark.parametrize(
    ("row", "log"),
    [
        ("8|OUT_OF_MEMORY|0|rule_evaluate", ""),
        ("8|FAILED|9|rule_evaluate", ""),
        ("8|FAILED|256|rule_evaluate", "slurmstepd: error: StepId=8.0 exceeded memory limit (2 > 1), being killed"),
        ("8|FAILED|256|rule_evaluate", "slurmstepd: error: Detected 1 oom_kill event in StepId=8.0."),
    ],
)
def test_a_job_that_was_killed_for_its_memory_is_told_of_once_with_what_to_change(
    cluster: Cluster, row: str, log: str
) -> None:
    cluster.has()
    (cluster.folder / "8.log").write_text(log)
    watch(cluster, row, "9|FAILED|256|rule_evaluate")
    (text,) = cluster.told
    assert (
        "killed for want of memory" in text
        and "raise `mem_mb` of evaluate under `set-resources`" in text
        and not cluster.asked()
    )


def test_jobs_of_an_earlier_run_of_other_folders_and_of_other_programs_are_left_alone(cluster: Cluster) -> None:
    cluster.has(PREEMPTED)
    watch(cluster, PREEMPTED, "8|PREEMPTED|15|(null)", "9|RUNNING|0|rule_pretrain")
    assert not cluster.asked() and not cluster.told
    assert slurm.jobs(cluster.folder) and not slurm.jobs(cluster.folder / "elsewhere")


def test_the_watch_looks_by_itself_and_ends_with_the_run(cluster: Cluster) -> None:
    cluster.has()
    (cluster.folder / "refuses").touch()
    slurm.watch(cluster.folder, True, cluster.told.append, cluster.ended.append)
    cluster.has(PREEMPTED)
    until = time.monotonic() + 60
    while not cluster.ended and time.monotonic() < until:
        time.sleep(0.02)
    assert len(cluster.ended) == 1


def test_jobs_of_an_earlier_run_are_known_as_such_although_slurm_does_not_answer_at_once(cluster: Cluster) -> None:
    cluster.has(PREEMPTED)
    (cluster.folder / "squeue").write_text(
        f'#!/bin/sh\n[ -e "$0.asked" ] || {{ touch "$0.asked"; exit 1; }}\ncat "{cluster.folder}/queue"\n'
    )
    slurm.watch(cluster.folder, True, cluster.told.append, cluster.ended.append)
    time.sleep(0.5)
    assert not cluster.asked() and not cluster.told


def test_slurm_is_asked_how_often_a_job_was_queued_again(cluster: Cluster) -> None:
    said = "JobId=7 JobName=x Requeue=1 Restarts=2 BatchFlag=1"
    (cluster.folder / "scontrol").write_text(f'#!/bin/sh\n[ "$4" != 7 ] || echo "{said}"\n')
    assert slurm.restarts("7") == 2
    assert slurm.restarts("8") == -1  # it does not answer
