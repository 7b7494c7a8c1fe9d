"""The table: one row per variant, made from the sample logs alone.

A score is refused when it belongs to other weights than the variant's, and two scores are compared only when every
request behind them was the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from strata import plan, status, store
from strata.curves import Curve, read_curve
from strata.errors import EvaluationError, StoreError
from strata.evaluate import read_samples
from strata.experiment import Experiment
from strata.plan import Plan
from strata.recipe import TRAINING
from strata.report.comparison import LEVEL, Comparison, average, compare, holm
from strata.report.flips import Flip, flips
from strata.score.statistics import Estimate, Samples, chance, mean, measure
from strata.store import Object
from strata.variant import Variant

Require = Callable[[str], Object]  # id -> the object, opened and checked once
Found = dict[tuple[str, str], tuple[Samples, str]]  # by (suite, task): samples, and the digest of their requests
NAMES = {
    "bits_per_byte": "bits per byte", "acc": "accuracy", "acc_norm": "normalised accuracy", "mc2": "true share",
    "exact_match": "exact match", "score": "score",
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One task of a suite, or the average over `tasks`. `guess` is the score of guessing, where there is one."""

    suite: str
    task: str
    metric: str
    items: int
    guess: float | None
    tasks: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{self.task} ({self.suite}), {NAMES[self.metric]}"


@dataclass(frozen=True)
class Score:
    """A score and, for all but the base, how it compares to the base's.

    `adjusted` is that comparison's p, Holm's way, for all comparisons of the table: where so many are looked at, some
    have a small p by chance. `flips` are the questions that one of the two gets right and the other wrong.
    """

    estimate: Estimate
    delta: Comparison | None
    adjusted: float | None = None
    flips: tuple[Flip, ...] = ()

    @property
    def stands(self) -> bool:
        """Whether the difference to the base is one, whatever else was looked at."""
        return self.adjusted is not None and self.adjusted < LEVEL


@dataclass(frozen=True)
class Row:
    """A variant: what it is, and a score for each column.

    `plan` counts in layers of `bases`, the variants without parents that it goes back to. `curve` is what training
    left, and `rounded` how much of its update the `dtype` of the checkpoint took back (as a part of its norm); None for
    a variant that was not trained itself. `constant` are matrices that came in with one value throughout.
    """

    name: str
    made_by: str
    base: str
    checkpoint: str
    digest: str
    layers: int
    parameters: int
    plan: Plan
    bases: tuple[str, ...]
    seams: tuple[int, ...]
    scores: tuple[Score, ...]
    dtype: str
    curve: Curve | None
    rounded: float | None
    constant: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """`gaps` are variants of which something is missing, and what: only a partial table has any."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...] = field(repr=False)
    gaps: tuple[tuple[str, str], ...] = ()

    @property
    def curves(self) -> tuple[Curve, ...]:
        """Those of the rows that were trained: where there are none, the report does not speak of training."""
        return tuple(row.curve for row in self.rows if row.curve)


def collect(root: Path, experiment: Experiment, partial: bool = False) -> Table:
    """Every number of the table, from the samples in the store.

    Args:
        partial: leave out variants of which something is missing or wrong, and say so, instead of an error.

    Raises:
        StoreError: a checkpoint or an evaluation is missing or damaged; of a partial table, there is none at all.
        EvaluationError: a score that belongs to other weights, or to other requests than its base's.
    """
    require = cache(lambda id: store.require(root, id))
    samples: dict[str, Found] = {}  # by variant
    gaps: dict[str, str] = {}
    for variant in experiment.variants.values():
        try:
            samples[variant.name] = _samples(require, variant)
        except (StoreError, EvaluationError) as error:
            if not partial:
                raise
            gaps[variant.name] = _gap(root, variant) or str(error)
    if not samples:
        raise StoreError(
            "no variant is built and scored yet", where=root, expected="one at least", got="none", todo="run snakemake"
        )
    first = next(iter(samples.values()))
    columns = _columns(experiment, first)
    traced: dict[str, Plan] = {}
    names = _names(experiment)
    rows = [_row(require, experiment, experiment.variants[name], columns, samples, traced, names) for name in samples]
    return Table(columns, tuple(_adjusted(rows)), tuple(gaps.items()))


def _gap(root: Path, variant: Variant) -> str:
    """What is missing of a variant, and where its job's log is if it has run; nothing if all is there."""
    told = []
    for job in (variant.job, *variant.encodings, *variant.evaluations):
        if store.find(root, job.id) is None:
            log = root / "logs" / f"{job.id}.log"
            what = {"evaluate": f"scored on {job.recipe.parameters.get('suite')}", "encode": "asked: no requests"}
            told.append(f"not {what.get(job.recipe.operation, 'built')}" + f" (log: {log})" * log.exists())
    return ", ".join(told)


