"""What the gallery shares: commands as a user runs them, and what a refusal must be."""

from __future__ import annotations

import io
import json
import shutil
import signal
import struct
import subprocess
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

from conftest import tree_sha256
from strata import cli, progress, store
from strata.recipe import Recipe
from strata.shapes import shape_of

Spoil = Callable[[Path], object]  # makes a good model's folder a bad one
PATIENCE = 60  # seconds: of a busy machine; every case here takes less than one on an idle one


class TooLong(BaseException):
    """No exception that the command line could catch and report."""


def run(*arguments: str | Path) -> tuple[int, str]:
    """One command in this process, as the command line runs it: its exit code and what it said."""

    def stop(*_: object) -> None:
        raise TooLong(arguments)

    said = io.StringIO()
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGALRM)]
    signal.signal(signal.SIGALRM, stop)
    signal.alarm(PATIENCE)
    try:
        with redirect_stderr(said), redirect_stdout(said), patch.object(progress, "terminal", said):
            code = cli.main([str(argument) for argument in arguments])
    except SystemExit as error:  # argparse
        code = int(error.code or 0)
    finally:
        signal.alarm(0)
        for number, handler in before:
            signal.signal(number, handler)
    return code, said.getvalue()


def refused(root: Path, code: int, words: list[str], *arguments: str | Path) -> str:
    """Run a command that must be refused: an exit code of its kind, one message, nothing published and nothing left."""
    before = visible(root)
    got, said = run("--root", root, *arguments)
    assert got == code, said
    assert_told(said, words)
    assert visible(root) == before
    assert not [path for name in ("tmp", "leases") for path in (root / name).glob("*")]
    return said


def assert_told(said: str, words: list[str]) -> None:
    """One message that says what, where, what was expected, what was found, and what is to be done, and no traceback."""
    assert said.count("error: ") == 1 and "Traceback" not in said, said
    assert "  where:" in said and "  expected:" in said and "  got:" in said and "  do:" in said, said
    for word in words:
        assert word in said, f"{word!r} is not in: {said}"


def made(root: Path, *command: str) -> store.Object:
    """What a command with a recipe publishes, every byte of it verified."""
    code, said = run("--root", root, *command)
    assert code == 0, said
    return store.require(root, Recipe.from_json(json.loads(command[1])).id, store.verify)


def visible(root: Path) -> set[str]:
    """Everything that a reader of the store sees."""
    found = set(store.objects(root))
    return found | {path.relative_to(root).as_posix() for path in root.glob("*/*.json")}


def copy_of(model: Path, folder: Path) -> Path:
    return Path(shutil.copytree(model, folder))


def fetch_and_init(root: Path, folder: Path, model: Path) -> tuple[str, str]:
    """Bring a folder in, and return the command that makes a base of it; its shape is said to be a good model's."""
    source = Recipe("fetch", {"sha256": tree_sha256(folder)})
    code, said = run("--root", root, "fetch", source.canonical, "--location", folder)
    assert code == 0, said
    shape = shape_of(model)
    assert shape is not None
    return "init", Recipe("init", {"architecture": shape["family"], "shape": shape}, (), (source.id,)).canonical


def pin_of(folder: Path, at: Path) -> tuple[str, ...]:
    """The command that would pin a config whose source is this folder."""
    (at / "config.yaml").write_text(
        f"sources:\n  m: {{path: {json.dumps(str(folder))}}}\nvariants:\n  b: {{init: {{source: m}}}}\n"
    )
    return "pin", "--configfile", str(at / "config.yaml")


def merge_of(folder: Path, at: Path) -> tuple[str, ...]:
    """The command that would stack two layers of the model in a folder, as mergekit does."""
    slices = json.dumps([{"sources": [{"model": str(folder), "layer_range": [0, 2]}]}])
    (at / "merge.yaml").write_text(f"merge_method: passthrough\nslices: {slices}\n")
    return "merge", str(at / "merge.yaml"), str(at / "out")


def edit_json(name: str, **changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        file = folder / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return spoil


def encode(table: Any, data: bytes = b"\0" * 8) -> bytes:
    """A safetensors file of a header, as a table or as raw text, and data."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def weights(edit: Callable[[dict[str, Any], bytearray], object]) -> Spoil:
    """Change the header's table and the data of model.safetensors."""

    def spoil(folder: Path) -> None:
        file = folder / "model.safetensors"
        raw = file.read_bytes()
        begin = 8 + struct.unpack("<Q", raw[:8])[0]
        table, data = json.loads(raw[8:begin]), bytearray(raw[begin:])
        edit(table, data)
        file.write_bytes(encode(table, bytes(data)))

    return spoil


def add(table: dict[str, Any], data: bytearray, name: str, dtype: str, shape: list[int], content: bytes) -> None:
    """Put one more tensor behind the others."""
    table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
    data += content


def sharded(edit: Callable[[Path, dict[str, str]], object]) -> Spoil:
    """Lay model.safetensors out as a shard and its index, and change what the index says."""

    def spoil(folder: Path) -> None:
        table = json.loads((folder / "model.safetensors").read_bytes()[8:].split(b"}}")[0] + b"}}")
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        weight_map = dict.fromkeys(table.keys() - {"__metadata__"}, "a.safetensors")
        changed = edit(folder, weight_map)
        index = changed if isinstance(changed, dict) else {"weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return spoil


def in_vain(*command: str | Path) -> bool:
    """Whether this machine does not let us do something that only root may."""
    return subprocess.run(list(map(str, command)), capture_output=True).returncode != 0
