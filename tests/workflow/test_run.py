"""Content addressing as a user meets it: what runs after which change."""

from __future__ import annotations

import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import VARIANTS, flip, read_json, snakemake, strata, write_experiment
from models import save_model
from strata.recipe import KINDS


def jobs(output: str) -> dict[str, int]:
    """Snakemake's table of planned jobs, without `all`."""
    table = re.search(r"job +count\n[- ]+\n(.*?)\ntotal", output, re.DOTALL)
    rows = (line.split() for line in table[1].splitlines()) if table else []
    return {name: int(count) for name, count in rows if name != "all"}


def planned(folder: Path, *arguments: str) -> dict[str, int]:
    run = snakemake(folder, "-n", *arguments)
    assert run.returncode == 0, run.stdout
    return jobs(run.stdout)


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "config.yaml").read_text()
    assert old in text
    (folder / "config.yaml").write_text(text.replace(old, new, 1))


def test_a_fresh_run_has_one_job_for_each_artefact(tmp_path: Path, llama: Path) -> None:
    folder = write_experiment(tmp_path, llama)
    assert planned(folder) == {"fetch": 2, "init": 1, "merge": 2, "encode": 1, "evaluate": 3, "links": 1, "report": 1}


def test_a_suites_groups_are_jobs_of_their_own(tmp_path: Path, llama: Path) -> None:
    folder = write_experiment(tmp_path, llama)
    text = (folder / "tiny.yaml").read_text()
    (folder / "tiny.yaml").write_text(text.replace("  all: [text, next]", "  a: [text]\n  b: [next]"))
    assert planned(folder)["evaluate"] == 2 * 3


def test_a_second_run_does_nothing(finished: Path) -> None:
    run = snakemake(finished)
    assert run.returncode == 0
    assert "Nothing to be done" in run.stdout


def test_what_a_run_leaves(finished: Path) -> None:
    results = finished / "results"
    assert {path.name for path in (results / "report").iterdir()} == {
        "scores.csv",
        "scores.md",
        "scores.tex",
        "report.html",
    }
    assert {path.name for path in (results / "variants").iterdir()} == {".links.json", "base", "dus", "same", "stacked"}
    assert (results / "variants" / "dus").readlink() == (results / "variants" / "same").readlink()
    assert not (results / "variants" / "dus").readlink().is_absolute()
    assert list((results / "tmp").iterdir()) == []
    assert {path.stem.split("-")[0] for path in (results / "logs").glob("*-*.log")} == {
        "fetch",
        "init",
        "merge",
        "encode",
        "evaluate",
    }
    for record in (results / "runs").iterdir():
        assert read_json(record)["seconds"] >= 0


def test_changing_a_variant_runs_its_jobs_and_changing_it_back_none(finished: Path) -> None:
    change(
        finished,
        "stacked: {parent: base, merge: {method: dus, drop: 0}}",
        "stacked: {parent: base, merge: {method: dus, drop: 3}}",
    )
    assert planned(finished) == {"merge": 1, "evaluate": 1, "links": 1, "report": 1}
    assert snakemake(finished).returncode == 0
    table = (finished / "results" / "report" / "scores.csv").read_text()
    change(finished, "drop: 3", "drop: 0")
    assert planned(finished) == {"links": 1, "report": 1}
    assert snakemake(finished).returncode == 0
    assert (finished / "results" / "report" / "scores.csv").read_text() != table
    assert planned(finished) == {}


def test_a_rename_runs_the_links_and_the_report(finished: Path) -> None:
    change(finished, "stacked:", "doubled:")
    assert planned(finished) == {"links": 1, "report": 1}
    assert snakemake(finished).returncode == 0
    assert {path.name for path in (finished / "results" / "variants").iterdir()} == {
        ".links.json",
        "base",
        "dus",
        "same",
        "doubled",
    }
    assert "| doubled |" in (finished / "results" / "report" / "scores.md").read_text()


def test_a_comment_or_another_order_of_keys_runs_nothing(finished: Path) -> None:
    change(finished, "merge: {method: dus, drop: 0}}", "merge: {drop: 0, method: dus}}   # stacked")
    assert planned(finished) == {}


