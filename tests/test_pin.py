"""Pin fills in what is missing and changes no other byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import shape_text, tree_sha256
from strata import config, experiment
from strata.errors import SourceError
from strata.pin import pin

Write = Callable[..., Path]


def text_of(entry: str, path: Path) -> str:
    return f"# kept\nsources:\n{entry.replace('{path}', str(path), 1)}variants:   # kept too\n    base: {{init: {{source: m}}}}\n"


def pinned(file: Path) -> list[str]:
    return pin(file, config.load([file])[0].sources)


def test_a_block_keeps_its_comments(write_config: Write, llama: Path) -> None:
    entry = "  m:  # the model é\n    path: {path}  # here\n\n  # the end\n"
    file = write_config(text_of(entry, llama))
    assert pinned(file) == ["m: sha256, shape"]
    added = f"    sha256: {tree_sha256(llama)}\n    shape: {shape_text(llama)}\n"
    assert file.read_text() == text_of(entry.replace("# here\n", "# here\n" + added), llama)


@pytest.mark.parametrize(
    "entry",
    [
        "  m:   {path: {path}}   # here\n",
        "  m: {path: {path},}\n",
        '  "m":\n      path: "{path}"\n',
        "  m:\n    sha256:\n    path: {path}\n",
    ],
)
def test_any_style_of_mapping(write_config: Write, llama: Path, entry: str) -> None:
    entry = entry.replace("{path}", str(llama))
    file = write_config(text_of(entry, llama))
    pinned(file)
    source = config.load([file])[0].sources["m"]
    assert source.sha256 == tree_sha256(llama)
    assert source.shape is not None and source.shape.layers == 4
    assert file.read_text().startswith("# kept\n")
    assert "variants:   # kept too\n" in file.read_text()
    experiment.load([file])


def test_pinning_again_changes_nothing(write_config: Write, llama: Path) -> None:
    file = write_config(text_of("  m: {path: {path}}\n", llama))
    pinned(file)
    before = file.read_bytes()
    assert pinned(file) == []
    assert file.read_bytes() == before


def test_a_shape_can_be_measured_afresh(write_config: Write, llama: Path) -> None:
    entry = "  m:\n    path: {path}\n    sha256: SHA\n    shape:\n      family: llama\n      layers: 9\n      parameters: 1\n      bytes: 1\n      dtype: float16\n\n  # a comment\n"
    file = write_config(text_of(entry.replace("SHA", tree_sha256(llama)), llama))
    pin(file, config.load([file])[0].sources, again=True)
    source = config.load([file])[0].sources["m"]
    assert source.shape is not None and source.shape.layers == 4
    assert "\n  # a comment\n" in file.read_text()


def test_a_source_that_cannot_be_had_leaves_the_file_alone(write_config: Write, tmp_path: Path) -> None:
    file = write_config(text_of("  m: {path: {path}}\n", tmp_path / "nowhere"))
    before = file.read_bytes()
    with pytest.raises(SourceError, match="no such file"):
        pinned(file)
    assert file.read_bytes() == before


def test_an_unpinned_source_is_an_error_that_says_so(write_config: Write, llama: Path) -> None:
    with pytest.raises(SourceError, match="`m` is not pinned") as caught:
        experiment.load([write_config(text_of("  m: {path: {path}}\n", llama))])
    assert "strata pin" in str(caught.value)
    assert "config.yaml:3" in str(caught.value)
