"""B55-B61 on a whole run: in a folder of an odd name, with secrets in its environment, killed, and at another time."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from attacks import assert_told

from conftest import REPOSITORY, snakemake, strata, write_experiment
from strata import store

SECRETS = {
    "HF_TOKEN": "hf_" + "Qz7" * 10,
    "HUGGING_FACE_HUB_TOKEN": "hf_" + "Xk9" * 10,
    "PIP_INDEX_URL": "http://user:PASSWORD-pw31@127.0.0.1:9/simple/",
    "WANDB_API_KEY": "KEY-ab12cd34",
}
VARIANTS = "  base: {init: {source: m}}\n  dus: {parent: base, merge: {method: dus, drop: 1}}\n"
ATTACK = "<script>alert(1)</script>"


def spilt(folder: Path, secrets: list[str]) -> list[str]:
    """The files of a folder that hold one of these texts."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 20
    return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> tuple[Path, str]:
    """A finished run, and what it printed. Its config names folders beside it, so that it can be moved."""
    folder = tmp_path_factory.mktemp("ran") / 'it\'s a "store" été\n-x $(touch pwned)'
    folder.mkdir()
    write_experiment(folder, Path(shutil.copytree(llama, folder / "model")), VARIANTS)
    for name in ("config.yaml", "tiny.yaml"):
        (folder / name).write_text((folder / name).read_text().replace(f"{folder}/", ""))
    suite = (folder / "tiny.yaml").read_text().split("  next:")[0]
    (folder / "tiny.yaml").write_text(f"{suite}groups:\n  all: [text]\ndescription: {ATTACK}\n")
    run = snakemake(folder, "--printshellcmds", "--verbose", **SECRETS)
    assert run.returncode == 0, run.stdout
    return folder, run.stdout


@pytest.fixture
def folder(ran: tuple[Path, str], tmp_path: Path) -> Path:
    """This test's own copy, under an odd name again."""
    return Path(shutil.copytree(ran[0], tmp_path / ran[0].name, symlinks=True))


def objects(folder: Path) -> dict[str, int]:
    root = folder / "results"
    return {id: store.target(root, id).with_suffix("").stat().st_ino for id in store.objects(root)}


def test_b55_no_secret_of_the_environment_is_written_anywhere(ran: tuple[Path, str], folder: Path) -> None:
    secrets = [*SECRETS.values(), "PASSWORD-pw31"]
    assert not any(secret in ran[1] for secret in secrets)
    assert spilt(ran[0], secrets) == []
    told = snakemake(folder, "--report", "snakemake.html", **SECRETS).stdout
    for command in (["show", "dus"], ["why", "dus"], ["report", "--partial"], ["export"]):
        told += strata(folder, *command).stdout
    assert (folder / "snakemake.html").is_file() and (folder / "results" / "report" / "partial").is_dir()
    assert not any(secret in told for secret in secrets)
    assert spilt(folder, secrets) == []


def test_b55_a_token_in_the_config_is_refused_and_snakemake_writes_it_nowhere(folder: Path) -> None:
    token = SECRETS["HF_TOKEN"]
    with (folder / "config.yaml").open("a") as file:
        file.write(f"x: {token}\n")
    run = snakemake(folder, "--printshellcmds")
    assert run.returncode == 3 and token not in run.stdout
    assert_told(run.stdout, ["a hub token stands in this file", "config.yaml:"])
    assert spilt(folder, [token]) == [str(folder / "config.yaml")]


def test_b56_a_folder_of_an_odd_name_is_never_a_command(ran: tuple[Path, str]) -> None:
    assert [path.name for path in ran[0].parent.iterdir()] == [ran[0].name]
    assert not list(ran[0].rglob("pwned")) and not Path("pwned").exists()


def test_b57_b58_a_second_run_is_told_to_wait_and_one_that_was_killed_needs_one_command(folder: Path) -> None:
    shutil.rmtree(folder / "results" / "report")
    before = objects(folder)
    command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--cores", "2"]
    first = subprocess.Popen(
        command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    patience = time.monotonic() + 60
    while not list((folder / ".snakemake" / "locks").glob("*")):
        assert first.poll() is None and time.monotonic() < patience
        time.sleep(0.02)
    os.killpg(first.pid, signal.SIGSTOP)
    second = snakemake(folder)
    assert second.returncode != 0 and "--unlock" in second.stdout
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert "--unlock" in snakemake(folder).stdout
    assert snakemake(folder, "--unlock").returncode == 0
    last = snakemake(folder)
    assert last.returncode == 0, last.stdout
    assert objects(folder) == before and (folder / "results" / "report" / "report.html").is_file()


def from_nothing(folder: Path) -> None:
    for name in ("results", ".snakemake"):
        subprocess.run(["rm", "-rf", folder / name], check=True)


@pytest.mark.slow
def test_b58_a_whole_run_killed_at_ten_moments_ends_as_one_that_was_not(ran: tuple[Path, str], folder: Path) -> None:
    """Every second time its jobs live on: the next run's copies wait for them."""
    digests = {id: store.require(folder / "results", id).digest for id in objects(folder)}
    scores = (folder / "results" / "report" / "scores.csv").read_bytes()
    from_nothing(folder)
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)  # shown when it fails
    draw, killed = random.Random(seed), 0
    command = [sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile"), "--cores", "2"]
    while killed < 10:
        run = subprocess.Popen(
            command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with suppress(subprocess.TimeoutExpired):
            assert run.wait(draw.uniform(1, 8)) == 0
            from_nothing(folder)
            continue
        killed += 1
        run.kill() if killed % 2 else os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert snakemake(folder, "--unlock").returncode == 0
    last = snakemake(folder)
    assert last.returncode == 0, last.stdout
    assert {id: store.require(folder / "results", id, store.verify).digest for id in objects(folder)} == digests
    assert (folder / "results" / "report" / "scores.csv").read_bytes() == scores
    left = [path for name in ("tmp", "leases", "quarantine") for path in (folder / "results" / name).glob("*")]
    assert not left


def test_b59_no_clock_makes_anything_again(folder: Path) -> None:
    files = [path for path in (folder / "results").rglob("*") if not path.is_symlink()]
    for path in files:
        os.utime(path, (0, 0))
    dry = snakemake(folder, "-n", TZ="Pacific/Kiritimati")
    assert "Nothing to be done" in dry.stdout, dry.stdout
    before, later = objects(folder), time.time() + 10 * 365 * 86_400
    for path in (folder / "results" / "sources").glob("*.json"):
        os.utime(path, (later, later))
    run = snakemake(folder, TZ="America/Adak")
    assert run.returncode == 0, run.stdout
    assert objects(folder) == before, "what was there has been made again"


def test_b61_a_score_that_was_edited_is_no_score(folder: Path) -> None:
    manifest = min((folder / "results" / "evaluations").glob("*/manifest.json"))
    text = manifest.read_text()
    begin = text.index('"value": ') + len('"value": ')
    end = text.index("\n", begin)
    manifest.chmod(0o644)
    manifest.write_text(f"{text[:begin]}NaN,{text[end:]}")
    run = strata(folder, "report")
    assert run.returncode == 6, run.stdout + run.stderr
    assert_told(run.stderr, ["is damaged", "quarantine"])


def test_b61_no_text_of_a_suite_is_a_program_in_the_report(ran: tuple[Path, str]) -> None:
    assert ATTACK in (ran[0] / "tiny.yaml").read_text()
    for page in (ran[0] / "results" / "report").rglob("*.html"):
        assert ATTACK not in page.read_text()
