"""Recovery curves: the held-out loss of a trained variant against the tokens it was trained on. No torch, no numpy.

The trainer writes them beside the weights. A loss says something beside another one only where both are of the same
held-out tokens, cut the same way and computed in the same dtype: `comparable` puts such curves together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from strata import store
from strata.errors import CheckpointError
from strata.jsonfile import read_object
from strata.recipe import TRAINING, Recipe
from strata.store import Object

CURVE = "curve.json"
ENDED = ("budget", "recovered")


class Heldout(NamedTuple):
    """What a held-out loss is of: `tokens` of a tokens object, `length` at a time, computed in `dtype`."""

    source: str
    tokens: int
    length: int
    dtype: str


@dataclass(frozen=True)
class Curve:
    """A run of training as its held-out loss tells it.

    `points` are (tokens that the run had seen, nats per token), the first before its first step: they count this run
    alone, also where `parent` was trained before. `start` is the operation that made the parent. `reference` is the
    model whose loss the run was to get back to, and that loss. `data` is what it was trained on: ids and weights.
    """

    variant: str
    operation: str
    parent: str
    start: str
    data: tuple[Any, ...]
    tokens: int
    points: tuple[tuple[int, float], ...]
    reference: tuple[str, float] | None
    ended: str
    heldout: Heldout | None


def read_curve(found: Object, names: Mapping[str, str]) -> Curve:
    """The curve of a stored checkpoint that was trained. `names` are those of variants, by the ids of checkpoints.

    Raises:
        StoreError: the file does not hold finite losses at rising numbers of tokens, from 0 on.
    """
    file, recipe = found.path / CURVE, found.recipe
    try:
        data = read_object(file)
        heldout = _heldout(recipe)
        points = tuple((_count(point["tokens"]), _loss(point["loss"])) for point in data["heldout"])
        places = [tokens for tokens, _ in points]
        if (heldout is None) != (not points):
            raise ValueError(f"{len(points)} points, and {'none' if heldout is None else 'some'} were asked for")
        if points and (places[0] != 0 or any(a >= b for a, b in pairwise(places))):
            raise ValueError(f"points at {', '.join(map(str, places[:5]))} ... tokens")
        if data["ended"] not in ENDED:
            raise ValueError(f"`ended` is {data['ended']!r}")
        parent, reference, steps = recipe.parents[0], data["reference"], list(data["steps"])
        if reference is not None and type(reference["id"]) is not str:
            raise ValueError(f"{reference['id']!r} is not an id")
        return Curve(
            variant=names.get(found.id, found.id),
            operation=recipe.operation,
            parent=names.get(parent, parent),
            start=parent.partition("-")[0],
            data=_data(recipe),
            tokens=_count(steps[-1]["tokens"]) if steps else 0,
            points=points,
            reference=reference and (names.get(reference["id"], reference["id"]), _loss(reference["loss"])),
            ended=data["ended"],
            heldout=heldout,
        )
    except (CheckpointError, IndexError, KeyError, TypeError, ValueError) as error:
        got = error.details["got"] if isinstance(error, CheckpointError) else repr(error)
        expected = "finite losses at rising numbers of tokens, from 0 on"
        raise store.damaged(found.id, file, CURVE, expected, got) from None


def _heldout(recipe: Recipe) -> Heldout | None:
    parameters = recipe.parameters
    if "heldout" not in parameters:
        return None
    source, tokens = recipe.sources[parameters["heldout"]["source"]], parameters["heldout"]["tokens"]
    return Heldout(source, tokens, parameters["length"], parameters["dtype"])


def _data(recipe: Recipe) -> tuple[Any, ...]:
    """(id, weight) of each source, or its id where there are no weights."""
    return tuple(
        (recipe.sources[entry[0]], entry[1]) if isinstance(entry, list) else recipe.sources[entry]
        for entry in recipe.parameters["data"]
    )


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is not a number of tokens")
    return value


def _loss(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is not a loss")
    return float(value)


def comparable(curves: Iterable[Curve]) -> dict[Heldout, tuple[Curve, ...]]:
    """The curves that can be held against each other, by what they were measured on, in the order given.

    Runs without a held-out set have no curve. One run that has two names is one curve.
    """
    groups: dict[Heldout, dict[Curve, None]] = {}
    for curve in curves:
        if curve.heldout is not None:
            groups.setdefault(curve.heldout, {})[curve] = None
    return {heldout: tuple(group) for heldout, group in groups.items()}


def note(curve: Curve, group: Iterable[Curve]) -> str:
    """What a reader must know of a curve beside its name; "" for most.

    A control is a base without parents, trained on the data that others of the group were trained on: it has nothing
    to recover, so whatever it gains is the data's doing.
    """
    if curve.start == "init" and any(other.start != "init" and other.data == curve.data for other in group):
        return "control"
    return f"after {curve.parent}" if curve.start in TRAINING else ""
