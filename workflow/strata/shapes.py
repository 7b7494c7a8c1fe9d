"""The shape of a model, read from headers: what `strata pin` writes and init checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata import families
from strata.checkpoint import DTYPES, Spec
from strata.errors import SourceError
from strata.modelfiles import find_model, open_gguf, read_config, weight_files
from strata.tensors import BITS, read_header


def measure(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The shape of the model with this config and these tensors, as the config file has it."""
    dtypes = sorted({dtype for dtype, _ in specs.values()})
    return {
        "family": config.get("model_type"),
        "layers": config.get("num_hidden_layers"),
        "parameters": sum(math.prod(shape) for _, shape in specs.values()),
        "bytes": sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in specs.values()),
        "dtype": DTYPES.get(dtypes[0], dtypes[0]) if len(dtypes) == 1 else "mixed",
    }


def shape_of(folder: Path) -> dict[str, Any] | None:
    """The shape of the model in a folder, or None when there is no model. No weight is read.

    Raises:
        SourceError: several models, or one that Strata cannot use.
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
    config = read_config(file)
    headers = [read_header(shard) for shard in weight_files(file.parent)]
    specs = {tensor.name: (tensor.dtype, tensor.shape) for header in headers for tensor in header.tensors}
    if config.get("tie_word_embeddings"):
        specs.pop(families.HEAD, None)
    return measure(config, specs)


def _of_gguf(file: Path) -> dict[str, Any]:
    """As init will store it: every weight in bfloat16."""
    reader, family = open_gguf(file)
    layers = reader.get_field(f"{family}.block_count")
    specs: dict[str, Spec] = {tensor.name: ("BF16", tuple(int(n) for n in tensor.shape)) for tensor in reader.tensors}
    return measure({"model_type": family, "num_hidden_layers": int(layers.contents()) if layers else None}, specs)
