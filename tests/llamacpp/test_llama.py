"""What llama.cpp makes of our files: the same tokens, the same logits, smaller files, answers. Needs `make llama`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers_of import KINDS, save_tokenizer_of
from transformers import AutoModelForCausalLM

from conftest import store_model, strata, write_experiment
from models import save_model
from strata import cli, experiment, store, talk
from strata.errors import CheckpointError, StoreError
from strata.llamacpp import convert as converter
from strata.llamacpp import library
from strata.llamacpp.convert import FILE, convert, open_tokenizer
from strata.llamacpp.library import PROBES, check_tokens, opened
from strata.llamacpp.quantize import quantize
from strata.recipe import Recipe
from strata.store import Object

pytestmark = pytest.mark.slow
# Rows of a multiple of 256 fit every type.
SIZE = {
    "hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 700,
    "dtype": torch.float32, "noise": 0.03, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "tied": ("llama", {"tie_word_embeddings": True}),
    "wide heads": ("llama", {"head_dim": 96}),
    "as many groups as heads": ("llama", {"num_key_value_heads": 4}),
    "biases of attention": ("llama", {"attention_bias": True}),
    "biases of the MLP": ("llama", {"mlp_bias": True}),
    "another base of the rotation": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    "positions scaled": ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}}),
    "Llama 3's positions": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": 64}),
    "mistral without a window": ("mistral", {"sliding_window": None}),
}


def made_of(tmp_path: Path, kind: str = "smollm", family: str = "llama", **changes: Any) -> tuple[Object, Object]:
    """A checkpoint and its GGUF file, of a model with a tokenizer of this kind."""
    model = save_model(tmp_path / "model", family, **{**SIZE, **changes})
    save_tokenizer_of(model, kind)
    checkpoint = store_model(tmp_path / "results", model)
    return checkpoint, convert(tmp_path / "results", Recipe("gguf", {"type": "f16"}, (checkpoint.id,)))


def logits(file: Path, ids: list[int]) -> Any:
    with opened(file, n_ctx=128, logits_all=True) as model:
        model.eval(ids)
        return torch.tensor(np.array(model.scores[: len(ids)]))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    family, changes = CONFIGS[name]
    checkpoint, gguf = made_of(tmp_path, family=family, **changes)
    ids = torch.randint(3, 600, (1, 60), generator=torch.Generator().manual_seed(1))
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path, dtype=torch.float32)
    with torch.no_grad():
        expected = model(ids).logits[0]
    found = logits(gguf.path / FILE, ids[0].tolist())
    assert gguf.facts["tokens_checked"] is True
    scale = expected.std()
    assert (found - expected).abs().max() < 0.02 * scale  # llama.cpp multiplies in float16
    assert (found.argmax(-1) == expected.argmax(-1)).float().mean() > 0.95


@pytest.mark.parametrize("name", ["Llama 3's positions", "positions scaled"])
def test_that_test_would_find_positions_left_alone(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as if nothing were scaled, the logits are far off: the comparison above has teeth."""
    plain = converter._rope({"rope_theta": CONFIGS[name][1]["rope_parameters"]["rope_theta"]})
    monkeypatch.setattr(converter, "_rope", lambda config: plain)
    with pytest.raises(AssertionError):
        test_logits_are_those_of_transformers(tmp_path, name)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_split_into_the_same_tokens(tmp_path: Path, kind: str) -> None:
    """The probes that every file is checked with, and texts that nobody thought of."""
    checkpoint, gguf = made_of(tmp_path, kind)
    tokenizer = open_tokenizer(checkpoint)
    with opened(gguf.path / FILE, vocab_only=True) as model:

        @given(st.text(st.characters(codec="utf-8"), max_size=40) | st.text("aé 1\n\t.,'<>/s", max_size=40))
        @settings(max_examples=300)
        def check(text: str) -> None:
            theirs = model.tokenize(text.encode(), add_bos=False, special=True)
            assert theirs == tokenizer(text, add_special_tokens=False).input_ids

        check()


def test_a_file_whose_tokens_differ_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from strata.llamacpp import vocabulary

    name = vocabulary._pre
    monkeypatch.setattr(vocabulary, "_pre", lambda rules, place: {"smollm": "gpt-2"}.get(name(rules, place), "smollm"))
    with pytest.raises(CheckpointError, match="splits a text into other tokens"):
        made_of(tmp_path, "smollm")
    assert not list((tmp_path / "results" / "gguf").glob("*"))


@pytest.mark.parametrize(("kind", "most", "share"), [("q8_0", 0.05, 0.6), ("q4_k_m", 0.4, 0.4), ("q2_k", 2.0, 0.3)])
def test_a_smaller_file_is_smaller_and_nearly_as_right(tmp_path: Path, kind: str, most: float, share: float) -> None:
    checkpoint, gguf = made_of(tmp_path, intermediate_size=1024)
    made = quantize(tmp_path / "results", Recipe("quantize", {"type": kind}, (checkpoint.id,), (gguf.id,)))
    ids = torch.randint(3, 600, (1, 60), generator=torch.Generator().manual_seed(1))[0].tolist()
    whole, smaller = logits(gguf.path / FILE, ids), logits(made.path / FILE, ids)
    assert 0 < (whole - smaller).abs().mean() / whole.std() < most
    assert (made.path / FILE).stat().st_size < share * (gguf.path / FILE).stat().st_size
    assert made.facts["type"] == kind and sum(made.facts["types"].values()) == gguf.facts["tensors"]
    assert made.facts["checkpoint_digest"] == checkpoint.digest


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    checkpoint, gguf = made_of(tmp_path)
    recipe = Recipe("quantize", {"type": "q4_k_m"}, (checkpoint.id,), (gguf.id,))
    made = quantize(tmp_path / "results", recipe)
    store.reject(tmp_path / "results", made.id, "to be made again")
    assert quantize(tmp_path / "results", recipe).digest == made.digest


