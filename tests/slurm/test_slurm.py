"""Runs on a real Slurm of two nodes with one GPU each, through the shipped profile: queueing, and everything that ends
a job before its time. `make slurm-test`; for root on Debian."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import RUNNING, start_controller, start_node, stop, told, wait_for, wait_until_idle

from conftest import REPOSITORY, read_json, snakemake, strata, tree_sha256, write_experiment
from strata import experiment

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(RUNNING not in os.environ, reason="needs a Slurm that `make slurm-test` has started"),
]
TOKENS = 51_200  # 400 steps
ONE_THREAD = ("--set-threads", "pretrain=1")  # on a busy machine threads wait for each other for seconds
LIMIT = 600  # seconds in which each run must end
TRAINED = "data: {{diary: 1}}, tokens: {tokens}, length: 64, batch: 2, learning_rate: 2.0e-3, seed: {seed}"
VARIANTS = """\
  base: {init: {source: m}}
  dus: {parent: base, merge: {method: dus, drop: 1}}
  stacked: {parent: base, merge: {method: dus, drop: 0}}
"""
RUNS: dict[subprocess.Popen[str], Path] = {}  # and the file of what each says


@pytest.fixture
def idle() -> Iterator[Path]:
    """The folder of a cluster that has nothing to do, before and after."""
    yield Path(os.environ[RUNNING])
    for run in RUNS:  # those of a test that failed
        run.kill()
        run.wait()
    RUNS.clear()
    told("scancel", "--user=root")
    wait_until_idle()


def with_training(folder: Path, tokens: int = TOKENS, seed: int = 1, more: str = "") -> str:
    """Add a long training to the experiment in `folder`; returns the target that stands for its checkpoint."""
    settings = TRAINED.format(tokens=tokens, seed=seed) + more
    (folder / "long.yaml").write_text(f"variants:\n  long: {{parent: dus, pretrain: {{{settings}}}}}\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        id = experiment.load(["config.yaml", "long.yaml"]).variants["long"].job.id
    finally:
        os.chdir(before)
    return f"results/checkpoints/{id}.json"


def with_texts(folder: Path) -> Path:
    """Add something to learn from, something to choose on, and something to hold out, to the experiment in `folder`."""
    sources = ""
    for name, words in (
        ("diary", "On day {} I counted {} ants."),
        ("cards", "Card {} shows a cat and {} of its kittens."),
        ("letters", "Letter {} says that {} geese are here."),
    ):
        (folder / name).mkdir()
        for day in range(3):
            (folder / name / f"{day}.txt").write_text(" ".join(words.format(day, n * 3) for n in range(60)))
        sources += f"  {name}: {{path: {folder / name}, sha256: {tree_sha256(folder / name)}}}\n"
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("variants:", f"{sources}variants:", 1))
    return folder


def default_variants() -> str:
    """The variants of the default experiment, made to fit a model of four layers and a few pages."""
    screens, variants = (REPOSITORY / "config.yaml").read_text().split("\nscreens:\n")[1].split("\nvariants:\n")
    text = f"{variants.split(chr(10) + 'suites:')[0]}\nscreens:\n{screens}\n"
    for old, new in (
        ("smollm2, architecture: llama", "m"), ("drop: 6", "drop: 1"), ("group: 6", "group: 3"), ("8_192", "1_280"),
        ("length: 256", "length: 64"), ("speeches-1900s", "diary"), ("speeches-2010s", "letters"), ("2_048", "256"),
        ("speeches-2000s", "cards"), ("depth: 48", "depth: 6"), ("[48]", "[6]"), ("documents: 8", "documents: 3"),
    ):  # fmt: skip
        assert old in text, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """An experiment with a base, a merge and tokens made, so that what is left of a training is one job; and what that
    training comes to if nothing disturbs it."""
    folder = with_texts(write_experiment(tmp_path_factory.mktemp("prepared"), llama, VARIANTS))
    target = with_training(folder)
    done = snakemake(folder, target, "--configfile", "config.yaml", "long.yaml", *ONE_THREAD)
    assert done.returncode == 0, done.stdout
    checkpoint = folder / target.removesuffix(".json")
    shutil.copy(checkpoint / "manifest.json", folder / "undisturbed.json")
    shutil.rmtree(checkpoint)
    (folder / target).unlink()
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "run", symlinks=True))


def start(folder: Path, *arguments: str, profile: Path = REPOSITORY / "slurm") -> subprocess.Popen[str]:
    """`snakemake --profile slurm` as a user starts it, asking Slurm more often."""
    settings = ["--profile", str(profile), "--slurm-init-seconds-before-status-checks", "2"]
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "-s",
        str(REPOSITORY / "Snakefile"),
        *settings,
        *arguments,
        *ONE_THREAD,
    ]
    said = folder / f"run-{len(RUNS)}.txt"
    with said.open("w") as output:
        run = subprocess.Popen(
            command, cwd=folder, env=os.environ | {"STRATA_SNAPSHOT_SECONDS": "1"}, stdout=output,
            stderr=subprocess.STDOUT, text=True, preexec_fn=interruptible,
        )  # fmt: skip
    RUNS[run] = said
    return run


def train(folder: Path, *arguments: str, **others: Path) -> subprocess.Popen[str]:
    return start(folder, with_training(folder), *arguments, "--configfile", "config.yaml", "long.yaml", **others)


def end(run: subprocess.Popen[str], code: int | None = 0) -> str:
    """Wait for a run, but not without end; returns what it said."""
    for _ in while_it_runs(run):
        pass
    output = RUNS[run].read_text()
    assert code is None or run.returncode == code, output
    return output


def while_it_runs(run: subprocess.Popen[str]) -> Iterator[None]:
    """A moment after another, until a run has ended, but not without end."""
    until = time.monotonic() + LIMIT
    while run.poll() is None:
        assert time.monotonic() < until, f"no end after {LIMIT} s:\n{RUNS[run].read_text()}"
        yield
        time.sleep(0.2)


def steps(folder: Path) -> list[int]:
    """The steps of the long training that its log has, but for a line that is being written."""
    logs = folder.glob("results/training/*/log.jsonl")
    lines = (line for log in logs for line in log.read_text().splitlines(keepends=True) if line.endswith("}\n"))
    return [json.loads(line)["step"] for line in lines]


def interruptible() -> None:
    """As started from a terminal: what runs in the background of a script ignores Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def until_it_trains(folder: Path, run: subprocess.Popen[str]) -> None:
    """Wait for a job that has done some steps and written a snapshot."""

    def trains() -> bool:
        assert run.poll() is None, RUNS[run].read_text()
        return bool(list(folder.glob("results/training/*/snapshots/step-*/state.json"))) and len(steps(folder)) > 20

    wait_for(trains, "training", 120)


