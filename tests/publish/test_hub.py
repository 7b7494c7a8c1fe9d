"""Upload: to a real server on loopback that speaks the hub's protocol, through the hub's own client."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub import Fault, Hub
from machine import hub, machine, new_machine

from conftest import build, strata, write_experiment
from models import save_model
from strata import cli, config, experiment, store
from strata.errors import PublishError
from strata.publish.hub import upload
from strata.receipts import Receipt, receipt

VARIANTS = """\
  base: {init: {source: m}}
  dus: {parent: base, merge: {method: dus, drop: 1}, publish: {hub: me/dus}}
"""
XORBS = r"/v1/xorbs/.*"
LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("me/dus")
AutoTokenizer.from_pretrained("me/dus")
assert not [name for name in sys.modules if name.startswith("strata")]
print(model.config.num_hidden_layers, sum(p.double().sum().item() for p in model.parameters()))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> Path:
    """An experiment whose variants are built; with no suite there is nothing to score."""
    folder = write_experiment(tmp_path_factory.mktemp("built"), llama, VARIANTS, "[]")
    build(folder)
    return folder


def speak_to(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT and HF_TOKEN do, the first of which is read once."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setenv("HF_TOKEN", hub.writer)


@pytest.fixture
def run(built: Path, tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The experiment as the working directory, with the hub's address and a token in the environment."""
    folder = tmp_path / "run"
    folder.mkdir()
    subprocess.run(["cp", "-a", *(str(path) for path in built.iterdir()), str(folder)], check=True)
    monkeypatch.chdir(folder)
    speak_to(hub, monkeypatch)
    return folder


def uploaded(**changes: Any) -> Receipt:
    loaded = config.load(["config.yaml"])
    return upload(Path("results"), experiment.resolve(*loaded), loaded, "dus")


def change(old: str, new: str) -> None:
    file = Path("config.yaml")
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_what_arrives_is_what_is_in_the_store_in_a_private_repository(run: Path, hub: Hub) -> None:
    made = uploaded()
    repository, found = hub.repos["me/dus"], store.require(Path("results"), made.checkpoint)
    assert repository.private and made.private
    for name in (*found.manifest["files"], "manifest.json"):
        assert repository.head.files[name] == (found.path / name).read_bytes()
    assert set(repository.head.files) == {*found.manifest["files"], "manifest.json", "README.md", ".gitattributes"}
    assert hub.sent("POST", XORBS) > 0  # as xet's client does it, and not by the older protocol
    assert (made.commit, made.digest) == (repository.head.oid, found.digest)
    assert receipt(Path("results"), "dus", "hub") == made
    assert not list(Path("results", "tmp").iterdir())


