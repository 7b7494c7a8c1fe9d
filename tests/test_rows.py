"""Rows of every file type and form come out alike, and one that cannot be learnt from is told with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from strata import rows
from strata.errors import TrainingError
from strata.rows import Conversation, Message

USER, ANSWER = Message("user", "Name an ant."), Message("assistant", "Anna.")
TURNS = [{"role": "user", "content": "Name an ant."}, {"role": "assistant", "content": "Anna."}]
MORE = [*TURNS, {"role": "user", "content": "Another."}, {"role": "assistant", "content": "Bert."}]


def write(folder: Path, name: str, values: list[Any]) -> Path:
    """Rows in the type that the name says."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), file, row_group_size=2)
    elif file.suffix == ".json":
        file.write_text(json.dumps(values))
    else:
        file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return folder


def one(folder: Path, row: Any, form: str = "instructions") -> tuple[Conversation, ...]:
    (found,) = rows.examples(write(folder, "a.jsonl", [row]), form)
    return found


@pytest.mark.parametrize(
    ("row", "messages", "prompt"),
    [
        ({"instruction": "Name an ant.", "input": "", "output": "Anna."}, (USER, ANSWER), 1),
        ({"instruction": "Name an ant.", "input": None, "output": "Anna."}, (USER, ANSWER), 1),
        ({"instruction": "Name it.", "input": "ant", "output": "Anna."}, (Message("user", "Name it.", "ant"), ANSWER), 1),
        ({"prompt": "Name an ant.", "completion": "Anna."}, (USER, ANSWER), 1),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, (USER, ANSWER), 1),
        ({"messages": TURNS, "source": "x"}, (USER, ANSWER), 1),
        ({"messages": [{"role": "system", "content": ""}, *TURNS]}, (USER, ANSWER), 1),
        ({"messages": [{"role": "system", "content": "Hi"}, *TURNS]}, (Message("system", "Hi"), USER, ANSWER), 2),
        # All answers of a conversation are learnt; those inside of a prompt are not.
        ({"messages": MORE}, (USER, ANSWER, Message("user", "Another."), Message("assistant", "Bert.")), 1),
        ({"prompt": MORE[:3], "completion": "Bert."}, (USER, ANSWER, Message("user", "Another."), Message("assistant", "Bert.")), 3),
    ],
)  # fmt: skip
def test_instructions_in_every_form(tmp_path: Path, row: Any, messages: tuple[Message, ...], prompt: int) -> None:
    assert one(tmp_path, row) == (Conversation("a.jsonl, row 1", messages, prompt),)


SYSTEM = {"role": "system", "content": "Be brief."}
LATER = [*MORE[:3], {"role": "assistant", "content": "Bob."}]


@pytest.mark.parametrize(
    ("row", "roles", "prompt"),
    [
        ({"prompt": "Name an ant.", "chosen": "Anna.", "rejected": "Bob."}, "ua", 1),
        ({"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": MORE[3:]}, "ua", 1),
        ({"chosen": TURNS, "rejected": [TURNS[0], MORE[3]]}, "ua", 1),
        # As UltraFeedback has it: the prompt once more, as the beginning of both.
        ({"prompt": "Name an ant.", "chosen": TURNS, "rejected": [TURNS[0], MORE[3]]}, "ua", 1),
        ({"prompt": "Name an ant.", "chosen": [SYSTEM, *TURNS], "rejected": [SYSTEM, TURNS[0], MORE[3]]}, "sua", 2),
        ({"prompt": [SYSTEM], "chosen": TURNS, "rejected": [TURNS[0], MORE[3]]}, "sua", 2),
        ({"chosen": MORE, "rejected": LATER}, "uaua", 3),
        ({"prompt": "Name an ant.", "chosen": "Anna.", "rejected": "Anna."}, "ua", 1),
    ],
)
def test_preferences_in_every_form(tmp_path: Path, row: Any, roles: str, prompt: int) -> None:
    chosen, rejected = one(tmp_path, row, "preferences")
    for conversation in (chosen, rejected):
        assert "".join(message.role[0] for message in conversation.messages) == roles
        assert conversation.prompt == prompt
    assert chosen.messages[:prompt] == rejected.messages[:prompt]
    for conversation, value in ((chosen, row["chosen"]), (rejected, row["rejected"])):
        assert conversation.messages[-1].content == (value if isinstance(value, str) else value[-1]["content"])


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_every_type_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    values = [{"instruction": f"é {n}\u2028", "input": None, "output": f"out {n}"} for n in range(5)]
    found = [row for (row,) in rows.examples(write(tmp_path, name, values), "instructions")]
    assert [row.messages[0].content for row in found] == [value["instruction"] for value in values]
    assert [row.where for row in found] == [f"{name}, row {n}" for n in range(1, 6)]


def test_documents_are_whole_files_or_the_field_of_rows_in_order_of_path(tmp_path: Path) -> None:
    for name, data in (("b.txt", b"\xef\xbb\xbfbee\r\n"), ("a/z.txt", b" ant"), ("a/y.txt", b"yak")):
        (tmp_path / "txt" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "txt" / name).write_bytes(data)
    found = list(rows.documents(tmp_path / "txt"))
    assert [(item.where, item.text) for item in found] == [
        ("a/y.txt", "yak"),
        ("a/z.txt", " ant"),
        ("b.txt", "bee\r\n"),
    ]
    folder = write(write(tmp_path / "rows", "b.jsonl", [{"text": "two"}]), "a.jsonl", [{"text": "one", "id": 1}])
    assert [item.text for item in rows.documents(folder)] == ["one", "two"]


