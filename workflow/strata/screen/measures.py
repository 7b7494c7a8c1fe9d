"""Measures: how alike the states of a base are before and behind each of its layers, and what that says of a plan.

Before layer l is the state number l; the last one, behind the last layer and before the final norm, is number n. A seam
from layer a to layer b gives b the state a + 1 in place of the state b that it has in the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from strata.screen.walk import Order

MEASURES = "measures.json"
_ROWS = 256  # tokens at once
Measures = Mapping[str, Sequence[Sequence[float]]]
PREDICTORS = {
    "seams": "seams",
    "seam_distance": "layers jumped over at seams",
    "seam_mismatch": "1 - cosine of the state that a layer behind a seam expects and the one it gets, summed",
    "angular_distance": "angle between those two states, summed",
    "block_influence": "block influence of the layers that are added, or left out, summed",
}


class Likeness:
    """Sums over tokens of 1 - cosine and of the angle between every two states, filled batch by batch."""

    def __init__(self, layers: int) -> None:
        import torch

        self._states: list[Any] = []
        self._apart = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
        self._angle = torch.zeros_like(self._apart)
        self._tokens = 0

    def look(self, lengths_B: Any) -> Any:
        """What to show the states of a batch to, by their numbers."""
        import torch

        def see(number: int, state_BTD: Any) -> None:
            read = torch.arange(state_BTD.shape[1], device=state_BTD.device) < lengths_B[:, None]
            self._states.append(state_BTD[read])
            if len(self._states) == len(self._apart):
                for at in range(0, len(self._states[0]), _ROWS):
                    self._add(torch.stack([state_ND[at : at + _ROWS] for state_ND in self._states], 1))
                self._states.clear()

        return see

    def _add(self, states_NLD: Any) -> None:
        import torch

        unit = torch.nn.functional.normalize(states_NLD.double(), dim=-1)
        cosine_NLL = (unit @ unit.transpose(1, 2)).clamp(-1, 1)
        self._apart += (1 - cosine_NLL).sum(0).cpu()
        self._angle += (cosine_NLL.arccos() / torch.pi).sum(0).cpu()
        self._tokens += len(states_NLD)

    def to_json(self) -> dict[str, list[list[float]]]:
        """`mismatch` (1 - cosine) and `angle` (in parts of pi), means over tokens, (n + 1, n + 1) each."""
        found = {"mismatch": self._apart / self._tokens, "angle": self._angle / self._tokens}
        for mean in found.values():
            mean.fill_diagonal_(0.0)
        return {name: [[float(f"{x:.9g}") for x in row] for row in mean.tolist()] for name, mean in found.items()}


def seams_of(order: Order, n: int) -> list[tuple[int, int]]:
    """Where a layer, or the final norm as number n, gets another state than in the base: (given, expected), each by the
    layer whose state it is."""
    return [(before + 1, after) for before, after in pairwise((-1, *order, n)) if before + 1 != after]


def predictors(order: Order, n: int, measured: Measures) -> dict[str, float]:
    """What could be known of a plan before it was scored, from its base alone; see PREDICTORS."""
    mismatch, angle = measured["mismatch"], measured["angle"]
    seams = seams_of(order, n)
    counts = [order.count(layer) for layer in range(n)]
    return {
        "seams": float(len(seams)),
        "seam_distance": float(sum(abs(given - expected) for given, expected in seams)),
        "seam_mismatch": sum(mismatch[given][expected] for given, expected in seams),
        "angular_distance": sum(angle[given][expected] for given, expected in seams),
        "block_influence": sum(abs(times - 1) * mismatch[layer][layer + 1] for layer, times in enumerate(counts)),
    }
