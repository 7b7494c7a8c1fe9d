"""The report's pictures as SVG text: layer plans and scores.

Written here, not with a chart library: a layer plan is rows of squares that no library draws, both need a tooltip on
every mark and must come out byte-identical, and it spares every installation a plotting stack.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from strata.plan import Layer, Plan

_RECT = Markup('<rect x="{:.2f}" y="{:.2f}" width="{:.2f}" height="{:.2f}" fill="{}"/>')
ROWS = 100  # more are not drawn; the figure says so
WIDTH, _LABEL, _ROW = 960, 150, 26
# viridis, from its start to its end: equal steps look equal, also to colour-blind readers and in print.
_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def layer_plans(rows: Sequence[tuple[str, Plan, tuple[int, ...]]], names: Sequence[str]) -> Markup:
    """A row for each (name, plan, seams), a square for each output layer, coloured by the base's layer it comes from.

    A mix has a band of each source's colour, an inserted layer a hollow square. `names` are those of the plans' bases.
    """
    shown = rows[:ROWS]
    deepest = max(len(plan.layers) for _, plan, _ in rows)
    last = max(source for _, plan, _ in rows for layer in plan.layers for _, source in layer.sources)
    cell = (WIDTH - _LABEL - 10) / deepest
    parts: list[Markup] = []
    for number, (name, plan, seams) in enumerate(shown):
        y = number * _ROW
        parts.append(text(_LABEL - 10, y + 17, name, "end"))
        for position, layer in enumerate(plan.layers):
            left, width = _LABEL + position * cell, max(cell - 0.6, 0.4)
            parts.append(Markup("<g><title>{}</title>").format(f"{name}: layer {position} is {_told(layer, names)}"))
            height = 20 / len(layer.sources)
            for band, (_, source) in enumerate(layer.sources):
                parts.append(_RECT.format(left, y + 2 + band * height, width, height, colour(source / max(last, 1))))
            if layer.transform == "zero":
                parts.append(_RECT.format(left + width / 4, y + 7, width / 2, 10, "#fff"))
            parts.append(Markup("</g>"))
        for seam in seams:
            x = f"{_LABEL + (seam + 1) * cell - 0.3:.2f}"
            parts.append(Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" class="seam"/>').format(x, x, y - 1, y + 25))
    bottom = len(shown) * _ROW
    for position in range(0, deepest + 1, 10 if deepest <= 100 else 50):
        parts.append(text(_LABEL + position * cell, bottom + 18, str(position), "middle", "tick"))
    parts.append(text(WIDTH - 10, bottom + 36, "output layer, from the embedding to the head", "end", "tick"))
    parts += _colour_key(last, bottom + 44)
    if len(rows) > ROWS:
        parts.append(text(_LABEL, bottom + 76, f"the first {ROWS} of {len(rows)} variants", "start", "tick"))
    return svg(parts, bottom + 82, "Which layer of the base sits where in each variant")


def _told(layer: Layer, names: Sequence[str]) -> str:
    """A layer in words: `layer 3 of base`."""
    sources = " and ".join(f"layer {source} of {names[parent]}" for parent, source in layer.sources)
    return {"copy": "", "zero": "an inserted copy of ", "linear": "an average of ", "slerp": "a SLERP of "}[
        layer.transform
    ] + sources


def scores(title: str, rows: Sequence[tuple[str, float, float]], guess: float | None) -> Markup:
    """A dot with its 95 % interval for each (name, value, standard error); dashed: the first row, and guessing."""
    shown = rows[:ROWS]
    edges = [value + side * 1.96 * error for _, value, error in shown for side in (-1, 1)]
    ticks = round_numbers(min([*edges, *([guess] if guess is not None else [])]), max(edges))
    low, high, top = ticks[0], ticks[-1], 38

    def x(value: float) -> float:
        return _LABEL + (value - low) / (high - low) * (WIDTH - _LABEL - 20)

    bottom = top + len(shown) * _ROW
    parts = [text(_LABEL, 14, title, "start")]
    for place in ticks:
        parts.append(text(x(place), bottom + 18, f"{place:.10g}", "middle", "tick"))
    for guide, label in ((shown[0][1], shown[0][0]), (guess, "chance")):
        if guide is not None:
            line = Markup('<line x1="{0:.2f}" x2="{0:.2f}" y1="{1}" y2="{2}" class="guide"/>')
            parts += [line.format(x(guide), top, bottom), text(x(guide), top - 4, label, "middle", "tick")]
    for number, (name, value, error) in enumerate(shown):
        y = top + number * _ROW + 13
        parts.append(text(_LABEL - 10, y + 4, name, "end"))
        bar = Markup('<line x1="{:.2f}" x2="{:.2f}" y1="{y}" y2="{y}" class="interval"/>')
        parts.append(bar.format(x(value - 1.96 * error), x(value + 1.96 * error), y=y))
        dot = Markup('<circle cx="{:.2f}" cy="{}" r="5" class="dot"><title>{}</title></circle>')
        parts.append(dot.format(x(value), y, f"{name}: {value:.4f} ± {error:.4f}"))
    if len(rows) > ROWS:
        parts.append(text(_LABEL, bottom + 36, f"the first {ROWS} of {len(rows)} variants", "start", "tick"))
    return svg(parts, bottom + (40 if len(rows) > ROWS else 24), title)


def round_numbers(low: float, high: float) -> list[float]:
    """Round numbers in equal steps that enclose low..high, four to nine of them."""
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span))
    step = next(power * size for size in (0.2, 0.25, 0.5, 1, 2) if span / (power * size) <= 7)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def colour(place: float) -> str:
    """The colour at `place` in 0..1."""
    step = min(int(place * 4), 3)
    low, high, rest = _VIRIDIS[step], _VIRIDIS[step + 1], place * 4 - step
    return "#" + "".join(f"{round(a + (b - a) * rest):02x}" for a, b in zip(low, high, strict=True))


def _colour_key(last: int, y: int) -> list[Markup]:
    steps = 40
    rect = Markup('<rect x="{:.1f}" y="{}" width="4.2" height="10" fill="{}"/>')
    key = [rect.format(_LABEL + step * 4, y, colour(step / (steps - 1))) for step in range(steps)]
    return [
        *key,
        text(
            _LABEL + steps * 4 + 8,
            y + 9,
            f"layer 0 to {last} of the base; a line is a seam, bands are a mix, a white square is an inserted layer",
            "start",
            "tick",
        ),
    ]


def text(x: float, y: float, words: str, anchor: str, kind: str = "label") -> Markup:
    return Markup('<text x="{:.1f}" y="{}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, kind, words)


def svg(parts: Sequence[Markup], height: int, title: str) -> Markup:
    head = Markup('<svg viewBox="0 -4 {} {}" role="img" aria-label="{}">').format(WIDTH, height + 4, title)
    return head + Markup("\n").join(parts) + Markup("</svg>")
