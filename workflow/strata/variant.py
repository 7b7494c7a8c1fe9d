"""A variant: a row of the table, with the jobs that make and score it."""

from __future__ import annotations

from dataclasses import dataclass, field

from strata.config import Publish
from strata.job import Job
from strata.lineage import Lineage
from strata.plan import Plan


@dataclass(frozen=True)
class Variant:
    """A name for a checkpoint. `parents` are the names of those that it is made from.

    job: makes the checkpoint
    plan: in layers of the parents; None where what is measured decides it, and the checkpoint's manifest has it then.
        Training keeps every layer in its place
    lineage: what it hands down
    preparations: what its job waits for beside its parents: an analysis, a screen with its race, tokens, reference
        log-probabilities
    encodings: what the evaluations ask, as tokens of its tokenizer
    evaluations: score the checkpoint
    learns_from: the config's names for the sources of its training data
    conversion: writes the file for llama.cpp that `ggufs` are made from; None where no such file is asked for
    ggufs: write the files for llama.cpp that are asked for
    publish: where it goes besides the store
    """

    name: str
    parents: tuple[str, ...]
    job: Job
    plan: Plan | None
    lineage: Lineage
    preparations: tuple[Job, ...] = ()
    encodings: tuple[Job, ...] = ()
    evaluations: tuple[Job, ...] = ()
    learns_from: tuple[str, ...] = ()
    conversion: Job | None = None
    ggufs: tuple[Job, ...] = ()
    publish: Publish = field(default_factory=Publish)

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that are run for it, but for those of its parents."""
        conversion = (self.conversion,) if self.conversion and self.conversion not in self.ggufs else ()
        return (*self.preparations, self.job, *self.encodings, *self.evaluations, *conversion, *self.ggufs)