def job() -> str:
    """The number of the one Slurm job that runs."""
    (found,) = told("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()
    return found


def same(folder: Path) -> None:
    """What was trained is bit for bit what undisturbed training makes, from every step done once."""
    made = read_json(folder / with_training(folder))
    assert made["digest"] == read_json(folder / "undisturbed.json")["digest"]
    assert steps(folder) == list(range(1, TOKENS // 128 + 1))


def preempt() -> None:
    """A job of more importance that needs every core, for a few seconds."""
    told("sbatch", "-p", "high", "-N2", "--ntasks-per-node=16", "-o", "/dev/null", "--wrap", "sleep 2")


def test_a_whole_experiment_runs_and_three_jobs_of_one_gpu_share_two_gpus(
    idle: Path, tmp_path: Path, llama: Path
) -> None:
    """The default experiment, of a model that is small enough, from nothing to the report."""
    folder = with_texts(write_experiment(tmp_path, llama, default_variants()))
    run = start(folder, "all", "--set-resources", "evaluate:gpu=1")
    most, waited = 0, False
    for _ in while_it_runs(run):
        rows = [line.split("|") for line in told("squeue", "-h", "-o", "%T|%r|%k").splitlines()]
        evaluations = [(state, why) for state, why, comment in rows if "rule_evaluate" in comment]
        most = max(most, sum(state == "RUNNING" for state, _ in evaluations))
        waited = waited or ("PENDING", "Resources") in evaluations
    end(run)
    assert most == 2 and waited
    assert (folder / "results/report/report.html").exists()
    scored = [line.split(",")[0] for line in (folder / "results/report/scores.csv").read_text().splitlines()[1:]]
    assert set(scored) == set(re.findall(r"^  ([\w-]+):", default_variants().split("screens:")[0], re.MULTILINE))
    assert strata(folder, "verify").returncode == 0


def test_a_job_that_is_preempted_and_queued_again_ends_with_the_same_result(idle: Path, folder: Path) -> None:
    run = train(folder)
    until_it_trains(folder, run)
    preempt()
    output = end(run)
    assert "Trying to restart" not in output  # no attempt is lost
    same(folder)


def test_a_job_that_is_preempted_and_cancelled_is_queued_again_by_us(idle: Path, folder: Path) -> None:
    run = train(folder, "--default-resources", "slurm_partition=lowcancel")
    until_it_trains(folder, run)
    preempt()
    assert "was in state PREEMPTED; it is queued again" in end(run)
    same(folder)


def test_where_slurm_does_not_queue_it_again_the_run_ends_and_says_why(
    idle: Path, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(REPOSITORY / "slurm", tmp_path / "profile")
    profile = tmp_path / "profile" / "profile.yaml"
    profile.write_text(profile.read_text().replace("slurm-requeue: true", "slurm-no-requeue: true"))
    run = train(folder, "--default-resources", "slurm_partition=lowcancel", profile=tmp_path / "profile")
    until_it_trains(folder, run)
    preempt()
    output = end(run, 9)
    assert "Snakemake would wait on without end" in output and "PREEMPTED" in output


def test_a_job_whose_time_is_over_goes_on_with_more(idle: Path, folder: Path) -> None:
    """As one that hangs, and is not told before: it loses what it did since its last snapshot."""
    run = train(folder, "--set-resources", "pretrain:runtime=attempt**3")
    until_it_trains(folder, run)
    os.kill(training(folder), signal.SIGSTOP)
    output = end(run)
    assert "Trying to restart" in output and "TIMEOUT" in output
    same(folder)


def test_before_the_time_is_over_training_is_told_and_writes_a_snapshot(idle: Path, folder: Path) -> None:
    """Slurm sends it up to half a minute early, that is after 50 to 80 seconds of two minutes. Until then it stands still."""
    run = train(folder, "--set-resources", "pretrain:runtime=2*attempt**3", "pretrain:slurm_extra=--signal=TERM@40")
    until_it_trains(folder, run)
    process = training(folder)
    os.kill(process, signal.SIGSTOP)
    wait_for(lambda: status_of(process)["State"].startswith("T"), "stop", 20)  # what it asked of a disk is done first
    wait_for(lambda: is_told_to_end(process), "signal", 120)
    os.kill(process, signal.SIGCONT)
    output = end(run)
    assert "stopped by a signal" in output and "TIMEOUT" not in output
    same(folder)


def test_a_job_that_is_killed_for_its_memory_names_mem_mb_and_goes_on_with_more(idle: Path, folder: Path) -> None:
    run = train(folder, "--set-resources", "pretrain:mem_mb=200*attempt**4")
    output = end(run)
    assert "was killed for want of memory" in output and "raise `mem_mb` of pretrain" in output
    assert "Trying to restart" in output
    same(folder)


def test_the_controller_may_restart(idle: Path, folder: Path) -> None:
    run = train(folder)
    until_it_trains(folder, run)
    stop(idle / "slurmctld.pid")
    time.sleep(40)  # longer than the job takes, and than the plugin and the watch wait between two looks
    start_controller("-R")
    assert "Trying to restart" not in end(run)
    same(folder)


def test_a_node_is_lost_and_its_job_still_writes_after_another_has_published(idle: Path, folder: Path) -> None:
    run = train(folder)
    until_it_trains(folder, run)
    node = told("squeue", "-h", "-t", "RUNNING", "-o", "%N")
    zombie = training(folder)
    os.kill(zombie, signal.SIGSTOP)
    os.kill(int((idle / f"{node}.pid").read_text()), signal.SIGKILL)
    told("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")
    try:
        end(run)
        target = folder / with_training(folder)
        before = target.read_bytes()
        os.kill(zombie, signal.SIGCONT)
        wait_for(lambda: not Path(f"/proc/{zombie}").exists(), "end of the zombie", 120)
        assert target.read_bytes() == before
        assert read_json(target)["digest"] == read_json(folder / "undisturbed.json")["digest"]
        assert strata(folder, "store", "verify").returncode == 0
    finally:
        start_node(node)
        told("scontrol", "update", f"nodename={node}", "state=resume")


def training(folder: Path) -> int:
    """The process that trains in a folder."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().split(b"\0")
            if words[1:4] == [b"-m", b"strata", b"pretrain"] and (command.parent / "cwd").resolve() == folder.resolve():
                return int(command.parent.name)
        except OSError:
            continue
    raise AssertionError("no process trains")


def status_of(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def is_told_to_end(process: int) -> bool:
    """Whether a process that stands still has a SIGTERM to come, or goes on since Slurm woke it."""
    fields = status_of(process)
    pending = int(fields["ShdPnd"], 16) | int(fields["SigPnd"], 16)
    return bool(pending >> (signal.SIGTERM - 1) & 1) or not fields["State"].startswith("T")


def test_a_job_that_is_cancelled_is_tried_again(idle: Path, folder: Path) -> None:
    run = train(folder)
    until_it_trains(folder, run)
    told("scancel", job())
    output = end(run)
    assert "CANCELLED" in output and "Trying to restart" in output
    same(folder)


def test_ctrl_c_cancels_what_runs_and_the_next_run_goes_on(idle: Path, folder: Path) -> None:
    run = train(folder)
    until_it_trains(folder, run)
    run.send_signal(signal.SIGINT)
    end(run, 1)
    wait_for(lambda: not told("squeue", "-h", "-t", "RUNNING,PENDING"), "empty queue", 60)
    end(train(folder))
    same(folder)


def test_a_job_that_is_cancelled_fails_and_the_next_run_goes_on(idle: Path, folder: Path) -> None:
    run = train(folder, "--retries", "0")
    until_it_trains(folder, run)
    told("scancel", job())
    assert "CANCELLED" in end(run, 1)
    end(train(folder))
    same(folder)


def test_a_driver_that_is_killed_and_started_again_waits_for_the_job_it_left(idle: Path, folder: Path) -> None:
    run = train(folder)
    until_it_trains(folder, run)
    first = job()
    run.kill()
    run.wait()
    assert job() == first
    subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--unlock"], cwd=folder, check=True
    )
    end(train(folder))
    same(folder)


def test_two_processes_on_two_nodes_train_what_two_on_one_do(idle: Path, folder: Path, prepared: Path) -> None:
    made = []
    for nodes in (1, 2):
        target = with_training(folder, 1_280, 5, f", processes: 2, nodes: {nodes}")
        run = start(folder, target, "--configfile", "config.yaml", "long.yaml")
        steps_on = set[str]()
        for _ in while_it_runs(run):
            steps_on |= set(told("squeue", "-h", "-s", "-o", "%N").split())
        end(run)
        assert ("n[0-1]" in steps_on) == (nodes == 2), steps_on
        made.append(read_json(folder / target)["digest"])
        checkpoint = folder / target.removesuffix(".json")
        shutil.move(checkpoint, folder / f"on-{nodes}")
        (folder / target).unlink()
        shutil.rmtree(folder / "results/training")
    assert made[0] == made[1]
