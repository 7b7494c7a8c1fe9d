"""Every example as Snakemake plans it over the default experiment. Nothing is fetched."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from conftest import REPOSITORY, snakemake
from strata import experiment

EXAMPLES = sorted((REPOSITORY / "workflow" / "examples").glob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=[file.stem for file in EXAMPLES])
def test_an_example_has_one_job_for_each_artefact(tmp_path: Path, example: Path) -> None:
    shutil.copy(REPOSITORY / "config.yaml", tmp_path)
    run = snakemake(tmp_path, "-n", "--configfile", str(example))
    assert run.returncode == 0, run.stdout
    made = experiment.load([tmp_path / "config.yaml", example])
    folders = [name for name, variant in made.variants.items() if variant.publish.directory]
    planned = re.search(r"^total +(\d+)$", run.stdout, re.MULTILINE)
    assert planned is not None
    assert int(planned[1]) == len(made.jobs) + len(folders) + len(("links", "report", "all"))
