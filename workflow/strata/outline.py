"""A layer plan in words, for people. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from strata.plan import Layer, Plan, seams

LINES = 60  # a plan of thousands of runs says no more


def outline(plan: Plan, names: Sequence[str]) -> list[str]:
    """A line for each run of layers, then one for the parts outside the layers, one for the seams.

    Args:
        names: of the parents.
    """
    runs = list(rows(plan, names))
    width = max(len(span) for span, _ in runs)
    lines = [f"{span.rjust(width)}  {told}" for span, told in runs[:LINES]]
    lines += [f"and {len(runs) - LINES} more"] * (len(runs) > LINES)
    return [*lines, outside(plan, names), f"seams between its runs: {_seams(plan)}"]


def rows(plan: Plan, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(layers, what they are made of) of each run, such as `0-23` and `0-23 of base`."""
    for first, last in _runs(plan):
        yield _span(first, last), _told(plan, first, last, names)


def outside(plan: Plan, names: Sequence[str]) -> str:
    """What the parts outside the layers are made of, in a line."""
    parts = plan.outside
    if len(set(parts.values())) == 1:
        return f"embedding, norm and head: {_mix(plan.embed_from, names)}"
    return ", ".join(f"{part}: {_mix(layer, names)}" for part, layer in parts.items()).replace("embed:", "embedding:")


def _seams(plan: Plan) -> str:
    found = seams(plan)
    places = ", ".join(f"{i}|{i + 1}" for i in found[:8]) + (", ..." if len(found) > 8 else "")
    return f"{len(found)}" + (f" ({places})" if found else "")


def _runs(plan: Plan) -> Iterator[tuple[int, int]]:
    """(first, last) of the longest stretches that one line can tell: one transform, and no seam within."""
    first, cuts = 0, set(seams(plan))
    for i, (below, above) in enumerate(zip(plan.layers, plan.layers[1:], strict=False)):
        alike = (below.transform, below.weights, below.named) == (above.transform, above.weights, above.named)
        if i in cuts or not alike:
            yield first, i
            first = i + 1
    yield first, len(plan.layers) - 1


def _told(plan: Plan, first: int, last: int, names: Sequence[str]) -> str:
    bottom, top = plan.layers[first], plan.layers[last]
    spans = [_span(source, to) for (_, source), (_, to) in zip(bottom.sources, top.sources, strict=True)]
    return _mix(bottom, names, spans)


def _mix(layer: Layer, names: Sequence[str], spans: Sequence[str] = ()) -> str:
    """`0-23 of base`, `SLERP of 3 of base (0.5) and 4 of base (0.5)`; without spans the parents' names alone."""
    places = [f"{span} of " for span in spans] or [""] * len(layer.sources)
    sources = [f"{place}{names[parent]}" for place, (parent, _) in zip(places, layer.sources, strict=True)]
    if layer.transform == "copy":
        return sources[0]
    if layer.transform == "zero":
        return f"inserted: a copy of {sources[0]} that adds nothing"
    told = [f"{source} ({weight:g})" for source, weight in zip(sources, layer.weights, strict=True)]
    named = [f"{name} {' and '.join(f'{weight:g}' for weight in weights)}" for name, weights in layer.named]
    other = "; " + ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "") if named else ""
    if len(sources) == 1:
        return f"{sources[0]} times {layer.weights[0]:g}{other}"
    return f"{'SLERP' if layer.transform == 'slerp' else 'sum'} of {' and '.join(told)}{other}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"
