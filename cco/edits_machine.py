"""The kernels behind `cco.edits_columns`: packing rows into columns, and reading positions and values again."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cco.edits import REMOVE
from cco.vocabulary import MAX_ID_BYTES
from llr.jit import inlined, kernel

_NEXT_ID, _NEXT_POSITION, _POSITIONS = 0, 1, 2  # what a varint says; see `cco.edits_columns`
OTHER = 128  # in the byte of a row: it names another user or item than the row before
MAX_VARINT = 5  # bytes, of 32 bits
MAX_ROW_BYTES = 1 + 2 * (MAX_VARINT + MAX_ID_BYTES + 1)

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Integers = npt.NDArray[np.int64]


class Ids(NamedTuple):
    """The users, or the items, that a message names."""

    table: Words  # open addressing by index: position + 1; 0 where free. A power of two, half empty
    indices: Words  # (positions,) in the vocabulary
    registers: Integers  # how many, the position named last, bytes
    offsets: Integers  # of the vocabulary


class Rows(NamedTuple):
    """The columns of the edits, the counts or the priors."""

    kinds: Bytes  # a byte a row
    first: Bytes  # varints: positions of users (edits) or items
    second: Bytes  # varints: positions of items (edits) or values
    ends: Integers  # (3,) how much of each is used


class Part(NamedTuple):
    """What is packed so far of one message."""

    users: Ids
    items: Ids
    edits: Rows
    counts: Rows
    priors: Rows


class Told(NamedTuple):
    """The columns of Edits, contiguous; values as unsigned numbers."""

    op: Bytes
    indicator: Bytes
    user: Words
    item: Words
    count_indicator: Bytes
    count_item: Words
    count_value: Words
    prior: Bytes
    prior_item: Words
    prior_value: Words  # of the prior: 2 v, or -2 v - 1 if negative, so that small ones stay short


NUMBER, NAMED_LAST, ID_BYTES = range(3)
_BAD = -1


@kernel
def _name(ids: Any, index: Any) -> Any:
    """The varint that names a vocabulary's index here; _BAD if the vocabulary has no such index."""
    if index >= ids.offsets.size - 1:
        return np.int64(_BAD)
    mask, registers = ids.table.size - 1, ids.registers
    slot = np.int64(np.uint64(index) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) & mask
    while ids.table[slot] != 0 and ids.indices[np.int64(ids.table[slot]) - 1] != index:
        slot = (slot + 1) & mask
    before, position = registers[NAMED_LAST], np.int64(ids.table[slot]) - 1
    if position < 0:
        position = registers[NUMBER]
        ids.indices[position] = np.uint32(index)
        ids.table[slot] = np.uint32(position + 1)
        registers[NUMBER] = position + 1
        registers[ID_BYTES] += ids.offsets[index + 1] - ids.offsets[index] + 1
        code = np.int64(_NEXT_ID)
    else:
        code = np.int64(_NEXT_POSITION) if position == before + 1 else position + _POSITIONS
    registers[NAMED_LAST] = position
    return code


@inlined
def _write(column: Any, ends: Any, which: Any, value: Any) -> None:
    at, rest = ends[which], value
    while rest >= 128:
        column[at] = np.uint8(rest & 127 | 128)
        rest >>= 7
        at += 1
    column[at] = np.uint8(rest)
    ends[which] = at + 1


@inlined
def _end_row(rows: Any, kind: Any) -> None:
    rows.kinds[rows.ends[0]] = np.uint8(kind)
    rows.ends[0] += 1


@inlined
def _size(rows: Any) -> Any:
    return rows.ends[0] + rows.ends[1] + rows.ends[2]


@inlined
def _is_full(part: Any, room: Any) -> Any:
    """Whether one more row might not fit."""
    ids = part.users.registers[ID_BYTES] + part.items.registers[ID_BYTES]
    return ids + _size(part.edits) + _size(part.counts) + _size(part.priors) + MAX_ROW_BYTES > room


