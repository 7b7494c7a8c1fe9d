"""kill -9 at any moment: nothing half-written is used, nothing valid is lost, and the weights come out the same."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import lessons
from conftest import REPOSITORY
from strata import checkpoint, store
from strata.train.state import home

STEPS, KILLS = 300, 20

# Forks a run again and again from a process that has loaded everything, and kills it after a while.
DRIVER = """
import os, random, signal, sys, time
from pathlib import Path
import torch, transformers
torch.set_num_threads(1)
from torch.distributed import checkpoint
from strata.recipe import Recipe
from strata.train.operation import train

root, recipe, seed, kills = Path(sys.argv[1]), Recipe.from_json(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
draw, ends = random.Random(seed), []
while True:
    child = os.fork()
    if not child:
        train(root, recipe)
        os._exit(0)
    if len(ends) < kills:
        time.sleep(draw.uniform(0.05, 1.5))
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    ends.append(status)
    if status == 0:
        break
    assert os.WIFSIGNALED(status) and len(ends) <= kills, ends
print(len(ends) - 1)
"""


def drive(root: Path, recipe: str, seed: int, kills: int) -> int:
    """Run a recipe, killing it so many times. Returns how often it was killed before it was done."""
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY / "workflow"), "OMP_NUM_THREADS": "1", "STRATA_SNAPSHOT_SECONDS": "0.02",
    }  # fmt: skip
    command = [sys.executable, "-c", DRIVER, str(root), recipe, str(seed), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def test_a_run_killed_at_random_moments_ends_with_the_same_weights(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1 << 30)
    print("seed", seed)  # shown when it fails
    found = []
    for name, kills in (("whole", 0), ("killed", KILLS)):
        root = tmp_path / name / "results"
        base = lessons.base(root)
        recipe = lessons.pretraining(
            base, lessons.text(root, base), steps=STEPS, sources=[lessons.text(root, base, "other")],
            heldout={"source": 1, "tokens": 64},
        )  # fmt: skip
        count = drive(root, recipe.canonical, seed, kills)
        found.append(store.require(root, recipe.id, checkpoint.verify))
        assert count >= kills // 2, "it was too fast to be killed: more STEPS"
        assert [path.name for path in home(root, recipe.id).iterdir()] == ["log.jsonl"]
        assert not list((root / "tmp").glob("*"))
        lines = [json.loads(line) for line in (home(root, recipe.id) / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == list(range(1, STEPS + 1))
    assert found[0].manifest == found[1].manifest
