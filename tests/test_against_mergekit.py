"""mergekit as an oracle: the same tensors for random files, copies byte for byte. Needs `make peer`."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import REPOSITORY
from models import save_model
from strata.methods import make_plan
from strata.publish.rebuild import to_mergekit
from strata.standalone import merge_file
from strata.tensors import read_header

pytestmark = pytest.mark.slow
PEER = REPOSITORY / ".venv-mergekit" / "bin" / "python"
COUNT = 50
Tensors = dict[str, tuple[Any, bytes]]
RUN = """
import json, sys, yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
options = MergeOptions(lazy_unpickle=True, copy_tokenizer=False, write_model_card=False, quiet=True)
for file, out in json.loads(sys.argv[1]):
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(open(file))), out, options)
"""
# Families whose depth mergekit can change with this release of transformers: those without per-layer lists.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}), "tied": ("llama", {"tie_word_embeddings": True}), "mistral": ("mistral", {}), "phi3": ("phi3", {}),
}  # fmt: skip


def random_file(number: int, models: Path) -> dict[str, Any]:
    """Up to five slices of two models of one family; every other one scales what it copies, or some of it."""
    draw = random.Random(number)
    family = draw.choice(list(FAMILIES))
    slices = []
    for _ in range(draw.randint(1, 5)):
        start = draw.randint(0, 3)
        source: dict[str, Any] = {
            "model": str(models / f"{family}-{draw.choice('ab')}"), "layer_range": [start, draw.randint(start + 1, 4)],
        }  # fmt: skip
        if draw.random() < 0.5:
            scales = [
                {"filter": "o_proj", "value": 0.0},
                {"filter": "down_proj", "value": draw.random()},
                {"value": 1.0},
            ]
            source["parameters"] = {"scale": draw.choice([0.5, draw.random(), [0.2, 1.4], scales])}
        slices.append({"sources": [source]})
    return {"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"}


def tensors(folder: Path) -> Tensors:
    found = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        for tensor in read_header(file).tensors:
            found[tensor.name] = (tensor.spec, data[tensor.begin : tensor.end])
    return found


def random_setting(draw: random.Random) -> Any:
    """A number, a gradient, or either by a part of the tensor's name."""
    value = draw.choice([round(draw.random(), 3), [round(draw.random(), 3) for _ in range(draw.randint(1, 5))]])
    if draw.random() < 0.5:
        return value
    parts = [
        {"filter": draw.choice(["self_attn", "mlp", "o_proj", "layers.1.", "embed"]), "value": value} for _ in "12"
    ]
    return [*parts, {"value": round(draw.random(), 3)}]


def random_average(number: int, models: Path) -> dict[str, Any]:
    """`linear` or `slerp` of two models, whole or in slices of other heights, with parameters at every place."""
    draw = random.Random(1000 + number)
    method, name = draw.choice([("linear", "weight"), ("slerp", "t")])
    family = draw.choice(list(FAMILIES))
    both = [str(models / f"{family}-{letter}") for letter in "ab"]
    slices = []
    for _ in range(draw.randint(1, 3)):
        depth = draw.randint(1, 4)
        starts = [draw.randint(0, 4 - depth) for _ in both]
        sources = [{"model": m, "layer_range": [s, s + depth]} for m, s in zip(both, starts, strict=True)]
        if method == "linear" and draw.random() < 0.5:
            sources[0]["parameters"] = {name: random_setting(draw)}
        slices.append(
            {"sources": sources} | ({"parameters": {name: random_setting(draw)}} if draw.random() < 0.5 else {})
        )
    parts = {"slices": slices} if draw.random() < 0.7 else {"models": [{"model": model} for model in both]}
    return {
        **parts, "merge_method": method, "base_model": draw.choice(both), "dtype": "bfloat16",
        "parameters": {name: random_setting(draw)} | ({"normalize": False} if draw.random() < 0.3 else {}),
    }  # fmt: skip


def saved_models(folder: Path) -> None:
    if not PEER.is_file():
        pytest.skip("mergekit is not installed: run `make peer`")
    for name, (family, changes) in FAMILIES.items():
        for seed, letter in enumerate("ab"):
            save_model(folder / f"{name}-{letter}", family, seed=seed, **changes)


def run_both(folder: Path, files: list[dict[str, Any]]) -> Iterator[tuple[str, Tensors, Tensors]]:
    """Each file's text, and the tensors that Strata and mergekit make of it."""
    saved_models(folder)
    pairs = []
    for number, content in enumerate(files):
        file = folder / f"{number}.yaml"
        file.write_text(yaml.safe_dump(content))
        pairs.append((str(file), str(folder / f"theirs-{number}")))
        merge_file(file, folder / f"ours-{number}", folder / "results", [])
    run = subprocess.run(
        [PEER, "-c", RUN, json.dumps(pairs)], capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"}
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for file, theirs in pairs:
        yield Path(file).read_text(), tensors(Path(theirs.replace("theirs", "ours"))), tensors(Path(theirs))


def test_fifty_random_passthrough_files_give_mergekits_bytes(tmp_path: Path) -> None:
    for text, ours, theirs in run_both(tmp_path, [random_file(number, tmp_path) for number in range(COUNT)]):
        assert ours == theirs, text


def test_the_file_of_a_plan_gives_mergekits_tensors(tmp_path: Path) -> None:
    """As a model card has it: that Strata makes of it what the plan makes is tested beside, without mergekit."""
    methods: list[dict[str, Any]] = [
        {"method": "dus", "drop": 1}, {"method": "interlocked", "drop": 1, "group": 1},
        {"method": "block_expansion", "groups": 2, "copies": 1, "position": "even"},
        {"method": "linear", "weights": [0.25, 0.75]}, {"method": "slerp", "weights": [0.7, 0.3]},
    ]  # fmt: skip
    names = [str(tmp_path / f"llama-{letter}") for letter in "ab"]
    files = []
    for parameters in methods:
        count = 2 if "weights" in parameters else 1
        file = to_mergekit(make_plan(parameters, [4] * count), names[:count], [4] * count, "llama", "bfloat16")
        assert isinstance(file, dict)
        files.append(file)
    for text, ours, theirs in run_both(tmp_path, files):
        assert ours.keys() == theirs.keys(), text
        for name, (spec, data) in ours.items():
            assert spec == theirs[name][0]
            one, other = (torch.frombuffer(bytearray(b), dtype=torch.bfloat16).float() for b in (data, theirs[name][1]))
            is_copy = "passthrough" in text
            assert torch.equal(one, other) if is_copy else torch.allclose(one, other, rtol=2**-7, atol=1e-6), name


def test_fifty_random_averages_are_mergekits_within_the_rounding(tmp_path: Path) -> None:
    for text, ours, theirs in run_both(tmp_path, [random_average(number, tmp_path) for number in range(COUNT)]):
        assert ours.keys() == theirs.keys(), text
        for name, (spec, data) in ours.items():
            assert spec == theirs[name][0]
            one, other = (torch.frombuffer(bytearray(b), dtype=torch.bfloat16).float() for b in (data, theirs[name][1]))
            assert torch.allclose(one, other, rtol=2**-7, atol=1e-6), f"{name}\n{text}"
