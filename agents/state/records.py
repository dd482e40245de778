"""What a state consists of, as bytes: the commit record, and the records that it lists (see `agents.state.store`)."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint32]

USERS, ITEMS = 0, 1  # kinds of names
NAMES_KEY, USERS_KEY, ITEMS_KEY = b"n", b"s", b"p"  # first bytes of keys

PIECE = 1 << 18  # bytes of a segment, about

_CRC, _PACKED, _NAMES = struct.Struct("<I"), struct.Struct("<II"), struct.Struct("<III")
_KEY = struct.Struct(">cQI")


class DamagedRecordError(ValueError):
    """A record is not what was stored; says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Generation:
    """A part of the log that counts."""

    number: int
    users: int  # segments of packed users
    names: int  # segments of names
    bytes: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What the state is, once this is on the disk."""

    epoch: str  # of the configuration
    generation: int
    sources: list[tuple[int, int]]  # per source of the state: events applied, watermark
    users: int  # names
    items: int
    input: dict[str, Any] | None  # where to read on; None if the events came from Engine.ingest
    generations: list[Generation]  # oldest first, the first one full
    metadata: int  # the generation in the keys of the items' metadata

    def encoded(self) -> bytes:
        """The commit record."""
        text = json.dumps(asdict(self), separators=(",", ":")).encode()
        return _CRC.pack(zlib.crc32(text)) + text

    @classmethod
    def decoded(cls, stored: bytes) -> Commit:
        """The converse of `encoded`. Raises DamagedRecordError."""
        if len(stored) < _CRC.size or _CRC.unpack_from(stored)[0] != zlib.crc32(stored[_CRC.size :]):
            raise DamagedRecordError("the commit record has another checksum")
        found: dict[str, Any] = json.loads(stored[_CRC.size :])
        found["sources"] = [(applied, watermark) for applied, watermark in found["sources"]]
        found["generations"] = [Generation(**generation) for generation in found["generations"]]
        return cls(**found)

    def segments(self) -> Iterator[tuple[Generation, bytes, int]]:
        """(generation, kind, sequence) of every segment that counts, in the order in which they are to be applied."""
        for generation in self.generations:
            for sequence in range(generation.names):
                yield generation, NAMES_KEY, sequence
            for sequence in range(generation.users):
                yield generation, USERS_KEY, sequence


@dataclass(frozen=True, slots=True)
class NamesPart:
    """Some ids of one vocabulary."""

    kind: int  # USERS or ITEMS
    start: int  # position of the first
    data: bytes  # UTF-8, one after the other
    offsets: npt.NDArray[np.int64]  # (n + 1,)


@dataclass(frozen=True, slots=True)
class PackedPart:
    """Whole records of packed users of one source."""

    source: int
    words: Words


def key_of(kind: bytes, generation: int, sequence: int) -> bytes:
    """The key of a segment."""
    return _KEY.pack(kind, generation, sequence)


def item_prefix(generation: int) -> bytes:
    """What the keys of items' metadata begin with; the id follows."""
    return ITEMS_KEY + generation.to_bytes(8, "big")


def described(key: bytes) -> str:
    """What a key is of, for messages."""
    if key.startswith(ITEMS_KEY):
        return f"the metadata of item {key[len(item_prefix(0)) :].decode(errors='replace')}"
    if not key.startswith((NAMES_KEY, USERS_KEY)) or len(key) != _KEY.size:
        return f"the record {key!r}"
    _, generation, sequence = _KEY.unpack(key)
    return f"segment {sequence} of generation {generation}"


def sealed(key: bytes, body: bytes) -> bytes:
    """A value as it is stored: a checksum of it and of its key comes first."""
    return _CRC.pack(zlib.crc32(body, zlib.crc32(key))) + body


def unsealed(key: bytes, stored: bytes | None) -> bytes:
    """A stored value without its checksum. Raises DamagedRecordError."""
    if stored is None:
        raise DamagedRecordError(f"{described(key)} is missing")
    body = stored[_CRC.size :]
    if len(stored) < _CRC.size or _CRC.unpack_from(stored)[0] != zlib.crc32(body, zlib.crc32(key)):
        raise DamagedRecordError(f"{described(key)} has another checksum")
    return body


def users_body(source: int, more: bool, data: memoryview) -> bytes:
    """A segment of packed users; `more` of the same records are in the next one."""
    return _PACKED.pack(source, more) + data


def users_bodies(source: int, words: Words) -> Iterator[bytes]:
    """Segments of whole packed records of a source."""
    data = memoryview(words.astype("<u4", copy=False).tobytes())
    for at in range(0, len(data), PIECE):
        yield users_body(source, at + PIECE < len(data), data[at : at + PIECE])


def parsed_users(body: bytes) -> tuple[int, bool, Words]:
    """The converse of `users_body`. Raises DamagedRecordError."""
    if len(body) < _PACKED.size or len(body) % 4:
        raise DamagedRecordError("a segment of users does not parse")
    source, more = _PACKED.unpack_from(body)
    return source, bool(more), np.frombuffer(body, "<u4", offset=_PACKED.size).astype(np.uint32, copy=False)


def names_body(kind: int, start: int, stop: int, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> bytes:
    """A segment of the ids from `start` to before `stop` of a vocabulary with this `data` and these `offsets`."""
    lengths = np.diff(offsets[start : stop + 1]).astype("<u2").tobytes()
    return _NAMES.pack(kind, start, stop - start) + lengths + data[offsets[start] : offsets[stop]].tobytes()


def names_bodies(kind: int, start: int, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Iterator[bytes]:
    """Segments of the ids from position `start` on of a vocabulary with this `data` and these `offsets`."""
    count = len(offsets) - 1
    while start < count:
        stop = int(np.searchsorted(offsets, offsets[start] + PIECE, "right")) - 1
        stop = min(max(stop, start + 1), start + PIECE // 8, count)
        yield names_body(kind, start, stop, data, offsets)
        start = stop


def parsed_names(body: bytes) -> NamesPart:
    """The converse of `names_body`. Raises DamagedRecordError."""
    if len(body) >= _NAMES.size:
        kind, start, count = _NAMES.unpack_from(body)
        begin = _NAMES.size + 2 * count
        if begin <= len(body):
            offsets = np.zeros(count + 1, np.int64)
            np.cumsum(np.frombuffer(body, "<u2", count, _NAMES.size), out=offsets[1:])
            return NamesPart(kind, start, body[begin:], offsets)
    raise DamagedRecordError("a segment of names does not parse")
