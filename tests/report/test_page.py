"""The report's page in a real browser: it sorts and filters by click and by keyboard, and fits a small screen."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium")
NAMES = "[...document.querySelectorAll('#scores tbody tr')].filter(r => !r.hidden).map(r => r.cells[0].textContent)"
BUTTON = "document.querySelectorAll('#scores th button')"


def answer(page: Path, scratch: Path, script: str, width: int = 1200) -> Any:
    """What an expression says in the page, after `script` has run in it."""
    copy = scratch / "page.html"
    body = page.read_text().replace(
        "</body>",
        f"<script>{{ const said = (() => {{ {script} }})(); document.title = JSON.stringify(said); }}</script></body>",
    )
    copy.write_text(body)
    run = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--window-size={width},900",
            "--disable-background-networking", f"--user-data-dir={scratch / 'profile'}", "--dump-dom", copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    found = re.search(r"<title>(.*?)</title>", run.stdout, re.DOTALL)
    assert found, run.stdout[:500]
    return json.loads(html.unescape(found[1]))


@pytest.fixture
def page(finished: Path) -> Path:
    return finished / "results" / "report" / "report.html"


def test_a_click_sorts_up_then_down_then_as_it_was(page: Path, tmp_path: Path) -> None:
    script = f"""
      const button = {BUTTON}[2], heard = [{NAMES}];
      for (let click = 0; click < 3; click++) {{ button.click(); heard.push([button.closest('th').ariaSort, ...{NAMES}]); }}
      return heard;"""
    first, up, down, back = answer(page, tmp_path, script)
    assert first == ["base", "dus", "same", "stacked"]  # 4, 6, 6 and 8 layers
    assert up == ["ascending", "base", "dus", "same", "stacked"]
    assert down == ["descending", "stacked", "dus", "same", "base"]
    assert back == [None, *first]


def test_numbers_sort_by_value_and_empty_cells_come_last(page: Path, tmp_path: Path) -> None:
    script = f"""
      const heads = [...document.querySelectorAll('#scores th')];
      const at = heads.findIndex(head => head.textContent.includes('difference'));
      const cells = () => [...document.querySelectorAll('#scores tbody tr')].map(row => row.cells[at].dataset.value ?? null);
      {BUTTON}[at].click(); const up = cells(); {BUTTON}[at].click(); return [up, cells()];"""
    for order, found in zip((1, -1), answer(page, tmp_path, script), strict=True):
        assert found[-1] is None
        values = [order * float(value) for value in found[:-1]]
        assert values == sorted(values)


def test_the_filter_leaves_the_rows_that_hold_its_text(page: Path, tmp_path: Path) -> None:
    script = f"""
      const filter = document.getElementById('filter');
      filter.value = 'STACK'; filter.dispatchEvent(new Event('input'));
      const rows = [...document.querySelectorAll('#differences tbody tr')].filter(row => !row.hidden);
      return [{NAMES}, rows.map(row => row.cells[0].textContent), document.getElementById('shown').textContent];"""
    names, others, told = answer(page, tmp_path, script)
    assert names == ["stacked"] and set(others) == {"stacked"} and told == "1 of 4"


def test_everything_can_be_reached_by_keyboard(page: Path, tmp_path: Path) -> None:
    script = """
      const all = [...document.querySelectorAll('button, input, summary')];
      return all.map(one => { one.focus(); return document.activeElement === one; });"""
    found = answer(page, tmp_path, script)
    assert len(found) > 10 and all(found)


def test_a_small_screen_scrolls_tables_and_not_the_page(page: Path, tmp_path: Path) -> None:
    script = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth];"
    wide, shown = answer(page, tmp_path, script, width=500)  # as narrow as headless Chromium goes
    assert wide <= shown <= 500
