"""Evaluation items made of texts: the start of each document, or questions made of its sentences.

Every draw is an order of hashes of (seed, place), so that the same items come out on every machine and Python.
"""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

from strata.errors import EvaluationError
from strata.recipe import digest

_SENTENCE = re.compile(r'.+?(?:[.!?]["\')\]]*(?=\s+["\'(\[]*[A-Z0-9])|$)', re.DOTALL)


def read_documents(folder: Path) -> dict[str, str]:
    """Every file below `folder` as text, in order of path, by its path from where they part, without its ending.

    Raises:
        EvaluationError: a file that is empty or not UTF-8, or two of one name.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    home = Path(os.path.commonpath([file.parent for file in files])) if files else folder
    documents: dict[str, str] = {}
    for file in files:
        name = file.relative_to(home).with_suffix("").as_posix()
        try:
            text = file.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            raise EvaluationError(
                "a document is not UTF-8", where=file, expected="UTF-8", got=f"byte {error.start}"
            ) from None
        if not text or name in documents:
            raise EvaluationError(
                "a document is empty, or has the name of another",
                where=file,
                expected="text, under a name of its own",
                got="no text" if not text else f"{name} once more",
            )
        documents[name] = text
    return documents


def beginning(text: str, size: int) -> str:
    """The first `size` bytes of a text, cut back to a whole word."""
    if len(text.encode()) <= size:
        return text
    cut = text.encode()[: size + 1].decode(errors="ignore")
    return cut[: max(cut.rfind(" "), cut.rfind("\n"))].rstrip()


def sentences(text: str) -> list[list[str]]:
    """The sentences of each paragraph."""
    paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text))
    return [[sentence.strip() for sentence in _SENTENCE.findall(paragraph)] for paragraph in paragraphs if paragraph]


def continuations(
    documents: dict[str, str], *, items: int, choices: int, characters: tuple[int, int], seed: int
) -> list[dict[str, Any]]:
    """Questions: a sentence, and which of `choices` sentences follows it in the same paragraph.

    The others come from other documents, differ from the true one and are as long, within a fifth. Each question is
    {"id", "context", "choices", "answer"}; questions are spread evenly over the documents.

    Raises:
        EvaluationError: the documents do not hold enough sentences of that length.
    """

    def draw(*place: object) -> str:
        return digest(":".join(map(str, (seed, *place))))

    def fits(sentence: str) -> bool:
        return characters[0] <= len(sentence) <= characters[1]

    questions: list[dict[str, Any]] = []
    pairs: dict[str, list[tuple[int, str, str]]] = {name: [] for name in documents}
    pool: list[tuple[str, str]] = []  # (document, sentence)
    for name, text in documents.items():
        for paragraph in sentences(text):
            pool += [(name, sentence) for sentence in paragraph if fits(sentence)]
            for context, following in itertools.pairwise(paragraph):
                if fits(context) and fits(following):
                    pairs[name].append((len(pairs[name]), context, following))
    share = [items // len(documents) + (number < items % len(documents)) for number in range(len(documents))]
    for (name, found), wanted in zip(pairs.items(), share, strict=True):
        if len(found) < wanted:
            raise EvaluationError(
                "too few sentences", where=f"document {name}", got=len(found),
                expected=f"{wanted} pairs of {characters[0]} to {characters[1]} characters",
                todo="lower `items`, widen `characters`, or use longer documents in the suite",
            )  # fmt: skip
        for number, context, following in sorted(found, key=lambda pair: draw(name, pair[0]))[:wanted]:
            near = [text for other, text in pool if other != name and _alike(text, following) and text != context]
            others = sorted(dict.fromkeys(near), key=lambda text: draw(name, number, text))[: choices - 1]
            if len(others) < choices - 1:
                raise EvaluationError(
                    "too few sentences of other documents", where=name, expected=choices - 1, got=len(others)
                )
            answer = int(draw(name, number, "answer"), 16) % choices
            options = [*others[:answer], following, *others[answer:]]
            questions.append({"id": f"{name}/{number}", "context": context, "choices": options, "answer": answer})
    return questions


def _alike(text: str, true: str) -> bool:
    """Whether a sentence can stand against the true one: another one, of its length within a fifth."""
    return text != true and abs(len(text) - len(true)) * 5 <= len(true)
