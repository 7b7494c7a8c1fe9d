"""The journal: a line for each step and measurement, in order, also when a run goes on; TensorBoard on request."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from strata.errors import TrainingError
from strata.train.journal import Journal


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def written(folder: Path, first: int, last: int) -> None:
    journal = Journal(folder, first - 1)
    for step in range(first, last + 1):
        journal.write(step=step, loss=1 / step)
    journal.close()


def test_a_line_holds_what_it_was_given_and_the_time_and_is_there_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "run", 0)
    journal.write(step=1, loss=3.5, mfu=None)
    (line,) = lines(tmp_path / "run")
    assert line.pop("time") > 1e9
    assert line == {"step": 1, "loss": 3.5, "mfu": None}
    journal.close()


def test_a_run_that_goes_on_drops_the_lines_of_steps_that_run_again(tmp_path: Path) -> None:
    written(tmp_path, 1, 5)
    before = lines(tmp_path)
    written(tmp_path, 4, 6)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert lines(tmp_path)[:3] == before[:3]


def test_what_one_that_was_killed_left_of_its_rewriting_is_removed(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    (tmp_path / ".log.jsonl.elsewhere.7.01234567").write_text("half")
    written(tmp_path, 2, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_a_measurement_after_the_step_of_the_snapshot_is_kept(tmp_path: Path) -> None:
    written(tmp_path, 1, 2)
    journal = Journal(tmp_path, 2)
    journal.write(step=2, heldout_loss=3.0)
    journal.close()
    written(tmp_path, 3, 3)
    assert [set(line) - {"time"} for line in lines(tmp_path)[1:]] == [
        {"step", "loss"}, {"step", "heldout_loss"}, {"step", "loss"},
    ]  # fmt: skip


def test_a_run_from_the_start_begins_a_new_journal(tmp_path: Path) -> None:
    written(tmp_path, 1, 5)
    written(tmp_path, 1, 2)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_half_a_line_of_a_job_that_was_killed_is_dropped(tmp_path: Path) -> None:
    written(tmp_path, 1, 3)
    with (tmp_path / "log.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    written(tmp_path, 4, 5)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("value", [None, "", "0"])
def test_there_is_nothing_for_tensorboard_unless_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("STRATA_TENSORBOARD", raising=False)
    if value is not None:
        monkeypatch.setenv("STRATA_TENSORBOARD", value)
    written(tmp_path, 1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_tensorboard_gets_the_same_numbers_each_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("STRATA_TENSORBOARD", "1")
    written(tmp_path, 1, 3)
    written(tmp_path, 3, 4)
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert found.Tags()["scalars"] == ["loss"]
    assert {event.step: event.value for event in found.Scalars("loss")} == {
        step: pytest.approx(1 / step) for step in range(1, 5)
    }


def test_tensorboard_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATA_TENSORBOARD", "1")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match="TensorBoard is not installed"):
        Journal(tmp_path, 0)


def test_a_run_that_is_killed_before_its_first_step_keeps_the_lines_before(tmp_path: Path) -> None:
    written(tmp_path, 1, 5)
    journal = Journal(tmp_path, 4)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    journal.close()
