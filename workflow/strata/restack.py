"""Restack: write the tensors of a layer plan, from the files of its parents. No torch, no numpy unless it averages.

Everything is checked against headers and configs before the first byte is written. A copied tensor is a byte range: its
shard is linked where a parent has the same file, else the range is copied, sharing blocks where the file system can.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from strata import families
from strata.checkpoint import DTYPES, Checkpoint, Spec, Stored, by_layer, check_exact, plan_shards, write_shard
from strata.errors import CheckpointError
from strata.foreign import understood_config
from strata.plan import Layer, Plan
from strata.progress import bar
from strata.relayer import LISTS, relayered
from strata.tensors import Header, Tensor, copy_range

_CHUNK = 1 << 22  # bytes written at a time
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# What parents may differ in: how a model is told apart, trained and decoded, not what its layers compute.
_FREE = {
    "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range", "model_type",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "max_position_embeddings",
    "attention_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop", "max_window_layers", "id2label", "label2id",
    "pretraining_tp", "num_experts", "output_router_logits", "router_aux_loss_coef", "task_specific_params",
    "tie_word_embeddings",
}  # fmt: skip


class Part(NamedTuple):
    """What one output tensor is made of: a transform of tensors (parent, stored); `fill` writes weights[0]."""

    transform: str  # copy, fill, linear, slerp
    sources: tuple[tuple[Checkpoint, Stored], ...]
    weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Draft:
    """A checkpoint that can be written: its config, its files, and what each tensor is made of."""

    config: dict[str, Any]
    shards: dict[str, Header]
    parts: dict[str, Part]


def draft(plan: Plan, parents: Sequence[Checkpoint], dtype: str | None = None) -> Draft:
    """What `plan` makes of these parents, in their stored dtype or in `dtype`. Nothing is written.

    Raises:
        CheckpointError: the parents are of several families, configs, vocabularies or shapes, or of several dtypes
            while no `dtype` is given; or a layer's tensors are not those that its family asks for.
    """
    lender = plan.embed_from.sources[0][0]
    _check_alike(parents, lender)
    places = [(parent + 1, layer) for parent, layer in (layer.sources[0] for layer in plan.layers)]
    config = relayered([parents[lender].config, *(parent.config for parent in parents)], places)
    parts = dict(_parts(plan, parents))
    code = next((code for code, name in DTYPES.items() if name == dtype), None)
    specs: dict[str, Spec] = {}
    for name, part in parts.items():
        tensor = part.sources[0][1].tensor
        specs[name] = (code or tensor.dtype, tensor.shape)
        if part.transform == "copy" and code not in (None, tensor.dtype):
            parts[name] = part._replace(transform="linear")
    _check_dtypes(specs)
    check_exact(config, specs, parents[lender].path)
    return Draft(config, plan_shards(specs, config), parts)


def write(folder: Path, made: Draft, label: str, stored: bool = True) -> tuple[dict[str, str], float]:
    """Write the files of a draft. Returns each tensor's sha256, and the largest relative error of a change of dtype.

    Args:
        stored: the parents are objects of the store, which never change: link to their files, and find the sha256 of
            what is not copied. Otherwise nothing is linked, and each sha256 is "".

    Raises:
        CheckpointError: a sum that is not finite in the output's dtype.
    """
    sha256 = {name: part.sources[0][1].sha256 for name, part in made.parts.items() if part.transform == "copy"}
    rounding = 0.0
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        jobs = [pool.submit(_write, folder / file, header, made.parts, stored) for file, header in made.shards.items()]
        with bar(label, len(jobs), "shard") as progress:
            for job in jobs:
                found, error = job.result()
                sha256.update(found)
                rounding = max(rounding, error)
                progress.update()
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the rest would only fill the disk
    return sha256, rounding


def _parts(plan: Plan, parents: Sequence[Checkpoint]) -> Iterator[tuple[str, Part]]:
    """Every output tensor, with what it is made of."""
    family, inner = families.family_of(parents[0].config), [by_layer(parent) for parent in parents]
    for number, layer in enumerate(plan.layers):
        (parent, source), lenders = layer.sources[0], [parents[parent] for parent, _ in layer.sources]
        for suffix in inner[parent][source]:
            name = families.layer_name(family, number, suffix)
            stored = [inner[parent][source].get(suffix) for parent, source in layer.sources]
            value = families.silenced(lenders[0].config, source, suffix) if layer.transform == "zero" else None
            yield name, _part(name, layer, lenders, stored, value)
    for kind, layer in plan.outside.items():
        lenders = [parents[parent] for parent, _ in layer.sources]
        for name in (name for name in lenders[0].tensors if families.part_of(family, name) == kind):
            yield name, _part(name, layer, lenders, [parent.tensors.get(name) for parent in lenders], None)


def _part(
    name: str, layer: Layer, lenders: Sequence[Checkpoint], sources: Sequence[Stored | None], value: float | None
) -> Part:
    found = tuple((lender, stored) for lender, stored in zip(lenders, sources, strict=True) if stored)
    shapes = {stored.tensor.shape for _, stored in found}
    if len(found) != len(sources) or len(shapes) != 1:
        raise CheckpointError(
            "the sources of a tensor differ in shape, or one lacks it",
            where=name,
            expected="one shape",
            got=", ".join(str(stored.tensor.shape) if stored else "nothing" for stored in sources),
        )
    if value is not None:
        return Part("fill", found, (value,))
    return Part("copy", found) if layer.transform == "zero" else Part(layer.transform, found, layer.weights_of(name))


def _check_alike(parents: Sequence[Checkpoint], lender: int) -> None:
    """Raise CheckpointError for parents whose layers would not compute in each other's place."""
    base = parents[lender].config
    family = families.family_of(base)
    free = _FREE | {family.depth, *family.per_layer, *family.stale, *LISTS, "mlp_only_layers", "decoder_sparse_step"}
    for parent in parents:
        config = parent.config
        differ = [k for k in sorted(base.keys() | config.keys()) if k not in free and base.get(k) != config.get(k)]
        if config.get("model_type") != base.get("model_type"):
            differ = ["model_type"]
        elif differ:  # perhaps only in what one says and the other leaves to a default
            ours, theirs = understood_config(parents[lender].path), understood_config(parent.path)
            differ = [key for key in differ if ours.get(key) != theirs.get(key)]
        if families.tied(config) != families.tied(base):
            differ.append("tie_word_embeddings")
        if differ:
            raise CheckpointError(
                "the parents' models do not fit together",
                where=f"{parent.path}, config.json",
                expected=", ".join(f"{key} {base.get(key)}" for key in differ[:5]) + f" as in {parents[lender].path}",
                got=", ".join(f"{key} {config.get(key)}" for key in differ[:5]),
            )


