"""What is measured of each layer is what a plain reference says of its input and output, before the final norm."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from conftest import flip, read_json, tree_sha256
from models import SMALL, save_model
from strata import analyze, loading, store
from strata.errors import EvaluationError, StoreError
from strata.importance import least_important, read_importance
from strata.recipe import Recipe
from strata.sources import fetch

TEXTS = {
    "ant": "The ant walks over the field, slowly, and then it rests.",
    "bee": "A bee.",
    "cow": "Cows stand where the grass is, été comme hiver.",
    "dog": "This one is not read.",
}
PARAMETERS = {"documents": 3, "tokens": 20, "dtype": "float32", "device": "cpu"}


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A small model in float32 whose final norm turns the states, and with further edits."""

    def build(edit: Callable[[Any], object] = lambda model: None, **sizes: Any) -> Path:
        folder = save_model(tmp_path / "model", dtype=torch.float32, **sizes)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.model.norm.weight.copy_(torch.linspace(-1, 2, 32))  # all ones, it would keep every direction
            edit(model)
        model.save_pretrained(folder)
        return folder

    return build


@pytest.fixture
def analyzed(tmp_path: Path) -> Callable[..., store.Object]:
    """Fetch the texts and analyze a checkpoint of `tmp_path/results`."""

    def run(checkpoint: store.Object, texts: dict[str, str] = TEXTS, **parameters: Any) -> store.Object:
        root, folder = tmp_path / "results", tmp_path / "texts"
        folder.mkdir(exist_ok=True)
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text)
        source = fetch(root, Recipe("fetch", {"sha256": tree_sha256(folder)}), str(folder))
        return analyze.analyze(root, Recipe("analyze", PARAMETERS | parameters, (checkpoint.id,), (source.id,)))

    return run


def reference(model: Any, documents: list[list[int]]) -> tuple[list[float], list[list[float]]]:
    """By hand: one document, one pair of layers, one token at a time, of `output_hidden_states`."""
    runs = []
    for ids in documents:
        with torch.no_grad():
            out = model(torch.tensor([ids]), output_hidden_states=True)
        runs.append([state[0].tolist() for state in out.hidden_states])
    depth = len(runs[0]) - 1

    def cosine(a: list[float], b: list[float]) -> float:
        dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
        return max(-1.0, min(1.0, dot / (math.hypot(*a) * math.hypot(*b))))

    influence, angular = [], []
    for layer in range(depth):
        cosines = [cosine(*pair) for run in runs for pair in zip(run[layer], run[layer + 1], strict=True)]
        influence.append(1 - math.fsum(cosines) / len(cosines))
        angular.append(
            [
                math.fsum(math.acos(cosine(run[layer][-1], run[end][-1])) / math.pi for run in runs) / len(runs)
                for end in range(layer + 1, depth + 1)
            ]
        )
    return influence, angular


def close(got: Sequence[float], expected: Sequence[float]) -> bool:
    return list(got) == pytest.approx(list(expected), abs=1e-6)


def test_measures_are_those_of_a_plain_reference(
    base_of: Callable[..., Any], edited: Callable[..., Path], analyzed: Callable[..., store.Object]
) -> None:
    checkpoint = base_of(edited())
    found = analyzed(checkpoint)
    measured = read_json(found.path / "importance.json")
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    documents = tokens_of(checkpoint)
    assert [len(ids) for ids in documents] == [20, 6, 20]

    normed, _ = reference(model, documents)
    model.model.norm = torch.nn.Identity()
    influence, angular = reference(model, documents)
    assert close(measured["block_influence"], influence)
    assert [len(row) for row in measured["angular_distance"]] == [4, 3, 2, 1]
    assert all(close(*rows) for rows in zip(measured["angular_distance"], angular, strict=True))
    # The case can tell: layers differ, and after the final norm the last one would be another.
    assert min(abs(a - b) for a in influence for b in influence if a != b) > 1e-4
    assert min(influence) > 1e-3
    assert close(measured["block_influence"][:3], normed[:3])
    assert abs(measured["block_influence"][3] - normed[3]) > 0.1

    assert (measured["tokens"], measured["documents"]) == (46, 3)
    assert found.facts == {"checkpoint_digest": checkpoint.digest, "layers": 4, "tokens": 46, "documents": 3}
    assert found.path.parent.name == "analyses"
    assert read_importance(found).layers == 4


def tokens_of(checkpoint: store.Object) -> list[list[int]]:
    """The first 20 bytes of each text as tokens of the byte-level vocabulary (GPT-2's `bytes_to_unicode`)."""
    vocabulary = read_json(checkpoint.path / "tokenizer.json")["model"]["vocab"]
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [[vocabulary[letters[byte]] for byte in TEXTS[name].encode()][:20] for name in ("ant", "bee", "cow")]


@pytest.mark.parametrize("family", [family for family in SMALL if family != "llama"])
def test_every_family_is_measured_before_its_final_norm(
    tmp_path: Path, base_of: Callable[..., Any], analyzed: Callable[..., store.Object], family: str
) -> None:
    checkpoint = base_of(save_model(tmp_path / "model", family, dtype=torch.float32))
    measured = read_importance(analyzed(checkpoint))
    model, documents = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32), tokens_of(checkpoint)
    assert not close(measured.block_influence, reference(model, documents)[0])
    setattr(model.base_model, "ln_f" if family == "gpt2" else "norm", torch.nn.Identity())
    influence, angular = reference(model, documents)
    assert close(measured.block_influence, influence)
    assert all(close(*rows) for rows in zip(measured.angular_distance, angular, strict=True))


