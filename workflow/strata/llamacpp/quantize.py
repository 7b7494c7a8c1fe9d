"""Quantize: a GGUF file made smaller by llama.cpp, which decides what each tensor of it becomes."""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from pathlib import Path

from strata import store
from strata.errors import CheckpointError, StoreError
from strata.llamacpp.convert import FILE, drop_stale, open_tokenizer
from strata.llamacpp.library import check_tokens, require
from strata.recipe import Recipe
from strata.store import Built, Object

FILE_TYPES = {
    "q8_0": "Q8_0", "q6_k": "Q6_K", "q5_k_m": "Q5_K_M", "q4_k_m": "Q4_K_M", "q3_k_m": "Q3_K_M", "q2_k": "Q2_K",
}  # fmt: skip


def quantize(root: Path, recipe: Recipe) -> Object:
    """Make a GGUF file of another type from the one in float16, and publish it.

    Raises:
        StoreError: the file or its checkpoint is missing or damaged, or the file is of other weights.
        UsageError: llama.cpp is not installed.
        CheckpointError: llama.cpp cannot make it, or splits a text otherwise than the checkpoint's tokenizer.
    """

    def build(folder: Path) -> Built:
        require()
        checkpoint = store.require(root, recipe.parents[0])
        source = store.require(root, recipe.sources[0], store.verify)
        check_source(source, checkpoint)
        kind = recipe.parameters["type"]
        _run(source.path / FILE, folder / FILE, kind)
        check_tokens(folder / FILE, open_tokenizer(checkpoint), checkpoint.path)
        facts = {key: source.facts[key] for key in ("checkpoint", "checkpoint_digest", "layers", "tensors")}
        return Built(facts=facts | {"type": kind, "types": _types(folder / FILE)})

    drop_stale(root, recipe)
    return store.publish(root, recipe, build)


def check_source(gguf: Object, checkpoint: Object) -> None:
    """Raise StoreError for a GGUF file of other weights than the checkpoint has: a trained one may be built anew."""
    if gguf.facts["checkpoint_digest"] != checkpoint.digest:
        raise StoreError(
            "the GGUF file was made of other weights than the checkpoint has now", where=gguf.path,
            expected=f"content digest {checkpoint.digest}", got=gguf.facts["checkpoint_digest"],
            todo="run snakemake with `--forcerun gguf quantize`: they are made anew",
        )  # fmt: skip


def _run(source: Path, target: Path, kind: str) -> None:
    library = require()
    options = library.llama_model_quantize_default_params()
    options.ftype = getattr(library, f"LLAMA_FTYPE_MOSTLY_{FILE_TYPES[kind]}")
    options.nthread = len(os.sched_getaffinity(0))
    code = library.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(options))
    if code:
        raise CheckpointError(
            "llama.cpp cannot make this file", where=source, expected=f"a file of type {kind}", got=f"its code {code}",
            todo="take another type in `gguf`; its message is in the job's log",
        )  # fmt: skip


def _types(file: Path) -> dict[str, int]:
    """How many tensors are of which type: rows that are no multiple of 256 long do not fit every one."""
    from gguf import GGUFReader

    return dict(sorted(Counter(tensor.tensor_type.name for tensor in GGUFReader(file).tensors).items()))
