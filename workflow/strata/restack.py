"""Restack: write the tensors of a layer plan, from the files of its parents. No torch, no numpy unless it averages.

Everything is checked against headers and configs before the first byte is written. A copied tensor is a byte range: its
shard is linked where a parent has the same file, else the range is copied, sharing blocks where the file system can.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from strata import families
from strata.checkpoint import DTYPES, Checkpoint, Stored, origins, plan_shards, write_shard
from strata.errors import CheckpointError
from strata.foreign import understood_config
from strata.plan import Plan
from strata.progress import bar
from strata.relayer import LISTS, check_mix, relayered
from strata.tensors import Header, Tensor, copy_range, write_at

_CHUNK = 1 << 22  # bytes written at a time
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
# What parents may differ in: how a model is told apart, trained and decoded, not what its layers compute.
_FREE = {
    "architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", "initializer_range", "model_type",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "attention_dropout", "resid_pdrop",
    "embd_pdrop", "attn_pdrop", "max_window_layers", "id2label", "label2id", "pretraining_tp", "num_experts",
    "output_router_logits", "router_aux_loss_coef", "task_specific_params", "tie_word_embeddings",
}  # fmt: skip
_FOLDED = {"rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"}  # into rope_parameters


class Part(NamedTuple):
    """What one output tensor is made of: a transform of tensors (parent, stored); `fill` writes weights[0]."""

    transform: str  # copy, fill, linear, slerp
    sources: tuple[tuple[Checkpoint, Stored], ...]
    weights: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Draft:
    """A checkpoint that can be written: its plan, the opened parents, its config and its files.

    `lender` is the parent whose tokenizer goes with the config.
    """

    plan: Plan
    parents: Sequence[Checkpoint]
    config: dict[str, Any]
    shards: dict[str, Header]
    lender: int


def draft(plan: Plan, parents: Sequence[Checkpoint], dtype: str | None = None, lender: int | None = None) -> Draft:
    """What `plan` makes of these parents, in their stored dtype or in `dtype`. Nothing is written.

    A tied head is the embedding, and the draft's plan says so.

    Args:
        lender: the parent whose config and tokenizer the result has; by default the embedding's first.

    Raises:
        CheckpointError: the parents are of several families, configs, vocabularies or shapes, or of several dtypes
            while no `dtype` is given; or layers of several kinds are mixed; or a layer's tensors are not those that
            its family asks for.
    """
    lender = plan.embed_from.sources[0][0] if lender is None else lender
    _check_alike(parents, lender)
    configs = [parent.config for parent in parents]
    for number, layer in enumerate(plan.layers):
        check_mix(configs, layer.sources, number)
    if families.tied(configs[lender]):
        plan = replace(plan, head_from=plan.embed_from)
    places = [(parent + 1, layer) for parent, layer in (layer.sources[0] for layer in plan.layers)]
    config = relayered([configs[lender], *configs], places)
    shards = plan_shards(_specs(plan, parents, config, dtype), config)
    _check_whole(plan, parents, shards)
    return Draft(plan, parents, config, shards, lender)


def _specs(
    plan: Plan, parents: Sequence[Checkpoint], config: dict[str, Any], dtype: str | None
) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Name, dtype and shape of every output tensor, its sources checked."""
    wanted = next((code for code, name in DTYPES.items() if name == dtype), None)
    family = families.family_of(config)
    seen: dict[str, str] = {}
    for name, shape in families.each_tensor(config):
        found = [parents[parent].tensors.get(place) for parent, place in origins(plan, family, name)[1]]
        shapes = [stored.tensor.shape if stored else None for stored in found]
        if set(shapes) != {shape}:
            raise CheckpointError("a tensor does not fit", where=name, expected=shape, got=", ".join(map(str, shapes)))
        for code in {wanted} if wanted else {stored.tensor.dtype for stored in found if stored}:
            seen.setdefault(code, name)
        if len(seen) > 1 or not seen.keys() <= DTYPES.keys():
            raise CheckpointError(
                "the tensors are of several dtypes, or of one that cannot be used",
                where="dtype",
                expected=f"one of {', '.join(DTYPES)}",
                got=", ".join(f"{code} ({name})" for code, name in seen.items()),
                todo="say which the result shall have: `dtype: bfloat16`",
            )
        yield name, next(iter(seen)), shape


