"""Formats: the table as CSV, Markdown, LaTeX and lines for a terminal, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Sequence

from strata.curves import Curve
from strata.report.comparison import Comparison, holm
from strata.report.table import Column, Row, Score, Table
from strata.score.statistics import Estimate


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
            record |= {f"{key}/{name}": value for name, value in _compared(score).items()}
        records.append(record | {"checkpoint": row.checkpoint, "digest": row.digest})
    return str(pd.DataFrame(records).to_csv(index=False, lineterminator="\n"))


def _compared(score: Score) -> dict[str, object]:
    """The columns of a comparison with the base."""
    keys = ("difference", "difference_error", "low", "high", "p", "p_adjusted", "wins", "losses", "detectable")
    if (delta := score.delta) is None:
        return dict.fromkeys(keys, "")
    found = (
        *(delta.difference.value, delta.difference.error, *delta.interval, delta.p, score.adjusted),
        *(delta.wins, delta.losses, delta.detectable),
    )
    return dict(zip(keys, found, strict=True))


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
            cells += [number(score.estimate), difference(score) if score.delta else ""]
        lines.append(cells)
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return "\n\n".join([body, reading(table), *warnings(table)]) + "\n"


MOST_ROUNDED = 0.5  # of an update's norm: with more, what is scored is nearer to the parent than to what was trained

_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def to_tex(table: Table) -> str:
    """The scores as a LaTeX table with booktabs, the differences to the base in a second line."""
    head = ["variant", "layers", "parameters", *(column.title for column in table.columns)]
    lines = [
        "% needs \\usepackage{booktabs}; a star marks differences that stand after Holm's correction",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", "\\toprule", _cells(head), "\\midrule",
    ]  # fmt: skip
    for row in table.rows:
        lines.append(
            _cells([row.name, str(row.layers), millions(row.parameters), *(number(s.estimate) for s in row.scores)])
        )
        if any(score.delta for score in row.scores):
            lines.append(_cells(["", "", "", *(difference(score) for score in row.scores)]))
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def _cells(texts: Sequence[str]) -> str:
    escaped = ("".join(_TEX.get(character, character) for character in text) for text in texts)
    return " & ".join(text.replace("±", "$\\pm$") for text in escaped) + r" \\"


READING = (
    "± is one standard error over documents. Differences are paired, document by document and question by question; * "
    "marks one that is significant at 0.05 after Holm's correction for all differences of the table. "
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
    """What a reader must not overlook: variants that are missing, sources that look damaged, and trained variants that
    hardly hold what was learnt."""
    missing = [f"{name} is missing: {gap}." for name, gap in table.gaps]
    constant = [
        f"{row.name}: one value throughout in {len(row.constant)} of its source's matrices, the first of them "
        f"{row.constant[0]}. Unless it was made so, the file has a hole."
        for row in table.rows
        if row.constant
    ]
    rounded = [
        f"{row.name}: storing it as {row.dtype} rounded {row.rounded:.0%} of its update away, so that its scores are "
        "closer to its parent's than its held-out loss says. `stored: float32` keeps the update."
        for row in table.rows
        if row.rounded is not None and row.rounded > MOST_ROUNDED
    ]
    return missing + constant + rounded


def change(curve: Curve) -> str:
    """`3.842 → 3.012`, or nothing where no text was held out."""
    return f"{curve.points[0][1]:.3f} → {curve.points[-1][1]:.3f}" if curve.points else ""


def number(estimate: Estimate, signed: bool = False) -> str:
    """`0.972 ± 0.011`"""
    return f"{estimate.value:{'+' if signed else ''}.3f} ± {estimate.error:.3f}"


def points(estimate: Estimate) -> str:
    """`59.56 ± 1.43`; a score of 0 has no error that its sampling tells."""
    return f"{estimate.value:.2f} ± {estimate.error:.2f}" if estimate.error else f"{estimate.value:.2f}"


def comparison(name: str, other: str, found: Sequence[tuple[Column, Comparison]]) -> str:
    """One variant against another, a line for each task, for the terminal."""
    adjusted = holm([one.p for _, one in found])
    lines = [f"{name} minus {other}, paired; p after Holm's correction for {len(found)} tasks"]
    for (column, one), p in zip(found, adjusted, strict=True):
        lines += [
            f"{column.title}",
            f"  {number(one.difference, signed=True)}, 95 % interval {interval(one)}, p {probability(p)}",
            f"  {one.wins} of {column.items} items better, {one.losses} worse, {one.ties} alike",
            f"  a difference of {one.detectable:.3f} would be found four times of five",
        ]
    return "\n".join(lines)


def difference(score: Score) -> str:
    """`+0.211 ± 0.006 *`: the star where it stands whatever else was looked at."""
    return number(score.delta.difference, signed=True) + " *" * score.stands if score.delta else ""


def interval(comparison: Comparison) -> str:
    """`+0.199 to +0.223`"""
    return "{:+.3f} to {:+.3f}".format(*comparison.interval)


def probability(p: float) -> str:
    """A p as papers write it."""
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def duration(seconds: float) -> str:
    """`0.4 s`, `61 s`, `12 min` or `3.5 h`"""
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def millions(count: int) -> str:
    """134,515,008 -> 134.5 M"""
    return f"{count / 1e6:,.1f} M" if count < 1e10 else f"{count / 1e9:,.1f} B"
