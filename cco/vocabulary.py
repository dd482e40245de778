"""Interning: ids of users or items as dense integers, in order of first appearance."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from itertools import filterfalse, pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from cco.hashing import enter_hashes, find_ids, fnv_hashes, kafka_partitions

LIMIT = 2**31 - 2
_POSITION_BYTES = sys.getsizeof(1 << 20)  # of an int in the index
_TEXT_BYTES = sys.getsizeof("")  # of a text in ASCII, which takes a byte more for each character
MAX_ID_BYTES = 512
MAX_PARTITIONS = 2**16 - 1

T = TypeVar("T", bound=np.generic)


class VocabularyError(ValueError):
    """An id that cannot be interned, or a damaged or full vocabulary."""


def id_problem(value: str) -> str | None:
    """What is wrong with an id, as the end of a sentence ("is empty"); None if nothing is."""
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if size == 0:
        return "is empty"
    if size > MAX_ID_BYTES:
        return f"has {size} bytes; at most {MAX_ID_BYTES} are possible"
    if "\0" in value:
        return "contains a NUL byte"
    return None


class _Index(dict[str, int]):
    """Position of each id. A lookup of a new id gives it the next position, so hits cost no Python at all."""

    def __init__(self, limit: int) -> None:
        self.names: list[str] = []
        self.limit = limit

    def __missing__(self, name: str) -> int:
        problem = id_problem(name)
        if problem is not None:
            raise VocabularyError(f"the id {name[:40]!r} {problem}")
        position = len(self.names)
        if position >= self.limit:
            raise VocabularyError(f"more than {self.limit} different ids; this is the most that one vocabulary holds")
        self.names.append(name)
        self[name] = position
        return position


class Vocabulary:
    """Ids (UTF-8, 1 to 512 bytes, no NUL) and their positions 0, 1, 2, ... Not safe for interning in two threads.

    The arrays are views that stay valid and unchanged when more ids come; ask again to see the new ones.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._index = _Index(limit)
        self._size = 0  # bytes in the arena
        self._known = 0  # ids in the arena and the arrays
        self._texts = 0  # bytes of these ids as Python's text
        self._arena = np.empty(1 << 10, np.uint8)
        self._offsets = np.zeros(1 << 6, np.int64)
        self._hashes = np.empty(1 << 6, np.uint64)
        self._partitions: dict[int, npt.NDArray[np.uint16]] = {}
        self._table = np.zeros(0, np.uint64)  # of `find`, which makes and fills it
        self._tabled = 0  # ids in it

    def __len__(self) -> int:
        return len(self._index.names)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def intern(self, ids: Sequence[str]) -> npt.NDArray[np.uint32]:
        """(n,) positions of `ids`; new ones are added.

        Raises VocabularyError at an id that is not possible or when full; those before it are interned.
        """
        return np.fromiter(map(self._index.__getitem__, ids), np.uint32, len(ids))

    def unknown(self, ids: Iterable[str]) -> set[str]:
        """Those of `ids` that are not interned yet."""
        return set(filterfalse(self._index.__contains__, ids))  # set.difference would walk the whole index

    def find(self, data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """(n,) positions of the ids data[offsets[i]:offsets[i + 1]], -1 where one is not interned. Without the GIL."""
        self._catch_up()
        if self._table.size < 2 * self._known + 2:
            self._table, self._tabled = np.zeros(1 << (4 * self._known + 2).bit_length(), np.uint64), 0
        enter_hashes(self._hashes[: self._known], self._tabled, self._table)
        self._tabled = self._known
        wanted, found = np.empty(offsets.size - 1, np.uint64), np.empty(offsets.size - 1, np.int64)
        fnv_hashes(data, offsets, 0, wanted)
        find_ids(data, offsets, wanted, self._arena, self._offsets, self._table, found)
        return found

    def index(self, name: str) -> int | None:
        """Position of an id, or None. Never adds it."""
        return self._index.get(name)

    def name(self, index: int) -> str:
        """The id at a position. Raises IndexError beyond the end."""
        if index < 0:
            raise IndexError(index)
        return self._index.names[index]

    def names(self, indices: Iterable[int] | npt.NDArray[np.integer]) -> list[str]:
        """The ids at positions."""
        listed = indices.tolist() if isinstance(indices, np.ndarray) else indices
        return list(map(self._index.names.__getitem__, listed))

    @property
    def bytes_(self) -> npt.NDArray[np.uint8]:
        """UTF-8 of all ids, one after the other."""
        self._catch_up()
        return self._arena[: self._size]

    @property
    def offsets(self) -> npt.NDArray[np.int64]:
        """(len + 1,): id i is bytes_[offsets[i]:offsets[i + 1]]."""
        self._catch_up()
        return self._offsets[: self._known + 1]

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """(len,): FNV-1a 64 of the id's bytes, then SplitMix64's finaliser."""
        self._catch_up()
        return self._hashes[: self._known]

    def partitions(self, count: int) -> npt.NDArray[np.uint16]:
        """(len,): the partition, of `count`, that Kafka's Java client (murmur2) gives to each id."""
        if not 1 <= count <= MAX_PARTITIONS:
            raise ValueError(f"{count} partitions; 1 to {MAX_PARTITIONS} are possible")
        self._catch_up()
        have = self._partitions.get(count, np.empty(0, np.uint16))
        if have.size < self._known:
            grown = np.empty(self._known, np.uint16)
            grown[: have.size] = have
            kafka_partitions(self._arena, self._offsets, have.size, count, grown)
            self._partitions[count] = have = grown
        return have

    def export(self, start: int = 0) -> tuple[bytes, npt.NDArray[np.int64]]:
        """UTF-8 of the ids from `start` on, and their offsets in it ((n + 1,), the first is 0)."""
        offsets = self.offsets[start:]
        return self.bytes_[offsets[0] :].tobytes(), offsets - offsets[0]

    def extend(self, data: bytes, offsets: npt.NDArray[np.int64]) -> None:
        """Add the ids of an `export` that begins where this vocabulary ends.

        Raises VocabularyError if they are damaged or too many; the vocabulary is of no use then.
        """
        bounds, lengths = offsets.tolist(), np.diff(offsets)
        if not bounds or bounds[0] != 0 or bounds[-1] != len(data) or (lengths < 0).any():
            raise VocabularyError("damaged vocabulary: the offsets do not fit the bytes")
        if (lengths == 0).any() or (lengths > MAX_ID_BYTES).any() or b"\0" in data:
            raise VocabularyError("damaged vocabulary: an id is empty, too long or contains a NUL byte")
        try:
            if data.isascii():
                text = data.decode()
                names = [text[a:b] for a, b in pairwise(bounds)]
            else:
                names = [data[a:b].decode() for a, b in pairwise(bounds)]
        except UnicodeDecodeError as error:
            raise VocabularyError(f"damaged vocabulary: not valid UTF-8 ({error})") from None
        self._catch_up()
        before, after = len(self), len(self) + len(names)
        if after > self._index.limit:
            raise VocabularyError(f"{after} ids: one vocabulary holds {self._index.limit}")
        self._index.update(zip(names, range(before, after), strict=True))  # no call of Python's for each of them
        if len(self._index) != after:
            raise VocabularyError("damaged vocabulary: an id is there twice")
        self._index.names += names
        self._append(names, data, lengths)

    @classmethod
    def restore(cls, data: bytes, offsets: npt.NDArray[np.int64]) -> Vocabulary:
        """The vocabulary whose `export(0)` gave these. Raises VocabularyError if they are damaged."""
        vocabulary = cls()
        vocabulary.extend(data, offsets)
        return vocabulary

    def nbytes(self) -> int:
        """Bytes that the ids take: their text as UTF-8 and as Python's, index, hashes, partitions; unused room too."""
        self._catch_up()
        arrays = self._arena.nbytes + self._offsets.nbytes + self._hashes.nbytes + self._table.nbytes
        arrays += sum(partitions.nbytes for partitions in self._partitions.values())
        index = sys.getsizeof(self._index) + sys.getsizeof(self._index.names) + _POSITION_BYTES * self._known
        return arrays + index + self._texts

    def _catch_up(self) -> None:
        """Bring arena, offsets and hashes up to the ids interned since the last time."""
        count = len(self._index.names)
        if self._known == count:
            return
        names = self._index.names[self._known :]
        encoded = [name.encode() for name in names]
        self._append(names, b"".join(encoded), np.fromiter(map(len, encoded), np.int64, len(encoded)))

    def _append(self, names: list[str], data: bytes, lengths: npt.NDArray[np.int64]) -> None:
        """Take ids that are in the index already into arena, offsets and hashes."""
        if data.isascii():  # to ask each text for its size takes a tenth of the time of loading a large state
            self._texts += len(names) * _TEXT_BYTES + len(data)
        else:
            self._texts += sum(map(sys.getsizeof, names))
        size, count = self._size + len(data), self._known + len(names)
        self._arena = _grown(self._arena, self._size, size)
        self._arena[self._size : size] = np.frombuffer(data, np.uint8)
        self._offsets = _grown(self._offsets, self._known + 1, count + 1)
        self._offsets[self._known + 1 : count + 1] = self._size + np.cumsum(lengths)
        self._hashes = _grown(self._hashes, self._known, count)
        fnv_hashes(self._arena, self._offsets, self._known, self._hashes[:count])
        self._size, self._known = size, count


def _grown(array: npt.NDArray[T], used: int, needed: int) -> npt.NDArray[T]:
    """`array` if it holds `needed` elements, else a copy of its `used` ones with room to double."""
    if needed <= array.size:
        return array
    grown = np.empty(max(needed, 2 * array.size), array.dtype)
    grown[:used] = array[:used]
    return grown
