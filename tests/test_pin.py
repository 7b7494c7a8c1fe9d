"""Pin fills in what is missing and changes no other byte."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from conftest import shape_text, tree_sha256
from strata import config, experiment
from strata import pin as pinning
from strata.errors import ConfigError, SourceError
from strata.pin import _commit, _license, pin
from test_sources import COMMIT, fill_cache, fill_dataset

Write = Callable[..., Path]


def text_of(entry: str, path: Path) -> str:
    return f"# kept\nsources:\n{entry.replace('{path}', str(path), 1)}variants:   # kept too\n    base: {{init: {{source: m}}}}\n"


def pinned(file: Path) -> list[str]:
    return pin(file, config.load([file])[0].sources, {"m"})


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


@pytest.mark.parametrize(
    "entry", ["  m: {\n    path: {path}  # a comment\n    }\n", "  m: &m\n    path: {path}\n  n: *m\n"]
)
def test_a_file_that_cannot_be_edited_safely_is_left_alone_and_told_what_to_add(
    write_config: Write, llama: Path, entry: str
) -> None:
    file = write_config(text_of(entry, llama))
    before = file.read_bytes()
    try:
        pinned(file)
    except ConfigError as error:
        assert "write these yourself" in str(error)
        assert tree_sha256(llama) in str(error)
        assert file.read_bytes() == before
    else:
        assert config.load([file])[0].sources["m"].sha256 == tree_sha256(llama)


def test_byte_order_mark_line_ends_and_links_stay(tmp_path: Path, llama: Path) -> None:
    file, link = tmp_path / "real.yaml", tmp_path / "config.yaml"
    text = text_of("  m:\n    path: {path}  # here\n", llama).replace("\n", "\r\n")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    link.symlink_to("real.yaml")
    assert pinned(link) == ["m: sha256, shape"]
    raw = file.read_bytes()
    assert link.is_symlink() and raw.startswith(b"\xef\xbb\xbf#")
    assert raw.count(b"\n") == raw.count(b"\r\n")


def test_a_folder_with_a_checksum_and_no_shape_gets_its_shape(write_config: Write, llama: Path) -> None:
    file = write_config(text_of(f"  m: {{path: {{path}}, sha256: {tree_sha256(llama)}}}\n", llama))
    assert pinned(file) == ["m: shape"]


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


@contextmanager
def answering(monkeypatch: pytest.MonkeyPatch, **more: object) -> Iterator[set[str]]:
    """A server on loopback that answers the hub's question for a revision; yields what it was asked."""
    asked: set[str] = set()

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            asked.add(self.path)
            body = json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": [], **more}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_a_branch_of_a_hub_repository_is_resolved_to_its_commit(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with answering(monkeypatch) as asked:
        assert _commit("owner/model", "main", kind) == COMMIT
    asked.discard("/api/agent-harnesses")  # what huggingface_hub asks for itself, once a process
    assert asked == {f"/api/{kind}s/owner/model/revision/main"}


@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"cardData": {"license": "apache-2.0"}}, {"license": "apache-2.0"}),
        ({"cardData": {"license": ["mit", "gpl"]}}, {}),
        ({"cardData": {"license": "}: evil"}}, {}),
        ({"cardData": {}}, {}),
        ({}, {}),
    ],
)
def test_the_licence_is_that_of_the_card_at_the_commit(
    monkeypatch: pytest.MonkeyPatch, data: dict[str, object], found: dict[str, str]
) -> None:
    with answering(monkeypatch, **data) as asked:
        assert _license("owner/model", COMMIT) == found
    assert f"/api/models/owner/model/revision/{COMMIT}" in asked


def test_a_licence_is_pinned_beside_the_shape_and_changes_no_id(
    write_config: Write, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pinning, "_license", lambda name, revision: {"license": "mit"})
    fill_cache(tmp_path / "cache", llama)
    file = write_config(text_of(f"  m: {{hub: owner/model, revision: {COMMIT}}}\n", tmp_path))
    assert pinned(file) == ["m: sha256, shape, license"]
    with_it = experiment.load([file])
    file.write_text(file.read_text().replace(", license: mit", ""))
    assert experiment.load([file]).jobs.keys() == with_it.jobs.keys()


def test_a_branch_cannot_be_resolved_offline() -> None:
    with pytest.raises(SourceError, match="cannot resolve the revision"):
        _commit("owner/model", "main")


def test_a_hub_repository_at_a_commit_is_measured_from_the_cache(
    write_config: Write, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_cache(tmp_path / "cache", llama)
    file = write_config(text_of(f"  m: {{hub: owner/model, revision: {COMMIT}}}  # kept\n", tmp_path))
    assert pinned(file) == ["m: sha256, shape"]
    source = config.load([file])[0].sources["m"]
    assert (source.sha256, source.shape is not None) == (tree_sha256(llama), True)
    assert "}  # kept" in file.read_text()
    experiment.load([file])


def test_a_hub_dataset_gets_the_sha256_of_what_is_taken_of_it(
    write_config: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_dataset(tmp_path, monkeypatch)
    asked: list[tuple[str, ...]] = []

    def commit(*question: str) -> str:
        asked.append(question)
        return COMMIT

    monkeypatch.setattr("strata.pin._commit", commit)
    entry = "  m: {path: {path}}\n  d: {dataset: owner/data, revision: main, file: test.parquet}  # kept\n"
    file = write_config(text_of(entry, tmp_path))
    section = {"d": config.load([file])[0].sources["d"]}
    assert pin(file, section) == ["d: revision, sha256"]
    assert asked == [("owner/data", "main", "dataset")]
    expected = (
        f"{{dataset: owner/data, revision: {COMMIT}, file: test.parquet, sha256: {hashlib.sha256(b'P').hexdigest()}}}"
    )
    assert f"  d: {expected}  # kept\n" in file.read_text()
    assert pin(file, {"d": config.load([file])[0].sources["d"]}) == []
