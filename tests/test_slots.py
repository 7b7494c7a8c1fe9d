"""Slots: jobs side by side on one machine see GPUs of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from strata import slots
from strata.errors import ClusterError
from strata.slots import VISIBLE, gpus, visible


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs, which `nvidia-smi` lists."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    lines = "".join(f"GPU {n}: NVIDIA H200 (UUID: GPU-0{n})\\n" for n in range(3))
    tool.write_text(f"#!/bin/sh\nprintf '{lines}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(slots, "LOOK", 0.02)
    for name in (VISIBLE, "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)


def test_a_job_sees_as_many_as_it_asks_for_and_gives_them_back() -> None:
    with gpus(2):
        assert os.environ[VISIBLE] == "GPU-00,GPU-01"
    assert VISIBLE not in os.environ
    with gpus(3):
        assert os.environ[VISIBLE] == "GPU-00,GPU-01,GPU-02"


def test_jobs_side_by_side_see_gpus_of_their_own(tmp_path: Path) -> None:
    with holding(tmp_path, 1) as first, holding(tmp_path, 1) as second, holding(tmp_path, 1) as third:
        assert sorted(said for _, said in (first, second, third)) == ["GPU-00", "GPU-01", "GPU-02"]


@contextmanager
def holding(folder: Path, count: int) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that holds GPUs until its input ends, and which."""
    script = (
        "import sys; from strata.slots import *\n"
        f"with gpus({count}): print(os.environ[VISIBLE], flush=True); sys.stdin.read()"
    )
    env = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": ":".join(sys.path)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], text=True, env=env, **pipes) as process:
        assert process.stdout and process.stdin
        yield process, process.stdout.readline().strip()
        process.stdin.close()


def test_who_finds_none_free_waits_until_one_is(tmp_path: Path) -> None:
    with holding(tmp_path, 2) as (process, _):
        with gpus(1):
            assert os.environ[VISIBLE] == "GPU-02"
        assert process.poll() is None and process.stdin
        threading.Timer(0.2, process.stdin.close).start()
        with gpus(2):
            assert process.wait() == 0


def test_what_ranks_still_use_when_their_launcher_was_killed_is_not_free(tmp_path: Path) -> None:
    script = (
        "import time; from strata.slots import *; from strata.train.parallel import _start\n"
        "with gpus(3): print(_start(['sleep', '60'], {**os.environ}).pid, flush=True); time.sleep(60)"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", script], text=True, env=env, stdout=subprocess.PIPE) as launcher:
        assert launcher.stdout
        rank = int(launcher.stdout.readline())
        launcher.kill()
    ended: list[float] = []
    end = threading.Timer(0.3, lambda: (ended.append(time.monotonic()), os.kill(rank, signal.SIGKILL)))
    end.start()
    with gpus(3):
        assert ended and time.monotonic() > ended[0]


def test_a_killed_job_holds_nothing(tmp_path: Path) -> None:
    with holding(tmp_path, 3) as (process, _):
        process.kill()
        process.wait()
    since = time.monotonic()
    with gpus(3):
        assert time.monotonic() - since < 5


def test_more_than_there_are_is_refused_and_not_shrunk() -> None:
    with pytest.raises(ClusterError, match="more GPUs than this machine has"), gpus(4):
        pass


def test_what_the_user_lets_us_see_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "2, 0")
    with gpus(1):
        assert os.environ[VISIBLE] == "2"
    assert os.environ[VISIBLE] == "2, 0"
    with pytest.raises(ClusterError), gpus(3):
        pass


def test_jobs_within_one_allocation_share_out_what_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where Snakemake itself runs in a job of Slurm's. Another job's GPU of the same number is another GPU."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv(VISIBLE, "0,1")
    with holding(tmp_path, 1) as (_, first), gpus(1):
        assert {first, os.environ[VISIBLE]} == {"0", "1"}
        monkeypatch.setenv("SLURM_JOB_ID", "8")
        with holding(tmp_path, 1) as (_, other):
            assert other == os.environ[VISIBLE]
    with pytest.raises(ClusterError, match=VISIBLE), gpus(3):
        pass


def test_a_gpu_has_one_lock_whether_it_is_named_by_number_or_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(tmp_path, 1) as (_, first):
        assert first == "GPU-00"
        monkeypatch.setenv(VISIBLE, "0,2")
        with gpus(1):
            assert os.environ[VISIBLE] == "2"


@pytest.mark.parametrize("known", ["SLURM_JOB_ID", "unlike"])
def test_where_numbers_may_count_otherwise_they_are_not_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    """A scheduler numbers anew, and may give one GPU to several jobs; CUDA numbers unlike GPUs by their speed."""
    if known == "unlike":
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.write_text(tool.read_text().replace("0: NVIDIA H200", "0: NVIDIA L4"))
    with holding(tmp_path, 1) as (_, first):
        assert first == "GPU-00"
        if known != "unlike":
            monkeypatch.setenv(known, "7")
        monkeypatch.setenv(VISIBLE, "0")
        with gpus(1):
            assert os.environ[VISIBLE] == "0"


def test_no_lock_is_left_behind(tmp_path: Path) -> None:
    with gpus(3):
        assert len(list(tmp_path.glob("strata-gpus-*/*"))) == 3
    assert not list(tmp_path.glob("strata-gpus-*/*"))


def test_parts_of_a_gpu_are_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "bin" / "nvidia-smi").write_text(
        "#!/bin/sh\nprintf 'GPU 0: x (UUID: GPU-0a)\\n  MIG 1g: (UUID: MIG-0b)\\n  MIG 1g: (UUID: MIG-0c)\\n'\n"
    )
    assert visible() == ["MIG-0b", "MIG-0c"]


def test_a_machine_without_gpus_is_told_by_who_opens_one(tmp_path: Path) -> None:
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    with gpus(1):
        assert VISIBLE not in os.environ
