"""The storage formats of hf_xet: what a xorb and a shard say, so that the bytes of an uploaded file can be put together
again and looked at.

A *chunk* is about 64 kB of a file, a *xorb* is many chunks in a row, and a *shard* says which chunks of which xorbs
make up which file. Hashes of chunks and xorbs are taken as they come: they are keyed BLAKE3, which Python lacks. What
counts is checked: the SHA-256 of every file rebuilt from its chunks.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

SHARD_TAG = b"HFRepoMetaData\0" + bytes.fromhex("55696745 6a7b8157 83a5bdd9 5ccdd14a a9")
ENTRY = 48  # every record of a shard has this many bytes
LAST = b"\xff" * 32  # in the place of a hash: the section ends here
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30
RAW, LZ4, GROUPED_LZ4 = 0, 1, 2  # how a chunk is stored


class BadXet(ValueError):
    """A xorb or a shard that cannot be what the client meant to send."""


BROKEN = (BadXet, struct.error, IndexError)  # the last two come of data cut short


def hash_text(raw: bytes) -> str:
    """The text of a 32-byte hash: four little-endian numbers, each written with its highest digit first."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", raw))


# ------------------------------------------------------------------------------------------------ chunks of a xorb


def _length(data: bytes, at: int, nibble: int) -> tuple[int, int]:
    """An LZ4 length, which goes on in further bytes as long as the last one was full, and where to read on."""
    length, more = nibble, nibble == 15
    while more:
        length, more, at = length + data[at], data[at] == 255, at + 1
    return length, at


