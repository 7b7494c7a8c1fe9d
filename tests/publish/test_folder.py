"""A variant as a folder: plain files that transformers loads without this project, whole or not there at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import snakemake, strata
from strata import config, experiment, store
from strata.errors import PublishError, StoreError
from strata.publish import folder as folders
from strata.publish.folder import publish

LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
AutoTokenizer.from_pretrained(sys.argv[1])
assert not [name for name in sys.modules if name.startswith("strata")]
print(model.config.num_hidden_layers)
"""


@pytest.fixture
def run(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished experiment in which `dus` is to be published, as the working directory."""
    file = finished / "config.yaml"
    file.write_text(file.read_text().replace("drop: 1}}", "drop: 1}, publish: {directory: out/dus}}", 1))
    monkeypatch.chdir(finished)
    return finished


def published(name: str = "dus") -> Any:
    loaded = config.load(["config.yaml"])
    return publish(Path("results"), experiment.resolve(*loaded), loaded, name)


def test_a_run_publishes_what_the_config_says_and_the_report_links_it(run: Path) -> None:
    done = snakemake(run)
    assert done.returncode == 0, done.stdout
    out, receipt = run / "out" / "dus", json.loads((run / "results" / "published" / "dus.json").read_text())
    assert receipt["files"] == {file.name: file.stat().st_size for file in out.iterdir()}
    page = (run / "results" / "report" / "report.html").read_text()
    assert '<a href="../../out/dus">out/dus</a>' in page and f"{sum(receipt['files'].values()):,}" in page
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(out)], capture_output=True, text=True, cwd="/", env=os.environ
    )
    assert loaded.stdout.strip() == "6", loaded.stderr
    again = snakemake(run, "-n")
    assert "Nothing to be done" in again.stdout
    assert strata(run, "verify", "--scores").returncode == 0


def test_its_files_are_the_stores_bytes_and_nobodys_links(run: Path) -> None:
    made = published()
    found = store.require(Path("results"), made.checkpoint)
    for name in (*found.manifest["files"], "manifest.json"):
        file = run / "out" / "dus" / name
        assert file.read_bytes() == (found.path / name).read_bytes()
        assert not file.is_symlink() and file.stat().st_nlink == 1 and os.access(file, os.W_OK)
    assert set(made.files) - set(found.manifest["files"]) == {"README.md", "manifest.json"}


def test_publishing_again_touches_nothing_and_other_content_takes_its_place(run: Path) -> None:
    published()
    before = (run / "out" / "dus").stat().st_ino
    published()
    assert (run / "out" / "dus").stat().st_ino == before
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("  m: {", "  m: {license: mit, ", 1))
    published()
    assert (run / "out" / "dus").stat().st_ino != before
    assert (run / "out" / "dus" / "README.md").read_text().startswith("---\n")
    assert [file.name for file in (run / "out").iterdir()] == ["dus"]  # nothing is left of the old one, or of the work


@pytest.mark.parametrize("mine", ["notes.txt", "deep/model.gguf", "mine-IQ4_XS.gguf"])
def test_a_folder_with_something_else_in_it_is_left_alone(run: Path, mine: str) -> None:
    published()
    file = run / "out" / "dus" / mine
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(PublishError, match="something else stands") as caught:
        published()
    assert mine in str(caught.value) and file.read_text() == "mine"


def test_a_card_that_was_edited_is_left_alone(run: Path) -> None:
    published()
    card = run / "out" / "dus" / "README.md"
    card.write_text(card.read_text() + "\nA word of mine.\n")
    with pytest.raises(PublishError, match=r"README\.md that was changed"):
        published()
    assert "A word of mine." in card.read_text()


def test_where_the_receipt_is_lost_the_manifest_in_the_folder_tells(run: Path) -> None:
    published()
    (run / "results" / "published" / "dus.json").unlink()
    (run / "out" / "dus" / "curve.json").write_text("{}")
    with pytest.raises(PublishError, match="something else stands"):
        published()
    (run / "out" / "dus" / "curve.json").unlink()
    published()


@pytest.mark.parametrize("died", ["before", "after"])
def test_a_publish_that_was_killed_at_the_exchange_loses_nothing(run: Path, died: str) -> None:
    """Between the two renames nothing stands there, and the old one beside it; after them, both do."""
    published()
    out = run / "out" / "dus"
    old = out.with_name(".dus.previous")
    if died == "before":
        out.rename(old)
    else:
        shutil.copytree(out, old)
    published()
    assert (out / "README.md").exists() and not old.exists()


def test_a_rename_that_fails_puts_the_old_one_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published()
    out = run / "out" / "dus"
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("  m: {", "  m: {license: mit, ", 1))
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == Path("out/dus") and ".previous" not in self.name:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    before = (out / "README.md").read_text()
    with pytest.raises(OSError, match="Input/output"):
        published()
    assert (out / "README.md").read_text() == before and [file.name for file in out.parent.iterdir()] == ["dus"]


def test_a_licence_that_is_written_down_later_is_in_the_card(run: Path) -> None:
    """It is no part of any recipe: the run does nothing else."""
    assert snakemake(run).returncode == 0
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("  m: {", "  m: {license: mit, ", 1))
    done = snakemake(run)
    assert done.returncode == 0 and "rule init" not in done.stdout
    assert "license: mit" in (run / "out" / "dus" / "README.md").read_text()


def test_a_publish_that_fails_keeps_the_receipt_of_the_last_one(run: Path) -> None:
    assert snakemake(run).returncode == 0
    receipt = (run / "results" / "published" / "dus.json").read_bytes()
    (run / "out" / "dus" / "notes.txt").write_text("mine")
    failed = snakemake(run, "--forcerun", "publish")
    assert failed.returncode != 0 and "notes.txt" in failed.stdout
    assert (run / "results" / "published" / "dus.json").read_bytes() == receipt


def test_a_model_of_somebody_else_is_not_replaced(run: Path, llama: Path) -> None:
    out = run / "out" / "dus"
    out.mkdir(parents=True)
    for file in llama.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    with pytest.raises(PublishError, match="something else stands"):
        published()
    (out / "manifest.json").write_text('{"seal": "0", "files": {}}')
    with pytest.raises(PublishError, match="something else stands"):
        published()
    assert (out / "model.safetensors").exists()


def test_a_file_or_a_link_in_its_place_is_refused(run: Path) -> None:
    (run / "out").mkdir()
    (run / "out" / "dus").write_text("a file")
    with pytest.raises(PublishError, match="a file or a link"):
        published()
    (run / "out" / "dus").unlink()
    (run / "elsewhere").mkdir()
    (run / "out" / "dus").symlink_to(run / "elsewhere")
    with pytest.raises(PublishError, match="a file or a link"):
        published()


def test_a_damaged_checkpoint_is_not_published(run: Path) -> None:
    made = experiment.load(["config.yaml"]).variants["dus"]
    shard = next(store.require(Path("results"), made.job.id).path.glob("*.safetensors"))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        published()
    assert not (run / "out").exists()


def test_a_copy_that_went_wrong_is_never_seen(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(source: int, begin: int, end: int, target: int, offset: int) -> None:
        os.pwrite(target, bytes(end - begin), offset)

    monkeypatch.setattr(folders, "copy_range", short)
    with pytest.raises(StoreError, match="damaged"):
        published()
    assert not list((run / "out").iterdir())


def test_what_is_not_to_be_published_is_said(run: Path) -> None:
    with pytest.raises(PublishError, match="`base` is not to be published there"):
        published("base")
    told = strata(run, "publish", "duss")
    assert told.returncode == 2 and "did you mean dus?" in told.stderr


def test_a_full_disk_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from strata.errors import SpaceError

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folders, "copy_range", full)
    with pytest.raises(SpaceError, match="the disk is full"):
        published()
    assert not list((run / "out").iterdir())
