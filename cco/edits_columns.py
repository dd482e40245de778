"""The body of an edits message: eight sizes, the ids used in it, and columns (little endian throughout).

Ids stand in order of first appearance, each ended by a NUL byte, and columns name them by position, so a
message says all by itself. A position is a varint: 0 is the next id that was not named yet, 1 the one
after the position named last, p + 2 any other position p; a flag in the byte of a row says that it names
another user (edits) or item (counts, priors) than the row before. On real edits of two data sets, in
ranges of 2,000 and of 16,384 events, this takes a fifth less than columns of fixed width.

Nothing is compressed here. Producers compress batches: zstd halves these bytes, in half of the time
that zlib takes for the same, and one compressor after another gains nothing.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from cco.config import Config
from cco.edits import Edits
from cco.edits_machine import (
    ID_BYTES,
    MAX_VARINT,
    NUMBER,
    OTHER,
    Bytes,
    Ids,
    Integers,
    Part,
    Rows,
    Told,
    Words,
    copy_ids,
    pack_rows,
    read_positions,
    read_values,
)
from cco.vocabulary import Vocabulary, VocabularyError

SIZES = struct.Struct("<8I")  # members, users, their bytes, items, their bytes, edits, counts, priors
_MOST = 2**31 - 1


class MessageError(ValueError):
    """Bytes that are no edits message that can be used; the text says why."""


# -- writing ------------------------------------------------------------------------------------------


def pack(edits: Edits, users: Vocabulary, items: Vocabulary, room: int) -> list[bytes]:
    """The edits as one or more bodies of at most `room` bytes, SIZES.size + MAX_ROW_BYTES or more.

    Every row must be possible (`op`, `indicator` below 32, `prior` below 128). Raises ValueError where a user
    or item is not in the vocabularies.
    """
    room -= SIZES.size
    told = _told(edits)
    total, done = np.array([told.op.size, told.count_value.size, told.prior_value.size]), np.zeros(3, np.int64)
    bodies: list[bytes] = []
    while not bodies or (done < total).any():
        part, before = _new_part((total - done).tolist(), users, items, room), done.copy()
        if not pack_rows(part, told, done, room):
            raise ValueError("edits name users or items beyond the vocabularies: these belong to another stage")
        bodies.append(_body(edits.members, part, users, items, (done - before).tolist()))
    return bodies


def _told(edits: Edits) -> Told:
    """All in one layout, so that kernels compile once."""
    values = edits.prior_value
    return Told(
        op=np.ascontiguousarray(edits.op),
        indicator=np.ascontiguousarray(edits.indicator),
        user=np.ascontiguousarray(edits.user),
        item=np.ascontiguousarray(edits.item),
        count_indicator=np.ascontiguousarray(edits.count_indicator),
        count_item=np.ascontiguousarray(edits.count_item),
        count_value=np.ascontiguousarray(edits.count).view(np.uint32),
        prior=np.ascontiguousarray(edits.prior),
        prior_item=np.ascontiguousarray(edits.prior_item),
        prior_value=np.ascontiguousarray(values << 1 ^ values >> 31).view(np.uint32),
    )


def _new_part(rows: list[int], users: Vocabulary, items: Vocabulary, room: int) -> Part:
    """An empty message for at most `rows` (3,) and `room` bytes."""
    most = [min(n, room) for n in rows]
    tables = []
    for n in most:
        size = min(n * MAX_VARINT, room)
        tables.append(
            Rows(np.empty(n, np.uint8), np.empty(size, np.uint8), np.empty(size, np.uint8), np.zeros(3, np.int64))
        )
    return Part(_new_ids(min(most[0], room // 2), users), _new_ids(min(sum(most), room // 2), items), *tables)


def _new_ids(most: int, vocabulary: Vocabulary) -> Ids:
    """For at most `most` ids; each takes two bytes or more."""
    registers = np.array([0, -1, 0], np.int64)
    table = np.zeros(1 << (2 * most).bit_length(), np.uint32)
    return Ids(table, np.empty(most, np.uint32), registers, vocabulary.offsets)


def _body(members: int, part: Part, users: Vocabulary, items: Vocabulary, rows: list[int]) -> bytes:
    of_users, of_items = _text(part.users, users), _text(part.items, items)
    numbers = [int(ids.registers[NUMBER]) for ids in (part.users, part.items)]
    sizes = SIZES.pack(members, numbers[0], len(of_users), numbers[1], len(of_items), *rows)
    columns = [
        column[:end].tobytes()
        for table in (part.edits, part.counts, part.priors)
        for column, end in zip(table[:3], table.ends.tolist(), strict=True)
    ]
    return b"".join((sizes, of_users, of_items, *columns))


def _text(ids: Ids, vocabulary: Vocabulary) -> bytes:
    """The ids' UTF-8, each ended by a NUL."""
    out = np.empty(int(ids.registers[ID_BYTES]), np.uint8)
    copy_ids(vocabulary.bytes_, ids.offsets, ids.indices[: ids.registers[NUMBER]], out)
    return out.tobytes()


