"""Stack: the layers of one model in memory, called in any order. Needs torch.

The model itself shows how: one forward pass, in which only the first layer computes, tells what each layer is called
with (masks, rotary angles, windows), which is what the same layer is called with in a re-stacked checkpoint, wherever
it stands there. So no family needs code here. The end of the model, from its final norm on, is run by its own code too,
on states put in its way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from strata import families
from strata.loading import decoder_layers, layers_name

ROWS = 2048  # of logits at a time: 0.4 GB for a vocabulary of 50,000


@dataclass(frozen=True)
class Batch:
    """Documents as rows of one length, filled up at their ends, which no earlier token sees.

    ids_BT: tokens; lengths_B: how many of each row are the document's
    """

    ids_BT: Any
    lengths_B: Any


@dataclass(frozen=True)
class Stack:
    """A model that was read on one batch.

    start: the state before the first layer, (B, T, D)
    layer: (n, state) -> the state behind layer n of the base
    nats: state behind the last layer -> each document's loss, the sum over its tokens but the first, float64 (B,)
    """

    start: Any
    layer: Callable[[int, Any], Any]
    nats: Callable[[Any], Any]


@contextmanager
def stack(model: Any, batch: Batch, look: Callable[[int, Any], None] | None = None) -> Iterator[Stack]:
    """Read a model on a batch. Meanwhile it has no layers, and cannot be used otherwise.

    Args:
        look: shown every state of the base, numbered by the layer that it enters; the last comes out of the last layer.
    """
    import torch

    layers = list(decoder_layers(model))
    with torch.inference_mode():
        calls, start = _calls(model, layers, batch, look)

        def layer(number: int, state: Any) -> Any:
            arguments, options = calls[number]
            output = layers[number](state, *arguments, **options)
            return output[0] if isinstance(output, tuple) else output

        with _without_layers(model):
            yield Stack(start, layer, lambda state: _nats(model, batch, state))


def _calls(
    model: Any, layers: list[Any], batch: Batch, look: Callable[[int, Any], None] | None
) -> tuple[list[Any], Any]:
    """What each layer is called with besides the state, and the state before the first.

    Where nobody looks at the states, all layers but the first hand on what they get: it takes no time then.
    """
    calls: list[Any] = []
    first: list[Any] = []

    def note(number: int) -> Any:
        def hook(module: Any, inputs: Any, options: Any, output: Any) -> None:
            others = {key: value for key, value in options.items() if key != "hidden_states"}
            calls.append((inputs[1:], others))
            state = inputs[0] if inputs else options["hidden_states"]
            if not number:
                first.append(state)
                for other in () if look else layers[1:]:
                    other.forward = _handing_on(output)
            if look is not None:
                look(number, state)
                if number == len(layers) - 1:
                    look(number + 1, output[0] if isinstance(output, tuple) else output)

        return hook

    hooks = [module.register_forward_hook(note(number), with_kwargs=True) for number, module in enumerate(layers)]
    try:
        model.base_model(batch.ids_BT, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
        for module in layers:
            module.__dict__.pop("forward", None)
    return calls, first[0]


def _handing_on(output: Any) -> Callable[..., Any]:
    """A layer's forward pass that computes nothing, with results in the form of `output`."""

    def forward(*inputs: Any, **options: Any) -> Any:
        state = inputs[0] if inputs else options["hidden_states"]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    return forward


@contextmanager
def _without_layers(model: Any) -> Iterator[None]:
    from torch.nn import ModuleList

    name, layers = layers_name(model), decoder_layers(model)
    setattr(model.base_model, name, ModuleList())
    try:
        yield
    finally:
        setattr(model.base_model, name, layers)


def _nats(model: Any, batch: Batch, state: Any) -> Any:
    """-log p of each document's tokens but the first, summed in float64, (B,)."""
    import torch

    ids, lengths = batch.ids_BT, batch.lengths_B
    learnt = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]  # (B, T - 1)
    rows_ND, targets_N = state[:, :-1][learnt], ids[:, 1:][learnt]
    losses = [
        torch.nn.functional.cross_entropy(_logits(model, rows), targets, reduction="none")
        for rows, targets in zip(rows_ND.split(ROWS), targets_N.split(ROWS), strict=True)
    ]
    documents_N = learnt.nonzero()[:, 0]
    total = torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
    return total.index_add_(0, documents_N, torch.cat(losses).double()).cpu()


def _logits(model: Any, rows_ND: Any) -> Any:
    """What the model makes of these states from its final norm on, float32 (N, V)."""
    import torch

    family = families.family_of(model.config.to_dict())
    norm = model.get_submodule(family.norm[0].rpartition(".")[0])

    def put(module: Any, inputs: Any, output: Any) -> Any:
        output.last_hidden_state = norm(rows_ND[None])
        return output

    hook = model.base_model.register_forward_hook(put)
    try:
        ids = torch.zeros((1, 1), dtype=torch.long, device=rows_ND.device)
        return model(input_ids=ids, use_cache=False).logits[0].float()
    finally:
        hook.remove()
