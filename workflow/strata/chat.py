"""Chat: conversations as text through a chat template, and which of the text's tokens are answers to learn.

A template is a Jinja chat template as transformers keeps with a tokenizer, so the one that rows are trained with is
the one that a checkpoint is asked with. A text is tokenised once, whole: its answers are found by character.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from strata.errors import TrainingError, UsageError
from strata.rows import Conversation, Message

# Stanford Alpaca's two prompts (github.com/tatsu-lab/stanford_alpaca, train.py), with one change: a newline behind
# "### Response:". The original has none, so there the answer "- ants" makes one token ":-" of prompt and answer, which
# is not what a model is given when it is asked. A system message takes the place of the preamble; a later turn
# has none.
_ALPACA = """\
{%- for message in messages %}
{%- if message.role == 'system' %}{{- message.content }}
{%- elif message.role == 'user' %}
{%- if loop.first %}{{- 'Below is an instruction that describes a task' }}
{%- if message.input %}{{- ', paired with an input that provides further context' }}{%- endif %}
{{- '. Write a response that appropriately completes the request.' }}{%- endif %}
{{- '\\n\\n### Instruction:\\n' + message.content }}
{%- if message.input %}{{- '\\n\\n### Input:\\n' + message.input }}{%- endif %}
{%- elif message.role == 'assistant' %}{{- '\\n\\n### Response:\\n' + message.content + eos_token }}
{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '\\n\\n### Response:\\n' }}{%- endif %}"""

# That of SOLAR 10.7B Instruct (arXiv 2312.15166).
_SOLAR = """\
{%- for message in messages %}
{%- if not loop.first %}{{- '\\n\\n' }}{%- endif %}
{{- {'system': '### System:\\n', 'user': '### User:\\n', 'assistant': '### Assistant:\\n'}[message.role] }}
{{- message.content }}
{%- if message.role == 'assistant' %}{{- eos_token }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '\\n\\n### Assistant:\\n' }}{%- endif %}"""

LIMIT = 10.0  # seconds for one conversation, which takes a millisecond

TEMPLATES = {"alpaca": _ALPACA, "solar": _SOLAR}

# Llama 3's own template writes today's date. Rows are made with one date, that which it falls back to, on any day.
_DATE = """\
{%- macro strftime_now(form) %}{{- form | replace('%d', '26') | replace('%b', 'Jul') | replace('%B', 'July')
| replace('%m', '07') | replace('%Y', '2024') }}{%- endmacro %}{{- '' }}"""

_ONE = (Conversation("a request of one letter", (Message("user", "x", "x"), Message("assistant", "x")), 1),)


class Encoded(NamedTuple):
    """A text's tokens, uint8 flags of those to learn (None: all), and the length of the text in UTF-8."""

    ids: np.ndarray
    loss: np.ndarray | None
    bytes: int


@dataclass(frozen=True)
class Chat:
    """A tokenizer with a chat template that it can encode.

    `ends` are the ids of tokens at which generation stops; `special` matches the text of any special token.
    """

    tokenizer: Any
    template: str
    name: str
    ends: frozenset[int]
    special: re.Pattern[str]


def open_chat(tokenizer: Any, name: str, ends: Iterable[int] = ()) -> Chat:
    """The template `name` ("alpaca", "solar", or "own": the tokenizer's) for a tokenizer, tried on one request.

    Args:
        ends: tokens at which generation stops besides the tokenizer's end-of-text token.

    Raises:
        TrainingError: the tokenizer has no end-of-text token, no offsets or no template of its own; it cannot encode
            the template; the template fails, or ends an answer with nothing that generation stops at.
    """
    end = end_of_text(tokenizer)
    if not tokenizer.is_fast:
        raise _unfit(tokenizer, "a tokenizer tells no offsets", "a fast tokenizer, with a tokenizer.json")
    if name != "own":
        template = ("{{- bos_token }}" if begin_of_text(tokenizer) else "") + TEMPLATES[name]
    elif tokenizer.chat_template:
        template = tokenizer.get_chat_template()
    else:
        raise _unfit(
            tokenizer, "`template: own`, but the tokenizer has no chat template", "a chat_template.jinja beside it",
            todo=f"set `template` to {' or '.join(TEMPLATES)}",
        )  # fmt: skip
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    pattern = "|".join(re.escape(text) for text in sorted(special | {tokenizer.eos_token}, key=len, reverse=True))
    chat = Chat(tokenizer, template, name, frozenset((end, *ends)), re.compile(pattern))
    _check_known(chat, _render(chat, _ONE[0])[0])
    encode(chat, _ONE)
    return chat


def own_template(tokenizer: Any) -> str | None:
    """The chat template that a tokenizer carries: of several, the default one."""
    template = tokenizer.chat_template
    return (template.get("default") if isinstance(template, dict) else template) or None


def rendered(tokenizer: Any, messages: Sequence[dict[str, str]], place: Path) -> str:
    """A conversation as the text that its next answer goes on with, by the tokenizer's own template.

    Raises:
        UsageError: there is none, or it refuses these messages.
    """
    template = own_template(tokenizer)
    if template is None:
        raise UsageError(
            "this model has no chat template", where=place, expected="one, as a tuned model has", got="none",
            todo="let it go on with a text: `strata ask --plain`",
        )  # fmt: skip
    try:
        with in_time():
            options = {"chat_template": template, "add_generation_prompt": True, "tokenize": False}
            return str(tokenizer.apply_chat_template(list(messages), **options))
    except Exception as error:  # a template is a program, and not ours: whatever it does is told, not traced
        raise UsageError(
            "the model's chat template fails", where=place, expected="a text", got=str(error).split("\n")[0],
            todo="ask without --system, or let it go on with a text: `strata ask --plain`",
        ) from None  # fmt: skip


