"""JSON records, many at once: decoded by shape, each kept apart from its neighbours.

Records of one shape are decoded together. What fits no shape is left for `any_json` to be looked at alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec
import numpy as np

from cco.values import MAX_BITS, BadRecord

BLANK = object()  # a row or line without a record
_OPEN, _CLOSE, _BREAK, _RETURN = b"{}\n\r"
_TRIED_TOGETHER = 128
Id = str | int | None
Time = int | float | str | None


class _Canonical(msgspec.Struct, gc=False):
    event_type: str
    user_id: Id = None
    item_id: Id = None
    timestamp: Time = None
    event_id: str | None = None
    weight: int | float | None = None


class _Short(msgspec.Struct, gc=False):
    """`user`, `item`, `event`; what must be unset would make it another shape."""

    event: str
    user: Id = None
    item: Id = None
    timestamp: Time = None
    event_id: str | None = None
    weight: int | float | None = None
    user_id: msgspec.UnsetType = msgspec.UNSET
    item_id: msgspec.UnsetType = msgspec.UNSET
    event_type: msgspec.UnsetType = msgspec.UNSET
    entityType: msgspec.UnsetType = msgspec.UNSET


class _PredictionIO(msgspec.Struct, gc=False):
    event: str
    entityType: Literal["user"]
    entityId: Id = None
    targetEntityId: Id = None
    eventTime: Time = None
    event_type: msgspec.UnsetType = msgspec.UNSET


Line = _Canonical | _Short | _PredictionIO
_DECODERS: list[msgspec.json.Decoder[Any]] = [
    msgspec.json.Decoder(shape) for shape in (_Canonical, _Short, _PredictionIO)
]
_UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# stands for a line that must be looked at alone: no event type has no name. None would slow down whole columns
_ODD = _Canonical("", "", "", 0)


class RecordDecoder:
    """Decodes records of one shape together: whichever shape fitted last is tried first."""

    def __init__(self) -> None:
        self._decoder = _DECODERS[0]  # files and topics are mostly of one shape

    def together(self, data: bytes) -> list[Line] | None:
        """One record for each line; None unless every line is exactly one object of one shape."""
        lines = _lines_of_one_object(data)
        if lines is None:
            return None
        for decoder in (self._decoder, *(d for d in _DECODERS if d is not self._decoder)):
            try:
                records: list[Line] = decoder.decode_lines(data)
            except _UNDECODABLE:
                continue
            if len(records) != lines:
                return None
            self._decoder = decoder
            return records
        return None

    def joined(self, lines: Sequence[bytes | None]) -> list[Line] | None:
        """As `together` for lines that are apart; None also if one is missing or holds a line break."""
        try:
            data = b"\n".join(lines)  # type: ignore[arg-type]  # tried: a line is hardly ever missing
        except TypeError:
            return None
        if data.count(b"\n") != len(lines) - 1:
            return None
        records = self.together(data)  # blank lines at the end are not among them
        return None if records is None or len(records) < len(lines) else records

    def apart(self, lines: Sequence[bytes]) -> list[Line]:
        """One record for each line, _ODD where it must be looked at alone. Lines may hold line breaks."""
        found: list[Line] = []
        for start in range(0, len(lines), _TRIED_TOGETHER):  # so that one bad line costs its neighbours no speed
            some = lines[start : start + _TRIED_TOGETHER]
            found += self.joined(some) or [_decode_line(line) for line in some]
        return found


def fields_of(records: Sequence[Line]) -> tuple[list[Id], list[Id], list[str], list[Time]]:
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


def _as_canonical(record: Line) -> _Canonical:
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


def _decode_line(line: bytes) -> Line:
    """The record of one line; _ODD if it must be looked at alone."""
    if line.lstrip().startswith(b"{"):
        for decoder in _DECODERS:
            try:
                record: Line = decoder.decode(line)
            except _UNDECODABLE:
                continue
            return record
    return _ODD


def any_json(line: bytes, what: str = "line") -> object:
    """Whatever a line says, BLANK if nothing. Raises BadRecord if it is not JSON (with NaN, as Python writes it)."""
    if not line.strip():
        return BLANK
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise BadRecord(f"not valid UTF-8: byte {error.start + 1} of the {what}", "json") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column" if error.lineno > 1 else "column"
        raise BadRecord(f"not valid JSON: {error.msg} at {place} {error.colno}", "json") from None
    except RecursionError:
        raise BadRecord("not valid JSON: nested too deeply", "json") from None
    except ValueError as error:  # a number of thousands of digits
        raise BadRecord(f"not valid JSON: {error}", "json") from None


def texts_of(ids: list[Id]) -> list[str]:
    """Ids as text, "" where missing."""
    if set(map(type, ids)) <= {str}:
        return ids  # type: ignore[return-value]  # all of them are text
    return ["" if value is None or _huge(value) else str(value) for value in ids]


def _huge(value: str | int) -> bool:
    """Whether a whole number is too long to be an id (or to be printed at all)."""
    return isinstance(value, int) and value.bit_length() > MAX_BITS
