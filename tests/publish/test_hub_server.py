"""The stand-in for the hub, proved by the real clients: huggingface_hub and hf_xet as they are installed."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import xet
from hub import Fault, Hub, card_problems, running_hub
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils._xet import abort_xet_session
from machine import hub, machine, new_machine

CARD = "---\nlicense: apache-2.0\ntags: [merge]\n---\n# A model\n"
ANY_XORB, ANY_COMMIT = r"/v1/xorbs/.*", r".*/commit/.*"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of twelve files: a card, JSON, nothing, random weights, and weights that compress."""
    folder, random = tmp_path / "model", np.random.default_rng(0)
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    for name in ("config", "generation_config", "tokenizer", "tokenizer_config"):
        (folder / f"{name}.json").write_text(json.dumps({"name": name}))
    (folder / "empty.txt").touch()
    for i, size in enumerate((1_000_000, 2_000_001, 3_000_002, 1_500_003)):
        (folder / f"model-{i}.safetensors").write_bytes(random.bytes(size))
    floats = (random.standard_normal(150_000) * 0.02).astype("<f4")
    (folder / "bf16.safetensors").write_bytes(floats.view("<u2")[1::2].tobytes() + b"odd")
    (folder / "f32.safetensors").write_bytes(floats.round(3).tobytes())
    return folder


def upload(hub: Hub, folder: Path, **more: Any) -> None:
    """What a tool that publishes a model does."""
    api = HfApi(endpoint=hub.url, token=hub.writer)
    api.create_repo("me/model", private=True, exist_ok=True)
    api.upload_folder(repo_id="me/model", folder_path=folder, **more)


def assert_arrived(hub: Hub, folder: Path) -> None:
    """Every file of the folder is in the newest commit, byte for byte."""
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {**hub.repos["me/model"].head.files, **files} == hub.repos["me/model"].head.files


# ------------------------------------------------------------------------------------------------ what goes right


@pytest.mark.parametrize("grants", [False, True])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_arrives_through_xet(folder: Path, grants: bool, shards: int) -> None:
    with running_hub(grants=grants, shards=shards) as hub:
        upload(hub, folder)
        assert_arrived(hub, folder)
        assert hub.repos["me/model"].private
        assert len(hub.repos["me/model"].commits) == 2
        assert not hub.matching("PUT", r"/lfs/.*")
        assert bool(hub.matching("POST", ANY_XORB)) is not grants
        assert bool(hub.matching("PUT", r"/bucket/.*")) is grants


