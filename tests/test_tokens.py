"""Tokens hold every document to its last one, what is learnt of it, and what copies of it are found by."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from conftest import REPOSITORY, flip, read_json, store_model, tree_sha256
from models import save_model
from strata import rows, store, tokens
from strata.disk import file_sha256
from strata.errors import StoreError, TrainingError
from strata.recipe import Recipe
from strata.sources import FILES, fetch
from strata.tokens import Tokens, fingerprint, open_tokens, overlap, passages
from test_chat import adds_begin
from test_rows import write

BEGIN, END = 256, 257
Tokenize = Callable[..., store.Object]
TEXTS = ["The ant walks.", "A bee,\n\nété comme hiver. " * 40, "Cow"]  # the second is longer than the model's window
ALPACA = [{"instruction": f"Count to {n}.", "input": "", "output": " ".join(map(str, range(n + 1)))} for n in range(9)]
PAIRS = [{"prompt": f"Is {n} odd?", "chosen": "yes" if n % 2 else "no", "rejected": "perhaps"} for n in range(5)]
CHAT = {"format": "instructions", "template": "solar"}


@pytest.fixture
def tokenize(tmp_path: Path, llama: Path) -> Tokenize:
    """Fetch rows, or a folder's files, and tokenise them under a model's tokenizer, all in `tmp_path/results`."""

    def run(data: Path | list[Any], model: Path = llama, name: str = "a.jsonl", **parameters: Any) -> store.Object:
        root = tmp_path / "results"
        folder = (
            data if isinstance(data, Path) else write(tmp_path / f"data{len(list(tmp_path.iterdir()))}", name, data)
        )
        source = fetch(root, Recipe("fetch", {"sha256": tree_sha256(folder)}), str(folder))
        checkpoint = store_model(root, model)
        parameters = parameters or {"format": "text"}
        return tokens.tokenize(root, Recipe("tokenize", parameters, (checkpoint.id,), (source.id,)))

    return run


def documents(found: Tokens) -> list[list[int]]:
    return [
        found.ids[begin : begin + length].tolist()
        for begin, length in zip(found.documents, found.lengths, strict=False)
    ]


def learnt(found: Tokens, tokenizer: Any) -> list[str]:
    """What is to learn of each document, as text."""
    assert found.loss is not None
    parts = zip(found.documents, found.documents[1:], strict=False)
    return [tokenizer.decode(found.ids[a:b][found.loss[a:b] == 1].tolist()) for a, b in parts]


def as_text(texts: list[str]) -> list[dict[str, str]]:
    return [{"text": text} for text in texts]


def test_every_token_of_every_document_is_there_and_one_end_behind_each(tokenize: Tokenize, llama: Path) -> None:
    made = tokenize(as_text(TEXTS))
    found, tokenizer = open_tokens(made), AutoTokenizer.from_pretrained(llama)
    assert documents(found) == [[*tokenizer(text, verbose=False).input_ids, END] for text in TEXTS]
    size = sum(len(text.encode()) for text in TEXTS)  # of one token a byte
    assert size > 1000
    expected = {"format": "text", "documents": 3, "tokens": size + 3, "targets": size + 3, "bytes": size}
    assert {key: made.facts[key] for key in expected} == expected
    assert (found.format, found.vocabulary, found.loss, found.template) == ("text", 258, None, None)
    assert found.tokenizer == file_sha256(llama / "tokenizer.json") == made.facts["tokenizer"]
    assert (found.ids.dtype, found.documents.dtype, found.documents[-1]) == (np.dtype("<u2"), np.int64, len(found.ids))
    assert made.facts["dropped"] == {}
    assert not (made.path / "loss.bin").exists()


def test_files_of_text_are_as_good_as_rows(tokenize: Tokenize, tmp_path: Path) -> None:
    (tmp_path / "txt").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "txt" / f"{number}.txt").write_bytes(text.encode())
    assert tokenize(tmp_path / "txt").digest == tokenize(as_text(TEXTS)).digest


def test_what_looks_like_a_special_token_in_a_document_is_text(tokenize: Tokenize) -> None:
    found = open_tokens(tokenize(as_text(["a</s><s>b"])))
    assert len(found.ids) == 10
    assert found.ids.tolist().count(END) == 1


@pytest.fixture
def beginner(tmp_path: Path, llama: Path) -> Path:
    """The small model with a tokenizer that itself begins texts."""
    folder = save_model(tmp_path / "beginner")
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text())
    adds_begin(value)
    file.write_text(json.dumps(value))
    return folder


def test_documents_and_conversations_begin_once_where_the_tokenizer_begins_them(
    tokenize: Tokenize, beginner: Path
) -> None:
    for made in (tokenize(as_text(TEXTS), beginner), tokenize(ALPACA, beginner, **CHAT)):
        for ids in documents(open_tokens(made)):
            assert ids[0] == BEGIN and ids[-1] == END
            assert (ids.count(BEGIN), ids.count(END)) == (1, 1)


def test_of_instructions_the_answers_and_their_ends_are_learnt(tokenize: Tokenize, llama: Path) -> None:
    made = tokenize(ALPACA, format="instructions", template="alpaca")
    found, tokenizer = open_tokens(made), AutoTokenizer.from_pretrained(llama)
    assert learnt(found, tokenizer) == [f"{row['output']}</s>" for row in ALPACA]
    assert found.loss is not None
    assert len(found.loss) == len(found.ids) == made.facts["tokens"] == found.lengths.sum()
    assert made.facts["targets"] == found.loss.sum() == sum(len(row["output"]) + 1 for row in ALPACA)
    assert found.template is not None
    request = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Count to 8."}], chat_template=found.template, add_generation_prompt=True
    )["input_ids"]
    assert documents(found)[-1][: len(request)] == request


@pytest.mark.parametrize(
    ("form", "whole", "empty"),
    [
        ("text", {"text": "The ant."}, {"text": " \n"}),
        ("instructions", ALPACA[1], {**ALPACA[1], "output": ""}),
        ("instructions", ALPACA[1], {**ALPACA[1], "instruction": " "}),
        ("preferences", PAIRS[0], {**PAIRS[0], "rejected": ""}),
    ],
)
def test_an_empty_row_is_left_out_and_counted(tokenize: Tokenize, form: str, whole: Any, empty: Any) -> None:
    """Widely used data sets have a few; a pinned source cannot be corrected."""
    parameters = {"format": form} | ({} if form == "text" else {"template": "solar"})
    made = tokenize([whole, empty], **parameters)
    assert made.facts["dropped"] == {"empty": 1} and made.facts["documents"] == 1 + (form == "preferences")
    with pytest.raises(TrainingError, match="no row is left"):
        tokenize([empty], **parameters)


def test_of_preferences_chosen_and_rejected_take_turns(tokenize: Tokenize, llama: Path) -> None:
    same = {"prompt": "Is it?", "chosen": "yes", "rejected": "yes"}
    special = {"prompt": "Is it?", "chosen": "yes", "rejected": "no</s>"}
    made = tokenize([PAIRS[0], same, special, *PAIRS[1:]], format="preferences", template="solar")
    assert made.facts["dropped"] == {"chosen equals rejected": 1, "holds a special token": 1}
    assert made.facts["documents"] == 10
    answers = [answer for row in PAIRS for answer in (f"{row['chosen']}</s>", "perhaps</s>")]
    assert learnt(open_tokens(made), AutoTokenizer.from_pretrained(llama)) == answers


@pytest.mark.parametrize(("values", "parameters"), [
    (as_text(TEXTS), {"format": "text"}), (ALPACA, CHAT), (PAIRS, {**CHAT, "format": "preferences", "rows": 3}),
])  # fmt: skip
def test_every_type_of_file_gives_the_same_bytes(
    tokenize: Tokenize, values: list[Any], parameters: dict[str, Any]
) -> None:
    assert len({tokenize(values, name=f"a.{kind}", **parameters).digest for kind in ("jsonl", "json", "parquet")}) == 1


@pytest.mark.parametrize("chunk", [1, 20, 100])
def test_how_much_is_tokenised_at_a_time_changes_no_byte(
    tokenize: Tokenize, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    whole = [tokenize(as_text(TEXTS)), tokenize(PAIRS, **{**CHAT, "format": "preferences"})]
    monkeypatch.setattr(tokens, "_CHUNK", chunk)
    for made in whole:
        store.reject(tmp_path / "results", made.id, "once more")
        assert tokens.tokenize(tmp_path / "results", made.recipe).digest == made.digest


def test_documents_are_read_no_further_than_a_chunk(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "_CHUNK", 30)
    read: list[int] = []

    def endless() -> Any:
        for number in range(10**9):
            read.append(number)
            yield rows.Document(str(number), "ten letters")

    making = tokens._texts(AutoTokenizer.from_pretrained(llama), endless(), tokens._Tally())
    for _ in range(4):
        next(making)
    assert len(read) == 6


ANOTHER_PROCESS = """
import sys
from pathlib import Path
from strata import tokens
from strata.recipe import Recipe
print(tokens.tokenize(Path(sys.argv[1]), Recipe.from_json(sys.argv[2])).digest)
"""


def test_a_process_of_another_hash_seed_writes_the_same_bytes(tokenize: Tokenize, tmp_path: Path) -> None:
    rows = [
        *PAIRS,
        {"prompt": "Is it?", "chosen": "a", "rejected": "a"},
        {"prompt": "</s>", "chosen": "a", "rejected": "b"},
    ]
    made = tokenize(rows, format="preferences", template="alpaca", rows=4)
    store.reject(tmp_path / "results", made.id, "once more")
    run = subprocess.run(
        [sys.executable, "-c", ANOTHER_PROCESS, str(tmp_path / "results"), made.recipe.canonical], text=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": str(REPOSITORY / "workflow")}, capture_output=True,
    )  # fmt: skip
    assert run.stdout.split()[-1:] == [made.digest], run.stderr


def test_some_of_the_rows_are_drawn_by_their_numbers_alone_and_keep_their_order(
    tokenize: Tokenize, llama: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(llama)

    def drawn(values: list[Any], size: int) -> list[str]:
        return learnt(open_tokens(tokenize(values, **CHAT, rows=size)), tokenizer)

    outputs = [f"{row['output']}</s>" for row in ALPACA]
    five = drawn(ALPACA, 5)
    assert five == [text for text in outputs if text in set(five)] != outputs[:5]
    assert set(drawn(ALPACA, 2)) < set(five)
    assert drawn(ALPACA, 9) == outputs
    others = [{**row, "instruction": f"Please: {row['instruction']}"} for row in ALPACA]
    assert drawn(others, 5) == five
    dropped = {"prompt": "</s>", "completion": "no"}
    assert len(drawn([*ALPACA[:4], dropped, dropped, *ALPACA[4:]], 5)) == 5
    with pytest.raises(TrainingError, match="fewer rows than asked for") as caught:
        drawn([{**ALPACA[0], "output": "</s>"}, *ALPACA[1:]], 9)
    assert "8 or less" in str(caught.value)


def test_when_no_row_is_left_that_is_told(tokenize: Tokenize) -> None:
    with pytest.raises(TrainingError, match="no row is left") as caught:
        tokenize([{"prompt": "a", "chosen": "b", "rejected": "b"}] * 3, **{**CHAT, "format": "preferences"})
    assert "chosen equals rejected" in str(caught.value)


def test_the_store_keeps_what_was_made_and_makes_it_once(tokenize: Tokenize, tmp_path: Path) -> None:
    made = tokenize(ALPACA, **CHAT)
    assert made.path.parent == tmp_path / "results" / "tokens"
    store.verify(made)
    assert tokenize(ALPACA, **CHAT).manifest == made.manifest


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path) -> None:
    ids = [0, 65_535, 65_536, 69_999]
    for vocabulary, dtype in ((65_536, "<u2"), (65_537, "<u4"), (70_000, "<u4")):
        fits = np.array([id for id in ids if id < vocabulary])
        counts = tokens._write(tmp_path, [tokens.Encoded(fits, None, 4)], vocabulary, "test")
        assert np.fromfile(tmp_path / "tokens.bin", dtype).tolist() == fits.tolist()
        assert counts["tokens"] == len(fits)
    with pytest.raises(TrainingError, match="not in the vocabulary"):
        tokens._write(tmp_path, [tokens.Encoded(np.array([258]), None, 4)], 258, "test")


def test_a_token_that_only_the_tokenizers_config_adds_is_beyond_the_embedding(
    tokenize: Tokenize, tmp_path: Path
) -> None:
    """transformers adds a special token that tokenizer.json, which init has looked at, does not have."""
    folder = save_model(tmp_path / "padded", vocab_size=258)
    assert tokenize(as_text(TEXTS), folder).facts["vocabulary"] == 258
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({**read_json(config), "pad_token": "[PAD]"}))
    with pytest.raises(TrainingError, match="more tokens than the model") as caught:
        tokenize(as_text(TEXTS), folder)
    assert "ids below 258" in str(caught.value) and "259 tokens" in str(caught.value)


def test_a_model_without_a_fast_tokenizers_file_is_refused(tokenize: Tokenize, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "slow")
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    with pytest.raises(TrainingError, match=r"no tokenizer\.json"):
        tokenize(as_text(TEXTS), folder)


def test_a_generation_config_may_name_the_end_of_answers(tokenize: Tokenize, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "other")
    template = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<s>{% endif %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template + "{% if add_generation_prompt %}{% endif %}")
    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 257]}')
    made = tokenize(ALPACA, folder, **{**CHAT, "template": "own"})
    assert learnt(open_tokens(made), AutoTokenizer.from_pretrained(folder))[1] == "0 1<s>"


@pytest.mark.parametrize("part", ["tokenizer.json", "data"])
def test_damaged_inputs_are_found_before_they_are_used(
    tokenize: Tokenize, tmp_path: Path, llama: Path, part: str
) -> None:
    made = tokenize(ALPACA, **CHAT)
    root = tmp_path / "results"
    store.reject(root, made.id, "once more")
    checkpoint, source = store.require(root, made.recipe.parents[0]), store.require(root, made.recipe.sources[0])
    flip(checkpoint.path / part if part != "data" else source.path / FILES / "a.jsonl", 30)
    with pytest.raises(StoreError, match="damaged"):
        tokens.tokenize(root, made.recipe)
    assert store.find(root, made.id) is None


def test_a_damaged_weight_is_no_concern_of_a_tokenizer(tokenize: Tokenize, tmp_path: Path) -> None:
    made = tokenize(ALPACA, **CHAT)
    checkpoint = store.require(tmp_path / "results", made.recipe.parents[0])
    store.reject(tmp_path / "results", made.id, "once more")
    flip(sorted(checkpoint.path.glob("*.safetensors"))[2], -1)
    assert tokens.tokenize(tmp_path / "results", made.recipe).digest == made.digest


LONG = " ".join(f"In the year {year} there were many ants in the field." for year in range(1900, 1906))


@given(st.lists(st.sampled_from(["ant", "bee", "été"]), min_size=1).flatmap(
    lambda words: st.tuples(*(st.lists(st.sampled_from(" \n\t\u2028"), min_size=1).map("".join) for _ in range(2)), st.just(words))
))  # fmt: skip
def test_a_fingerprint_is_the_same_however_a_text_is_set(text: tuple[str, str, list[str]]) -> None:
    one, other, words = text
    assert fingerprint(one.join(words)) == fingerprint(other + other.join(words) + one)
    assert fingerprint(one.join(words)) != fingerprint("".join(words) + "x")


def test_a_fingerprint_is_what_it_always_was() -> None:
    """It lies in stores: sha256 of "a b" begins with these 8 bytes."""
    assert fingerprint(" a\n\nb") == 0xC8687A08AA5D6ED2


def test_passages_are_the_whole_and_what_is_long_enough() -> None:
    assert list(passages("short", "too")) == ["short\n\ntoo"]
    assert list(passages(f"Dear all.\n \n{LONG}\n\nBye.")) == [f"Dear all.\n \n{LONG}\n\nBye."] * 2 + [LONG]
    assert list(passages("x " * 100))[1:] == [] and len(list(passages("xx" * 100))) == 3


@pytest.mark.parametrize(
    ("values", "parameters"),
    [
        (as_text(["Something else.", f"Before.\n\n{LONG}\n\nBehind."]), {"format": "text"}),
        ([{"instruction": "Go on.", "input": f"Before.\n\n{LONG}", "output": "Behind."}], CHAT),
        ([{"instruction": "Go on.", "output": f"{LONG}\n\nBehind."}], CHAT),
        ([{"prompt": "Go on.", "chosen": "Before.", "rejected": LONG}], {**CHAT, "format": "preferences"}),
    ],
)
def test_a_copied_passage_is_found_wherever_it_stands(
    tokenize: Tokenize, values: list[Any], parameters: dict[str, Any]
) -> None:
    made = tokenize(values, **parameters)
    texts = {
        "same": LONG, "set anew": LONG.replace(" ", "\n"), "inside": f"Hello.\n\n{LONG}\n\nGoodbye.",
        "other": LONG.replace("ants", "bees"), "short": "Before.", "part": LONG[: len(LONG) // 2],
    }  # fmt: skip
    assert overlap(made, texts) == ["same", "set anew", "inside"]
    known = np.load(made.path / "fingerprints.npy")
    assert known.dtype == np.uint64 and (np.diff(known.astype(object)) > 0).all()


def test_a_short_document_is_found_as_a_whole(tokenize: Tokenize) -> None:
    assert overlap(tokenize(as_text(TEXTS)), {"ant": "The ant\nwalks.", "cow": "Cow.", "bee": TEXTS[1]}) == [
        "ant",
        "bee",
    ]