@kernel
def _pack_edits(part: Any, told: Any, done: Any, room: Any) -> Any:
    before = np.int64(-1)
    for e in range(done[0], told.op.size):
        if _is_full(part, room):
            break
        user, op, other = np.int64(told.user[e]), np.int64(told.op[e]), 0
        if user != before:
            code = _name(part.users, user)
            if code == _BAD:
                return False
            _write(part.edits.first, part.edits.ends, 1, code)
            before, other = user, OTHER
        if op <= REMOVE:
            code = _name(part.items, np.int64(told.item[e]))
            if code == _BAD:
                return False
            _write(part.edits.second, part.edits.ends, 2, code)
        _end_row(part.edits, op | np.int64(told.indicator[e]) << 2 | other)
        done[0] = e + 1
    return True


@kernel
def _pack_values(part: Any, rows: Any, kinds: Any, of_items: Any, values: Any, done: Any, which: Any, room: Any) -> Any:
    before = np.int64(-1)
    for e in range(done[which], kinds.size):
        if _is_full(part, room):
            break
        item, other = np.int64(of_items[e]), 0
        if item != before:
            code = _name(part.items, item)
            if code == _BAD:
                return False
            _write(rows.first, rows.ends, 1, code)
            before, other = item, OTHER
        _write(rows.second, rows.ends, 2, np.int64(values[e]))
        _end_row(rows, np.int64(kinds[e]) | other)
        done[which] = e + 1
    return True


@kernel
def pack_rows(part: Any, told: Any, done: Any, room: Any) -> Any:
    """Pack rows from `done` (3,) on, moving it, while they surely fit in `room` bytes.

    Returns False at a user or item that is not in the vocabularies.
    """
    return (
        _pack_edits(part, told, done, room)
        and _pack_values(part, part.counts, told.count_indicator, told.count_item, told.count_value, done, 1, room)
        and _pack_values(part, part.priors, told.prior, told.prior_item, told.prior_value, done, 2, room)
    )


@kernel
def copy_ids(data: Any, offsets: Any, indices: Any, out: Any) -> None:
    at = 0
    for k in range(indices.size):
        for byte in range(offsets[indices[k]], offsets[indices[k] + 1]):
            out[at] = data[byte]
            at += 1
        out[at] = 0
        at += 1


@inlined
def _read(data: Any, cursor: Any) -> Any:
    """The varint at cursor[0], or _BAD."""
    value, found, at = np.int64(0), np.int64(_BAD), cursor[0]
    for k in range(min(MAX_VARINT, data.size - at)):
        byte = np.int64(data[at + k])
        value |= (byte & 127) << (7 * k)
        if byte < 128:
            cursor[0] = at + k + 1
            if value <= 0xFFFFFFFF:
                found = value
            break
    return found


@kernel
def read_positions(data: Any, cursor: Any, registers: Any, names: Any, positions: Any) -> Any:
    """A position for every row; one that names nothing (`names` (n,) bool) has that of the row before.

    Returns whether all are positions of ids that were named by then.
    """
    last = np.int64(0)
    for e in range(names.size):
        if names[e]:
            code = _read(data, cursor)
            if code == _NEXT_ID:
                last = registers[NUMBER]
                registers[NUMBER] = last + 1
            elif code == _NEXT_POSITION:
                last = registers[NAMED_LAST] + 1
            else:
                last = code - _POSITIONS
            if code == _BAD or last >= registers[NUMBER]:
                return False
            registers[NAMED_LAST] = last
        positions[e] = np.uint32(last)
    return True


@kernel
def read_values(data: Any, cursor: Any, values: Any) -> Any:
    """A uint32 for every row. Returns whether all are there."""
    for e in range(values.size):
        value = _read(data, cursor)
        if value == _BAD:
            return False
        values[e] = np.uint32(value)
    return True
