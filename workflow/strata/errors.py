"""Every failure a user can meet, as one tree. The exit code says which kind it was.

StrataError               1  (never raised itself)
├── UsageError            2  the command line
├── ConfigError           3  config.yaml or a suite file
│   └── PlanError         3  a layer plan that cannot be
├── SourceError           4  a pinned input: unpinned, missing, or not what its pin says
├── CheckpointError       5  tensors or config of a model that do not fit together
├── StoreError            6  the store: corrupt, unknown version, not there
│   └── NonDeterministic  6  one recipe gave two contents
├── EvaluationError       7  a score that cannot be trusted
├── SpaceError            8  the disk is full, or not writable
├── ClusterError          9  the scheduler that a profile asks for
├── TrainingError        10  training data, or a training run that cannot go on
├── PublishError         11  a folder or a repository that cannot take a variant
└── Preempted            75  stopped by a signal; a snapshot is written, and the same command goes on from it
"""

from __future__ import annotations

from typing import Self


class StrataError(Exception):
    """A failure with a next step: what happened, where, what was expected, what was found, what to do.

    Args:
        what: one sentence.
        where: the file, tensor or config path.
        expected, got: the rule and the value that broke it.
        todo: the next step for the user; by default, that of its kind.
    """

    exit_code = 1
    next_step = "report it, with the log"

    def __init__(
        self, what: str, *, where: object = "", expected: object = "", got: object = "", todo: str = ""
    ) -> None:
        self.what = what
        self.details = {"where": where, "expected": expected, "got": got, "do": todo or self.next_step}
        super().__init__(what)

    def __str__(self) -> str:
        lines = [f"  {label + ':':<10}{text}" for label, text in self.details.items() if str(text)]
        return "\n".join([self.what, *lines])

    def at(self, where: object) -> Self:
        """The same error, told where it happened by a caller that knows."""
        self.details["where"] = where
        return self


class UsageError(StrataError):
    exit_code = 2
    next_step = "see `strata --help`, or the README"


class ConfigError(StrataError):
    exit_code = 3
    next_step = "change it there; workflow/schemas/config.md tells what may stand in a config"


class PlanError(ConfigError):
    """`entry` is where in the merge's parameters, such as ("slices", 1)."""

    def __init__(self, what: str, entry: tuple[str | int, ...], *, expected: object = "", got: object = "") -> None:
        super().__init__(what, expected=expected, got=got)
        self.entry = entry


class SourceError(StrataError):
    exit_code = 4
    next_step = "mend the source or use another one, then `strata pin`"


class CheckpointError(StrataError):
    exit_code = 5
    next_step = "get the model again, or use another one: a model is used as it says it is, or not at all"


class StoreError(StrataError):
    exit_code = 6
    next_step = "run `strata store verify`, then the same command again"


class NonDeterministic(StoreError):
    exit_code = 6


class EvaluationError(StrataError):
    exit_code = 7
    next_step = "mend the suite or its data, and run again"


class SpaceError(StrataError):
    exit_code = 8
    next_step = "make room there, or see that this path can be used, and run again"


class ClusterError(StrataError):
    exit_code = 9
    next_step = "see the README on Slurm, and the profile"


class TrainingError(StrataError):
    exit_code = 10
    next_step = "change the variant's settings or its data, and run again"


class PublishError(StrataError):
    exit_code = 11
    next_step = "mend it there, and run the same command again"


class Preempted(StrataError):
    """No failure: 75 is what sysexits.h calls "try again"."""

    exit_code = 75
