"""The pictures of a screen: every plan and number once, in bounds, whatever the numbers are."""

from __future__ import annotations

import re

from strata.report.clouds import Point, cloud
from strata.report.grids import grid
from strata.report.stacks import MOST, stacks


def test_a_row_has_a_square_for_each_layer_and_a_line_for_each_seam() -> None:
    picture = stacks([("dus", (0, 1, 2, 1, 2, 3), "3.1"), ("other <b>", (0, 1, 1, 1, 2, 3), "3.2")], 4, "Plans")
    assert picture.count("<rect") == 12
    assert picture.count('class="seam"') == 3
    assert "layers 0 to 2, then 1 to 3; 3.1 nats" in picture
    assert "<b>" not in picture
    first, again = re.findall(r'fill="(#\w+)"', picture)[1], re.findall(r'fill="(#\w+)"', picture)[3]
    assert first == again  # layer 1, both times


def test_more_plans_than_fit_are_counted() -> None:
    rows = [(f"plan {number}", (0, 1), "1.0") for number in range(MOST + 5)]
    picture = stacks(rows, 2, "Plans")
    assert picture.count("<rect") == 2 * MOST
    assert f"the best {MOST} of {MOST + 5}" in picture


def test_a_grid_is_dark_where_the_number_is_large() -> None:
    picture = grid({(0, 1): 1.0, (1, 0): 3.0}, 2, "Title", ("down", "across"), "{row} {column}: {value}")
    found = dict(re.findall(r'fill="(#\w+)"><title>(\d \d: \d)', picture))
    assert found == {"#fde725": "0 1: 1", "#440154": "1 0: 3"}
    assert grid({}, 2, "Title", ("", ""), "") == ""
    assert grid({(0, 0): 2.0}, 2, "Title", ("", ""), "{value}").count("<rect") == 41


def test_a_logarithmic_grid_takes_nothing_for_the_smallest() -> None:
    told = "{row} {column}: {value}"
    picture = grid({(0, 0): 0.0, (0, 1): 1e-6, (1, 0): 1e-3, (1, 1): 1.0}, 2, "", ("", ""), told, is_logarithmic=True)
    fills = re.findall(r'fill="(#\w+)"><title>', picture)
    assert fills[0] == fills[1] and len(set(fills)) == 3


def test_a_cloud_joins_what_is_marked_from_left_to_right() -> None:
    picture = cloud([Point(3, 1, "c", True), Point(1, 2, "a", True), Point(2, 9, "b")], "Up", "across")
    assert picture.count("<circle") == 3
    (path,) = re.findall(r'points="([^"]+)"', picture)
    xs = [float(pair.split(",")[0]) for pair in path.split()]
    assert xs == sorted(xs) and len(xs) == 2
    assert cloud([], "Up", "across") == ""
    places = [float(x) for x in re.findall(r'c[xy]="([\d.]+)"', picture)]
    assert all(0 <= place <= 960 for place in places)
