"""Tasks: what one step of each operation reads, what it minimises, and what its loss is divided by."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from strata import store
from strata.errors import TrainingError
from strata.store import Object
from strata.tokens import Tokens
from strata.train.batch import IGNORED, Batch
from strata.train.data import Mixture, Pairs, Rows, evenly, whole_steps, windows
from strata.train.objectives import FIRST_LOSS, answer_logps, language_loss, preference_loss
from strata.train.parallel import Ranks

LOGPS = "logps.npy"  # of a reference: (P, 2), chosen and rejected
Loss = tuple[Any, dict[str, Any]]  # a sum that can be differentiated, and more sums to report


@dataclass(frozen=True)
class Task:
    """What the loop needs to know of an operation.

    `draw` gives the batch of sample numbers, `weigh` what the loss of samples is divided by (targets, or pairs), and
    `loss` the sum of losses of a batch. `first` is what the first step's loss must be, where that is known.
    """

    steps: int
    counts: dict[str, Any] = field(repr=False)
    draw: Callable[[Sequence[int]], Batch]
    weigh: Callable[[Sequence[int]], int]
    loss: Callable[[Any, Batch, Sequence[int], str], Loss]
    first: float | None = None


def pretraining(tokens: Sequence[Tokens], parameters: Mapping[str, Any]) -> Task:
    """Continued pretraining on a mixture of windows, for a budget of tokens."""
    length, batch = parameters["length"], parameters["batch"]
    steps = whole_steps(parameters["tokens"] // length, batch)
    weights = [weight for _, weight in parameters["data"]]
    chosen = [tokens[source] for source, _ in parameters["data"]]
    return _language(Mixture(chosen, weights, length, parameters["seed"], steps * batch), steps)


def tuning(tokens: Sequence[Tokens], parameters: Mapping[str, Any]) -> Task:
    """Instruction tuning on packed rows, for a number of epochs."""
    rows = Rows([tokens[source] for source in parameters["data"]], parameters["length"], parameters["seed"])
    return _language(rows, whole_steps(parameters["epochs"] * len(rows), parameters["batch"]))


def _language(data: Mixture | Rows, steps: int) -> Task:
    def weigh(samples: Sequence[int]) -> int:
        return int((data.batch(samples).labels != IGNORED).sum())

    def loss(model: Any, batch: Batch, samples: Sequence[int], dtype: str) -> Loss:
        return language_loss(*predict(model, batch, dtype)), {}

    return Task(steps, data.counts, data.batch, weigh, loss)


def preferring(tokens: Sequence[Tokens], reference: Object, parameters: Mapping[str, Any]) -> Task:
    """Preference training (DPO) on pairs, against log-probabilities that were computed before.

    Raises:
        StoreError: they are not of these pairs.
    """
    import numpy as np

    pairs = Pairs([tokens[source] for source in parameters["data"]], parameters["length"], parameters["seed"])
    logps_P2 = np.load(reference.path / LOGPS)
    if logps_P2.shape != (len(pairs), 2) or not np.isfinite(logps_P2).all():
        raise store.damaged(reference.id, reference.path, LOGPS, f"{(len(pairs), 2)} numbers", logps_P2.shape)

    def loss(model: Any, batch: Batch, samples: Sequence[int], dtype: str) -> Loss:
        import torch

        chosen, rejected = answer_logps(*predict(model, batch, dtype)).chunk(2)
        of_reference = torch.from_numpy(logps_P2[pairs.numbers(samples)]).to(chosen.device)
        total, margins = preference_loss(
            chosen, rejected, of_reference.float(), parameters["beta"], parameters["label_smoothing"]
        )
        return total, {"accuracy": (margins > 0).sum(), "margin": margins.sum()}

    steps = whole_steps(parameters["epochs"] * len(pairs), parameters["batch"])
    return Task(steps, pairs.counts, pairs.batch, len, loss, FIRST_LOSS)


def predict(model: Any, batch: Batch, dtype: str) -> tuple[Any, Any]:
    """The logits (B, T, V) and labels (B, T) of a batch, on the model's device.

    No cache and no attention mask: with either, transformers does not see that positions restart and lets documents
    look at each other. Rows that hold one document each need no positions, and take the faster causal kernel.
    """
    import torch

    device = next(model.parameters()).device
    arrays = [torch.from_numpy(array) for array in (batch.ids, batch.labels, batch.positions)]
    if device.type == "cuda":  # from memory that cannot be swapped out a copy waits for nothing
        arrays = [array.pin_memory() for array in arrays]
    ids, labels, positions = (array.to(device, non_blocking=True) for array in arrays)
    if bool((batch.positions[:, 1:] > batch.positions[:, :-1]).all()):
        positions = None
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        logits = model(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False).logits
    return logits, labels


def check_first(task: Task, loss: float, parameters: Mapping[str, Any]) -> None:
    """Raise TrainingError unless the first loss is what it must be: DPO's starts at ln 2, where policy is reference."""
    tolerance = 1e-4 if parameters["dtype"] == "float32" else 2e-3  # rounding, where batches are padded otherwise
    if task.first is not None and not math.isclose(loss, task.first, abs_tol=tolerance):
        raise TrainingError(
            "the first loss is not what it must be", where="step 0", expected=f"ln 2 = {task.first:.6f}",
            got=f"{loss:.6f}", todo="the reference's log-probabilities are not those of this parent: report it",
        )  # fmt: skip


def heldout_batches(source: Tokens, parameters: Mapping[str, Any]) -> list[Batch]:
    """Batches of held-out text: windows spread evenly over documents, or rows of whole conversations."""
    length, wanted, micro = parameters["length"], parameters["heldout"]["tokens"], parameters["micro_batch"]
    if source.format == "text":
        numbers = evenly(source, length, wanted)
        parts = [numbers[start : start + micro] for start in range(0, len(numbers), micro)]
        return [windows(source, length, part) for part in parts]
    rows = Rows([source], length, 0)  # each has something to learn
    count = max(1, min(len(rows), wanted // length))
    return [rows.batch(range(start, min(start + micro, count))) for start in range(0, count, micro)]


def heldout_loss(model: Any, batches: Sequence[Batch], dtype: str, ranks: Ranks) -> float:
    """The mean of -log p over the targets of these batches, in nats, the model in evaluation mode meanwhile."""
    import torch

    sums = [0.0, 0.0]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for number, batch in enumerate(batches):
            # Every rank goes through every batch where layers are spread over the ranks, and counts its own.
            logits, labels = predict(model, batch, dtype)
            if number % ranks.size == ranks.rank:
                sums[0] += float(language_loss(logits, labels))
                sums[1] += int((batch.labels != IGNORED).sum())
    model.train(was_training)
    loss, targets = ranks.total(sums)
    return loss / targets
