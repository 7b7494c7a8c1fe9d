"""The report: the table in files and on one self-contained page. The same store gives the same bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strata import store
from strata.curves import Heldout, comparable
from strata.disk import write_atomically
from strata.errors import EvaluationError
from strata.evaluate import read_samples
from strata.experiment import Experiment
from strata.report import beside, charts, figures, published
from strata.report.flips import MOST
from strata.report.formats import (
    change,
    difference,
    duration,
    interval,
    millions,
    number,
    points,
    probability,
    reading,
    to_csv,
    to_markdown,
    to_tex,
    warnings,
)
from strata.report.html import render
from strata.report.places import places
from strata.report.screen_page import PAGE, screens_html
from strata.report.table import Table, collect
from strata.runs import Cost, cost
from strata.score.statistics import score as score_of
from strata.sources import name_of


def write_report(root: Path, experiment: Experiment, partial: bool = False) -> Path:
    """Write the table's files and report.html. Returns the page's path.

    Args:
        partial: of the variants that are finished, with the others as gaps, into `report/partial`.

    Raises:
        StoreError: a checkpoint or an evaluation is missing or damaged.
        EvaluationError: a score that belongs to other weights, or to other requests than its base's.
    """
    folder = root / "report" / "partial" if partial else root / "report"
    for name, text in _files(root, collect(root, experiment, partial), experiment, folder, partial).items():
        write_atomically(folder / name, text.encode())
    return folder / "report.html"


def _files(root: Path, table: Table, experiment: Experiment, folder: Path, partial: bool = False) -> dict[str, str]:
    screens = {PAGE: screens_html(root, experiment, partial)} if experiment.screens else {}
    return {
        "scores.csv": to_csv(table),
        "scores.md": to_markdown(table),
        "scores.tex": to_tex(table),
        "report.html": to_html(root, table, experiment, folder),
        **screens,
    }


def verify_scores(root: Path, experiment: Experiment) -> str:
    """Make every score and the report again from the sample logs, and hold them against what is stored.

    Raises:
        EvaluationError: a stored score, or a file of the report, says something else.
        StoreError: a checkpoint or an evaluation is missing or damaged.
    """
    count = 0
    evaluations = {job.id for variant in experiment.variants.values() for job in variant.evaluations}
    for id in sorted(evaluations):
        found = store.require(root, id, store.verify)
        for task, told in found.facts["scores"].items():
            count += 1
            again = score_of(read_samples(found, task))
            if any(not _same(told[key], value) for key, value in again.items()):
                raise _differs(f"the score of {task}", found.path, again, {key: told[key] for key in again})
    folder = root / "report"
    for name, text in _files(root, collect(root, experiment), experiment, folder).items():
        file = folder / name
        if not file.exists() or file.read_bytes() != text.encode():
            raise _differs(
                "the report", file, "what the sample logs say", "something else" if file.exists() else "no file"
            )
    return f"{count} scores in {len(evaluations)} evaluations and the report are what the sample logs say"


def _same(one: Any, other: Any) -> bool:
    return math.isclose(one, other, rel_tol=1e-12) if isinstance(other, float) else bool(one == other)


def _differs(what: str, where: Path, expected: object, got: object) -> EvaluationError:
    todo = "run snakemake: it writes the report again; an evaluation that lies is made again by `strata redo`"
    return EvaluationError(f"{what} is not that of its samples", where=where, expected=expected, got=got, todo=todo)


def to_html(root: Path, table: Table, experiment: Experiment, folder: Path) -> str:
    """One page with the table and both figures, to lie in `folder`; nothing is loaded from elsewhere."""
    compared = [
        (row, column, score)
        for row in table.rows
        for column, score in zip(table.columns, row.scores, strict=True)
        if score.delta
    ]
    filters: dict[str, Callable[..., str]] = {
        "number": number, "millions": millions, "change": change, "difference": difference, "interval": interval,
        "points": points, "probability": probability, "duration": duration,
    }  # fmt: skip
    files = published.everything()
    return render(
        "report.html",
        filters,
        table=table,
        suites=experiment.suites,
        device=experiment.device,
        screens=list(experiment.screens),
        reading=reading(table),
        warnings=warnings(table),
        compared=compared,
        comparisons=len({(row.digest, row.base, column) for row, column, _ in compared}),
        most=MOST,
        could_show=[told for file in files for told in published.about_table(file, table)],
        published=beside.sections(files, table),
        costs=_costs(root, table, experiment),
        sources=_sources(experiment),
        places=places(root, experiment, table, folder),
        recovery=[
            charts.recovery(_title(experiment, heldout), curves) for heldout, curves in comparable(table.curves).items()
        ],
        plans=figures.layer_plans([(row.name, row.plan, row.seams) for row in table.rows], list(experiment.variants)),
        charts=[
            figures.scores(
                column.title,
                [(row.name, row.scores[i].estimate.value, row.scores[i].estimate.error) for row in table.rows],
                column.guess,
            )
            for i, column in enumerate(table.columns)
        ],
    )


def _costs(root: Path, table: Table, experiment: Experiment) -> list[tuple[str, Cost | None, Cost | None]]:
    """What each variant took to build, without its parents, and to score; nothing where it was not recorded."""

    def total(ids: list[str]) -> Cost | None:
        found = [cost(root, id) for id in ids]
        known = [one for one in found if one]
        memory = [one.peak_memory_mb for one in known if one.peak_memory_mb is not None]
        return Cost(sum(one.seconds for one in known), max(memory, default=None)) if len(known) == len(found) else None

    variants = [experiment.variants[row.name] for row in table.rows]
    return [(v.name, total([v.job.id]), total([job.id for job in v.evaluations])) for v in variants]


def _sources(experiment: Experiment) -> list[tuple[str, str, str]]:
    """Name, what it is, and the sha256 or commit that it is held to, of each source that jobs read."""
    names = {job.id: name for name, job in experiment.sources.items()}
    found = []
    for job in experiment.jobs.values():
        if job.recipe.operation == "fetch":
            pin = job.recipe.parameters
            held = f"sha256 {pin['sha256']}" if "sha256" in pin else f"commit {pin['revision']}"
            found.append((names.get(job.id, "of a suite"), name_of(pin) or "a local path", held))
    return sorted(found)


def _title(experiment: Experiment, heldout: Heldout) -> str:
    """What a chart's losses are of, in words: tokens of a source of the config."""
    names = {job.id: name for name, job in experiment.sources.items()}
    job = experiment.jobs.get(heldout.source)
    source = next((names[id] for id in job.recipe.sources if id in names), heldout.source) if job else heldout.source
    return f"{source}: {heldout.tokens:,} held-out tokens, {heldout.length:,} at a time, in {heldout.dtype}"
