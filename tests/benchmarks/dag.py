"""How long Snakemake takes to plan a sweep: `python tests/benchmarks/dag.py [--runs 3] [--variants 1000 2000 5000]`.

Every variant is a merge scored on three suites, so that 1,000 variants are 4,000 jobs.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from measure import REPOSITORY, machine, repeat, snakemake


def write_sweep(folder: Path, variants: int) -> None:
    """A config of this many merges, all different, over a base of 200 layers."""
    quick = (REPOSITORY / "workflow" / "suites" / "quick.yaml").read_text()
    for number in range(3):
        (folder / f"suite-{number}.yaml").write_text(quick.replace("suite: quick", f"suite: suite-{number}", 1))
    shape = "{family: llama, layers: 200, parameters: 1000000000, bytes: 2000000000, dtype: bfloat16}"
    lines = [f"sources:\n  m: {{package: m==1, file: m.gguf, sha256: {'a' * 64}, shape: {shape}}}\nvariants:"]
    lines.append("  base: {init: {source: m}}")
    plans = ((drop, group) for drop in range(150) for group in range(1, 51))
    for (drop, group), number in zip(plans, range(variants), strict=False):
        lines.append(f"  v{number}: {{parent: base, merge: {{method: interlocked, drop: {drop}, group: {group}}}}}")
    lines.append("suites: [suite-0.yaml, suite-1.yaml, suite-2.yaml]")
    (folder / "config.yaml").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--variants", type=int, nargs="+", default=[1000, 2000, 5000])
    options = parser.parse_args()
    print("| variants | jobs | `snakemake -n`, median | per job | peak memory |\n|---:|---:|---:|---:|---:|")
    for variants in options.variants:
        with tempfile.TemporaryDirectory() as name:
            write_sweep(Path(name), variants)
            seconds, peak, output = repeat(snakemake("-n", "--quiet", "rules", "reason"), Path(name), options.runs)
        jobs = int(output.rsplit("total", 1)[1].split()[0])
        print(
            f"| {variants:,} | {jobs:,} | {seconds:.1f} s | {seconds / jobs * 1000:.2f} ms | {peak:.0f} MB |",
            flush=True,
        )
    print(f"\n{machine()}; median of {options.runs} after a warm-up.")


if __name__ == "__main__":
    main()
