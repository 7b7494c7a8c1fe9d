"""Learning rates: the share of the peak rate that each step of a run takes. Pure functions."""

from __future__ import annotations

import math

SCHEDULES = ("wsd", "cosine", "linear")


def rate(
    step: int, steps: int, *, schedule: str, warmup: float, decay: float, floor: float, planned: int | None = None
) -> float:
    """The multiplier of the peak rate for `step` of 0 to `steps` - 1: above 0, at most 1.

    The rate climbs evenly to the peak, which the last step of the warm-up takes, and falls from the last step at the
    peak towards `floor`, which the step after the last would take. `wsd` (warm-up, stable, decay: arXiv 2404.06395,
    section 4) stays at the peak until the last `decay` of the run; `cosine` and `linear` fall from the warm-up on.

    Args:
        warmup, decay: shares of the run; one that rounds to no step is left out.
        floor: share of the peak rate.
        planned: the run's steps before it was shortened: its warm-up goes on as it began, without a jump.
    """
    climbing = round(warmup * (planned or steps))
    climbed = min(1.0, (step + 1) / climbing) if climbing else 1.0
    falling_from = steps - round(decay * steps) if schedule == "wsd" else min(climbing, steps)
    peak = max(falling_from - 1, 0)  # the last step that does not fall
    fallen = max(0.0, (step - peak) / (steps - peak))
    share = (1 + math.cos(math.pi * fallen)) / 2 if schedule == "cosine" else 1 - fallen
    return climbed * (floor + (1 - floor) * share)


def shortened(step: int, steps: int, schedule: str, decay: float) -> int:
    """The new number of steps of a run that may end after `step` of them: `wsd` decays from this step on, then ends.

    Never more than `steps`: a run that decays already goes on as it is.
    """
    if schedule != "wsd":
        return step
    if decay >= 1:
        return steps
    # Both shares are rounded, and yet the decay starts at `step` exactly: the two errors add up to less than one step.
    return min(round(step / (1 - decay)), steps)
