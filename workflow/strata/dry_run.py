"""Dry run: what a screen would try and cost, told from its recipe before it runs."""

from __future__ import annotations

import time
from collections import Counter

from strata.config import WIDTH, Shape
from strata.resources import SPEED
from strata.screen.candidates import Candidate, count, usual
from strata.screen.operation import space_of
from strata.screen.search import Space, first, is_growing
from strata.screen.stack import ROWS
from strata.screen.texts import rows_of
from strata.screen.walk import steps
from strata.screens import ScreenJobs

OVERHEAD = 1.4  # of a forward pass over its large products, which is what a machine's speed is measured by
LIBRARIES = 700_000_000  # bytes that torch and transformers take


def dry_run(screen: ScreenJobs) -> str:
    """How many plans, layer steps, minutes and bytes."""
    parameters, shape = screen.job.recipe.parameters, screen.job.model
    space = space_of(parameters, shape.layers)
    begun = first(space)
    texts = [parameters[name] for name in ("selection", "estimation")]
    tokens = [text["documents"] * text["tokens"] for text in texts]
    made = steps([one.order for one in begun])
    alone = sum(len(one.order) for one in begun)
    later = _later(space, len(begun))
    plans = len(begun) + later
    each = round(alone / len(begun) * later)
    share = (made + each) / (alone + each)
    speed, told = _speed(parameters["device"], parameters["dtype"], shape.hidden or 1024)
    solars = sum(usual(space.n, depth) is not None for depth in space.depths)
    judged = min(plans, parameters["finalists"] * len(space.depths) + solars) + 1
    work = _operations(shape, tokens[0], made + each + shape.layers, plans + 1)
    work += _operations(shape, tokens[1], judged * max(space.depths), judged)
    minutes = work * OVERHEAD / speed / 60
    limit = parameters["budget"].get("minutes")
    depths = ", ".join(map(str, space.depths))
    lines = [
        f"{screen.name}: {screen.parent.name}, {shape.layers} layers, to {depths}",
        f"plans        {plans:,}{_families(space, begun)}",
        f"texts        {tokens[0]:,} tokens to choose on, {tokens[1]:,} to judge {judged - 1:,} plans by",
        f"layer steps  {made + each:,} of {alone + each:,} with every plan alone ({share:.0%})",
        f"minutes      {minutes:,.1f}, {told}" + (f"; it ends after {limit} minutes" if limit else ""),
        f"bytes        {_memory(shape, texts, space, parameters['dtype']):,} of memory at most, "
        f"{_written(plans, texts[0]['documents'], judged, texts[1]['documents']):,} on disk",
    ]
    if later:
        lines.insert(2, f"{'':<13}{later:,} of them come of changes of the best, each counted as a whole")
    return "\n".join(lines + _race(screen))


def _later(space: Space, begun: int) -> int:
    """How many plans an evolution may still try."""
    return max(0, space.plans - begun) if is_growing(space) else 0


def _families(space: Space, begun: list[Candidate]) -> str:
    """` of 3,130: dus 13 of 13, blocks 87 of 3,117`"""
    tried = Counter(one.family for one in begun)
    told = []
    for family in space.families:
        exist = sum(count(family, space.n, depth) for depth in space.depths)
        told.append(f"{family} {tried[family]:,} of {exist:,}")
    if space.explicit:
        told.append(f"{len(space.explicit):,} given")
    return ": " + ", ".join(told)


def _operations(shape: Shape, tokens: int, layers: int, heads: int) -> float:
    """Floating-point operations of so many layers and heads on so many tokens; two for each parameter and token."""
    outside = shape.outside if shape.outside is not None else 0
    layer = (shape.parameters - outside) / shape.layers
    head = (shape.vocabulary or 0) * (shape.hidden or 0)
    return 2.0 * tokens * (layers * layer + heads * head)


def _speed(device: str, dtype: str, width: int) -> tuple[float, str]:
    """Operations a second, and where the number is from."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return SPEED["cuda"], "at a nominal 100 TFLOP/s: there is no GPU here"
    rows = torch.zeros(1024, width, dtype=getattr(torch, dtype), device=device)
    weights = torch.zeros(width, 4 * width, dtype=rows.dtype, device=device)
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(4):
            product = rows @ weights
        product[0, 0].item()  # a GPU has ended then
        seconds.append(time.perf_counter() - begun)
    speed = 4 * 2 * rows.numel() * weights.shape[1] / min(seconds)
    return speed, f"at {speed / 1e9:,.0f} GFLOP/s in {dtype}, as measured now"


def _memory(shape: Shape, texts: list[dict[str, int]], space: Space, dtype: str) -> int:
    """Weights, the states that are held, and logits with what a loss makes of them."""
    deepest, width = max(space.n, *space.depths), (shape.hidden or 0) * WIDTH[dtype]
    states = max(
        (deepest + 2) * text["tokens"] * width * rows_of(text["documents"], text["tokens"], width, deepest)
        for text in texts
    )
    logits = 2 * ROWS * (shape.vocabulary or 0) * WIDTH["float32"]
    return LIBRARIES + shape.parameters * WIDTH[dtype] + states + logits


def _written(plans: int, documents: int, judged: int, others: int) -> int:
    """`plans.json`: 20 bytes for each number, and 200 for each plan."""
    return plans * (200 + 20 * documents) + judged * 20 * others


def _race(screen: ScreenJobs) -> list[str]:
    rounds = [
        f"{len(round.trained)} plans on {round.trained[0].job.recipe.parameters['tokens']:,} tokens each"
        for round in screen.rounds
    ]
    return [f"race         {', then '.join(rounds)}"] if rounds else []
