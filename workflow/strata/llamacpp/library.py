"""The library: llama.cpp through llama-cpp-python, an optional part of the environment."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from strata.errors import CheckpointError, UsageError
from strata.llamacpp.probes import PROBES


def is_here() -> bool:
    """Whether llama.cpp is installed."""
    return find_spec("llama_cpp") is not None


def require() -> Any:
    """The module `llama_cpp`, which says errors alone. Raises UsageError where it is not installed."""
    if not is_here():
        raise UsageError(
            "llama.cpp is not installed here", where="the environment of this Python", expected="llama-cpp-python",
            got="none", todo="run `make llama`, which builds it from source in some minutes",
        )  # fmt: skip
    import llama_cpp

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    return llama_cpp


@contextmanager
def opened(file: Path, **options: Any) -> Iterator[Any]:
    """A GGUF file as llama.cpp's model. Raises CheckpointError: llama.cpp does not load it."""
    library = require()
    threads = len(os.sched_getaffinity(0))
    try:
        model = library.Llama(str(file), verbose=False, n_threads=threads, n_threads_batch=threads, **options)
    except (ValueError, TemplateError) as error:
        with suppress(ValueError, TemplateError):
            library.Llama(str(file), verbose=True, **options)  # so that it says why
        raise CheckpointError(
            "llama.cpp does not load the file", where=file, expected="a GGUF of a model that it knows", got=error,
            todo="see what it says of the reason, above or in the job's log",
        ) from None  # fmt: skip
    try:
        yield model
    finally:
        model.close()


def check_tokens(file: Path, tokenizer: Any, place: Path) -> None:
    """Raise CheckpointError where llama.cpp splits a text otherwise than the tokenizer of the checkpoint."""
    ends = [text for text in (tokenizer.bos_token, tokenizer.eos_token) if text]
    probes = [*PROBES, "".join(PROBES), *(f"{end}word {end} word{end}" for end in ends)]
    with opened(file, vocab_only=True) as model:
        for text in probes:
            theirs = model.tokenize(text.encode(), add_bos=False, special=True)
            ours = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
            if theirs != ours:
                raise CheckpointError(
                    "llama.cpp splits a text into other tokens", where=place, expected=f"{ours[:20]} for {text[:60]!r}",
                    got=theirs[:20],
                    todo="remove `gguf` of this variant: it would not be asked as it was trained",
                )  # fmt: skip
