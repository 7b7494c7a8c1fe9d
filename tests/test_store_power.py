"""The store when power is lost: what was not synced by then is gone, and what is visible is whole all the same.

Every call of a job that changes the disk is recorded, and replayed up to each (as ALICE does, Pillai et al., OSDI 2014).
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from strata import store
from strata.recipe import Recipe
from strata.sources import tree_sha256

CALLS = "mkdir,openat,write,pwrite64,copy_file_range,sendfile,fsync,fdatasync,rename,unlink,unlinkat,rmdir"
CALL = re.compile(r"\d+ +(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+)")
PLACE = re.compile(r'(?:\w+<(?P<folder>[^>]*)>)?(?:, )?(?:"(?P<name>[^"]*)")?')  # a descriptor, a name, or both


@dataclass(eq=False)
class Node:
    """A file or folder: how often it was written to, how many of that are synced, and whether its name is."""

    is_folder: bool
    writes: int = 0
    synced: int = 0
    is_named: bool = False


@dataclass(frozen=True)
class Entry:
    """A node at one moment."""

    node: Node
    synced: int
    is_named: bool


def calls(log: Path) -> Iterator[tuple[str, str]]:
    """Name and arguments of each call that succeeded, where it ended: threads may be at it at once."""
    begun: dict[str, str] = {}
    for line in log.read_text().splitlines():
        process, _, rest = line.partition(" ")
        if rest.endswith("<unfinished ...>"):
            begun[process] = line.removesuffix("<unfinished ...>")
            continue
        whole = begun.pop(process) + rest.partition("resumed>")[2] if "resumed>" in rest else line
        call = CALL.match(whole)
        if call and not call["result"].startswith("-"):
            yield call["name"], call["arguments"]


def moments(log: Path, root: Path) -> Iterator[dict[Path, Entry]]:
    """What lies below `root` after each call that changed it."""
    nodes = {root: Node(True)}
    for call, arguments in calls(log):
        if apply(nodes, root, call, arguments):
            yield {path: Entry(node, node.synced, node.is_named) for path, node in nodes.items()}


def apply(nodes: dict[Path, Node], root: Path, call: str, arguments: str) -> bool:
    """Do a call again. Returns whether it changed anything."""

    def place(text: str) -> Path:
        found = PLACE.match(text)
        assert found, text
        return Path(found["folder"] or "", found["name"] or "")

    by_descriptor = {"write": 0, "pwrite64": 0, "sendfile": 0, "fsync": 0, "fdatasync": 0, "copy_file_range": 2}
    path = place(arguments.split(", ")[by_descriptor[call]] if call in by_descriptor else arguments)
    if not path.is_relative_to(root):
        return False
    match call:
        case "mkdir":
            nodes[path] = Node(True)
        case "openat" if "O_CREAT" in arguments:
            nodes.setdefault(path, Node(False))
        case "write" | "pwrite64" | "copy_file_range" | "sendfile":
            nodes[path].writes += 1
        case "fsync" | "fdatasync":
            nodes[path].synced = nodes[path].writes
            for other in nodes:
                if other.parent == path:
                    nodes[other].is_named = True
        case "rename":
            new = place(arguments.split(", ")[1])
            for old in [old for old in nodes if old.is_relative_to(path)]:
                nodes[new / old.relative_to(path)] = nodes.pop(old)
            nodes[new].is_named = False
        case "unlink" | "unlinkat" | "rmdir":
            nodes.pop(path)
        case _:
            return False
    return True


def lay_out(entries: dict[Path, Entry], content: dict[Node, bytes], root: Path, after: Path, folders: bool) -> None:
    """Make what a disk may show in the worst cases: a file that is not synced is empty, and a name inside an object that
    is not synced is gone. The names of `folders` that are not synced have come through, or have not."""
    for path, entry in sorted(entries.items()):
        place = after / path.relative_to(root)
        depth = len(place.relative_to(after).parts)
        can_be_lost = depth > 2 or (depth == 2 and entry.node.is_folder and not folders)
        if path == root or not place.parent.is_dir() or (can_be_lost and not entry.is_named):
            continue
        if entry.node.is_folder:
            place.mkdir()
        else:
            place.write_bytes(content.get(entry.node, b"") if entry.synced == entry.node.writes else b"")


def test_after_any_call_an_object_is_whole_or_not_there(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    source, root, log = tmp_path / "source", tmp_path / "root", tmp_path / "strace"
    (source / "sub").mkdir(parents=True)
    (source / "a.txt").write_text("x" * 9000)
    (source / "sub" / "b.txt").write_text("b")
    root.mkdir()
    recipe = Recipe("fetch", {"sha256": tree_sha256(source, one_file=False)})
    job = ["-m", "strata", "--root", str(root), "fetch", recipe.canonical, "--location", str(source)]
    subprocess.run(
        ["strace", "-f", "-y", "-qq", "-s", "4096", "-o", str(log), "-e", f"trace={CALLS}", sys.executable, *job],
        check=True, env={**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    *_, last = replayed = list(moments(log, root))
    files = {path for path in last if not last[path].node.is_folder}
    assert files == {path for path in root.rglob("*") if path.is_file()}  # or the replay is not what happened
    content = {last[path].node: path.read_bytes() for path in files}
    seen = set()
    for number, (entries, folders) in enumerate(itertools.product(replayed, (True, False))):
        after = tmp_path / str(number)
        after.mkdir()
        lay_out(entries, content, root, after, folders)
        found = store.find(after, recipe.id)  # raises where it is torn
        if found is not None:
            store.verify(found)
        copy = store.target(after, recipe.id)
        assert not copy.exists() or copy.read_bytes() == store.target(root, recipe.id).read_bytes()
        seen.add((found is not None, copy.exists()))
    assert seen == {(False, False), (True, False), (True, True)}  # the copy never outlives what it stands for
