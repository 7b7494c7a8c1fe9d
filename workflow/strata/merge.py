"""Merge: a checkpoint made of its parents' layers, from the store into the store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strata import store
from strata.checkpoint import Checkpoint, copy_tokenizer, finish, open_checkpoint
from strata.errors import StoreError
from strata.importance import least_important, read_importance
from strata.methods import make_plan
from strata.plan import Plan, copies
from strata.recipe import Recipe
from strata.restack import draft, write
from strata.screen.tried import ranked_plan
from strata.store import Built, Object


def merge(root: Path, recipe: Recipe) -> Object:
    """Build the checkpoint of a merge recipe from its parents in the store, and publish it.

    Raises:
        StoreError: a parent, or the analysis that it rests on, is missing or damaged.
        PlanError: the parameters do not fit the parents.
        CheckpointError: the parents do not fit together. Nothing has been written then.
    """
    return store.publish(root, recipe, lambda folder: _build(root, recipe, folder))


def _build(root: Path, recipe: Recipe, folder: Path) -> Built:
    found = [store.require(root, id) for id in recipe.parents]
    analyses = [store.require(root, id) for id in recipe.sources]
    parents = [open_checkpoint(parent) for parent in found]
    if analyses:
        _check_measured(analyses[0], found[0])
    plan = _plan(recipe.parameters, parents, analyses)
    made = draft(plan, parents, recipe.parameters.get("dtype"))
    sha256, rounding = write(folder, made, "merge")
    copy_tokenizer(parents[made.lender], folder)
    built = finish(folder, made.config, made.shards, sha256, made.plan, [*found, *analyses])
    extra: dict[str, Any] = {"rounding": rounding} if "dtype" in recipe.parameters else {}
    return Built(built.files, built.digest, built.facts | extra)


def _plan(parameters: dict[str, Any], parents: Sequence[Checkpoint], analyses: Sequence[Object]) -> Plan:
    """The plan that the parameters make, or that a screen or a race has found."""
    if parameters["method"] == "screened":
        return copies(ranked_plan(analyses[0], parameters["depth"], parameters["rank"]))
    dropped = None
    if analyses:
        dropped = least_important(read_importance(analyses[0]), parameters["least"], parameters["by"])
    return make_plan(parameters, [parent.layers for parent in parents], dropped)


def _check_measured(analysis: Object, parent: Object) -> None:
    """Raise StoreError for an analysis of other weights: a trained parent may have been built anew."""
    if analysis.facts["checkpoint_digest"] != parent.digest:
        raise StoreError(
            "what was measured was measured of other weights than the parent has now",
            where=analysis.path,
            expected=f"content digest {parent.digest}",
            got=analysis.facts["checkpoint_digest"],
            todo="run `strata redo` of the variant: both are made anew",
        )
