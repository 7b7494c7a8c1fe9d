"""Screen: the plans of a search scored on one text and the best of them on another, all from one copy of the base.

What was scored lies in `training/<id>/` until the result is published: a search that was killed goes on behind it, and
comes to the same result.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from strata import store
from strata.checkpoint import CONFIG, verify
from strata.errors import EvaluationError
from strata.jsonfile import read_object
from strata.loading import load_model
from strata.recipe import Recipe, canonical
from strata.relayer import relayered
from strata.score.answers import Answers
from strata.screen.candidates import Candidate, explicit, usual
from strata.screen.measures import MEASURES, Likeness
from strata.screen.score import Clock, score
from strata.screen.search import Space, first, following
from strata.screen.stack import stack
from strata.screen.texts import Text, open_texts
from strata.screen.tried import PLANS, Nats, Ranking, Tried, of_depth, ranked
from strata.screen.walk import Order
from strata.store import Built, Object
from strata.train.state import home

CHUNK = 32  # plans on a batch of text that are scored together where the time is limited, which the last may end

Score = Callable[[Iterable[Order]], dict[Order, Nats]]


def screen(root: Path, recipe: Recipe) -> Object:
    """Score what a screen's recipe asks for, and publish `plans.json` and `measures.json`.

    Raises:
        StoreError: the checkpoint or a text is missing or damaged.
        EvaluationError: the texts overlap or have too few documents; the base overflows, or is not its checkpoint.
    """
    done = store.publish(root, recipe, lambda folder: _build(root, recipe, folder))
    shutil.rmtree(home(root, recipe.id), ignore_errors=True)
    return done


def space_of(parameters: Mapping[str, Any], n: int) -> Space:
    """What a recipe's parameters ask to search, of a base of n layers."""
    return Space(
        n=n,
        depths=tuple(parameters["depths"]),
        families=tuple(parameters["families"]),
        explicit=tuple(map(tuple, parameters["plans"])),
        plans=parameters["budget"]["plans"],
        **parameters["search"],
    )


def _build(root: Path, recipe: Recipe, folder: Path) -> Built:
    parameters = recipe.parameters
    checkpoint = store.require(root, recipe.parents[0], verify)
    space = space_of(parameters, checkpoint.facts["layers"])
    _check_layers(checkpoint, space)
    model = load_model(checkpoint, parameters["dtype"], parameters["device"])
    deepest = max(space.n, *space.depths)
    selection, estimation = open_texts(root, recipe, checkpoint, model.config.hidden_size, deepest)
    place, minutes = home(root, recipe.id), parameters["budget"].get("minutes")
    answers, label = Answers(place, checkpoint.digest), f"{recipe.id[:14]} plans"
    clock = Clock(place / "seconds", 60 * minutes) if minutes else None
    base = explicit(tuple(range(space.n)))
    measured = _measure(model, selection, space.n)
    undamaged = score(model, selection, [base.order], answers, label)[base.order]
    if None in undamaged:
        raise EvaluationError(
            "the base's loss is not a number", where=checkpoint.path, expected="a number", got="NaN or infinity",
            todo="the model overflows: try `dtype: float32`",
        )  # fmt: skip
    chosen = partial(score, model, selection, answers=answers, label=label, clock=clock)
    size = max(1, CHUNK // len(selection.batches)) if minutes else None
    tried = ranked(_tried(space, chosen, size))
    if not tried:
        raise EvaluationError(
            "the time ended before one plan was scored", where=f"{minutes} minutes of the budget",
            expected="time for some plans", got="none", todo="raise `minutes`, or lower `documents` or `tokens`",
        )  # fmt: skip
    judged = {base.order, *_judged(space, tried, parameters["finalists"])}
    estimated = score(model, estimation, judged, answers, label)
    plans = [replace(plan, estimation=estimated.get(plan.order, ())) for plan in tried]
    itself = Tried(base.order, "base", "", undamaged, estimated[base.order])
    result = Ranking(itself, plans, selection.targets, estimation.targets)
    (folder / PLANS).write_text(canonical(result.to_json()) + "\n", encoding="utf-8")
    (folder / MEASURES).write_text(canonical(measured) + "\n", encoding="utf-8")
    facts = {"checkpoint_digest": checkpoint.digest, "made_from": {checkpoint.id: checkpoint.digest}}
    return Built(facts=facts | {"layers": space.n, "tried": len(tried)})


def _check_layers(checkpoint: Object, space: Space) -> None:
    """Raise CheckpointError for a base whose layers do something else in another place, as no merge would build it."""
    order = first(space)[0].order
    relayered([read_object(checkpoint.path / CONFIG)], [(0, layer) for layer in order])


def _measure(model: Any, text: Text, n: int) -> dict[str, Any]:
    likeness = Likeness(n)
    for batch in text.batches:
        with stack(model, batch, likeness.look(batch.lengths_B)):
            pass
    return likeness.to_json()


def _tried(space: Space, scored: Score, size: int | None) -> Iterator[Tried]:
    """All that the search comes to, generation after generation, until the budget or the time is used up.

    Args:
        size: of parts that are scored together, the last of which the time may end; None where it is not limited.
    """
    losses: dict[Order, float] = {}
    candidates, generation = first(space), 0
    while candidates:
        for part in _parts(candidates, space, size) if size else [candidates]:
            found = scored([one.order for one in part])
            for one in part:
                if one.order in found:
                    plan = Tried(one.order, one.family, one.merge, found[one.order])
                    losses[one.order] = plan.total()
                    yield plan
            if len(found) < len(part):
                return
        generation += 1
        candidates = following(space, losses, generation)


def _judged(space: Space, tried: list[Tried], finalists: int) -> Iterator[Order]:
    """The best plans of each depth, and SOLAR's, which is what they are to be better than."""
    for depth in space.depths:
        plans = [plan.order for plan in of_depth(tried, depth)]
        yield from plans[:finalists]
        yield from [order for order in plans if order == usual(space.n, depth)]


def _parts(candidates: list[Candidate], space: Space, size: int) -> Iterator[list[Candidate]]:
    """Plans in parts: given ones and SOLAR's, then the rest, drawn: sorted ones would leave out all of a kind."""
    begin = [one for one in candidates if one.order in space.explicit or one.order == usual(space.n, len(one.order))]
    if begin:
        yield begin
    others = [one for one in candidates if one not in begin]
    mixed = Random(f"{space.seed}").sample(others, len(others))  # noqa: S311
    for at in range(0, len(mixed), size):
        yield mixed[at : at + size]
