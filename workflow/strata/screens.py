"""Screens as jobs: the search itself, and the race of the best, whose places are known before its runners are.

Pure, as `experiment` is. Round r of a race has a node for every rank: a merge of whichever plan comes out at that rank
of the round before (of the screen, for the first round), and its training. So the DAG is known in advance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from strata import surgery
from strata.job import Job
from strata.lineage import merged
from strata.recipe import Recipe
from strata.screen.candidates import count, distinct
from strata.screening import Race, Screen
from strata.setting import Place, Setting, data_of
from strata.stages import trained_variant
from strata.variant import Variant


@dataclass(frozen=True)
class Round:
    """One round of a race: plans by the rank that they come with, each trained, and the job that ranks them then."""

    merged: tuple[Variant, ...]
    trained: tuple[Variant, ...]
    ranking: Job


@dataclass(frozen=True)
class ScreenJobs:
    """A screen of the config with its jobs.

    texts: tokens of the selection and the estimation text
    rounds: of its race, if it has one, of plans of `depth`
    """

    name: str
    parent: Variant
    job: Job
    texts: tuple[Job, ...]
    rounds: tuple[Round, ...] = ()
    depth: int = 0

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that are run for it, but for those of its parent; what others wait for comes first."""
        jobs = [*self.texts, self.job]
        for round in self.rounds:
            jobs += [job for one in (*round.merged, *round.trained) for job in (*one.preparations, one.job)]
            jobs.append(round.ranking)
        return tuple(dict.fromkeys(jobs))

    @property
    def rankings(self) -> tuple[Job, ...]:
        """What its page tells of: the screen, then every round."""
        return (self.job, *(round.ranking for round in self.rounds))

    def count(self, depth: int) -> int:
        """How many plans of a depth are tried at most."""
        parameters = self.job.recipe.parameters
        most: int = parameters["budget"]["plans"]
        given = sum(len(order) == depth for order in parameters["plans"])
        return min(most, given + distinct(parameters["families"], self.job.model.layers, depth, most))

    def ranking(self, depth: int) -> Job:
        """What decides which plan of a depth is the best: the race, where there was one."""
        return self.rounds[-1].ranking if self.rounds and depth == self.depth else self.job


def screened(setting: Setting, name: str, screen: Screen, parent: Variant) -> ScreenJobs:
    """A screen with all its jobs.

    Raises:
        ConfigError: a text that cannot be used, a layer that is not there, a depth that no family reaches, a race that
            is not between plans of the screen.
    """
    place = Place(setting.document, ("screens", name))
    shape = parent.job.model
    texts = _texts(setting, screen, parent, place)
    _check_plans(screen, shape.layers, place)
    sources = tuple(job.id for job in texts)
    job = Job(Recipe("screen", screen.normal(setting.device), (parent.job.id,), sources), shape)
    made = ScreenJobs(name, parent, job, texts)
    if screen.race is None:
        return made
    depth = screen.race.depth or screen.depths[0]
    return replace(made, rounds=_rounds(setting, made, screen.race, depth, place), depth=depth)


def screened_variant(
    setting: Setting, name: str, merge: surgery.Screened, parent: Variant, made: ScreenJobs
) -> Variant:
    """The variant that a screen, or its race, has found best.

    Raises:
        ConfigError: its parent is not the screen's, or the screen has no plans of this depth or rank.
    """
    place = Place(setting.document, ("variants", name))
    if parent.job.id != made.parent.job.id:
        raise place.error("the screen is of another parent", "parent", expected=made.parent.name, got=parent.name)
    depths = made.job.recipe.parameters["depths"]
    if merge.depth not in depths:
        expected = ", ".join(map(str, depths))
        raise place.error("the screen has no plans of this depth", "merge", "depth", expected=expected, got=merge.depth)
    last = made.rounds[-1].trained if made.rounds and merge.depth == made.depth else ()
    most, of = (len(last), "in the last round of the race") if last else (made.count(merge.depth), "tried at most")
    if merge.rank > most:
        raise place.error(
            "no plan has this rank", "merge", "rank", expected=f"1 to {most}: so many are {of}", got=merge.rank
        )
    winner = _winner(name, made, made.ranking(merge.depth), merge)
    if not last:
        return replace(winner, preparations=(made.job,))
    learnt = [winner.lineage, *(one.lineage for one in last)]  # what the race has trained on has chosen, too
    return replace(
        winner,
        preparations=made.jobs[len(made.texts) :],
        lineage=replace(
            winner.lineage,
            learnt=tuple(sorted({id for lineage in learnt for id in lineage.learnt})),
            sources=tuple(sorted({id for lineage in learnt for id in lineage.sources})),
        ),
    )


def _winner(name: str, made: ScreenJobs, ranking: Job, merge: surgery.Screened) -> Variant:
    """The plan of a rank, as a variant that copies its parent's layers. Its plan is known when the ranking is.

    What chose it counts as learnt from: no score of the variant may be on the selection text.
    """
    parent, shape, parameters = made.parent, made.parent.job.model.deep(merge.depth), merge.normal([made.parent.name])
    if merge.dtype == shape.dtype:
        del parameters["dtype"]  # what it would be anyway is no other recipe
    recipe = Recipe("merge", parameters, (parent.job.id,), (ranking.id,))
    lineage = merged(None, [parent.lineage])
    text = made.texts[0].recipe
    lineage = replace(
        lineage,
        learnt=tuple(sorted({*lineage.learnt, text.id})),
        sources=tuple(sorted({*lineage.sources, *text.sources})),
    )
    job = Job(recipe, shape.cast(merge.dtype) if merge.dtype else shape)
    return Variant(name, (parent.name,), job, None, lineage, (ranking,))


