"""Clouds as SVG text: a point for each plan, its loss against something else. By hand, as in figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from strata.report.figures import WIDTH, round_numbers, svg, text

_LEFT, _TOP, _HEIGHT = 60, 26, 240
_DOT = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{}" class="{}"><title>{}</title></circle>')


class Point(NamedTuple):
    """A plan at (x, y). `is_marked` ones are joined by a line, from left to right."""

    x: float
    y: float
    told: str
    is_marked: bool = False


def cloud(points: Sequence[Point], title: str, axis: str, top: float = math.inf) -> Markup:
    """What `title` names, upwards, against what `axis` names. Nothing without points.

    Args:
        top: what is beyond it is drawn at its height, or a few would leave no room for the others.
    """
    if not points:
        return Markup()
    beyond = sum(point.y > top for point in points)
    across, up = [point.x for point in points], [min(point.y, top) for point in points]
    ticks, levels = round_numbers(min(across), max(across)), round_numbers(min(up), max(up))
    right, bottom = WIDTH - 20, _TOP + _HEIGHT

    def x(value: float) -> float:
        return _LEFT + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - _LEFT)

    def y(value: float) -> float:
        return bottom - (min(value, top) - levels[0]) / (levels[-1] - levels[0]) * _HEIGHT

    note = f"; {beyond} beyond {top:.3g}, at its height" if beyond else ""
    parts = [text(0, 12, title + note, "start")]
    line = Markup('<line x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}" class="{}"/>')
    for level in levels:
        parts += [line.format(_LEFT, right, y(level), y(level), "grid")]
        parts.append(text(_LEFT - 8, round(y(level) + 4), f"{level:.10g}", "end", "tick"))
    for tick in ticks:
        parts += [line.format(x(tick), x(tick), bottom, bottom + 5, "axis")]
        parts.append(text(x(tick), bottom + 18, f"{tick:.10g}", "middle", "tick"))
    parts.append(text(right, bottom + 34, axis, "end", "tick"))
    marked = sorted(point for point in points if point.is_marked)
    if len(marked) > 1:
        path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in marked)
        parts.append(Markup('<polyline points="{}" class="curve front"/>').format(path))
    for point in sorted(points, key=lambda point: point.is_marked):
        size, kind = (4.5, "dot") if point.is_marked else (2.5, "plain")
        parts.append(_DOT.format(x(point.x), y(point.y), size, kind, point.told))
    return svg(parts, bottom + 40, title)
