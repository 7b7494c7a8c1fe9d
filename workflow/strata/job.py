"""A job: one artefact that the workflow makes."""

from __future__ import annotations

from dataclasses import dataclass

from strata.config import Shape
from strata.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """One artefact: its recipe, and what a machine must know to make it that is no part of what it is.

    shape: of the model it works on or makes
    location: where a local source lies
    processes: how many train together
    nodes: how many machines they are spread over
    trained: how many parameters train, where the layer plan is known
    """

    recipe: Recipe
    shape: Shape | None = None
    location: str = ""
    processes: int = 1
    nodes: int = 1
    trained: int | None = None

    @property
    def model(self) -> Shape:
        """The shape of the checkpoint that it makes or reads. Each has one: init refuses a source without."""
        assert self.shape is not None
        return self.shape

    @property
    def id(self) -> str:
        return self.recipe.id