def _adjusted(rows: list[Row]) -> list[Row]:
    """The rows with each p adjusted for all. Variants that are one checkpoint are one comparison."""
    ps = {
        (row.digest, row.base, number): score.delta.p
        for row in rows
        for number, score in enumerate(row.scores)
        if score.delta
    }
    adjusted = dict(zip(ps, holm(list(ps.values())), strict=True))
    return [
        replace(
            row,
            scores=tuple(
                replace(s, adjusted=adjusted.get((row.digest, row.base, n)) if s.delta else None)
                for n, s in enumerate(row.scores)
            ),
        )
        for row in rows
    ]


def scores_of(root: Path, experiment: Experiment, name: str) -> tuple[tuple[Column, ...], tuple[Score, ...]]:
    """The scores of one variant with how they compare to its base's, whatever else the table has. No p is adjusted.

    Raises:
        StoreError: its checkpoint, its base's, or an evaluation of either is missing or damaged.
        EvaluationError: a score that belongs to other weights, or to other requests than its base's.
    """
    require = cache(lambda id: store.require(root, id))
    base, ours = status.base_of(experiment, name), _samples(require, status.variant_of(experiment, name))
    columns = _columns(experiment, ours)
    against = None if base == name else _samples(require, experiment.variants[base])
    return columns, tuple(_scores(columns, name, ours, base, against))


def versus(root: Path, experiment: Experiment, name: str, other: str) -> list[tuple[Column, Comparison]]:
    """One variant against another, on every task.

    Raises:
        EvaluationError: they answered different requests, or a score belongs to other weights.
    """
    require = cache(lambda id: store.require(root, id))
    ours, theirs = (_samples(require, status.variant_of(experiment, one)) for one in (name, other))
    columns = _columns(experiment, ours)
    found = _scores(columns, name, ours, other, theirs)
    return [(column, score.delta) for column, score in zip(columns, found, strict=True) if score.delta]


def _columns(experiment: Experiment, found: Found) -> tuple[Column, ...]:
    """A column for each task, and behind those of a suite one for its average."""
    columns: list[Column] = []
    for suite in experiment.suites:
        of = {task: found[suite.suite, task][0] for task in suite.tasks}
        made = {task: Column(suite.suite, task, s.metric, len(s.items), chance(s)) for task, s in of.items()}
        columns += made.values()
        if suite.average:
            parts = [made[task] for task in suite.average]
            guesses = [part.guess for part in parts if part.guess is not None]
            guess = sum(guesses) / len(guesses) if len(guesses) == len(parts) else None
            items = sum(part.items for part in parts)
            metric = parts[0].metric if len({part.metric for part in parts}) == 1 else "score"
            columns.append(Column(suite.suite, "average", metric, items, guess, tuple(suite.average)))
    return tuple(columns)


def _scores(columns: Sequence[Column], name: str, found: Found, other: str, against: Found | None) -> list[Score]:
    """The score of each column, and how it compares to another variant's, if there is one.

    Raises:
        EvaluationError: the two answered different requests.
    """
    made: dict[tuple[str, str], Score] = {}
    for column in columns:
        key = (column.suite, column.task)
        if column.tasks:
            parts = [made[column.suite, task] for task in column.tasks]
            deltas = [part.delta for part in parts if part.delta]
            made[key] = Score(mean([part.estimate for part in parts]), average(deltas) if deltas else None)
            continue
        samples, requests = found[key]
        if against and requests != against[key][1]:
            raise EvaluationError(
                f"`{name}` and `{other}` answered different requests", where=", ".join(key), expected=against[key][1],
                got=requests, todo="variants of one base share its tokenizer and suite: evaluate both again",
            )  # fmt: skip
        made[key] = Score(measure(samples), None)
        if against:
            others = against[key][0]
            made[key] = replace(made[key], delta=compare(samples, others), flips=flips(samples, others))
    return list(made.values())


