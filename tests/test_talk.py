"""A talk with a variant: asked with its template, answered as it comes, forgotten on demand, stopped by Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import build, strata, write_experiment
from models import save_model
from strata import chat, experiment, store, talk
from strata.errors import StoreError, UsageError
from strata.talk import Style, ask, converse, voice

TEMPLATE = (
    "{% for m in messages %}### {{ m.role | capitalize }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
GREEDY = Style(tokens=12, temperature=0.0)
VARIANTS = """\
  base: {init: {source: m}}
  dus: {parent: base, merge: {method: dus, drop: 1}}
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment whose model has a template as SOLAR's."""
    folder = tmp_path_factory.mktemp("talk")
    model = save_model(folder / "model", max_position_embeddings=128)
    (model / "chat_template.jinja").write_text(TEMPLATE)
    write_experiment(folder, model, VARIANTS, "[]")
    build(folder)
    return folder


@pytest.fixture
def run(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(built)
    return built


def speaking(style: Style = GREEDY, name: str = "dus") -> Any:
    return voice(Path("results"), experiment.load(["config.yaml"]), name, None, style)


def plainly(text: str, tokens: int) -> str:
    """What the model says to a prompt, in one call of transformers."""
    made = experiment.load(["config.yaml"]).variants["dus"]
    path = store.require(Path("results"), made.job.id).path
    tokenizer, model = (
        AutoTokenizer.from_pretrained(path),
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
    )
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))


def test_it_is_asked_with_its_template_and_answers_in_pieces(run: Path) -> None:
    pieces: list[str] = []
    with speaking() as answer:
        said = ask(answer, [{"role": "user", "content": "Hi"}], pieces.append)
    assert said == "".join(pieces) == plainly("### User:\nHi\n\n### Assistant:\n", 12)


def test_a_plain_text_goes_on_without_a_template(run: Path) -> None:
    with speaking() as answer:
        assert ask(answer, "Once upon", lambda _: None) == plainly("Once upon", 12)


def test_what_is_drawn_follows_from_the_seed(run: Path) -> None:
    said = []
    for seed in (1, 1, 2):
        with speaking(Style(tokens=12, temperature=1.0, seed=seed)) as answer:
            said.append(ask(answer, "Once upon", lambda _: None))
    assert said[0] == said[1] != said[2]


def recording(heard: list[Any]) -> Any:
    """An answer that keeps what it was asked."""

    def answer(said: Any) -> Iterator[str]:
        heard.append([dict(message) for message in said])
        yield "fi"
        yield "ne"

    return answer


def test_a_conversation_remembers_until_it_is_told_to_forget() -> None:
    heard: list[Any] = []
    told: list[str] = []
    converse(
        recording(heard),
        ["one", "", "two", "/help", "/reset", "three", "/quit", "four"],
        told.append,
        system="Be kind.",
    )
    system = {"role": "system", "content": "Be kind."}
    users = [{"role": "user", "content": word} for word in ("one", "two", "three")]
    fine = {"role": "assistant", "content": "fine"}
    assert heard == [[system, users[0]], [system, users[0], fine, users[1]], [system, users[2]]]
    assert "".join(told) == f"fine\nfine\n{talk.HELP}\nfine\n"


def test_ctrl_c_stops_an_answer_and_not_the_conversation(run: Path) -> None:
    before = threading.active_count()
    heard: list[str] = []

    def impatient(piece: str) -> None:
        heard.append(piece)
        raise KeyboardInterrupt

    with speaking(Style(tokens=100, temperature=0.0)) as answer:
        said = ask(answer, "Once upon", impatient)
        assert said == heard[0] and len(heard) == 1
        assert threading.active_count() == before  # the model has stopped too
        assert ask(answer, "Once upon", lambda _: None).startswith(said)


