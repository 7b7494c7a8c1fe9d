"""Sources are brought in once, verified against their pin, and nothing is built or installed on the way."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from conftest import tree_sha256
from strata import sources, store
from strata.errors import SourceError, StoreError
from strata.recipe import Recipe

CONTENT = {"pkg/data/a1.txt": b"one", "pkg/data/a2.txt": b"two", "pkg/data/b.txt": b"three"}
SHA_B = hashlib.sha256(b"three").hexdigest()
SHA_A = hashlib.sha256(
    "".join(
        sorted(
            f"{hashlib.sha256(CONTENT[name]).hexdigest()}  {name}\n" for name in ("pkg/data/a1.txt", "pkg/data/a2.txt")
        )
    ).encode()
).hexdigest()


def wheel() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in CONTENT.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def sdist(extra: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in {
            **CONTENT,
            "setup.py": b"raise SystemExit('built')",
            **({extra: b"x"} if extra else {}),
        }.items():
            info = tarfile.TarInfo(f"pkg-1.0/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package index on loopback; tests put archives into the folder and it lists them."""
    folder = tmp_path / "index" / "pkg"
    folder.mkdir(parents=True)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            if self.path == "/pkg/":
                links = "".join(
                    f'<a href="{f.name}#sha256={hashlib.sha256(f.read_bytes()).hexdigest()}">{f.name}</a>'
                    for f in sorted(folder.iterdir())
                )
                body = f"<html><body>{links}</body></html>".encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            else:
                super().do_GET()

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def package(file: str, sha256: str) -> Recipe:
    return Recipe("fetch", {"package": "pkg==1.0", "file": file, "sha256": sha256})


def files_of(found: store.Object) -> dict[str, bytes]:
    home = found.path / sources.FILES
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("name", "archive"), [("pkg-1.0-py3-none-any.whl", wheel()), ("pkg-1.0.tar.gz", sdist())])
def test_members_are_read_from_a_wheel_or_an_sdist(tmp_path: Path, index: Path, name: str, archive: bytes) -> None:
    (index / name).write_bytes(archive)
    (index / "pkg-2.0-py3-none-any.whl").write_bytes(b"another release")
    one = sources.fetch(tmp_path / "results", package("pkg/data/b.txt", SHA_B), "")
    assert files_of(one) == {"pkg/data/b.txt": b"three"}
    several = sources.fetch(tmp_path / "results", package("pkg/data/a*.txt", SHA_A), "")
    assert files_of(several) == {name: CONTENT[name] for name in ("pkg/data/a1.txt", "pkg/data/a2.txt")}
    assert list((tmp_path / "results" / "tmp").iterdir()) == []


def test_what_was_fetched_is_never_fetched_again(tmp_path: Path, index: Path) -> None:
    (index / "pkg-1.0-py3-none-any.whl").write_bytes(wheel())
    first = sources.fetch(tmp_path / "results", package("pkg/data/b.txt", SHA_B), "")
    (index / "pkg-1.0-py3-none-any.whl").unlink()
    assert sources.fetch(tmp_path / "results", package("pkg/data/b.txt", SHA_B), "") == first


def test_a_wrong_checksum_names_both_and_publishes_nothing(tmp_path: Path, index: Path) -> None:
    (index / "pkg-1.0-py3-none-any.whl").write_bytes(wheel())
    with pytest.raises(SourceError, match="wrong checksum") as caught:
        sources.fetch(tmp_path / "results", package("pkg/data/b.txt", "0" * 64), "")
    assert "0" * 64 in str(caught.value)
    assert SHA_B in str(caught.value)
    assert "strata pin" in str(caught.value)
    assert not list((tmp_path / "results" / "sources").iterdir())


