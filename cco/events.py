"""From records to events: parsed, checked and interned, a whole chunk at a time. Pure: no I/O, no clock.

Each record becomes an event, a change of an item, or a rejection with its reason. Good records take
the fast way, by columns; a record that looks odd in any way is looked at alone by `FieldRules.accept`,
which either accepts it or says what is wrong. A refused record interns nothing and harms no neighbour.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt

from cco.columns import Coded, Listed, Mask
from cco.config import Config
from cco.event_data import CLOCK, DELETE_USER, EventBatch, ItemChange, Parsed, Rejection, shortened
from cco.fields import FieldRules
from cco.times import AHEAD, MAX_TIME, MISSING, times_of
from cco.values import MAX_BITS, BadRecord
from cco.vocabulary import Vocabulary

__all__ = ["CLOCK", "DELETE_USER", "Coded", "EventBatch", "EventParser", "ItemChange", "Parsed", "Rejection"]

LogTime = int | npt.NDArray[np.int64] | None
BLANK = object()  # a row or line without a record
_OPEN, _CLOSE, _BREAK, _RETURN = b"{}\n\r"
_TRIED_TOGETHER = 128
_UNKNOWN = -9  # a type for `FieldRules.accept` to look at
_Id = str | int | None
_Time = int | float | str | None


class _Canonical(msgspec.Struct, gc=False):
    event_type: str
    user_id: _Id = None
    item_id: _Id = None
    timestamp: _Time = None
    event_id: str | None = None
    weight: int | float | None = None


class _Short(msgspec.Struct, gc=False):
    """`user`, `item`, `event`; what must be unset would make it another shape."""

    event: str
    user: _Id = None
    item: _Id = None
    timestamp: _Time = None
    event_id: str | None = None
    weight: int | float | None = None
    user_id: msgspec.UnsetType = msgspec.UNSET
    item_id: msgspec.UnsetType = msgspec.UNSET
    event_type: msgspec.UnsetType = msgspec.UNSET
    entityType: msgspec.UnsetType = msgspec.UNSET


class _PredictionIO(msgspec.Struct, gc=False):
    event: str
    entityType: Literal["user"]
    entityId: _Id = None
    targetEntityId: _Id = None
    eventTime: _Time = None
    event_type: msgspec.UnsetType = msgspec.UNSET


_Line = _Canonical | _Short | _PredictionIO
_DECODERS: list[msgspec.json.Decoder[Any]] = [
    msgspec.json.Decoder(shape) for shape in (_Canonical, _Short, _PredictionIO)
]
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@dataclass(slots=True)
class Columns:
    """Records as columns of length n, on their way into an `EventBatch`.

    `types` holds positions in Config.event_types; `suspects` marks rows to be looked at alone, as what
    `record(k)` says (BLANK: nothing). `text(k)` is the row as people know it.
    """

    users: Listed | Coded
    items: Listed | Coded
    types: npt.NDArray[np.int16]
    times: npt.NDArray[np.int64]  # as `cco.times.times_of` makes them
    suspects: Mask
    record: Callable[[int], object]
    text: Callable[[int], str]


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
        self._decoder = _DECODERS[0]  # the one that fitted last: files are mostly of one shape

    def lines(self, data: bytes, first: int = 1, log_time: LogTime = None) -> Parsed:
        """Parse JSON Lines: canonical, short (`user`, `item`, `event`) or PredictionIO's, in any mixture.

        `first` is the number of the first line. Blank lines count as lines and say nothing.
        """
        records = self._decoded(data)
        if records is not None:
            return self._decoded_records(records, lambda: data.split(b"\n"), first, log_time)
        lines = data.split(b"\n")
        found: list[_Line] = []
        for start in range(0, len(lines), _TRIED_TOGETHER):  # so that one bad line costs its neighbours no speed
            some = lines[start : start + _TRIED_TOGETHER]
            together = self._decoded(b"\n".join(some))
            if together is None or len(together) < len(some):  # blank lines at the end are not among them
                together = [_decode_line(line) for line in some]
            found += together
        return self._decoded_records(found, lambda: lines, first, log_time)

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
                problem = self._item_problem(found) if isinstance(found, ItemChange) else None
                if problem is not None:
                    raise BadRecord(problem)
            except BadRecord as error:
                rejections.append(Rejection(first + k, str(error), shortened(columns.text(k))))
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

    def _decoded(self, data: bytes) -> list[_Line] | None:
        """One record for each line; None unless every line is exactly one object of one shape."""
        lines = _lines_of_one_object(data)
        if lines is None:
            return None
        for decoder in (self._decoder, *(d for d in _DECODERS if d is not self._decoder)):
            try:
                records: list[_Line] = decoder.decode_lines(data)
            except _UNDECODABLE:
                continue
            if len(records) != lines:
                return None
            self._decoder = decoder
            return records
        return None

    def _decoded_records(
        self, records: Sequence[_Line], lines: Callable[[], list[bytes]], first: int, log_time: LogTime
    ) -> Parsed:
        split: list[bytes] = []

        def line(k: int) -> bytes:
            if not split:
                split.extend(lines())
            return split[k]

        users, items, types, times = _fields(records)
        columns = Columns(
            users=Listed(_texts(users)),
            items=Listed(_texts(items)),
            types=self.types_of(types),
            times=times_of(times),
            suspects=np.zeros(len(records), np.bool_),
            record=lambda k: _any_json(line(k)),
            text=lambda k: line(k).decode(errors="replace").strip(),
        )
        return self.columns(columns, first, log_time)


_ODD = _Canonical("")  # stands for a line that must be looked at alone: no event type has no name


def _fields(records: Sequence[_Line]) -> tuple[list[_Id], list[_Id], list[str], list[_Time]]:
    """Users, items, event types and times of decoded lines."""
    shapes = set(map(type, records))
    if shapes == {_PredictionIO}:
        pio = cast(Sequence[_PredictionIO], records)
        return (
            [r.entityId for r in pio],
            [r.targetEntityId for r in pio],
            [r.event for r in pio],
            [r.eventTime for r in pio],
        )
    if shapes == {_Short}:
        short = cast(Sequence[_Short], records)
        return [r.user for r in short], [r.item for r in short], [r.event for r in short], [r.timestamp for r in short]
    if len(shapes) > 1:
        records = [_as_canonical(r) for r in records]
    plain = cast(Sequence[_Canonical], records)
    return (
        [r.user_id for r in plain],
        [r.item_id for r in plain],
        [r.event_type for r in plain],
        [r.timestamp for r in plain],
    )


def _as_canonical(record: _Line) -> _Canonical:
    if isinstance(record, _Short):
        return _Canonical(record.event, record.user, record.item, record.timestamp)
    if isinstance(record, _PredictionIO):
        return _Canonical(record.event, record.entityId, record.targetEntityId, record.eventTime)
    return record


def _lines_of_one_object(data: bytes) -> int | None:
    """How many lines there are, if each begins with { and ends with }; else None. A last line break ends the last.

    The decoder does not care for line breaks, but between } and { none can be inside of an object.
    """
    text = np.frombuffer(data.rstrip(b"\r\n"), np.uint8)
    breaks = np.flatnonzero(text == _BREAK)
    if text.size == 0 or text[0] != _OPEN or (text[breaks + 1] != _OPEN).any():
        return None
    ends = text[breaks - 1]
    if (ends == _RETURN).any():
        ends = np.where(ends == _RETURN, text[breaks - 2], ends)
    return None if (ends != _CLOSE).any() else int(breaks.size) + 1


def _decode_line(line: bytes) -> _Line:
    """The record of one line; _ODD if it must be looked at alone."""
    if line.lstrip().startswith(b"{"):
        for decoder in _DECODERS:
            try:
                record: _Line = decoder.decode(line)
            except _UNDECODABLE:
                continue
            return record
    return _ODD


def _any_json(line: bytes) -> object:
    """Whatever a line says, BLANK if nothing. Raises BadRecord if it is not JSON (with NaN, as Python writes it)."""
    if not line.strip():
        return BLANK
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRecord(f"not valid UTF-8: byte {error.start + 1} of the line") from None
    except json.JSONDecodeError as error:
        raise BadRecord(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadRecord("not valid JSON: nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise BadRecord(f"not valid JSON: {error}") from None


def _texts(ids: list[_Id]) -> list[str]:
    """Ids as text, "" where missing."""
    if set(map(type, ids)) <= {str}:
        return ids  # type: ignore[return-value]  # all of them are text
    return ["" if value is None or _huge(value) else str(value) for value in ids]


def _huge(value: str | int) -> bool:
    """Whether a whole number is too long to be an id (or to be printed at all)."""
    return isinstance(value, int) and value.bit_length() > MAX_BITS


def _as_text(record: object) -> str:
    try:
        return json.dumps(record, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):  # odd keys, cycles
        return repr(record)


def _at(log_time: LogTime, k: int) -> int | None:
    if log_time is None or isinstance(log_time, int):
        return log_time
    return int(log_time[k])