def _check_dtypes(specs: Mapping[str, Spec]) -> None:
    by_dtype = {dtype: name for name, (dtype, _) in specs.items()}
    if len(by_dtype) > 1:
        raise CheckpointError(
            "the tensors have several dtypes",
            expected="one",
            got=", ".join(f"{dtype} ({name})" for dtype, name in sorted(by_dtype.items())),
            todo="say which the result shall have: `dtype: bfloat16`",
        )


def _write(file: Path, header: Header, parts: Mapping[str, Part], stored: bool) -> tuple[dict[str, str], float]:
    if stored and _link(file, header, parts):
        return {}, 0.0
    sha256: dict[str, str] = {}
    errors = [0.0]
    write_shard(file, header, partial(_fill, header=header, parts=parts, hashing=stored, sha256=sha256, errors=errors))
    return sha256, max(errors)


def _link(file: Path, header: Header, parts: Mapping[str, Part]) -> bool:
    """Hard-link a parent's file that has the same bytes. False where there is none, or no link can be made."""
    parent, stored = parts[header.tensors[0].name].sources[0]
    same = parent.headers[stored.file].raw == header.raw and all(
        part.transform == "copy" and part.sources[0][0] is parent and part.sources[0][1].tensor == tensor
        and part.sources[0][1].file == stored.file
        for tensor, part in ((tensor, parts[tensor.name]) for tensor in header.tensors)
    )  # fmt: skip
    if not same:
        return False
    try:
        os.link(parent.path / stored.file, file)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False  # another file system, or one without links: a copy is as right
    return True


def _fill(
    handle: int, header: Header, parts: Mapping[str, Part], hashing: bool, sha256: dict[str, str], errors: list[float]
) -> None:
    """Write the data of one shard: copied ranges first, then what is made."""
    for file, begin, end, offset in _ranges(header, parts):
        with file.open("rb") as stream:
            copy_range(stream.fileno(), begin, end, handle, offset)
    for tensor in header.tensors:
        part = parts[tensor.name]
        if part.transform == "copy":
            continue
        hasher = hashlib.sha256()
        offset = tensor.begin
        for chunk in _constant(part, tensor) if part.transform == "fill" else _computed(part, tensor, errors):
            if hashing:
                hasher.update(chunk)
            view = memoryview(chunk)
            while view:
                written = os.pwrite(handle, view, offset)
                view, offset = view[written:], offset + written
        sha256[tensor.name] = hasher.hexdigest() if hashing else ""


def _ranges(header: Header, parts: Mapping[str, Part]) -> list[tuple[Path, int, int, int]]:
    """(file, begin, end, offset in the new file) of the copies, neighbours in one."""
    ranges: list[tuple[Path, int, int, int]] = []
    for tensor in header.tensors:
        part = parts[tensor.name]
        if part.transform != "copy":
            continue
        parent, stored = part.sources[0]
        file, source = parent.path / stored.file, stored.tensor
        if ranges:
            last, begin, end, offset = ranges[-1]
            if last == file and end == source.begin and offset + end - begin == tensor.begin:
                ranges[-1] = (file, begin, source.end, offset)
                continue
        ranges.append((file, source.begin, source.end, tensor.begin))
    return ranges


def _constant(part: Part, tensor: Tensor) -> Iterator[bytes]:
    """The bytes of a tensor whose elements are all one value."""
    single = struct.pack("<f", part.weights[0])
    element = {"F32": single, "BF16": single[2:], "F16": struct.pack("<e", part.weights[0])}[tensor.dtype]
    whole = element * (min(_CHUNK, tensor.size) // len(element))
    for begin in range(0, tensor.size, _CHUNK):
        yield whole[: tensor.size - begin]


def _computed(part: Part, tensor: Tensor, errors: list[float]) -> Iterator[bytes]:
    from strata.arithmetic import combine  # torch, which a merge of copies never loads

    sources = [(parent.path / stored.file, stored.tensor) for parent, stored in part.sources]
    return combine(part.transform, part.weights, sources, tensor, errors)
