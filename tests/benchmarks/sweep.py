"""A sweep of many merges of one small base, built and scored: `python tests/benchmarks/sweep.py [--variants 30 300]`.

The base has 26 layers of a random Llama of width 128, so that what is measured is the workflow and not the model. Takes
about 40 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from measure import REPOSITORY, machine, measure, snakemake

sys.path.insert(0, str(REPOSITORY / "workflow"))
sys.path.insert(0, str(REPOSITORY / "tests"))
from conftest import write_experiment
from models import save_model

LAYERS, WIDTH = 26, 128


def write_sweep(folder: Path, variants: int) -> None:
    """The tests' small experiment with this many merges. Some of many are the same layers in other words."""
    model = save_model(folder / "model", num_hidden_layers=LAYERS, hidden_size=WIDTH, intermediate_size=4 * WIDTH)
    plans = ((drop, group) for drop in range(LAYERS // 2) for group in range(1, LAYERS - drop + 1))
    lines = ["  base: {init: {source: m}}\n"]
    for (drop, group), number in zip(plans, range(variants), strict=False):
        lines.append(f"  v{number}: {{parent: base, merge: {{method: interlocked, drop: {drop}, group: {group}}}}}\n")
    write_experiment(folder, model, "".join(lines))


def sizes(folder: Path) -> int:
    """Bytes of all checkpoints' files, as if each stood for itself."""
    return sum(file.stat().st_size for file in (folder / "results" / "checkpoints").rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, nargs="+", default=[30, 300])
    parser.add_argument(
        "--folder", type=Path, help="where to run: a disk of its own that has reflinks, to see what is shared"
    )
    options = parser.parse_args()
    print("| variants | jobs | planning | merging | scoring and report | nothing to do | sum of sizes | on disk |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for variants in options.variants:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            write_sweep(folder, variants)
            planning = measure(snakemake("-n", "--quiet", "rules", "reason"), folder)
            jobs = int(planning.output.rsplit("total", 1)[1].split()[0])
            before = shutil.disk_usage(folder).used
            merging = measure(snakemake("--cores", "2", "results/variants/.links.json"), folder)
            size, used = sizes(folder), shutil.disk_usage(folder).used - before
            scoring = measure(snakemake("--cores", "2"), folder)
            again = measure(snakemake("--cores", "2"), folder)
        print(
            f"| {variants} | {jobs} | {planning.seconds:.1f} s | {merging.seconds:.0f} s | {scoring.seconds:.0f} s |"
            f" {again.seconds:.1f} s | {size / 1e6:,.0f} MB | {used / 1e6:,.0f} MB |",
            flush=True,
        )
    print(f"\n{machine()}; one run.")


if __name__ == "__main__":
    main()
