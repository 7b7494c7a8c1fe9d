"""B41-B42: a chat template is a program of the model's author. It runs in jinja's sandbox, and not for ever."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attacks import copy_of, fetch_and_init, made, refused, run

from conftest import tree_sha256
from strata import chat
from strata.recipe import Recipe

HOSTILE = [
    ("B41", "the globals of a function", "{{ cycler.__init__.__globals__ }}", "unsafe"),
    ("B41", "the subclasses of all", "{{ ().__class__.__base__.__subclasses__() }}", "unsafe"),
    ("B41", "a format string that reads attributes", "{{ '{0.__class__.__mro__}'.format(messages) }}", "unsafe"),
    ("B41", "a change of the messages", "{{ messages.append(1) }}", "unsafe"),
    ("B41", "an import", "{% import 'os' as os %}{{ os.system('touch pwned') }}", "a chat template fails"),
    ("B41", "a file", "{% include '/etc/passwd' %}", "a chat template fails"),
    ("B42", "10^10 turns", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "still running"),
    ("B42", "a range beyond the sandbox's", "{% for a in range(10**12) %}{% endfor %}", "a chat template fails"),
    ("B42+", "a macro that calls itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("template", "told"), [case[2:] for case in HOSTILE], ids=[f"{n}-{what}" for n, what, *_ in HOSTILE]
)
def test_a_hostile_template_is_told_with_the_next_step(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, template: str, told: str
) -> None:
    monkeypatch.setattr(chat, "LIMIT", 0.3)
    root, bad = tmp_path / "results", copy_of(llama, tmp_path / "bad")
    (bad / "chat_template.jinja").write_text(template)
    base = made(root, *fetch_and_init(root, bad, llama))
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "rows.jsonl").write_text(json.dumps({"instruction": "Count.", "output": "1"}) + "\n")
    source = Recipe("fetch", {"sha256": tree_sha256(rows)})
    assert run("--root", root, "fetch", source.canonical, "--location", rows)[0] == 0
    tokenize = Recipe("tokenize", {"format": "instructions", "template": "own"}, (base.id,), (source.id,))
    words = ["a chat template fails", told, "where:", "do:       set another `template`"]
    refused(root, 10, words, "tokenize", tokenize.canonical)
    assert not list(tmp_path.rglob("pwned")) and not Path("pwned").exists()
