"""Analyze: how much each layer of a checkpoint changes the hidden states of a calibration text.

One plain forward pass for each document: no batch, no padding, no cache. What is measured lies before the final norm,
which transformers' `output_hidden_states` has already applied to its last element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from strata import store
from strata.checkpoint import verify
from strata.errors import EvaluationError
from strata.importance import IMPORTANCE
from strata.loading import check_length, decoder_layers, load_model
from strata.progress import bar
from strata.recipe import Recipe, canonical
from strata.sources import FILES
from strata.store import Built, Object
from strata.tasks.items import read_documents

SHORTEST = 2  # tokens


def analyze(root: Path, recipe: Recipe) -> Object:
    """Measure the layers of an analysis recipe's checkpoint on its calibration text, and publish `importance.json`.

    Block influence (ShortGPT, arXiv 2403.03853) is 1 - cos(a layer's input, its output), averaged over all tokens.
    Angular distance (Gromov et al., arXiv 2403.17887) is arccos(cos)/pi between the states before layer l and n layers
    later, at the last token of each document, averaged over documents.

    Raises:
        StoreError: the checkpoint or the text is missing or damaged.
        EvaluationError: too few documents, or more tokens than the model has positions; the loaded model is not the
            checkpoint, or overflows.
    """
    return store.publish(root, recipe, lambda folder: _build(root, recipe, folder))


def _build(root: Path, recipe: Recipe, folder: Path) -> Built:
    checkpoint = store.require(root, recipe.parents[0], verify)
    texts = read_documents(store.require(root, recipe.sources[0], store.verify).path / FILES)
    parameters = recipe.parameters
    documents = _tokens(checkpoint, texts, parameters["documents"], parameters["tokens"])
    model = load_model(checkpoint, parameters["dtype"], parameters["device"])
    with bar(f"{checkpoint.id[:14]} layers", sum(map(len, documents)), "tok") as progress:
        influence, angular = _measure(model, documents, progress)
    if not all(map(math.isfinite, (*influence, *(value for row in angular for value in row)))):
        raise EvaluationError(
            "hidden states are not numbers",
            where=checkpoint.path,
            expected="numbers",
            got="NaN or infinity",
            todo="the model overflows: try `dtype: float32`",
        )
    counts = {"tokens": sum(map(len, documents)), "documents": len(documents)}
    measured = {
        "block_influence": [_rounded(value) for value in influence],
        "angular_distance": [[_rounded(value) for value in row] for row in angular],
        **counts,
    }
    (folder / IMPORTANCE).write_text(canonical(measured) + "\n", encoding="utf-8")
    return Built(facts={"checkpoint_digest": checkpoint.digest, "layers": len(influence), **counts})


def _rounded(value: float) -> float:
    """9 significant digits: more would parade the differences of machines."""
    return float(f"{value:.9g}")


def _tokens(checkpoint: Object, texts: dict[str, str], documents: int, tokens: int) -> list[list[int]]:
    """The first tokens of the first documents that have enough of them, without special tokens."""
    from transformers import AutoTokenizer

    check_length(checkpoint, tokens, "`tokens` of the calibration")
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    chosen: list[list[int]] = []
    for text in texts.values():
        if len(chosen) == documents:
            break
        ids = list(tokenizer(text, add_special_tokens=False, verbose=False).input_ids[:tokens])
        if len(ids) >= SHORTEST:
            chosen.append(ids)
    if len(chosen) < documents:
        raise EvaluationError(
            "too few documents", where="`calibration`", expected=f"{documents} of at least {SHORTEST} tokens",
            got=f"{len(chosen)} of {len(texts)}", todo="lower `documents`, or use a source of more texts",
        )  # fmt: skip
    return chosen


def _measure(model: Any, documents: Sequence[list[int]], progress: Any) -> tuple[list[float], list[list[float]]]:
    """Block influence of each layer, and the triangle of angular distances."""
    import torch

    layers = decoder_layers(model)
    depth = len(layers)
    influence = [0.0] * depth
    angular = [[0.0] * (depth - layer) for layer in range(depth)]
    last: list[Any] = []  # the last token's state before the first layer and after each

    def look(number: int) -> Any:
        def hook(module: Any, inputs: Any, options: Any, output: Any) -> None:
            before = (inputs[0] if inputs else options["hidden_states"])[0]
            after = (output[0] if isinstance(output, tuple) else output)[0]
            # 1 - cos, without what 1 - cos loses where the two are nearly one
            influence[number] += float((2 * (_angles(before, after) / 2).sin() ** 2).sum())
            last.extend([before[-1].clone()] * (number == 0) + [after[-1].clone()])

        return hook

    hooks = [layer.register_forward_hook(look(number), with_kwargs=True) for number, layer in enumerate(layers)]
    try:
        with torch.inference_mode():
            for ids in documents:
                last.clear()
                model.base_model(torch.tensor([ids], device=model.device), use_cache=False)
                states = torch.stack(last)
                for n in range(1, depth + 1):
                    for layer, angle in enumerate((_angles(states[:-n], states[n:]) / math.pi).tolist()):
                        angular[layer][n - 1] += angle
                progress.update(len(ids))
    finally:
        for hook in hooks:
            hook.remove()
    tokens = sum(map(len, documents))
    return [value / tokens for value in influence], [[value / len(documents) for value in row] for row in angular]


def _angles(left: Any, right: Any) -> Any:
    """The angle between each pair of rows, in float64; exactly 0 for equal rows, where arccos(cos) is not."""
    from torch.linalg import vector_norm
    from torch.nn.functional import normalize

    left, right = normalize(left.double(), dim=-1), normalize(right.double(), dim=-1)
    return 2 * vector_norm(left - right, dim=-1).atan2(vector_norm(left + right, dim=-1))
