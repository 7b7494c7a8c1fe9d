"""Bytes of a restacked checkpoint: which way each takes, what is refused before the first, and that they are the same."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import store_model, strata
from models import save_model
from strata import checkpoint, merge, restack, store, tensors
from strata.errors import CheckpointError, SpaceError
from strata.recipe import Recipe

STACK = {"method": "dus", "drop": 0}
MIX = {
    "method": "layers", "layers": [["copy", [1.0], [[0, 0]]], ["slerp", [0.5, 0.5], [[0, 1], [0, 2]]], ["zero", [1.0], [[0, 3]]]],
    "embed_from": 0, "norm_from": 0, "head_from": 0,
}  # fmt: skip


def merged(root: Path, parameters: dict[str, Any], *parents: Any) -> Any:
    return merge.merge(root, Recipe("merge", parameters, tuple(parent.id for parent in parents)))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.mark.parametrize("code", ["EXDEV", "EINVAL", "ENOSYS", "EPERM", "EACCES", "EMLINK", "EOPNOTSUPP"])
def test_where_a_link_is_refused_the_shard_is_copied(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(getattr(errno, code), code)

    base = store_model(root, llama)
    monkeypatch.setattr(os, "link", refuse)
    made = merged(root, STACK, base)
    assert all(file.stat().st_nlink == 1 for file in made.path.glob("*.safetensors"))
    checkpoint.verify(made)


def test_a_link_that_fails_for_another_reason_is_an_error(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    base = store_model(root, llama)
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(SpaceError, match="full"):
        merged(root, STACK, base)
    assert not list((root / "tmp").iterdir())


@pytest.mark.parametrize("kernel", ["copies", "refuses", "copies a little"])
def test_ranges_come_out_the_same_whatever_the_kernel_does(
    llama: Path, root: Path, monkeypatch: pytest.MonkeyPatch, kernel: str
) -> None:
    real = os.copy_file_range
    calls = []

    def copy(source: int, target: int, count: int, begin: int, offset: int) -> int:
        calls.append(count)
        if kernel == "refuses":
            raise OSError(errno.EXDEV, "another file system")
        return real(source, target, min(count, 1_000) if kernel == "copies a little" else count, begin, offset)

    base = store_model(root, llama)
    monkeypatch.setattr(os, "copy_file_range", copy)
    checkpoint.verify(merged(root, STACK, base))
    # Layers 4 to 7 are layers 0 to 3 under other names: one range each, since tensors keep their order.
    assert len(calls) == (4 if kernel != "copies a little" else len(calls)) > 0


def test_data_begins_at_a_multiple_of_4096_so_that_blocks_can_be_shared(llama: Path, root: Path) -> None:
    made = merged(root, MIX, store_model(root, llama))
    opened = checkpoint.open_checkpoint(made)
    assert {header.length % tensors.ALIGNMENT for header in opened.headers.values()} == {0}
    assert all(header.tensors[0].begin == header.length for header in opened.headers.values())


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An XFS file system with reflinks, on a loop device."""
    if os.geteuid() or not shutil.which("mkfs.xfs"):
        pytest.skip("needs root and mkfs.xfs (xfsprogs)")
    folder = tmp_path_factory.mktemp("xfs")
    image, place = folder / "image", folder / "mounted"
    with image.open("wb") as file:
        file.truncate(400 << 20)
    place.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True, capture_output=True)
    mounted = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a loop device here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def used(place: Path) -> int:
    os.sync()
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


LARGE = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8}


