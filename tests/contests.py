"""A small experiment with a screen of a four-layer model, and a race of what is best in it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from conftest import tree_sha256, write_experiment
from strata import experiment
from strata.experiment import Experiment
from strata.screens import ScreenJobs

SCREEN = """\
    parent: base
    depths: [6, 3]
    families: [dus, repeat, prune]
    selection: {source: choose, documents: 4, tokens: 40}
    estimation: {source: judge, documents: 4, tokens: 40}
    finalists: 3
"""
RACE = "    race: {depth: 6, plans: 3, rounds: 2, pretrain: {data: {diary: 1}, tokens: 256, length: 64, batch: 2}}\n"
BASE = "  base: {init: {source: m}}\n"
WINNER = "  won: {parent: base, merge: {method: screened, screen: deeper, depth: 6}}\n"
TEXTS = {
    "choose": [f"{who} number {n} sleeps in the {n * 5 % 13}th barn." for n, who in enumerate(("ox", "hen", "pig", "cat"))],
    "judge": [f"A {who} of {n + 3} years has eaten {n * 7} apples." for n, who in enumerate(("goat", "mule", "duck", "dog"))],
    "diary": [f"On day {n} I counted {', '.join(str(n * k) for k in range(60))} ants." for n in range(3)],
}  # fmt: skip


def write_screens(
    folder: Path, model: Path, screen: str = SCREEN, variants: str = BASE + WINNER, suites: str = "[]"
) -> Path:
    """A config in `folder` with the screen `deeper`, over three texts."""
    write_experiment(folder, model, variants, suites)
    sources = ""
    for name, documents in TEXTS.items():
        (folder / name).mkdir(exist_ok=True)
        for number, text in enumerate(documents):
            (folder / name / f"{number}.txt").write_text(text)
        sources += f"  {name}: {{path: {folder / name}, sha256: {tree_sha256(folder / name)}}}\n"
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        text.replace("variants:", f"{sources}screens:\n  deeper:\n{screen}variants:", 1)
    )
    return folder


def load(folder: Path) -> Experiment:
    return experiment.load([folder / "config.yaml"])


def deeper(folder: Path) -> ScreenJobs:
    return load(folder).screens["deeper"]


def make(folder: Path, *operations: str, without: Collection[str] = ()) -> None:
    """Run the jobs that a variant or a screen of the config waits for, in this process.

    Args:
        operations: by default, all of them.
        without: ids of jobs that are left for a run of the workflow.
    """
    from strata import cli
    from strata.status import with_inputs

    before = Path.cwd()
    os.chdir(folder)
    try:
        made = load(folder)
        wanted = [job for screen in made.screens.values() for job in screen.rankings]
        for job in with_inputs(made, [*wanted, *(variant.job for variant in made.variants.values())]):
            if job.id not in without and (not operations or job.recipe.operation in operations):
                assert cli.main([job.recipe.operation, job.recipe.canonical, "--location", job.location]) == 0, job.id
    finally:
        os.chdir(before)
