"""What is learnt of a conversation is its answers and their end, and a model is asked as it was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from models import save_tokenizer
from strata import chat
from strata.errors import TrainingError
from strata.rows import Conversation, Message

BEGIN, END = 256, 257  # ids of <s> and </s>
OWN = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}"
    "{% if message.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = Conversation(
    "row 1",
    (
        Message("user", "Name two animals.", "on land"), Message("assistant", "- ant\n\n- béé "),
        Message("user", "More?"), Message("assistant", "\n no "),
    ),
    1,
)  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path: Path) -> Callable[..., Any]:
    """The tests' byte-level tokenizer, with its file edited and a template of its own."""

    def build(edit: Callable[[dict[str, Any]], object] = lambda file: None, template: str | None = None) -> Any:
        save_tokenizer(tmp_path)
        file = tmp_path / "tokenizer.json"
        value = json.loads(file.read_text())
        edit(value)
        file.write_text(json.dumps(value))
        found = AutoTokenizer.from_pretrained(tmp_path)
        found.chat_template = template
        return found

    return build


def adds_begin(file: dict[str, Any]) -> None:
    """As Llama's and Mistral's do: <s> before every text."""
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [BEGIN], "tokens": ["<s>"]}}
    file["post_processor"] = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": special}


def trims_offsets(file: dict[str, Any]) -> None:
    """As Llama 3's does: offsets leave out the space around a token."""
    file["post_processor"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def merges(*tokens: str) -> Callable[[dict[str, Any]], None]:
    """Tokens of two letters more."""

    def edit(file: dict[str, Any]) -> None:
        for number, token in enumerate(tokens):
            file["model"]["vocab"][token] = 256 + number
            file["model"]["merges"].append([token[0], token[1:]])
        for added in file["added_tokens"]:
            added["id"] += len(tokens)

    return edit


def learnt(opened: chat.Chat, conversation: Conversation) -> str:
    (encoded,) = chat.encode(opened, [conversation])
    assert encoded.loss is not None
    return str(opened.tokenizer.decode(encoded.ids[encoded.loss == 1].tolist()))


WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nName two animals.\n\n### Input:\non land\n\n### Response:\n- ant\n\n- béé </s>"
    "\n\n### Instruction:\nMore?\n\n### Response:\n\n no </s>"
)
TEXTS = {
    "alpaca": WITH_INPUT,
    "solar": (
        "### User:\nName two animals.\n\non land\n\n### Assistant:\n- ant\n\n- béé </s>"
        "\n\n### User:\nMore?\n\n### Assistant:\n\n no </s>"
    ),
    "own": "<s>[user]Name two animals.\n\non land[assistant]- ant\n\n- béé </s>[user]More?[assistant]\n no </s>",
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("edit", [lambda file: None, trims_offsets])
def test_what_is_learnt_is_every_answer_with_its_end_and_nothing_else(
    tokenizer: Callable[..., Any], name: str, edit: Callable[..., None]
) -> None:
    opened = chat.open_chat(tokenizer(edit, OWN), name)
    (encoded,) = chat.encode(opened, [TALK])
    assert encoded.loss is not None
    assert opened.tokenizer.decode(encoded.ids.tolist()) == TEXTS[name]
    assert learnt(opened, TALK) == "- ant\n\n- béé </s>\n no </s>"
    assert encoded.bytes == len(TEXTS[name].encode())
    assert encoded.ids.tolist().count(END) == 2
    assert encoded.ids[-1] == END and encoded.loss[-1] == 1  # the end is learnt
    assert encoded.loss[: len(TEXTS[name].encode()) // 3].sum() == 0


def test_without_an_input_alpacas_prompt_speaks_of_none(tokenizer: Callable[..., Any]) -> None:
    opened = chat.open_chat(tokenizer(), "alpaca")
    one = Conversation("row 1", (Message("user", "Name one."), Message("assistant", "Ant.")), 1)
    (encoded,) = chat.encode(opened, [one])
    assert opened.tokenizer.decode(encoded.ids.tolist()) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nName one.\n\n### Response:\nAnt.</s>"
    )


@pytest.mark.parametrize(
    ("name", "begins"), [("alpaca", "Be brief.\n\n### I"), ("solar", "### System:\nBe brief.\n\n### U")]
)
def test_a_system_message_comes_first(tokenizer: Callable[..., Any], name: str, begins: str) -> None:
    opened = chat.open_chat(tokenizer(), name)
    (encoded,) = chat.encode(opened, [Conversation("", (Message("system", "Be brief."), *TALK.messages), 2)])
    assert opened.tokenizer.decode(encoded.ids.tolist()).startswith(begins)


def test_answers_inside_of_the_prompt_are_not_learnt(tokenizer: Callable[..., Any]) -> None:
    opened = chat.open_chat(tokenizer(), "solar")
    assert learnt(opened, Conversation("", TALK.messages, 3)) == "\n no </s>"


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("edit", [lambda file: None, adds_begin])
def test_a_saved_template_asks_as_the_rows_were_trained(
    tokenizer: Callable[..., Any], tmp_path: Path, name: str, edit: Callable[..., None]
) -> None:
    opened = chat.open_chat(tokenizer(edit, OWN), name)
    (encoded,) = chat.encode(opened, [TALK])
    (tmp_path / "chat_template.jinja").write_bytes(opened.template.encode())
    saved = AutoTokenizer.from_pretrained(tmp_path)
    request = {"role": "user", "content": "Name two animals.\n\non land"}
    if name == "alpaca":
        request = {"role": "user", "content": "Name two animals.", "input": "on land"}
    asked = saved.apply_chat_template([request], add_generation_prompt=True)["input_ids"]
    assert encoded.ids[: len(asked)].tolist() == asked
    assert encoded.loss is not None
    assert (encoded.loss[: len(asked)].sum(), encoded.loss[len(asked)]) == (0, 1)


@pytest.mark.parametrize(("name", "edit", "begins"), [
    ("alpaca", adds_begin, 1), ("solar", adds_begin, 1), ("own", adds_begin, 1), ("own", lambda file: None, 1),
    ("alpaca", lambda file: None, 0), ("solar", lambda file: None, 0),
])  # fmt: skip
def test_a_text_begins_once(tokenizer: Callable[..., Any], name: str, edit: Callable[..., None], begins: int) -> None:
    opened = chat.open_chat(tokenizer(edit, OWN), name)
    (encoded,) = chat.encode(opened, [TALK])
    assert encoded.ids.tolist().count(BEGIN) == begins
    assert (encoded.ids[0] == BEGIN) == bool(begins)
    assert chat.begin_of_text(opened.tokenizer) == [BEGIN] * (edit is adds_begin)


def behind(asked: str) -> str:
    """A template of which `asked` is all that stands before an answer."""
    turns = "{% if m.role == 'assistant' %}" + asked + "{{ m.content }}</s>{% else %}{{ m.content }}{% endif %}"
    return "{% for m in messages %}" + turns + "{% endfor %}{% if add_generation_prompt %}" + asked + "{% endif %}"


def test_our_templates_keep_an_answer_from_melting_into_the_prompt(tokenizer: Callable[..., Any]) -> None:
    """Behind the colon of the original Alpaca prompt, the answer's dash makes one token with it."""
    for name, begins in (("alpaca", "- ant"), ("solar", "- ant"), ("own", " ant")):
        opened = chat.open_chat(tokenizer(merges(":-"), behind("answer:")), name)
        assert learnt(opened, TALK).startswith(begins)  # a token that begins in the prompt is not learnt


@pytest.mark.parametrize("edit", [lambda file: None, trims_offsets])
def test_a_token_of_the_prompts_space_and_the_answer_is_learnt(
    tokenizer: Callable[..., Any], edit: Callable[..., None]
) -> None:
    """Behind "ASSISTANT: " most answers begin with a token that holds that space."""

    def both(file: dict[str, Any]) -> None:
        merges("Ġ-")(file)
        edit(file)

    opened = chat.open_chat(tokenizer(both, behind("answer: ")), "own")
    assert learnt(opened, TALK) == " - ant\n\n- béé </s>\n no </s>"


def test_an_end_that_takes_the_space_behind_it_is_still_the_end(tokenizer: Callable[..., Any]) -> None:
    def strips(file: dict[str, Any]) -> None:
        for token in file["added_tokens"]:
            token["rstrip"] = True

    opened = chat.open_chat(tokenizer(strips, OWN.replace("</s>", "</s>\n")), "own")
    (encoded,) = chat.encode(opened, [TALK])
    assert encoded.loss is not None
    assert encoded.ids[encoded.loss == 1].tolist().count(END) == 2
    assert encoded.loss[-1] == 1


def test_a_models_other_ends_are_ends(tokenizer: Callable[..., Any]) -> None:
    """Gemma's answers end with a token of their own, of which only its generation config speaks."""
    template = OWN.replace("</s>", "<s>")
    with pytest.raises(TrainingError, match="no token that generation stops at"):
        chat.open_chat(tokenizer(template=template), "own")
    assert learnt(chat.open_chat(tokenizer(template=template), "own", [BEGIN]), TALK) == "- ant\n\n- béé <s>\n no <s>"


@pytest.mark.parametrize(("content", "holds"), [("a </s> b", True), ("<s>", True), ("< /s>", False), ("plain", False)])
def test_the_text_of_a_special_token_is_seen_in_messages(
    tokenizer: Callable[..., Any], content: str, holds: bool
) -> None:
    opened = chat.open_chat(tokenizer(), "solar")
    for message in (Message("user", content), Message("user", "x", content)):
        assert chat.holds_special(opened, Conversation("", (message, Message("assistant", "x")), 1)) == holds


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    answers=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), min_size=1, max_size=3)
)
def test_any_answers_are_learnt_to_the_letter(tokenizer: Callable[..., Any], answers: list[str]) -> None:
    opened = chat.open_chat(tokenizer(trims_offsets), "alpaca")
    messages = [message for answer in answers for message in (Message("user", "?"), Message("assistant", answer))]
    assert learnt(opened, Conversation("", tuple(messages), 1)) == "".join(f"{answer}</s>" for answer in answers)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (None, ["no chat template", "alpaca or solar"]),
        ("{{ raise_exception('roles must alternate') }}", ["fails", "roles must alternate"]),
        ("{{ messages[0].content + 1 }}", ["fails"]),
        ("{% for m in messages %}", ["fails"]),
        (OWN.replace("</s>", ""), ["no token that generation stops at", "'x'"]),
        (OWN.replace("[assistant]{% endif %}", "[ask]{% endif %}"), ["not what the whole conversation begins with", "[ask]"]),
        ("{% if not add_generation_prompt %}x</s>{% endif %}", ["not what the whole conversation begins with"]),
    ],
)  # fmt: skip
def test_a_template_of_its_own_that_does_not_do(
    tokenizer: Callable[..., Any], template: str | None, told: list[str]
) -> None:
    with pytest.raises(TrainingError) as caught:
        chat.open_chat(tokenizer(template=template), "own")
    assert all(text in str(caught.value) for text in ["do: ", *told]), str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_template_that_writes_earlier_turns_in_another_way_is_told_with_the_row(
    tokenizer: Callable[..., Any],
) -> None:
    """As those do that leave the thoughts out of all answers but the last."""
    template = OWN.replace("{{ message.content }}", "{{ message.content if loop.last else message.content | trim }}")
    opened = chat.open_chat(tokenizer(template=template), "own")
    assert learnt(opened, Conversation("row 1", TALK.messages[:2], 1)) == "- ant\n\n- béé </s>"
    thinks = OWN.replace(
        "{{ message.content }}", "{{ '(' if loop.last and message.role == 'user' }}{{ message.content }}"
    )
    opened = chat.open_chat(tokenizer(template=thinks.replace("(", "")), "own")
    with pytest.raises(TrainingError, match="whole conversation begins with") as caught:
        chat.encode(chat.Chat(opened.tokenizer, thinks, "own", opened.ends, opened.special), [TALK])
    assert "row 1" in str(caught.value)


