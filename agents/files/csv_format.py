"""CSV lines as columns: the fast way by blocks, record by record where a quoted field goes over several lines."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from agents.files.arrow import texts_of
from agents.files.streams import MAX_LINE, InputError
from cco.columns import Coded, Listed
from cco.delimited import cut_fields, gather
from cco.events import BLANK, Columns, EventParser
from cco.fields import is_weight
from cco.times import BAD, MISSING, times_of, times_of_digits
from cco.values import BadRecord

NAMES = {
    "user": ("user", "user_id"),
    "item": ("item", "item_id"),
    "event": ("event", "event_type"),
    "timestamp": ("timestamp",),
    "weight": ("weight",),
    "event_id": ("event_id",),
}
NEEDED = "user, item, event, timestamp (or user_id, item_id, event_type)"
MAX_RECORD_LINES = 100

_DELIMITERS = ",\t;|"


def find_columns(names: Sequence[str], where: str) -> dict[str, int]:
    """Position of each known column: user, item and event always; timestamp, weight, event_id if there.

    Raises InputError, naming what was found and what is needed. A file without times is taken as such
    only if nothing else in it could be one.
    """
    shown = ", ".join(name[:40] for name in names[:20]) + (", ..." if len(names) > 20 else "")
    found: dict[str, int] = {}
    for key, aliases in NAMES.items():
        places = [k for k, name in enumerate(names) if name in aliases]
        if len(places) > 1:
            raise InputError(f"{where}: the column {key} is there {len(places)} times; columns found: {shown}")
        if places:
            found[key] = places[0]
    missing = [key for key in ("user", "item", "event") if key not in found]
    if "timestamp" not in found and len(names) > len(found):
        missing.append("timestamp")
    if missing:
        raise InputError(f"{where}: no column {', '.join(missing)}; columns found: {shown}; needed: {NEEDED}")
    return found


@dataclass(frozen=True, slots=True)
class Header:
    """The first line of a CSV file."""

    names: tuple[str, ...]
    delimiter: str

    @classmethod
    def parse(cls, line: bytes, where: str) -> Header:
        """The column names, by the delimiter that makes most of them. Raises InputError if it is unreadable."""
        text = line.decode(errors="replace").strip("\r\n")
        delimiter = max(_DELIMITERS, key=text.count)
        try:
            names = next(csv.reader([text], delimiter=delimiter), [])
        except csv.Error as error:
            raise InputError(f"{where}: the first line holds no column names ({error}); needed: {NEEDED}") from None
        return cls(tuple(name.strip() for name in names), delimiter)


@dataclass(slots=True)
class Record:
    """One record of a CSV file: its first line, how many lines it takes, its fields or what is wrong."""

    line: int
    lines: int
    fields: list[str] | None
    reason: str = ""

    @property
    def blank(self) -> bool:
        return self.fields is None and not self.reason


def split_records(lines: Sequence[bytes], header: Header, final: bool) -> tuple[list[Record], int]:
    """Records of `lines` and how many lines they take; unless `final`, an open quote may go on in later ones.

    A quote that is opened and not closed costs its own line only: the next one is a record again.
    """
    records: list[Record] = []
    k = 0
    while k < len(lines):
        record = _record(lines, k, header, final)
        if record is None:
            break
        records.append(record)
        k += record.lines
    return records, k


def _record(lines: Sequence[bytes], k: int, header: Header, final: bool) -> Record | None:
    text = _text(lines[k])
    width = len(header.names)
    if not lines[k].strip():  # of ASCII: a lone no-break space is something that somebody should see
        return Record(k, 1, None)
    if '"' not in text:
        return _of_width(k, text.split(header.delimiter), width)
    fields = _quoted(text, header.delimiter)
    if isinstance(fields, list):
        return _of_width(k, fields, width)
    if fields == "":
        for more in range(1, MAX_RECORD_LINES):
            if k + more >= len(lines):
                if final:
                    break
                return None
            text += "\n" + _text(lines[k + more])
            if len(text) > MAX_LINE:
                break
            if b'"' in lines[k + more]:
                joined = _quoted(text, header.delimiter)
                if isinstance(joined, list) and len(joined) == width:
                    return Record(k, more + 1, joined)
                if joined != "":
                    break
        fields = "a quote is opened and not closed"
    return Record(k, 1, None, f"not valid CSV: {fields}")


def _of_width(k: int, fields: list[str], width: int) -> Record:
    if len(fields) == width:
        return Record(k, 1, fields)
    return Record(k, 1, None, f"the line has {len(fields)} field{'s'[: len(fields) != 1]}, the header {width}")


def _quoted(text: str, delimiter: str) -> list[str] | str:
    """The fields of a record with quotes; "" if a quote is open at its end, else what is wrong."""
    try:
        return next(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "" if "unexpected end of data" in str(error) else str(error)


def _text(line: bytes) -> str:
    """A line without its end; bytes that are not UTF-8 stay recognisable, for the rules of ids to refuse."""
    return line.removesuffix(b"\r").decode(errors="surrogateescape")


def parse_weight(text: str) -> object:
    """A weight in a text: a number if it is one, None if empty, else the text for the error to show."""
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return text


def columns_of_records(
    records: Sequence[Record], header: Header, places: dict[str, int], parser: EventParser, raw: Sequence[bytes]
) -> Columns:
    """Columns with a row for each line of `raw`; lines that begin no record are blank rows."""
    by_line = {record.line: record for record in records}
    rows = [by_line[k].fields if k in by_line else None for k in range(len(raw))]

    def column(key: str) -> list[str]:
        if key not in places:
            return [""] * len(rows)
        place = places[key]
        return ["" if row is None else row[place] for row in rows]

    def record(k: int) -> object:
        found = by_line.get(k)
        if found is None or found.blank:
            return BLANK
        if found.fields is None:
            raise BadRecord(found.reason)
        return _as_mapping(found.fields, header, places)

    weights = column("weight")
    return Columns(
        users=Listed(column("user")),
        items=Listed(column("item")),
        types=parser.types_of(column("event")),
        times=times_of(column("timestamp")),
        suspects=np.fromiter((text != "" and not _good_weight(text) for text in weights), np.bool_, len(rows)),
        record=record,
        text=lambda k: raw[k].decode(errors="replace").strip(),
    )


def _as_mapping(fields: Sequence[str], header: Header, places: dict[str, int]) -> dict[str, object]:
    row: dict[str, object] = {header.names[place]: fields[place] for place in places.values()}
    if "weight" in places:
        row["weight"] = parse_weight(fields[places["weight"]])
    return row


def _good_weight(text: str) -> bool:
    weight = parse_weight(text)
    return weight is None or is_weight(weight)


def columns_of_block(
    data: bytes, count: int, header: Header, places: dict[str, int], parser: EventParser
) -> Columns | None:
    """Columns with a row for each of the `count` lines in `data`; None if a line ends inside of quotes."""
    wanted = np.full(len(header.names), -1, np.int64)
    wanted[list(places.values())] = np.arange(len(places))
    bounds = np.zeros((len(places), 2, count), np.int32)
    plain = np.zeros(count, np.bool_)
    block = np.frombuffer(data, np.uint8)
    if not cut_fields(block, ord(header.delimiter), wanted, bounds, plain):
        return None
    fields = {key: _gathered(block, *bounds[p]) for p, key in enumerate(places)}
    lines: list[bytes] = []

    def line(k: int) -> bytes:
        if not lines:
            lines.extend(data.split(b"\n"))
        return lines[k]

    def record(k: int) -> object:
        alone = split_records([line(k)], header, final=True)[0][0]
        if alone.blank:
            return BLANK
        if alone.fields is None:
            raise BadRecord(alone.reason)
        return _as_mapping(alone.fields, header, places)

    suspects = ~plain
    if "weight" in places:
        weights = _coded(fields["weight"])
        suspects |= np.array([not _good_weight(text) for text in weights.values])[weights.codes]
    return Columns(
        users=_coded(fields["user"]),
        items=_coded(fields["item"]),
        types=parser.types_of(_coded(fields["event"])),
        times=_times(fields["timestamp"]) if "timestamp" in places else np.full(count, MISSING, np.int64),
        suspects=suspects,
        record=record,
        text=lambda k: line(k).decode(errors="replace").strip(),
    )


def _gathered(
    block: npt.NDArray[np.uint8], starts: npt.NDArray[np.int32], stops: npt.NDArray[np.int32]
) -> pa.BinaryArray:
    """The texts between the bounds."""
    offsets = np.empty(starts.size + 1, np.int32)
    out = np.empty(int((stops - starts).sum()), np.uint8)
    gather(block, starts, stops, offsets, out)
    return pa.BinaryArray.from_buffers(pa.binary(), starts.size, [None, pa.py_buffer(offsets), pa.py_buffer(out)])


def _coded(texts: pa.BinaryArray) -> Coded:
    encoded = texts.dictionary_encode()
    return Coded(texts_of(encoded.dictionary), encoded.indices.to_numpy(zero_copy_only=False).copy())


def _times(texts: pa.BinaryArray) -> npt.NDArray[np.int64]:
    _, offsets, data = texts.buffers()
    times = np.empty(len(texts), np.int64)
    if times_of_digits(np.frombuffer(data, np.uint8), np.frombuffer(offsets, np.int32), MISSING, BAD, times):
        others = np.flatnonzero(times == BAD)
        times[others] = times_of(texts_of(texts.take(pa.array(others))))
    return times
