"""The page of an experiment's screens: what was found, in words, tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from markupsafe import Markup

from strata import store
from strata.experiment import Experiment
from strata.report.clouds import Point, cloud
from strata.report.comparison import LEVEL
from strata.report.grids import grid
from strata.report.html import render
from strata.report.ranking import front
from strata.report.screened import MANY, Depth, Section, gap_words, loss_words, section
from strata.report.stacks import stacks
from strata.screen.candidates import block_of
from strata.screen.measures import PREDICTORS, Measures
from strata.screen.tried import Tried

PAGE = "screens.html"
_NATS = "nats per token of the selection text"
_FAR = 2.5  # times the least loss, beyond which it does not matter how bad a plan is


def screens_html(root: Path, experiment: Experiment, partial: bool = False) -> str:
    """One page with all screens; of a partial report, with those that are there.

    Raises:
        StoreError: one is missing or damaged.
        EvaluationError: one was made of other content than is there now.
    """
    shown = {name: one for name, one in experiment.screens.items() if not partial or store.find(root, one.job.id)}
    sources = {job.id: name for name, job in experiment.sources.items()}
    sections = [section(root, screen) for screen in shown.values()]
    return render(
        PAGE,
        {"measured": loss_words, "gap": gap_words},
        sections=sections,
        missing=[name for name in experiment.screens if name not in shown],
        texts={name: [sources[text.recipe.sources[0]] for text in one.texts] for name, one in shown.items()},
        predictors=PREDICTORS,
        many=MANY,
        level=LEVEL,
        pictures={one.name: _pictures(one) for one in sections},
    )


def _pictures(found: Section) -> Mapping[str, Markup | dict[int, Markup]]:
    """By name; what each depth has by depth. Empty where there is nothing to draw."""
    return {
        "stacks": {one.depth: _stacks(found, one) for one in found.depths},
        "blocks": {one.depth: _blocks(found, one) for one in found.depths},
        "clouds": {one.depth: _clouds(found, one) for one in found.depths},
        "depths": _by_depth(found),
        "influence": _influence(found.measures, found.layers),
        "angle": _angle(found.measures, found.layers),
        "mismatch": _mismatch(found.measures, found.layers),
    }


def _stacks(found: Section, depth: Depth) -> Markup:
    rows = [
        (plan.merge, plan.order, f"{_mean(found, plan):.4f}" if plan.is_number else "overflow") for plan in depth.plans
    ]
    return stacks(rows, found.layers, f"Plans of {depth.depth} layers: {_NATS}") if rows else Markup()


def _mean(found: Section, plan: Tried) -> float:
    return plan.mean(found.ranking.selection)


def _blocks(found: Section, depth: Depth) -> Markup:
    """Loss by the one block of layers that runs again to make the plan."""
    cells = {
        (block[0], block[1] - 1): _mean(found, plan)
        for plan, _ in depth.foretold
        if (block := block_of(plan.order, found.layers))
    }
    title = f"{depth.depth} layers by running one block again, once or more often: {_NATS}, on a logarithmic scale"
    axes = "first layer of the block", "last layer of the block"
    told = "layers {row} to {column} again: {value} nats"
    return grid(cells, found.layers, title, axes, told, is_logarithmic=True)


def _clouds(found: Section, depth: Depth) -> Markup:
    """Loss against each predictor."""
    pictures = []
    for name, words in PREDICTORS.items():
        points = [Point(told[name], _mean(found, plan), _label(found, plan)) for plan, told in depth.foretold]
        pictures.append(cloud(points, _NATS, words, _FAR * min((point.y for point in points), default=0.0)))
    return Markup("").join(pictures)


def _label(found: Section, plan: Tried) -> str:
    return f"{plan.merge}: {_mean(found, plan):.4f}"


def _by_depth(found: Section) -> Markup:
    """Loss against depth, with the Pareto front; nothing where there is one depth."""
    known = [plan for depth in found.depths for plan, _ in depth.foretold]
    if len({plan.depth for plan in known}) < 2:
        return Markup()
    best = front({plan: _mean(found, plan) for plan in known}, found.layers)
    points = [Point(plan.depth, _mean(found, plan), _label(found, plan), plan in best) for plan in known]
    points.append(Point(found.layers, _mean(found, found.ranking.base), "the base", True))
    return cloud(points, _NATS, "layers", _FAR * min(point.y for point in points))


def _influence(measures: Measures, n: int) -> Markup:
    points = [Point(at, measures["mismatch"][at][at + 1], f"layer {at}", True) for at in range(n)]
    return cloud(
        points, "block influence: 1 - cosine of what goes into a layer and what comes out", "layer of the base"
    )


def _angle(measures: Measures, n: int) -> Markup:
    cells = {(at, span): measures["angle"][at][at + span] for at in range(n) for span in range(1, n + 1 - at)}
    title = "Angular distance between the states before a layer and some layers later, in half turns"
    return grid(cells, n + 1, title, ("layer", "layers later"), "from layer {row} on, {column} layers later: {value}")


def _mismatch(measures: Measures, n: int) -> Markup:
    cells = {(at, to): measures["mismatch"][at][to] for at in range(n + 1) for to in range(n + 1) if at != to}
    title = "Seam mismatch: 1 - cosine of the state that a layer expects and the one it gets, on a logarithmic scale"
    axes = "whose state is given", "layer that gets it"
    return grid(cells, n + 1, title, axes, "layer {column} gets the state before {row}: {value}", is_logarithmic=True)
