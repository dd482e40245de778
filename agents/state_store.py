"""Durable state on disk: a log of segments in RocksDB, and one commit record that says which of them count.

Segments are written unsynced and then the commit with a sync, so whatever the moment of a crash, the
state is the one of the last commit. A generation holds what changed since the one before it; the newest
record of a user wins. A full generation holds everything and makes those before it superfluous.

    b"commit"                            the commit record
    b"n" + generation + sequence         names of users and items
    b"s" + generation + sequence         packed users of one source
    b"p" + generation + id               metadata of one item as JSON; null if the item is deleted

Metadata is no log: there is one value per item, written in place, unsynced and before the commit that it
belongs to. So it is as of the last commit or, where a crash came between, as of a later moment of the same
log. Reading on from the commit's position ends the same: what an item's metadata is after some changes is
decided, for each property, by the last one that sets, unsets or deletes it and, for whether the item is
deleted, by the last one that sets anything or deletes it. Where the rest of the log has such a change, it
comes again, and decides; where it has none, there was none to be ahead by. The generation in the key is the
one that wrote the metadata of all items anew, as saving over another state does: that must not mix.

Putting a value holds the interpreter's lock, waiting for the disk included (measured: 0.4 s for a batch of
32 MB, 40 ms for a sync). So pieces are small, and before a sync or a full write buffer the waiting is done by
`fdatasync` and `flush`, which let other threads run.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from rocksdict import AccessType, DBCompressionType, Options, Rdict, WriteOptions

from agents.state_directory import DATABASE, check, create_if_new, keep_config, lock
from agents.state_errors import StateError, damaged, explained
from cco.config import Config

Words = npt.NDArray[np.uint32]

PIECE = 1 << 18  # bytes of a stored segment, about
USERS, ITEMS = 0, 1  # kinds of names

_COMMIT = b"commit"
_SYNC_EVERY, _FLUSH_EVERY = 4 << 20, 32 << 20  # bytes written
_WRITE_BUFFER = 64 << 20  # more than _FLUSH_EVERY: RocksDB never flushes while a put waits
_CRC, _PACKED, _NAMES = struct.Struct("<I"), struct.Struct("<II"), struct.Struct("<III")
_MOST = 2**64 - 1


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
    sources: list[tuple[int, int]]  # per source partition: events applied, watermark
    users: int  # names
    items: int
    input: dict[str, Any] | None  # where to read on; None if the events did not come from files
    generations: list[Generation]  # oldest first, the first one full
    metadata: int  # the generation in the keys of the items' metadata


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


class StateStore:
    """A state directory, locked while it is open: by one writer, or by any number of readers.

    Every method raises StateError, one readable line; after one of a write, the state on the disk is still
    that of the last commit, and the store is of no use but to be closed. One thread at a time.
    """

    def __init__(self, path: Path, database: Rdict, lock: int, commit: Commit) -> None:
        self.path, self.commit = path, commit
        self._database, self._lock = database, lock
        self._synced = WriteOptions()
        self._synced.sync = True
        self._unsynced_bytes = self._unflushed_bytes = 0
        self._metadata = commit.metadata
        self._begin()

    @classmethod
    def open(cls, path: Path, config: Config, *, read_only: bool = False) -> StateStore:
        """Open the state in `path`; create it there if nothing is (and not `read_only`).

        A writer's configuration is kept: in what does not decide what is retained, it may be another one.
        """
        handle = lock(path, read_only)
        try:
            if not read_only:
                create_if_new(path, config, lambda folder: _fill(folder, config))
            check(path, config)
            with explained(path, "opening it"):
                database = _open_database(path / DATABASE, read_only)
                try:
                    store = cls(path, database, handle, _read_commit(path, database, config))
                    if not read_only:
                        keep_config(path, config)
                        store._drop_unlisted()
                except BaseException:
                    database.close()
                    raise
            return store
        except BaseException:
            os.close(handle)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the directory. What is not committed is lost."""
        if self._lock >= 0:
            with suppress(Exception):  # a disk that is full still is; nothing of the commit depends on this
                self._database.close()
            os.close(self._lock)
            self._lock = -1

    # -- reading ------------------------------------------------------------------------------------

    def parts(self) -> Iterator[NamesPart | PackedPart]:
        """All that counts, in the order in which it is to be applied."""
        for generation in self.commit.generations:
            for sequence in range(generation.names):
                yield self._names_part(self._segment(b"n", generation.number, sequence))
            yield from self._packed_parts(generation)

    def _segment(self, kind: bytes, generation: int, sequence: int) -> bytes:
        key = _key(kind, generation, sequence)
        with explained(self.path, "reading it"):
            stored: bytes | None = self._database.get(key)
        if stored is None:
            raise self._damaged(f"segment {sequence} of generation {generation} is missing")
        return self._checked(key, stored, f"segment {sequence} of generation {generation}")

    def _checked(self, key: bytes, stored: bytes, what: str) -> bytes:
        """A stored value without its checksum."""
        if len(stored) < _CRC.size or _CRC.unpack_from(stored)[0] != zlib.crc32(stored[_CRC.size :], zlib.crc32(key)):
            raise self._damaged(f"{what} has another checksum")
        return stored[_CRC.size :]

    def items(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Ids of items and their metadata (None: deleted), as of the commit or later (see the module)."""
        prefix = _item_prefix(self.commit.metadata)
        with explained(self.path, "reading it"):
            entries = self._database.iter()
            entries.seek(prefix)
            while entries.valid() and (key := entries.key()).startswith(prefix):
                item = key[len(prefix) :].decode(errors="replace")
                yield item, json.loads(self._checked(key, entries.value(), f"the metadata of item {item}"))
                entries.next()
            entries.status()  # an error ends the entries, and is raised here

    def _names_part(self, body: bytes) -> NamesPart:
        if len(body) >= _NAMES.size:
            kind, start, count = _NAMES.unpack_from(body)
            begin = _NAMES.size + 2 * count
            if begin <= len(body):
                offsets = np.zeros(count + 1, np.int64)
                np.cumsum(np.frombuffer(body, "<u2", count, _NAMES.size), out=offsets[1:])
                return NamesPart(kind, start, body[begin:], offsets)
        raise self._damaged("a segment of names does not parse")

    def _packed_parts(self, generation: Generation) -> Iterator[PackedPart]:
        pieces: list[Words] = []
        for sequence in range(generation.users):
            body = self._segment(b"s", generation.number, sequence)
            if len(body) < _PACKED.size or len(body) % 4:
                raise self._damaged("a segment of users does not parse")
            source, more = _PACKED.unpack_from(body)
            pieces.append(np.frombuffer(body, "<u4", offset=_PACKED.size).astype(np.uint32, copy=False))
            if not more:
                yield PackedPart(source, pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
                pieces = []
        if pieces:
            raise self._damaged("the last segment of users is cut off")

    def _damaged(self, what: str) -> StateError:
        return damaged(self.path, what)

    # -- writing ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._users = self._names = self._bytes = 0

    def write_users(self, source: int, words: Words) -> None:
        """Add whole packed records of a source to the generation that is being written."""
        data = memoryview(words.astype("<u4", copy=False).tobytes())
        for at in range(0, len(data), PIECE):
            more = at + PIECE < len(data)
            self._put_segment(b"s", self._users, _PACKED.pack(source, more) + data[at : at + PIECE])
            self._users += 1

    def write_names(self, kind: int, start: int, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        """Add the ids from position `start` on; `data` and `offsets` are those of the whole vocabulary."""
        count = len(offsets) - 1
        while start < count:
            stop = int(np.searchsorted(offsets, offsets[start] + PIECE, "right")) - 1
            stop = min(max(stop, start + 1), start + PIECE // 8, count)
            lengths = np.diff(offsets[start : stop + 1]).astype("<u2").tobytes()
            text = data[offsets[start] : offsets[stop]].tobytes()
            self._put_segment(b"n", self._names, _NAMES.pack(kind, start, stop - start) + lengths + text)
            self._names += 1
            start = stop

    def write_items(self, items: Iterable[tuple[str, Mapping[str, object] | None]], anew: bool) -> None:
        """Store metadata of items (None: deleted); with `anew`, no other is there once this is committed."""
        if anew:
            self._metadata = self.commit.generation + 1
        for item, properties in items:
            text = json.dumps(properties, separators=(",", ":"), allow_nan=False)
            self._put(_item_prefix(self._metadata) + item.encode(), text.encode())

    def write_commit(
        self,
        full: bool,
        sources: list[tuple[int, int]],
        users: int,
        items: int,
        input: dict[str, Any] | None,
    ) -> None:
        """Make what was written since the last commit count; with `full`, nothing else from now on."""
        number = self.commit.generation + 1
        listed = [*([] if full else self.commit.generations), Generation(number, self._users, self._names, self._bytes)]
        commit = Commit(self.commit.epoch, number, sources, users, items, input, listed, self._metadata)
        with explained(self.path, "writing to it"):
            self._wait_for_disk()
            self._database.put(_COMMIT, _encoded(commit), self._synced)
            self.commit = commit
            self._begin()
            if full and self._drop_unlisted():
                self._give_space_back()

    def _put_segment(self, kind: bytes, sequence: int, body: bytes) -> None:
        self._put(_key(kind, self.commit.generation + 1, sequence), body)
        self._bytes += len(body)

    def _put(self, key: bytes, body: bytes) -> None:
        with explained(self.path, "writing to it"):
            self._database.put(key, _CRC.pack(zlib.crc32(body, zlib.crc32(key))) + body)
            self._unsynced_bytes += len(body)
            self._unflushed_bytes += len(body)
            if self._unflushed_bytes >= _FLUSH_EVERY:
                self._database.flush()
                self._unflushed_bytes = 0
            if self._unsynced_bytes >= _SYNC_EVERY:
                self._wait_for_disk()

    def _wait_for_disk(self) -> None:
        """Sync RocksDB's own log, so that the sync of the next put has nothing left to wait for."""
        for file in (self.path / DATABASE).glob("*.log"):
            with suppress(FileNotFoundError):  # RocksDB has flushed it away meanwhile
                handle = os.open(file, os.O_RDONLY)
                try:
                    os.fdatasync(handle)
                finally:
                    os.close(handle)
        self._unsynced_bytes = 0

    def _drop_unlisted(self) -> bool:
        """Delete superseded generations and what a crash left behind; answers whether there was any."""
        dropped = False
        for kind, first, last in self._counting():
            for begin, end in ((0, first), (last + 1, _MOST)):
                from_key, end_key = _key(kind, begin, 0), _key(kind, end, 0)
                found: Any = next(iter(self._database.keys(from_key=from_key)), end_key)
                if found < end_key:
                    self._database.delete_range(from_key, end_key)
                    dropped = True
        return dropped

    def _give_space_back(self) -> None:
        self._database.flush()
        self._unflushed_bytes = 0
        for kind, first, _ in self._counting():
            self._database.compact_range(_key(kind, 0, 0), _key(kind, first, 0))

    def _counting(self) -> Iterator[tuple[bytes, int, int]]:
        """Kinds of keys, and from which generation to which one they count."""
        first = min((generation.number for generation in self.commit.generations), default=0)
        yield b"n", first, self.commit.generation
        yield b"s", first, self.commit.generation
        yield b"p", self.commit.metadata, self.commit.metadata


def _key(kind: bytes, generation: int, sequence: int) -> bytes:
    return kind + generation.to_bytes(8, "big") + sequence.to_bytes(4, "big")


def _item_prefix(generation: int) -> bytes:
    return b"p" + generation.to_bytes(8, "big")


def _options(create: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(create)
    options.set_compression_type(DBCompressionType.none())
    options.set_write_buffer_size(_WRITE_BUFFER)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(1 << 20)
    return options


def _open_database(path: Path, read_only: bool, create: bool = False) -> Rdict:
    if read_only:
        return Rdict(str(path), _options(False), access_type=AccessType.read_only(False))
    return Rdict(str(path), _options(create))


def _fill(path: Path, config: Config) -> None:
    """A new database, in which nothing is committed."""
    synced = WriteOptions()
    synced.sync = True
    nothing = Commit(config.epoch, 0, [(0, 0)] * config.retention.source_partitions, 0, 0, None, [], 0)
    database = _open_database(path, read_only=False, create=True)
    database.put(_COMMIT, _encoded(nothing), synced)
    database.close()


def _encoded(commit: Commit) -> bytes:
    text = json.dumps(asdict(commit), separators=(",", ":")).encode()
    return _CRC.pack(zlib.crc32(text)) + text


def _read_commit(path: Path, database: Rdict, config: Config) -> Commit:
    stored: bytes | None = database.get(_COMMIT)
    if stored is None:
        raise damaged(path, "there is no commit record")
    if len(stored) < _CRC.size or _CRC.unpack_from(stored)[0] != zlib.crc32(stored[_CRC.size :]):
        raise damaged(path, "the commit record has another checksum")
    found: dict[str, Any] = json.loads(stored[_CRC.size :])
    if found["epoch"] != config.epoch:
        raise damaged(path, "the commit record is of another configuration than state.json")
    found["sources"] = [(applied, watermark) for applied, watermark in found["sources"]]
    found["generations"] = [Generation(**generation) for generation in found["generations"]]
    return Commit(**found)
