"""What the config says of training: a schema for each objective, with its defaults, and its normal form in a recipe.

A value that only others make wrong (the parent's layers, the sources, the suites) is checked in `stages`.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag

from strata.schema import Count, Dtype, Model, Name, Share, Weight, by_form

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Nats = Annotated[float, Field(ge=0, le=1e6)]
Peak = Annotated[Rate, Field(description="at its peak")]
Schedule = Annotated[
    Literal["wsd", "cosine", "linear"], Field(description="warmup-stable-decay, cosine or linear, down to `floor`")
]
Warmup = Annotated[Share, Field(description="share of the run in which the rate rises to its peak")]
WeightDecay = Annotated[Nats, Field(description="of AdamW; on matrices of layers alone")]
Template = Annotated[
    Literal["alpaca", "solar", "own"],
    Field(description="how prompt and answer are put together; `own`: by the chat template that the parent has"),
]
DECAY = 0.2  # of a run with `wsd`, where the config does not say


class Heldout(Model):
    """Text that no step learns from. Its loss is measured at step 0, on a schedule and at the end."""

    source: Name = Field(description="a name in `sources`, not one of `data`")
    tokens: Positive = Field(default=8_192, description="how many are measured, spread evenly over all of it")


class Recovery(Model):
    """End before the budget, once the held-out loss is back at that of another variant."""

    recovered: Name = Field(description="the variant whose held-out loss is to be regained")
    within: Nats = Field(default=0.0, description="nats per token above that loss that are good enough")
    patience: Positive = Field(default=1, description="measurements in a row that must be good enough")


class Multipliers(Model):
    """Learning rates by class of layers, as multiples of `learning_rate`; 0 freezes."""

    new: Weight = Field(default=1.0, description="for the layers that block expansion inserted")
    seams: Weight = Field(default=1.0, description="for the layers on both sides of a seam that are not new")
    rest: Weight = Field(default=1.0, description="for everything else that trains")

    def normal(self) -> dict[str, float]:
        """Those that change anything."""
        return {key: value for key, value in self.model_dump().items() if value != 1}


class Rows(Model):
    """Some of the rows of a source."""

    source: Name = Field(description="a name in `sources`")
    rows: Positive | None = Field(default=None, description="how many, drawn by their numbers alone; default: all")


AnyRows = Annotated[
    Annotated[Name, Tag("@plain")] | Annotated[Rows, Tag("@mapping")],
    by_form("a source's name, or {source: NAME, rows: number}"),
]


class Training(Model):
    """What every objective has. A step learns from `batch` samples; shares of the run are shares of its steps."""

    operation: ClassVar[Literal["pretrain", "sft", "dpo"]]
    samples: ClassVar[str]  # what a batch is made of

    length: int = Field(default=1_024, ge=2, description="tokens of a sample")
    batch: Positive = Field(description="samples of a step, over all processes")
    micro_batch: Positive | None = Field(
        default=None, description="samples that go through the model at once, which bounds the memory; default: `batch`"
    )
    learning_rate: Peak
    schedule: Schedule
    warmup: Warmup
    decay: Share | None = Field(
        default=None, description=f"with `wsd`: share of the run in which the rate falls; default {DECAY}"
    )
    floor: Share = Field(default=0.0, description="the rate at the end, as a share of its peak")
    weight_decay: WeightDecay
    betas: Annotated[list[Momentum], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.95], description="of AdamW"
    )
    epsilon: Rate = Field(default=1e-8, description="of AdamW")
    clip: Rate = Field(default=1.0, description="largest norm of a step's gradient; a longer one is scaled down to it")
    train: Annotated[
        Annotated[Literal["all", "new", "seams", "new+norms"], Tag("@plain")]
        | Annotated[Annotated[list[Count], Field(min_length=1)], Tag("@list")],
        by_form("all, new, seams, new+norms, or a list of layer numbers"),
    ] = Field(
        default="all",
        description="what trains: everything, inserted layers, both sides of every seam, inserted layers and every "
        "norm, or these layers",
    )
    multipliers: Multipliers = Field(default=Multipliers(), description="learning rates by class of layers")
    dtype: Literal["float32", "bfloat16"] | None = Field(
        default=None,
        description="of the computation, whose master weights are float32; default: float32 on cpu, bfloat16 on cuda",
    )
    stored: Dtype | None = Field(default=None, description="dtype of the checkpoint; default: the parent's")
    seed: Count = Field(default=1_234, description="of the order of samples")
    activation_checkpointing: bool = Field(
        default=False, description="compute activations a second time instead of keeping them: slower, less memory"
    )
    processes: Positive = Field(default=1, description="processes that train together, one per GPU; not in the recipe")
    nodes: Positive = Field(
        default=1, description="machines that Slurm spreads the processes over, evenly; not in the recipe"
    )

    def normal(self, device: str) -> dict[str, Any]:
        """The parameters in a recipe, but for those that name sources or variants."""
        own = self.model_dump(
            exclude={"processes", "nodes", "data", "heldout", "every", "stop", "template"}, exclude_none=True
        )
        return own | {
            "micro_batch": self.micro_batch or self.batch,
            "decay": self.falling,
            "train": sorted(set(self.train)) if isinstance(self.train, list) else self.train,
            "multipliers": self.multipliers.normal(),
            "dtype": self.dtype or ("bfloat16" if device == "cuda" else "float32"),
            "device": device,
        }

    @property
    def falling(self) -> float:
        """`decay` with its default; other schedules than wsd fall all the way after the warm-up."""
        return (DECAY if self.decay is None else self.decay) if self.schedule == "wsd" else 0.0


class Pretrain(Training):
    """Continued pretraining on documents, for a number of tokens. A sample is a window of `length` tokens."""

    operation = "pretrain"
    samples = "windows"

    data: dict[Name, Weight] = Field(min_length=1, description="how much of each source, relative to the others")
    tokens: Positive = Field(description="budget; the steps are tokens / (batch * length), rounded down")
    heldout: Heldout | None = Field(default=None, description="what the held-out loss is measured on")
    every: Positive | None = Field(
        default=None, description="tokens between two measurements; default: a tenth of the budget"
    )
    stop: Recovery | None = Field(default=None, description="end before the budget")
    batch: Positive = Field(default=8, description="windows of a step, over all processes")
    learning_rate: Peak = 2e-4
    schedule: Schedule = "wsd"
    warmup: Warmup = 0.05
    weight_decay: WeightDecay = 0.1


class Sft(Training):
    """Instruction tuning on rows of prompt and answer; only answers are learnt. A sample is `length` tokens of rows."""

    operation = "sft"
    samples = "rows"

    data: list[AnyRows] = Field(min_length=1, description="sources of instructions")
    template: Template
    epochs: Positive = Field(default=3, description="how often every row is learnt")
    heldout: Heldout | None = Field(default=None, description="what the held-out loss is measured on")
    every: Positive | None = Field(
        default=None,
        description="tokens (steps * batch * length) between two measurements; default: a tenth of the run",
    )
    batch: Positive = Field(default=32, description="packed rows of a step, over all processes")
    learning_rate: Peak = 2e-5
    schedule: Schedule = "cosine"
    warmup: Warmup = 0.03
    weight_decay: WeightDecay = 0.0


class Dpo(Training):
    """Alignment by pairs of a chosen and a rejected answer (DPO); the reference is the parent. A sample is a pair."""

    operation = "dpo"
    samples = "pairs"

    data: list[AnyRows] = Field(min_length=1, description="sources of preferences")
    template: Template
    epochs: Positive = Field(default=1, description="how often every pair is learnt")
    beta: Rate = Field(default=0.1, description="how strongly the model is held to its reference")
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(
        default=0.0, description="share of pairs taken to be the wrong way round"
    )
    batch: Positive = Field(default=32, description="pairs of a step, over all processes")
    learning_rate: Peak = 5e-7
    schedule: Schedule = "linear"
    warmup: Warmup = 0.1
    weight_decay: WeightDecay = 0.0
