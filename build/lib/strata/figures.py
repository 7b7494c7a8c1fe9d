"""The report's pictures as SVG text: layer plans and scores.

Written here, not with a chart library: a layer plan is rows of squares that no library draws, both need a tooltip on
every mark and must come out byte-identical, and it spares every installation a plotting stack.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from strata.plan import Plan

ROWS = 100  # more are not drawn; the figure says so
_WIDTH, _LABEL, _ROW = 960, 150, 26
# viridis, from its start to its end: equal steps look equal, also to colour-blind readers and in print.
_VIRIDIS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def layer_plans(rows: Sequence[tuple[str, Plan, tuple[int, ...]]]) -> Markup:
    """A row for each (name, plan, seams), a square for each output layer, coloured by the base's layer it copies."""
    shown = rows[:ROWS]
    deepest = max(len(plan.layers) for _, plan, _ in rows)
    last = max(source for _, plan, _ in rows for layer in plan.layers for _, source in layer.sources)
    cell = (_WIDTH - _LABEL - 10) / deepest
    parts: list[Markup] = []
    for number, (name, plan, seams) in enumerate(shown):
        y = number * _ROW
        parts.append(_text(_LABEL - 10, y + 17, name, "end"))
        for position, layer in enumerate(plan.layers):
            source = layer.sources[0][1]
            parts.append(
                Markup('<rect x="{:.2f}" y="{}" width="{:.2f}" height="20" fill="{}"><title>{}</title></rect>').format(
                    _LABEL + position * cell, y + 2, max(cell - 0.6, 0.4), _colour(source / max(last, 1)),
                    f"{name}: layer {position} is layer {source} of the base",
                )  # fmt: skip
            )
        for seam in seams:
            x = f"{_LABEL + (seam + 1) * cell - 0.3:.2f}"
            parts.append(Markup('<line x1="{}" x2="{}" y1="{}" y2="{}" class="seam"/>').format(x, x, y - 1, y + 25))
    bottom = len(shown) * _ROW
    for position in range(0, deepest + 1, 10 if deepest <= 100 else 50):
        parts.append(_text(_LABEL + position * cell, bottom + 18, str(position), "middle", "tick"))
    parts.append(_text(_WIDTH - 10, bottom + 36, "output layer, from the embedding to the head", "end", "tick"))
    parts += _colour_key(last, bottom + 26)
    if len(rows) > ROWS:
        parts.append(_text(_LABEL, bottom + 56, f"the first {ROWS} of {len(rows)} variants", "start", "tick"))
    return _svg(parts, bottom + 62, "Which layer of the base sits where in each variant")


def scores(title: str, rows: Sequence[tuple[str, float, float]], guess: float | None) -> Markup:
    """A dot with its 95 % interval for each (name, value, standard error); dashed: the first row and guessing."""
    shown = rows[:ROWS]
    marks = [value + side * 1.96 * error for _, value, error in shown for side in (-1, 1)]
    low, high = min([*marks, *([guess] if guess is not None else [])]), max(marks)
    room = (high - low) * 0.05 or 0.05
    low, high = low - room, high + room

    def x(value: float) -> str:
        return f"{_LABEL + (value - low) / (high - low) * (_WIDTH - _LABEL - 20):.2f}"

    bottom = len(shown) * _ROW
    parts: list[Markup] = []
    for value, label in ((shown[0][1], shown[0][0]), (guess, "chance")):
        if value is not None:
            line = Markup('<line x1="{0}" x2="{0}" y1="0" y2="{1}" class="guide"><title>{2}</title></line>')
            parts.append(line.format(x(value), bottom, f"{label}: {value:.3f}"))
    for number, (name, value, error) in enumerate(shown):
        y = number * _ROW + 13
        parts.append(_text(_LABEL - 10, y + 4, name, "end"))
        bar = Markup('<line x1="{}" x2="{}" y1="{y}" y2="{y}" class="interval"/>')
        parts.append(bar.format(x(value - 1.96 * error), x(value + 1.96 * error), y=y))
        dot = Markup('<circle cx="{}" cy="{}" r="5" class="dot"><title>{}</title></circle>')
        parts.append(dot.format(x(value), y, f"{name}: {value:.4f} ± {error:.4f}"))
    for step in range(6):
        value = low + (high - low) * step / 5
        parts.append(_text(float(x(value)), bottom + 18, f"{value:.2f}", "middle", "tick"))
    parts.append(_text(_WIDTH - 20, bottom + 36, title + (", dashed left: chance" if guess is not None else ""), "end", "tick"))
    return _svg(parts, bottom + 44, title)


def _colour(place: float) -> str:
    """The colour at `place` in 0..1."""
    step = min(int(place * 4), 3)
    low, high, rest = _VIRIDIS[step], _VIRIDIS[step + 1], place * 4 - step
    return "#" + "".join(f"{round(a + (b - a) * rest):02x}" for a, b in zip(low, high, strict=True))


def _colour_key(last: int, y: int) -> list[Markup]:
    steps = 40
    rect = Markup('<rect x="{:.1f}" y="{}" width="4.2" height="10" fill="{}"/>')
    key = [rect.format(_LABEL + step * 4, y, _colour(step / (steps - 1))) for step in range(steps)]
    return [*key, _text(_LABEL + steps * 4 + 8, y + 9, f"layer 0 to {last} of the base; a line is a seam", "start", "tick")]


def _text(x: float, y: float, text: str, anchor: str, kind: str = "label") -> Markup:
    return Markup('<text x="{:.1f}" y="{}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, kind, text)


def _svg(parts: Sequence[Markup], height: int, title: str) -> Markup:
    head = Markup('<svg viewBox="0 -4 {} {}" role="img" aria-label="{}">').format(_WIDTH, height + 4, title)
    return head + Markup("\n").join(parts) + Markup("</svg>")