def test_an_archive_that_is_not_the_indexs_is_refused(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = index / "pkg-1.0-py3-none-any.whl"
    file.write_bytes(wheel())
    real = hashlib.sha256
    monkeypatch.setattr(
        hashlib, "sha256", lambda data=b"", **o: real(b"lie" if data == file.read_bytes() else data, **o)
    )
    with pytest.raises(SourceError, match="cannot be fetched"):
        sources.fetch(tmp_path / "results", package("pkg/data/b.txt", SHA_B), "")


@pytest.mark.parametrize(
    ("file", "message"), [("pkg/data/none.txt", "no file matches"), ("pkg/none*", "no file matches")]
)
def test_a_member_that_is_not_there(tmp_path: Path, index: Path, file: str, message: str) -> None:
    (index / "pkg-1.0.tar.gz").write_bytes(sdist())
    with pytest.raises(SourceError, match=message):
        sources.fetch(tmp_path / "results", package(file, SHA_B), "")


def test_a_release_that_is_not_there_names_the_index(tmp_path: Path, index: Path) -> None:
    (index / "pkg-2.0.tar.gz").write_bytes(sdist())
    with pytest.raises(SourceError, match=r"has no version 1\.0"):
        sources.fetch(tmp_path / "results", package("pkg/data/b.txt", SHA_B), "")


def test_a_member_that_would_leave_the_store_is_refused(tmp_path: Path, index: Path) -> None:
    (index / "pkg-1.0.tar.gz").write_bytes(sdist("../../../evil.txt"))
    with pytest.raises(SourceError, match="unsafe file name"):
        sources.fetch(tmp_path / "results", package("*", SHA_B), "")
    assert not list(tmp_path.rglob("evil.txt"))


def test_a_local_file_and_a_local_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.txt").write_text("b")
    sha = hashlib.sha256(b"a").hexdigest()
    assert files_of(sources.fetch(tmp_path / "r", Recipe("fetch", {"sha256": sha}), str(folder / "a.txt"))) == {
        "a.txt": b"a"
    }
    whole = sources.fetch(tmp_path / "r", Recipe("fetch", {"sha256": tree_sha256(folder)}), str(folder))
    assert files_of(whole) == {"a.txt": b"a", "sub/b.txt": b"b"}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"no such file or folder") as caught:
        sources.fetch(tmp_path / "r", Recipe("fetch", {"sha256": SHA_B}), str(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_a_source_changed_in_the_store_is_found_before_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"x" * (store.HASHED_ON_READ + 1))
    sha = sources.file_sha256(tmp_path / "big.bin")
    found = sources.fetch(tmp_path / "r", Recipe("fetch", {"sha256": sha}), str(tmp_path / "big.bin"))
    file = found.path / sources.FILES / "big.bin"
    file.chmod(0o644)
    file.write_bytes(b"y" * (store.HASHED_ON_READ + 1))
    with pytest.raises(StoreError, match="sha256"):
        store.verify(store.require(tmp_path / "r", found.id))


COMMIT = "27d67f1b5f57dc0953326b2601d68371d40ea8da"


def fill_cache(cache: Path, folder: Path, name: str = "models--owner--model") -> None:
    """Lay a repository into the hub's cache as huggingface_hub does: blobs, and a snapshot of links to them."""
    home = cache / name
    snapshot = home / "snapshots" / COMMIT
    (home / "blobs").mkdir(parents=True)
    for file in (path for path in folder.rglob("*") if path.is_file()):
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)