def _lz4_block(block: bytes, out: bytearray) -> None:
    """Append what one LZ4 block holds: runs of literal bytes, each but the last followed by a copy of earlier bytes."""
    at = 0
    while at < len(block):
        token = block[at]
        literals, at = _length(block, at + 1, token >> 4)
        out += block[at : at + literals]
        at += literals
        if at >= len(block):
            return
        distance = int.from_bytes(block[at : at + 2], "little")
        count, at = _length(block, at + 2, token & 15)
        count += 4
        if not 0 < distance <= len(out):
            raise BadXet("an LZ4 copy from before the beginning")
        source = out[len(out) - distance : len(out) - distance + count]
        out += (source * (count // distance + 1))[:count]  # a copy longer than its distance repeats itself


def lz4_frame(data: bytes) -> bytes:
    """The bytes in an LZ4 frame. Its checksums are passed over."""
    if data[:4] != b"\x04\x22\x4d\x18":
        raise BadXet("not an LZ4 frame")
    flags = data[4]
    at = 7 + (8 if flags & 8 else 0) + (4 if flags & 1 else 0)  # content size and dictionary are optional
    out = bytearray()
    while size := int.from_bytes(data[at : at + 4], "little"):
        stored, size = size >> 31, size & 0x7FFFFFFF
        block = data[at + 4 : at + 4 + size]
        if len(block) < size:
            raise BadXet("an LZ4 frame cut short")
        if stored:
            out += block
        else:
            _lz4_block(block, out)
        at += 4 + size + (4 if flags & 16 else 0)
    return bytes(out)


def ungroup(data: bytes) -> bytes:
    """Put bytes back in order that were sorted by their position modulo four (as floats compress better)."""
    out, at = bytearray(len(data)), 0
    for position in range(4):
        count = len(range(position, len(data), 4))
        out[position::4] = data[at : at + count]
        at += count
    return bytes(out)


def xorb_chunks(xorb: bytes) -> Iterator[bytes]:
    """The chunks in a xorb, in order. A xorb may end with a table of contents, which is not needed here."""
    at = 0
    while at < len(xorb) and not xorb.startswith(b"XETBLOB", at):
        packed, scheme, size = (int.from_bytes(xorb[at + a : at + b], "little") for a, b in ((1, 4), (4, 5), (5, 8)))
        data = xorb[at + 8 : at + 8 + packed]
        if xorb[at] != 0 or scheme > GROUPED_LZ4 or len(data) < packed:
            raise BadXet(f"no chunk at byte {at} of a xorb of {len(xorb)}")
        if scheme != RAW:
            data = lz4_frame(data)
        if scheme == GROUPED_LZ4:
            data = ungroup(data)
        if len(data) != size:
            raise BadXet(f"a chunk of {len(data)} bytes that says it has {size}")
        yield data
        at += 8 + packed


# ----------------------------------------------------------------------------------------------------------- shards


class Piece(NamedTuple):
    """Some chunks in a row of one xorb."""

    xorb: str
    size: int
    first: int
    end: int


class ShardFile(NamedTuple):
    """A file as a shard tells of it."""

    sha256: str | None
    pieces: list[Piece]


class Shard(NamedTuple):
    """What is in a shard: files, and for every new xorb the records on its chunks (raw, for an answer later)."""

    files: list[ShardFile]
    xorbs: list[bytes]


def read_shard(data: bytes) -> Shard:
    """Take a shard apart."""
    if data[:32] != SHARD_TAG or struct.unpack_from("<Q", data, 32) != (2,):
        raise BadXet("not a shard of version 2")
    files, xorbs, at = [], [], ENTRY
    while data[at : at + 32] != LAST:
        flags, count = struct.unpack_from("<II", data, at + 32)
        pieces = [_piece(data, at + ENTRY * (1 + i)) for i in range(count)]
        at += ENTRY * (1 + (2 if flags & HAS_VERIFICATION else 1) * count)
        sha256 = hash_text(data[at : at + 32]) if flags & HAS_SHA256 else None
        at += ENTRY if flags & HAS_SHA256 else 0
        files.append(ShardFile(sha256, pieces))
    at += ENTRY
    while data[at : at + 32] != LAST:
        (count,) = struct.unpack_from("<I", data, at + 36)
        xorbs.append(data[at : at + ENTRY * (1 + count)])
        at += ENTRY * (1 + count)
    return Shard(files, xorbs)


def _piece(data: bytes, at: int) -> Piece:
    if len(data) < at + ENTRY:
        raise BadXet("a shard cut short")
    return Piece(hash_text(data[at : at + 32]), *struct.unpack_from("<4x3I", data, at + 32))


def chunk_hashes(xorb: bytes) -> list[bytes]:
    """The raw hashes of the chunks of a xorb, out of its records in a shard."""
    return [xorb[at : at + 32] for at in range(ENTRY, len(xorb), ENTRY)]


def write_shard(xorb: bytes, valid_s: int = 3600) -> bytes:
    """A shard without files that tells of one xorb: the answer to "do you know this chunk?".

    The client reads it by its footer, so this has the look-up tables and the footer that uploaded shards lack.
    """
    end = LAST + bytes(ENTRY - 32)
    head = SHARD_TAG + struct.pack("<QQ", 2, 200) + end
    at_xorb, at_tables = len(head), len(head) + len(xorb) + ENTRY
    by_chunk = sorted((int.from_bytes(raw[:8], "little"), i) for i, raw in enumerate(chunk_hashes(xorb)))
    chunks = b"".join(struct.pack("<QII", key, 0, i) for key, i in by_chunk)
    at_chunks = at_tables + 12
    at_footer = at_chunks + len(chunks)
    now = int(time.time())
    footer = struct.pack("<9Q", 1, ENTRY, at_xorb, at_tables, 0, at_tables, 1, at_chunks, len(by_chunk))
    footer += bytes(32) + struct.pack("<2Q", now, now + valid_s) + bytes(48 + 24) + struct.pack("<Q", at_footer)
    return head + xorb + end + xorb[:8] + bytes(4) + chunks + footer


# ---------------------------------------------------------------------------------------------------------- storage


@dataclass
class Contents:
    """What arrived: the chunks of every xorb, the chunks that shards told of, and the files by SHA-256."""

    xorbs: dict[str, list[bytes]] = field(default_factory=dict)
    known_chunks: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)

    def add_xorb(self, name: str, data: bytes) -> bool:
        """Keep a xorb. Say whether it is new."""
        new = name not in self.xorbs
        self.xorbs[name] = list(xorb_chunks(data))
        return new

    def add_shard(self, data: bytes) -> None:
        """Put together the files of a shard, each checked by its SHA-256, and remember the chunks of its xorbs."""
        shard = read_shard(data)
        for file in shard.files:
            content = b"".join(self._content(piece) for piece in file.pieces)
            sha256 = hashlib.sha256(content).hexdigest()
            if file.sha256 not in (None, sha256):
                raise BadXet(f"a file with SHA-256 {sha256} that the shard calls {file.sha256}")
            self.files[sha256] = content
        for xorb in shard.xorbs:
            self.chunks_of(hash_text(xorb[:32]))  # it must have come
            self.known_chunks.update((hash_text(raw), xorb) for raw in chunk_hashes(xorb))

    def chunks_of(self, xorb: str) -> list[bytes]:
        """The chunks of a xorb that came."""
        if xorb not in self.xorbs:
            raise BadXet(f"xorb {xorb} never came")
        return self.xorbs[xorb]

    def _content(self, piece: Piece) -> bytes:
        content = b"".join(self.chunks_of(piece.xorb)[piece.first : piece.end])
        if len(content) != piece.size:
            raise BadXet(f"{len(content)} bytes where the shard says {piece.size}")
        return content
