"""A stand-in for Slurm: `sbatch` writes down what it was asked and says that the job has ended well.

With `run`, it runs the job first, as on a cluster with nothing to wait for.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY

SBATCH = """\
#!{python}
import json, os, re, subprocess, sys, time
folder = {folder!r}
wrapped = next(word for word in sys.argv if word.startswith("--wrap="))
number = str(1000 + time.monotonic_ns() % 10**9)
state = "COMPLETED"
if {runs}:
    log = sys.argv[sys.argv.index("--output") + 1].replace("%j", number)
    run = subprocess.run(["bash", "-c", wrapped[7:]], env={{**os.environ, "SLURM_JOB_ID": number}}, stdout=open(log, "w"), stderr=subprocess.STDOUT)
    state = "FAILED" if run.returncode else state
else:  # the job's outputs, empty
    for rule, hash in re.findall(r"'(\\w+):hash=(\\w+)'", wrapped):
        for kind in {kinds!r}.get(rule, ()):
            os.makedirs(f"results/{{kind}}", exist_ok=True)
            open(f"results/{{kind}}/{{rule}}-{{hash}}.json", "w").close()
with open(folder + "/asked.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
with open(folder + "/states", "a") as file:
    file.write(number + "|" + state + "\\n")
print(number)
"""
SRUN = """\
#!/usr/bin/env bash
while [[ "$1" == -* ]]; do shift; done
exec "$@"
"""


def stand_in(folder: Path, runs: bool) -> dict[str, str]:
    """Put the commands into `folder`; returns the environment in which they are Slurm."""
    from strata.recipe import KINDS

    folder.mkdir()
    kinds = {operation: [kind] for operation, kind in KINDS.items()}
    programs = {
        "sbatch": SBATCH.format(python=sys.executable, folder=str(folder), runs=runs, kinds=kinds),
        "squeue": f'#!/bin/sh\ncat "{folder}/states"\n',
        "sacct": f'#!/bin/sh\n[ "$1" = -X ] && cat "{folder}/states"\n',
        "srun": SRUN,
    } | dict.fromkeys(("scontrol", "sinfo", "scancel"), "#!/bin/sh\n")
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def submit(folder: Path, *arguments: str, runs: bool = False, timeout: float = 300) -> tuple[str, list[list[str]]]:
    """Run the workflow of `folder` with the shipped profile. Returns what Snakemake said, and what each `sbatch` was
    asked: its options but those that change with every run."""
    slurm = folder / "stand-in"
    environment = os.environ | stand_in(slurm, runs)
    profile = [
        "--profile",
        str(REPOSITORY / "slurm"),
        "--slurm-init-seconds-before-status-checks",
        "1",
        "--retries",
        "0",
    ]
    run = subprocess.run(
        [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), *profile, *arguments],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout,
    )  # fmt: skip
    asked = slurm / "asked.jsonl"
    lines = [json.loads(line) for line in asked.read_text().splitlines()] if asked.exists() else []
    return run.stdout, lines


def options(words: list[str]) -> str:
    """An `sbatch` line without what every job's has: its name, log, comment, folder and command."""
    line = " ".join(words)
    common = r"^--parsable --job-name \S+ --output \S+ --export=ALL --comment \S+ *| -D \S+| --wrap=.*$"
    return re.sub(common, "", line, flags=re.DOTALL).strip()


def rule(words: list[str]) -> str:
    return re.sub(r"^(rule|group)_(\w+?)(_wildcards_.*)?$", r"\2", words[words.index("--comment") + 1])