def test_it_loads_from_the_hub_where_this_project_is_not(run: Path, hub: Hub, tmp_path: Path) -> None:
    made = uploaded()
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
    env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "elsewhere"), "HF_TOKEN": hub.reader}
    loaded = subprocess.run([sys.executable, "-c", LOAD], env=env, cwd="/", capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(Path("results/checkpoints") / made.checkpoint)
    assert loaded.stdout.split() == ["6", str(sum(p.double().sum().item() for p in model.parameters()))]


def test_a_public_repository_is_one_only_where_the_config_says_so(run: Path, hub: Hub) -> None:
    change("hub: me/dus", "hub: me/dus, private: false")
    assert not uploaded().private and not hub.repos["me/dus"].private
    change("private: false", "private: true")
    with pytest.raises(PublishError, match="the repository is public"):
        uploaded()


def test_uploading_again_makes_no_commit(run: Path, hub: Hub) -> None:
    first, again = uploaded(), uploaded()
    assert again.commit == first.commit and len(hub.repos["me/dus"].commits) == 2  # one is the repository's own


def test_weights_that_are_no_longer_of_the_variant_are_deleted_and_other_files_stay(run: Path, hub: Hub) -> None:
    uploaded()
    before = set(hub.repos["me/dus"].head.files)
    from huggingface_hub import HfApi

    HfApi(endpoint=hub.url, token=hub.writer).upload_file(
        repo_id="me/dus", path_or_fileobj=b"png", path_in_repo="a.png"
    )
    change("drop: 1", "drop: 2")
    build(run)
    uploaded()
    after = set(hub.repos["me/dus"].head.files)
    assert len([name for name in after if name.endswith(".safetensors")]) == 4 + 2 < len(before)
    assert "a.png" in after


@pytest.mark.parametrize("fault", [
    Fault("POST", XORBS, after_bytes=1000), Fault("POST", XORBS, status=503), Fault("POST", r".*/commit/.*", lost_answer=True),
    Fault("POST", r".*/preupload/.*", after_bytes=10), Fault("POST", r"/v[12]/shards.*", lost_answer=True),
])  # fmt: skip
def test_a_connection_that_drops_once_is_tried_again(run: Path, hub: Hub, fault: Fault) -> None:
    hub.faults.append(fault)
    made = uploaded()
    assert hub.repos["me/dus"].head.files["config.json"] and made.commit == hub.repos["me/dus"].head.oid


@pytest.mark.parametrize("fault", [
    Fault("POST", XORBS, times=None, after_bytes=1000), Fault("POST", XORBS, times=None, status=503),
    Fault("POST", r"/api/repos/create", times=None, after_bytes=1), Fault("POST", r"/api/repos/create", times=None, status=503),
    Fault("POST", r".*/preupload/.*", times=None, after_bytes=1), Fault("POST", r".*/commit/.*", times=None, status=503),
    Fault("POST", r"/api/validate-yaml", times=None, after_bytes=1), Fault("GET", r"/api/models/.*", times=None, after_bytes=0),
])  # fmt: skip
def test_a_connection_that_stays_broken_is_told_and_the_same_command_goes_on(run: Path, hub: Hub, fault: Fault) -> None:
    hub.faults.append(fault)
    with pytest.raises(PublishError, match="the connection to the hub broke") as caught:
        uploaded()
    assert "run the same command again" in str(caught.value) and hub.writer not in str(caught.value)
    assert receipt(Path("results"), "dus", "hub") is None and not list(Path("results", "tmp").iterdir())
    hub.faults.clear()
    assert uploaded().commit == hub.repos["me/dus"].head.oid


def test_what_has_arrived_before_a_break_is_not_sent_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three packets of some 50 MB: the second breaks for good; another run sends the rest, and not the first."""
    size = {
        "vocab_size": 272,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    model = save_model(tmp_path / "model", **size)
    folder = write_experiment(tmp_path / "run", model, VARIANTS.replace("drop: 1", "drop: 0"), "[]")
    monkeypatch.chdir(folder)
    speak_to(hub, monkeypatch)
    build(folder)
    hub.faults.append(Fault("POST", XORBS, times=None, skip=1, after_bytes=1000))
    with pytest.raises(PublishError, match="broke"):
        uploaded()
    arrived = sum(ask.size for ask in hub.matching("POST", XORBS) if ask.status == 200)
    assert arrived > 10_000_000
    hub.faults.clear()
    hub.requests.clear()
    made = uploaded()
    total = sum(size for name, size in made.files.items() if name.endswith(".safetensors"))
    assert hub.sent("POST", XORBS) < total - arrived + 1_000_000
    shard = next(name for name in made.files if name.endswith(".safetensors"))
    kept = store.require(Path("results"), made.checkpoint).path / shard
    assert hashlib.sha256(hub.repos["me/dus"].head.files[shard]).digest() == hashlib.sha256(kept.read_bytes()).digest()


@pytest.mark.parametrize("token", ["hf_wrong", "reader"])
def test_a_refused_token_is_told_and_never_written_down(
    run: Path, hub: Hub, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hub.reader if token == "reader" else token
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match="the hub refuses the token") as caught:
        uploaded()
    assert token not in str(caught.value)
    texts = [file for file in Path("results").rglob("*") if file.is_file() and file.suffix in (".json", ".log", ".txt")]
    assert not [file for file in texts if token in file.read_text()]


@pytest.mark.parametrize("place", [r"/api/models/.*/xet-write-token/.*", XORBS, r".*/commit/.*", r".*/preupload/.*"])
@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_is_revoked_on_the_way_is_told_as_such(run: Path, hub: Hub, place: str, status: int) -> None:
    hub.faults.append(Fault("GET" if "token" in place else "POST", place, times=None, status=status))
    with pytest.raises(PublishError, match="the hub refuses the token"):
        uploaded()


def test_no_token_is_told_before_anything_is_asked(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/nowhere")
    with pytest.raises(PublishError, match="no token for the hub"):
        uploaded()
    assert not hub.requests


def test_a_repository_with_another_model_is_left_alone(run: Path, hub: Hub) -> None:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub.url, token=hub.writer)
    api.create_repo("me/dus", private=True)
    api.upload_file(repo_id="me/dus", path_or_fileobj=b"weights", path_in_repo="pytorch_model.bin")
    before = hub.repos["me/dus"].head.oid
    with pytest.raises(PublishError, match="the repository holds another model"):
        uploaded()
    assert hub.repos["me/dus"].head.oid == before


def test_a_manifest_that_is_not_ours_makes_no_repository_ours(run: Path, hub: Hub) -> None:
    api = of(hub)
    api.create_repo("me/dus", private=True)
    for name, data in (("manifest.json", b'{"files": {"model.bin": {}}, "seal": "0"}'), ("model.bin", b"weights")):
        api.upload_file(repo_id="me/dus", path_or_fileobj=data, path_in_repo=name)
    with pytest.raises(PublishError, match="the repository holds another model"):
        uploaded()


def test_weights_that_somebody_added_stay(run: Path, hub: Hub) -> None:
    uploaded()
    of(hub).upload_file(repo_id="me/dus", path_or_fileobj=b"gguf", path_in_repo="mine-IQ4_XS.gguf")
    change("source: m}", "source: m}, gguf: []")  # another card, so another commit
    change("sources:\n  m: {", "sources:\n  m: {license: mit, ")
    uploaded()
    assert hub.repos["me/dus"].head.files["mine-IQ4_XS.gguf"] == b"gguf"


def test_a_commit_that_came_between_is_not_written_over(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else commits after the repository was looked at."""
    from huggingface_hub import HfApi

    upload_folder = HfApi.upload_folder

    def late(self: HfApi, **options: Any) -> Any:
        of(hub).upload_file(repo_id="me/dus", path_or_fileobj=b"theirs", path_in_repo="config.json")
        return upload_folder(self, **options)

    monkeypatch.setattr(HfApi, "upload_folder", late)
    with pytest.raises(PublishError, match="the repository was changed meanwhile"):
        uploaded()
    assert hub.repos["me/dus"].head.files["config.json"] == b"theirs"


def of(hub: Hub) -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=hub.url, token=hub.writer)


