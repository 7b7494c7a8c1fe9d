"""Texts that a command line takes: recipes, which only the workflow writes, and mergekit's files, which people share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from attacks import refused, run

from strata.recipe import Recipe

ID = "init-" + "0" * 32


def recipe(**changes: object) -> str:
    return json.dumps({"operation": "merge", "parameters": {}, "parents": [], "sources": [], "version": 1, **changes})


RECIPES = [
    ("half of one", "{"),
    ("nested 100,000 deep", '{"a":' * 100_000),
    ("an operation that is a list", recipe(operation=[])),
    ("an operation that nobody knows", recipe(operation="rm")),
    ("parameters that are a list", recipe(parameters=[], parents=[ID])),
    ("a NaN", recipe(parameters={"x": float("nan")})),
    ("half of a surrogate pair", recipe(parameters={"x": "\ud800"})),
    ("a parent that climbs", recipe(parents=["init-../../../victim"])),
    ("a parent with a line end", recipe(parents=[f"{ID}\n"])),
    ("a parent that is a number", recipe(parents=[1])),
    ("a source that is no id", recipe(sources=["../../victim"])),
    ("a key too many", recipe(more=1)),
]


@pytest.mark.parametrize("text", [text for _, text in RECIPES], ids=[what for what, _ in RECIPES])
def test_what_is_no_recipe_is_not_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "results" / "checkpoints").mkdir(parents=True)
    code, said = run("--root", tmp_path / "results", "merge", text)
    assert code == 2 and said.startswith("error: not a recipe") and "Traceback" not in said, said
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["checkpoints", "results", "victim"]


def test_a_source_that_lies_nowhere_is_not_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = Recipe("fetch", {"sha256": "0" * 64}).canonical
    refused(tmp_path / "results", 4, ["where this local source lies", "--location"], "fetch", text)


def slices(model: str = "MODEL", layers: object = (0, 2)) -> str:
    return json.dumps(
        {"merge_method": "passthrough", "slices": [{"sources": [{"model": model, "layer_range": layers}]}]}
    )


FILES: list[tuple[str, str, int, list[str]]] = [
    ("an object of Python", "merge_method: !!python/name:os.system", 3, ["is not a plain value", "python/name:os.system"]),
    ("a method of others", slices().replace("passthrough", "ties"), 3, ["merge_method"]),
    ("an unknown key", slices()[:-1] + ', "trust_remote_code": true}', 3, ["unknown key `trust_remote_code`"]),
    ("a billion layers", slices(layers=[0, 10**9]), 3, ["layer_range", "4"]),
    ("layers from behind", slices(layers=[-2, 2]), 3, ["layer_range"]),
    ("a range of three", slices(layers=[0, 1, 2]), 3, ["layer_range"]),
    ("a model that is not there", slices("../nowhere"), 4, ["no such model", "../nowhere"]),
    ("a model that is an option", slices("-rf"), 4, ["no such model", "-rf"]),
    ("a model with an adapter", slices("MODEL+adapter"), 4, ["no such model", "LoRA is not applied here"]),
    ("a model with a NUL", slices("a\0b"), 3, ["a character that no name or path can have"]),
    ("a token", slices("hf_" + "Qz7" * 10), 3, ["a hub token stands in this file"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code", "words"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_mergekit_file_that_asks_for_what_is_not_done_is_refused(
    tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, text: str, code: int, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.yaml").write_text(text.replace("MODEL", str(llama)))
    said = refused(tmp_path / "results", code, ["m.yaml", *words], "merge", "m.yaml", "out")
    assert "hf_Qz7" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["m.yaml"]
