"""Engine: log-likelihoods of requests, a context read once for all its continuations.

What it computes is what a plain forward pass of every request alone does, up to rounding. Logits, most of the work of
a small model, are computed only where they are scored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from strata.score.tree import Batch, Ints

SCORED = 4096  # logits of a batch: 0.8 GB for a vocabulary of 50,000 in float32
_ROWS = 512  # of logits that are normalised at once


class Answer(NamedTuple):
    """The log-likelihood of a continuation, and whether it is what the model would have said itself."""

    loglikelihood: float
    greedy: bool


def can_share(config: Any, longest: int) -> bool:
    """Whether a model of this config may read rows with branches: it must not look back by a window of its own."""
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return all(window is None or longest <= window for window in windows)


def answer(model: Any, batches: Sequence[Batch], done: int = 0) -> Iterator[dict[int, Answer]]:
    """The answers of each batch by the requests' numbers, of those after the first `done`."""
    import torch

    prefix: Ints | None = None
    cache: Any = None
    for batch in batches[done:]:
        with torch.inference_mode():
            if len(batch.prefix) and batch.prefix is not prefix:  # the batches of a task share one
                prefix, cache = batch.prefix, _read(model, batch.prefix)
            yield _answer(model, batch, cache if len(batch.prefix) else None)


def _read(model: Any, prefix: Ints) -> list[tuple[Any, Any]]:
    """Keys and values of a prefix in every layer, (1, H, P, d) each."""
    import torch
    from transformers import DynamicCache

    ids = torch.from_numpy(prefix)[None].to(model.device)
    cache = DynamicCache()
    with _only(model, ([0], [0])):  # no logits are wanted
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def _answer(model: Any, batch: Batch, cache: list[tuple[Any, Any]] | None) -> dict[int, Answer]:
    import torch
    from transformers import DynamicCache

    tokens, positions, branches = batch.arrays()
    inputs: dict[str, Any] = {"input_ids": torch.from_numpy(tokens), "use_cache": cache is not None}
    if not batch.is_causal:
        inputs |= {
            "position_ids": torch.from_numpy(positions),
            "attention_mask": _added(batch.mask(branches), model.dtype),
        }
    inputs = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in inputs.items()}
    if cache is not None:
        rows = len(batch.rows)
        inputs["past_key_values"] = DynamicCache(
            [(k.expand(rows, -1, -1, -1), v.expand(rows, -1, -1, -1)) for k, v in cache]
        )
    answers = [(row, *answer) for row, part in enumerate(batch.rows) for answer in part.answers]
    places = [(row, place) for row, _, found, _ in answers for place in found.tolist()]
    with _only(model, tuple(zip(*places, strict=True))):
        logits_NV = model(**inputs).logits[0]
    targets_N = torch.cat([torch.from_numpy(targets) for _, _, _, targets in answers]).to(model.device)
    logps_N, greedy_N = _logps(logits_NV, targets_N)
    sizes = [len(targets) for _, _, _, targets in answers]
    return {
        number: Answer(float(logps.double().sum()), bool(greedy.all()))
        for (_, number, _, _), logps, greedy in zip(answers, logps_N.split(sizes), greedy_N.split(sizes), strict=True)
    }


def _added(mask: Any, dtype: Any) -> Any:
    """A mask as what is added to attention scores, which every attention understands; some add a bool as 0 or 1."""
    import torch

    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~torch.from_numpy(mask), torch.finfo(dtype).min)


def _logps(logits_NV: Any, targets_N: Any) -> tuple[Any, Any]:
    """Log-probabilities of the targets in float32, and whether each is the likeliest token."""
    import torch

    logps, greedy = [], []
    for logits, targets in zip(logits_NV.split(_ROWS), targets_N.split(_ROWS), strict=True):
        logps.append(logits.log_softmax(-1, dtype=torch.float32).gather(1, targets[:, None])[:, 0])
        greedy.append(logits.argmax(-1) == targets)
    return torch.cat(logps).cpu(), torch.cat(greedy).cpu()


@contextmanager
def _only(model: Any, places: Any) -> Iterator[None]:
    """Let the head see the states of these (rows, positions) alone, as one row (1, N, d). Whatever a family does to its
    logits afterwards it does to each."""
    rows, columns = (list(part) for part in places)

    def select(head: Any, states: tuple[Any, ...]) -> tuple[Any, ...]:
        return (states[0][rows, columns][None], *states[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
