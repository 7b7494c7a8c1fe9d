"""What a variant may ask for besides its checkpoint and scores: part of the config, of the DAG, and of no recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers_of import save_tokenizer_of

from conftest import snakemake, strata, write_experiment
from models import save_model
from strata import experiment, status
from strata.errors import ConfigError
from strata.experiment import Experiment

BARE = """\
  base: {init: {source: m}}
  dus: {parent: base, merge: {method: dus, drop: 1}}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_model(tmp_path_factory.mktemp("model"), vocab_size=700)
    save_tokenizer_of(folder, "smollm")
    return folder


def loaded(folder: Path, model: Path, variants: str) -> Experiment:
    return experiment.load([write_experiment(folder, model, variants, "[]") / "config.yaml"])


def test_files_for_llama_cpp_are_jobs_and_change_no_other_id(tmp_path: Path, model: Path) -> None:
    before = loaded(tmp_path, model, BARE)
    after = loaded(tmp_path, model, BARE.replace("drop: 1}", "drop: 1}, gguf: [q8_0, q2_k]"))
    more = [after.jobs[id].recipe for id in after.jobs.keys() - before.jobs.keys()]
    assert before.jobs.keys() < after.jobs.keys() and len(more) == 3
    made = after.variants["dus"]
    assert made.conversion and [job.recipe.parameters["type"] for job in made.ggufs] == ["q8_0", "q2_k"]
    assert made.conversion.recipe.parents == (
        made.job.id,
    )  # f16, which nobody asked for, is what the others are made from
    assert all(job.recipe.sources == (made.conversion.id,) for job in made.ggufs)
    assert {job.id for job in status.needed(after, made)} >= {made.conversion.id, *(job.id for job in made.ggufs)}


def test_two_variants_of_one_recipe_share_their_files(tmp_path: Path, model: Path) -> None:
    text = BARE.replace("drop: 1}", "drop: 1}, gguf: [f16]")
    made = loaded(tmp_path, model, text + text.splitlines()[1].replace("dus:", "same:", 1) + "\n")
    assert made.variants["dus"].ggufs == made.variants["same"].ggufs == (made.variants["dus"].conversion,)


def test_where_a_variant_goes_changes_no_id(tmp_path: Path, model: Path) -> None:
    before = loaded(tmp_path, model, BARE)
    after = loaded(tmp_path, model, BARE.replace("drop: 1}", "drop: 1}, publish: {directory: out, hub: me/dus}"))
    assert before.jobs.keys() == after.jobs.keys()
    publish = after.variants["dus"].publish
    assert (publish.directory, publish.hub, publish.private) == ("out", "me/dus", True)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("gguf: [q5_1]", "f16"),
        ("gguf: [f16, q8_0, f16]", "a type twice"),
        ("gguf: f16", "not a valid value"),
        ("publish: {directory: ''}", "not a valid value"),
        ("publish: {hub: dus}", "owner/name"),
        ("publish: {private: false}", "give `hub` too"),
        ("publish: {folder: out}", "unknown key `folder`"),
        ("publish: out", "not a valid value"),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_its_place(tmp_path: Path, model: Path, entry: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, model, BARE.replace("drop: 1}", f"drop: 1}}, {entry}"))
    assert said in str(caught.value) and "config.yaml:" in str(caught.value)


@pytest.mark.parametrize("places", [("directory: out", "directory: ./out/"), ("hub: me/A", "hub: me/a")])
def test_one_place_for_two_variants_is_refused(tmp_path: Path, model: Path, places: tuple[str, str]) -> None:
    text = BARE.replace("source: m}", f"source: m}}, publish: {{{places[0]}}}").replace(
        "drop: 1}", f"drop: 1}}, publish: {{{places[1]}}}"
    )
    with pytest.raises(ConfigError, match="two variants are published to one place"):
        loaded(tmp_path, model, text)


def test_a_family_that_llama_cpp_does_not_run_as_a_llama_is_refused(tmp_path: Path) -> None:
    other = save_model(tmp_path / "model", "qwen3")
    with pytest.raises(ConfigError, match="no GGUF is written of this family") as caught:
        loaded(tmp_path, other, BARE.replace("drop: 1}", "drop: 1}, gguf: [f16]"))
    assert "qwen3" in str(caught.value)


def test_a_run_that_needs_llama_cpp_is_refused_before_it_begins_where_there_is_none(
    tmp_path: Path, model: Path
) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "sitecustomize.py").write_text("import sys\nsys.modules['llama_cpp'] = None\n")
    folder = write_experiment(tmp_path / "run", model, BARE.replace("drop: 1}", "drop: 1}, gguf: [q8_0]"))
    run = snakemake(folder, PYTHONPATH=str(tmp_path / "without"))
    assert run.returncode != 0 and "llama.cpp is not installed here" in run.stdout and "make llama" in run.stdout
    assert not (folder / "results" / "checkpoints").exists()
    other = write_experiment(tmp_path / "other", model, BARE.replace("drop: 1}", "drop: 1}, gguf: [f16]"), "[]")
    run = snakemake(other, PYTHONPATH=str(tmp_path / "without"))  # that one needs none
    assert "llama.cpp is not installed" not in run.stdout and list((other / "results" / "gguf").glob("gguf-*.json"))


def test_commands_tell_of_the_files(tmp_path: Path, model: Path) -> None:
    folder = write_experiment(tmp_path, model, BARE.replace("drop: 1}", "drop: 1}, gguf: [f16]"), "[]")
    made = experiment.load([folder / "config.yaml"]).variants["dus"]
    why = strata(folder, "why", "dus")
    assert made.ggufs[0].id in why.stdout
    assert snakemake(folder, f"results/gguf/{made.ggufs[0].id}.json").returncode == 0
    assert "0 of 0 evaluations, 1 of 1 GGUF" in strata(folder, "ls").stdout
    assert made.ggufs[0].id in strata(folder, "verify").stdout
    assert (
        "keeps" in strata(folder, "store", "show", made.ggufs[0].id).stdout
        or made.ggufs[0].id in strata(folder, "store", "list").stdout
    )
