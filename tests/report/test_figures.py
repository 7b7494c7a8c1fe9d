"""Pictures of layer plans and scores."""

from __future__ import annotations

import re

import pytest

from strata import methods, plan
from strata.report import figures


def test_a_layer_plan_draws_each_layer_with_its_source() -> None:
    made = methods.dus(4, 1, 1)
    picture = figures.layer_plans([("base", plan.identity(4), ()), ("dus", made, plan.seams(made))], ["base"])
    assert "dus: layer 3 is layer 1 of base" in picture
    assert picture.count("<title>") == 10
    assert picture.count('class="seam"') == 1
    colour = dict(re.findall(r'<title>base: layer (\d)[^<]*</title>\n<rect[^>]* fill="(#\w+)"', picture))
    assert len(set(colour.values())) == 4


def test_mixes_and_inserted_layers_are_drawn_as_such() -> None:
    grown = methods.block_expansion(4, 1, 1, "even")
    mixed = methods.blend([4, 4], "slerp", [0.5, 0.5])
    picture = figures.layer_plans([("pro", grown, plan.seams(grown)), ("mix", mixed, ())], ["a", "b"])
    assert "pro: layer 4 is an inserted copy of layer 3 of a" in picture
    assert "mix: layer 2 is a SLERP of layer 2 of a and layer 2 of b" in picture
    assert picture.count("<rect x") == 5 + 1 + 4 * 2 + 40  # squares, one hollow, bands, the key


def test_pictures_of_large_sweeps_say_what_they_leave_out() -> None:
    many = [(f"v{n}", plan.identity(2), ()) for n in range(figures.ROWS + 1)]
    assert f"the first {figures.ROWS} of {figures.ROWS + 1} variants" in figures.layer_plans(many, ["base"])
    assert f"of {figures.ROWS + 1} variants" in figures.scores(
        "x", [(f"v{n}", 1.0, 0.1) for n in range(figures.ROWS + 1)], None
    )


@pytest.mark.parametrize(("low", "high"), [(0.96, 2.35), (0.25, 0.63), (0, 0), (-3, 1000), (1e-6, 2e-6)])
def test_ticks_are_few_round_and_enclose(low: float, high: float) -> None:
    ticks = figures.round_numbers(low, high)
    assert ticks[0] <= low and ticks[-1] >= high
    assert 2 <= len(ticks) <= 9


def test_names_cannot_break_the_page() -> None:
    assert "<script>" not in figures.scores("<script>", [("<script>", 1.0, 0.1)], None)
