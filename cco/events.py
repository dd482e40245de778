"""From records to events: parsed, checked and interned, a whole chunk at a time. Pure: no I/O, no clock.

Each record becomes an event, a change of an item, or a rejection with its reason. Good records take
the fast way, by columns; a record that looks odd in any way is looked at alone by `FieldRules.accept`,
which either accepts it or says what is wrong. A refused record interns nothing and harms no neighbour.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cco.columns import Coded, Listed, Mask, Packed
from cco.config import Config
from cco.event_data import CLOCK, DELETE_USER, EventBatch, ItemChange, Parsed, Rejection, shortened
from cco.event_messages import BYTE_ORDER_MARK, MessageKeys, record_of
from cco.fields import Event, FieldRules
from cco.json_records import BLANK, Line, RecordDecoder, any_json, fields_of, texts_of
from cco.times import AHEAD, MAX_TIME, MISSING, times_of
from cco.values import BadRecord
from cco.vocabulary import Vocabulary

__all__ = ["BLANK", "CLOCK", "DELETE_USER", "Coded", "EventBatch", "EventParser", "ItemChange", "Parsed", "Rejection"]

LogTime = int | npt.NDArray[np.int64] | None
MESSAGES_TOGETHER = 2_048  # more records at once are slower: their memory goes back to the system each time
_UNKNOWN = -9  # a type for `FieldRules.accept` to look at


@dataclass(slots=True)
class Columns:
    """Records as columns of length n, on their way into an `EventBatch`.

    `types` holds positions in Config.event_types; `suspects` marks rows to be looked at alone, as what
    `record(k)` says (BLANK: nothing). `text(k)` is the row as people know it.
    """

    users: Listed | Coded | Packed
    items: Listed | Coded | Packed
    types: npt.NDArray[np.int16]
    times: npt.NDArray[np.int64]  # as `cco.times.times_of` makes them
    suspects: Mask
    record: Callable[[int], object]
    text: Callable[[int], str]
    check: Callable[[int, Event | ItemChange], None] = lambda k, found: None  # of suspects; raises BadRecord


class EventParser:
    """Turns records into `EventBatch`es over the vocabularies of users and items, which it adds to.

    `log_time` of its methods is the epoch second at which a record was written to its log, one for all
    or one for each: times more than a day ahead of it are refused, and missing times become it (0 without).
    `item_problem` says what is wrong with a change of an item, None if nothing: such a record is refused.
    """

    def __init__(
        self,
        config: Config,
        users: Vocabulary,
        items: Vocabulary,
        item_problem: Callable[[ItemChange], str | None] = lambda change: None,
    ) -> None:
        self.config = config
        self.users = users
        self.items = items
        self._rules = FieldRules.of(config)
        self._item_problem = item_problem
        self._decoder = RecordDecoder()

    def lines(self, data: bytes, first: int = 1, log_time: LogTime = None) -> Parsed:
        """Parse JSON Lines: canonical, short (`user`, `item`, `event`) or PredictionIO's, in any mixture.

        `first` is the number of the first line. Blank lines count as lines and say nothing.
        """
        records = self._decoder.together(data)
        if records is not None:
            return self._decoded_records(records, lambda: data.split(b"\n"), first, log_time)
        lines = data.split(b"\n")
        return self._decoded_records(self._decoder.apart(lines), lambda: lines, first, log_time)

    def messages(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        log_times: npt.NDArray[np.int64],
        partition: int,
        partitions: int,
    ) -> Parsed:
        """Parse Kafka messages found in source partition `partition` of `partitions`, one record in each value.

        `log_times` (n,): epoch seconds of the messages. The key must be the UTF-8 of the record's user id, and
        that must belong to the partition by Kafka's murmur2; `$clock` has no user and takes any key. Changes of
        items are refused. A value may hold line breaks and begin with a byte order mark. `Rejection.line` is
        the message's index plus 1. Raises ValueError if the lengths differ, or without such a partition.
        """
        if not len(values) == len(keys) == len(log_times):
            raise ValueError(f"{len(values)} values, {len(keys)} keys and {len(log_times)} log times; as many of each?")
        parts = []
        for start in range(0, len(values), MESSAGES_TOGETHER):
            some = slice(start, start + MESSAGES_TOGETHER)
            parts.append(
                self._messages(
                    values[some], MessageKeys(keys[some], partition, partitions), log_times[some], first=start + 1
                )
            )
        return Parsed.join(parts)

    def records(self, records: Iterable[object], first: int = 1, log_time: LogTime = None) -> Parsed:
        """Parse decoded records (mappings, of the same shapes as lines; times may be datetimes)."""
        listed = list(records)
        n = len(listed)
        columns = Columns(
            users=Listed([""] * n),
            items=Listed([""] * n),
            types=np.full(n, _UNKNOWN, np.int16),
            times=np.zeros(n, np.int64),
            suspects=np.ones(n, np.bool_),
            record=listed.__getitem__,
            text=lambda k: _as_text(listed[k]),
        )
        return self.columns(columns, first, log_time)

    def types_of(self, names: Sequence[str] | Coded) -> npt.NDArray[np.int16]:
        """(n,) positions of event types for `Columns.types`; whatever else there is makes its row a suspect."""
        get = self._rules.types.get
        if isinstance(names, Coded):
            table = np.array([*(get(name, _UNKNOWN) for name in names.values), _UNKNOWN], np.int16)
            return table[names.codes]
        return np.fromiter([get(name, _UNKNOWN) for name in names], np.int16, len(names))

    def columns(self, columns: Columns, first: int = 1, log_time: LogTime = None) -> Parsed:
        """Parse columns: suspects are looked at alone, what is refused is dropped, the rest is interned.

        `first` is the number of the first row. The columns are used up.
        """
        types, suspects = columns.types, columns.suspects
        times = np.where(columns.times == MISSING, 0 if log_time is None else log_time, columns.times)
        suspects |= (types == _UNKNOWN) | (times < 0) | (times > MAX_TIME)
        if log_time is not None:
            suspects |= times > np.asarray(log_time) + AHEAD
        for bad in (columns.users.bad(self.users), columns.items.bad(self.items)):
            if bad is not None:
                suspects |= bad
        keep = ~suspects
        rejections: list[Rejection] = []
        changes: list[ItemChange] = []
        for k in np.flatnonzero(suspects).tolist():
            try:
                raw = columns.record(k)
                if raw is BLANK:
                    continue
                found = self._rules.accept(raw, _at(log_time, k))
                columns.check(k, found)
                problem = self._item_problem(found) if isinstance(found, ItemChange) else None
                if problem is not None:
                    raise BadRecord(problem, "item_change")
            except BadRecord as error:
                rejections.append(Rejection(first + k, str(error), shortened(columns.text(k)), code=error.code))
                continue
            if isinstance(found, ItemChange):
                changes.append(found)
                continue
            keep[k] = True
            types[k], times[k] = found.type, found.time
            columns.users.put(k, found.user or "")
            columns.items.put(k, found.item or "")
        return Parsed(self._interned(columns, times, keep), rejections, changes)

    def _interned(self, columns: Columns, times: npt.NDArray[np.int64], keep: Mask) -> EventBatch:
        """The events of the rows to keep; only their ids are interned."""
        users, items, types = columns.users, columns.items, columns.types
        if keep.all() and (types >= 0).all():
            return EventBatch(
                users.intern(self.users, None), items.intern(self.items, None), types, times.astype(np.uint32)
            )
        kept = types[keep]
        user_column, item_column = np.zeros((2, kept.size), np.uint32)
        user_column[kept != CLOCK] = users.intern(self.users, keep & (types != CLOCK))
        item_column[kept >= 0] = items.intern(self.items, keep & (types >= 0))
        return EventBatch(user_column, item_column, kept, times[keep].astype(np.uint32))

    def _messages(
        self, values: Sequence[bytes | None], keys: MessageKeys, log_times: npt.NDArray[np.int64], first: int
    ) -> Parsed:
        records = self._decoder.joined(values)
        if records is None:
            records = self._decoder.apart([(value or b"").removeprefix(BYTE_ORDER_MARK) for value in values])
        users, items, types, times = fields_of(records)
        names = texts_of(users)
        columns = Columns(
            users=Listed(names),
            items=Listed(texts_of(items)),
            types=self.types_of(types),
            times=times_of(times),
            suspects=keys.suspects(names),
            record=lambda k: record_of(values[k]),
            text=lambda k: (values[k] or b"").decode(errors="replace").strip(),
            check=keys.check,
        )
        return self.columns(columns, first, log_times)

    def _decoded_records(
        self, records: Sequence[Line], lines: Callable[[], list[bytes]], first: int, log_time: LogTime
    ) -> Parsed:
        split: list[bytes] = []

        def line(k: int) -> bytes:
            if not split:
                split.extend(lines())
            return split[k]

        users, items, types, times = fields_of(records)
        columns = Columns(
            users=Listed(texts_of(users)),
            items=Listed(texts_of(items)),
            types=self.types_of(types),
            times=times_of(times),
            suspects=np.zeros(len(records), np.bool_),
            record=lambda k: any_json(line(k)),
            text=lambda k: line(k).decode(errors="replace").strip(),
        )
        return self.columns(columns, first, log_time)


def _as_text(record: object) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # odd keys, cycles
        return repr(record)


def _at(log_time: LogTime, k: int) -> int | None:
    if log_time is None or isinstance(log_time, int):
        return log_time
    return int(log_time[k])
