"""What the config says of a screen: which plans are tried, on what text, and which of them are trained on."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from strata.plan import MAX_LAYERS
from strata.schema import Count, Dtype, Model, Name
from strata.training import Positive, Pretrain

Depth = Annotated[int, Field(gt=0, le=MAX_LAYERS)]


class ScreenText(Model):
    """The start of some documents of a source."""

    source: Name = Field(description="a name in `sources`; every file is a document")
    documents: int = Field(default=16, ge=2, description="how many, in order of their names; errors are over them")
    tokens: int = Field(default=256, ge=2, description="of each document, from its start")


class Search(Model):
    """How plans are found where `blocks` and `prune` have more than may be tried: the best so far, changed a little."""

    parents: Positive = Field(default=8, description="the best plans of each depth, which are changed")
    children: Positive = Field(default=16, description="new plans of each depth in a generation")
    seed: Count = Field(default=1_234, description="of every draw")


class Budget(Model):
    """Where a search ends."""

    plans: int = Field(default=200, gt=0, le=100_000, description="how many are tried at most")
    tokens: Positive | None = Field(
        default=None, description="of the selection text, that all plans together are scored on at most"
    )
    minutes: Positive | None = Field(
        default=None, description="how long plans are tried; a limit in time gives other plans on another machine"
    )


class Race(Model):
    """The best plans of a depth, each trained on: round by round the better half goes on to twice the tokens."""

    depth: Depth | None = Field(default=None, description="of the plans; default: the only one of `depths`")
    plans: int = Field(default=4, ge=2, description="how many begin, by their loss on the selection text")
    rounds: Positive = Field(default=2, description="each but the first has half of the plans and twice the tokens")
    pretrain: Pretrain = Field(description="as of a variant; `tokens` are those of the first round")


class Screen(Model):
    """A search among the plans that re-stack one model, scored without building any."""

    parent: Name = Field(description="the variant whose layers are stacked")
    depths: list[Depth] = Field(min_length=1, description="numbers of layers that the plans have")
    families: list[Literal["dus", "interlocked", "repeat", "blocks", "prune"]] = Field(
        default=["dus", "interlocked", "repeat"],
        description="which plans: dus with any two cuts; interlocked with any group; repeat, one block any number of "
        "times; blocks, several that run twice; prune, fewer layers",
    )
    plans: list[Annotated[list[Count], Field(min_length=1)]] = Field(
        default=[], description="plans besides, as lists of layers"
    )
    selection: ScreenText = Field(description="the text that plans are chosen on")
    estimation: ScreenText = Field(description="another text, which says what the chosen ones lose")
    finalists: Positive = Field(default=10, description="the best of each depth that are measured on `estimation` too")
    search: Search = Search()
    budget: Budget = Budget()
    dtype: Dtype | None = Field(
        default=None, description="of weights and activations; default: float32 on cpu, bfloat16 on cuda"
    )
    race: Race | None = Field(default=None, description="training that decides between the best")

    @model_validator(mode="after")
    def _something_to_try(self) -> Screen:
        if not self.families and not self.plans:
            raise PydanticCustomError("strata", "give `families`, or `plans`")
        if len(set(self.depths)) < len(self.depths):
            raise PydanticCustomError("strata", "a depth twice in `depths`")
        if len(self.plans) > self.plans_in_budget:
            told = "{given} `plans`, of which the budget has room for {room}"
            raise PydanticCustomError("strata", told, {"given": len(self.plans), "room": self.plans_in_budget})
        if self.plans_in_budget < 1:
            told = "`tokens` of the budget are fewer than the {each} that one plan is scored on"
            raise PydanticCustomError("strata", told, {"each": self.selection.documents * self.selection.tokens})
        if self.race and self.race.depth is None and len(self.depths) > 1:
            raise PydanticCustomError("strata", "give the `depth` of the race: there are several in `depths`")
        return self

    @property
    def plans_in_budget(self) -> int:
        """How many plans may be tried, by their number and by the tokens that they are scored on."""
        each = self.selection.documents * self.selection.tokens
        return min(self.budget.plans, (self.budget.tokens or self.budget.plans * each) // each)

    def normal(self, device: str) -> dict[str, Any]:
        """The parameters in a recipe."""
        left_out = {"parent", "race", "selection", "estimation"}
        texts = {name: getattr(self, name).model_dump(exclude={"source"}) for name in ("selection", "estimation")}
        dtype = self.dtype or ("float32" if device == "cpu" else "bfloat16")
        given = self.model_dump(exclude=left_out, exclude_none=True)
        given["budget"] = given["budget"] | {"plans": self.plans_in_budget}
        given["budget"].pop("tokens", None)
        return given | texts | {"depths": sorted(self.depths), "dtype": dtype, "device": device}
