"""Evaluation items made of texts: the start of each document, or questions made of its sentences.

Every draw is an order of hashes of (seed, place), so that the same items come out on every machine and Python.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from strata.errors import EvaluationError
from strata.recipe import digest

_SENTENCE = re.compile(r'.+?(?:[.!?]["\')\]]*(?=\s+["\'(\[]*[A-Z0-9])|$)', re.DOTALL)


def read_documents(folder: Path) -> dict[str, str]:
    """Every file below `folder` as text, by its name without folders and ending, in order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.stem: file.read_text(encoding="utf-8").strip() for file in files}


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

    The others come from other documents and are as long as the true one, within a fifth where that can be had. Each
    question is {"id", "context", "choices", "answer"}; questions are spread evenly over the documents.

    Raises:
        EvaluationError: the documents do not hold enough sentences of that length.
    """

    def draw(*place: object) -> str:
        return digest(":".join(map(str, (seed, *place))))

    def fits(sentence: str) -> bool:
        return characters[0] <= len(sentence) <= characters[1]

    pairs: dict[str, list[tuple[int, str, str]]] = {name: [] for name in documents}
    pool: list[tuple[str, str]] = []  # (document, sentence)
    for name, text in documents.items():
        for paragraph in sentences(text):
            pool += [(name, sentence) for sentence in paragraph if fits(sentence)]
            for context, following in itertools.pairwise(paragraph):
                if fits(context) and fits(following):
                    pairs[name].append((len(pairs[name]), context, following))
    questions: list[dict[str, Any]] = []
    share = [items // len(documents) + (number < items % len(documents)) for number in range(len(documents))]
    for (name, found), wanted in zip(pairs.items(), share, strict=True):
        if len(found) < wanted:
            raise EvaluationError("too few sentences", where=name, expected=f"{wanted} pairs", got=len(found))
        for number, context, following in sorted(found, key=lambda pair: draw(name, pair[0]))[:wanted]:
            near = [
                text for other, text in pool if other != name and abs(len(text) - len(following)) * 5 <= len(following)
            ]
            others = sorted(dict.fromkeys(near), key=lambda text: draw(name, number, text))[: choices - 1]
            if len(others) < choices - 1:
                raise EvaluationError(
                    "too few sentences of other documents", where=name, expected=choices - 1, got=len(others)
                )
            answer = int(draw(name, number, "answer"), 16) % choices
            options = [*others[:answer], following, *others[answer:]]
            questions.append({"id": f"{name}/{number}", "context": context, "choices": options, "answer": answer})
    return questions