def test_a_hub_that_may_not_be_asked_is_told(run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match="may not be asked"):
        uploaded()


def test_a_commit_with_other_content_than_was_sent_is_refused(
    run: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub that loses a byte."""
    from huggingface_hub import HfApi

    ask = HfApi.model_info

    def short(self: HfApi, *arguments: Any, **options: Any) -> Any:
        info = ask(self, *arguments, **options)
        for entry in (info.siblings or []) if options.get("files_metadata") else []:
            if entry.rfilename.endswith(".safetensors"):
                entry.size -= 1
        return info

    monkeypatch.setattr(HfApi, "model_info", short)
    with pytest.raises(PublishError, match="another content than was sent"):
        uploaded()
    assert receipt(Path("results"), "dus", "hub") is None


def test_only_a_variant_that_is_named_is_uploaded(run: Path, hub: Hub) -> None:
    """By the command alone, which says the commit and keeps it; a variant without a repository is refused."""
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": hub.writer}
    os.environ.update(env)
    try:
        done = strata(run, "upload", "dus")
    finally:
        os.environ["HF_HUB_OFFLINE"] = "1"
        del os.environ["HF_ENDPOINT"]
    assert done.returncode == 0, done.stderr
    assert hub.repos["me/dus"].head.oid in done.stdout and hub.writer not in done.stdout + done.stderr
    assert json.loads(Path("results/published/dus.hub.json").read_text())["commit"] == hub.repos["me/dus"].head.oid
    refused = strata(run, "upload", "base")
    assert refused.returncode == 11 and "`base` is not to be published there" in refused.stderr
    assert strata(run, "upload").returncode == 2
