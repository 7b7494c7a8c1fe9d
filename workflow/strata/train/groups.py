"""What trains and how fast, read from the layer plan: layers are `new`, `seams` or `rest`. Pure functions, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from strata import families
from strata.errors import ConfigError
from strata.families import Family, Shape
from strata.plan import Plan, classes, inserted, layers_that_train, seams


def trainable(
    plan: Plan, config: Mapping[str, Any], train: str | Sequence[int], multipliers: Mapping[str, float]
) -> dict[str, float]:
    """The tensors that train, by canonical name, and the multiplier of each one's learning rate. Others are frozen.

    Args:
        train: all; new: the layers that block expansion inserted; seams: the layers on both sides of every seam;
            new+norms: the new layers and all norms; or a list of layers.
        multipliers: of the classes `new`, `seams` (where not new) and `rest` (all else, with what is outside the
            layers); 1 where left out, and 0 freezes.

    Raises:
        ConfigError: nothing would train; a layer is out of range; or a multiplier is for a class of which `train` has
            no tensor.
    """
    found = classes(plan)
    chosen = {
        name: "rest" if layer is None else found[layer] for name, layer in _chosen(config, train, _layers(plan, train))
    }
    for group in sorted(multipliers.keys() - set(chosen.values())):
        raise ConfigError(
            f"no tensor that trains is of the class `{group}`",
            where="multipliers",
            expected=", ".join(sorted(set(chosen.values()))),
            got=_told(plan),
            todo=f"leave `{group}` out, or let `train` name its layers",
        )
    rates = {name: float(multipliers.get(group, 1)) for name, group in chosen.items()}
    rates = {name: multiplier for name, multiplier in rates.items() if multiplier}
    if not rates:
        raise ConfigError("nothing would train", where="multipliers", expected="one above 0", got=dict(multipliers))
    return rates


def decays(name: str, shape: Shape, family: Family) -> bool:
    """Whether weight decay pulls on this tensor: on the layers' matrices, not on embeddings, head, norms, biases."""
    return len(shape) >= 2 and families.part_of(family, name) is None


def _layers(plan: Plan, train: str | Sequence[int]) -> Set[int]:
    """The layers that `train` names whole, which there must be."""
    n, named = len(plan.layers), frozenset(layers_that_train(plan, train))
    if wrong := sorted(named - set(range(n))):
        raise ConfigError("a layer is out of range", where="train", expected=f"0 to {n - 1}", got=wrong[0])
    if not named:
        raise ConfigError("nothing would train", where="train", expected="layers to train", got=_told(plan))
    return named


def _chosen(
    config: Mapping[str, Any], train: str | Sequence[int], layers: Set[int]
) -> Iterator[tuple[str, int | None]]:
    """Name and layer of every tensor that trains unless a multiplier freezes it."""
    for name, _ in families.each_tensor(config):
        layer, _ = families.split_name(name)
        if train == "all" or layer in layers or (train == "new+norms" and families.is_norm(name)):
            yield name, layer


def _told(plan: Plan) -> str:
    return f"a plan of {len(plan.layers)} layers, {len(inserted(plan))} of them new, with {len(seams(plan))} seams"