def test_a_conversation_that_is_too_long_is_told_and_goes_on(run: Path) -> None:
    told: list[str] = []
    with speaking() as answer:
        converse(answer, ["Hi", "x" * 200, "/reset", "Hi"], told.append)
    text = "".join(told)
    assert "longer than the model can read" in text and "/reset" in text
    assert text.startswith(first := text.split("\n")[0]) and text.rstrip("\n").endswith(first)


def test_a_first_question_that_is_too_long_is_an_error(run: Path) -> None:
    with speaking() as answer, pytest.raises(UsageError, match="under 128 tokens"):
        ask(answer, "x" * 200, lambda _: None)


def test_an_answer_ends_where_the_positions_do(run: Path) -> None:
    with speaking(Style(tokens=500, temperature=0.0)) as answer:
        assert ask(answer, "x" * 120, lambda _: None) == plainly("x" * 120, 8)


def test_a_failure_of_the_model_is_told_and_nobody_waits(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GenerationMixin

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory")

    with speaking() as answer:
        monkeypatch.setattr(GenerationMixin, "generate", broken)
        with pytest.raises(RuntimeError, match="no memory"):
            ask(answer, "Once upon", lambda _: None)


def test_an_answer_ends_at_each_token_that_training_ends_answers_with(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only at those of the checkpoint's generation config."""
    with speaking() as answer:
        whole = ask(answer, "Once upon", lambda _: None)
    monkeypatch.setattr(talk, "ends_of", lambda found: set(range(256)))  # every token but the special ones
    with speaking() as answer:
        assert len(ask(answer, "Once upon", lambda _: None)) <= 1 < len(whole)


def test_a_template_that_refuses_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = "{{ raise_exception('System role not supported') }}"
    with speaking() as answer:
        monkeypatch.setattr(chat, "own_template", lambda tokenizer: bad)
        with pytest.raises(UsageError, match="the model's chat template fails") as caught:
            ask(answer, [{"role": "system", "content": "Be kind."}], lambda _: None)
    assert "System role not supported" in str(caught.value)


def test_a_model_without_a_template_is_told_what_to_do(
    run: Path, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_experiment(tmp_path / "bare", llama, "  base: {init: {source: m}}\n", "[]")
    build(folder)
    monkeypatch.chdir(folder)
    with speaking(name="base") as answer:
        with pytest.raises(UsageError, match="no chat template") as caught:
            ask(answer, [{"role": "user", "content": "Hi"}], lambda _: None)
        assert "--plain" in str(caught.value)
        assert isinstance(ask(answer, "Hi", lambda _: None), str)


def test_commands_read_what_is_typed_or_piped(run: Path) -> None:
    import os
    import subprocess
    import sys

    from conftest import REPOSITORY

    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "workflow")}
    command = [sys.executable, "-m", "strata"]
    options = ["--tokens", "6", "--temperature", "0"]
    chat = subprocess.run(
        [*command, "chat", "dus", *options], input="Hi\n/reset\nHi\n", env=env, capture_output=True, text=True
    )
    asked = subprocess.run([*command, "ask", "dus", *options, "-"], input="Hi", env=env, capture_output=True, text=True)
    assert chat.returncode == asked.returncode == 0, chat.stderr + asked.stderr
    assert chat.stdout == asked.stdout * 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "duss", "Hi"], "did you mean dus?"),
        (["ask", "dus", " "], "nothing is asked"),
        (["ask", "dus", "Hi", "--tokens", "0"], "--tokens"),
        (["ask", "dus", "Hi", "--temperature", "-1"], "--temperature"),
        (["ask", "dus", "Hi", "--gguf", "q8_0"], "no such GGUF file"),
    ],
)
def test_what_cannot_be_asked_is_told(run: Path, arguments: list[str], said: str) -> None:
    done = strata(run, *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_a_variant_that_is_not_built_is_told(run: Path, tmp_path: Path) -> None:
    made = experiment.load(["config.yaml"])
    with pytest.raises(StoreError, match="not in the store"), voice(tmp_path, made, "dus", None, GREEDY):
        pass