def part_of(made: Draft, tensor: Tensor) -> Part:
    """What a tensor of a draft is made of. Found when it is written: all at once would fill the memory."""
    layer, places = origins(made.plan, families.family_of(made.config), tensor.name)
    found = tuple((made.parents[parent], made.parents[parent].tensors[name]) for parent, name in places)
    if layer.transform == "zero":
        value = families.silenced(found[0][0].config, layer.sources[0][1], families.split_name(tensor.name)[1])
        if value is not None:
            return Part("fill", found, (value,))
    if layer.transform in ("copy", "zero"):
        return Part("copy" if found[0][1].tensor.dtype == tensor.dtype else "linear", found)
    return Part(layer.transform, found, layer.weights_of(tensor.name))


def write(
    folder: Path, made: Draft, label: str, stored: bool = True, files: Sequence[str] | None = None
) -> tuple[dict[str, str], float]:
    """Write the files of a draft. Returns each tensor's sha256, and the largest relative error of a change of dtype.

    Args:
        files: which of them; by default all.
        stored: the parents are objects of the store, which never change: link to their files, and find the sha256 of
            what is not copied. Otherwise nothing is linked, and no sha256 is returned.

    Raises:
        CheckpointError: a sum that is not finite in the output's dtype.
    """
    sha256: dict[str, str] = {}
    rounding = 0.0
    files, workers = list(made.shards) if files is None else files, min(8, os.cpu_count() or 1)
    size = max(1, min(16, -(-len(files) // (8 * workers))))  # of a job: thousands of small shards, or few large ones
    batches = [files[start : start + size] for start in range(0, len(files), size)]
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = [pool.submit(_write_some, folder, batch, made, stored) for batch in batches]
        with bar(label, len(files), "shard") as progress:
            for job, batch in zip(jobs, batches, strict=True):
                found, error = job.result()
                sha256.update(found)
                rounding = max(rounding, error)
                progress.update(len(batch))
    finally:
        pool.shutdown(cancel_futures=True)  # after an error the rest would only fill the disk
    return sha256, rounding


def _check_alike(parents: Sequence[Checkpoint], lender: int) -> None:
    """Raise CheckpointError for parents whose layers would not compute in each other's place."""
    base = parents[lender].config
    family = families.family_of(base)
    free = _FREE | {family.depth, *family.per_layer, *family.stale, *LISTS, "mlp_only_layers", "decoder_sparse_step"}
    if not any(_scales_with_length(parent.config) for parent in parents):
        free = free | {"max_position_embeddings"}
    for parent in parents:
        config = parent.config
        ours, theirs = base, config
        differ = _differences(base, config, free)
        if config.get("model_type") != base.get("model_type"):
            differ = ["model_type"]
        elif differ:
            # Perhaps only in what one says and the other leaves to a default. What transformers knows under another
            # name is compared there; what it does not know at all stays a difference.
            ours, theirs = understood_config(parents[lender].path), understood_config(parent.path)
            known = ours.keys() & theirs.keys() | _FOLDED
            differ = [*_differences(ours, theirs, free), *(key for key in differ if key not in known)]
        if families.tied(config) != families.tied(base):
            differ.append("tie_word_embeddings")
        if differ:
            raise CheckpointError(
                "the parents' models do not fit together",
                where=f"{parent.path}, config.json",
                expected=", ".join(f"{key} {ours.get(key)}" for key in differ[:5]) + f" as in {parents[lender].path}",
                got=", ".join(f"{key} {theirs.get(key)}" for key in differ[:5]),
            )


def _differences(one: Mapping[str, Any], other: Mapping[str, Any], free: Set[str]) -> list[str]:
    """The keys in which two configs differ and must not. A name that starts with _ or ends in _version is a note."""
    keys = (key for key in sorted(one.keys() | other.keys()) if key not in free)
    return [k for k in keys if not k.startswith("_") and not k.endswith("_version") and one.get(k) != other.get(k)]


def _scales_with_length(value: Any) -> bool:
    """Whether rotary positions depend on the longest sequence that the config names (dynamic, yarn, longrope)."""
    if not isinstance(value, dict):
        return False
    kind = value.get("rope_type", value.get("type"))
    inner = (
        value.get("rope_parameters"),
        value.get("rope_scaling"),
        value.get("full_attention"),
        value.get("sliding_attention"),
    )
    return kind not in (None, "default", "linear", "llama3") or any(map(_scales_with_length, inner))


def _check_whole(plan: Plan, parents: Sequence[Checkpoint], shards: Mapping[str, Header]) -> None:
    """Raise CheckpointError when a layer has more in a source than in the result: nothing may be dropped."""
    counts = [Counter(families.split_name(name)[0] for name in parent.tensors) for parent in parents]
    _, *layers, _ = (len(header.tensors) for header in shards.values())
    for number, (layer, count) in enumerate(zip(plan.layers, layers, strict=True)):
        for parent, source in layer.sources:
            if counts[parent][source] != count:
                raise CheckpointError(
                    "a layer is of another kind than the one it is mixed with", where=f"output layer {number}",
                    expected=f"{count} tensors",
                    got=f"{counts[parent][source]} in layer {source} of {parents[parent].path}",
                )  # fmt: skip


def _write_some(folder: Path, files: Sequence[str], made: Draft, stored: bool) -> tuple[dict[str, str], float]:
    sha256: dict[str, str] = {}
    errors = [0.0]
    for file in files:
        header = made.shards[file]
        parts = {tensor.name: part_of(made, tensor) for tensor in header.tensors}
        if stored:
            sha256 |= {name: part.sources[0][1].sha256 for name, part in parts.items() if part.transform == "copy"}
            if _link(folder / file, header, parts):
                continue
        fill = partial(_fill, header=header, parts=parts, sha256=sha256 if stored else None, errors=errors)
        write_shard(folder / file, header, fill)
    return sha256, max(errors)


def _link(file: Path, header: Header, parts: Mapping[str, Part]) -> bool:
    """Hard-link a parent's file that has the same bytes. False where there is none, or no link can be made."""
    parent, shard = parts[header.tensors[0].name].sources[0][0], parts[header.tensors[0].name].sources[0][1].file
    same = parent.headers[shard].sha256 == header.sha256 and all(
        (part.transform, *part.sources) == ("copy", (parent, Stored(shard, tensor, part.sources[0][1].sha256)))
        for tensor, part in ((tensor, parts[tensor.name]) for tensor in header.tensors)
    )
    if not same:
        return False
    try:
        os.link(parent.path / shard, file)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False  # another file system, or one without links: a copy is as right
    return True


def _fill(
    handle: int, header: Header, parts: Mapping[str, Part], sha256: dict[str, str] | None, errors: list[float]
) -> None:
    """Write the data of one shard: copied ranges first, then what is made."""
    for file, begin, end, offset in _ranges(header, parts):
        with file.open("rb") as stream:
            copy_range(stream.fileno(), begin, end, handle, offset)
    for tensor in header.tensors:
        part = parts[tensor.name]
        if part.transform == "copy":
            continue
        hasher, offset = hashlib.sha256(), tensor.begin
        for chunk in _constant(part, tensor) if part.transform == "fill" else _computed(part, tensor, errors):
            if sha256 is not None:
                hasher.update(chunk)
            offset = write_at(handle, chunk, offset)
        if sha256 is not None:
            sha256[tensor.name] = hasher.hexdigest()


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