def test_layers_that_do_nothing_have_no_influence_and_go_first(
    base_of: Callable[..., Any], edited: Callable[..., Path], analyzed: Callable[..., store.Object]
) -> None:
    def empty(model: Any) -> None:
        for layer in (1, 2):
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
            model.model.layers[layer].mlp.down_proj.weight.zero_()

    measured = read_importance(analyzed(base_of(edited(empty))))
    influence, angular = measured.block_influence, measured.angular_distance
    assert influence[1] == influence[2] == 0  # exactly, so that a tie is one
    assert angular[1][:2] == (0, 0)
    assert angular[2][0] == 0
    assert min(influence[0], influence[3]) > 1e-4
    assert least_important(measured, 1, "block_influence") == least_important(measured, 1, "angular_distance") == (2,)
    assert least_important(measured, 2, "block_influence") == least_important(measured, 2, "angular_distance") == (1, 2)


def test_small_angles_keep_their_digits_and_opposite_ones_are_pi() -> None:
    """The arccos of a cosine is 0 for the first of these; a state of zeros has cosine 0 with all others, as in torch."""
    pairs = torch.tensor([[[1, 0], [2, 2e-9]], [[3, 0], [-1, 0]], [[0.1, 0.7], [0.1, 0.7]], [[0, 0], [1, 2]]]).double()
    angles = analyze._angles(pairs[:, 0], pairs[:, 1]).tolist()
    assert angles == pytest.approx([1e-9, math.pi, 0, math.pi / 2], rel=1e-6, abs=0)


def test_two_runs_write_the_same_bytes(
    tmp_path: Path, llama: Path, base_of: Callable[..., Any], analyzed: Callable[..., store.Object]
) -> None:
    checkpoint = base_of(llama)
    first = analyzed(checkpoint, dtype="bfloat16")
    written = (first.path / "importance.json").read_bytes()
    assert all(value == float(f"{value:.9g}") for value in read_importance(first).block_influence)
    assert json.loads(written)["documents"] == 3
    store.reject(tmp_path / "results", first.id, "once more")
    second = analyzed(checkpoint, dtype="bfloat16")
    assert (second.path / "importance.json").read_bytes() == written
    assert (second.id, second.digest) == (first.id, first.digest)


def test_documents_of_one_token_are_passed_over_and_too_few_are_refused(
    base_of: Callable[..., Any], llama: Path, analyzed: Callable[..., store.Object]
) -> None:
    checkpoint, texts = base_of(llama), {"ant": "x", "bee": "yz", "cow": "zzz"}
    found = analyzed(checkpoint, texts, documents=2)
    assert (found.facts["tokens"], found.facts["documents"]) == (5, 2)
    with pytest.raises(EvaluationError, match="too few documents") as caught:
        analyzed(checkpoint, texts)
    assert "3 of at least 2 tokens" in str(caught.value)
    assert "got:      2 of 3" in str(caught.value)


def test_more_tokens_than_positions_are_refused(
    base_of: Callable[..., Any], llama: Path, analyzed: Callable[..., store.Object]
) -> None:
    with pytest.raises(EvaluationError, match="beyond the model's positions") as caught:
        analyzed(base_of(llama), tokens=257)
    assert "256 or less" in str(caught.value)


def test_a_model_that_overflows_is_told_as_such(
    base_of: Callable[..., Any], edited: Callable[..., Path], analyzed: Callable[..., store.Object]
) -> None:
    checkpoint = base_of(edited(lambda model: model.model.embed_tokens.weight.mul_(1e8)))
    with pytest.raises(EvaluationError, match="not numbers"):
        analyzed(checkpoint, dtype="float16")


def test_a_checkpoint_whose_bytes_have_changed_is_refused(
    tmp_path: Path, base_of: Callable[..., Any], llama: Path, analyzed: Callable[..., store.Object]
) -> None:
    checkpoint = base_of(llama)
    flip(sorted(checkpoint.path.glob("*.safetensors"))[2], -1)
    with pytest.raises(StoreError, match="damaged") as caught:
        analyzed(checkpoint)
    assert "model.layers.1." in str(caught.value)
    assert not (tmp_path / "results" / "analyses" / "importance.json").exists()
    assert not list((tmp_path / "results" / "analyses").glob("analyze-*"))


def test_a_model_that_loads_with_another_depth_is_refused(base_of: Callable[..., Any], llama: Path) -> None:
    """transformers runs as many layers as config.json says, whatever the file holds, without an error."""
    checkpoint = base_of(llama)
    config = checkpoint.path / "config.json"
    config.chmod(0o644)
    config.write_text(json.dumps({**read_json(config), "num_hidden_layers": 3}))
    with pytest.raises(EvaluationError, match="not the checkpoint") as caught:
        loading.load_model(checkpoint, "float32", "cpu")
    assert "4 layers" in str(caught.value)
    assert "got:      3 layers" in str(caught.value)


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loading.check_device("cpu")
    with pytest.raises(EvaluationError, match="no GPU"):
        loading.check_device("cuda")
