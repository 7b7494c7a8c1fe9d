"""A stand-in for the Hugging Face hub, on loopback: repositories, commits, and the xet storage behind them.

It speaks to huggingface_hub 2.4 with hf_xet 1.8 as the real one does, as far as uploading a folder of a model and
downloading it go. Nothing is trusted: a large file counts as arrived only if it could be put together from the xorbs
and shards that the client sent, and a commit can only name such files.

    with running_hub() as hub:
        api = HfApi(endpoint=hub.url, token=hub.writer)
        api.create_repo("me/model", private=True)
        hub.faults.append(Fault("POST", r"/v1/xorbs/.*", after_bytes=1000))
        api.upload_folder(repo_id="me/model", folder_path=folder)
        assert hub.repos["me/model"].head.files["config.json"] == (folder / "config.json").read_bytes()
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import yaml
from service import SAID, Answer, Ask, Fault, Refusal, Request, as_json, route, serving
from storage import READ, REPO, WRITE, Storage, sha256

__all__ = ["Commit", "Fault", "Hub", "Repo", "Request", "running_hub"]

MODEL, REV = f"/api/models/{REPO}", "(?P<rev>[^/]+)"

# Which files are large, as the `.gitattributes` of a new repository has it; and above this size, every file is.
LARGE = re.compile(
    r".*\.(7z|arrow|bin|bz2|ckpt|ftz|gguf|gz|h5|joblib|model|msgpack|np[yz]|onnx|ot|parquet|pb|pickle|pkl|pth?|rar"
    r"|safetensors|tar|tflite|tgz|wasm|xz|zip|zst)"
)
LARGE_SIZE = 10 * 1024 * 1024
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LICENSES = """
    afl-3.0 agpl-3.0 apache-2.0 apple-ascl apple-amlr artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
    eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr
    llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 open-mdw
    openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
"""


def git_sha1(content: bytes) -> str:
    """The name git gives to a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the content of a file goes into storage instead of the commit: weights, big files, and all but text."""
    return size > 0 and (size > LARGE_SIZE or bool(LARGE.fullmatch(path)) or b"\0" in sample[:512])


@dataclass(frozen=True)
class Commit:
    """A state of a repository."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository with one branch, `main`."""

    private: bool
    commits: list[Commit] = field(default_factory=list)

    @property
    def head(self) -> Commit:
        """The newest commit."""
        return self.commits[-1]

    def commit(self, message: str, files: dict[str, bytes]) -> Commit:
        """Add a commit. Its name depends on all before it, as in git."""
        parent = self.head.oid if self.commits else ""
        listing = "".join(f"{git_sha1(content)} {path}\n" for path, content in sorted(files.items()))
        oid = hashlib.sha1(f"{parent}\n{message}\n{listing}".encode()).hexdigest()
        self.commits.append(Commit(oid, message, files))
        return self.head


