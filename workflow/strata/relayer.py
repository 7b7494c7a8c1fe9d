"""The config of a re-stacked model: whatever a config says of one layer goes where that layer goes.

transformers holds per-layer lists against the depth, and derives a missing one from the layers' new numbers, so that
an odd shift turns a full-attention layer into a sliding one. Hence every such list is explicit here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strata.errors import CheckpointError
from strata.families import Config, depth, explicit_keys, family_of, sparse_layers
from strata.plan import Source

LISTS = ("layer_types", "mlp_layer_types", "no_rope_layers")  # an entry for each layer
# Lists that can be as long as the model is deep and still say nothing of layers; so do all of token ids.
_NOT_OF_LAYERS = {"architectures", "keys_to_ignore_at_inference", "suppress_tokens", "begin_suppress_tokens"}


def relayered(configs: Sequence[Config], sources: Sequence[Source]) -> dict[str, Any]:
    """The config of a model whose layer i is layer `sources[i][1]` of the model with config `configs[sources[i][0]]`.

    All that is not of single layers is `configs[0]`'s; that the parents agree on it is the caller's to check.

    Raises:
        CheckpointError: the family is unknown; a parent lacks a per-layer list that it needs, or one has another length
            than its depth or a key that is not known; or what a layer does depends on its number.
    """
    base, family = configs[0], family_of(configs[0])
    parents = sorted({0, *(parent for parent, _ in sources)})
    for parent in parents:
        _check_lists(configs[parent])
        _check_numbers(configs[parent], all(layer == new for new, (_, layer) in enumerate(sources)))
    result = {key: value for key, value in base.items() if key not in family.stale}
    result[family.depth] = len(sources)
    for key in LISTS:
        if key in family.per_layer or any(configs[parent].get(key) is not None for parent in parents):
            lists = {parent: _entries(configs[parent], key) for parent, _ in sources}
            result[key] = [lists[parent][layer] for parent, layer in sources]
    if family.dense and family.sparse:
        sparse = {parent: sparse_layers(configs[parent]) for parent, _ in sources}
        result["mlp_only_layers"] = [new for new, (parent, layer) in enumerate(sources) if not sparse[parent][layer]]
        result["decoder_sparse_step"] = 1
    if result.get("use_sliding_window") and "max_window_layers" in result and "layer_types" in result:
        # For readers that do not know layer_types: the layers from this one on have a window.
        kinds = [*result["layer_types"], "sliding_attention"]
        result["max_window_layers"] = kinds.index("sliding_attention")
    return result


def check_mix(configs: Sequence[Config], sources: Sequence[Source], number: int) -> None:
    """Raise CheckpointError unless the layers that are mixed into output layer `number` are of one kind."""
    if len(sources) == 1:
        return
    kinds = []
    for parent, layer in sources:
        config = configs[parent]
        _check_numbers(config, layer == number)
        kind: dict[str, Any] = {key: config[key][layer] for key in LISTS if isinstance(config.get(key), list)}
        if family_of(config).sparse:
            kind["experts"] = sparse_layers(config)[layer]
        kinds.append(kind)
    if any(kind != kinds[0] for kind in kinds):
        raise CheckpointError(
            "layers of different kinds are mixed", where=f"output layer {number}, {list(sources)} as (parent, layer)",
            expected="one kind", got=" and ".join(str(kind) for kind in kinds),
        )  # fmt: skip


def _entries(config: Config, key: str) -> list[Any]:
    """The list under a key, if it has one entry for each layer."""
    entries, layers = config.get(key), depth(config)
    if not isinstance(entries, list) or len(entries) != layers:
        raise CheckpointError(
            "a per-layer list is missing or has the wrong length",
            where=f"config.json, {key}",
            expected=f"a list of {layers}",
            got=f"a list of {len(entries)}" if isinstance(entries, list) else repr(entries),
        )
    return entries


def _check_lists(config: Config) -> None:
    """Raise CheckpointError for a list that may be per-layer but is not known: all that could be done is a guess."""
    layers, known = depth(config), {*_NOT_OF_LAYERS, *LISTS, *explicit_keys(config["model_type"])}
    for key, value in config.items():
        per_layer = isinstance(value, list) and len(value) == layers and not key.endswith(("_token_id", "_token_ids"))
        if per_layer and key not in known:
            raise CheckpointError(
                "a list that may be per-layer is not known",
                where=f"config.json, {key}",
                expected="a list that transformers is known to read by layer, or not to",
                got=f"a list of {layers}",
            )


def _check_numbers(config: Config, in_place: bool) -> None:
    """Raise CheckpointError where what a layer does is tied to its number, and no key could say it otherwise."""
    for key, tied in (("per_layer_config", True), ("scale_attn_by_inverse_layer_idx", not in_place)):
        if tied and config.get(key):
            raise CheckpointError(
                "a layer of this model cannot be moved: its number matters",
                where=f"config.json, {key}",
                expected="layers that are alike wherever they stand",
                got=config[key],
            )
