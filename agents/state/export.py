"""A committed state, to be read by another thread while its store goes on: for copies of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

from rocksdict import Snapshot

from agents.state.errors import StateClosed, damaged, explained
from agents.state.records import Commit, DamagedRecordError, item_prefix, key_of, unsealed

T = TypeVar("T")


class StateExport:
    """The records of one commit, whatever the store commits after it. For one thread, any one.

    Closing the store closes it, also in the middle of reading. It keeps space on the disk from being used
    again, so do not keep it for longer than a copy takes.
    """

    def __init__(self, path: Path, meta: Mapping[str, Any], commit: Commit, snapshot: Snapshot) -> None:
        self.path, self.commit = path, commit
        self.meta = meta  # what the state says of itself
        self._snapshot: Snapshot | None = snapshot
        self._entries: Any = None
        self._reading = threading.Lock()  # so that closing waits for a read, and for nothing else

    @property
    def closed(self) -> bool:
        """Whether nothing can be read any more."""
        return self._snapshot is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it; from any thread."""
        with self._reading:
            self._snapshot = self._entries = None

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values as they are stored, in the order in which `Commit.segments` lists them, then metadata.

        Raises StateDamaged if one is missing or has another checksum, StateClosed when the store was closed.
        """
        for generation, kind, sequence in self.commit.segments():
            key = key_of(kind, generation.number, sequence)
            yield key, self._checked(key, self._read(partial(_get, key=key)))
        entry = self._read(self._first_item)
        while entry is not None:
            yield entry[0], self._checked(*entry)
            entry = self._read(lambda _: self._item_after())

    def verify(self) -> None:
        """Read everything. Raises StateDamaged."""
        for _ in self.records():
            pass

    def _first_item(self, snapshot: Snapshot) -> tuple[bytes, bytes] | None:
        self._entries = snapshot.iter()
        self._entries.seek(item_prefix(self.commit.metadata))
        return self._item()

    def _item_after(self) -> tuple[bytes, bytes] | None:
        self._entries.next()
        return self._item()

    def _item(self) -> tuple[bytes, bytes] | None:
        entries = self._entries
        if not entries.valid():
            entries.status()  # an error ends the entries, and is raised here
            return None
        key: bytes = entries.key()
        return (key, entries.value()) if key.startswith(item_prefix(self.commit.metadata)) else None

    def _read(self, read: Callable[[Snapshot], T]) -> T:
        with self._reading, explained(self.path, "reading it"):
            if self._snapshot is None:
                raise StateClosed(f"{self.path}: the state was closed while it was being copied")
            return read(self._snapshot)

    def _checked(self, key: bytes, stored: bytes | None) -> bytes:
        try:
            unsealed(key, stored)
        except DamagedRecordError as error:
            raise damaged(self.path, str(error)) from None
        assert stored is not None
        return stored


def _get(snapshot: Snapshot, key: bytes) -> bytes | None:
    try:
        found: bytes = snapshot[key]
    except Exception as error:  # rocksdict has no other way to say so
        if str(error) == "key not found":
            return None
        raise
    return found
