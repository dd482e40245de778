"""Many small lists of uint32 in one arena: what histories and the users of items are kept in.

List `key` is the `length` values from `start` in `data`, as (start, length) = `head[key]`; `extra` may
hold a second value beside each (a time, a position). Blocks are powers of two, so a list of n entries
takes the first power of two from n on; a block that is given up goes on the free chain of its size and is
split when a smaller one is wanted. Order within a list means nothing: removal moves the last entry.

The kernels never allocate: they say beforehand (`has_room`) when the arena has to be grown by `grown`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cco.arrays import longer, zeros
from llr.jit import kernel

ARENA_LIMIT = 2**32 - 2  # starts are uint32; the largest value ends a free chain
_NO_BLOCK = 2**32 - 1
_CLASSES = 33


class LimitError(RuntimeError):
    """A structure reached the largest size that its integers can address: use more item partitions."""


class Lists(NamedTuple):
    """The arrays of all lists; kernels change them in place."""

    head: npt.NDArray[np.uint32]  # (keys, 2): start, length
    data: npt.NDArray[np.uint32]  # (arena,)
    extra: npt.NDArray[np.uint32]  # (arena,), or (0,) without extras
    top: npt.NDArray[np.int64]  # (1,): first slot never used
    free: npt.NDArray[np.int64]  # (33,): first free block of 2**c slots, or _NO_BLOCK


@kernel
def capacity(length: Any) -> Any:
    """Slots of the block of a list of `length` entries: the next power of two, 0 for none."""
    if length == 0:
        return 0
    size = 1
    while size < length:
        size <<= 1
    return size


def empty(keys: int, arena: int, extras: bool) -> Lists:
    """Lists 0 to `keys` - 1, all empty."""
    return Lists(
        np.zeros((keys, 2), np.uint32),
        zeros(arena, np.uint32),
        zeros(arena if extras else 0, np.uint32),
        np.zeros(1, np.int64),
        _no_blocks(),
    )


def with_keys(lists: Lists, keys: int) -> Lists:
    """The same lists with room for at least `keys` keys."""
    have = lists.head.shape[0]
    if keys <= have:
        return lists
    longer_head = longer(lists.head.reshape(-1), 2 * max(keys, have + have // 2, 1024))
    return lists._replace(head=longer_head.reshape(-1, 2))


def grown(lists: Lists, need: int) -> Lists:
    """The same lists with at least `need` unused slots: packed anew if that frees half the arena, else longer, and
    in place if it is large.

    Blocks are split and never merged, so lists that shrink and grow again leave blocks that nobody fits
    into; packing keeps the arena within twice what the lists take, whatever happened before.
    Raises LimitError at 2**32 - 2 slots.
    """
    top, have = int(lists.top[0]), lists.data.size
    if have - top >= need:
        return lists
    live = int(_slots(lists.head))
    packed = live <= top // 2
    used = live if packed else top
    size = min(max(used + need, used + used // 2), ARENA_LIMIT)
    if size - used < need:
        raise LimitError(
            f"an arena of {ARENA_LIMIT} entries is full: spread the users over more source partitions, "
            "or the items over more item partitions"
        )
    extras = size if lists.extra.size else 0
    if packed:
        data, extra = zeros(size, np.uint32), zeros(extras, np.uint32)
        _pack(lists, data, extra)
        return lists._replace(data=data, extra=extra, top=np.full(1, live, np.int64), free=_no_blocks())
    return lists._replace(data=longer(lists.data, size), extra=longer(lists.extra, extras))


def _no_blocks() -> npt.NDArray[np.int64]:
    return np.full(_CLASSES, _NO_BLOCK, np.int64)


@kernel
def _slots(head: Any) -> Any:
    """Slots in the blocks of all lists."""
    total = np.int64(0)
    for key in range(head.shape[0]):
        total += capacity(np.int64(head[key, 1]))
    return total


@kernel
def _pack(lists: Any, data: Any, extra: Any) -> None:
    """Copy every list to the front of a new arena, one block behind the other."""
    top = np.int64(0)
    for key in range(lists.head.shape[0]):
        start, length = np.int64(lists.head[key, 0]), np.int64(lists.head[key, 1])
        for k in range(length):
            data[top + k] = lists.data[start + k]
        if extra.size > 0:
            for k in range(length):
                extra[top + k] = lists.extra[start + k]
        lists.head[key, 0] = np.uint32(top)
        top += capacity(length)


@kernel
def _size_class(size: Any) -> Any:
    c = 0
    while (1 << c) < size:
        c += 1
    return c


@kernel
def has_room(lists: Any, key: Any) -> Any:
    """Whether one more entry fits into list `key` (free chains are not counted on)."""
    length = np.int64(lists.head[key, 1])
    if length & (length - 1) != 0:  # not a power of two: the block has a free slot
        return True
    return lists.top[0] + max(2 * length, 1) <= lists.data.size


@kernel
def _give_up(lists: Any, start: Any, c: Any) -> Any:
    lists.data[start] = np.uint32(lists.free[c])
    lists.free[c] = start


@kernel
def _take(lists: Any, c: Any) -> Any:
    """Start of a block of 2**c slots: from its chain, split off a larger free one, or fresh."""
    for larger in range(c, _CLASSES):
        start = lists.free[larger]
        if start != _NO_BLOCK:
            lists.free[larger] = np.int64(lists.data[start])
            for half in range(larger - 1, c - 1, -1):
                _give_up(lists, start + (np.int64(1) << half), half)
            return start
    start = lists.top[0]
    lists.top[0] = start + (np.int64(1) << c)
    return start


@kernel
def push(lists: Any, key: Any, value: Any, extra: Any) -> Any:
    """Append an entry; returns its slot. The caller has made sure of `has_room`."""
    start = np.int64(lists.head[key, 0])
    length = np.int64(lists.head[key, 1])
    if length & (length - 1) == 0:  # full block (or none)
        old_class = _size_class(max(length, 1))
        c = old_class + 1 if length > 0 else 0
        to = _take(lists, c)
        with_extra = lists.extra.size > 0
        for k in range(length):
            lists.data[to + k] = lists.data[start + k]
        if with_extra:
            for k in range(length):
                lists.extra[to + k] = lists.extra[start + k]
        if length > 0:
            _give_up(lists, start, old_class)
        start = to
        lists.head[key, 0] = np.uint32(start)
    lists.data[start + length] = value
    if lists.extra.size > 0:
        lists.extra[start + length] = extra
    lists.head[key, 1] = np.uint32(length + 1)
    return length


@kernel
def drop(lists: Any, key: Any, slot: Any) -> Any:
    """Remove the entry at `slot`: the last one moves there, and half of a block no longer needed is freed."""
    start = np.int64(lists.head[key, 0])
    last = np.int64(lists.head[key, 1]) - 1
    lists.data[start + slot] = lists.data[start + last]
    if lists.extra.size > 0:
        lists.extra[start + slot] = lists.extra[start + last]
    lists.head[key, 1] = np.uint32(last)
    if last == 0:
        _give_up(lists, start, 0)
    elif last & (last - 1) == 0:  # `last` entries fill half of the block
        _give_up(lists, start + last, _size_class(last))


@kernel
def clear(lists: Any, key: Any) -> Any:
    """Empty list `key` and free its block."""
    length = np.int64(lists.head[key, 1])
    if length > 0:
        _give_up(lists, np.int64(lists.head[key, 0]), _size_class(length))
        lists.head[key, 1] = np.uint32(0)
