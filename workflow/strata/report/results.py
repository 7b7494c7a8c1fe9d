"""Results: the scores of one variant with all that they rest on, for those who take them elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata import store
from strata.config import DatasetSource
from strata.evaluate import read_samples
from strata.experiment import Experiment
from strata.report.table import Column, Score
from strata.runs import Run, run_of
from strata.score.statistics import Estimate
from strata.store import Object
from strata.suite import Suite, Task


@dataclass(frozen=True)
class Result:
    """The score of one task, and what it rests on.

    `documents` are what its error is over, `freedom` its degrees (a plain mean over tasks has no end of them), `log` is
    the sample log, relative to the results folder.
    """

    suite: Suite
    column: Column
    estimate: Estimate
    documents: int
    freedom: float
    requests: str
    log: str
    sha256: str
    run: Run | None

    @property
    def name(self) -> str:
        return f"{self.column.suite}/{self.column.task}"

    @property
    def task(self) -> Task:
        return self.suite.tasks[self.column.task]

    @property
    def shots(self) -> int | None:
        """The examples before each question, of a task that can have some."""
        return getattr(self.task, "shots", None)

    @property
    def drawn(self) -> dict[str, Any]:
        """How the task's items are drawn."""
        return self.task.model_dump(exclude={"kind", "source", "shots", "metric"})

    @property
    def hub(self) -> str | None:
        """The dataset on the Hugging Face hub, of a source that is one."""
        source = self.suite.sources[self.task.source]
        return source.dataset if isinstance(source, DatasetSource) else None

    @property
    def pin(self) -> dict[str, Any]:
        """What the source is held to, without the path of a local one, which says nothing elsewhere."""
        source = self.suite.sources[self.task.source]
        return source.model_dump(exclude={"shape", "path", "dataset", "license"}, exclude_none=True)


def results_of(
    root: Path, experiment: Experiment, columns: Sequence[Column], name: str, scores: Sequence[Score]
) -> list[Result]:
    """A variant's score of each task, with what is known of it; the averages are left out."""
    suites = {suite.suite: suite for suite in experiment.suites}
    evaluations: dict[tuple[str, str], Object] = {}
    for job in experiment.variants[name].evaluations:
        asked = job.recipe.parameters
        evaluations |= dict.fromkeys(((asked["suite"], task) for task in asked["tasks"]), store.require(root, job.id))
    made = []
    for column, score in zip(columns, scores, strict=True):
        if column.tasks:
            continue
        found, log = evaluations[column.suite, column.task], f"{column.task}.jsonl"
        samples = read_samples(found, column.task)
        documents = len(set(samples.documents))
        made.append(
            Result(
                suite=suites[column.suite],
                column=column,
                estimate=score.estimate,
                documents=documents,
                freedom=documents - 1 if samples.mean == "items" else math.inf,
                requests=found.facts["scores"][column.task]["requests"],
                log=(found.path / log).relative_to(root).as_posix(),
                sha256=found.manifest["files"][log]["sha256"],
                run=run_of(root, found.id),
            )
        )
    return made
