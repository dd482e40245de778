"""A copy of a committed state as one stream of bytes: what a shared copy holds.

    magic, version
    record "header"    JSON: what the state says of itself, and its commit record
    record ...         each of the state, as it is stored, checksum included; see `StateExport.records`
    record "end"       how many these were, and their bytes

A record is the lengths of its key and its value, a checksum of these lengths and the key, the key, and the
value, which begins with a checksum of key and value.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, Protocol

from agents.state.errors import StateDamaged, share_explained
from agents.state.records import Commit, DamagedRecordError, item_prefix, key_of, sealed, unsealed

_MAGIC, _VERSION = b"cco state copy", 1
_START, _LENGTHS, _CRC, _END = struct.Struct("<14sH"), struct.Struct("<HI"), struct.Struct("<I"), struct.Struct("<QQ")
_HEADER_KEY, _END_KEY = b"header", b"end"
_AT_ONCE = 1 << 20  # bytes asked for


class Exported(Protocol):
    """A state that a copy can be made of: the one of a store, or a seed."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """What the state says of itself."""

    @property
    def commit(self) -> Commit:
        """What counts of it."""

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values as they are stored, in the order of `Commit.segments`, then metadata."""


def write_copy(file: BinaryIO, export: Exported) -> None:
    """Write a state. Raises StateError for what concerns the state, and whatever `file` does."""
    header = {"state": export.meta, "commit": export.commit.encoded().hex()}
    file.write(_START.pack(_MAGIC, _VERSION))
    _write(file, _HEADER_KEY, sealed(_HEADER_KEY, json.dumps(header).encode()))
    count = size = 0
    for key, stored in export.records():
        _write(file, key, stored)
        count, size = count + 1, size + len(stored)
    _write(file, _END_KEY, sealed(_END_KEY, _END.pack(count, size)))


def _write(file: BinaryIO, key: bytes, stored: bytes) -> None:
    lengths = _LENGTHS.pack(len(key), len(stored))
    file.write(lengths + _CRC.pack(zlib.crc32(key, zlib.crc32(lengths))) + key + stored)


class CopyReader:
    """Reads a copy from an open file, named `where` in errors.

    Raises StateDamaged if it is no copy, or not a whole and good one, and ShareError if reading fails.
    """

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file, self._where = file, where
        magic, version = _START.unpack(self._read(_START.size))
        if magic != _MAGIC:
            raise self._damaged("it does not begin as a copy of a state does")
        if version != _VERSION:
            raise self._damaged(f"it has version {version} of the format, and {_VERSION} is known here")
        key, stored = self._record()
        try:
            header = json.loads(unsealed(key, stored))
            self.meta: dict[str, Any] = header["state"]  # what the state says of itself
            self.commit = Commit.decoded(bytes.fromhex(header["commit"]))
        except (LookupError, TypeError, ValueError) as error:
            raise self._damaged(f"its header cannot be used ({error})") from None
        if self.commit.epoch != self.meta.get("epoch"):
            raise self._damaged("its commit record is of another configuration than its header")

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """The records of the state, all of them and each of them checked; an error comes at the latest at the end."""
        count = size = 0
        for expected in self._expected():
            key, stored = self._record()
            if expected is None and key == _END_KEY:
                break
            if key != expected and (expected or not key.startswith(item_prefix(self.commit.metadata))):
                raise self._damaged("its records are not in order")
            self._check(key, stored)
            yield key, stored
            count, size = count + 1, size + len(stored)
        if self._check(_END_KEY, stored) != _END.pack(count, size):
            raise self._damaged("records are missing")
        if self._some(1):
            raise self._damaged("it goes on after its end")

    def _expected(self) -> Iterator[bytes | None]:
        """The key of each segment; then None, for metadata or the end."""
        for generation, kind, sequence in self.commit.segments():
            yield key_of(kind, generation.number, sequence)
        while True:
            yield None

    def _record(self) -> tuple[bytes, bytes]:
        head = self._read(_LENGTHS.size + _CRC.size)
        of_key, of_value = _LENGTHS.unpack_from(head)
        key = self._read(of_key)
        if _CRC.unpack_from(head, _LENGTHS.size)[0] != zlib.crc32(key, zlib.crc32(head[: _LENGTHS.size])):
            raise self._damaged("a key has another checksum")
        return key, self._read(of_value)

    def _check(self, key: bytes, stored: bytes) -> bytes:
        try:
            return unsealed(key, stored)
        except DamagedRecordError as error:
            raise self._damaged(str(error)) from None

    def _read(self, size: int) -> bytes:
        """Exactly so many bytes."""
        found = self._some(size)
        if len(found) == size:
            return found
        parts = [found]
        while found and (size := size - len(found)):
            parts.append(found := self._some(size))
        if size:
            raise self._damaged("it is cut off")
        return b"".join(parts)

    def _some(self, size: int) -> bytes:
        with share_explained(self._where, "reading it"):
            return self._file.read(min(size, _AT_ONCE))

    def _damaged(self, what: str) -> StateDamaged:
        return StateDamaged(self._where, what, "remove this copy")
