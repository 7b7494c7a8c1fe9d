"""A machine of its own for each test that speaks to the stand-in for the hub."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub import Hub, running_hub
from huggingface_hub.utils._xet import abort_xet_session


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing cached, no proxy, and a client that may ask the hub and tries again at once."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
    monkeypatch.setenv("HF_XET_TELEMETRY_ENABLED", "0")
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    new_machine(tmp_path / "cache", monkeypatch)
    yield
    abort_xet_session()


def new_machine(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what hf_xet knows of earlier uploads. It reads its settings when a session begins."""
    monkeypatch.setenv("HF_XET_CACHE", str(cache))
    abort_xet_session()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub
