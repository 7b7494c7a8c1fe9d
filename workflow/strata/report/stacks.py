"""Stacks as SVG text: the plans of a screen as rows of coloured layers, the best first. By hand, as in figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from markupsafe import Markup

from strata.report.figures import colour, svg, text
from strata.screen.candidates import runs
from strata.screen.walk import Order

MOST = 40  # plans in one picture; it says so when there are more
_LEFT, _RIGHT, _ROW, _LETTERS = 250, 880, 15, 38
_LAYER = Markup('<rect x="{:.2f}" y="{}" width="{:.2f}" height="12" fill="{}"/>')
_SEAM = Markup('<line x1="{x:.2f}" x2="{x:.2f}" y1="{}" y2="{}" class="seam"/>')


def stacks(plans: Sequence[tuple[str, Order, str]], n: int, title: str) -> Markup:
    """A row for each (name, layers, loss), a square for each layer, coloured by its place among the base's n."""
    shown = plans[:MOST]
    cell = (_RIGHT - _LEFT) / max(len(order) for _, order, _ in shown)
    parts: list[Markup] = []
    for number, (name, order, loss) in enumerate(shown):
        y = number * _ROW
        short = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
        ranges = runs(order)
        told = ", then ".join(f"{start} to {stop - 1}" for start, stop in ranges)
        parts.append(Markup("<g><title>{}</title>").format(f"{name}: layers {told}; {loss} nats per token"))
        parts.append(text(_LEFT - 8, y + 10, short, "end", "tick"))
        parts += [
            _LAYER.format(_LEFT + at * cell, y, max(cell - 0.5, 0.4), colour(layer / max(n - 1, 1)))
            for at, layer in enumerate(order)
        ]
        ends = accumulate(stop - start for start, stop in ranges[:-1])
        parts += [_SEAM.format(y - 1, y + 13, x=_LEFT + end * cell - 0.25) for end in ends]
        parts += [text(_RIGHT + 8, y + 10, loss, "start", "tick"), Markup("</g>")]
    height = len(shown) * _ROW + 18
    note = f"layer 0, dark, to {n - 1}, light, of the base; a line is a seam"
    parts.append(text(_LEFT, height - 4, note, "start", "tick"))
    if len(plans) > MOST:
        height += 16
        parts.append(text(_LEFT, height - 4, f"the best {MOST} of {len(plans)}", "start", "tick"))
    return svg(parts, height, title)