def _names(experiment: Experiment) -> dict[str, str]:
    """The names of each checkpoint, by id: two variants of one recipe are one checkpoint."""
    names: dict[str, list[str]] = {}
    for variant in experiment.variants.values():
        names.setdefault(variant.job.id, []).append(variant.name)
    return {id: ", ".join(found) for id, found in names.items()}


def trace(require: Require, experiment: Experiment, name: str, known: dict[str, Plan]) -> Plan:
    """The plan of a variant as it was built, in layers of its bases; `parent` is a base's place among the variants.

    Ancestors first, so that a long chain is no deep recursion.
    """
    waiting, names = [name], list(experiment.variants)
    while waiting:
        variant = experiment.variants[waiting[-1]]
        unknown = [parent for parent in variant.parents if parent not in known]
        if unknown:
            waiting += unknown
            continue
        waiting.pop()
        parents = [known[parent] for parent in variant.parents]
        if variant.job.recipe.operation in TRAINING:
            known[variant.name] = parents[0]  # its manifest has its parent's plan, which is told in there already
            continue
        made = Plan.from_json(require(variant.job.id).facts["plan"])
        known[variant.name] = plan.trace(made, parents) if parents else plan.of(names.index(variant.name), made)
    return known[name]


def _samples(require: Require, variant: Variant) -> Found:
    """Each task's samples and the digest of its requests."""
    checkpoint = require(variant.job.id)
    for id, digest in checkpoint.facts["made_from"].items():
        parent = require(id)
        if parent.digest != digest:
            raise EvaluationError(
                f"`{variant.name}` was made from other content than {id} has now",
                where=checkpoint.path,
                expected=f"content digest {digest}",
                got=parent.digest,
                todo=f"run `strata redo {variant.name}`",
            )
    found = {}
    for job in variant.evaluations:
        evaluation = require(job.id)
        scored = evaluation.facts["checkpoint_digest"]
        if scored != checkpoint.digest:
            raise EvaluationError(
                f"the score of `{variant.name}` belongs to other weights",
                where=evaluation.path,
                expected=f"content digest {checkpoint.digest}",
                got=scored,
                todo=f"run `strata redo {variant.name}`",
            )
        for task, score in evaluation.facts["scores"].items():
            found[job.recipe.parameters["suite"], task] = (read_samples(evaluation, task), score["requests"])
    return found


def _row(
    require: Require,
    experiment: Experiment,
    variant: Variant,
    columns: tuple[Column, ...],
    samples: dict[str, Found],
    traced: dict[str, Plan],
    named: Mapping[str, str],
) -> Row:
    base = status.base_of(experiment, variant.name)
    against = None if variant.name == base else samples.get(base)
    scores = _scores(columns, variant.name, samples[variant.name], base, against)
    checkpoint = require(variant.job.id)
    trained = checkpoint.recipe.operation in TRAINING
    layers = trace(require, experiment, variant.name, traced)
    names = list(experiment.variants)
    bases = sorted({parent for layer in layers.layers for parent, _ in layer.sources})
    return Row(
        name=variant.name,
        made_by=status.summary(variant),
        base=base,
        checkpoint=checkpoint.id,
        digest=checkpoint.digest,
        layers=checkpoint.facts["layers"],
        parameters=checkpoint.facts["parameters"],
        plan=layers,
        bases=tuple(names[base] for base in bases),
        seams=plan.seams(layers),
        scores=tuple(scores),
        dtype=checkpoint.facts["dtype"],
        curve=read_curve(checkpoint, named) if trained else None,
        rounded=checkpoint.facts["training"]["rounded"] if trained else None,
        constant=tuple(checkpoint.facts.get("constant", ())),
    )