def end_of_text(tokenizer: Any) -> int:
    """The id of the end-of-text token. Raises TrainingError where there is none."""
    if tokenizer.eos_token_id is None:
        raise _unfit(tokenizer, "a tokenizer has no end-of-text token", "eos_token in tokenizer_config.json")
    return int(tokenizer.eos_token_id)


def begin_of_text(tokenizer: Any) -> list[int]:
    """The begin-of-text token where the tokenizer itself begins texts with it, else nothing."""
    begin = tokenizer.bos_token_id
    return [begin] if begin is not None and tokenizer("x", verbose=False).input_ids[:1] == [begin] else []


def holds_special(chat: Chat, conversation: Conversation) -> bool:
    """Whether a message holds a special token as text, which would become that token, such as an end too early."""
    return any(chat.special.search(f"{message.content}\0{message.input}") for message in conversation.messages)


def encode(chat: Chat, conversations: Sequence[Conversation]) -> list[Encoded]:
    """Tokens of each conversation, and which are to learn: its answers', each with the end token behind it.

    No token is added to those of the template's text. A token that begins in the prompt is not learnt, unless
    it holds no more of it than space.

    Raises:
        TrainingError: the template fails on a conversation, changes what it wrote of a turn when the next one comes,
            or does not end an answer with a token that generation stops at.
    """
    rendered = [_render(chat, conversation) for conversation in conversations]
    encoded = chat.tokenizer(
        [text for text, _ in rendered], add_special_tokens=False, return_offsets_mapping=True,
        return_attention_mask=False, verbose=False,
    )  # fmt: skip
    result = []
    for (text, answers), ids, offsets in zip(rendered, encoded.input_ids, encoded.offset_mapping, strict=True):
        starts, ends = np.array(offsets, np.int64).T  # (T,) each
        loss = np.zeros(len(ids), np.uint8)
        for begin, end in answers:
            # Offsets may leave out the space around a token, and a token of space alone then lies at its own end.
            loss[(starts >= len(text[:begin].rstrip())) & (ends > begin) & (starts < end)] = 1
        result.append(Encoded(np.array(ids), loss, len(text.encode())))
    return result


def _render(chat: Chat, conversation: Conversation) -> tuple[str, list[tuple[int, int]]]:
    """The text of a conversation, and where in it each answer begins and its end token ends."""
    messages = [_fields(chat, message) for message in conversation.messages]
    text = _apply(chat, conversation, messages)
    answers = []
    for number in range(conversation.prompt, len(messages)):
        if messages[number]["role"] == "assistant":
            asked = _apply(chat, conversation, messages[:number], add_generation_prompt=True)
            if not asked or not text.startswith(asked):
                raise _unfit_template(
                    conversation, "a chat template's prompt is not what the whole conversation begins with",
                    repr(asked[-80:]), "rows of one answer each may do, or another `template`",
                )  # fmt: skip
            end = chat.special.search(text, len(asked))
            if end is None or chat.tokenizer.convert_tokens_to_ids(end[0]) not in chat.ends:
                raise _unfit_template(
                    conversation, "a chat template ends an answer with no token that generation stops at",
                    repr(text[len(asked) :][-80:]), "set another `template`, or the tokenizer's `eos_token`",
                )  # fmt: skip
            answers.append((len(asked), end.end()))
    return text, answers


def _fields(chat: Chat, message: Message) -> dict[str, str]:
    """A message as templates know it; only Alpaca's knows `input`."""
    if chat.name == "alpaca" and message.input:
        return {"role": message.role, "content": message.content, "input": message.input}
    return {"role": message.role, "content": "\n\n".join(filter(None, (message.content, message.input)))}


def _apply(chat: Chat, conversation: Conversation, messages: list[dict[str, str]], **options: bool) -> str:
    try:
        template = _DATE + chat.template
        with in_time():
            return str(chat.tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))
    except Exception as error:  # a template is a program, and not ours: whatever it does is told, not traced
        raise _unfit_template(conversation, "a chat template fails", str(error).split("\n")[0]) from None


@contextmanager
def in_time() -> Iterator[None]:
    """Raise TimeoutError in a template that runs on and on: the sandbox limits what it reaches, not its loops.

    By the processor's time, so that a busy machine is no error. Elsewhere than in the main thread there is no limit.
    """

    def stop(*_: object) -> None:
        raise TimeoutError(f"it is still running after {LIMIT} seconds of computing")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _check_known(chat: Chat, text: str) -> None:
    """Every letter of a template must be in the vocabulary. A tokenizer without an unknown token leaves them out."""
    tokenizer = chat.tokenizer
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    known = {
        place
        for id, (start, end) in zip(encoded.input_ids, encoded.offset_mapping, strict=True)
        if id != tokenizer.unk_token_id or text[start:end] == tokenizer.unk_token
        for place in range(start, end)
    }
    if any(place not in known for place, letter in enumerate(text) if not letter.isspace()):
        raise _unfit(
            tokenizer, "a tokenizer cannot encode its chat template", repr(text),
            repr(tokenizer.decode(encoded.input_ids)), "set another `template`",
        )  # fmt: skip


def _unfit(tokenizer: Any, what: str, expected: str, got: str = "", todo: str = "") -> TrainingError:
    todo = todo or "use a model whose tokenizer has one"
    return TrainingError(what, where=tokenizer.name_or_path, expected=expected, got=got, todo=todo)


def _unfit_template(conversation: Conversation, what: str, got: str, todo: str = "") -> TrainingError:
    todo = todo or "set another `template`, or leave such rows out of the data"
    expected = "a template that tells prompts from answers"
    return TrainingError(what, where=conversation.where, expected=expected, got=got, todo=todo)
