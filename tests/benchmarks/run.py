"""The default experiment from nothing, then again, then its merge alone: `python tests/benchmarks/run.py`.

Takes about ten minutes on 2 cores and needs the package index once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from measure import REPOSITORY, machine, measure, repeat, snakemake

sys.path.insert(0, str(REPOSITORY / "workflow"))
from strata import experiment, store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(REPOSITORY / "config.yaml", folder)
        print("| what | median | peak memory |\n|---|---:|---:|")
        first = measure(snakemake("--cores", "2"), folder)
        row("the default experiment, from nothing (one run)", first.seconds, first.peak_mb)
        row("the same again: nothing to do", *repeat(snakemake("--cores", "2"), folder, options.runs)[:2])
        planned = experiment.load([folder / "config.yaml"])
        for variant in ("dus", "idus-6", "idus-1"):
            job = planned.variants[variant].job
            runs = []
            for _ in range(options.runs + 1):
                store.reject(folder / "results", job.id, "benchmark")
                command = [sys.executable, "-m", "strata", "merge", job.recipe.canonical]
                runs.append(measure(["env", f"PYTHONPATH={REPOSITORY / 'workflow'}", *command], folder))
            runs = sorted(runs[1:], key=lambda run: run.seconds)
            record = json.loads((folder / "results" / "runs" / f"{job.id}.json").read_text())
            row(f"merging 30 to 48 layers, `{variant}`", runs[len(runs) // 2].seconds, record["peak_memory_mb"])
        for record_file in sorted((folder / "results" / "runs").glob("evaluate-*.json")):
            record = json.loads(record_file.read_text())
            variant = next(v.name for v in planned.variants.values() if record["id"] == v.evaluations[0].id)
            row(f"evaluating `{variant}` (one run)", record["seconds"], record["peak_memory_mb"])
    print(f"\n{machine()}; medians of {options.runs} after a warm-up.")


def row(what: str, seconds: float, peak_mb: float) -> None:
    print(f"| {what} | {seconds:.2f} s | {peak_mb:,.0f} MB |", flush=True)


if __name__ == "__main__":
    main()
