"""Canonical checkpoints: one shard per layer, exactly the tensors the config asks for, a digest of the content.

The content digest covers config, tokenizer and every tensor's name, dtype, shape and bytes; how they are sharded is
not part of it. `tensors.json` holds the tensor entries, so that a merge knows its copies' digests without reading.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from strata import families, store
from strata.disk import file_sha256
from strata.errors import CheckpointError, StoreError
from strata.plan import Layer, Plan, inserted, seams
from strata.recipe import TRAINING, canonical
from strata.store import Built, Object
from strata.tensors import Header, Spec, Tensor, encode_header, plan_header, read_header, write_at

_CHUNK = 4 << 20  # bytes hashed at a time
CONFIG, INDEX, TENSORS = "config.json", "model.safetensors.index.json", "tensors.json"
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json",
)  # fmt: skip
CARRIED = (*TOKENIZER, "generation_config.json")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Of a config.json: where and with what it was written, which says nothing of the model.
_VOLATILE = {"_name_or_path", "_model_name_or_path", "transformers_version", "torch_dtype", "_from_model_config"}


class Stored(NamedTuple):
    """A tensor of a checkpoint: the name of its file, its place there, sha256 of its bytes ("" where not known)."""

    file: str
    tensor: Tensor
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its folder, its config, the headers of its files, and its tensors by canonical name."""

    path: Path
    config: dict[str, Any]
    headers: dict[str, Header]
    tensors: dict[str, Stored]

    @property
    def layers(self) -> int:
        return families.depth(self.config)


def open_checkpoint(found: Object) -> Checkpoint:
    """Read config, headers and tensor digests of a stored checkpoint, and hold them against each other.

    Raises:
        CheckpointError: the index, the shards and tensors.json do not name the same tensors.
    """
    path = found.path
    config = json.loads((path / CONFIG).read_bytes())
    headers = {
        name: read_header(path / name) for name in sorted(found.manifest["files"]) if name.endswith(".safetensors")
    }
    entries = {name: rest for name, *rest in json.loads((path / TENSORS).read_bytes())}
    tensors: dict[str, Stored] = {}
    wrong: list[str] = []
    for shard, header in headers.items():
        for tensor in header.tensors:
            dtype, shape, sha256 = entries.pop(tensor.name, ("", [], ""))
            tensors[tensor.name] = Stored(shard, tensor, sha256)
            if (dtype, tuple(shape)) != (tensor.dtype, tensor.shape):
                wrong.append(tensor.name)
    if wrong or entries:
        raise CheckpointError(
            "shards and tensors.json differ",
            where=path,
            expected="the same names, dtypes and shapes",
            got=f"in {some([*wrong, *entries])}",
            todo="run `strata verify`",
        )
    return Checkpoint(path, config, headers, tensors)


Known = dict[tuple[int, int, int], str]  # (device, inode, first byte) -> sha256 of a tensor that was hashed


def verify(found: Object, known: Known | None = None) -> None:
    """Hash every file and every tensor of a stored checkpoint, in parallel.

    Args:
        known: what was hashed before in this process: variants share the files of the layers they have in common.

    Raises:
        StoreError: names the first that differs and, for a copied tensor, the parent that it came from.
    """
    store.verify(found)
    try:
        opened = open_checkpoint(found)
    except CheckpointError as error:
        raise store.damaged(found.id, error.details["where"], error.what, "", error.details["got"]) from None
    known = {} if known is None else known
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        hashed = pool.map(
            lambda stored: _hash(opened.path / stored.file, stored.tensor, known), opened.tensors.values()
        )
        for (name, stored), actual in zip(opened.tensors.items(), hashed, strict=True):
            if actual != stored.sha256:
                pool.shutdown(wait=False, cancel_futures=True)
                where = f"{opened.path / stored.file}, {name}"
                raise store.damaged(
                    found.id, where, "sha256 of a tensor", stored.sha256, actual, _origin(found, name, stored.sha256)
                )


def _hash(file: Path, tensor: Tensor, known: Known) -> str:
    with file.open("rb") as stream:
        found = os.fstat(stream.fileno())
        key = (found.st_dev, found.st_ino, tensor.begin)
        if key not in known:
            hasher = hashlib.sha256()
            for begin in range(tensor.begin, tensor.end, _CHUNK):
                hasher.update(os.pread(stream.fileno(), min(_CHUNK, tensor.end - begin), begin))
            known[key] = hasher.hexdigest()
    return known[key]


