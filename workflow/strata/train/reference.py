"""Reference: log-probabilities of the answers of preference pairs under a checkpoint, computed once."""

from __future__ import annotations

from pathlib import Path

from strata import store
from strata.checkpoint import verify
from strata.errors import TrainingError
from strata.loading import check_device, check_length, decoder_layers, load_model, lower_frozen
from strata.progress import bar
from strata.recipe import Recipe
from strata.store import Built, Object
from strata.tokens import open_tokens

_PAIRS = 4  # that go through the model at once


def reference(root: Path, recipe: Recipe) -> Object:
    """Compute what a reference recipe asks for, and publish `logps.npy`: float64 (P, 2), chosen and rejected.

    Raises:
        StoreError: the checkpoint or the pairs are missing or damaged.
        TrainingError: no pair fits `length`, or a log-probability is not a number.
    """
    return store.publish(root, recipe, lambda folder: _build(root, recipe, folder))


def _build(root: Path, recipe: Recipe, folder: Path) -> Built:
    import numpy as np
    import torch

    from strata.train.bfloat16 import widened
    from strata.train.data import Pairs
    from strata.train.objectives import answer_logps
    from strata.train.task import LOGPS, predict

    checkpoint = store.require(root, recipe.parents[0], verify)
    sources = [open_tokens(store.require(root, id, store.verify)) for id in recipe.sources]
    length, dtype, device = (recipe.parameters[key] for key in ("length", "dtype", "device"))
    check_device(device)
    check_length(checkpoint, length, "`length`")
    pairs = Pairs(sources, length, 0)
    model = load_model(checkpoint, "float32", "cpu").requires_grad_(False)
    if dtype == checkpoint.facts["dtype"] == "bfloat16":
        lower_frozen(decoder_layers(model))
    model.to(device)
    logps_P2 = np.empty((len(pairs), 2))
    progress_bar = bar(f"{checkpoint.id[:14]} reference", len(pairs), "pair")
    with torch.no_grad(), widened(model.device, dtype), progress_bar as progress:
        for start in range(0, len(pairs), _PAIRS):
            numbers = range(start, min(start + _PAIRS, len(pairs)))
            found = answer_logps(*predict(model, pairs.pairs(numbers), dtype))
            logps_P2[start : start + len(numbers)] = found.view(2, -1).T.double().cpu().numpy()
            progress.update(len(numbers))
    if not np.isfinite(logps_P2).all():
        raise TrainingError(
            "a reference log-probability is not a number",
            where=checkpoint.path,
            expected="finite numbers",
            got="NaN or infinity",
            todo="try `dtype: float32`",
        )
    np.save(folder / LOGPS, logps_P2)
    return Built(facts={"checkpoint_digest": checkpoint.digest, "pairs": len(pairs)})
