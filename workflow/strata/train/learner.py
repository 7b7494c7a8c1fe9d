"""The model that learns: which of its parameters train, their masters, and the optimiser's state.

Masters are float32. What never trains has neither gradient nor optimiser state. The matrices of frozen layers stay in
bfloat16 where the forward pass would round them to it anyway; all else is float32, trained or not, so that a frozen
model computes what a trained one does, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from strata import families
from strata.checkpoint import Checkpoint
from strata.errors import TrainingError
from strata.loading import decoder_layers, lower_frozen
from strata.plan import Plan
from strata.store import Object
from strata.train.groups import decays, trainable
from strata.train.parallel import Ranks
from strata.train.sharding import model_of, shard


@dataclass(frozen=True)
class Learner:
    """A model in training.

    `stored` names the checkpoint's tensors that each parameter holds: one, or all experts of a layer. `rates` holds the
    learning rate's multiplier of each parameter that trains. `parameters` are this rank's parts: asked later, the model
    may show the gathered ones that a forward pass has left behind.
    """

    model: Any
    optimizer: Any
    parameters: dict[str, Any]
    stored: dict[str, tuple[str, ...]]
    rates: dict[str, float]

    @cached_property
    def learnt(self) -> frozenset[str]:
        """The checkpoint's tensors that train."""
        return frozenset(tensor for name in self.rates for tensor in self.stored[name])

    @property
    def trained(self) -> dict[str, Any]:
        """The parameters that train, by name."""
        return {name: self.parameters[name] for name in self.rates}

    def tensors(self) -> dict[str, Any]:
        """All that training changes, for a snapshot: masters and AdamW's two moments."""
        state = self.optimizer.state
        return {
            f"{kind}/{name}": parameter if kind == "master" else state[parameter][kind]
            for name, parameter in self.trained.items()
            for kind in ("master", "exp_avg", "exp_avg_sq")
        }

    def went(self, steps: int) -> None:
        """Tell the optimiser how many steps it has behind it: its bias correction counts them."""
        for parameter in self.trained.values():
            self.optimizer.state[parameter]["step"].fill_(float(steps))


def make_learner(checkpoint: Object, opened: Checkpoint, parameters: Mapping[str, Any], ranks: Ranks) -> Learner:
    """A checkpoint as a model in training, spread over the ranks.

    Raises:
        ConfigError: nothing would train.
        EvaluationError: the loaded model is not the checkpoint.
    """
    import torch

    plan = Plan.from_json(checkpoint.facts["plan"])
    wanted = trainable(plan, opened.config, parameters["train"], parameters["multipliers"])
    model = model_of(checkpoint, ranks).train()
    _silence_dropout(model)
    stored = stored_names(model)
    rates: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        rate = {wanted.get(tensor, 0.0) for tensor in stored[name]}
        if len(rate) > 1:
            raise TrainingError(
                "parts of one parameter cannot train apart",
                where=name,
                expected="one learning rate for all of it",
                got=sorted(rate),
            )
        parameter.requires_grad_(bool(rate != {0.0}))
        if rate != {0.0}:
            rates[name] = rate.pop()
    layers = list(decoder_layers(model))
    if parameters["dtype"] == checkpoint.facts["dtype"] == "bfloat16":
        lower_frozen(layers)
    if parameters["activation_checkpointing"]:
        model.gradient_checkpointing_enable()
    if ranks.device.type == "cuda":
        # Frozen or not, packed or not, measured or trained: each is a graph, and past the limit nothing is compiled.
        torch._dynamo.config.recompile_limit = 64
        for layer in layers:
            layer.compile()
    shard(model, layers, checkpoint, ranks)
    # What evaluation needs to be reproducible costs training a fill of every new tensor, and on a GPU far more.
    torch.use_deterministic_algorithms(ranks.device.type == "cpu", warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    own = dict(model.named_parameters())
    return Learner(model, _optimizer(own, opened, rates, stored, parameters), own, stored, rates)


def stored_names(model: Any) -> dict[str, tuple[str, ...]]:
    """For each parameter of a loaded model, the names that its parts have in a file."""
    import torch
    from transformers.core_model_loading import revert_weight_conversion

    return {
        name: tuple(revert_weight_conversion(model, {name: torch.empty(parameter.shape, device="meta")}))
        for name, parameter in model.named_parameters()
    }


def _silence_dropout(model: Any) -> None:
    """No dropout and no jitter: a step then depends on nothing but its number, and DPO's first loss is ln 2."""
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
        if "Dropout" in type(module).__name__:
            module.p = 0.0


def _optimizer(
    own: Mapping[str, Any], opened: Checkpoint, rates: Mapping[str, float], stored: Mapping[str, tuple[str, ...]],
    parameters: Mapping[str, Any],
) -> Any:  # fmt: skip
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), one group for each (multiplier, decay), its state in place."""
    import torch

    family = families.family_of(opened.config)
    groups: dict[tuple[float, bool], list[Any]] = {}
    for name, rate in rates.items():
        tensor = stored[name][0]
        decay = decays(tensor, opened.tensors[tensor].tensor.shape, family)
        groups.setdefault((rate, decay), []).append(own[name])
    optimizer = torch.optim.AdamW(
        [
            {"params": group, "multiplier": rate, "weight_decay": parameters["weight_decay"] if decay else 0.0}
            for (rate, decay), group in groups.items()
        ],
        lr=parameters["learning_rate"], betas=tuple(parameters["betas"]), eps=parameters["epsilon"], fused=True,
    )  # fmt: skip
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    return optimizer


def set_rate(learner: Learner, rate: float) -> None:
    """Set the learning rate of the next step; each group's is its multiple."""
    for group in learner.optimizer.param_groups:
        group["lr"] = rate * group["multiplier"]
