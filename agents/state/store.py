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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from rocksdict import AccessType, DBCompressionType, Options, Rdict, WriteOptions

from agents.state.directory import DATABASE, check, create_if_new, drop_incoming, keep_config, lock, meta_of
from agents.state.errors import StateError, damaged, explained
from agents.state.export import StateExport
from agents.state.owner import owner_of
from agents.state.records import (
    ITEMS,
    ITEMS_KEY,
    NAMES_KEY,
    USERS,
    USERS_KEY,
    Commit,
    DamagedRecordError,
    Generation,
    NamesPart,
    PackedPart,
    Words,
    item_prefix,
    key_of,
    names_bodies,
    parsed_names,
    parsed_users,
    sealed,
    unsealed,
    users_bodies,
)
from cco.config import Config

__all__ = ["ITEMS", "USERS", "Commit", "Generation", "NamesPart", "PackedPart", "StateStore", "Words"]

_COMMIT = b"commit"
_SYNC_EVERY, _FLUSH_EVERY = 4 << 20, 32 << 20  # bytes written
_WRITE_BUFFER = 64 << 20  # more than _FLUSH_EVERY: RocksDB never flushes while a put waits
_MOST = 2**64 - 1


class StateStore:
    """A state directory, locked while it is open: by one writer, or by any number of readers.

    Every method raises StateError, one readable line; after one of a write, the state on the disk is still
    that of the last commit, and the store is of no use but to be closed. One thread at a time.
    """

    def __init__(self, path: Path, database: Rdict, lock: int, commit: Commit, config: Config) -> None:
        self.path, self.commit, self._config = path, commit, config
        self._database, self._lock = database, lock
        self._synced = WriteOptions()
        self._synced.sync = True
        self._unsynced_bytes = self._unflushed_bytes = 0
        self._metadata = commit.metadata
        self._exports: list[StateExport] = []
        self._begin()

    @classmethod
    def open(cls, path: Path, config: Config, *, sources: int | None = None, read_only: bool = False) -> StateStore:
        """Open the state in `path`; create it there if nothing is (and not `read_only`).

        `sources` is how many source partitions are in it: all of the configuration's (None), or 1 where a
        worker keeps one of them. A writer's configuration is kept: in what does not decide what is retained,
        it may be another one.
        """
        sources = sources or config.retention.source_partitions
        handle = lock(path, read_only)
        try:
            if not read_only:
                nothing = Commit(config.epoch, 0, [(0, 0)] * sources, 0, 0, None, [], 0)
                create_if_new(path, config, lambda folder: fill_database(folder, nothing, ()))
            check(path, config)
            with explained(path, "opening it"):
                database = _open_database(path / DATABASE, read_only)
                try:
                    store = cls(path, database, handle, _read_commit(path, database, config, sources), config)
                    if not read_only:
                        keep_config(path, config)
                        drop_incoming(path)
                        store._drop_unlisted()
                except BaseException:
                    database.close()
                    raise
            return store
        except FileNotFoundError as error:
            os.close(handle)
            raise StateError(f"{path}: was taken away while it was being opened; open it again") from error
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
        """Release the directory. What is not committed is lost, and exports come to their end."""
        if self._lock >= 0:
            for export in self._exports:
                export.close()
            with suppress(Exception):  # a disk that is full still is; nothing of the commit depends on this
                self._database.close()
            os.close(self._lock)
            self._lock = -1

    # -- reading ------------------------------------------------------------------------------------

    def parts(self) -> Iterator[NamesPart | PackedPart]:
        """All that counts, in the order in which it is to be applied."""
        pieces: list[Words] = []
        try:
            for generation, kind, sequence in self.commit.segments():
                body = self._segment(key_of(kind, generation.number, sequence))
                if kind == NAMES_KEY:
                    yield parsed_names(body)
                    continue
                source, more, words = parsed_users(body)
                pieces.append(words)
                if not more:
                    yield PackedPart(source, pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
                    pieces = []
                elif sequence == generation.users - 1:
                    raise DamagedRecordError("the last segment of users is cut off")
        except DamagedRecordError as error:
            raise damaged(self.path, str(error)) from None

    def _segment(self, key: bytes) -> bytes:
        with explained(self.path, "reading it"):
            stored: bytes | None = self._database.get(key)
        return self._checked(key, stored)

    def _checked(self, key: bytes, stored: bytes | None) -> bytes:
        try:
            return unsealed(key, stored)
        except DamagedRecordError as error:
            raise damaged(self.path, str(error)) from None

    def items(self) -> Iterator[tuple[str, dict[str, Any] | None]]:
        """Ids of items and their metadata (None: deleted), as of the commit or later (see the module)."""
        prefix = item_prefix(self.commit.metadata)
        with explained(self.path, "reading it"):
            entries = self._database.iter()
            entries.seek(prefix)
            while entries.valid() and (key := entries.key()).startswith(prefix):
                item = key[len(prefix) :].decode(errors="replace")
                yield item, json.loads(self._checked(key, entries.value()))
                entries.next()
            entries.status()  # an error ends the entries, and is raised here

    def export(self) -> StateExport:
        """What is committed, to be read in any one thread while this store goes on."""
        self._exports = [export for export in self._exports if not export.closed]
        with explained(self.path, "reading it"):
            self._exports.append(StateExport(self.path, meta_of(self._config), self.commit, self._database.snapshot()))
        return self._exports[-1]

    # -- writing ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._users = self._names = self._bytes = 0

    def write_users(self, source: int, words: Words) -> None:
        """Add whole packed records of a source to the generation that is being written."""
        for body in users_bodies(source, words):
            self._put_segment(USERS_KEY, self._users, body)
            self._users += 1

    def write_names(self, kind: int, start: int, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> None:
        """Add the ids from position `start` on; `data` and `offsets` are those of the whole vocabulary."""
        for body in names_bodies(kind, start, data, offsets):
            self._put_segment(NAMES_KEY, self._names, body)
            self._names += 1

    def write_items(self, items: Iterable[tuple[str, Mapping[str, object] | None]], anew: bool) -> None:
        """Store metadata of items (None: deleted); with `anew`, no other is there once this is committed."""
        if anew:
            self._metadata = self.commit.generation + 1
        for item, properties in items:
            text = json.dumps(properties, separators=(",", ":"), allow_nan=False)
            self._put(item_prefix(self._metadata) + item.encode(), text.encode())

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
            self._database.put(_COMMIT, commit.encoded(), self._synced)
            self.commit = commit
            self._begin()
            if full and self._drop_unlisted():
                self._give_space_back()

    def _put_segment(self, kind: bytes, sequence: int, body: bytes) -> None:
        self._put(key_of(kind, self.commit.generation + 1, sequence), body)
        self._bytes += len(body)

    def _put(self, key: bytes, body: bytes) -> None:
        with explained(self.path, "writing to it"):
            self._database.put(key, sealed(key, body))
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
                from_key, end_key = key_of(kind, begin, 0), key_of(kind, end, 0)
                found: Any = next(iter(self._database.keys(from_key=from_key)), end_key)
                if found < end_key:
                    self._database.delete_range(from_key, end_key)
                    dropped = True
        return dropped

    def _give_space_back(self) -> None:
        self._database.flush()
        self._unflushed_bytes = 0
        for kind, first, _ in self._counting():
            self._database.compact_range(key_of(kind, 0, 0), key_of(kind, first, 0))

    def _counting(self) -> Iterator[tuple[bytes, int, int]]:
        """Kinds of keys, and from which generation to which one they count."""
        first = min((generation.number for generation in self.commit.generations), default=0)
        yield NAMES_KEY, first, self.commit.generation
        yield USERS_KEY, first, self.commit.generation
        yield ITEMS_KEY, self.commit.metadata, self.commit.metadata


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


def fill_database(path: Path, commit: Commit, records: Iterable[tuple[bytes, bytes]]) -> None:
    """Make a database that holds these records, as they were exported, and this commit."""
    unlogged, synced = WriteOptions(), WriteOptions()
    unlogged.disable_wal = True  # type: ignore[assignment, method-assign] # the stub takes it for a method
    synced.sync = True
    database = _open_database(path, read_only=False, create=True)
    try:
        unflushed = 0
        for key, stored in records:
            database.put(key, stored, unlogged)
            unflushed += len(stored)
            if unflushed >= _FLUSH_EVERY:
                database.flush()
                unflushed = 0
        database.flush()
        database.put(_COMMIT, commit.encoded(), synced)
    finally:
        database.close()


def _read_commit(path: Path, database: Rdict, config: Config, sources: int) -> Commit:
    stored: bytes | None = database.get(_COMMIT)
    if stored is None:
        raise damaged(path, "there is no commit record")
    try:
        commit = Commit.decoded(stored)
    except DamagedRecordError as error:
        raise damaged(path, str(error)) from None
    if commit.epoch != config.epoch:
        raise damaged(path, "the commit record is of another configuration than state.json")
    if len(commit.sources) != sources:
        raise StateError(
            f"{path}: the state {owner_of(commit)}, with {len(commit.sources)} source partition(s) in it where"
            f" {sources} are expected: it cannot be used here; name another directory"
        )
    return commit
