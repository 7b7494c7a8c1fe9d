"""mergekit as an oracle: the same tensors, byte for byte, for random passthrough files. Needs `make peer`."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import REPOSITORY
from models import save_model
from strata.standalone import merge_file
from strata.tensors import read_header

pytestmark = pytest.mark.slow
PEER = REPOSITORY / ".venv-mergekit" / "bin" / "python"
COUNT = 50
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


def tensors(folder: Path) -> dict[str, tuple[Any, bytes]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        for tensor in read_header(file).tensors:
            found[tensor.name] = (tensor.spec, data[tensor.begin : tensor.end])
    return found


def test_fifty_random_passthrough_files_give_mergekits_bytes(tmp_path: Path) -> None:
    if not PEER.is_file():
        pytest.skip("mergekit is not installed: run `make peer`")
    for name, (family, changes) in FAMILIES.items():
        for seed, letter in enumerate("ab"):
            save_model(tmp_path / f"{name}-{letter}", family, seed=seed, **changes)
    pairs = []
    for number in range(COUNT):
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump(random_file(number, tmp_path)))
        pairs.append((str(file), str(tmp_path / f"theirs-{number}")))
        merge_file(file, tmp_path / f"ours-{number}", tmp_path / "results", [])
    run = subprocess.run(
        [PEER, "-c", RUN, json.dumps(pairs)], capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"}
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for number in range(COUNT):
        ours, theirs = tensors(tmp_path / f"ours-{number}"), tensors(tmp_path / f"theirs-{number}")
        assert ours == theirs, (tmp_path / f"{number}.yaml").read_text()
