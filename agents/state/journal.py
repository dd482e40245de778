"""The log of accepted records behind an engine that is fed over HTTP: what was acknowledged survives any crash.

A line is written for each record, and synced before the record is acknowledged. Segments are named by the
position of their first record; those that the committed state stands for are removed. After a crash the records
from the state's position on are applied again, exactly as they were: with the time at which they were accepted.

FOLDER/00000000000000000042.jsonl    {"position": 42, "durable": 40, "at": 1700000000, "record": {...}}

`durable` is the first position that was not synced yet when the line was written. So a broken line means nothing
if all that follows was written together with it, for then nobody was told that it was accepted; otherwise
something that was promised is damaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from agents.state.directory import sync_folder
from agents.state.errors import StateError, explained

SEGMENT_BYTES = 16 << 20
READ_TOGETHER = 4_096  # lines

_SUFFIX = ".jsonl"


class Entry(msgspec.Struct, gc=False):
    """One accepted record. `at`: epoch seconds when it was accepted, which is its time if it names none."""

    position: int
    durable: int
    at: int
    record: dict[str, Any]


_decode = msgspec.json.Decoder(Entry).decode
_encode = msgspec.json.Encoder().encode


class Journal:
    """One writer's journal, as of `start`, the position of the state. First `read` it to its end, then `append`.

    Every method raises StateError, one readable line. After a failed `append` none of its records count; whether
    the next one can be tried is what `failed` says (False: it can).
    """

    def __init__(self, folder: Path, start: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._folder, self._segment_bytes = folder, segment_bytes
        self.position = start
        self.failed = False
        self._file = -1
        self._size = 0  # of the last segment
        with explained(folder, "opening the journal"):
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
            self._segments = sorted(int(path.stem) for path in folder.glob(f"*{_SUFFIX}"))
        self.committed(start)
        if self._segments and self._segments[0] > start:
            raise StateError(
                f"{folder}: the journal begins at record {self._segments[0]}, but the state stands at {start}: they do"
                " not belong together; put back the state directory as it was, or start with a new one"
            )

    def read(self) -> Iterator[list[Entry]]:
        """The records after the state, some at a time; `position` follows. Cuts off what was never acknowledged."""
        start = self.position
        for first, last in pairwise([*self._segments, -1]):
            expected, found, broken_at = first, list[Entry](), -1
            with explained(self._path(first), "reading the journal"), self._path(first).open("rb") as file:
                size = 0
                for line in file:
                    entry = _entry(line)
                    if broken_at >= 0:
                        if entry is not None and entry.durable > expected:
                            raise self._damaged(first, expected)
                        continue
                    if entry is None or entry.position != expected:
                        broken_at = size
                        continue
                    size += len(line)
                    expected += 1
                    if entry.position >= start:
                        found.append(entry)
                    if len(found) == READ_TOGETHER:
                        self.position = expected
                        yield found
                        found = []
            if last >= 0 and (broken_at >= 0 or expected != last):
                raise self._damaged(first, expected)
            self.position = max(expected, start)
            if found:
                yield found
            if broken_at >= 0:
                with explained(self._path(first), "cutting the journal"):
                    os.truncate(self._path(first), broken_at)
            # where a journal ends before its state, as none of ours does, a new segment begins at the state
            self._size = size if expected == self.position else self._segment_bytes

    def append(self, at: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records that are accepted at `at` (epoch seconds); they are durable when this returns."""
        if self.failed:
            raise StateError(f"{self._folder}: writing the journal failed before: start again")
        lines = [
            _encode({"position": self.position + k, "durable": self.position, "at": at, "record": record}) + b"\n"
            for k, record in enumerate(records)
        ]
        with explained(self._folder, "writing the journal"):
            self._open()
            self._write(b"".join(lines))
        self.position += len(records)

    def committed(self, position: int) -> None:
        """A state is durable that stands for everything before `position`: older segments are of no use."""
        with explained(self._folder, "removing old segments of the journal"):
            while len(self._segments) > 1 and self._segments[1] <= position:
                self._path(self._segments[0]).unlink()
                del self._segments[0]

    def close(self, committed: int) -> None:
        """End. What a durable state stands for, which is everything before `committed`, is removed."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        self.committed(committed)
        if committed >= self.position and len(self._segments) == 1 and not self.failed:
            self._path(self._segments.pop()).unlink(missing_ok=True)

    def _open(self) -> None:
        """Have a segment to write to: the last one, unless it is full."""
        full = self._size >= self._segment_bytes or not self._segments
        if self._file >= 0 and not full:
            return
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        if full:
            self._file = os.open(self._path(self.position), flags | os.O_CREAT | os.O_EXCL, 0o600)
            self._segments.append(self.position)
            self._size = 0
            sync_folder(self._folder)
        else:
            self._file = os.open(self._path(self._segments[-1]), flags)

    def _write(self, data: bytes) -> None:
        """Write and sync all of it, or leave the segment as it was."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            self.failed = True  # until the part that was written is gone
            os.ftruncate(self._file, self._size)
            self.failed = False
            raise
        try:
            os.fdatasync(self._file)
        except OSError:
            self.failed = True  # nobody knows what is on the disk, and asking again would not tell either
            raise
        self._size += len(data)

    def _path(self, first: int) -> Path:
        return self._folder / f"{first:020}{_SUFFIX}"

    def _damaged(self, first: int, position: int) -> StateError:
        return StateError(
            f"{self._path(first)}: the journal is damaged: record {position} was acknowledged and cannot be read;"
            " restore the state directory from a copy, or remove this file and lose the events in it"
        )


def _entry(line: bytes) -> Entry | None:
    """What a line says; None if it is broken or not complete."""
    if not line.endswith(b"\n"):
        return None
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
