"""A model as others write it: config.json and safetensors in any sharding, opened as a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata import families
from strata.checkpoint import INDEX, Checkpoint, Stored, check_exact, some
from strata.errors import CheckpointError
from strata.jsonfile import read_object
from strata.modelfiles import read_config, weight_files
from strata.tensors import Header, read_header

_CHUNK = 8 << 20  # bytes
_logger = logging.getLogger(__name__)


def open_model(file: Path) -> Checkpoint:
    """The model of a config.json and the weights beside it, under canonical names, held against its config.

    The config comes back complete: what transformers would derive from a layer's number or a family's default is
    written out. A tied head that is stored all the same must be the embedding, and is left out: the one weight read.

    Raises:
        SourceError: pickled or quantised weights, or a model with code of its own.
        CheckpointError: not exactly the tensors that the config asks for, or a tied head that is another matrix.
    """
    home, config = file.parent, complete_config(file)
    headers: dict[str, Header] = {}
    tensors: dict[str, Stored] = {}
    for shard, said in weight_files(home).items():
        headers[shard.name] = read_header(shard)
        _check_index(shard, said, headers[shard.name])
        for tensor in headers[shard.name].tensors:
            name = families.canonical_name(config["model_type"], tensor.name)
            if name in tensors:
                raise CheckpointError(
                    "a tensor stands in two shards",
                    where=f"{shard}, {tensor.name}",
                    expected="each tensor once",
                    got=tensors[name].file,
                )
            if name is not None:
                tensors[name] = Stored(shard.name, tensor, "")
    _check_total(home / INDEX, headers)
    family = families.family_of(config)
    if families.tied(config) and family.head in tensors and family.embed[0] in tensors:
        _check_tied(home, tensors.pop(family.head), tensors[family.embed[0]])
    check_exact(config, {name: stored.tensor.spec for name, stored in tensors.items()}, home)
    return Checkpoint(home, config, headers, tensors)


def _check_index(shard: Path, said: set[str] | None, header: Header) -> None:
    """Hold what the index says of a shard against it: a file of another model is not noticed otherwise."""
    held = {tensor.name for tensor in header.tensors}
    if said is not None and said != held:
        raise CheckpointError(
            "the index and a shard do not name the same tensors", where=shard, got=some(said ^ held),
            expected="each tensor in the shard that the index names",
        )  # fmt: skip


def _check_total(index: Path, headers: Mapping[str, Header]) -> None:
    """Warn when an index tells another size than its shards have. Theirs is used: tools have counted in many ways."""
    metadata = read_object(index).get("metadata") if index.is_file() else None
    told = metadata.get("total_size") if isinstance(metadata, dict) else None
    held = sum(tensor.size for header in headers.values() for tensor in header.tensors)
    if told not in (None, held):
        message = "%s tells %s bytes of weights, and its shards hold %d, which counts"
        _logger.warning(message, index, repr(told)[:80], held)


def _check_tied(home: Path, head: Stored, embedding: Stored) -> None:
    """A tied model may be stored with its head or without: both give one checkpoint. Two different ones do not."""
    with (home / head.file).open("rb") as left, (home / embedding.file).open("rb") as right:
        left.seek(head.tensor.begin)
        right.seek(embedding.tensor.begin)
        same = head.tensor.size == embedding.tensor.size
        for done in range(0, head.tensor.size, _CHUNK):
            count = min(_CHUNK, head.tensor.size - done)
            same = same and left.read(count) == right.read(count)
    if not same:
        raise CheckpointError(
            "the head differs from the embedding it is tied to",
            where=home,
            expected="the same bytes",
            got="other bytes",
            todo="set tie_word_embeddings to false",
        )


def complete_config(file: Path) -> dict[str, Any]:
    """A model's config.json, with what its family must say of each layer filled in as transformers understands it.

    Raises:
        SourceError: a model with code of its own, or quantised.
        CheckpointError: an unknown family, or a config that transformers does not take.
    """
    config = read_config(file)
    families.family_of(config)
    missing = [key for key in families.explicit_keys(config["model_type"]) if config.get(key) is None]
    if not missing:
        return config
    understood = understood_config(file.parent)
    return config | {key: understood[key] for key in missing if understood.get(key) is not None}


def understood_config(home: Path) -> dict[str, Any]:
    """What transformers makes of the config.json in a folder, every default filled in. Loads transformers."""
    from transformers import AutoConfig

    try:
        found: dict[str, Any] = AutoConfig.from_pretrained(
            home, local_files_only=True, trust_remote_code=False
        ).to_dict()
    except Exception as error:  # its validation raises what its libraries raise
        raise CheckpointError(
            "transformers does not take this config",
            where=home / "config.json",
            expected="a config that it takes",
            got=str(error)[:300],
        ) from None
    return found
