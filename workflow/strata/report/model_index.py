"""A variant's scores as a model card's `model-index`, through huggingface_hub's own classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strata.report.results import Result
from strata.report.table import NAMES, Row


def to_model_index(row: Row, results: Sequence[Result]) -> str:
    """The metadata block of a model card."""
    from huggingface_hub import ModelCardData

    return ModelCardData(model_name=row.name, eval_results=to_eval_results(results)).to_yaml() + "\n"


def to_eval_results(results: Sequence[Result]) -> list[Any]:
    """Results as huggingface_hub's EvalResult.

    A dataset that is not on the hub is called as in the suite. Its `config` is the task: the hub's client takes
    results whose dataset, config, split and revision are alike for one, and keeps the arguments of the first.
    """
    from huggingface_hub import EvalResult

    def told(result: Result) -> EvalResult:
        column, shots = result.column, result.shots
        pin = {key: value for key, value in result.pin.items() if key != "revision"}
        few = {} if shots is None else {"num_few_shot": shots}
        return EvalResult(
            task_type="text-generation",
            task_name="Text Generation",
            dataset_type=result.hub or result.task.source,
            dataset_name=f"{column.task} ({column.suite}{'' if shots is None else f', {shots}-shot'})",
            dataset_config=result.name,
            dataset_revision=result.pin.get("revision"),
            dataset_args={**pin, **result.drawn, **few, "suite_version": result.suite.version},
            metric_type=column.metric,
            metric_name=NAMES[column.metric],
            metric_value=result.estimate.value,
            metric_args={
                "standard_error": result.estimate.error,
                "items": column.items,
                "documents": result.documents,
            },
        )

    return [told(result) for result in results]
