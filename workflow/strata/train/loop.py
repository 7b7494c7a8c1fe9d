"""The loop: step after step until the budget is spent or the reference's loss is regained.

A run's position is one integer, the step: its samples, its learning rate and its order follow from it, so a run that
goes on from a snapshot does exactly what it would have done. Dropout is off, so nothing is drawn at random.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from strata.errors import Preempted, TrainingError, UsageError
from strata.progress import bar
from strata.train import schedule
from strata.train.batch import Batch
from strata.train.journal import Journal
from strata.train.learner import Learner, set_rate
from strata.train.parallel import Ranks
from strata.train.sharding import whole
from strata.train.state import State
from strata.train.task import Task, check_first, heldout_loss

GO_ON, SNAPSHOT, STOP = 0, 1, 2


@dataclass(frozen=True)
class Run:
    """Everything that a run works with and does not change but through the learner.

    `operations` are those of one token; `snapshot` writes one of the state that it is given; `last` says which one
    stands. `stop` fills when a signal asks to stop.
    """

    task: Task
    learner: Learner
    parameters: Mapping[str, Any]
    ranks: Ranks
    heldout: Sequence[Batch]
    journal: Journal | None
    snapshot: Callable[[State], None]
    last: Callable[[], str]
    operations: float
    peak: float | None
    stop: Sequence[int]
    label: str


def train(run: Run, state: State) -> State:
    """Go on from `state` to the end of the run.

    Raises:
        Preempted: a signal came; the step was finished and a snapshot written.
        TrainingError: the loss is not a number, or DPO's first is not ln 2.
    """
    every = interval(run.parameters, run.task.steps)
    due = time.monotonic() + snapshot_seconds(0.0)
    with bar(run.label, state.steps, "step") as progress:
        progress.update(state.step)
        if state.step == 0 and run.heldout:
            _measure(run, state)
        while state.step < state.steps:
            _step(run, state)
            progress.update()
            if run.heldout and (state.step % every == 0 or state.step == state.steps):
                _measure(run, state)
                progress.total = state.steps
            wish = run.ranks.highest(STOP if run.stop else SNAPSHOT if time.monotonic() >= due else GO_ON)
            if wish != GO_ON:
                started = time.monotonic()
                run.snapshot(state)
                due = time.monotonic() + snapshot_seconds(time.monotonic() - started)
            if wish == STOP:
                raise Preempted(
                    "stopped by a signal; the run's state is kept", where=run.last(),
                    got=f"{state.step} of {state.steps} steps", todo="run the same command: it goes on from there",
                )  # fmt: skip
    return state


def interval(parameters: Mapping[str, Any], steps: int) -> int:
    """Steps between two measurements of the held-out loss."""
    of_step: int = parameters["batch"] * parameters["length"]
    tokens: int = parameters.get("every") or steps * of_step // 10
    return max(1, round(tokens / of_step))


def snapshot_seconds(last: float) -> float:
    """Seconds to the next snapshot: ten minutes, and so many that snapshots take at most a twentieth of the run.

    It changes nothing that is written, so it is set in the environment and is no part of a recipe.

    Args:
        last: seconds that the last one took.
    """
    asked = os.environ.get("STRATA_SNAPSHOT_SECONDS")
    if not asked:
        return max(600.0, 20 * last)
    try:
        seconds = float(asked)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise UsageError(
            "not a number of seconds", where="the environment, STRATA_SNAPSHOT_SECONDS", expected="0 or more",
            got=asked, todo="set a number, or unset it: every ten minutes",
        )  # fmt: skip
    return seconds


def _step(run: Run, state: State) -> None:
    """One step: all samples of its batch, micro-batch by micro-batch, then one update."""
    import torch

    started, batch = time.monotonic(), run.parameters["batch"]
    samples = range(state.step * batch, (state.step + 1) * batch)
    weight = run.task.weigh(samples)
    own, micro = run.ranks.share(samples), run.parameters["micro_batch"]
    parts = [own[start : start + micro] for start in range(0, len(own), micro)]
    tokens, sums = 0, dict[str, Any]()  # sums stay on the device: to read one is to wait for all before it
    for part in parts:
        drawn = run.task.draw(part)
        loss, more = run.task.loss(run.learner.model, drawn, part, run.parameters["dtype"])
        (loss * run.ranks.size / max(weight, 1)).backward()  # the ranks' gradients are averaged, and should be summed
        tokens += drawn.tokens
        for name, value in {"loss": loss.detach(), **more}.items():
            sums[name] = sums.get(name, 0) + value.double()
    *totals, tokens_ = run.ranks.total([*map(float, sums.values()), float(tokens)])
    values = {name: total / max(weight, 1) for name, total in zip(sums, totals, strict=True)}
    norm = float(whole(torch.nn.utils.clip_grad_norm_(run.learner.trained.values(), run.parameters["clip"])))
    if not (math.isfinite(values["loss"]) and math.isfinite(norm)):
        raise TrainingError(
            "the loss is not a number" if not math.isfinite(values["loss"]) else "the gradient is not a number",
            where=f"step {state.step}",
            expected="finite numbers",
            got=f"loss {values['loss']}, gradient norm {norm}; last good snapshot: {run.last()}",
            todo=f"{_advice(run)}; the batch is the same when it runs again",
        )
    if state.step == 0:
        check_first(run.task, values["loss"], run.parameters)
    p = run.parameters
    rate = p["learning_rate"] * schedule.rate(
        state.step, state.steps, schedule=p["schedule"], warmup=p["warmup"], decay=p["decay"], floor=p["floor"],
        planned=state.planned,
    )  # fmt: skip
    set_rate(run.learner, rate)
    run.learner.optimizer.step()
    run.learner.optimizer.zero_grad()
    state.step += 1
    state.tokens += int(tokens_)
    state.targets += weight
    entry = {"step": state.step, "tokens": state.tokens, **values, "lr": rate, "grad_norm": norm}
    state.losses.append(entry)
    _note(run, entry, tokens_, time.monotonic() - started)


def _advice(run: Run) -> str:
    return "lower `learning_rate`" + (", or take `dtype: float32`" if run.parameters["dtype"] != "float32" else "")


def _note(run: Run, entry: Mapping[str, Any], tokens: float, seconds: float) -> None:
    """The step's line in the journal, with what depends on the clock."""
    if run.journal is None:
        return
    import torch

    speed = tokens / seconds
    cuda = run.ranks.device.type == "cuda"
    run.journal.write(
        **entry,
        tokens_per_second=round(speed, 2),
        mfu=round(speed * run.operations / run.ranks.size / run.peak, 4) if run.peak else None,
        memory_mb=torch.cuda.max_memory_allocated() // 1_000_000 if cuda else _resident_mb(),
    )


def _resident_mb() -> int | None:
    from strata.runs import peak_memory_mb

    return peak_memory_mb()


def _measure(run: Run, state: State) -> None:
    """Measure the held-out loss, and shorten the run when it has come back to the reference's."""
    loss = heldout_loss(run.learner.model, run.heldout, run.parameters["dtype"], run.ranks)
    if not math.isfinite(loss):
        raise TrainingError(
            "the held-out loss is not a number", where=f"after step {state.step}",
            expected="a finite number",
            got=f"{loss}; last good snapshot: {run.last()}", todo=_advice(run),
        )  # fmt: skip
    state.heldout.append({"step": state.step, "tokens": state.tokens, "loss": loss})
    if run.journal is not None:
        run.journal.write(step=state.step, tokens=state.tokens, heldout_loss=loss)
    stop = run.parameters.get("stop")
    if stop is None or state.recovered or state.reference is None:
        return
    state.good = state.good + 1 if loss <= state.reference + stop["within"] else 0
    if state.good >= stop["patience"]:
        state.recovered = True
        state.steps = schedule.shortened(state.step, state.steps, run.parameters["schedule"], run.parameters["decay"])