def _origin(found: Object, name: str, sha256: str) -> str:
    """Where a tensor was copied from, and whether it is whole there: a wrong digest is often the parent's.

    Training copies its parent's plan, not its tensors.
    """
    if found.recipe.operation in TRAINING:
        return ""
    layer, places = origins(Plan.from_json(found.facts["plan"]), families.FAMILIES[found.facts["family"]], name)
    if layer.transform != "copy" or not found.recipe.parents:
        return ""
    ((parent, copied),) = places
    id = found.recipe.parents[parent]
    try:
        lender = store.find(found.path.parents[1], id)
        opened = open_checkpoint(lender) if lender else None
    except (StoreError, CheckpointError):
        opened = None
    if opened is None:
        return f"it was copied from {copied} of {id}, which cannot be read"
    stored = opened.tensors[copied]
    whole = _hash(opened.path / stored.file, stored.tensor, {}) == sha256
    return f"it was copied from {copied} of {id}, " + ("which is whole" if whole else "which is damaged too")


def origins(plan: Plan, family: families.Family, name: str) -> tuple[Layer, list[tuple[int, str]]]:
    """What a plan makes an output tensor of: its layer, and (parent, the tensor's name there) of each source."""
    number, suffix = families.split_name(name)
    if number is None:
        layer = plan.outside[families.part_of(family, name) or ""]
        return layer, [(parent, name) for parent, _ in layer.sources]
    layer = plan.layers[number]
    return layer, [(parent, families.layer_name(family, source, suffix)) for parent, source in layer.sources]


def plan_shards(specs: Iterable[tuple[str, str, tuple[int, ...]]], config: Mapping[str, Any]) -> dict[str, Header]:
    """The headers of a canonical checkpoint's files: embedding, one shard for each layer, final norm and head.

    Args:
        specs: (name, dtype, shape) of each tensor, those of one layer together.
    """
    total, embed = families.depth(config) + 2, families.family_of(config).embed
    shards: dict[int, Header] = {}
    outside: dict[int, list[tuple[str, str, tuple[int, ...]]]] = {1: [], total: []}
    for layer, members in groupby(specs, lambda spec: families.split_name(spec[0])[0]):
        if layer is None:
            for spec in members:
                outside[1 if spec[0] in embed else total].append(spec)
        else:
            shards[layer + 2] = plan_header(members)
    shards |= {number: plan_header(members) for number, members in outside.items()}
    return {f"model-{n:05d}-of-{total:05d}.safetensors": shards[n] for n in sorted(shards)}


def copy_tokenizer(lender: Checkpoint, folder: Path) -> None:
    """Copy tokenizer and generation config beside the weights, from the model that lends the config."""
    for name in CARRIED:
        if (lender.path / name).is_file():
            shutil.copyfile(lender.path / name, folder / name)