def test_a_folder_arrives_through_git_lfs(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    upload(hub, folder)
    assert_arrived(hub, folder)
    assert len(hub.matching("PUT", r"/lfs/.*")) == 6
    assert not hub.matching("POST", ANY_XORB)


def test_compressed_chunks_are_read(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = set()

    def noting(real: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        return lambda data: used.add(real.__name__) or real(data)

    for real in (xet.lz4_frame, xet.ungroup):
        monkeypatch.setattr(xet, real.__name__, noting(real))
    upload(hub, folder)
    assert used == {"lz4_frame", "ungroup"}
    assert_arrived(hub, folder)


@pytest.mark.parametrize("other_machine", [False, True])
def test_a_second_upload_sends_nothing(
    hub: Hub, folder: Path, other_machine: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(hub, folder)
    sent, commits = hub.sent("POST", ANY_XORB), len(hub.repos["me/model"].commits)
    if other_machine:
        new_machine(tmp_path / "other", monkeypatch)
    upload(hub, folder)
    assert hub.sent("POST", ANY_XORB) == sent
    assert len(hub.repos["me/model"].commits) == commits


def test_a_small_change_sends_little(hub: Hub, folder: Path) -> None:
    upload(hub, folder)
    before, weights = hub.sent("POST", ANY_XORB), folder / "model-2.safetensors"
    weights.write_bytes(b"x" * 1000 + weights.read_bytes()[1000:])
    upload(hub, folder)
    assert 0 < hub.sent("POST", ANY_XORB) - before < 300_000
    assert_arrived(hub, folder)


def test_what_is_gone_is_deleted_if_asked(hub: Hub, folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "note.md").write_text("here")
    upload(hub, folder)
    upload(hub, folder, allow_patterns=["*.json"], delete_patterns=["*"])
    assert set(hub.repos["me/model"].head.files) == {".gitattributes"} | {path.name for path in folder.glob("*.json")}


def test_downloads(hub: Hub, folder: Path, tmp_path: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "note.md").write_text("here")
    upload(hub, folder)
    api = HfApi(endpoint=hub.url, token=hub.reader)
    got = Path(snapshot_download("me/model", endpoint=hub.url, token=hub.reader, cache_dir=tmp_path / "hub"))
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert (got / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert api.repo_info("me/model").private
    assert api.repo_info("me/model", revision=got.name).sha == got.name == hub.repos["me/model"].head.oid
    assert {entry.path for entry in api.list_repo_tree("me/model")} >= {"sub", "config.json"}
    assert "sub/note.md" in api.list_repo_files("me/model")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info("me/model", revision="other")


def test_transformers_loads_what_was_uploaded(hub: Hub, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=16)
    model = LlamaForCausalLM(LlamaConfig(**sizes)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "llama")
    upload(hub, tmp_path / "llama")
    path = snapshot_download("me/model", endpoint=hub.url, token=hub.reader, cache_dir=tmp_path / "hub")
    loaded = AutoModelForCausalLM.from_pretrained(path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


# ------------------------------------------------------------------------------------------------ what goes wrong


@pytest.mark.parametrize("fault", [{"after_bytes": 1000}, {"status": 503}, {"lost_answer": True}])
@pytest.mark.parametrize("path", [ANY_XORB, r"/v2/shards", r".*/preupload/.*", r".*/commit/.*"])
def test_the_client_gets_over_one_break(hub: Hub, folder: Path, path: str, fault: dict[str, Any]) -> None:
    hub.faults.append(Fault("POST", path, **fault))
    upload(hub, folder)
    assert_arrived(hub, folder)
    assert [request.status for request in hub.matching("POST", path)] == [fault.get("status", 0), 200]


def test_a_break_that_stays_ends_the_upload_and_the_next_one_succeeds(hub: Hub, folder: Path) -> None:
    hub.faults.append(Fault("POST", ANY_XORB, times=None, after_bytes=1000))
    with pytest.raises(ConnectionError, match=r"Network error: .*error sending request"):
        upload(hub, folder)
    assert [(one.size, one.status) for one in hub.matching("POST", ANY_XORB)] == [(1000, 0)] * 6
    assert len(hub.repos["me/model"].commits) == 1
    hub.faults.clear()
    upload(hub, folder)
    assert_arrived(hub, folder)


def test_only_what_is_missing_is_sent_again(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this setting hf_xet forgets the xorbs of a failed upload that took less than 20 seconds."""
    monkeypatch.setenv("HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT", "1")
    abort_xet_session()
    hub.faults.append(Fault("POST", r"/v2/shards", times=None, status=503))
    with pytest.raises(ConnectionError, match=r"Server error: .*503"):
        upload(hub, folder)
    sent = hub.sent("POST", ANY_XORB)
    hub.faults.clear()
    upload(hub, folder)
    assert hub.sent("POST", ANY_XORB) == sent > 0
    assert_arrived(hub, folder)


def test_a_commit_whose_answer_is_lost_is_made_twice(hub: Hub, folder: Path) -> None:
    hub.faults.append(Fault("POST", ANY_COMMIT, lost_answer=True))
    upload(hub, folder, commit_message="mine")
    assert [commit.message for commit in hub.repos["me/model"].commits] == ["initial commit", "mine", "mine"]
    assert_arrived(hub, folder)


def test_with_a_parent_the_lost_answer_becomes_an_error_though_the_commit_is_there(hub: Hub, folder: Path) -> None:
    upload(hub, folder, allow_patterns=["*.json"])
    hub.faults.append(Fault("POST", ANY_COMMIT, lost_answer=True))
    with pytest.raises(HfHubHTTPError, match="412"):
        upload(hub, folder, parent_commit=hub.repos["me/model"].head.oid)
    assert_arrived(hub, folder)


# ----------------------------------------------------------------------------------------------------- refusals


def test_tokens_are_asked_for(hub: Hub, folder: Path) -> None:
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.url, token="hf_unknown").create_repo("me/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        HfApi(endpoint=hub.url, token=hub.reader).create_repo("me/model")
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=hub.url, token=False).repo_info("me/model")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=hub.writer).repo_info("me/model")
    assert HfApi(endpoint=hub.url, token=hub.writer).whoami()["name"] == "me"


@pytest.mark.parametrize("method,path", [("POST", r".*/preupload/.*"), ("POST", r".*/commit/.*")])
@pytest.mark.parametrize("status", [401, 403])
def test_the_hub_refuses_in_the_middle(hub: Hub, folder: Path, method: str, path: str, status: int) -> None:
    hub.faults.append(Fault(method, path, times=None, status=status))
    with pytest.raises(HfHubHTTPError) as error:
        upload(hub, folder)
    assert error.value.response.status_code == status


@pytest.mark.parametrize("method,path", [("GET", r".*/xet-write-token/.*"), ("POST", ANY_XORB), ("POST", "/v2/shards")])
@pytest.mark.parametrize("status", [401, 403])
def test_the_storage_refuses(hub: Hub, folder: Path, method: str, path: str, status: int) -> None:
    """hf_xet tells neither from a broken network, but for the words."""
    hub.faults.append(Fault(method, path, times=None, status=status))
    with pytest.raises(ConnectionError, match=rf"Network error: .*{status}"):
        upload(hub, folder)


def test_the_storage_wants_its_own_token(hub: Hub, folder: Path) -> None:
    upload(hub, folder)
    address, xorb = hub.url.removeprefix("http://"), f"/v1/xorbs/default/{'0' * 64}"
    read = json.loads(get(address, "/api/models/me/model/xet-read-token/main", hub.reader)[1])
    assert [get(address, xorb, token, "POST")[0] for token in (hub.writer, read["accessToken"])] == [401, 403]
    write = json.loads(get(address, "/api/models/me/model/xet-write-token/main", hub.writer)[1])
    assert get(address, xorb, write["accessToken"], "POST", b"no xorb at all")[0] == 400
    assert get(address, "/v1/shards", write["accessToken"], "POST", b"no shard at all")[0] == 400


def test_a_commit_needs_the_content(hub: Hub) -> None:
    api = HfApi(endpoint=hub.url, token=hub.writer)
    api.create_repo("me/model")
    lines = [{"key": "header", "value": {"summary": "s", "description": ""}}]
    lines += [{"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}]
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    status, answer = get(hub.url.removeprefix("http://"), "/api/models/me/model/commit/main", hub.writer, "POST", body)
    assert status == 400 and b"never came" in answer


def get(address: str, path: str, token: str, method: str = "GET", body: bytes = b"") -> tuple[int, bytes]:
    """A request by hand."""
    connection = http.client.HTTPConnection(address)
    connection.request(method, path, body, {"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    said = answer.status, answer.read()
    connection.close()
    return said


@pytest.mark.parametrize(
    "card,errors,oddities",
    [
        (CARD, 0, 0),
        ("no front matter", 0, 1),
        ("---\nlicense: mine\n---\n", 1, 0),
        ("---\na: [\n---\n", 1, 0),
        ("---\n- a list\n---\n", 1, 0),
        ("---\nlicense: other\nlicense_name: mine\ntags: [1]\nlibrary_name: [a]\n---\n", 2, 0),
    ],
)
def test_cards(card: str, errors: int, oddities: int) -> None:
    assert [len(found) for found in card_problems(card)] == [errors, oddities]


def test_a_bad_card_stops_the_upload(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: mine\n---\n")
    with pytest.raises(ValueError, match=r'Invalid metadata in README\.md\.\n- "license" must be one of'):
        upload(hub, folder)
    (folder / "README.md").write_text("no front matter")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        upload(hub, folder)


# --------------------------------------------------------------------------------------------------- surroundings


def test_offline_nothing_is_asked(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled):
        upload(hub, folder)
    assert not hub.requests


def test_a_break_where_the_client_does_not_try_again(hub: Hub, folder: Path) -> None:
    """Neither an OSError nor a ConnectionError, unlike everything else."""
    hub.faults.append(Fault("POST", "/api/repos/create", after_bytes=10))
    with pytest.raises(httpx2.RemoteProtocolError) as error:
        upload(hub, folder)
    assert not isinstance(error.value, OSError)


def test_the_hub_leaves_nothing_behind(folder: Path) -> None:
    before = threading.active_count()
    with running_hub() as hub:
        upload(hub, folder, allow_patterns=["*.json"])
        during = threading.active_count()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert during > before >= threading.active_count()
