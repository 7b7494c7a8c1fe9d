"""A package's archive that is none, or whose members would leave their place. It is read, never built or installed."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import pytest
from attacks import refused

from strata import sources
from strata.recipe import Recipe


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return buffer.getvalue()


def tarred(name: str = "p/a.txt", **changes: object) -> bytes:
    """An sdist of one member, of any kind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = 0 if changes else 5000
        for key, value in changes.items():
            setattr(info, key, value)
        archive.addfile(info, io.BytesIO(b"y" * info.size))
    return buffer.getvalue()


def patched(archive: bytes, local: int, central: int, value: int) -> bytes:
    """A zip whose one member says something else in both of its headers."""
    raw = bytearray(archive)
    raw[raw.find(b"PK\3\4") + local] = raw[raw.find(b"PK\1\2") + central] = value
    return bytes(raw)


ONE = zipped(**{"a/b.txt": "hello" * 100})
READ = "the archive cannot be read"
HOSTILE = [
    ("an empty zip", "x.whl", b"", READ),
    ("no zip", "x.whl", b"PK\3\4" + b"x" * 99, READ),
    ("a zip that is cut short", "x.whl", ONE[:-30], READ),
    ("a zip with another content than its sum", "x.whl", ONE.replace(b"hello", b"hellp", 1), READ),
    ("a zip with a password", "x.whl", patched(ONE, 6, 8, 1), READ),
    ("a zip of an unknown compression", "x.whl", patched(ONE, 8, 10, 99), READ),
    ("a member that climbs", "x.whl", zipped(**{"../../evil.txt": "x"}), "an unsafe file name"),
    ("an absolute member", "x.whl", zipped(**{"/nowhere/evil.txt": "x"}), "an unsafe file name"),
    ("a member that is absolute twice", "x.whl", zipped(**{"//nowhere/evil.txt": "x"}), "an unsafe file name"),
    ("a member with a path of Windows", "x.whl", zipped(**{"..\\evil.txt": "x"}), "an unsafe file name"),
    ("a file and a folder of one name", "x.whl", zipped(a="1", **{"a/b": "2"}), "a file and a folder of one name"),
    ("a folder and a file of one name", "x.whl", zipped(**{"a/b": "2", "a": "1"}), "two files of one name"),
    ("an empty tar", "x.tar.gz", b"", READ),
    ("a tar of two bytes", "x.tar.gz", b"\x1f\x8b", READ),
    ("a tar that is cut short", "x.tar.gz", tarred()[:-20], READ),
    ("a compressed something", "x.tar.gz", gzip.compress(b"zzz" * 1000), READ),
    ("a member of a tar that climbs", "x.tar.gz", tarred("p/../../evil.txt"), "an unsafe file name"),
    ("a tar of a link to a file of ours", "x.tar.gz", tarred(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "no file matches"),
    ("a tar of a hard link", "x.tar.gz", tarred(type=tarfile.LNKTYPE, linkname="../../x"), "no file matches"),
    ("a tar of a device", "x.tar.gz", tarred(type=tarfile.CHRTYPE, devmajor=1), "no file matches"),
    ("a tar of a FIFO", "x.tar.gz", tarred(type=tarfile.FIFOTYPE), "no file matches"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "what"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_an_archive_that_is_not_what_it_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, what: str
) -> None:
    def download(package: str, folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    monkeypatch.setattr(sources, "_download", download)
    recipe = Recipe("fetch", {"package": "x==1", "file": "*", "sha256": "0" * 64})
    refused(tmp_path / "results", 4, [what], "fetch", recipe.canonical)
    assert not Path("/nowhere").exists()
    assert not list(tmp_path.rglob("evil*")) and not list(tmp_path.rglob("*.txt"))