def test_rows_are_read_as_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\nnot json\n')
    reading = rows.documents(tmp_path)
    assert next(reading).text == "one"
    with pytest.raises(TrainingError, match="not JSON"):
        next(reading)


FINE = '{"instruction": "i", "output": "o"}\n'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"instruction": "i", "answer": "o"}', ["`output` is missing", "keys instruction, answer", "`messages`"]),
        ('{"question": "i", "answer": "o"}', ["`prompt` is missing", "`instruction`, `output`", "keys question, answer"]),
        ("{}", ["keys none"]),
        ('{"instruction": "i", "output": 3}', ["`output` is of the wrong type", "a text", "int"]),
        ('{"instruction": "i", "input": ["x"], "output": "o"}', ["`input` is of the wrong type", "list"]),
        ('{"instruction": "i", "output": "\\ud800"}', ["`output` is not Unicode"]),
        ('{"instruction": "i", "output": ', ["not JSON", "a JSON object on every line"]),
        ("[1]", ["not an object of fields", "list"]),
        ("[" * 100_000, ["not JSON"]),
        ('{"messages": "hello"}', ["`messages` is of the wrong type", "a list of messages", "str"]),
        ('{"messages": []}', ["ends with no answer"]),
        ('{"messages": [{"role": "user", "content": "i"}]}', ["ends with no answer", "user"]),
        ('{"messages": [{"role": "assistant", "content": "o"}]}', ["no prompt"]),
        ('{"messages": [{"role": "human", "content": "i"}]}', ["unknown role", "message 1 of `messages`", "'human'", "system | user | assistant"]),
        ('{"messages": ["i", "o"]}', ["unknown role", "str"]),
        ('{"messages": [{"role": "user"}]}', ["`content` is missing", "message 1", "keys role"]),
        ('{"prompt": "i", "completion": [{"role": "user", "content": "i"}]}', ["ends with no answer"]),
    ],
)  # fmt: skip
def test_a_row_that_is_none_is_told_with_its_line_and_what_it_has(tmp_path: Path, line: str, told: list[str]) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.jsonl").write_text(FINE + "\n" + line + "\n" + FINE)
    with pytest.raises(TrainingError) as caught:
        list(rows.examples(tmp_path, "instructions"))
    assert all(text in str(caught.value) for text in ["sub/a.jsonl, row 3", *told]), str(caught.value)
    assert "do: " in str(caught.value)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "i", "chosen": "o"}, ["`rejected` is missing", "keys prompt, chosen"]),
        ({"chosen": "o", "rejected": "p"}, ["no prompt"]),
        ({"chosen": TURNS, "rejected": [{"role": "user", "content": "Else?"}, TURNS[1]]}, ["no prompt"]),
        ({"prompt": "i", "chosen": TURNS[:1], "rejected": TURNS}, ["ends with no answer"]),
        ({"prompt": 3, "chosen": "o", "rejected": "p"}, ["`prompt` is of the wrong type", "int"]),
    ],
)
def test_a_pair_that_is_none_is_told(tmp_path: Path, row: Any, told: list[str]) -> None:
    with pytest.raises(TrainingError) as caught:
        one(tmp_path, row, "preferences")
    assert all(text in str(caught.value) for text in ["a.jsonl, row 1", *told]), str(caught.value)


def test_a_record_of_parquet_is_told_by_its_number(tmp_path: Path) -> None:
    values = [{"prompt": "i", "completion": "o"}] * 4 + [{"prompt": "i", "completion": None}]
    with pytest.raises(TrainingError, match="`completion` is missing") as caught:
        list(rows.examples(write(tmp_path, "a.parquet", values), "instructions"))
    assert "a.parquet, row 5" in str(caught.value)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"a.txt": b"x", "b.jsonl": b"{}"}, ["one known type", "a.txt, b.jsonl", "`file`"]),
        ({"a.csv": b"x"}, ["one known type", "a.csv"]),
        ({}, ["one known type", "no file"]),
        ({"a.jsonl": b"\n"}, ["no rows"]),
        ({"a.json": b"[]"}, ["no rows"]),
        ({"a.json": b'{"text": "x"}'}, ["not a list of rows", "dict"]),
        ({"a.json": b'{"text": "x"}\n{"text": "y"}'}, ["not JSON", "a.json", ".jsonl"]),
        ({"a.parquet": b"PAR1"}, ["cannot be read as parquet", "a.parquet"]),
        ({"a.jsonl": b'{"text": "\xff"}'}, ["not UTF-8", "a.jsonl, row 1", "byte 10"]),
        ({"a.txt": b"x", "b.txt": b"\xff"}, ["not UTF-8", "b.txt"]),
        ({"a.jsonl": b'{"content": "x"}'}, ["`text` is missing", "keys content"]),
    ],
)
def test_files_that_hold_no_documents_are_told(tmp_path: Path, files: dict[str, bytes], told: list[str]) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(TrainingError) as caught:
        list(rows.documents(tmp_path))
    assert all(text in str(caught.value) for text in told), str(caught.value)


def test_a_txt_holds_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(TrainingError, match="a document, no rows") as caught:
        list(rows.examples(tmp_path, "instructions"))
    assert "`format`" not in str(caught.value)  # no key of a config


def test_fields_of_another_form_are_told_with_the_operation_that_wants_them(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(TrainingError, match="`chosen` is missing") as caught:
        list(rows.examples(tmp_path, "preferences"))
    assert "rows for `dpo` have" in str(caught.value) and "`format`" not in str(caught.value)
