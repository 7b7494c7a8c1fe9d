"""Lineage: what a checkpoint has from its ancestors, which its own recipe does not say. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from strata.plan import Plan


@dataclass(frozen=True)
class Lineage:
    """What a variant hands down.

    plan: the layer plan that its manifest will have, its last merge's; None where an analysis decides it
    tokenizer: id of the `init` checkpoint whose tokenizer it carries
    template: of the chats it was tuned on last; `own` where it still has the tokenizer's
    learnt: sorted ids of the tokens that it or an ancestor was trained on
    """

    plan: Plan | None
    tokenizer: str
    template: str = "own"
    learnt: tuple[str, ...] = ()


def merged(plan: Plan | None, parents: Sequence[Lineage]) -> Lineage:
    """Of a merge: config and tokenizer come from the parent that lends the embedding."""
    lender = parents[plan.embed_from.sources[0][0] if plan else 0]
    if len(parents) == 1:
        return replace(lender, plan=plan)
    return replace(lender, plan=plan, learnt=tuple(sorted({id for parent in parents for id in parent.learnt})))


def taught(parent: Lineage, tokens: Sequence[str], template: str | None) -> Lineage:
    """Of training on `tokens`: the parent's plan and tokenizer, with the template of what was learnt, if it has one."""
    return replace(parent, template=template or parent.template, learnt=tuple(sorted({*parent.learnt, *tokens})))
