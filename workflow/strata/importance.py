"""Importance: what an analysis measured of each layer, and the layers that matter least by it. No torch, no numpy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from strata import store
from strata.errors import CheckpointError, ConfigError
from strata.jsonfile import read_object
from strata.store import Object

IMPORTANCE = "importance.json"


@dataclass(frozen=True)
class Importance:
    """Block influence of each layer; `angular_distance[l][n - 1]` is that from before layer l to n layers later."""

    block_influence: tuple[float, ...]
    angular_distance: tuple[tuple[float, ...], ...]
    tokens: int
    documents: int

    @property
    def layers(self) -> int:
        return len(self.block_influence)


def read_importance(found: Object) -> Importance:
    """What a stored analysis measured.

    Raises:
        StoreError: the file does not hold a number for each layer, and a triangle of them.
    """
    file, layers = found.path / IMPORTANCE, found.facts["layers"]
    try:
        data = read_object(file)
        influence, angular = data["block_influence"], data["angular_distance"]
        whole = _numbers(influence, layers) and len(angular) == layers
        if not whole or not all(_numbers(row, layers - number) for number, row in enumerate(angular)):
            raise ValueError("another number of them, or something else")
        return Importance(tuple(influence), tuple(map(tuple, angular)), data["tokens"], data["documents"])
    except (CheckpointError, KeyError, TypeError, ValueError) as error:
        got = error.details["got"] if isinstance(error, CheckpointError) else error
        raise store.damaged(found.id, file, IMPORTANCE, f"numbers for each of {layers} layers", got) from None


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    )


def least_important(importance: Importance, count: int, by: str) -> tuple[int, ...]:
    """The `count` layers to remove first, in order. Of equals, the higher layers go.

    `block_influence`: those of the lowest influence (ShortGPT, arXiv 2403.03853). `angular_distance`: the block of
    neighbours that turns the hidden state least (Gromov et al., arXiv 2403.17887).

    Raises:
        ConfigError: `count` is not in 1..layers-1, or `by` is unknown.
    """
    layers = importance.layers
    if not 1 <= count < layers:
        expected = f"1 to {layers - 1}: the parent has {layers} layers"
        raise ConfigError("`count` is out of range", where="merge", expected=expected, got=count)
    match by:
        case "block_influence":
            order = sorted(range(layers), key=lambda layer: (importance.block_influence[layer], -layer))
            return tuple(sorted(order[:count]))
        case "angular_distance":
            starts = range(layers - count + 1)
            start = min(starts, key=lambda layer: (importance.angular_distance[layer][count - 1], -layer))
            return tuple(range(start, start + count))
    raise ConfigError("unknown measure", where="by", expected="block_influence, angular_distance", got=by)