def _rounds(setting: Setting, made: ScreenJobs, race: Race, depth: int, place: Place) -> tuple[Round, ...]:
    _check_race(race, depth, made, place)
    _check_data(setting, race, made, place)
    rounds: list[Round] = []
    before, runners, training = made.job, race.plans, race.pretrain
    key = (*place.key, "race", "pretrain")
    for number in range(1, race.rounds + 1):
        stacked, trained = [], []
        for rank in range(1, runners + 1):
            name = f"{made.name}.{number}.{rank}"
            merge = surgery.Screened(method="screened", screen=made.name, depth=depth, rank=rank)
            stacked.append(_winner(name, made, before, merge))
            trained.append(trained_variant(setting, name, training, stacked[-1], None, key))
        taken = ("selection", "estimation", "dtype", "device")
        parameters = {name: made.job.recipe.parameters[name] for name in taken} | {"depth": depth}
        learnt = sorted({*trained[0].lineage.learnt} - {*stacked[0].lineage.learnt})
        sources = (*made.job.recipe.sources, before.id, *learnt)
        recipe = Recipe("race", parameters, tuple(one.job.id for one in trained), sources)
        rounds.append(Round(tuple(stacked), tuple(trained), Job(recipe, stacked[0].job.shape)))
        before, runners = rounds[-1].ranking, -(-runners // 2)
        training = training.model_copy(update={"tokens": 2 * training.tokens})
    return tuple(rounds)


def _texts(setting: Setting, screen: Screen, parent: Variant, place: Place) -> tuple[Job, ...]:
    """The tokens of both texts, of which neither may be the other, nor what choosing by it would spoil."""
    jobs: list[Job] = []
    for entry, text in (("selection", screen.selection), ("estimation", screen.estimation)):
        where = (entry, "source")
        source = data_of(setting, text.source, place, *where)
        if source.id in parent.lineage.sources:
            raise place.error(
                f"the parent has learnt from `{text.source}`", *where, expected="a text that is new to it"
            )
        jobs.append(Job(Recipe("tokenize", {"format": "text"}, (parent.lineage.tokenizer,), (source.id,))))
    if jobs[0].id == jobs[1].id:
        raise place.error(
            "plans are chosen on the text that is to say what they lose", "estimation", "source",
            expected="another source than `selection` has", got=screen.estimation.source,
        )  # fmt: skip
    suite = setting.tested.get(jobs[0].recipe.sources[0])
    if suite:
        raise place.error(
            f"`{screen.selection.source}` is what the suite {suite} is scored on", "selection", "source",
            todo="choose on something else: the scores of what is chosen would be too good",
        )  # fmt: skip
    return tuple(jobs)


def _check_plans(screen: Screen, n: int, place: Place) -> None:
    """Raise ConfigError for a plan with a layer that is not there, and for a depth that nothing reaches."""
    depths = ", ".join(map(str, screen.depths))
    for number, order in enumerate(screen.plans):
        for at, layer in enumerate(order):
            if layer >= n:
                expected = f"0 to {n - 1}: the parent has {n} layers"
                raise place.error("no such layer", "plans", number, at, expected=expected, got=layer)
        if len(order) not in screen.depths:
            raise place.error(
                "a plan of another depth", "plans", number, expected=f"{depths} layers", got=f"{len(order)} layers"
            )
    for number, depth in enumerate(screen.depths):
        given = sum(len(order) == depth for order in screen.plans)
        if not given and not any(count(family, n, depth) for family in screen.families):
            raise place.error(
                "no plan has this depth", "depths", number, got=f"{depth}, of a parent with {n} layers",
                expected=f"of {', '.join(screen.families) or 'explicit plans'} one at least",
                todo="dus and blocks reach n + 1 to 2n layers, interlocked the even numbers of them, repeat any "
                "above n, prune any below; name another family, or the plan under `plans`",
            )  # fmt: skip


def _check_data(setting: Setting, race: Race, made: ScreenJobs, place: Place) -> None:
    """Raise ConfigError for training on a text of the screen."""
    texts = {text.recipe.sources[0] for text in made.texts}
    for name in race.pretrain.data:
        if data_of(setting, name, place, "race", "pretrain", "data", name).id in texts:
            raise place.error(
                f"the race would train on `{name}`, which it is ranked by", "race", "pretrain", "data", name,
                expected="text that no plan is chosen or judged on", got=name,
            )  # fmt: skip


def _check_race(race: Race, depth: int, made: ScreenJobs, place: Place) -> None:
    """Raise ConfigError for a race that cannot be run, or would not be one."""
    if depth not in made.job.recipe.parameters["depths"]:
        depths = ", ".join(map(str, made.job.recipe.parameters["depths"]))
        raise place.error("no plan has this depth", "race", "depth", expected=f"one of {depths}", got=depth)
    if race.plans > made.count(depth):
        expected = f"2 to {made.count(depth)}, which are tried at most"
        raise place.error("the screen has fewer plans", "race", "plans", expected=expected, got=race.plans)
    if 2 ** (race.rounds - 1) >= race.plans:
        most = (race.plans - 1).bit_length()
        raise place.error("nothing would be left to decide", "race", "rounds", expected=f"1 to {most}", got=race.rounds)
    if race.pretrain.stop:
        raise place.error(
            "plans that stop where they like cannot be compared", "race", "pretrain", "stop", todo="remove it"
        )
