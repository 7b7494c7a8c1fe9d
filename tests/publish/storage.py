"""The storage behind the hub: where the bytes of large files go, by the xet protocol or, as before it, by git LFS."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field
from typing import Any

from service import Answer, Ask, Refusal, Service, as_json, route
from xet import BROKEN, Contents, write_shard

READ, WRITE, XET_READ, XET_WRITE = "read", "write", "xet read", "xet write"  # the rights that routes need
REPO, HASH = "(?P<repo>[^/]+/[^/]+)", "(?P<hash>[0-9a-f]{64})"


def sha256(content: bytes) -> str:
    """The name of a large file's content."""
    return hashlib.sha256(content).hexdigest()


@dataclass
class Storage(Service):
    """The storage: with `grants`, xorbs go the new way (a grant for each, which hf_xet 1.8 asks for first), without it
    to `/v1/xorbs`. `shards` is the newest version of the shard upload that it knows."""

    grants: bool = False
    shards: int = 2
    contents: Contents = field(default_factory=Contents)
    promised: dict[str, bytes | None] = field(default_factory=dict)  # by grant: the data, once it came

    # --------------------------------------------------------------------------------------------------------- xet

    @route("GET", f"/v1/chunks/[^/]+/{HASH}", XET_READ)
    def find_chunk(self, ask: Ask) -> Answer:
        """Where a chunk is stored already, so that it need not be sent."""
        xorb = self.contents.known_chunks.get(ask.names["hash"])
        if xorb is None:
            raise Refusal(404, "No such chunk")
        return Answer(write_shard(xorb))

    @route("POST", f"/v1/xorbs/[^/]+/{HASH}", XET_WRITE)
    def take_xorb(self, ask: Ask) -> Answer:
        """A xorb, sent straight here."""
        return as_json({"was_inserted": self._store(ask.names["hash"], ask.body)})

    @route("POST", f"/v1/xorb-grants/[^/]+/{HASH}", XET_WRITE)
    def grant(self, ask: Ask) -> Answer:
        """Leave to send a xorb elsewhere (to S3, in reality). 404 makes the client send it straight here."""
        if not self.grants:
            raise Refusal(404, "No grants here")
        if ask.names["hash"] in self.contents.xorbs:
            return as_json({})
        grant = uuid.uuid4().hex
        self.promised[grant] = None
        return as_json({"id": grant, "method": "PUT", "url": f"{self.url}/bucket/{grant}", "headers": {}}, 201)

    @route("PUT", "/bucket/(?P<grant>[0-9a-f]{32})")
    def take_granted(self, ask: Ask) -> Answer:
        """The data for a grant. Who knows the address may send it: there is no token."""
        if ask.names["grant"] not in self.promised:
            raise Refusal(403, "No such grant")
        self.promised[ask.names["grant"]] = ask.body
        return Answer()

    @route("POST", f"/v1/xorb-commits/[^/]+/{HASH}/grant/(?P<grant>[0-9a-f]+)", XET_WRITE)
    def store_granted(self, ask: Ask) -> Answer:
        """The client says that it is done with a grant."""
        data = self.promised.get(ask.names["grant"])
        if data is None:
            raise Refusal(404, "Nothing came for this grant")
        return as_json({"was_inserted": self._store(ask.names["hash"], data)})

    def _store(self, name: str, data: bytes) -> bool:
        try:
            return self.contents.add_xorb(name, data)
        except BROKEN as wrong:
            raise Refusal(400, repr(wrong)) from None

    @route("POST", "/v(?P<version>[12])/shards", XET_WRITE)
    def take_shard(self, ask: Ask) -> Answer:
        """How files are made of xorbs. Version 2 tells of its progress, one line of JSON after the other."""
        version = int(ask.names["version"])
        if version > self.shards:
            raise Refusal(404, "No such version here")
        try:
            self.contents.add_shard(ask.body)
        except BROKEN as wrong:
            raise Refusal(400, repr(wrong)) from None
        if version == 1:
            return as_json({"result": 1})
        return Answer(b'{"type": "validating", "verified": 1, "total": 1}\n{"type": "result"}\n')

    @route("POST", "/v1/telemetry", XET_READ)
    def telemetry(self, ask: Ask) -> Answer:
        """What the client tells about its speed."""
        return Answer()

    # -------------------------------------------------------------------------------- the way before xet: git LFS

    @route("POST", f"/{REPO}\\.git/info/lfs/objects/batch", WRITE)
    def lfs_batch(self, ask: Ask) -> Answer:
        """Where to send large files; nowhere for those that are there."""
        return as_json({"transfer": "basic", "objects": [self._lfs_object(**wanted) for wanted in ask.json["objects"]]})

    def _lfs_object(self, oid: str, size: int) -> dict[str, Any]:
        to = {"upload": {"href": f"{self.url}/lfs/{oid}"}, "verify": {"href": f"{self.url}/lfs/{oid}/verify"}}
        return {"oid": oid, "size": size} | ({} if oid in self.contents.files else {"actions": to})

    @route("PUT", f"/lfs/{HASH}")
    def lfs_put(self, ask: Ask) -> Answer:
        """A large file. Its address stands for the token, as with S3."""
        if sha256(ask.body) != ask.names["hash"]:
            raise Refusal(400, "The content is not what its name says")
        self.contents.files[ask.names["hash"]] = ask.body
        return Answer()

    @route("POST", f"/lfs/{HASH}/verify", WRITE)
    def lfs_verify(self, ask: Ask) -> Answer:
        """Whether a large file has arrived."""
        if len(self.contents.files.get(ask.names["hash"], b"")) != ask.json["size"]:
            raise Refusal(404, "Not here")
        return Answer()