def test_a_moved_store_and_a_lost_history_rebuild_nothing(finished: Path) -> None:
    before = {p: p.stat().st_ino for p in (finished / "results" / "checkpoints").glob("*/*.safetensors")}
    shutil.rmtree(finished / ".snakemake")
    for copy in (finished / "results").glob("*/*-*.json"):
        if copy.parent.name != "runs":
            copy.unlink()
    run = snakemake(finished)
    assert run.returncode == 0, run.stdout
    assert {p: p.stat().st_ino for p in (finished / "results" / "checkpoints").glob("*/*.safetensors")} == before
    moved = finished.rename(finished.with_name("elsewhere"))
    assert planned(moved) == {}


def test_no_object_tells_where_it_was_made(finished_once: Path) -> None:
    """A store may lie anywhere, and be read by anyone."""
    for kind in sorted(set(KINDS.values())):
        for file in (finished_once / "results" / kind).rglob("*"):
            if file.is_file():
                content = file.read_bytes()
                assert str(finished_once).encode() not in content, file
                assert socket.gethostname().encode() not in content or len(socket.gethostname()) < 6, file


def test_two_workflows_share_a_store_at_the_same_time(tmp_path: Path, llama: Path) -> None:
    """Each has a folder of its own; what both need is made once, and both come to an end."""
    folders = [write_experiment(tmp_path / name, llama) for name in ("one", "two")]
    change(folders[1], "stacked:", "doubled:")
    for folder in folders:  # the same documents, so that both need the same
        text = (folder / "tiny.yaml").read_text()
        (folder / "tiny.yaml").write_text(text.replace(str(folder / "documents"), str(tmp_path / "one" / "documents")))
        (tmp_path / "store").mkdir(exist_ok=True)
        (folder / "results").symlink_to(tmp_path / "store")
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(snakemake, folders))
    assert [run.returncode for run in runs] == [0, 0], "".join(run.stdout for run in runs)
    store = tmp_path / "store"
    assert len(list((store / "checkpoints").glob("*.json"))) == 3 and not list(store.glob("quarantine/*"))
    assert not list((store / "tmp").iterdir()) and not list((store / "leases").iterdir())
    assert strata(folders[0], "store", "verify").returncode == 0
    assert all(planned(folder) in ({}, {"links": 1, "report": 1}) for folder in folders)


def test_one_variant_alone(tmp_path: Path, llama: Path, finished_once: Path) -> None:
    folder = write_experiment(tmp_path, llama)
    assert planned(folder, "results/variants/dus.json") == {
        "fetch": 2,
        "init": 1,
        "merge": 1,
        "encode": 1,
        "evaluate": 1,
        "variant": 1,
    }
    run = snakemake(finished_once, "results/variants/dus.json")
    assert run.returncode == 0, run.stdout
    summary = read_json(finished_once / "results" / "variants" / "dus.json")
    assert set(summary["scores"]) == {"tiny/text", "tiny/next"}
    (finished_once / "results" / "variants" / "dus.json").unlink()


