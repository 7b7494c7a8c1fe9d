"""The report: one row per variant, made from the sample logs alone, as CSV, Markdown and one self-contained page.

The same store gives the same bytes. A score is refused when it belongs to other weights than the variant's, and two
scores are compared only when every request behind them was the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from strata import charts, figures, plan, status, store
from strata.curves import Curve, Heldout, comparable, read_curve
from strata.errors import EvaluationError
from strata.evaluate import read_samples
from strata.experiment import Experiment
from strata.plan import Plan
from strata.recipe import TRAINING
from strata.statistics import METRICS, Estimate, Samples, chance, difference, measure
from strata.store import Object
from strata.variant import Variant

Require = Callable[[str], Object]  # id -> the object, opened and checked once
NAMES = {"bits_per_byte": "bits per byte", "acc_norm": "accuracy"}


@dataclass(frozen=True)
class Column:
    """One task of a suite. `guess` is the score of guessing, where there is one."""

    suite: str
    task: str
    metric: str
    items: int
    guess: float | None

    @property
    def title(self) -> str:
        return f"{self.task} ({self.suite}), {NAMES[self.metric]}"


@dataclass(frozen=True)
class Score:
    """A score and, for all but the base, its paired difference to the base."""

    estimate: Estimate
    delta: Estimate | None


@dataclass(frozen=True)
class Row:
    """A variant: what it is, and a score for each column.

    `plan` counts in layers of `bases`, the variants without parents that it goes back to. `curve` is what training
    left, and `rounded` how much of its update the `dtype` of the checkpoint took back (as a part of its norm); None for
    a variant that was not trained itself.
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


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...] = field(repr=False)

    @property
    def curves(self) -> tuple[Curve, ...]:
        """Those of the rows that were trained: where there are none, the report does not speak of training."""
        return tuple(row.curve for row in self.rows if row.curve)


def write_report(root: Path, experiment: Experiment) -> Path:
    """Write scores.csv, scores.md and report.html. Returns the page's path.

    Raises:
        StoreError: a checkpoint or an evaluation is missing or damaged.
        EvaluationError: a score that belongs to other weights, or to other requests than its base's.
    """
    table = collect(root, experiment)
    folder = root / "report"
    store.write_atomically(folder / "scores.csv", to_csv(table).encode())
    store.write_atomically(folder / "scores.md", to_markdown(table).encode())
    store.write_atomically(folder / "report.html", to_html(table, experiment).encode())
    return folder / "report.html"


def collect(root: Path, experiment: Experiment) -> Table:
    """Every number of the table, from the samples in the store."""
    require = cache(lambda id: store.require(root, id))
    samples: dict[str, dict[tuple[str, str], tuple[Samples, str]]] = {}  # by variant, then by (suite, task)
    for variant in experiment.variants.values():
        samples[variant.name] = _samples(require, variant)
    first = next(iter(samples.values()))
    keys = [(suite.suite, task) for suite in experiment.suites for task in suite.tasks]
    columns = tuple(_column(*key, first[key][0]) for key in keys)
    traced: dict[str, Plan] = {}
    names = _names(experiment)
    rows = tuple(
        _row(require, experiment, variant, columns, samples, traced, names) for variant in experiment.variants.values()
    )
    return Table(columns, rows)


def _column(suite: str, task: str, found: Samples) -> Column:
    return Column(suite, task, METRICS[found.kind], len(found.items), chance(found))


def _names(experiment: Experiment) -> dict[str, str]:
    """The names of each checkpoint, by id: two variants of one recipe are one checkpoint."""
    names: dict[str, list[str]] = {}
    for variant in experiment.variants.values():
        names.setdefault(variant.job.id, []).append(variant.name)
    return {id: ", ".join(found) for id, found in names.items()}


def base_of(experiment: Experiment, name: str) -> str:
    """The variant without parents that this one goes back to, by first parents."""
    while experiment.variants[name].parents:
        name = experiment.variants[name].parents[0]
    return name


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


def _samples(require: Require, variant: Variant) -> dict[tuple[str, str], tuple[Samples, str]]:
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
    samples: dict[str, dict[tuple[str, str], tuple[Samples, str]]],
    traced: dict[str, Plan],
    named: Mapping[str, str],
) -> Row:
    base = base_of(experiment, variant.name)
    scores = []
    for column in columns:
        (own, requests), (others, base_requests) = (
            samples[name][column.suite, column.task] for name in (variant.name, base)
        )
        if requests != base_requests:
            raise EvaluationError(
                f"`{variant.name}` and `{base}` answered different requests",
                where=f"{column.suite}, {column.task}",
                expected=base_requests,
                got=requests,
                todo="variants of one base share its tokenizer and suite: evaluate both again",
            )
        scores.append(Score(measure(own), None if variant.name == base else difference(own, others)))
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
    )


