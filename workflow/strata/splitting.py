"""Splitting: how a byte-level BPE splits text before its merges, by the names that GGUFs have for the ways.

llama.cpp has the way under its name in its code (src/llama-vocab.cpp), tokenizer.json spells it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _bytes(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_STEPS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_bytes(True)],
    "smollm": [{"type": "Digits", "individual_digits": True}, _bytes(True)],
    "llama-bpe": [_split(f"{_LETTERS}|\\p{{N}}{{1,3}}{_REST}"), _bytes(False)],
    "qwen2": [_split(f"{_LETTERS}|\\p{{N}}{_REST}"), _bytes(False)],
}
_WHOLE_WORDS = {"llama-bpe"}  # there a word that is a token is one, whatever the merges say
WAYS = tuple(_STEPS)


def way_of(rules: Mapping[str, Any]) -> str | None:
    """The name of the way of a tokenizer.json; None for one that has no name here."""
    steps = rules["pre_tokenizer"] or {}
    steps = [_plain(step) for step in (steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps])]
    if rules["normalizer"] is not None:
        return None
    for name, known in _STEPS.items():
        if steps == [_plain(step) for step in known]:
            return name if rules["model"]["ignore_merges"] == (name in _WHOLE_WORDS) else None
    return None


def _plain(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step without what changes no token: which characters a token is said to come from."""
    return {key: value for key, value in step.items() if key != "trim_offsets"}


def split_so(rules: Mapping[str, Any], way: str) -> dict[str, Any]:
    """A tokenizer.json that splits in the way of this name."""
    steps = _STEPS[way]
    splitter = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    model = {**rules["model"], "ignore_merges": way in _WHOLE_WORDS}
    return {**rules, "normalizer": None, "pre_tokenizer": splitter, "model": model}
