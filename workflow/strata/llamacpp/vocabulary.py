"""Vocabulary: a tokenizer as a GGUF has it. What llama.cpp would read otherwise than transformers is refused.

A GGUF names how text is split before the merges of a byte-level BPE (`pre`). Here a name is given only to a tokenizer
whose rule is exactly the one that llama.cpp has under it.
SentencePiece's kind of BPE has a score for each piece there and a rank for each merge here: the scores keep the order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from strata.errors import CheckpointError
from strata.splitting import WAYS, way_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
_LONE = -1e6  # the score of a piece that no merge makes: after every other
_METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, and what else a GGUF says of a tokenizer.

    model: `gpt2` for byte-level BPE, `llama` for SentencePiece's
    pre: the name of the rule that splits text before the merges
    merges: of `gpt2`, a pair in one text; scores: of `llama`
    space: whether `llama` puts a space before a text
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    space: bool = False


def vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a fast tokenizer of transformers, filled up to `size` ids.

    Raises:
        CheckpointError: llama.cpp has no such tokenizer.
    """
    place = tokenizer.name_or_path
    if not tokenizer.is_fast:
        raise _unlike(place, "a tokenizer without rules", "a tokenizer.json", type(tokenizer).__name__)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    model = rules["model"]
    if model["type"] != "BPE":
        raise _unlike(place, "the kind of tokenizer", "BPE", model["type"])
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _unlike(place, f"the tokenizer's `{key}`", "none", model[key])
    added = {token["id"]: token for token in rules["added_tokens"]}
    for token in added.values():
        if token["lstrip"] or token["rstrip"] or token["single_word"]:
            raise _unlike(place, "an added token that takes the space around it", "none", repr(token["content"]))
    texts = {id: text for text, id in model["vocab"].items()} | {id: token["content"] for id, token in added.items()}
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    if not merges:
        raise _unlike(place, "a tokenizer without merges", "merges", "none")
    unknown = model["vocab"].get(model.get("unk_token"))
    types = tuple(_type(id, texts, added, unknown, model["byte_fallback"]) for id in range(size))
    tokens = tuple(texts.get(id, f"[PAD{id}]") for id in range(size))
    if model["byte_fallback"]:
        scores = _scores(tokens, merges)
        return Vocabulary("llama", "default", tokens, types, scores=scores, space=_begins_with_space(rules, place))
    return Vocabulary("gpt2", _pre(rules, place), tokens, types, merges=tuple(" ".join(merge) for merge in merges))


def _type(
    id: int, texts: Mapping[int, str], added: Mapping[int, Mapping[str, Any]], unknown: int | None, has_bytes: bool
) -> int:
    if id not in texts:
        return UNUSED
    if has_bytes and id == unknown:
        return UNKNOWN
    if id in added:
        return CONTROL if added[id]["special"] else USER_DEFINED
    return BYTE if has_bytes and re.fullmatch("<0x[0-9A-F]{2}>", texts[id]) else NORMAL


def _pre(rules: Mapping[str, Any], place: str) -> str:
    """llama.cpp's name of how a byte-level BPE splits text."""
    found = way_of(rules)
    if found is None:
        got = {key: rules[key] for key in ("normalizer", "pre_tokenizer")} | {
            "ignore_merges": rules["model"]["ignore_merges"]
        }
        raise _unlike(place, "how the tokenizer splits text", f"the rules of {', '.join(WAYS)}", json.dumps(got)[:400])
    return found


def _begins_with_space(rules: Mapping[str, Any], place: str) -> bool:
    """Whether SentencePiece's BPE puts a space before a text. It stands in the normaliser or in the pre-tokenizer.

    The pre-tokenizer's way, but for none at all, is no way of llama.cpp's: it puts none before a text that begins with
    one, or none behind a special token.
    """
    normalizer, splitter = rules["normalizer"], rules["pre_tokenizer"]
    steps = (normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]) if normalizer else []
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _METASPACE}
    prepend = {"type": "Prepend", "prepend": _METASPACE}
    if splitter is None and steps in ([prepend, replace], [replace]):
        return len(steps) > 1
    is_metaspace = not steps and splitter and splitter["type"] == "Metaspace" and not splitter["split"]
    if is_metaspace and splitter["prepend_scheme"] == "never":
        return False
    got = json.dumps({"normalizer": normalizer, "pre_tokenizer": splitter})[:400]
    raise _unlike(place, "how the tokenizer writes spaces", "SentencePiece's way", got)


def _scores(tokens: tuple[str, ...], merges: list[tuple[str, ...]]) -> tuple[float, ...]:
    """A score for each piece, higher for what is merged earlier."""
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        rank.setdefault("".join(pair), number)
    return tuple(-float(rank[token]) if token in rank else _LONE for token in tokens)


def _unlike(place: str, what: str, expected: str, got: object) -> CheckpointError:
    return CheckpointError(
        f"llama.cpp cannot have {what}", where=place, expected=expected, got=got,
        todo="remove `gguf` of this variant: its tokens would be others than those it was trained with",
    )  # fmt: skip