def test_a_hub_repository_from_a_filled_cache(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_cache(tmp_path / "cache", llama)
    found = sources.fetch(tmp_path / "r", Recipe("fetch", {"hub": "owner/model", "revision": COMMIT}), "")
    expected = {file.name: file.read_bytes() for file in llama.iterdir()}
    assert files_of(found) == expected
    assert not [path for path in found.path.rglob("*") if path.is_symlink()]
    with pytest.raises(SourceError, match="wrong checksum"):
        sources.fetch(tmp_path / "r", Recipe("fetch", {"hub": "owner/model", "revision": COMMIT, "sha256": SHA_B}), "")


def test_what_else_is_in_the_cache_is_left_there(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    fill_cache(tmp_path / "cache", llama)
    snapshot = tmp_path / "cache" / "models--owner--model" / "snapshots" / COMMIT
    for name in ("pytorch_model.bin", "README.md", "evil.py", "consolidated.safetensors"):
        (snapshot / name).write_text("x")
    found = sources.fetch(tmp_path / "r", Recipe("fetch", {"hub": "owner/model", "revision": COMMIT}), "")
    assert set(files_of(found)) == {file.name for file in llama.iterdir()}


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="leaves the folder"):
        sources.fetch(tmp_path / "r", Recipe("fetch", {"sha256": SHA_B}), str(tmp_path / "data"))


def test_a_password_in_an_index_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:SECRET@127.0.0.1:9/simple/")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    with pytest.raises(SourceError, match="cannot be fetched") as caught:
        sources.fetch(tmp_path / "r", package("b.txt", SHA_B), "")
    assert "SECRET" not in str(caught.value)


def test_offline_without_the_cache_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SourceError, match="not in the hub's cache"):
        sources.fetch(tmp_path / "r", Recipe("fetch", {"hub": "owner/model", "revision": COMMIT}), "")


FILES_OF_DATASET = {
    "data/a-0.jsonl": b"{}", "data/a-1.jsonl": b"{ }", "test.parquet": b"P", "README.md": b"#", "load.py": b"x",
}  # fmt: skip


def fill_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay a dataset repository into a cache of the hub's below `folder`."""
    from huggingface_hub import constants

    for name, data in FILES_OF_DATASET.items():
        (folder / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "repository" / name).write_bytes(data)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    fill_cache(folder / "cache", folder / "repository", "datasets--owner--data")


DATASET = {"dataset": "owner/data", "revision": COMMIT}


@pytest.mark.parametrize(
    ("file", "names"),
    [
        ("test.parquet", {"test.parquet"}),
        ("data/*.jsonl", {"data/a-0.jsonl", "data/a-1.jsonl"}),
        (None, {"data/a-0.jsonl", "data/a-1.jsonl", "test.parquet"}),  # its data, and none of its programs
    ],
)
def test_a_hub_dataset_from_a_filled_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str | None, names: set[str]
) -> None:
    fill_dataset(tmp_path, monkeypatch)
    pin = DATASET | ({"file": file} if file else {})
    found = sources.fetch(tmp_path / "r", Recipe("fetch", pin), "")
    assert files_of(found) == {name: FILES_OF_DATASET[name] for name in names}
    assert not [path for path in found.path.rglob("*") if path.is_symlink()]
    whole = hashlib.sha256(b"P").hexdigest() if file == "test.parquet" else tree_sha256(found.path / sources.FILES)
    assert found.facts["sha256"] == whole
    assert sources.fetch(tmp_path / "r", Recipe("fetch", pin | {"sha256": whole}), "").digest == found.digest
    with pytest.raises(SourceError, match="wrong checksum") as caught:
        sources.fetch(tmp_path / "r", Recipe("fetch", pin | {"sha256": SHA_B}), "")
    assert f"owner/data@{COMMIT}" in str(caught.value)


def test_a_file_that_a_hub_dataset_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_dataset(tmp_path, monkeypatch)
    with pytest.raises(SourceError, match="no file matches") as caught:
        sources.fetch(tmp_path / "r", Recipe("fetch", DATASET | {"file": "train.*"}), "")
    assert f"owner/data@{COMMIT}, train.*" in str(caught.value)


def test_a_model_of_the_same_name_is_another_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_dataset(tmp_path, monkeypatch)
    with pytest.raises(SourceError, match="not in the hub's cache"):
        sources.fetch(tmp_path / "r", Recipe("fetch", {"hub": "owner/data", "revision": COMMIT}), "")
