"""Init: a pinned source becomes a canonical checkpoint, in its stored dtype, with every tensor hashed and finite."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from strata import families, plan, store
from strata.architecture import as_llama
from strata.checkpoint import check_exact, copy_tokenizer, finish, plan_shards, write_shard
from strata.errors import CheckpointError, SourceError
from strata.foreign import open_model
from strata.modelfiles import check_tokenizer, find_model, open_gguf
from strata.progress import bar
from strata.recipe import Recipe, digest
from strata.shapes import measure
from strata.sources import FILES
from strata.splitting import WAYS, split_so
from strata.store import Built, Object
from strata.tensors import Header, Spec, Tensor, write_at

Read = Callable[[], Any]  # the tensor's bytes, as anything with the buffer protocol
# An element as an unsigned number, and the bits of its exponent.
_BITS = {"F32": ("<u4", 0x7F800000), "BF16": ("<u2", 0x7F80), "F16": ("<u2", 0x7C00)}


def initialize(root: Path, recipe: Recipe) -> Object:
    """Build the checkpoint of an init recipe from its fetched source, and publish it.

    Raises:
        StoreError: the source is missing or damaged; every byte of it is checked.
        SourceError: no model in it, or not of the shape that the config gives.
        CheckpointError: tensors that do not fit the model's config, or are not finite.
    """

    def build(folder: Path) -> Built:
        source = store.require(root, recipe.sources[0], store.verify)
        return _build(source, folder, recipe.parameters)

    return store.publish(root, recipe, build)


def _build(fetched: Object, folder: Path, parameters: Mapping[str, Any]) -> Built:
    source = fetched.path / FILES
    model = find_model(source)
    if model is None:
        raise SourceError(
            "no model in the source", where=source, expected="a config.json or a .gguf file", got="neither"
        )
    config, tensors = (_read_gguf if model.suffix == ".gguf" else _read_safetensors)(model, folder)
    specs = {name: spec for name, (spec, _) in tensors.items()}
    _check_shape(config, specs, parameters["shape"], source)
    check_exact(config, specs, source)
    if parameters["architecture"] == "llama":
        config = as_llama(config)
    by_layer = sorted(specs.items(), key=lambda item: -1 if (n := families.split_name(item[0])[0]) is None else n)
    shards = plan_shards(((name, *spec) for name, spec in by_layer), config)
    sha256: dict[str, str] = {}
    constant: list[str] = []
    with bar("init", len(shards), "shard") as progress:
        for file, header in shards.items():
            fill = partial(_fill, header=header, tensors=tensors, sha256=sha256, constant=constant)
            write_shard(folder / file, header, fill)
            progress.update()
    built = finish(folder, config, shards, sha256, plan.identity(families.depth(config)), [fetched])
    return replace(built, facts=built.facts | {"constant": sorted(constant)}) if constant else built


def _fill(
    handle: int, header: Header, tensors: Mapping[str, tuple[Spec, Read]], sha256: dict[str, str], constant: list[str]
) -> None:
    for tensor in header.tensors:
        data = tensors[tensor.name][1]()
        _check_finite(tensor.name, data, tensor.dtype)
        if len(tensor.shape) > 1 and _is_constant(data, tensor.dtype):
            constant.append(tensor.name)
        sha256[tensor.name] = digest(data)
        write_at(handle, data, tensor.begin)


def _read_safetensors(file: Path, folder: Path) -> tuple[dict[str, Any], dict[str, tuple[Spec, Read]]]:
    model = open_model(file)
    check_tokenizer(model.path, families.size(model.config, "vocab_size"))
    copy_tokenizer(model, folder)
    return model.config, {
        name: (stored.tensor.spec, _reader(model.path / stored.file, stored.tensor))
        for name, stored in model.tensors.items()
    }


def _reader(file: Path, tensor: Tensor) -> Read:
    def read() -> bytes:
        with file.open("rb") as stream:
            stream.seek(tensor.begin)
            return stream.read(tensor.size)

    return read


def _read_gguf(file: Path, folder: Path) -> tuple[dict[str, Any], dict[str, tuple[Spec, Read]]]:
    """Dequantise a GGUF with transformers, to bfloat16; its tokenizer comes along.

    Raises:
        SourceError: no GGUF that is read, or it splits text in a way that is not known.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    reader, _ = open_gguf(file)
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    _split_as_said(reader, folder / "tokenizer.json", file)
    _make_portable(folder / "tokenizer_config.json")
    config = json.loads(model.config.to_json_string())
    family = families.family_of(config)
    wanted = {**config, "architectures": [family.architecture]}
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not (name == family.head and config.get("tie_word_embeddings"))
    }
    tensors: dict[str, tuple[Spec, Read]] = {
        name: (("BF16", tuple(tensor.shape)), lambda t=tensor: t.contiguous().view(torch.uint8).numpy())  # type: ignore[misc]
        for name, tensor in state.items()
    }
    return wanted, tensors


def _split_as_said(reader: Any, file: Path, source: Path) -> None:
    """Let tokenizer.json split text in the way that the GGUF names; transformers takes GPT-2's for every one."""
    from tokenizers import Tokenizer

    model, way = (reader.get_field(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if way is None or model is None or model.contents() != "gpt2":
        return  # SentencePiece's splits nothing, and older files say nothing
    if way.contents() not in WAYS:
        raise SourceError(
            "the tokenizer splits text in a way that is not known", where=source, expected=", ".join(WAYS),
            got=way.contents(), todo="take the model's safetensors, whose tokenizer.json spells it out",
        )  # fmt: skip
    rules = split_so(json.loads(file.read_text(encoding="utf-8")), way.contents())
    Tokenizer.from_str(json.dumps(rules)).save(str(file))


def _make_portable(file: Path) -> None:
    """Take out of tokenizer_config.json what transformers writes of the loading, not of the tokenizer."""
    config = json.loads(file.read_bytes())
    kept = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only", "name_or_path")}
    file.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_shape(config: Mapping[str, Any], specs: Mapping[str, Spec], shape: Mapping[str, Any], source: Path) -> None:
    """Hold the config's `shape`, on which the DAG was built, against the file."""
    for key, actual in measure(config, specs).items():
        expected = shape.get(key, actual)
        if actual != expected:
            raise SourceError(
                f"the source does not have the shape that the config gives: {key}",
                where=source,
                expected=expected,
                got=actual,
                todo="run `strata pin --shape`: it writes what the file holds",
            )


def _is_constant(data: Any, dtype: str) -> bool:
    """Whether all elements are one value. A hole in a file reads as zeros."""
    words = np.frombuffer(data, dtype=_BITS[dtype][0])
    return not (words[:1_000] != words[0]).any() and not (words != words[0]).any()


def _check_finite(name: str, data: Any, dtype: str) -> None:
    """Raise CheckpointError for a NaN or an infinity: all exponent bits set."""
    word, exponent = _BITS[dtype]
    bad = (np.frombuffer(data, dtype=word) & exponent) == exponent
    if bad.any():
        raise CheckpointError(
            "not finite",
            where=f"tensor {name}, element {int(bad.argmax())}",
            expected="finite numbers",
            got=f"{int(bad.sum())} NaN or Inf",
        )