def test_where_the_file_system_can_share_blocks_a_copy_takes_none(
    xfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = store_model(xfs / "results", save_model(tmp_path / "m", **LARGE))

    def refuse(*_: object) -> None:
        raise OSError(errno.EMLINK, "too many links")

    monkeypatch.setattr(os, "link", refuse)
    before = used(xfs)
    made = merged(xfs / "results", STACK, base)
    assert made.facts["bytes"] > 30_000_000
    assert used(xfs) - before < made.facts["bytes"] // 10
    checkpoint.verify(made)
    changed = next(made.path.glob("model-00003*"))
    assert all(file.stat().st_nlink == 1 for file in made.path.iterdir()), changed


def test_to_another_file_system_it_is_copied(xfs: Path, tmp_path: Path) -> None:
    save_model(xfs / "model")
    (tmp_path / "merge.yaml").write_text(
        f"merge_method: passthrough\nslices:\n- sources: [{{model: {xfs / 'model'}, layer_range: [0, 4]}}]\n"
    )
    assert strata(tmp_path, "merge", "merge.yaml", "out").returncode == 0
    weights = {
        name: tensor for file in (tmp_path / "out").glob("*.safetensors") for name, tensor in _load(file).items()
    }
    expected = _load(xfs / "model" / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())


def _load(file: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(file))


SLICES = {"method": "slices", "slices": [[0, 0, 2], [1, 2, 4]], "embed_from": 0, "norm_from": 1, "head_from": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 64}, "hidden_size 64"),
        ({"vocab_size": 280}, "vocab_size 280"),
        ({"rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}}, "rope_parameters"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
        ({"attention_bias": True}, "attention_bias"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"family": "mistral"}, "model_type mistral"),
        ({"dtype": torch.float32}, "several dtypes"),
    ],
)
def test_parents_that_do_not_fit_are_refused_before_a_byte_is_written(
    llama: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    base, other = store_model(root, llama), store_model(root, save_model(tmp_path / "other", **change))
    monkeypatch.setattr(restack, "write_shard", lambda *_: pytest.fail("a shard was written"))
    monkeypatch.setattr(os, "link", lambda *_: pytest.fail("a shard was linked"))
    with pytest.raises(CheckpointError, match=message):
        merged(root, SLICES, base, other)
    assert not list((root / "tmp").iterdir())
    assert len(list((root / "checkpoints").iterdir())) == 4  # two parents, each with its manifest copy


def test_what_says_nothing_of_the_layers_may_differ(llama: Path, root: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=8, max_position_embeddings=128, eos_token_id=3, use_cache=False)
    made = merged(root, SLICES, store_model(root, llama), store_model(root, other))
    assert json.loads((made.path / "config.json").read_text())["eos_token_id"] == 257  # the embedding's parent lends it


def test_a_default_that_one_config_leaves_out_is_no_difference(llama: Path, root: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=8)
    config = json.loads((other / "config.json").read_text())
    assert config.pop("attention_bias") is False
    (other / "config.json").write_text(json.dumps(config))
    merged(root, SLICES, store_model(root, llama), store_model(root, other))


def test_layers_of_two_kinds_are_not_averaged(root: Path, tmp_path: Path) -> None:
    base = store_model(root, save_model(tmp_path / "m", "qwen3_moe"))  # every other layer is a mixture of experts
    parameters = {**MIX, "layers": [["linear", [0.5, 0.5], [[0, 0], [0, 1]]]]}
    with pytest.raises(CheckpointError, match=r"different kinds .*"):
        merged(root, parameters, base)


@pytest.mark.parametrize("family", ["gemma2", "smollm3"])
def test_a_sliding_layer_and_a_full_one_are_not_averaged(root: Path, tmp_path: Path, family: str) -> None:
    base = store_model(root, save_model(tmp_path / "m", family))
    parameters = {**MIX, "layers": [["slerp", [0.5, 0.5], [[0, 0], [0, 1]]]]}
    with pytest.raises(CheckpointError, match="layers of different kinds are mixed") as caught:
        merged(root, parameters, base)
    assert "output layer 0" in str(caught.value)


def test_whole_models_whose_layers_are_of_other_kinds_are_not_averaged(root: Path, tmp_path: Path) -> None:
    base = store_model(root, save_model(tmp_path / "m", "gemma2"))
    odd, even = (merged(root, {"method": "prune", "range": [n, n + 1]}, base) for n in (0, 3))
    with pytest.raises(CheckpointError, match="layers of different kinds are mixed"):
        merged(root, {"method": "linear", "weights": [0.5, 0.5]}, odd, even)


def test_a_gpt2_whose_layers_know_their_number_is_mixed_in_place_only(root: Path, tmp_path: Path) -> None:
    base = store_model(root, save_model(tmp_path / "m", "gpt2", scale_attn_by_inverse_layer_idx=True))
    for sources in ([[0, 0], [0, 1]], [[0, 1], [0, 0]]):
        with pytest.raises(CheckpointError, match="its number matters"):
            merged(root, {**MIX, "layers": [["linear", [0.5, 0.5], sources]]}, base)


def as_before_transformers_5(folder: Path, **changes: Any) -> Path:
    """Write a saved model's config as transformers 4 did: rotary positions under their own keys."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config.pop("rope_parameters")
    file.write_text(json.dumps(config | {"rope_theta": 10000.0} | changes))
    return folder


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma2", "smollm3"])
@pytest.mark.parametrize(
    "change",
    [{"rope_theta": 500000.0}, {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}],
    ids=["theta", "scaling"],
)
def test_rotary_positions_that_differ_are_refused_however_they_are_written(
    root: Path, tmp_path: Path, family: str, change: dict[str, Any]
) -> None:
    base = store_model(root, as_before_transformers_5(save_model(tmp_path / "a", family)))
    other = store_model(root, as_before_transformers_5(save_model(tmp_path / "b", family, seed=8), **change))
    with pytest.raises(CheckpointError, match="do not fit together") as caught:
        merged(root, SLICES, base, other)
    assert "rope" in str(caught.value)


@pytest.mark.parametrize(("kind", "fits"), [("dynamic", False), ("yarn", False), ("linear", True)])
def test_the_longest_sequence_may_differ_where_positions_do_not_depend_on_it(
    root: Path, tmp_path: Path, kind: str, fits: bool
) -> None:
    rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 10000.0}
    base, other = (
        store_model(
            root, save_model(tmp_path / str(length), max_position_embeddings=length, rope_parameters=dict(rope))
        )
        for length in (128, 256)
    )
    if fits:
        merged(root, SLICES, base, other)
    else:
        with pytest.raises(CheckpointError, match="max_position_embeddings"):
            merged(root, SLICES, base, other)


def test_notes_in_a_config_are_no_difference(llama: Path, root: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=8)
    config = json.loads((other / "config.json").read_text())
    notes = {"_name_or_path": "x/y", "unsloth_version": "2026.1", "_attn_implementation_autoset": True}
    (other / "config.json").write_text(json.dumps(config | notes))
    merged(root, SLICES, store_model(root, llama), store_model(root, other))


def test_the_head_of_tied_models_is_the_embedding_and_the_plan_says_so(root: Path, tmp_path: Path) -> None:
    base, other = (
        store_model(root, save_model(tmp_path / str(seed), seed=seed, tie_word_embeddings=True)) for seed in (7, 8)
    )
    made = merged(root, SLICES, base, other)
    assert (made.facts["plan"]["embed_from"], made.facts["plan"]["norm_from"], made.facts["plan"]["head_from"]) == (
        0,
        1,
        0,
    )


def test_an_average_of_two_layers_of_one_model_is_their_average(llama: Path, root: Path) -> None:
    base = store_model(root, llama)
    parameters = {**MIX, "layers": [["linear", [0.5, 0.5], [[0, 1], [0, 2]]]]}
    made = merged(root, parameters, base)
    ours = _load(made.path / "model-00002-of-00003.safetensors")["model.layers.0.mlp.up_proj.weight"]
    one, two = (
        _load(base.path / f"model-{n:05d}-of-00006.safetensors")[f"model.layers.{n - 2}.mlp.up_proj.weight"]
        for n in (3, 4)
    )
    assert torch.equal(ours, ((one.float() + two.float()) / 2).bfloat16())
    assert not torch.equal(ours, one) and not torch.equal(ours, two)


def test_two_processes_with_other_hash_seeds_write_the_same_bytes(llama: Path, root: Path) -> None:
    base = store_model(root, llama)
    recipe = Recipe("merge", MIX, (base.id,))
    manifests = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed}
        command = [sys.executable, "-m", "strata", "--root", str(root), "merge", recipe.canonical]
        subprocess.run(command, check=True, env=env)
        manifests.add((root / "checkpoints" / recipe.id / "manifest.json").read_bytes())
        store.reject(root, recipe.id, "again")
    assert len(manifests) == 1
