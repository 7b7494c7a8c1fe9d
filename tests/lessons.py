"""Small runs of the trainer: a base, data for each objective, and recipes with settings that finish in a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import store_model, tree_sha256
from models import save_model

SETTINGS: dict[str, Any] = {
    "length": 32, "batch": 4, "micro_batch": 2, "learning_rate": 2e-3, "schedule": "wsd", "warmup": 0.1, "decay": 0.2,
    "floor": 0.0, "weight_decay": 0.1, "betas": [0.9, 0.95], "epsilon": 1e-8, "clip": 1.0, "train": "all",
    "multipliers": {}, "dtype": "float32", "device": "cpu", "seed": 1, "activation_checkpointing": False,
}  # fmt: skip
TOKENS = 4 * 32  # of a step


def base(root: Path, family: str = "llama", **changes: Any) -> Any:
    """A stored base model."""
    return store_model(root, save_model(root.parent / f"{family}{len(changes)}", family, **changes))


def merged(root: Path, parent: Any, **parameters: Any) -> Any:
    """A merge of one stored parent."""
    from strata.merge import merge
    from strata.recipe import Recipe

    return merge(root, Recipe("merge", parameters, (parent.id,)))


def fetched(root: Path, name: str, files: dict[str, str]) -> Any:
    """A fetched source of these files."""
    from strata.recipe import Recipe
    from strata.sources import fetch

    folder = root.parent / name
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return fetch(root, Recipe("fetch", {"sha256": tree_sha256(folder)}), str(folder))


def tokens(root: Path, init: Any, source: Any, **parameters: Any) -> Any:
    """What `tokenize` makes of a source; plain text by default."""
    from strata.recipe import Recipe
    from strata.tokens import tokenize

    return tokenize(root, Recipe("tokenize", parameters or {"format": "text"}, (init.id,), (source.id,)))


def text(root: Path, init: Any, name: str = "text", documents: int = 4) -> Any:
    """Tokens of a few documents that differ by name."""
    files = {
        f"{number}.txt": " ".join(f"The {name} {number} walks over field {n * 7 % 11}." for n in range(12))
        for number in range(documents)
    }
    return tokens(root, init, fetched(root, name, files))


def instructions(root: Path, init: Any, rows: int = 12, template: str = "solar") -> Any:
    lines = [{"instruction": f"Count to {n}.", "output": " ".join(map(str, range(n)))} for n in range(2, rows + 2)]
    source = fetched(root, "instructions", {"rows.jsonl": "".join(json.dumps(line) + "\n" for line in lines)})
    return tokens(root, init, source, format="instructions", template=template)


def preferences(root: Path, init: Any, rows: int = 12) -> Any:
    lines = [{"prompt": f"What is {n}?", "chosen": "a number", "rejected": f"no, {n} is a fish"} for n in range(rows)]
    source = fetched(root, "preferences", {"rows.jsonl": "".join(json.dumps(line) + "\n" for line in lines)})
    return tokens(root, init, source, format="preferences", template="solar")


def pretraining(parent: Any, data: Any, steps: int = 6, **changes: Any) -> Any:
    """A recipe that reads one source; `changes` may add `sources` after it."""
    from strata.recipe import Recipe

    more = changes.pop("sources", ())
    parameters = {**SETTINGS, "data": [[0, 1.0]], "tokens": steps * TOKENS, **changes}
    return Recipe("pretrain", parameters, (parent.id,), (data.id, *(source.id for source in more)))


def sft(parent: Any, data: Any, **changes: Any) -> Any:
    from strata.recipe import Recipe

    return Recipe("sft", {**SETTINGS, "length": 128, "data": [0], "epochs": 3, **changes}, (parent.id,), (data.id,))


def reference_of(root: Path, parent: Any, data: Any, dtype: str = "float32") -> Any:
    from strata.recipe import Recipe
    from strata.train.reference import reference

    parameters = {"length": 128, "dtype": dtype, "device": "cpu"}
    return reference(root, Recipe("reference", parameters, (parent.id,), (data.id,)))


def dpo(parent: Any, data: Any, reference: Any, **changes: Any) -> Any:
    from strata.recipe import Recipe

    parameters = {**SETTINGS, "length": 128, "data": [0], "epochs": 2, "beta": 0.1, "label_smoothing": 0.0, **changes}
    return Recipe("dpo", parameters, (parent.id,), (data.id, reference.id))


def curve(found: Any) -> dict[str, Any]:
    """What a trained checkpoint keeps of its run."""
    return json.loads((found.path / "curve.json").read_text())


def losses(found: Any) -> list[float]:
    return [point["loss"] for point in curve(found)["steps"]]


def weights(found: Any) -> dict[str, Any]:
    """Every tensor of a stored checkpoint, read by the library."""
    from safetensors.torch import load_file

    return {name: value for file in sorted(found.path.glob("*.safetensors")) for name, value in load_file(file).items()}
