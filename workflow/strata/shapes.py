"""The shape of a model, read from headers: what `strata pin` writes and init checks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata import families
from strata.checkpoint import DTYPES, Spec
from strata.errors import SourceError
from strata.tensors import BITS, read_header


def measure(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The shape of the model with this config and these tensors, as the config file has it."""
    dtypes = sorted({dtype for dtype, _ in specs.values()})
    parameters = sum(math.prod(shape) for _, shape in specs.values())
    size = sum(math.prod(shape) * BITS[dtype] // 8 for dtype, shape in specs.values())
    return {
        "family": config.get("model_type"),
        "layers": config.get("num_hidden_layers"),
        "parameters": parameters,
        "bytes": size,
        "dtype": DTYPES.get(dtypes[0], dtypes[0]) if len(dtypes) == 1 else "mixed",
    }


def shape_of(folder: Path) -> dict[str, Any] | None:
    """The shape of the model in a folder, or None when there is no model. No weight is read.

    Raises:
        SourceError: the model is of a family that Strata does not know.
    """
    gguf, configs = sorted(folder.rglob("*.gguf")), sorted(folder.rglob("config.json"))
    if not gguf and not configs:
        return None
    shape = _of_gguf(gguf[0]) if gguf else _of_safetensors(configs[0])
    if shape["family"] not in families.CLASSES:
        raise SourceError(
            "unknown model family",
            where=gguf[0] if gguf else configs[0],
            expected=", ".join(families.CLASSES),
            got=shape["family"],
        )
    return shape


def _of_safetensors(file: Path) -> dict[str, Any]:
    config = json.loads(file.read_bytes())
    specs = {
        t.name: (t.dtype, t.shape)
        for shard in sorted(file.parent.glob("*.safetensors"))
        for t in read_header(shard).tensors
    }
    if config.get("tie_word_embeddings"):
        specs.pop(families.HEAD, None)
    return measure(config, specs)


def _of_gguf(file: Path) -> dict[str, Any]:
    """As init will store it: every weight in bfloat16. `rope_freqs` are constants, not weights."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    field = reader.get_field("general.architecture")
    family = field.contents() if field else None
    layers = reader.get_field(f"{family}.block_count")
    specs: dict[str, Spec] = {
        tensor.name: ("BF16", tuple(int(n) for n in tensor.shape))
        for tensor in reader.tensors
        if "rope_freqs" not in tensor.name
    }
    return measure({"model_type": family, "num_hidden_layers": int(layers.contents()) if layers else None}, specs)
