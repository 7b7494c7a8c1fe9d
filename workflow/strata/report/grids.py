"""Grids as SVG text: numbers of two layers each, as a heat map. By hand, as in figures."""

from __future__ import annotations

import math
from collections.abc import Mapping

from markupsafe import Markup

from strata.report.figures import colour, svg, text

_LEFT, _TOP, _SIDE, _KEY = 60, 24, 420, 560
_CELL = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"><title>{}</title></rect>')
_SWATCH = Markup('<rect x="{}" y="{:.1f}" width="16" height="4.2" fill="{}"/>')


def grid(
    cells: Mapping[tuple[int, int], float],
    size: int,
    title: str,
    axes: tuple[str, str],
    told: str,
    is_logarithmic: bool = False,
) -> Markup:
    """A square for each (row, column), light where the number is small, dark where it is large. Nothing without any.

    Args:
        size: rows and columns there are; those without a number stay empty.
        axes: names of rows and of columns.
        told: what a square says, with {row}, {column} and {value}.
        is_logarithmic: of numbers that differ by powers of ten; 0 looks like the smallest that is not.
    """
    if not cells:
        return Markup()
    least = min((value for value in cells.values() if value > 0), default=1.0)

    def scaled(value: float) -> float:
        return math.log(max(value, least)) if is_logarithmic else value

    low, high = min(map(scaled, cells.values())), max(map(scaled, cells.values()))
    cell = _SIDE / size
    parts = [text(0, 12, title, "start")]
    for (row, column), value in sorted(cells.items()):
        place = (scaled(value) - low) / (high - low) if high > low else 0.0
        x, y = _LEFT + column * cell, _TOP + row * cell
        words = told.format(row=row, column=column, value=f"{value:.4g}")
        parts.append(_CELL.format(x, y, cell, cell, colour(1 - place), words))
    for at in range(0, size, 5 if size <= 60 else 20):
        middle = (at + 0.5) * cell
        parts.append(text(_LEFT - 6, round(_TOP + middle + 4), str(at), "end", "tick"))
        parts.append(text(_LEFT + middle, _TOP + _SIDE + 16, str(at), "middle", "tick"))
    parts.append(text(_LEFT + _SIDE, _TOP + _SIDE + 32, f"{axes[1]}; down: {axes[0]}", "end", "tick"))
    for step in range(40):
        parts.append(_SWATCH.format(_KEY, _TOP + step * 4, colour(step / 39)))
    shown = [math.exp(value) if is_logarithmic else value for value in (high, low)]
    for y, value in zip((_TOP + 10, _TOP + 162), shown, strict=True):
        parts.append(text(_KEY + 24, y, f"{value:.3g}", "start", "tick"))
    return svg(parts, _TOP + _SIDE + 38, title)
