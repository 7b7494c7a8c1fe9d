"""What a dry run of a screen says is what the screen does, counted apart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conftest import strata
from contests import BASE, RACE, SCREEN, WINNER, deeper, write_screens
from models import save_model
from strata.dry_run import dry_run
from strata.screen.candidates import listed

NUMBER = re.compile(r"[\d,]+")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def lines(told: str) -> dict[str, str]:
    return {line.split()[0]: line for line in told.splitlines()}


def test_plans_and_layer_steps_are_those_of_the_tree(model: Path, tmp_path: Path) -> None:
    told = lines(dry_run(deeper(write_screens(tmp_path, model, SCREEN + RACE))))
    families = ("dus", "repeat")
    orders = {one.order for family in families for one in listed(family, 4, 6)}  # type: ignore[arg-type]
    orders |= {(a, b, c) for a in range(4) for b in range(a + 1, 4) for c in range(b + 1, 4)}
    assert told["plans"].split()[1].rstrip(":") == str(len(orders))
    nodes = {order[:length] for order in orders for length in range(1, len(order) + 1)}
    assert f" {len(nodes)} of {sum(map(len, orders))} " in told["layer"]
    assert "160 tokens to choose on, 160 to judge" in told["texts"]
    assert "3 plans on 256 tokens each, then 2 plans on 512 tokens each" in told["race"]
    assert "GFLOP/s in float32, as measured now" in told["minutes"]


def test_an_evolution_is_counted_as_far_as_it_is_known(model: Path, tmp_path: Path) -> None:
    screen = SCREEN.replace("[6, 3]", "[7]").replace("[dus, repeat, prune]", "[blocks]") + "    budget: {plans: 6}\n"
    told = dry_run(deeper(write_screens(tmp_path, model, screen, BASE)))
    assert "plans        6: blocks 2 of 12" in told
    assert "come of changes of the best" in told


def test_a_gpu_that_is_not_here_is_taken_at_its_word(model: Path, tmp_path: Path) -> None:
    folder = write_screens(tmp_path, model)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text("device: cuda\n" + text)
    assert "nominal 100 TFLOP/s" in dry_run(deeper(folder))


def test_the_command_tells_it_and_runs_nothing(model: Path, tmp_path: Path) -> None:
    folder = write_screens(tmp_path, model, SCREEN, BASE + WINNER)
    done = strata(folder, "screen", "deeper", "--dry-run")
    assert done.returncode == 0 and "layer steps" in done.stdout
    assert not (folder / "results").exists()
    wrong = strata(folder, "screen", "depeer", "--dry-run")
    assert wrong.returncode == 2 and "did you mean deeper?" in wrong.stdout + wrong.stderr
    early = strata(folder, "screen", "deeper")
    assert early.returncode == 6 and "screen-" in early.stdout + early.stderr
