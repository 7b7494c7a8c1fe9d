"""Operations: a recipe's job, done. Each imports what it needs, when it runs."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path

from strata.errors import UsageError
from strata.recipe import VERSIONS, Recipe
from strata.slots import gpus


def run(root: Path, operation: str, text: str, location: str, processes: int, nodes: int = 1) -> None:
    """Do the job of a recipe, given as canonical JSON, and record what it took.

    Args:
        location: where a local source lies.
        processes: that train together.
        nodes: that Slurm has given them.

    Raises:
        ClusterError: it asks for more GPUs than this machine has.
        UsageError: the recipe is of another operation, or of another version of it.
        StrataError: as the operation.
    """
    from strata.runs import recorded

    recipe = Recipe.from_json(text)
    expected = (operation, VERSIONS[operation])
    if (recipe.operation, recipe.version) != expected:
        raise UsageError(
            "a recipe of another operation or version", where=recipe.id,
            expected=f"{expected[0]} version {expected[1]}",
            got=f"{recipe.operation} version {recipe.version}",
            todo="run snakemake again: the code has changed since this job was planned",
        )  # fmt: skip
    is_rank = "RANK" in os.environ
    # Whoever spreads a job over nodes has its GPUs from Slurm, and this machine has fewer.
    wanted = processes if recipe.parameters.get("device") == "cuda" and nodes == 1 and not is_rank else 0
    launches = processes > 1 and not is_rank  # then the first of those it starts is recorded
    with gpus(wanted), nullcontext() if launches else recorded(root, recipe.id):
        _run(root, recipe, location, processes, nodes)


def _run(root: Path, recipe: Recipe, location: str, processes: int, nodes: int) -> None:
    match recipe.operation:
        case "fetch":
            from strata.sources import fetch

            fetch(root, recipe, location)
        case "init":
            from strata.initialize import initialize

            initialize(root, recipe)
        case "analyze":
            from strata.analyze import analyze

            analyze(root, recipe)
        case "screen":
            from strata.screen.operation import screen

            screen(root, recipe)
        case "race":
            from strata.screen.race import race

            race(root, recipe)
        case "merge":
            from strata.merge import merge

            merge(root, recipe)
        case "tokenize":
            from strata.tokens import tokenize

            tokenize(root, recipe)
        case "reference":
            from strata.train.reference import reference

            reference(root, recipe)
        case "pretrain" | "sft" | "dpo":
            from strata.train.operation import train

            train(root, recipe, processes, nodes)
        case "encode":
            from strata.encode import encode

            encode(root, recipe)
        case "evaluate":
            from strata.evaluate import evaluate

            evaluate(root, recipe)
        case "gguf":
            from strata.llamacpp.convert import convert

            convert(root, recipe)
        case "quantize":
            from strata.llamacpp.quantize import quantize

            quantize(root, recipe)
