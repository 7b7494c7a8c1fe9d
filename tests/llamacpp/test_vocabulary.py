"""A tokenizer as a GGUF has it: the rule by which it splits text has a name there, or the tokenizer is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers_of import KINDS, tokenizer

from strata.errors import CheckpointError
from strata.llamacpp.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, vocabulary


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_tokenizer_has_its_name_and_every_id_its_text(kind: str) -> None:
    made = tokenizer(kind)
    found = vocabulary(made, len(made) + 2)
    expected = ("llama", "default") if kind.startswith("spm") else ("gpt2", kind)
    assert (found.model, found.pre) == expected
    assert list(found.tokens[:-2]) == made.convert_ids_to_tokens(range(len(made)))
    assert found.tokens[-1] == f"[PAD{len(made) + 1}]" and found.types[-2:] == (UNUSED, UNUSED)


def test_types_tell_special_added_unknown_and_byte_tokens() -> None:
    made = tokenizer("spm")
    types = dict(zip(*(vocabulary(made, len(made)).tokens, vocabulary(made, len(made)).types), strict=True))
    assert types["<s>"] == types["</s>"] == CONTROL and types["<unk>"] == UNKNOWN
    assert types["<tool>"] == USER_DEFINED and types["<0x0A>"] == BYTE and types["▁the"] == NORMAL
    plain = vocabulary(tokenizer("gpt-2"), 700)
    assert dict(zip(plain.tokens, plain.types, strict=True))["<unk>"] == CONTROL


def test_an_earlier_merge_has_a_higher_score() -> None:
    made = tokenizer("spm")
    found = vocabulary(made, len(made))
    scores = dict(zip(found.tokens, found.scores, strict=True))
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    pieces = list(dict.fromkeys("".join(pair) for pair in merges))
    assert [scores[piece] for piece in pieces] == sorted((scores[piece] for piece in pieces), reverse=True)
    assert scores["q"] < min(scores[piece] for piece in pieces)


def test_whether_a_space_stands_before_a_text() -> None:
    spaces = {kind: vocabulary(tokenizer(kind), 700).space for kind in KINDS if kind.startswith("spm")}
    assert spaces == {"spm": True, "spm-metaspace": False, "spm-bare": False}


def edited(kind: str, change: Callable[[dict[str, Any]], object]) -> Any:
    """A tokenizer whose rules were changed."""
    rules = json.loads(tokenizer(kind).backend_tokenizer.to_str())
    change(rules)
    backend = SimpleNamespace(to_str=lambda: json.dumps(rules))
    return SimpleNamespace(backend_tokenizer=backend, is_fast=True, name_or_path="here")


@pytest.mark.parametrize(
    ("kind", "change", "what"),
    [
        ("gpt-2", lambda rules: rules["model"].update(type="Unigram"), "the kind of tokenizer"),
        ("gpt-2", lambda rules: rules["model"].update(dropout=0.1), "`dropout`"),
        ("gpt-2", lambda rules: rules["model"].update(merges=[]), "without merges"),
        ("gpt-2", lambda rules: rules["model"].update(end_of_word_suffix="</w>"), "`end_of_word_suffix`"),
        ("gpt-2", lambda rules: rules["model"].update(ignore_merges=True), "splits text"),
        ("llama-bpe", lambda rules: rules["model"].update(ignore_merges=False), "splits text"),
        ("gpt-2", lambda rules: rules["pre_tokenizer"].update(add_prefix_space=True), "splits text"),
        ("gpt-2", lambda rules: rules["pre_tokenizer"].update(use_regex=False), "splits text"),
        ("gpt-2", lambda rules: rules.update(pre_tokenizer=None), "splits text"),
        ("gpt-2", lambda rules: rules.update(normalizer={"type": "NFC"}), "splits text"),
        (
            "smollm",
            lambda rules: rules["pre_tokenizer"]["pretokenizers"][0].update(individual_digits=False),
            "splits text",
        ),
        ("qwen2", lambda rules: rules["pre_tokenizer"]["pretokenizers"][0].update(invert=True), "splits text"),
        (
            "qwen2",
            lambda rules: rules["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex=r"\p{L}+"),
            "splits text",
        ),
        ("spm", lambda rules: rules["normalizer"]["normalizers"].reverse(), "writes spaces"),
        ("spm", lambda rules: rules.update(normalizer=None), "writes spaces"),
        ("spm-metaspace", lambda rules: rules["pre_tokenizer"].update(split=True), "writes spaces"),
        ("spm-metaspace", lambda rules: rules["pre_tokenizer"].update(prepend_scheme="first"), "writes spaces"),
        ("gpt-2", lambda rules: rules["added_tokens"][0].update(lstrip=True), "takes the space around it"),
    ],
)
def test_what_llama_cpp_would_split_otherwise_is_refused(
    kind: str, change: Callable[[dict[str, Any]], object], what: str
) -> None:
    with pytest.raises(CheckpointError, match=r"llama\.cpp cannot have") as caught:
        vocabulary(edited(kind, change), 700)
    assert what in str(caught.value) and "here" in str(caught.value)


def test_a_tokenizer_without_rules_is_refused() -> None:
    with pytest.raises(CheckpointError, match="without rules"):
        vocabulary(SimpleNamespace(is_fast=False, name_or_path="here"), 10)
