"""A merge is tensor-exact against a plain reference, loads, runs at full depth, and reads no weight."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from models import save_model
from strata import checkpoint, merge, methods, store
from strata.errors import StoreError
from strata.recipe import Recipe

METHODS = [
    {"method": "dus", "drop": 1},
    {"method": "dus", "drop": 0},
    {"method": "dus", "drop": 3},
    {"method": "interlocked", "drop": 1, "group": 1},
    {"method": "interlocked", "drop": 1, "group": 2},
    {"method": "interlocked", "drop": 2, "group": 1},
]


def load(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def reference(base: dict[str, torch.Tensor], order: list[int]) -> dict[str, torch.Tensor]:
    """What a loose script would do: rename and copy."""
    made = {name: tensor for name, tensor in base.items() if ".layers." not in name}
    for target, source in enumerate(order):
        for name, tensor in base.items():
            if name.startswith(f"model.layers.{source}."):
                made[re.sub(r"layers\.\d+", f"layers.{target}", name, count=1)] = tensor
    return made


@pytest.mark.parametrize("parameters", METHODS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_merge_is_the_reference_tensor_by_tensor(
    tmp_path: Path, base_of: Callable[..., Any], parameters: dict[str, Any], tied: bool
) -> None:
    base = base_of(save_model(tmp_path / "model", tie_word_embeddings=tied))
    made = merge.merge(tmp_path / "results", Recipe("merge", parameters, (base.id,)))
    order = [layer.sources[0][1] for layer in methods.make_plan(parameters, [4]).layers]
    ours, expected = load(made.path), reference(load(base.path), order)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    checkpoint.verify(made)  # digests taken over from the parent are those of the bytes
    model = AutoModelForCausalLM.from_pretrained(made.path)
    assert (
        len(model.model.layers)
        == len(order)
        == json.loads((made.path / "config.json").read_text())["num_hidden_layers"]
    )
    with torch.no_grad():
        assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_the_model_runs_the_layers_in_the_order_of_the_plan(tmp_path: Path, base_of: Callable[..., Any]) -> None:
    """The forward pass of the merged checkpoint equals that of the base with its layer list rearranged in memory."""
    base = base_of(save_model(tmp_path / "model", dtype=torch.float32))
    made = merge.merge(
        tmp_path / "results", Recipe("merge", {"method": "interlocked", "drop": 1, "group": 2}, (base.id,))
    )
    ids = torch.tensor([[5, 6, 7, 8]])
    original = AutoModelForCausalLM.from_pretrained(base.path)
    original.model.layers = torch.nn.ModuleList([original.model.layers[i] for i in (0, 1, 1, 2, 2, 3)])
    original.config.num_hidden_layers = 6
    with torch.no_grad():
        expected = original(ids, use_cache=False).logits
        actual = AutoModelForCausalLM.from_pretrained(made.path)(ids, use_cache=False).logits
    assert torch.equal(actual, expected)


def test_an_identity_plan_is_the_parent(tmp_path: Path, llama: Path, base_of: Callable[..., Any]) -> None:
    base = base_of(llama)
    whole = merge.merge(tmp_path / "results", Recipe("merge", {"method": "dus", "drop": 2}, (base.id,)))
    assert whole.facts["seams"] == []
    assert whole.digest == base.digest
    assert all((whole.path / f.name).samefile(f) for f in base.path.glob("*.safetensors"))


def test_unmoved_layers_are_links_and_the_rest_are_copies(
    tmp_path: Path, llama: Path, base_of: Callable[..., Any]
) -> None:
    base = base_of(llama)
    made = merge.merge(tmp_path / "results", Recipe("merge", {"method": "dus", "drop": 1}, (base.id,)))
    linked = [n for n in range(1, 9) if (made.path / f"model-{n:05d}-of-00008.safetensors").stat().st_nlink > 1]
    assert linked == [1, 2, 3, 4, 8]  # embedding, layers 0 to 2, norm and head
    assert all(f.stat().st_mode & 0o777 == 0o444 for f in made.path.iterdir())


def test_where_nothing_can_be_linked_it_is_copied(
    tmp_path: Path, llama: Path, base_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    base = base_of(llama)
    monkeypatch.setattr(os, "link", refuse)
    made = merge.merge(tmp_path / "results", Recipe("merge", {"method": "dus", "drop": 1}, (base.id,)))
    assert all(f.stat().st_nlink == 1 for f in made.path.glob("*.safetensors"))
    checkpoint.verify(made)


def test_a_merge_of_a_merge(tmp_path: Path, llama: Path, base_of: Callable[..., Any]) -> None:
    root, base = tmp_path / "results", base_of(llama)
    once = merge.merge(root, Recipe("merge", {"method": "dus", "drop": 1}, (base.id,)))
    twice = merge.merge(root, Recipe("merge", {"method": "dus", "drop": 4}, (once.id,)))
    ours, expected = load(twice.path), reference(load(base.path), [0, 1, 2, 3])
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())


def test_two_processes_write_the_same_bytes(tmp_path: Path, llama: Path, base_of: Callable[..., Any]) -> None:
    base = base_of(llama)
    recipe = Recipe("merge", {"method": "interlocked", "drop": 1, "group": 1}, (base.id,))
    manifests = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-m", "strata", "--root", str(tmp_path / "results"), "merge", recipe.canonical]
        subprocess.run(command, check=True, env=env)
        manifests.add((tmp_path / "results" / "checkpoints" / recipe.id / "manifest.json").read_bytes())
        store.reject(tmp_path / "results", recipe.id, "again")
    assert len(manifests) == 1


def test_no_torch_numpy_or_pandas_is_imported(tmp_path: Path, llama: Path, base_of: Callable[..., Any]) -> None:
    base = base_of(llama)
    recipe = Recipe("merge", {"method": "dus", "drop": 1}, (base.id,))
    script = (
        "import sys; from pathlib import Path; from strata import merge, plan, recipe, store, tensors, experiment\n"
        f"merge.merge(Path({str(tmp_path / 'results')!r}), recipe.Recipe.from_json({recipe.canonical!r}))\n"
        "print([name for name in ('torch', 'numpy', 'pandas', 'transformers') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=env, check=True).stdout
        == "[]\n"
    )


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="not in the store"):
        merge.merge(tmp_path / "results", Recipe("merge", {"method": "dus", "drop": 1}, ("init-" + "0" * 32,)))