# -- reading ------------------------------------------------------------------------------------------


class _Reader:
    """Reads the columns, one table after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data = np.frombuffer(data, np.uint8)
        self._cursor = np.array([at], np.int64)
        self.users, self.items = np.array([0, -1], np.int64), np.array([0, -1], np.int64)

    def kinds(self, rows: int) -> Bytes:
        """(rows,) the byte of each row. What is made for rows is thus never more than a few times the message."""
        at = int(self._cursor[0])
        self._cursor[0] = at + rows
        if at + rows > self._data.size:
            raise MessageError("an edits message whose columns end too early")
        return self._data[at : at + rows]

    def positions(self, registers: Integers, names: npt.NDArray[np.bool_]) -> Words:
        """(n,) positions of users or items, given which rows name one."""
        found = np.empty(names.size, np.uint32)
        if not read_positions(self._data, self._cursor, registers, names, found):
            raise MessageError("an edits message with a row that names an id which is not there")
        return found

    def values(self, rows: int) -> Words:
        """(rows,) counts or priors."""
        found = np.empty(rows, np.uint32)
        if not read_values(self._data, self._cursor, found):
            raise MessageError("an edits message with a count or prior that is no number of 32 bits")
        return found

    def table(self, rows: int, most: int, what: str) -> tuple[Bytes, Words, Words]:
        """Counts or priors: kind (of `most`), position of the item, value."""
        kinds = self.kinds(rows)
        positions = self.positions(self.items, _others(kinds))
        return _known(kinds & np.uint8(OTHER - 1), most, what), positions, self.values(rows)

    def check_end(self, users: int, items: int) -> None:
        """All bytes were read, and all ids named."""
        named = int(self.users[NUMBER]), int(self.items[NUMBER])
        if self._cursor[0] != self._data.size or named != (users, items):
            raise MessageError("an edits message whose sizes and columns do not fit each other")


def _others(kinds: Bytes) -> npt.NDArray[np.bool_]:
    """(n,) whether a row names another user or item than the one before; the first has to."""
    others = kinds >= OTHER
    if others.size and not others[0]:
        raise MessageError("an edits message whose first row is about nobody or nothing")
    return others


def _known(kinds: Bytes, most: int, what: str) -> Bytes:
    highest = int(kinds.max(initial=0))
    if kinds.size and highest >= most:
        raise MessageError(f"an edits message with {what} number {highest}, where there are {most}")
    return kinds


def _split(text: bytes, number: int) -> list[str]:
    """The ids of a text, each ended by a NUL."""
    try:
        names = text.decode().split("\0")
    except UnicodeDecodeError as error:
        raise MessageError(f"an edits message with ids that are not valid UTF-8 ({error})") from None
    if names.pop() or len(names) != number:
        raise MessageError(f"an edits message with other ids than the {number} that it promises")
    return names


def unpack(
    data: bytes, at: int, source: int, position: int, users: Vocabulary, items: Vocabulary, config: Config
) -> Edits:
    """The edits of `data` from `at` on, in terms of these vocabularies, to which its ids are added.

    Raises MessageError where they do not parse or name an indicator or prior that `config` does not have.
    """
    if at + SIZES.size > len(data):
        raise MessageError("an edits message whose sizes are cut off")
    members, n_users, user_bytes, n_items, item_bytes, rows, counts, priors = SIZES.unpack_from(data, at)
    of_users = at + SIZES.size
    of_items = of_users + user_bytes
    of_rows = of_items + item_bytes
    user_ids, item_ids = _split(data[of_users:of_items], n_users), _split(data[of_items:of_rows], n_items)
    kinds, reader = len(config.indicator_names), _Reader(data, of_rows)
    bits = reader.kinds(rows)
    op, has_item = bits & np.uint8(3), bits & np.uint8(2) == 0
    user, item = reader.positions(reader.users, _others(bits)), reader.positions(reader.items, has_item)
    indicator = _known(bits >> np.uint8(2) & np.uint8(31), kinds, "indicator")
    of_count, count_item, count = reader.table(counts, kinds, "indicator")
    prior, prior_item, value = reader.table(priors, len(config.prior_names), "prior")
    reader.check_end(n_users, n_items)
    if members > _MOST or count.max(initial=0) > _MOST:
        raise MessageError("an edits message with more members or a higher count than 32 bits with a sign can say")
    try:
        known_users, known_items = users.intern(user_ids), items.intern(item_ids)
    except VocabularyError as error:
        raise MessageError(f"an edits message with an id that cannot be interned: {error}") from None
    named = np.zeros(rows, np.uint32)
    named[has_item] = known_items[item[has_item]]
    return Edits(
        source, position, op, indicator, known_users[user], named, members,
        of_count, known_items[count_item], count.view(np.int32),
        prior, known_items[prior_item], (value >> 1 ^ -(value & 1)).view(np.int32),
    )  # fmt: skip