def to_csv(table: Table) -> str:
    """One row per variant, numbers unrounded."""
    import pandas as pd

    records = []
    for row in table.rows:
        record: dict[str, object] = {
            "variant": row.name, "made_by": row.made_by, "base": row.base, "layers": row.layers,
            "parameters": row.parameters, "seams": len(row.seams),
        }  # fmt: skip
        if table.curves:
            record |= _trained(row)
        for column, score in zip(table.columns, row.scores, strict=True):
            key = f"{column.suite}/{column.task}/{column.metric}"
            record[key], record[f"{key}/error"] = score.estimate.value, score.estimate.error
            record[f"{key}/difference"] = score.delta.value if score.delta else None
            record[f"{key}/difference_error"] = score.delta.error if score.delta else None
        records.append(record | {"checkpoint": row.checkpoint, "digest": row.digest})
    return str(pd.DataFrame(records).to_csv(index=False, lineterminator="\n"))


def _trained(row: Row) -> dict[str, object]:
    """The columns of a variant's training. "" and not None, which pandas would turn whole numbers into floats for."""
    keys = ("trained_tokens", "heldout_before", "heldout_after", "ended", "rounded")
    curve = row.curve
    if curve is None:
        return dict.fromkeys(keys, "")
    before, after = (curve.points[0][1], curve.points[-1][1]) if curve.points else ("", "")
    return dict(zip(keys, (curve.tokens, before, after, curve.ended, row.rounded), strict=True))


def to_markdown(table: Table) -> str:
    """The table for people, with a line on how to read it."""
    head = ["variant", "made by", "layers", "parameters", "seams"]
    head += ["tokens trained", "held-out loss"] * bool(table.curves)
    for column in table.columns:
        head += [column.title, "difference to base"]
    lines = [head, ["---", "---"] + ["---:"] * (len(head) - 2)]
    for row in table.rows:
        cells = [row.name, row.made_by, str(row.layers), millions(row.parameters), str(len(row.seams))]
        if table.curves:
            cells += [f"{row.curve.tokens:,}", change(row.curve)] if row.curve else ["", ""]
        for score in row.scores:
            cells += [number(score.estimate), number(score.delta, signed=True) if score.delta else ""]
        lines.append(cells)
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([body, reading(table), *warnings(table)]) + "\n"


MOST_ROUNDED = 0.5  # of an update's norm: with more, what is scored is nearer to the parent than to what was trained

READING = (
    "± is one standard error over documents. Differences are paired, document by document and question by question. "
    "Lower bits per byte and higher accuracy are better. Seams are counted in layers of the bases."
)

TRAINED = (
    " Tokens trained are a variant's own, without those of its parents. The held-out loss is in nats per token, before "
    "and after; it compares with losses on the same held-out text alone. The recovery curve shows what lies between."
)


def reading(table: Table) -> str:
    """How to read the table, as far as its columns go."""
    return READING + TRAINED * bool(table.curves)


def warnings(table: Table) -> list[str]:
    """What a reader must not overlook: trained variants whose checkpoints hardly hold what was learnt."""
    return [
        f"{row.name}: storing it as {row.dtype} rounded {row.rounded:.0%} of its update away, so that its scores are "
        "closer to its parent's than its held-out loss says. `stored: float32` keeps the update."
        for row in table.rows
        if row.rounded is not None and row.rounded > MOST_ROUNDED
    ]


def change(curve: Curve) -> str:
    """`3.842 → 3.012`, or nothing where no text was held out."""
    return f"{curve.points[0][1]:.3f} → {curve.points[-1][1]:.3f}" if curve.points else ""


def number(estimate: Estimate, signed: bool = False) -> str:
    """`0.972 ± 0.011`"""
    return f"{estimate.value:{'+' if signed else ''}.3f} ± {estimate.error:.3f}"


def millions(count: int) -> str:
    """134,515,008 -> 134.5 M"""
    return f"{count / 1e6:,.1f} M" if count < 1e10 else f"{count / 1e9:,.1f} B"


def to_html(table: Table, experiment: Experiment) -> str:
    """One page with the table and both figures; nothing is loaded from elsewhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": number, "millions": millions, "change": change}
    return environment.get_template("report.html").render(
        table=table,
        suites=experiment.suites,
        device=experiment.device,
        reading=reading(table),
        warnings=warnings(table),
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


def _title(experiment: Experiment, heldout: Heldout) -> str:
    """What a chart's losses are of, in words: tokens of a source of the config."""
    names = {job.id: name for name, job in experiment.sources.items()}
    job = experiment.jobs.get(heldout.source)
    source = next((names[id] for id in job.recipe.sources if id in names), heldout.source) if job else heldout.source
    return f"{source}: {heldout.tokens:,} held-out tokens, {heldout.length:,} at a time, in {heldout.dtype}"
