"""Talk: a prompt, or a conversation, and a variant's answer as it comes; by transformers, or by llama.cpp on a GGUF.

Both are asked through the variant's template; a GGUF through its own tokenizer, so that it says here what it says
wherever it is taken.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata import checkpoint as checkpoints
from strata import store
from strata.chat import rendered
from strata.checkpoint import CONFIG
from strata.errors import UsageError
from strata.experiment import Experiment
from strata.llamacpp.convert import FILE, open_tokenizer
from strata.llamacpp.library import opened
from strata.llamacpp.quantize import check_source
from strata.loading import ends_of, load_model
from strata.status import variant_of
from strata.store import Object

Message = dict[str, str]  # {"role": "user" or "assistant" or "system", "content": text}
Answer = Callable[[Sequence[Message] | str], Iterator[str]]  # a conversation, or a text to go on with -> its pieces
HELP = "/reset forgets what was said, /quit or Ctrl-D ends, Ctrl-C stops an answer"


@dataclass(frozen=True)
class Style:
    """How an answer is drawn. A temperature of 0 takes the likeliest token; `tokens` is the most there are.

    `context` is what a GGUF keeps of a conversation, at most: its memory is set aside at once.
    """

    tokens: int = 256
    temperature: float = 0.7
    top_p: float = 0.95
    seed: int = 0
    context: int = 4096


@contextmanager
def voice(root: Path, experiment: Experiment, name: str, gguf: str | None, style: Style) -> Iterator[Answer]:
    """What answers for a variant, while its model is in memory.

    Args:
        gguf: the type of the variant's GGUF file to run; None for its checkpoint.

    Raises:
        UsageError: no such variant, no such file of it, or llama.cpp is not installed.
        StoreError: it is not built, damaged, or the file is of other weights.
        EvaluationError: the config's device is not there.
    """
    variant = variant_of(experiment, name)
    if gguf is None:
        found = store.require(root, variant.job.id, checkpoints.verify)
        yield _by_transformers(found, experiment.device, style)
        return
    jobs = {job.recipe.parameters["type"]: job for job in variant.ggufs}
    if gguf not in jobs:
        raise UsageError(
            f"`{name}` has no such GGUF file", where=f"variants.{name}.gguf", got=gguf,
            expected=", ".join(jobs) or "a list of types",
            todo=f"add it to the variant, `gguf: [{gguf}]`, and run snakemake",
        )  # fmt: skip
    found, file = store.require(root, variant.job.id), store.require(root, jobs[gguf].id, store.verify)
    check_source(file, found)
    context = min(style.context, int(json.loads((found.path / CONFIG).read_bytes())["max_position_embeddings"]))
    with opened(file.path / FILE, n_ctx=context) as model:
        yield _by_llama(model, found, context, style)


def _by_transformers(found: Object, device: str, style: Style) -> Answer:
    import torch
    from transformers import (
        GenerationConfig,
        StoppingCriteria,
        StoppingCriteriaList,
        TextIteratorStreamer,
        logging,
        set_seed,
    )

    logging.disable_progress_bar()
    tokenizer = open_tokenizer(found)
    model = load_model(found, "bfloat16" if device == "cuda" else "float32", device)
    longest = int(model.config.max_position_embeddings)
    # In place of the checkpoint's own, which may penalise or leave out what a `style` does not say.
    model.generation_config = GenerationConfig(
        eos_token_id=sorted({tokenizer.eos_token_id, *ends_of(found)} - {None}), pad_token_id=tokenizer.eos_token_id
    )
    drawn = {"do_sample": True, "temperature": style.temperature, "top_p": style.top_p, "top_k": 0}

    def answer(said: Sequence[Message] | str) -> Iterator[str]:
        if isinstance(said, str):
            ids = list(tokenizer(said, verbose=False).input_ids)
        else:
            ids = list(
                tokenizer(rendered(tokenizer, said, found.path), add_special_tokens=False, verbose=False).input_ids
            )
        room = _room(len(ids), longest, style)
        asked = torch.tensor([ids], device=device)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = threading.Event()

        class Stopped(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, *_: Any, **__: Any) -> Any:
                return torch.tensor([stop.is_set()], device=device)

        set_seed(style.seed)
        failed: list[BaseException] = []

        def generate() -> None:
            try:
                model.generate(
                    asked, attention_mask=torch.ones_like(asked), max_new_tokens=room, streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([Stopped()]),
                    **(drawn if style.temperature else {"do_sample": False}),
                )  # fmt: skip
            except BaseException as error:  # told by whoever listens, who would otherwise wait without end
                failed.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from (piece for piece in streamer if piece)
        finally:
            stop.set()
            thread.join()
        if failed:
            raise failed[0]

    return answer


def _by_llama(model: Any, found: Object, context: int, style: Style) -> Answer:
    tokenizer = open_tokenizer(found)  # for its template alone: a text becomes tokens by the file's own

    def answer(said: Sequence[Message] | str) -> Iterator[str]:
        is_plain = isinstance(said, str)
        text = said if isinstance(said, str) else rendered(tokenizer, said, found.path)
        ids = model.tokenize(text.encode(), add_bos=is_plain, special=True)
        pieces = model.create_completion(
            ids, max_tokens=_room(len(ids), context, style), stream=True, seed=style.seed,
            temperature=style.temperature, top_p=style.top_p, top_k=0, min_p=0.0, repeat_penalty=1.0,
        )  # fmt: skip
        yield from (piece["choices"][0]["text"] for piece in pieces)

    return answer


def _room(asked: int, longest: int, style: Style) -> int:
    """How many tokens an answer may have. Raises UsageError where the model's positions are used up."""
    if asked >= longest:
        raise UsageError(
            "the conversation is longer than the model can read", where="what was said", got=asked,
            expected=f"under {longest} tokens", todo="begin anew (/reset), or say less",
        )  # fmt: skip
    return min(style.tokens, longest - asked)


def ask(answer: Answer, said: Sequence[Message] | str, say: Callable[[str], None]) -> str:
    """Tell an answer piece by piece, and return it. Ctrl-C ends it where it is."""
    pieces: list[str] = []
    stream = answer(said)
    try:
        for piece in stream:
            pieces.append(piece)
            say(piece)
    except KeyboardInterrupt:
        stream.close()  # type: ignore[attr-defined]
    return "".join(pieces)


def converse(answer: Answer, lines: Iterable[str], say: Callable[[str], None], system: str = "") -> None:
    """A conversation: each line is answered with all that was said before in mind."""
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    said = list(opening)
    for line in lines:
        match line.strip():
            case "":
                continue
            case "/quit":
                return
            case "/reset":
                said = list(opening)
            case "/help":
                say(HELP + "\n")
            case text:
                asked = [*said, {"role": "user", "content": text}]
                try:
                    said = [*asked, {"role": "assistant", "content": ask(answer, asked, say)}]
                except UsageError as error:
                    if len(said) == len(opening):
                        raise
                    say(f"error: {error}")
                say("\n")
