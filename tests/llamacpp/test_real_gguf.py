"""The default model's GGUF files against transformers: the same choices, nearly the same bits per byte, the same answer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from conftest import REPOSITORY, snakemake, strata
from strata import experiment, store
from strata.llamacpp.convert import FILE, open_tokenizer
from strata.llamacpp.library import opened
from strata.sources import FILES, fetch

pytestmark = pytest.mark.slow
PROMPTS = 50


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default base with files for llama.cpp, from nothing."""
    folder = tmp_path_factory.mktemp("real")
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    config["variants"] = {"base": {**config["variants"]["base"], "gguf": ["f16", "q8_0", "q4_k_m", "q2_k"]}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "suites": []}))
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout
    return folder


@pytest.fixture(scope="module")
def base(run: Path) -> tuple[Any, Any]:
    """The checkpoint's model in float32, and its tokenizer."""
    made = experiment.load([run / "config.yaml"]).variants["base"]
    found = store.require(run / "results", made.job.id)
    model = AutoModelForCausalLM.from_pretrained(found.path, dtype=torch.float32).eval()
    return model, open_tokenizer(found)


@pytest.fixture(scope="module")
def speeches(run: Path) -> list[str]:
    job = experiment.load([run / "config.yaml"]).sources["speeches-2010s"]
    fetched = fetch(run / "results", job.recipe, job.location)
    return [file.read_text() for file in sorted((fetched.path / FILES).rglob("*.txt"))]


def file_of(run: Path, kind: str) -> Path:
    made = experiment.load([run / "config.yaml"]).variants["base"]
    job = next(job for job in made.ggufs if job.recipe.parameters["type"] == kind)
    return store.require(run / "results", job.id).path / FILE


def test_in_f16_the_next_token_of_fifty_prompts_is_the_same(
    run: Path, base: tuple[Any, Any], speeches: list[str]
) -> None:
    """The prompts go in as text: llama.cpp splits them by the file's own tokenizer."""
    model, tokenizer = base
    prompts = [text[400 * n : 400 * n + 160] for text in speeches for n in range(1, 5)][:PROMPTS]
    assert len(prompts) == PROMPTS
    choices = []
    with opened(file_of(run, "f16"), n_ctx=512, logits_all=True) as gguf, torch.no_grad():
        for prompt in prompts:
            ids = tokenizer(prompt).input_ids
            theirs = gguf.tokenize(prompt.encode())
            assert theirs == ids
            gguf.reset()
            gguf.eval(theirs)
            choices.append(
                (int(model(torch.tensor([ids])).logits[0, -1].argmax()), int(gguf.scores[len(ids) - 1].argmax()))
            )
    assert [a for a, _ in choices] == [b for _, b in choices]
    assert len({a for a, _ in choices}) > 10  # no model that always says one thing


def bits_per_byte(tokenizer: Any, texts: list[str], logits: Callable[[list[int]], Any]) -> float:
    nats = size = 0.0
    for text in texts:
        start = text[:1200]
        ids = tokenizer(start).input_ids
        scores = torch.log_softmax(torch.as_tensor(logits(ids)[:-1]).double(), -1)
        nats -= float(scores[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum())
        size += len(start.encode())
    return nats / size / math.log(2)


@pytest.mark.parametrize(("kind", "most"), [("f16", 0.001), ("q8_0", 0.01), ("q4_k_m", 0.05), ("q2_k", 0.2)])
def test_bits_per_byte_of_a_smaller_file(
    run: Path, base: tuple[Any, Any], speeches: list[str], kind: str, most: float
) -> None:
    """Within 1 % in q8_0; the smaller the file, the worse."""
    model, tokenizer = base
    with torch.no_grad():
        exact = bits_per_byte(tokenizer, speeches, lambda ids: model(torch.tensor([ids])).logits[0])
    with opened(file_of(run, kind), n_ctx=1024, logits_all=True) as gguf:

        def logits(ids: list[int]) -> Any:
            gguf.reset()
            gguf.eval(ids)
            return np.array(gguf.scores[: len(ids)])

        found = bits_per_byte(tokenizer, speeches, logits)
    print(f"{kind}: {found:.5f} bits per byte, transformers {exact:.5f}, {found / exact - 1:+.3%}")
    assert abs(found / exact - 1) < most


@pytest.mark.parametrize("extra", [[], ["--gguf", "f16"], ["--gguf", "q8_0"]])
def test_asked_by_whichever_way_it_gives_the_same_answer(run: Path, extra: list[str]) -> None:
    done = strata(run, "ask", "base", "What is the capital of France?", "--temperature", "0", "--tokens", "20", *extra)
    assert (done.returncode, done.stdout) == (0, "The capital of France is Paris.\n"), done.stderr
