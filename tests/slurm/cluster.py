"""A real Slurm on this machine: one controller, two nodes with a GPU each that is none, munge. For root on Debian.

    python tests/slurm/cluster.py install     what is missing, by apt-get
    python tests/slurm/cluster.py run COMMAND     start it, run the command, stop it and remove its configuration

The configuration lies at Slurm's default place, since the executor plugin takes SLURM_CONF away from jobs. It must not
stay there: with a configuration and no controller, every call of snakemake waits 9 seconds for one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
ETC = Path("/etc/slurm")
RUNNING = "STRATA_TEST_SLURM"  # where the state of a cluster lies that `run` has started
NODES = ("n0", "n1")
CONFIG = """\
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=cred_expire=5
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
SchedulerParameters=sched_min_interval=200000,bf_interval=2
KillWait=3
MinJobAge=300
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=16 RealMemory=32000 Gres=gpu:1 State=UNKNOWN
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=16 RealMemory=32000 Gres=gpu:1 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=lowcancel Nodes=ALL PriorityTier=1 PreemptMode=CANCEL MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""
GRES = "".join(f"NodeName={node} Name=gpu File=/dev/fakegpu{number}\n" for number, node in enumerate(NODES))


def missing() -> list[str]:
    """Packages whose program is not here."""
    programs = ("slurmctld", "slurmd", "sbatch", "munged")
    paths = os.environ["PATH"] + ":/usr/sbin:/sbin"
    return [
        package
        for package, program in zip(PACKAGES, programs, strict=True)
        if shutil.which(program, path=paths) is None
    ]


def install() -> None:
    """Install what is missing; daemons are started by `cluster` alone."""
    if wanted := missing():
        apt = ["apt-get", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=5", "-qq"]
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
        for arguments in (["update"], ["install", "-y", *wanted]):
            subprocess.run([*apt, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """Start Slurm with its state in `folder`; whatever happens, stop it and remove its configuration."""
    if (ETC / "slurm.conf").exists():
        raise RuntimeError(f"{ETC}/slurm.conf exists: this machine has a Slurm of its own, which is left alone")
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    made = [ETC / "slurm.conf", ETC / "gres.conf"]
    munge: subprocess.Popen[bytes] | None = None
    try:
        for number in range(len(NODES)):
            device = Path(f"/dev/fakegpu{number}")
            if not device.exists():
                os.mknod(device, 0o20666, os.makedev(1, 3))  # /dev/null by another name
                made.append(device)
        ETC.mkdir(exist_ok=True)
        host = socket.gethostname().partition(".")[0]
        (ETC / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder))
        (ETC / "gres.conf").write_text(GRES)
        munge = start_munge()
        start_controller()
        for node in NODES:
            start_node(node)
        wait_until_idle()
        yield
    finally:
        stop_jobs()
        for daemon in (*NODES, "slurmctld"):
            stop(folder / f"{daemon}.pid")
        if munge is not None:
            munge.terminate()
            munge.wait()
        for file in made:
            file.unlink(missing_ok=True)


def start_munge() -> subprocess.Popen[bytes] | None:
    """Munge, unless there is one."""
    if subprocess.run(["sh", "-c", "munge -n | unmunge"], capture_output=True).returncode == 0:
        return None
    shutil.os.makedirs("/run/munge", mode=0o755, exist_ok=True)  # type: ignore[attr-defined]
    shutil.chown("/run/munge", "munge", "munge")
    process = subprocess.Popen(
        ["runuser", "-u", "munge", "--", "/usr/sbin/munged", "--foreground"], stderr=subprocess.DEVNULL
    )
    wait_for(lambda: Path("/run/munge/munge.socket.2").exists(), "munge")
    return process


def start_controller(*arguments: str) -> None:
    subprocess.run(["/usr/sbin/slurmctld", *(arguments or ("-c",))], check=True)


def start_node(node: str) -> None:
    subprocess.run(["/usr/sbin/slurmd", "-N", node], check=True)


def told(*command: str) -> str:
    """What a command of Slurm's says."""
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()


def wait_until_idle() -> None:
    wait_for(lambda: told("sinfo", "-h", "-N", "-p", "low", "-o", "%t").split() == ["idle"] * len(NODES), "idle nodes")


def wait_for(what: object, name: str, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not what():  # type: ignore[operator]
        if time.monotonic() > until:
            raise TimeoutError(f"no {name} after {seconds:.0f} s")
        time.sleep(0.1)


def stop_jobs() -> None:
    """Cancel every job and wait until its processes are gone."""
    with suppress(OSError, subprocess.TimeoutExpired, TimeoutError):
        told("scancel", "--user=root")
        wait_for(lambda: not told("squeue", "-h"), "empty queue", 20)


def stop(file: Path) -> None:
    """End a daemon by its pid file, however it takes it."""
    with suppress(OSError, ValueError):
        process = int(file.read_text())
        os.kill(process, signal.SIGTERM)
        for _ in range(50):
            os.kill(process, 0)
            time.sleep(0.1)
        os.kill(process, signal.SIGKILL)


def main(arguments: list[str]) -> int:
    if arguments == ["install"]:
        install()
        return 0
    if arguments[:1] == ["run"] and arguments[1:]:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
        with tempfile.TemporaryDirectory(prefix="strata-slurm-") as folder, cluster(Path(folder)):
            return subprocess.run(arguments[1:], env=os.environ | {RUNNING: folder}).returncode
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
