"""The model card: what a variant is, told from manifests and sample logs, as the hub's own client reads it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub import card_problems
from huggingface_hub import ModelCard

from conftest import build, strata, tree_sha256, write_experiment, write_lessons
from strata import config, experiment, store
from strata.chat import rendered
from strata.llamacpp.convert import open_tokenizer
from strata.publish.card import card
from strata.publish.origin import own_config

PRETRAIN = "pretrain: {data: {diary: 1.0}, tokens: 512, length: 32, batch: 4, heldout: {source: words, tokens: 64}}"
VARIANTS = f"""\
  base: {{init: {{source: m}}}}
  dus: {{parent: base, merge: {{method: dus, drop: 1}}, publish: {{directory: out}}}}
  twice: {{parent: dus, merge: {{method: dus, drop: 2}}}}
  healed: {{parent: dus, {PRETRAIN}, publish: {{hub: me/healed}}}}
  tuned: {{parent: healed, sft: {{data: [rows], template: solar, length: 64, batch: 4, epochs: 1}}}}
  other: {{parent: base, merge: {{method: prune, range: [1, 2]}}}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """An experiment of merges, training and tuning, run to its end."""
    folder = write_experiment(tmp_path_factory.mktemp("cards"), llama, VARIANTS)
    for name, words in (("diary", "Dear diary, today I walked. "), ("words", "Other words than those, held out. ")):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text(words * 40)
    lessons = write_lessons(folder)
    words = f"  words: {{path: words, sha256: {tree_sha256(folder / 'words')}}}\n"
    file = folder / "config.yaml"
    text = file.read_text().replace("variants:\n", lessons + words + "variants:\n", 1)
    file.write_text(text.replace("  m: {", "  m: {license: mit, ", 1))
    build(folder)
    assert strata(folder, "links").returncode == strata(folder, "report").returncode == 0
    return folder


def card_of(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(folder)
    loaded = config.load(["config.yaml"])
    made = experiment.resolve(*loaded)
    return card(Path("results"), made, loaded, made.variants[name], {}, "me/model")


def blocks(text: str) -> list[Any]:
    """The YAML of a card's fenced blocks: the mergekit file, where there is one, and the config."""
    return [yaml.safe_load(block.split("```")[0]) for block in text.split("```yaml\n")[1:]]


@pytest.mark.parametrize("name", ["base", "dus", "twice", "healed", "tuned", "other"])
def test_the_hubs_client_reads_a_card_back_and_the_hub_finds_nothing_wrong(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = card_of(folder, name, monkeypatch)
    read = ModelCard(text)
    assert str(read) == text
    assert card_problems(text) == ([], [])
    assert read.data.license == "mit" and read.data.library_name == "transformers"
    scores = {(r.dataset_config, r.metric_type): r.metric_value for r in read.data.eval_results}
    with (folder / "results" / "report" / "scores.csv").open() as stream:
        row = next(row for row in csv.DictReader(stream) if row["variant"] == name)
    told = {("tiny/text", "bits_per_byte"): float(row["tiny/text/bits_per_byte"])}
    assert scores == {**told, ("tiny/next", "acc_norm"): float(row["tiny/next/acc_norm"])}


def test_a_card_tells_identity_and_what_a_variant_was_made_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = card_of(folder, "tuned", monkeypatch)
    made = experiment.load(["config.yaml"])
    found = store.require(Path("results"), made.variants["tuned"].job.id)
    assert found.digest in text and found.id in text
    assert "made from a local model by re-stacking layers, then continued pretraining, then instruction tuning" in text
    for step in (
        "1. `base`: init llama",
        "2. `dus` from base: dus drop 1",
        "4. `tuned` from healed: sft solar 1 epoch of rows",
    ):
        assert step in text
    assert "## Training: healed" in text and "## Training: tuned" in text
    losses = store.require(Path("results"), made.variants["healed"].job.id).facts["training"]["heldout"]
    assert f"held-out loss {losses[0]:.3f} -> {losses[-1]:.3f}" in text
    assert "| 0-2 | 0-2 of base |\n| 3-5 | 1-3 of base |" in text  # of the merge that it began as


def test_a_tuned_variant_is_asked_as_it_was_taught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    found = store.require(Path("results"), experiment.load(["config.yaml"]).variants["tuned"].job.id)
    text = rendered(open_tokenizer(found), [{"role": "user", "content": "Hi"}], found.path)
    assert text == "### User:\nHi\n\n### Assistant:\n"


def test_a_difference_to_the_base_comes_with_its_error_and_the_base_has_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "difference to base | 95 % interval" in card_of(folder, "dus", monkeypatch)
    assert "difference" not in card_of(folder, "base", monkeypatch)


@pytest.mark.parametrize("name", ["dus", "twice", "other"])
def test_its_mergekit_file_makes_the_same_tensors(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A chain of merges is one file over the base."""
    file = blocks(card_of(folder, name, monkeypatch))[0]
    base = (folder / "results" / "variants" / "base").resolve()
    text = json.dumps(file).replace('"model": "base"', f'"model": "{base}"')
    (tmp_path / "merge.yaml").write_text(yaml.safe_dump(json.loads(text)))
    done = strata(folder, "merge", str(tmp_path / "merge.yaml"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    made = experiment.load(["config.yaml"])
    expected = store.require(Path("results"), made.variants[name].job.id)
    assert tensors(tmp_path / "out") == tensors(expected.path)


def tensors(folder: Path) -> dict[str, bytes]:
    from strata.tensors import read_header

    found = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        found |= {tensor.name: data[tensor.begin : tensor.end] for tensor in read_header(file).tensors}
    return found


@pytest.mark.parametrize("name", ["base", "twice", "tuned"])
def test_its_config_makes_the_same_recipes(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In a folder that has the local sources and the suite, the ids are the same; nothing else is built."""
    own = blocks(card_of(folder, name, monkeypatch))[-1]
    for entry in folder.iterdir():
        if entry.name not in ("config.yaml", "results"):
            (tmp_path / entry.name).symlink_to(entry)
    before = experiment.load(["config.yaml"]).variants[name]
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(yaml.safe_dump(own))
    after = experiment.load(["config.yaml"])
    assert after.variants[name].job.id == before.job.id
    assert [job.id for job in after.variants[name].evaluations] == [job.id for job in before.evaluations]
    assert (
        set(after.variants)
        == {"base": {"base"}, "twice": {"base", "dus", "twice"}, "tuned": {"base", "dus", "healed", "tuned"}}[name]
    )


def test_a_config_of_its_own_tells_no_path_and_no_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    loaded = config.load(["config.yaml"])
    text = own_config(experiment.resolve(*loaded), loaded[1], "tuned")
    assert str(folder) not in text and "/" not in yaml.safe_load(text)["sources"]["m"]["path"]
    assert "publish" not in text and "me/healed" not in text


def test_no_place_of_this_machine_is_in_a_card(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sources, suites and task folders that were named by absolute paths."""
    for entry in folder.iterdir():
        if entry.name != "config.yaml":
            (tmp_path / entry.name).symlink_to(entry)
    text = (folder / "config.yaml").read_text()
    text = text.replace("suites: [tiny.yaml]", f"suites: [{tmp_path}/tiny.yaml]\ntask_folders: [{tmp_path}/tasks]")
    text = text.replace("path: diary", f"path: {tmp_path}/diary").replace(
        "directory: out", f"directory: {tmp_path}/out"
    )
    (tmp_path / "config.yaml").write_text(text)
    made = card_of(tmp_path, "healed", monkeypatch)
    assert str(tmp_path) not in made and str(folder) not in made
    assert "It needs `tiny.yaml` and " in made and "`diary`" in made


def test_a_variant_that_is_not_scored_has_no_card(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(folder)
    loaded = config.load(["config.yaml"])
    made = experiment.resolve(*loaded)
    with pytest.raises(store.StoreError, match="not in the store"):
        card(tmp_path, made, loaded, made.variants["dus"], {}, "here")
