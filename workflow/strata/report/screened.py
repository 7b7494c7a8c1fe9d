"""Screened: what a screen and its race have found, with errors, for the page that tells of it. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata import store
from strata.errors import EvaluationError
from strata.jsonfile import read_object
from strata.report.ranking import Measured, agreement, correlation, gap, loss
from strata.screen.candidates import distinct, usual
from strata.screen.measures import MEASURES, PREDICTORS, Measures, predictors, seams_of
from strata.screen.tried import Ranking, Tried, of_depth, read_ranking
from strata.screens import Round, ScreenJobs
from strata.store import Object

MANY = 10_000  # plans, from which on they are not counted


@dataclass(frozen=True)
class Judged:
    """A plan that was measured on the estimation text too, where it is no better for having been chosen.

    rank: among the plans of its depth, by the selection text
    seams: between its layers, and to the embedding and the final norm
    to_best, to_base: what it loses more than the best of its depth, and than the base
    """

    rank: int
    plan: Tried
    seams: int
    loss: Measured | None
    to_best: Measured | None
    to_base: Measured | None


@dataclass(frozen=True)
class Depth:
    """All plans of one depth.

    exist: how many different ones the families have, counted up to MANY
    finalists: the best
    usual: SOLAR's plan, where the families have it
    foretold: (plan, its predictors), of those whose loss is a number
    correlations: of each predictor with the loss on the selection text, over all plans
    """

    depth: int
    exist: int
    plans: list[Tried]
    finalists: list[Judged]
    usual: Judged | None
    foretold: list[tuple[Tried, dict[str, float]]]
    correlations: dict[str, Measured | None]

    @property
    def better(self) -> int:
        """How many of the other finalists are clearly better on the estimation text: the choice was not the best."""
        return sum(one.to_best.high < 0 for one in self.finalists[1:] if one.to_best)

    @property
    def alike(self) -> int:
        """How many of the other finalists the estimation text cannot tell from the best."""
        return sum(not one.to_best.is_clear for one in self.finalists[1:] if one.to_best)


@dataclass(frozen=True)
class Runner:
    """A plan of a race after a round: its rank before any training, and what it loses now, and more than the best."""

    plan: Tried
    untrained: int
    loss: Measured | None
    to_best: Measured | None


@dataclass(frozen=True)
class Heat:
    """A round of a race: who ran, the best first.

    kept: Kendall's tau of their order before any training and now
    luck: the share of all orders that keep it as well
    """

    tokens: int
    runners: list[Runner]
    kept: float
    luck: float

    @property
    def worse(self) -> int:
        """How many are clearly worse than the best on the estimation text."""
        return sum(one.to_best.low > 0 for one in self.runners[1:] if one.to_best)

    @property
    def better(self) -> int:
        """How many are clearly better there: the selection text ranks them otherwise."""
        return sum(one.to_best.high < 0 for one in self.runners[1:] if one.to_best)


@dataclass(frozen=True)
class Section:
    """A screen with its race.

    base: its loss on the selection and on the estimation text
    race_depth: 0 without a race
    heats: the rounds that have ended, of `rounds`
    """

    name: str
    parent: str
    parameters: dict[str, Any]
    layers: int
    ranking: Ranking
    measures: Measures
    base: tuple[Measured | None, Measured | None]
    depths: list[Depth]
    race_depth: int
    heats: list[Heat]
    rounds: int


def section(root: Path, screen: ScreenJobs) -> Section:
    """A screen with the rounds of its race that have ended.

    Raises:
        StoreError: the screen is missing, or it or a round is damaged.
        EvaluationError: one was made of other content than is there now.
    """
    found = store.require(root, screen.job.id)
    ended = [round for round in screen.rounds if store.find(root, round.ranking.id)]
    for job in (screen.job, *(round.ranking for round in ended)):
        _check_current(root, store.require(root, job.id), screen.name)
    ranking, n = read_ranking(found), found.facts["layers"]
    measures = read_object(found.path / MEASURES)
    parameters = screen.job.recipe.parameters
    return Section(
        screen.name,
        screen.parent.name,
        parameters,
        n,
        ranking,
        measures,
        (loss(ranking.base.selection, ranking.selection), loss(ranking.base.estimation, ranking.estimation)),
        [_depth(ranking, n, depth, measures, parameters) for depth in parameters["depths"]],
        screen.depth,
        [_heat(root, round, ranking) for round in ended],
        len(screen.rounds),
    )


def _check_current(root: Path, found: Object, name: str) -> None:
    """Raise EvaluationError for a ranking of other weights, or by another ranking, than are there now."""
    for id, digest in found.facts["made_from"].items():
        made = store.find(root, id)
        if made and made.digest != digest:
            raise EvaluationError(
                f"`{name}` ranks by other content than {id} has now", where=found.path,
                expected=f"content digest {digest}", got=made.digest, todo=f"run `strata redo {name}`",
            )  # fmt: skip


def _depth(ranking: Ranking, n: int, depth: int, measures: Measures, parameters: dict[str, Any]) -> Depth:
    plans = of_depth(ranking.plans, depth)
    judged = [_judged(rank, plan, plans[0], n, ranking) for rank, plan in enumerate(plans, 1) if plan.estimation]
    foretold = [(plan, predictors(plan.order, n, measures)) for plan in plans if plan.is_number]
    losses = [plan.mean(ranking.selection) for plan, _ in foretold]
    solar = usual(n, depth)
    return Depth(
        depth,
        distinct(parameters["families"], n, depth, MANY),
        plans,
        [one for one in judged if one.rank <= parameters["finalists"]],
        next((one for one in judged if one.plan.order == solar), None),
        foretold,
        {name: correlation([told[name] for _, told in foretold], losses) for name in PREDICTORS},
    )


def _judged(rank: int, plan: Tried, best: Tried, n: int, ranking: Ranking) -> Judged:
    targets = ranking.estimation
    to_best, to_base = (gap(plan.estimation, other.estimation, targets) for other in (best, ranking.base))
    return Judged(rank, plan, len(seams_of(plan.order, n)), loss(plan.estimation, targets), to_best, to_base)


def _heat(root: Path, round: Round, untrained: Ranking) -> Heat:
    ranking = read_ranking(store.require(root, round.ranking.id))
    ranks = _ranks(of_depth(untrained.plans, ranking.plans[0].depth))
    runners = [
        Runner(
            plan,
            ranks[plan.order],
            loss(plan.estimation, ranking.estimation),
            gap(plan.estimation, ranking.plans[0].estimation, ranking.estimation),
        )
        for plan in ranking.plans
    ]
    tokens = round.trained[0].job.recipe.parameters["tokens"]
    return Heat(tokens, runners, *agreement([runner.untrained for runner in runners]))


def _ranks(plans: Sequence[Tried]) -> dict[tuple[int, ...], int]:
    return {plan.order: rank for rank, plan in enumerate(plans, 1)}


def loss_words(found: Measured | None) -> str:
    """`3.512 [3.401, 3.623]`"""
    return f"{found:.3f}" if found else "not a number"


def gap_words(found: Measured | None) -> str:
    """`+0.107 [+0.045, +0.170]`"""
    return f"{found:+.3f}" if found else "not a number"


def told(root: Path, screen: ScreenJobs) -> str:
    """The finalists of each depth, and the race, for a terminal. Raises StoreError: it has not run, or is damaged."""
    found = section(root, screen)
    rows = [("layers", "rank", "plan", "selection", "estimation", "more than the best")]
    for depth in found.depths:
        for one in depth.finalists:
            chosen = f"{one.plan.mean(found.ranking.selection):.3f}" if one.plan.is_number else "not a number"
            more = gap_words(one.to_best) if one.rank > 1 else ""
            rows.append((str(depth.depth), str(one.rank), one.plan.merge, chosen, loss_words(one.loss), more))
    for heat in found.heats:
        for rank, runner in enumerate(heat.runners, 1):
            more = gap_words(runner.to_best) if rank > 1 else ""
            name = f"{runner.plan.merge}, after {heat.tokens:,} tokens"
            rows.append((str(found.race_depth), str(rank), name, "", loss_words(runner.loss), more))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(0, f"{found.name}: {len(found.ranking.plans):,} plans of {found.parent} tried")
    if len(found.heats) < found.rounds:
        lines.append(f"{len(found.heats)} of {found.rounds} rounds of the race have ended")
    return "\n".join(lines)
