"""B56 and B60: stores in odd places, and commands in odd surroundings."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attacks import assert_told, in_vain, made, merge_of, refused, run

from conftest import REPOSITORY, tree_sha256
from strata import store
from strata.recipe import Recipe

PLACES = [
    "a b",
    "it's",
    '"quoted"',
    "a\nb",
    "été-🦙",
    "-rf",
    "$(touch pwned)",
    "a;touch pwned",
    "*",
    "%s{0}",
    "x" * 200,
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "a.txt").write_text("x" * 100_000)
    return folder


def fetch(folder: Path) -> tuple[str, ...]:
    return "fetch", Recipe("fetch", {"sha256": tree_sha256(folder)}).canonical, f"--location={folder}"


@contextlib.contextmanager
def mounted(place: Path, options: str) -> Iterator[Path]:
    """A small disk of memory at `place`."""
    place.mkdir()
    if in_vain("mount", "-t", "tmpfs", "-o", "size=64k", "none", place):
        pytest.skip("this machine does not let us mount a small disk")
    try:
        if in_vain("mount", "-o", f"remount,{options}", place):
            pytest.skip("this machine does not let us remount a disk")
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("name", PLACES)
def test_a_store_may_stand_in_a_folder_of_any_name(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    moved = source.rename(tmp_path / f"{name} too"[-200:])
    code, said = run(f"--root={name}", *fetch(moved))
    assert code == 0, said
    (id,) = store.objects(tmp_path / name)
    code, said = run(f"--root={name}", "store", "verify")
    assert (code, said) == (0, f"{id}  ok\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, moved.name])


def test_a_store_may_be_the_folder_that_is_worked_in(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = made(Path(), *fetch(source))
    assert found.path.is_relative_to(".") and (tmp_path / "store.json").is_file()


@pytest.mark.parametrize(("options", "what"), [("size=64k", "the disk is full"), ("ro", "cannot write to the store")])
def test_a_disk_that_takes_nothing_is_told_and_left_as_it_was(
    tmp_path: Path, source: Path, options: str, what: str
) -> None:
    with mounted(tmp_path / "disk", options) as disk:
        refused(disk / "results" if options == "ro" else disk, 8, [what, str(disk)], *fetch(source))


def test_a_disk_that_runs_no_programs_does(tmp_path: Path, source: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m,noexec,nodev,nosuid") as disk:
        made(disk, *fetch(source))


def in_the_way(file: Path) -> None:
    file.write_text("")


def dangling(file: Path) -> None:
    file.symlink_to("nowhere/at/all")


@pytest.mark.parametrize("put", [in_the_way, dangling, lambda path: path.symlink_to(path.name), os.mkfifo])
def test_something_else_where_the_store_belongs_is_told(
    tmp_path: Path, source: Path, put: Callable[[Path], object]
) -> None:
    put(tmp_path / "results")
    code, said = run("--root", tmp_path / "results", *fetch(source))
    assert code == 8
    assert_told(said, [str(tmp_path / "results")])


def test_a_store_of_somebody_elses_is_told() -> None:
    if os.getuid():
        pytest.skip("only root can become somebody else")
    home = Path(tempfile.mkdtemp())  # where others may look, unlike the tests' own folder
    try:
        (home / "source").mkdir()
        (home / "source" / "a").write_text("a")
        made(home / "warm", *fetch(home / "source"))  # what is imported on the way, only root may read
        for path in (home, home / "source"):
            path.chmod(0o755)
        os.seteuid(65534)
        refused(home / "results", 8, ["cannot write to the store", "Permission denied"], *fetch(home / "source"))
    finally:
        os.seteuid(0)
        subprocess.run(["rm", "-rf", home], check=True)


def job(tmp_path: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, whose surroundings `options` change."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY / "workflow"), **options.pop("env", {})}
    command = [sys.executable, "-m", "strata", *arguments]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
        encoding="utf-8", errors="replace", **options,
    )  # fmt: skip


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SURROUNDINGS: dict[str, dict[str, Any]] = {
    "a locale that is not UTF-8": {"env": ASCII},
    "an output that is not UTF-8": {"env": {"PYTHONIOENCODING": "ascii"}},
    "a terminal of one column": {"env": {"COLUMNS": "1", "LINES": "1"}},
    "no home": {"env": {}},
    "a home that is not there": {"env": {"HOME": "/nowhere", "XDG_CACHE_HOME": "/nowhere"}},
    "no input, no output and no errors": {"close_fds": True, "preexec_fn": lambda: os.closerange(0, 3)},
    "a mask that lets nobody else in": {"umask": 0o077},
    "a mask that lets everybody in": {"umask": 0o000},
}


@pytest.mark.parametrize("options", SURROUNDINGS.values(), ids=SURROUNDINGS)
def test_the_same_bytes_and_modes_come_out_wherever_a_command_runs(
    tmp_path: Path, source: Path, options: dict[str, Any]
) -> None:
    moved = source.rename(tmp_path / "été")
    plain, odd = tmp_path / "plain", tmp_path / "öd"
    made(plain, *fetch(moved))
    done = job(tmp_path, "--root", str(odd), *fetch(moved), **options)
    assert done.returncode == 0, done.stdout
    (id,) = store.objects(odd)
    copies = [store.target(root, id) for root in (plain, odd)]
    assert copies[0].read_bytes() == copies[1].read_bytes()
    assert stat.S_IMODE(copies[1].stat().st_mode) == 0o644
    home = copies[1].with_suffix("")
    assert stat.S_IMODE(home.stat().st_mode) == 0o555
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.rglob("*") if path.is_file()} == {0o444}
    wrong = job(
        tmp_path,
        "--root",
        str(odd),
        "fetch",
        Recipe("fetch", {"sha256": "0" * 64}).canonical,
        "--location=nö",
        **options,
    )
    assert wrong.returncode == 4 and "Traceback" not in wrong.stdout
    if "preexec_fn" not in options:
        assert_told(wrong.stdout, ["no such file or folder"])
    assert set(store.objects(odd)) == {id}


@pytest.mark.parametrize("env", [ASCII, {"PYTHONIOENCODING": "ascii"}])
def test_what_cannot_be_printed_is_escaped(tmp_path: Path, llama: Path, env: dict[str, str]) -> None:
    command = merge_of(llama, tmp_path)
    done = job(tmp_path, *command[:2], str(tmp_path / "größer"), env=env)
    assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout
    assert "written to" in done.stdout
    assert (tmp_path / "größer" / "config.json").is_file()
