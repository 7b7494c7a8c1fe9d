"""Lineage: what a checkpoint has from its ancestors, which its own recipe does not say. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from strata.plan import Plan
from strata.recipe import Recipe


@dataclass(frozen=True)
class Lineage:
    """What a variant hands down.

    plan: the layer plan that its manifest will have, its last merge's; None where what is measured decides it
    tokenizer: id of the `init` checkpoint whose tokenizer it carries
    template: of the chats it was tuned on last; `own` where it still has the tokenizer's
    learnt: sorted ids of the tokens that it or an ancestor was trained on
    sources: sorted ids of the fetched sources that these were made of
    """

    plan: Plan | None
    tokenizer: str
    template: str = "own"
    learnt: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


def merged(plan: Plan | None, parents: Sequence[Lineage]) -> Lineage:
    """Of a merge: config and tokenizer come from the parent that lends the embedding."""
    lender = parents[plan.embed_from.sources[0][0] if plan else 0]
    if len(parents) == 1:
        return replace(lender, plan=plan)
    learnt = {id for parent in parents for id in parent.learnt}
    sources = {id for parent in parents for id in parent.sources}
    return replace(lender, plan=plan, learnt=tuple(sorted(learnt)), sources=tuple(sorted(sources)))


def taught(parent: Lineage, tokens: Sequence[Recipe], template: str | None) -> Lineage:
    """Of training on `tokens`: the parent's plan and tokenizer, with the template of what was learnt, if it has one."""
    learnt = {*parent.learnt, *(recipe.id for recipe in tokens)}
    sources = {*parent.sources, *(source for recipe in tokens for source in recipe.sources)}
    template = template or parent.template
    return replace(parent, template=template, learnt=tuple(sorted(learnt)), sources=tuple(sorted(sources)))
