"""A screen and its race as a user runs them: the page is a target, and a second run does nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import snakemake, strata
from contests import BASE, RACE, SCREEN, WINNER, deeper, load, make, write_screens
from pages import check_page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """The last round of the race is left for the workflow, with all that rests on it."""
    folder = write_screens(tmp_path_factory.mktemp("screen"), llama, SCREEN + RACE, BASE + WINNER)
    last = deeper(folder).rounds[-1]
    left = [load(folder).variants["won"], *last.merged, *last.trained]
    make(folder, without={last.ranking.id, *(variant.job.id for variant in left)})
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout
    return folder


def test_the_run_ends_with_the_page_and_a_second_one_does_nothing(run: Path) -> None:
    check_page((run / "results/report/screens.html").read_text(), 17)
    assert "Nothing to be done" in snakemake(run).stdout
    assert (run / "results/variants/won/config.json").exists()


def test_every_number_of_the_page_is_made_again_and_compared(run: Path) -> None:
    assert strata(run, "verify", "--scores").returncode == 0
    page = run / "results/report/screens.html"
    text = page.read_text()
    page.write_text(text.replace("damage", "progress", 1))
    try:
        assert strata(run, "verify", "--scores").returncode == 7
    finally:
        page.write_text(text)


def test_the_store_keeps_what_a_screen_needs(run: Path) -> None:
    kept = strata(run, "store", "gc", "--days", "0").stdout
    assert "garbage: 0" in kept
    assert strata(run, "verify").stdout.count("  ok\n") == len(load(run).jobs)


def test_an_unfinished_screen_is_a_gap_of_the_partial_report(run: Path) -> None:
    folder = run / "results" / "screens"
    ids = [job.id for job in deeper(run).rankings]
    for id in ids:
        (folder / id).rename(folder / f"away-{id}")
    try:
        assert strata(run, "report", "--partial").returncode == 0
        assert "deeper has not been finished" in (run / "results/report/partial/screens.html").read_text()
    finally:
        for id in ids:
            (folder / f"away-{id}").rename(folder / id)