def test_a_variant_loads_by_its_name(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(finished / "results" / "variants" / "dus")
    assert len(model.model.layers) == 6
    assert AutoTokenizer.from_pretrained(finished / "results" / "variants" / "dus")("abc").input_ids


def test_ls_show_and_why(finished: Path) -> None:
    listing = strata(finished, "ls").stdout.splitlines()
    assert [line.split()[0] for line in listing] == ["variant", "base", "dus", "same", "stacked"]
    assert all(line.endswith("built, 1 of 1 evaluations") for line in listing[1:])
    shown = strata(finished, "show", "dus").stdout
    for part in (
        "base: dus drop 1",
        "layers      0-2  0-2 of base",
        "            3-5  1-3 of base",
        "seams between its runs: 1 (2|3)",
        "bits_per_byte",
        '"drop": 1',
    ):
        assert part in shown
    assert "nothing to build" in strata(finished, "why", "dus").stdout
    change(
        finished,
        "dus: {parent: base, merge: {method: dus, drop: 1}}",
        "dus: {parent: base, merge: {method: dus, drop: 2}}",
    )
    why = strata(finished, "why", "dus").stdout
    assert "2 of 6 jobs would run" in why
    assert "parameters.drop: 1 -> 2" in why


def test_why_follows_a_change_up_to_the_ancestor_that_made_it(tmp_path: Path, finished: Path) -> None:
    deeper = VARIANTS + "  deep: {parent: dus, merge: {method: dus, drop: 1}}\n"
    text = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(text.replace(VARIANTS, deeper))
    assert snakemake(finished, "results/variants/deep.json").returncode == 0
    change(
        finished,
        "dus: {parent: base, merge: {method: dus, drop: 1}}",
        "dus: {parent: base, merge: {method: dus, drop: 2}}",
    )
    assert "merge: parameters.drop: 1 -> 2" in strata(finished, "why", "deep").stdout


def test_redo_builds_one_variant_again_and_says_that_nothing_changed(finished: Path) -> None:
    before = read_json(finished / "results" / "variants" / ".links.json")["stacked"]
    inode = (finished / "results" / "checkpoints" / before).stat().st_ino
    run = strata(finished, "redo", "stacked")
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("the same content as before") == 2
    assert (finished / "results" / "checkpoints" / before).stat().st_ino != inode
    assert len([p for p in (finished / "results" / "quarantine").iterdir() if p.is_dir()]) == 2
    assert planned(finished) in ({}, {"report": 1})


def test_verify_moves_what_is_damaged_to_quarantine_and_the_next_run_builds_it(finished: Path) -> None:
    flip((finished / "results" / "variants" / "stacked").resolve() / "config.json", 5)
    verified = strata(finished, "verify")
    assert verified.returncode == 6
    assert verified.stdout.count("DAMAGED") == 1
    assert planned(finished)["merge"] == 1
    assert snakemake(finished).returncode == 0
    assert strata(finished, "verify").returncode == 0


def test_a_damaged_object_fails_the_job_that_is_to_make_it(finished: Path) -> None:
    id = read_json(finished / "results" / "variants" / ".links.json")["stacked"]
    flip(finished / "results" / "checkpoints" / id / "config.json", 5)
    first = snakemake(finished, "-f", f"results/checkpoints/{id}.json")
    assert (first.returncode != 0, "quarantine" in first.stdout) == (True, True)
    assert "The report was not written again" in first.stdout
    assert "partial report: " in first.stdout
    assert "stacked is missing: not built (log: " in (finished / "results/report/partial/scores.md").read_text()
    assert snakemake(finished).returncode == 0


def test_an_object_deleted_by_hand_is_missed_at_once_and_built_again(finished: Path) -> None:
    id = read_json(finished / "results" / "variants" / ".links.json")["stacked"]
    shutil.rmtree(finished / "results" / "checkpoints" / id)
    run = snakemake(finished)
    assert (run.returncode, "objects are gone" in run.stdout) == (6, True)
    assert strata(finished, "verify").returncode == 0
    assert snakemake(finished).returncode == 0
    assert (finished / "results" / "variants" / "stacked" / "config.json").is_file()


@pytest.mark.parametrize("folder", ["checkpoints", "evaluations", "variants", "report"])
def test_a_folder_deleted_by_hand_comes_back(finished: Path, folder: str) -> None:
    before = (finished / "results" / "report" / "scores.csv").read_text()
    shutil.rmtree(finished / "results" / folder)
    assert snakemake(finished).returncode == 0
    assert (finished / "results" / "variants" / "dus" / "config.json").is_file()
    assert (finished / "results" / "report" / "scores.csv").read_text() == before
    assert planned(finished) == {}


def test_a_summary_of_another_checkpoint_does_not_outlive_the_change(finished: Path) -> None:
    assert snakemake(finished, "results/variants/dus.json", "results/variants/stacked.json").returncode == 0
    change(
        finished,
        "stacked: {parent: base, merge: {method: dus, drop: 0}}",
        "stacked: {parent: base, merge: {method: dus, drop: 1}}",
    )
    assert snakemake(finished).returncode == 0
    names = {path.name for path in (finished / "results" / "variants").glob("*.json")}
    assert names == {".links.json", "dus.json"}


def test_a_source_that_was_moved_runs_nothing(finished: Path) -> None:
    text = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(re.sub(r"path: [^,]+,", "path: moved/elsewhere,", text, count=1))
    assert planned(finished) == {}


def test_pin_tells_when_a_local_source_is_no_longer_what_its_pin_says(finished: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", num_hidden_layers=6)
    text = (finished / "config.yaml").read_text()
    (finished / "config.yaml").write_text(re.sub(r"path: [^,]+,", f"path: {other},", text, count=1))
    run = strata(finished, "pin")
    assert (run.returncode, "`m` is not what its sha256 says" in run.stderr) == (4, True)


def test_a_redo_that_fails_brings_back_what_was_there(finished: Path) -> None:
    shard = finished / "results" / "variants" / "base" / "model-00003-of-00006.safetensors"
    flip(shard.resolve().parent / "config.json", 5)
    run = strata(finished, "redo", "stacked")
    assert (run.returncode, "the rebuild failed" in run.stderr) == (2, True)
    assert re.search("As before: merge-[0-9a-f]+, evaluate-[0-9a-f]+;", run.stderr)
    listing = strata(finished, "ls").stdout
    assert re.search(r"stacked .* built, 1 of 1 evaluations", listing)
    assert snakemake(finished).returncode == 0


def test_strata_reads_config_files_as_snakemake_does(finished: Path) -> None:
    (finished / "more.yaml").write_text("variants:\n  extra: {parent: base, merge: {method: dus, drop: 3}}\n")
    assert "extra" in strata(finished, "ls", "--configfile", "more.yaml").stdout


def test_cuda_without_a_gpu_is_one_message(finished: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with (finished / "config.yaml").open("a") as file:
        file.write("device: cuda\n")
    run = snakemake(finished)
    assert run.returncode != 0
    assert "error: no GPU here" in run.stdout
    assert "Traceback" not in run.stdout


def test_a_folder_where_a_link_belongs_is_named(finished: Path) -> None:
    link = finished / "results" / "variants" / "dus"
    link.unlink()
    link.mkdir()
    (finished / "results" / "variants" / ".links.json").unlink()
    assert "a folder stands where a variant's link belongs" in snakemake(finished).stdout


def test_weights_that_changed_on_disk_are_found_before_they_are_scored(finished: Path) -> None:
    """A merge takes its digests from its parents; the evaluation of what it made hashes them."""
    base = finished / "results" / "variants" / "base" / "model-00003-of-00006.safetensors"
    flip(base, base.stat().st_size - 1)
    change(
        finished,
        "stacked: {parent: base, merge: {method: dus, drop: 0}}",
        "stacked: {parent: base, merge: {method: dus, drop: 2}}",
    )
    run = snakemake(finished)
    assert run.returncode != 0
    assert "sha256 of a tensor" in run.stdout
    assert "Traceback" not in run.stdout


def test_a_damaged_parent_is_healed_by_the_next_runs(finished: Path) -> None:
    flip((finished / "results" / "variants" / "base").resolve() / "config.json", 5)
    change(
        finished,
        "stacked: {parent: base, merge: {method: dus, drop: 0}}",
        "stacked: {parent: base, merge: {method: dus, drop: 2}}",
    )
    assert "moved to" in snakemake(finished).stdout
    assert snakemake(finished).returncode == 0


def test_redo_touches_nothing_while_snakemake_runs(finished: Path) -> None:
    (finished / ".snakemake" / "locks").mkdir(exist_ok=True)
    (finished / ".snakemake" / "locks" / "0.input.lock").write_text("x")
    run = strata(finished, "redo", "stacked")
    assert (run.returncode, "is running here" in run.stderr) == (2, True)
    assert not (finished / "results" / "quarantine").exists()


@pytest.mark.parametrize("target", ["results/variants/nope.json", "results/checkpoints/merge-" + "0" * 32 + ".json"])
def test_a_target_that_is_not_in_the_config_is_refused(finished: Path, target: str) -> None:
    run = snakemake(finished, "-n", target)
    assert run.returncode != 0
    assert "no such variant" in run.stdout or "no variant of this config needs that id" in run.stdout


def test_a_second_config_file_is_laid_over_the_first(finished: Path) -> None:
    (finished / "more.yaml").write_text("variants:\n  extra: {parent: base, merge: {method: dus, drop: 3}}\n")
    assert planned(finished, "--configfile", "more.yaml") == {"merge": 1, "evaluate": 1, "links": 1, "report": 1}
    (finished / "other.yaml").write_text((finished / "config.yaml").read_text())
    (finished / "config.yaml").unlink()
    assert planned(finished, "--configfile", "other.yaml").keys() <= {"links", "report"}
