"""Pieces of the log, for rebuilds in blocks: events dealt to blocks of users, as bytes, and read again there.

A stretch of the log is parsed by itself. What it does not know, how far the time of its source partition had come
before, is added where the pieces are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from cco.batch_fold import source_partitions
from cco.batch_user import UserRule
from cco.config import Config
from cco.events import CLOCK, EventBatch
from cco.vocabulary import Vocabulary
from llr.jit import kernel

Array: TypeAlias = npt.NDArray[Any]
Ids: TypeAlias = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # UTF-8, one after the other; (n + 1,) offsets
Piece: TypeAlias = bytes | memoryview
Words: TypeAlias = npt.NDArray[np.uint32]

PIECE = 1 << 17  # events, or entries of histories, in a piece, about: some MB

# -- arrays as bytes ------------------------------------------------------------------------------------


def pack(*arrays: Array) -> bytes:
    """1-D arrays as bytes, for processes of machines alike."""
    head = [np.array([len(arrays)], np.int64).tobytes()]
    head += [array.dtype.str.encode().ljust(8) + np.array([array.size], np.int64).tobytes() for array in arrays]
    return b"".join(head + [np.ascontiguousarray(array).tobytes() for array in arrays])


def unpack(piece: Piece) -> list[Array]:
    """What `pack` packed; writeable, as kernels want it."""
    count, at = int(np.frombuffer(piece, np.int64, 1)[0]), 8
    told = []
    for _ in range(count):
        told.append((bytes(piece[at : at + 8]).decode().strip(), int(np.frombuffer(piece, np.int64, 1, at + 8)[0])))
        at += 16
    found = []
    for kind, size in told:
        found.append(np.frombuffer(piece, np.dtype(kind), size, at).copy())
        at += found[-1].nbytes
    return found


def chosen_ids(vocabulary: Vocabulary, chosen: npt.NDArray[np.integer]) -> Ids:
    """The ids at positions, in that order."""
    data, offsets = vocabulary.bytes_, vocabulary.offsets
    bounds = np.zeros(chosen.size + 1, np.int64)
    np.cumsum(np.diff(offsets)[chosen], out=bounds[1:])
    found = np.empty(int(bounds[-1]), np.uint8)
    _copy_ids(data, offsets, chosen.astype(np.int64), bounds, found)
    return found, bounds


def interned(vocabulary: Vocabulary, ids: Ids) -> Words:
    """Positions of ids, new ones added."""
    data, bounds = ids[0].tobytes(), ids[1].tolist()
    if data.isascii():
        text = data.decode()
        return vocabulary.intern([text[a:b] for a, b in pairwise(bounds)])
    return vocabulary.intern([data[a:b].decode() for a, b in pairwise(bounds)])


# -- events to blocks of users --------------------------------------------------------------------------


class Dealer:
    """Deals the events of one stretch of the log to `blocks` blocks of users for each source partition.

    `source`: the partition whose log it is; None for files, whose clock events are of every partition. Block b is of
    the source partition b // blocks. Batches are over the vocabularies `users` and `items`, which begin anew whenever
    all was dealt, so that a stretch may be of any length.
    """

    def __init__(self, config: Config, blocks: int, source: int | None) -> None:
        self.users, self.items = Vocabulary(), Vocabulary()
        self._config = config
        self._blocks = blocks
        self._source = -1 if source is None else source
        self._windowed = UserRule.of(config).visitor_window >= 0
        self._held: list[EventBatch] = []
        self._marks: list[Words] = []
        self.latest = np.zeros(config.retention.source_partitions, np.uint32)  # (sources,) largest time so far, seconds

    def add(self, batch: EventBatch) -> None:
        """The next events of the stretch."""
        marks = np.empty(len(batch), np.uint32)
        of_user = source_partitions(self._config, self.users)
        _mark(batch.users, batch.types, batch.times, of_user, self._source, self.latest, marks)
        kept = batch.types != CLOCK
        if not kept.all():
            batch = EventBatch(batch.users[kept], batch.items[kept], batch.types[kept], batch.times[kept])
            marks = marks[kept]
        self._held.append(batch)
        self._marks.append(marks)

    @property
    def held(self) -> int:
        """Events that are not dealt yet."""
        return sum(map(len, self._held))

    def dealt(self) -> Iterator[tuple[int, bytes]]:
        """(block, piece): all that is held, and is not any more."""
        batch = EventBatch.join(self._held)
        marks = np.concatenate([np.zeros(0, np.uint32), *self._marks])
        self._held, self._marks = [], []
        blocks = np.uint64(self._blocks)
        of_user = source_partitions(self._config, self.users) * blocks + self.users.hashes % blocks
        of_event = of_user.astype(np.uint32)[batch.users]
        order = np.argsort(of_event, kind="stable")
        found, starts = np.unique(of_event[order], return_index=True)
        for block, (begin, end) in zip(found.tolist(), pairwise([*starts.tolist(), order.size]), strict=True):
            at = order[begin:end]
            part = EventBatch(batch.users[at], batch.items[at], batch.types[at], batch.times[at])
            yield block, self._piece(part, marks[at] if self._windowed else marks[:0])
        self.users, self.items = Vocabulary(), Vocabulary()

    def _piece(self, part: EventBatch, marks: Words) -> bytes:
        """Some events with the ids that they speak of, numbered anew."""
        users, user_codes = np.unique(part.users, return_inverse=True)
        about = part.types >= 0  # others have no item
        items, codes = np.unique(part.items[about], return_inverse=True)
        item_codes = np.zeros(len(part), np.uint32)
        item_codes[about] = codes
        return pack(
            *chosen_ids(self.users, users), *chosen_ids(self.items, items),
            user_codes.astype(np.uint32), item_codes, part.types, part.times, marks,
        )  # fmt: skip


def events_of(piece: Piece, users: Vocabulary, items: Vocabulary, before: int) -> EventBatch:
    """The events of a piece, with clock events where others than these had moved the time of their partition on.

    `before`: how far it had come when the stretch began, in epoch seconds.
    """
    user_text, user_bounds, item_text, item_bounds, user_codes, item_codes, types, times, marks = unpack(piece)
    user_at = interned(users, (user_text, user_bounds))
    item_at = np.append(interned(items, (item_text, item_bounds)), np.uint32(0))  # of no item: any will do
    batch = EventBatch(user_at[user_codes], item_at[item_codes], types, times)
    if marks.size == 0:
        return batch
    marks = np.maximum(marks, np.uint32(before))
    known = np.maximum(np.concatenate(([0], marks[:-1])), times)
    at = np.flatnonzero(marks > known)
    return EventBatch(
        np.insert(batch.users, at, 0), np.insert(batch.items, at, 0), np.insert(types, at, CLOCK),
        np.insert(times, at, marks[at]),
    )  # fmt: skip


# -- kernels ------------------------------------------------------------------------------------------


@kernel
def _copy_ids(data: Any, offsets: Any, chosen: Any, bounds: Any, out: Any) -> None:
    for k in range(chosen.size):
        begin = offsets[chosen[k]]
        for b in range(bounds[k + 1] - bounds[k]):
            out[bounds[k] + b] = data[begin + b]


@kernel
def _mark(users: Any, types: Any, times: Any, of_user: Any, source: Any, latest: Any, out: Any) -> None:
    """out[e]: the largest time so far of the event's source partition; `latest` (sources,) goes on.

    A clock event is of the partition `source`, or of every one (-1).
    """
    for e in range(types.size):
        if types[e] == CLOCK:
            for p in range(latest.size):
                if source in (-1, p):
                    latest[p] = max(latest[p], times[e])
            out[e] = times[e]
            continue
        p = of_user[users[e]]
        latest[p] = max(latest[p], times[e])
        out[e] = latest[p]