@dataclass
class Hub(Storage):
    """The hub: what a test may look at and set.

    `tokens` says which tokens there are and whether they may write, and `repos` what has been committed.
    """

    user: str = "me"
    writer: str = "hf_writer"
    reader: str = "hf_reader"
    tokens: dict[str, bool] = field(default_factory=dict)
    xet_tokens: dict[str, bool] = field(default_factory=dict)
    repos: dict[str, Repo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokens |= {self.writer: True, self.reader: False}

    def authorize(self, ask: Ask, needs: str) -> None:
        """401 without a token that is known, 403 for one that may not write."""
        known = self.xet_tokens if needs.startswith("xet") else self.tokens
        if not needs:
            return
        if ask.token is None:
            raise Refusal(401, "Invalid username or password.")
        if ask.token not in known:
            raise Refusal(401, SAID[401])
        if needs.endswith("write") and not known[ask.token]:
            raise Refusal(403, SAID[403])

    def repo(self, ask: Ask) -> Repo:
        """The repository that a request names."""
        if ask.names["repo"] not in self.repos:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.repos[ask.names["repo"]]

    def at_revision(self, ask: Ask) -> Commit:
        """The commit that a request names, or the newest one."""
        repo, rev = self.repo(ask), ask.names.get("rev") or "main"
        found = [commit for commit in repo.commits if rev in ("main", commit.oid)]
        if not found:
            raise Refusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
        return found[-1]

    # ------------------------------------------------------------------------------------------------ repositories

    @route("GET", "/api/whoami-v2", READ)
    def whoami(self, ask: Ask) -> Answer:
        """Who a token belongs to."""
        role = "write" if self.tokens[str(ask.token)] else "read"
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        return as_json({"type": "user", "name": self.user, "fullname": self.user, "orgs": [], "auth": auth})

    @route("POST", "/api/repos/create", WRITE)
    def create(self, ask: Ask) -> Answer:
        """A new repository has one commit, with the list of what is large."""
        wanted = ask.json
        name = f"{wanted.get('organization') or self.user}/{wanted['name']}"
        url = f"{self.url}/{name}"
        if name in self.repos:
            raise Refusal(409, "You already created this model repo", url=url)
        private = wanted.get("private", wanted.get("visibility") == "private")
        self.repos[name] = Repo(private)
        self.repos[name].commit("initial commit", {".gitattributes": GITATTRIBUTES})
        return as_json({"url": url, "name": name, "private": private})

    @route("GET", MODEL, READ)
    @route("GET", f"{MODEL}/revision/{REV}", READ)
    def info(self, ask: Ask) -> Answer:
        """What a repository is and which files it has."""
        repo, commit = self.repo(ask), self.at_revision(ask)
        entries = [_entry(path, content) for path, content in sorted(commit.files.items())]
        siblings = [{"rfilename": one["path"]} for one in entries]
        if "blobs" in ask.query:
            siblings = [{"rfilename": one["path"], "blobId": one["oid"], **one} for one in entries]
        name = ask.names["repo"]
        about = {"_id": git_sha1(name.encode())[:24], "id": name, "modelId": name, "author": name.split("/")[0]}
        return as_json({**about, "sha": commit.oid, "private": repo.private, "tags": [], "siblings": siblings})

    @route("GET", f"{MODEL}/tree/{REV}(/(?P<folder>.+))?", READ)
    def tree(self, ask: Ask) -> Answer:
        """The files and folders in a folder, or everything below it."""
        folder, everything = ask.names["folder"], ask.query.get("recursive", "").lower() in ("true", "1")
        start = f"{folder}/" if folder else ""
        files = {path: data for path, data in self.at_revision(ask).files.items() if path.startswith(start)}
        if folder and not files:
            raise Refusal(404, f"{folder} does not exist on {ask.names['rev']}", "EntryNotFound")
        entries = {path: _entry(path, content) for path, content in files.items()}
        for path in (str(above) for file in files for above in PurePosixPath(file).parents):
            if path != "." and path != folder and path.startswith(start):
                entries[path] = {"type": "directory", "oid": git_sha1(path.encode()), "size": 0, "path": path}
        return as_json([entries[path] for path in sorted(entries) if everything or "/" not in path[len(start) :]])

    @route("GET", f"/{REPO}/resolve/{REV}/(?P<path>.+)", READ)
    def download(self, ask: Ask) -> Answer:
        """A file, whole or in part."""
        commit, path = self.at_revision(ask), ask.names["path"]
        if path not in commit.files:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        etag = sha256(content) if is_large(path, len(content), content) else git_sha1(content)
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", ask.headers.get("range", ""))
        if part is None:
            return Answer(content, 200, headers)
        first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return Answer(content[first : last + 1], 206, headers)

    @route("GET", f"{MODEL}/xet-(?P<kind>read)-token/{REV}", READ)
    @route("GET", f"{MODEL}/xet-(?P<kind>write)-token/{REV}", WRITE)
    def xet_token(self, ask: Ask) -> Answer:
        """A token for the storage, which is on the same server."""
        self.at_revision(ask)
        token, until = f"xet_{uuid.uuid4().hex}", int(time.time()) + 3600
        self.xet_tokens[token] = ask.names["kind"] == "write"
        headers = {"X-Xet-Cas-Url": self.url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(until)}
        return as_json({"casUrl": self.url, "accessToken": token, "exp": until}, headers=headers)

    # ----------------------------------------------------------------------------------------------------- commits

    @route("POST", "/api/validate-yaml", READ)
    def validate(self, ask: Ask) -> Answer:
        """Whether the front matter of a model card is one."""
        errors, warnings = card_problems(ask.json["content"])
        said = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        return as_json(said | ({"error": errors[0]} if errors else {}), 400 if errors else 200)

    @route("POST", f"{MODEL}/preupload/{REV}", WRITE)
    def preupload(self, ask: Ask) -> Answer:
        """How each file is to be sent, and what is there under its name, so that the client can leave it out."""
        there = self.at_revision(ask).files
        return as_json({"files": [self._how(there.get(file["path"]), **file) for file in ask.json["files"]]})

    def _how(self, there: bytes | None, path: str, size: int, sample: str) -> dict[str, Any]:
        large = is_large(path, size, base64.b64decode(sample))
        how = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        return how if there is None else how | {"oid": sha256(there) if large else git_sha1(there)}

    @route("POST", f"{MODEL}/commit/{REV}", WRITE)
    def commit(self, ask: Ask) -> Answer:
        """Commit: one line of JSON for each thing to do."""
        repo, head = self.repo(ask), self.at_revision(ask)
        lines = [json.loads(line) for line in ask.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit", head.oid) != head.oid or head is not repo.head:
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            self._change(files, line["key"], line["value"])
        commit = repo.commit(header["summary"], files)
        url = f"{self.url}/{ask.names['repo']}/commit/{commit.oid}"
        return as_json({"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""})

    def _change(self, files: dict[str, bytes], what: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if what == "file":
            files[path] = base64.b64decode(value["content"])
        elif what == "lfsFile":
            content = self.contents.files.get(value["oid"])
            if content is None or value.get("size", len(content)) != len(content):
                raise Refusal(400, f"The content of {path} never came ({value['oid']})")
            files[path] = content
        else:  # deletedFile or deletedFolder
            folder = path.rstrip("/") + "/"
            gone = [one for one in files if (one.startswith(folder) if what == "deletedFolder" else one == path)]
            if not gone:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
            for one in gone:
                del files[one]


def _entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as a listing shows it."""
    lfs = {"lfs": {"oid": sha256(content), "sha256": sha256(content), "size": len(content), "pointerSize": 135}}
    entry = {"type": "file", "oid": git_sha1(content), "size": len(content), "path": path}
    return entry | (lfs if is_large(path, len(content), content) else {})


def card_problems(card: str) -> tuple[list[str], list[str]]:
    """What is wrong (errors) or odd (warnings) about the front matter of a model card."""
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", card, re.DOTALL)
    if front is None:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        about = yaml.safe_load(front[1])
    except yaml.YAMLError as wrong:
        return [f"Invalid YAML: {wrong}"], []
    if not isinstance(about, dict):
        return ["The metadata is not a mapping"], []
    errors = []
    licenses = about.get("license", "other")
    for one in licenses if isinstance(licenses, list) else [licenses]:
        if one not in LICENSES.split():
            errors.append(f'"license" must be one of [{", ".join(LICENSES.split())}]')
    for name in ("tags", "datasets", "metrics", "language", "base_model"):
        value = about.get(name, [])
        if not all(isinstance(one, str) for one in (value if isinstance(value, list) else [value])):
            errors.append(f'"{name}" must be a string or a list of strings')
    for name in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if not isinstance(about.get(name, ""), str):
            errors.append(f'"{name}" must be a string')
    return errors, []


@contextmanager
def running_hub(**settings: Any) -> Iterator[Hub]:
    """A hub that runs until the end of the block."""
    hub = Hub(**settings)
    with serving(hub):
        yield hub
