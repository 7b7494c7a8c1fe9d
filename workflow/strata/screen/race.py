"""Race: plans that were trained on alike, ranked by what they lose then, on the two texts of their screen."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from strata import store
from strata.checkpoint import verify
from strata.errors import StoreError
from strata.loading import load_model
from strata.plan import Plan
from strata.recipe import Recipe, canonical
from strata.screen.candidates import order_of, runs
from strata.screen.stack import stack
from strata.screen.texts import Text, open_texts
from strata.screen.tried import PLANS, Ranking, Tried, of_depth, ranked, read_ranking
from strata.store import Built, Object


def race(root: Path, recipe: Recipe) -> Object:
    """Rank the checkpoints of a race's round, whose recipe names them by the ranks that they came with.

    Raises:
        StoreError: a checkpoint, a text or the ranking before is missing or damaged, or of other weights.
        EvaluationError: as `screen`; or they were trained on a text that they are ranked by.
    """
    return store.publish(root, recipe, lambda folder: _build(root, recipe, folder))


def _build(root: Path, recipe: Recipe, folder: Path) -> Built:
    parameters = recipe.parameters
    earlier = store.require(root, recipe.sources[2])
    ranking = read_ranking(earlier)
    before = of_depth(ranking.plans, parameters["depth"])
    found = [store.require(root, id, verify) for id in recipe.parents]
    plans, texts = [], None
    for rank, (checkpoint, plan) in enumerate(zip(found, before, strict=False), 1):
        _check_plan(checkpoint, plan)
        model = load_model(checkpoint, parameters["dtype"], parameters["device"])
        if texts is None:
            texts = open_texts(root, recipe, checkpoint, model.config.hidden_size, 1, recipe.sources[3:])
        selection, estimation = (_nats(model, text) for text in texts)
        plans.append(replace(plan, selection=selection, estimation=estimation, before=rank))
        del model
        gc.collect()
    assert texts is not None  # there are two runners at least
    result = Ranking(ranking.base, ranked(plans), texts[0].targets, texts[1].targets)
    (folder / PLANS).write_text(canonical(result.to_json()) + "\n", encoding="utf-8")
    made_from = {one.id: one.digest for one in (*found, earlier)}
    return Built(facts={"checkpoint_digest": earlier.facts["checkpoint_digest"], "made_from": made_from})


def _nats(model: Any, text: Text) -> tuple[float | None, ...]:
    """Each document's loss under a model as it is."""
    found: list[float | None] = []
    last: dict[str, Any] = {}
    for batch in text.batches:
        with stack(model, batch, lambda number, state: last.update(state=state)) as read:
            found += [value if math.isfinite(value) else None for value in read.nats(last["state"]).tolist()]
    return tuple(found)


def _check_plan(checkpoint: Object, plan: Tried) -> None:
    """Raise StoreError for a checkpoint that is of another plan than the one that has its rank now."""
    order = order_of(Plan.from_json(checkpoint.facts["plan"]))
    if order != plan.order:
        raise StoreError(
            "a checkpoint of the race is of another plan than has its rank now", where=checkpoint.path,
            expected=plan.merge, got=", ".join(f"{start}-{stop - 1}" for start, stop in runs(order)),
            todo="run `strata redo` of a variant that rests on the race",
        )  # fmt: skip
