"""The shape of a model, read from headers: what `strata pin` writes and init checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata import families
from strata.checkpoint import DTYPES
from strata.errors import SourceError
from strata.foreign import open_model
from strata.modelfiles import find_model, open_gguf
from strata.tensors import BITS, Spec


def measure(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The shape of the model with this config and these tensors, as the config file has it."""
    outside = [shape for name, (_, shape) in specs.items() if families.split_name(name)[0] is None]
    vocabulary, hidden = specs[families.family_of(config).embed[0]][1]
    return {
        "family": config["model_type"],
        "layers": families.depth(config),
        **_sizes(specs),
        "vocabulary": vocabulary,
        "hidden": hidden,
        "outside": sum(map(math.prod, outside)),
    }


def _sizes(specs: Mapping[str, Spec]) -> dict[str, Any]:
    dtypes = sorted({dtype for dtype, _ in specs.values()})
    return {
        "parameters": sum(math.prod(shape) for _, shape in specs.values()),
        "bytes": sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in specs.values()),
        "dtype": DTYPES.get(dtypes[0], dtypes[0]) if len(dtypes) == 1 else "mixed",
    }


def shape_of(folder: Path) -> dict[str, Any] | None:
    """The shape of the model in a folder, or None when there is no model.

    Raises:
        SourceError: several models, or one that Strata cannot use.
        CheckpointError: not exactly the tensors that its config asks for.
    """
    model = find_model(folder)
    if model is None:
        return None
    shape = _of_gguf(model) if model.suffix == ".gguf" else _of_safetensors(model)
    for key, known in (("family", families.CLASSES), ("dtype", DTYPES.values())):
        if shape[key] not in known:
            raise SourceError(f"unknown {key} of a model", where=model, expected=", ".join(known), got=shape[key])
    return shape


def _of_safetensors(file: Path) -> dict[str, Any]:
    model = open_model(file)
    return measure(model.config, {name: stored.tensor.spec for name, stored in model.tensors.items()})


def _of_gguf(file: Path) -> dict[str, Any]:
    """As init will store it: every weight in bfloat16."""
    reader, family = open_gguf(file)
    layers = reader.get_field(f"{family}.block_count")
    specs: dict[str, Spec] = {tensor.name: ("BF16", tuple(int(n) for n in tensor.shape)) for tensor in reader.tensors}
    hidden, vocabulary = specs["token_embd.weight"][1]  # gguf counts dimensions from the innermost
    outside = sum(math.prod(shape) for name, (_, shape) in specs.items() if not name.startswith("blk."))
    return {
        "family": family,
        "layers": int(layers.contents()) if layers else None,
        **_sizes(specs),
        "vocabulary": vocabulary,
        "hidden": hidden,
        "outside": outside,
    }