def test_a_file_of_other_weights_is_made_anew(tmp_path: Path) -> None:
    """As after a training that went otherwise when its checkpoint was lost: the id is the same, the weights are not."""
    root = tmp_path / "results"
    checkpoint, gguf = made_of(tmp_path)
    smaller = quantize(root, Recipe("quantize", {"type": "q8_0"}, (checkpoint.id,), (gguf.id,)))
    manifest = json.loads((gguf.path / "manifest.json").read_bytes())
    manifest["facts"]["checkpoint_digest"] = "0" * 64
    manifest["seal"] = store.seal(manifest)
    (gguf.path / "manifest.json").chmod(0o644)
    (gguf.path / "manifest.json").write_bytes(store.encode(manifest))
    assert convert(root, gguf.recipe).facts["checkpoint_digest"] == checkpoint.digest
    assert len(list((root / "quarantine").glob(f"{gguf.id}*.txt"))) == 1
    assert quantize(root, smaller.recipe).digest == smaller.digest


def test_a_file_of_other_weights_is_not_made_smaller(tmp_path: Path) -> None:
    _, gguf = made_of(tmp_path / "a")
    other, _ = made_of(tmp_path / "b", seed=8)
    with pytest.raises(StoreError, match="other weights"):
        from strata.llamacpp.quantize import check_source

        check_source(gguf, other)


def test_what_is_no_gguf_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="does not load"), opened(tmp_path / "a.gguf"):
        pass


def test_probes_hold_what_tokenizers_tell_apart() -> None:
    assert any("\r\n" in text for text in PROBES) and any("１" in text or "½" in text for text in PROBES)  # noqa: RUF001
    assert check_tokens.__module__ == library.__name__


VARIANTS = """\
  base: {init: {source: m}}
  dus: {parent: base, merge: {method: dus, drop: 1}, gguf: [q8_0, f16], publish: {directory: out}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant with two GGUF files, built and published."""
    folder = tmp_path_factory.mktemp("run")
    model = save_model(folder / "model", **SIZE)
    save_tokenizer_of(model, "smollm")
    write_experiment(folder, model, VARIANTS, "[]")
    from conftest import snakemake

    done = snakemake(folder)
    assert done.returncode == 0, done.stdout
    return folder


def test_a_run_makes_the_files_and_publishes_them_with_the_card(run: Path) -> None:
    made = experiment.load([run / "config.yaml"]).variants["dus"]
    sizes = {}
    for job in made.ggufs:
        kind = job.recipe.parameters["type"].upper()
        file = run / "out" / f"dus-{kind}.gguf"
        assert file.read_bytes() == (store.require(run / "results", job.id).path / FILE).read_bytes()
        sizes[kind] = file.stat().st_size
    assert sizes["Q8_0"] < sizes["F16"]
    card = (run / "out" / "README.md").read_text()
    assert f"| dus-Q8_0.gguf | {sizes['Q8_0']:,} |" in card and "gguf: [q8_0, f16]" in card
    from strata.tensors import read_header

    assert read_header(next((run / "out").glob("*.safetensors"))).tensors


SAID = [
    {"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}, {"role": "user", "content": "Three?"},
]  # fmt: skip


def test_both_are_asked_with_the_same_tokens(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And with those that whoever takes the GGUF elsewhere asks with, by the template in it."""
    monkeypatch.chdir(run)
    made = experiment.load(["config.yaml"]).variants["dus"]
    found, (_, job) = store.require(Path("results"), made.job.id), made.ggufs
    tokenizer = open_tokenizer(found)
    text = tokenizer.apply_chat_template(SAID, add_generation_prompt=True, tokenize=False)
    expected = tokenizer(text, add_special_tokens=False).input_ids
    file = store.require(Path("results"), job.id).path / FILE
    asked: list[list[int]] = []
    with opened(file, n_ctx=128) as model:
        evaluate = model.eval
        monkeypatch.setattr(model, "eval", lambda tokens: (asked.append(list(tokens)), evaluate(tokens))[1])
        "".join(talk._by_llama(model, found, 128, talk.Style(tokens=1))(SAID))
        model.reset()
        model.create_chat_completion(SAID, max_tokens=1)
    assert asked[0] == asked[1] == expected


def test_a_conversation_that_a_file_cannot_hold_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    told: list[str] = []
    style = talk.Style(tokens=4, context=40)
    with talk.voice(Path("results"), experiment.load(["config.yaml"]), "dus", "f16", style) as answer:
        talk.converse(
            answer, ["Hi", "one two three four five six seven eight nine ten " * 3, "/reset", "Hi"], told.append
        )
    assert "longer than the model can read" in "".join(told) and "under 40 tokens" in "".join(told)


def test_redo_makes_the_files_again_too(run: Path) -> None:
    done = strata(run, "redo", "dus")
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.count("the same content as before") == 3  # the checkpoint and both files


def test_a_type_that_the_variant_does_not_have_is_told(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run)
    assert cli.main(["ask", "dus", "hello", "--gguf", "q2_k"]) == 2
    assert "q8_0, f16" in capsys.readouterr().err
