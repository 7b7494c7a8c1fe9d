"""A checkpoint as a model in memory, held against its manifest: what every forward pass starts with. Needs torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from strata.checkpoint import CONFIG
from strata.errors import EvaluationError
from strata.store import Object


def go_offline() -> None:
    """Let no library ask the hub for anything: all that a job reads lies in the store. Before they are imported."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        os.environ.setdefault(name, "1")


def check_length(checkpoint: Object, tokens: int, setting: str) -> None:
    """Raise EvaluationError when sequences of `tokens`, as `setting` asks for, are beyond a checkpoint's positions."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    longest = config.max_position_embeddings  # whatever its family calls that
    if tokens > longest:
        raise EvaluationError(
            f"{setting} is beyond the model's positions", where=checkpoint.path, expected=f"{longest} or less",
            got=tokens, todo=f"lower {setting}",
        )  # fmt: skip


def ends_of(checkpoint: Object) -> set[int]:
    """The tokens at which transformers' generation stops for this checkpoint, besides its tokenizer's."""
    ends: set[int] = set()
    for name in (CONFIG, "generation_config.json"):
        if (checkpoint.path / name).is_file():
            stops = json.loads((checkpoint.path / name).read_bytes()).get("eos_token_id")
            ends |= set(stops if isinstance(stops, list) else [stops]) - {None}
    return ends


def load_model(checkpoint: Object, dtype: str, device: str) -> Any:
    """A verified checkpoint as transformers' causal model, ready for forward passes.

    Raises:
        EvaluationError: no such device, or the loaded model is not the checkpoint.
    """
    go_offline()
    import torch
    from transformers import AutoModelForCausalLM

    check_device(device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, dtype=getattr(torch, dtype), use_safetensors=True, local_files_only=True,
        trust_remote_code=False,
    )  # fmt: skip
    check_loaded(checkpoint, model)
    return model.to(device).eval()


def empty_model(checkpoint: Object, dtype: str) -> Any:
    """A checkpoint's model without its weights, on torch's meta device. Raises EvaluationError as `load_model`."""
    go_offline()
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.use_deterministic_algorithms(True, warn_only=True)
    config = AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), trust_remote_code=False)
    check_loaded(checkpoint, model)
    return model.eval()


def lower_frozen(layers: Iterable[Any]) -> None:
    """Put the frozen matrices of linear maps back into bfloat16, as they are stored: autocast would do so each time."""
    from torch import bfloat16
    from torch.nn import Linear

    for layer in layers:
        for module in layer.modules():
            for parameter in module.parameters(recurse=False) if isinstance(module, Linear) else ():
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(bfloat16)


def check_device(device: str) -> None:
    """Raise EvaluationError when there is no GPU and one was asked for."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise EvaluationError(
            "no GPU here", where="here", expected="a CUDA device", got=f"torch {torch.__version__} sees none",
            todo="run on a machine with a GPU and torch for it, or set `device: cpu`",
        )  # fmt: skip


def check_loaded(checkpoint: Object, model: Any) -> None:
    """Hold a loaded model against its checkpoint. Raises EvaluationError when depth or size differ.

    transformers runs as many layers as config.json says and draws missing weights at random, without an error.
    """
    facts, loaded = checkpoint.facts, (len(decoder_layers(model)), model.num_parameters())
    if loaded != (facts["layers"], facts["parameters"]):
        raise EvaluationError(
            "the loaded model is not the checkpoint",
            where=checkpoint.path,
            expected=f"{facts['layers']} layers, {facts['parameters']:,} parameters",
            got=f"{loaded[0]} layers, {loaded[1]:,} parameters",
        )


def decoder_layers(model: Any) -> Any:
    """The layers of a causal model, from first to last."""
    return getattr(model.base_model, layers_name(model))


def layers_name(model: Any) -> str:
    """What they are called in the model: `h` is GPT-2's name for them."""
    return "layers" if hasattr(model.base_model, "layers") else "h"
