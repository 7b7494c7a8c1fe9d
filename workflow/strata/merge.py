"""Merge: a checkpoint re-stacked from its parents' layers by moving byte ranges. No torch, no numpy."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from strata import families, store
from strata.checkpoint import CARRIED, Checkpoint, Spec, finish, open_checkpoint, plan_shards, write_shard
from strata.plan import Plan, make_plan
from strata.progress import bar
from strata.recipe import Recipe
from strata.store import Built, Object
from strata.tensors import Header, copy_range

Origin = tuple[Checkpoint, str]  # (parent, the tensor's name in it)


def merge(root: Path, recipe: Recipe) -> Object:
    """Build the checkpoint of a merge recipe from its parents in the store, and publish it.

    Raises:
        StoreError: a parent is missing or damaged.
        ConfigError: the parameters do not fit the parent.
    """
    return store.publish(root, recipe, lambda folder: _build(root, recipe, folder))


def _build(root: Path, recipe: Recipe, folder: Path) -> Built:
    found = [store.require(root, id) for id in recipe.parents]
    parents = [open_checkpoint(parent) for parent in found]
    plan = make_plan(recipe.parameters, parents[0].layers)
    origins = dict(_origins(plan, parents))
    specs: dict[str, Spec] = {}
    for name, (parent, source) in origins.items():
        tensor = parent.tensors[source][1]
        specs[name] = (tensor.dtype, tensor.shape)
    shards = plan_shards(specs, len(plan.layers))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        running = [pool.submit(_write, folder / file, header, origins) for file, header in shards.items()]
        with bar("merge", len(shards), "shard") as progress:
            for shard in as_completed(running):
                shard.result()
                progress.update()
    lender = parents[plan.embed_from]
    for name in CARRIED:
        if (lender.path / name).is_file():
            shutil.copyfile(lender.path / name, folder / name)
    sha256 = {name: parent.tensors[source][2] for name, (parent, source) in origins.items()}
    return finish(folder, _config(lender.config, plan), shards, sha256, plan, found)


def _origins(plan: Plan, parents: Sequence[Checkpoint]) -> Iterator[tuple[str, Origin]]:
    """Every output tensor with the parent's tensor that it copies."""
    suffixes = [
        name.removeprefix(families.layer_name(0, ""))
        for name in parents[0].tensors
        if families.split_name(name)[0] == 0
    ]
    for number, layer in enumerate(plan.layers):
        ((parent, source),) = layer.sources
        for suffix in suffixes:
            yield families.layer_name(number, suffix), (parents[parent], families.layer_name(source, suffix))
    for name, lender in (
        (families.EMBED, plan.embed_from),
        (families.NORM, plan.norm_from),
        (families.HEAD, plan.head_from),
    ):
        if name in parents[lender].tensors:
            yield name, (parents[lender], name)


def _config(config: dict[str, Any], plan: Plan) -> dict[str, Any]:
    changed = {**config, "num_hidden_layers": len(plan.layers)}
    if config.get("layer_types"):
        changed["layer_types"] = [config["layer_types"][layer.sources[0][1]] for layer in plan.layers]
    return changed


def _write(file: Path, header: Header, origins: dict[str, Origin]) -> None:
    """Link the shard where a parent has the same bytes, else copy its tensors' ranges, neighbours in one go."""
    parent, source = origins[header.tensors[0].name]
    shard = parent.tensors[source][0]
    if parent.headers[shard].raw == header.raw and all(origins[t.name] == (parent, t.name) for t in header.tensors):
        try:
            os.link(parent.path / shard, file)
            return
        except OSError:
            pass  # another file system, or one without links: the copy below is as right
    write_shard(file, header, lambda handle: _copy(handle, header, origins))


def _copy(handle: int, header: Header, origins: dict[str, Origin]) -> None:
    ranges: list[tuple[Path, int, int, int]] = []  # (file, begin, end, offset in the new file)
    for tensor in header.tensors:
        parent, name = origins[tensor.name]
        shard, source, _ = parent.tensors[name]
        file = parent.path / shard
        if ranges and ranges[-1][0] == file and ranges[-1][2] == source.begin:
            ranges[-1] = (file, ranges[-1][1], source.end, ranges[-1][3])
        else:
            ranges.append((file, source.begin, source.end, tensor.begin))
    for file, begin, end, offset in ranges:
        with file.open("rb") as stream:
            copy_range(stream.fileno(), begin, end, handle, offset)
