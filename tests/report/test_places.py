"""Where variants went, as the report links it: with sizes, and a word where it is of other weights."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from strata.receipts import Receipt, keep, receipt
from strata.report.places import places

HUB = Receipt(
    "hub", "dus", "me/dus", "merge-1", "d1", {"a": 7, "b": 5}, commit="c" * 40, url="https://hub/me/dus", private=False
)
WHOLE = json.dumps(asdict(HUB))


def table(digest: str = "d1") -> Any:
    return SimpleNamespace(rows=[SimpleNamespace(name="dus", digest=digest)])


def experiment() -> Any:
    return SimpleNamespace(variants={"dus": SimpleNamespace(ggufs=())})


def test_a_receipt_is_read_as_it_was_kept(tmp_path: Path) -> None:
    keep(tmp_path, HUB)
    assert receipt(tmp_path, "dus", "hub") == HUB and HUB.bytes == 12
    assert receipt(tmp_path, "dus", "directory") is None


def test_a_commit_is_linked_with_its_size_and_who_sees_it(tmp_path: Path) -> None:
    keep(tmp_path, HUB)
    (place,) = places(tmp_path, experiment(), table(), tmp_path)
    assert (place.what, place.text, place.link) == ("hub, public", "me/dus at cccccccccccc", "https://hub/me/dus")
    assert (place.files, place.bytes, place.note) == (2, 12, "")


def test_a_folder_is_linked_from_where_the_page_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keep(Path("results"), replace(HUB, kind="directory", place="out/dus", commit="", url=""))
    (place,) = places(Path("results"), experiment(), table(), Path("results/report"))
    assert (place.what, place.text, place.link) == ("folder", "out/dus", "../../out/dus")


def test_what_was_published_of_other_weights_says_so(tmp_path: Path) -> None:
    keep(tmp_path, HUB)
    (place,) = places(tmp_path, experiment(), table("d2"), tmp_path)
    assert "other weights" in place.note


def test_a_link_that_is_no_address_is_none(tmp_path: Path) -> None:
    keep(tmp_path, replace(HUB, url="javascript:alert(1)"))
    assert places(tmp_path, experiment(), table(), tmp_path)[0].link == ""


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"kind": "hub"}', '{"kind": "hub", "more": 1}', WHOLE.replace('"https://hub/me/dus"', "false"),
     WHOLE.replace("5", '"5"'), WHOLE.replace('{"a": 7, "b": 5}', "[]")],
)  # fmt: skip
def test_a_receipt_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "dus.hub.json").write_text(text)
    assert receipt(tmp_path, "dus", "hub") is None
