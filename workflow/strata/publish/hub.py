"""Hub: a variant as a commit of a model repository, uploaded by huggingface_hub, and looked at once it is there.

An upload that broke goes on with the same command: the hub keeps what has arrived, and its client sends the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from strata import config as schema
from strata.disk import disk_errors, file_sha256
from strata.document import Document
from strata.errors import PublishError
from strata.experiment import Experiment
from strata.publish.folder import Contents, assemble, card_sha256, listed, nowhere, sizes, write_files
from strata.receipts import Receipt, keep, receipt
from strata.scratch import scratch_folder, sweep
from strata.status import variant_of
from strata.store import MANIFEST

WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth")
PRECONDITION_FAILED = 412


def upload(root: Path, experiment: Experiment, loaded: tuple[schema.Config, Document], name: str) -> Receipt:
    """Upload a variant to the repository that its `publish` names, and keep the commit.

    The token is that of the environment, HF_TOKEN, or the one that `hf auth login` keeps. Weights of an earlier upload
    that are no longer of the variant are deleted in the commit; whatever else lies in the repository is left.

    Raises:
        UsageError: no such variant.
        StoreError: something of the variant is missing, damaged, or made of other weights.
        PublishError: no repository is named, no token, one that the hub refuses, a repository that is public or holds
            another model, a connection that breaks for longer than the client tries, or another content than was sent.
    """
    variant = variant_of(experiment, name)
    repository = variant.publish.hub
    if repository is None:
        raise nowhere(name, "hub")
    token = _token(repository)
    made_of = assemble(root, experiment, loaded, name, repository)
    found, contents = made_of.checkpoint, made_of.contents
    # By default its storage client notes what has arrived every 20 seconds, and a broken upload begins anew.
    os.environ.setdefault("HF_XET_DATA_SESSION_XORB_METADATA_FLUSH_MAX_COUNT", "1")
    with _staged(root, name, contents) as folder, _told(repository):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi(token=token)
        api.create_repo(repository, private=variant.publish.private, exist_ok=True)
        before = api.model_info(repository, files_metadata=False)
        _check_public(repository, before, variant.publish.private)
        stale = _stale(api, repository, before, receipt(root, name, "hub"), contents)
        try:
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=f"{name}: {found.digest[:16]}",
                delete_patterns=stale or None, parent_commit=before.sha,
            ).oid  # fmt: skip
        except HfHubHTTPError as error:
            if error.response.status_code != PRECONDITION_FAILED:
                raise
            commit = None  # the head has moved: by ourselves, where the answer to a commit was lost on its way
        there = api.model_info(repository, revision=commit, files_metadata=True)
        _check_arrived(repository, there, folder, contents, commit is None)
    made = Receipt(
        "hub", name, repository, found.id, found.digest, sizes(contents), card_sha256(made_of), str(there.sha),
        f"{api.endpoint}/{repository}/tree/{there.sha}", bool(there.private),
    )  # fmt: skip
    keep(root, made)
    return made


def _token(repository: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    if not token:
        raise PublishError(
            "no token for the hub", where="HF_TOKEN in the environment", got="none",
            expected=f"a token that may write to {repository}", todo="export HF_TOKEN=hf_..., or run `hf auth login`",
        )  # fmt: skip
    return token


@contextmanager
def _staged(root: Path, name: str, contents: Contents) -> Iterator[Path]:
    """A folder of links to what is uploaded: the client reads folders."""
    with disk_errors(root):
        sweep(root / "tmp", f"upload-{name}")
        folder = scratch_folder(root / "tmp", f"upload-{name}")
    try:
        with disk_errors(root):
            write_files(folder, contents, link=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """Tell what the hub or its client says as an error of ours. No message of theirs holds the token."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    where = f"{repository} on the hub"
    try:
        yield
    except PublishError:
        raise
    except OfflineModeIsEnabled as error:
        raise PublishError(
            "the hub may not be asked", where=where, expected="HF_HUB_OFFLINE unset", got=_line(error),
            todo="unset HF_HUB_OFFLINE for this command",
        ) from None  # fmt: skip
    except (HfHubHTTPError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(error, GatedRepoError | RepositoryNotFoundError):
            raise _refused(where, error) from None
        if status is None or 400 <= status < 500:
            todo = "mend what it names, and run the same command again"
            raise PublishError(
                "the hub refuses the upload", where=where, expected="a commit", got=_line(error), todo=todo
            ) from None
        raise _broken(where, error) from None
    except (OSError, RuntimeError, httpx2.HTTPError) as error:
        if isinstance(error, OSError) and error.filename is not None:  # of this machine's disk
            raise
        # Its storage client tells every failure as a connection's, and the hub's answer in the text alone.
        raise (_refused if re.search(r"\b(401|403) [A-Z]", str(error)) else _broken)(where, error) from None


def _refused(where: str, error: Exception) -> PublishError:
    return PublishError(
        "the hub refuses the token", where=where, expected="a token that may write there", got=_line(error),
        todo="use one that may write to this repository (HF_TOKEN)",
    )  # fmt: skip


def _broken(where: str, error: Exception) -> PublishError:
    return PublishError(
        "the connection to the hub broke", where=where, expected="a commit", got=_line(error),
        todo="run the same command again: what has arrived is not sent again",
    )  # fmt: skip


def _line(error: Exception) -> str:
    """What an error says, in a line."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(said[:3])[:400] or type(error).__name__


def _check_public(repository: str, there: Any, private: bool) -> None:
    """Raise PublishError for a repository that is public against the config: one that exists stays as it is."""
    if private and not there.private:
        raise PublishError(
            "the repository is public", where=f"{repository} on the hub", expected="a private one, as the config says",
            got="one that everybody sees", todo="make it private there, or set `private: false`",
        )  # fmt: skip


def _stale(api: Any, repository: str, there: Any, last: Receipt | None, contents: Contents) -> list[str]:
    """The weights in a repository that were published before and are no longer of the variant.

    Raises:
        PublishError: it holds weights that were not published by us.
    """
    files = {entry.rfilename for entry in there.siblings or ()}
    weights = {name for name in files if name.endswith(WEIGHTS)}
    ours: set[str] = set(last.files) if last and last.place == repository else set()
    if MANIFEST in files:
        with tempfile.TemporaryDirectory() as scratch:
            old = api.hf_hub_download(repository, MANIFEST, revision=there.sha, local_dir=scratch)
            ours |= listed(Path(old).parent)
    if weights and not weights & ours:
        raise PublishError(
            "the repository holds another model", where=f"{repository} on the hub",
            expected="an empty repository, or one that was published to from here", got=", ".join(sorted(weights)[:5]),
            todo="name another repository, or delete its files there",
        )  # fmt: skip
    return sorted(weights & ours - contents.keys())


def _check_arrived(repository: str, there: Any, folder: Path, contents: Contents, is_moved: bool) -> None:
    """Raise PublishError unless the commit has every file with its size and its hash: a large one's sha256, that of
    git for the rest.

    Args:
        is_moved: the hub refused the commit, as another had come before it.
    """
    arrived = {entry.rfilename: entry for entry in there.siblings or ()}
    for name, size in sizes(contents).items():
        entry, got = arrived.get(name), "no such file"
        expected = f"{size:,} bytes"
        if entry is not None:
            is_large = entry.lfs is not None
            got = f"{entry.size:,} bytes, {entry.lfs.sha256 if is_large else entry.blob_id}"
            expected += f", {file_sha256(folder / name) if is_large else _git_sha1(folder / name)}"
        if got != expected:
            what = "the repository was changed meanwhile" if is_moved else "the hub has another content than was sent"
            raise PublishError(
                what, where=f"{repository} on the hub, {name}", expected=expected, got=got,
                todo="run the same command again",
            )  # fmt: skip


def _git_sha1(file: Path) -> str:
    """What git calls a file of this content."""
    data = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
