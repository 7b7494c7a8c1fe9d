"""Learning rates: how each schedule climbs and falls, and where a run that may end early starts to decay."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.train.schedule import SCHEDULES, rate, shortened

SHARES = st.sampled_from([0.0, 0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.5, 0.9, 0.99])
RUNS = {
    "steps": st.integers(1, 400), "schedule": st.sampled_from(SCHEDULES), "warmup": SHARES, "decay": SHARES,
    "floor": st.sampled_from([0.0, 0.1, 0.5, 1.0]),
}  # fmt: skip


def rates(
    steps: int, schedule: str = "wsd", warmup: float = 0.0, decay: float = 0.0, floor: float = 0.0
) -> list[float]:
    return [
        rate(step, steps, schedule=schedule, warmup=warmup, decay=decay, floor=floor) for step in range(steps)
    ]  # fmt: skip


def test_wsd_climbs_stays_and_falls() -> None:
    assert rates(10, "wsd", 0.2, 0.4) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert rates(10, "wsd", 0.2, 0.4, floor=0.5) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.9, 0.8, 0.7, 0.6])


def test_linear_falls_from_the_warm_up_on() -> None:
    assert rates(5, "linear", 0.4) == pytest.approx([0.5, 1, 0.75, 0.5, 0.25])
    assert rates(4, "linear") == pytest.approx([1, 0.75, 0.5, 0.25])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rates(4, "cosine") == pytest.approx([1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4])
    assert rates(5, "cosine", 0.4, floor=0.1)[3] == pytest.approx(0.55)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_run_of_one_step_takes_it_at_the_peak(schedule: str) -> None:
    assert rates(1, schedule, 0.1, 0.2) == [1.0]
    assert rates(1, schedule, 1.0, 1.0) == [1.0]


def test_shares_that_round_to_no_step_are_left_out() -> None:
    assert rates(4, "wsd", 0.1, 0.1) == [1, 1, 1, 1]


@given(**RUNS)
def test_every_step_learns_and_none_above_the_peak(
    steps: int, schedule: str, warmup: float, decay: float, floor: float
) -> None:
    assert all(0 < multiplier <= 1 for multiplier in rates(steps, schedule, warmup, decay, floor))


@given(**RUNS)
def test_the_rate_climbs_once_then_falls_without_jumps(
    steps: int, schedule: str, warmup: float, decay: float, floor: float
) -> None:
    made = rates(steps, schedule, warmup, decay, floor)
    climbing, falling = round(warmup * steps), round(decay * steps) if schedule == "wsd" else steps
    if climbing + falling <= steps or schedule != "wsd":
        assert made[:climbing] == pytest.approx([(step + 1) / climbing for step in range(climbing)])
    tail = made[max(climbing - 1, 0) :]
    assert all(after <= before for before, after in pairwise(tail))
    largest = (math.pi / 2 if schedule == "cosine" else 1) / min(falling or 1, len(tail))
    assert all(before - after <= largest + 1e-9 for before, after in pairwise(tail))


@given(**RUNS)
def test_the_last_step_is_one_step_of_decay_above_the_floor(
    steps: int, schedule: str, warmup: float, decay: float, floor: float
) -> None:
    climbing, falling = round(warmup * steps), round(decay * steps)
    if schedule == "wsd" and falling > 0 and climbing + falling < steps:
        last = rates(steps, schedule, warmup, decay, floor)[-1]
        assert last == pytest.approx(floor + (1 - floor) / (falling + 1))
    if schedule != "wsd" and climbing < steps / 2 > 1:
        assert rates(steps, schedule, warmup, decay, floor)[-1] <= floor + (1 - floor) / (steps / 2)


@given(st.data(), st.integers(1, 1000), st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]))
def test_a_recovered_run_decays_from_that_step_on(data: st.DataObject, steps: int, decay: float) -> None:
    step = data.draw(st.integers(0, steps))
    total = shortened(step, steps, "wsd", decay)
    assert step <= total <= steps
    assert total == steps or total - round(decay * total) == step
    if total == steps:
        assert steps - round(decay * steps) <= step
    elif 0 < step < total:
        made = rates(total, "wsd", 0.0, decay)
        assert made[:step] == [1.0] * step
        assert made[step] < 1


@given(st.data(), st.integers(1, 1000), st.sampled_from([0.0, 0.1, 0.2, 0.5]), st.sampled_from([0.0, 0.1, 0.4]))
def test_shortening_changes_no_step_that_was_taken(
    data: st.DataObject, steps: int, decay: float, warmup: float
) -> None:
    step = data.draw(st.integers(1, steps))
    total = shortened(step, steps, "wsd", decay)
    shares = {"schedule": "wsd", "warmup": warmup, "decay": decay, "floor": 0.1}
    for taken in range(max(0, step - 3), step):
        assert rate(taken, total, planned=steps, **shares) == rate(taken, steps, **shares)


def test_a_run_that_recovers_in_its_warm_up_does_not_jump_to_the_peak() -> None:
    total = shortened(50, 1000, "wsd", 0.2)
    shares = {"schedule": "wsd", "warmup": 0.1, "decay": 0.2, "floor": 0.0}
    before = rate(49, 1000, **shares)
    assert rate(50, total, **shares) > 1.8 * before  # the shorter run's own warm-up is over
    assert rate(50, total, planned=1000, **shares) == pytest.approx(before, rel=0.1)


def test_decay_begins_at_the_recovery_and_is_a_share_of_the_new_run() -> None:
    assert shortened(80, 1000, "wsd", 0.2) == 100
    assert shortened(900, 1000, "wsd", 0.2) == 1000  # decays already
    assert shortened(80, 1000, "wsd", 0.0) == 80
    assert shortened(80, 1000, "wsd", 1.0) == 1000


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_a_schedule_that_falls_all_along_ends_at_once(schedule: str) -> None:
    assert shortened(80, 1000, schedule, 0.2) == 80