def write_shard(file: Path, header: Header, write_data: Callable[[int], None]) -> None:
    """Write a header, then let `write_data` fill in the data through the open file."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        write_at(handle, encode_header(header), 0)
        write_data(handle)
        written = os.fstat(handle).st_size
    finally:
        os.close(handle)
    if written != header.size:
        raise CheckpointError("a shard has the wrong size", where=file, expected=header.size, got=written)


def finish(
    folder: Path,
    config: Mapping[str, Any],
    shards: Mapping[str, Header],
    sha256: Mapping[str, str],
    plan: Plan,
    inputs: Iterable[Object],
) -> Built:
    """Write config, index and tensors.json beside the shards, and say what the store should keep of them.

    Raises:
        CheckpointError: the tensors are not exactly those that the config asks for, or differ in dtype.
    """
    stable = write_config(folder, config, shards)
    tensors = sorted(
        (tensor for header in shards.values() for tensor in header.tensors), key=lambda tensor: tensor.name
    )
    # Written and hashed entry by entry: as one text, those of 20,000 tensors would take more memory than all the rest.
    hasher = hashlib.sha256(f'{{"config":{canonical(stable)},"tensors":['.encode())
    with (folder / TENSORS).open("w", encoding="utf-8") as stream:
        for number, tensor in enumerate(tensors):
            entry = canonical([tensor.name, tensor.dtype, list(tensor.shape), sha256[tensor.name]])
            stream.write(f"{',' if number else '['}\n{entry}")
            hasher.update(f"{',' if number else ''}{entry}".encode())
        stream.write("\n]\n")
    tokenizer = {name: file_sha256(folder / name) for name in TOKENIZER if (folder / name).is_file()}
    hasher.update(f'],"tokenizer":{canonical(tokenizer)}}}'.encode())
    return Built(
        files={
            shard: {"size": header.size, "header_size": header.length, "header_sha256": header.sha256}
            for shard, header in shards.items()
        },
        digest=hasher.hexdigest(),
        facts={
            "family": config["model_type"],
            "layers": len(plan.layers),
            "parameters": sum(math.prod(tensor.shape) for tensor in tensors),
            "bytes": sum(tensor.size for tensor in tensors),
            "dtype": stable["dtype"],
            "plan": plan.to_json(),
            "seams": list(seams(plan)),
            "inserted": list(inserted(plan)),
            "made_from": {found.id: found.digest for found in inputs},
        },
    )


def write_config(folder: Path, config: Mapping[str, Any], shards: Mapping[str, Header]) -> dict[str, Any]:
    """Write config.json and the index of a checkpoint with these files. Returns the config as written.

    Raises:
        CheckpointError: the tensors are not exactly those that the config asks for, or differ in dtype.
    """
    tensors = [tensor for header in shards.values() for tensor in header.tensors]
    check_exact(config, {tensor.name: tensor.spec for tensor in tensors}, folder)
    stable = {key: value for key, value in config.items() if key not in _VOLATILE} | {"dtype": DTYPES[tensors[0].dtype]}
    weight_map = {tensor.name: shard for shard, header in shards.items() for tensor in header.tensors}
    index = {"metadata": {"total_size": sum(tensor.size for tensor in tensors)}, "weight_map": weight_map}
    for name, value in ((CONFIG, dict(sorted(stable.items()))), (INDEX, index)):
        with (folder / name).open("w", encoding="utf-8") as stream:
            json.dump(value, stream, indent=2, allow_nan=False)
            stream.write("\n")
    return stable


def check_exact(config: Mapping[str, Any], tensors: Mapping[str, Spec], where: Path) -> None:
    """Raise CheckpointError unless `tensors` are exactly, in name and shape, what the config asks for, in one dtype.

    transformers loads a checkpoint that lacks layers, or has too many, without an error; so this is ours to do.
    """
    layers = len({families.split_name(name)[0] for name in tensors} - {None})
    if layers != families.depth(config):
        raise CheckpointError(
            "the config's layer count is not what the file holds",
            where=f"{where}, {families.family_of(config).depth}",
            expected=families.depth(config),
            got=f"{layers} layers of tensors",
        )
    count = 0
    for name, shape in families.each_tensor(config):
        count += 1
        if name not in tensors or tensors[name][1] != shape:
            count = -1
            break
    if count != len(tensors):
        shapes = {name: shape for name, (_, shape) in tensors.items()}
        expected = families.expected_tensors(config)
        raise _differ("the tensors are not those that the config asks for", where, expected, shapes)
    dtypes = {dtype for dtype, _ in tensors.values()}
    if len(dtypes) != 1 or not dtypes <= set(DTYPES):
        raise CheckpointError(
            "mixed or unusable dtypes",
            where=where,
            expected=f"one of {', '.join(DTYPES)}",
            got=", ".join(sorted(dtypes)),
        )


def some(names: Iterable[str]) -> str:
    """The first five of these names, and how many more there are."""
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


def _differ(what: str, where: Path, expected: Mapping[str, Any], got: Mapping[str, Any]) -> CheckpointError:
    missing, extra = expected.keys() - got.keys(), got.keys() - expected.keys()
    wrong = [name for name in expected.keys() & got.keys() if expected[name] != got[name]]
    found = [f"missing {some(missing)}"] * bool(missing) + [f"not expected {some(extra)}"] * bool(extra)
    found += [f"{name} is {got[name]}, not {expected[name]}" for name in sorted(wrong)[:5]]
    return CheckpointError(what, where=where, expected=f"{len(expected)} tensors", got="; ".join(found))