def test_a_template_that_writes_the_date_writes_the_same_on_any_day(tokenizer: Callable[..., Any]) -> None:
    template = "\n {{ strftime_now('%d %b %Y') }}" + OWN
    opened = chat.open_chat(tokenizer(template=template), "own")
    (encoded,) = chat.encode(opened, [TALK])
    assert opened.tokenizer.decode(encoded.ids.tolist()).startswith("\n 26 Jul 2024<s>[user]")
    assert opened.template == template  # what is saved is the tokenizer's


def test_a_tokenizer_without_an_end_is_refused(tokenizer: Callable[..., Any]) -> None:
    found = tokenizer()
    found.eos_token = None
    with pytest.raises(TrainingError, match="no end-of-text token"):
        chat.open_chat(found, "alpaca")


def test_a_tokenizer_that_tells_no_offsets_is_refused() -> None:
    with pytest.raises(TrainingError, match="no offsets"):
        chat.open_chat(ByT5Tokenizer(), "alpaca")


@pytest.mark.parametrize("unknown", ["<unk>", None])
def test_a_tokenizer_that_cannot_write_the_template_is_refused(unknown: str | None) -> None:
    """With an unknown token it would write that, and without one nothing at all."""
    letters = {letter: number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
    vocabulary = letters | ({unknown: 26} if unknown else {})
    made = Tokenizer(models.BPE(vocabulary, [], unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token=unknown)
    with pytest.raises(TrainingError, match="cannot encode its chat template") as caught:
        chat.open_chat(found, "solar")
    assert "### User:" in str(caught.value)


def test_the_processor_of_offsets_is_the_one_that_trims(tokenizer: Callable[..., Any]) -> None:
    """Otherwise the cases above would say nothing of it."""
    encoded = tokenizer(trims_offsets)("a \n", return_offsets_mapping=True)
    assert encoded.offset_mapping == [(0, 1), (2, 2), (2, 3)]
    assert isinstance(tokenizer(trims_offsets).backend_tokenizer.post_processor, processors.ByteLevel)
