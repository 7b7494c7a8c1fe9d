"""Exports: the scores of variants in the forms that others read, one folder for each variant.

Each form has one result for each task. A suite's average follows from them, and a difference to the base is no result
of the model: neither is exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from strata import status
from strata.disk import write_atomically
from strata.errors import StoreError, UsageError
from strata.experiment import Experiment
from strata.report.every_eval_ever import to_every_eval_ever
from strata.report.model_index import to_model_index
from strata.report.results import results_of
from strata.report.table import collect


def write_exports(
    root: Path, experiment: Experiment, names: Sequence[str] = (), to: Path | None = None, organization: str = ""
) -> list[Path]:
    """Write `model-index.yaml` and `every_eval_ever.json` of these variants, or of all, into a folder for each.

    Raises:
        UsageError: no such variant, or a config without suites.
        StoreError: a checkpoint or an evaluation is missing or damaged, or a variant of `names` is a gap of the table.
        EvaluationError: a score that belongs to other weights, or to other requests than its base's.
    """
    if not experiment.suites:
        raise UsageError(
            "there are no scores to export", where="suites", expected="a suite under `suites` of the config", got="none"
        )
    for name in names:
        status.variant_of(experiment, name)
    table = collect(root, experiment, partial=bool(names))
    rows, gaps = {row.name: row for row in table.rows}, dict(table.gaps)
    texts = {}
    for name in dict.fromkeys(names or rows):
        if name in gaps:
            raise StoreError(
                f"`{name}` cannot be exported", where=root, expected="a variant that is scored", got=gaps[name],
                todo="run snakemake",
            )  # fmt: skip
        results = results_of(root, experiment, table.columns, name, rows[name].scores)
        texts[name] = {
            "model-index.yaml": to_model_index(rows[name], results),
            "every_eval_ever.json": to_every_eval_ever(rows[name], results, organization),
        }
    folder = to or root / "report" / "export"
    for name, files in texts.items():
        for file, text in files.items():
            write_atomically(folder / name / file, text.encode())
    return [folder / name for name in texts]
