"""Metadata of items from files: CSV with a column `item`, JSON Lines, Parquet; gzipped or not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from agents.files.csv_format import Header, split_records
from agents.files.parquet_format import batches_of, first_line, open_parquet
from agents.files.streams import MAX_LINE, InputError, Stream, in_file, read_lines, recognise, size_of
from cco.event_data import Rejection, shortened
from cco.values import BadRecord, as_number
from cco.vocabulary import id_problem
from model_sync.metadata import moment

_ITEM = ("item_id", "item")
_CHUNK = 65_536
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}

Report = Callable[[Rejection], None]


def read_items(path: str, report: Report | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(item id, properties) of each record. Values of CSV stay text ("a|b" too); empty ones are left out.

    A record that cannot be used goes to `report`, with file, line and reason; without `report` it raises
    InputError, as a file that cannot be read does.
    """
    size_of(path)
    stream = Stream(path)
    try:
        for found in read_item_records(stream):
            if not isinstance(found, Rejection):
                yield found.item, found.properties
            elif report is None:
                raise InputError(f"{found.file}, line {found.line}: {found.reason}: {found.record}")
            else:
                report(found)
    finally:
        stream.close()


class ItemRecord(NamedTuple):
    """What a record says of an item."""

    line: int  # as people count
    item: str
    properties: dict[str, Any]
    text: str  # the record itself


def read_item_records(stream: Stream, types: Mapping[str, str] | None = None) -> Iterator[ItemRecord | Rejection]:
    """All records of an open input, good and bad. Raises InputError if it cannot be read (on).

    `types` as in `config.items.types`: what CSV says of a property that holds numbers or booleans becomes one, and
    what cannot become one, or is not the date that it should be, is refused.
    """
    kind = recognise(stream)
    if kind == "empty":
        return
    for line, record, text in _READERS[kind](stream):
        try:
            if isinstance(record, str):
                raise BadRecord(record)
            item, properties = _item(record)
            if kind == "csv" and types:
                properties = {name: _typed(name, value, types.get(name)) for name, value in properties.items()}
            yield ItemRecord(line, item, properties, text)
        except BadRecord as error:
            yield Rejection(line, str(error), shortened(text), stream.name)


def _typed(name: str, text: str, kind: str | None) -> str | float | bool:
    """The value that a text of CSV stands for. Raises BadRecord."""
    if kind == "float":
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise BadRecord(f"{name} must be a number, not {text[:40]!r} (items.types)")
        return number
    if kind == "boolean":
        if text.lower() not in _BOOLEANS:
            raise BadRecord(f"{name} must be true or false, not {text[:40]!r} (items.types)")
        return _BOOLEANS[text.lower()]
    if kind == "date" and moment(text) is None:
        raise BadRecord(f"{name} must be a date in ISO 8601, not {text[:40]!r} (items.types)")
    return text


_Numbered = Iterator[tuple[int, "dict[str, Any] | str", str]]  # line, record or what is wrong, text


def _item(record: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    key = next((name for name in _ITEM if name in record), None)
    item = record.get(key) if key else None
    if isinstance(as_number(item), int):
        item = str(item)
    if item is None:
        raise BadRecord("item is missing")
    if not isinstance(item, str):
        raise BadRecord("item must be text or a whole number")
    problem = id_problem(item)
    if problem is not None:
        raise BadRecord(f"item {problem}")
    return item, {name: value for name, value in record.items() if name != key and value is not None}


def _json_lines(stream: Stream) -> _Numbered:
    line = 0
    for lines in read_lines(stream, _CHUNK):
        for k, raw in enumerate(lines.data.split(b"\n")[: lines.count]):
            line += 1
            text = lines.overlong.get(k, raw).decode(errors="replace").strip()
            if k in lines.overlong:
                yield line, "the line is too long", text
            elif text:
                yield line, _object(raw), text


def _object(raw: bytes) -> dict[str, Any] | str:
    try:
        value = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        return f"not valid JSON ({error})"
    return value if isinstance(value, dict) else "the line is not a JSON object"


def _csv(stream: Stream) -> _Numbered:
    pieces = read_lines(stream, _CHUNK)
    start = next(pieces)
    if 0 in start.overlong:
        raise InputError(f"{stream.name}: the first line is longer than {MAX_LINE} bytes: is it CSV at all?")
    header = Header.parse(start.data[: start.data.index(b"\n")], stream.name)
    if not set(_ITEM) & set(header.names):
        raise InputError(f"{stream.name}: no column item; columns found: {', '.join(header.names)[:500]}")
    pending: list[bytes] = []
    line = 2
    lines = start.without(1)
    while True:
        following = next(pieces, None)
        raw = pending + lines.data.split(b"\n")[: lines.count]
        records, used = split_records(raw, header, final=following is None)
        for record in records:
            text = raw[record.line].decode(errors="replace").strip()
            if record.fields is not None:
                row = {name: value for name, value in zip(header.names, record.fields, strict=True) if value}
                yield line + record.line, row, text
            elif not record.blank:
                yield line + record.line, record.reason, text
        line += used
        pending = raw[used:]
        if following is None:
            return
        lines = following


def _parquet(stream: Stream) -> _Numbered:
    if stream.in_place:
        yield from _rows(stream.name, stream.name)
        return
    with in_file(stream) as unpacked:
        yield from _rows(stream.name, unpacked)


def _rows(name: str, source: str | BinaryIO) -> _Numbered:
    """The rows of a Parquet file; `name` is what errors call it."""
    line = 0
    file = open_parquet(name, source)
    for batch in batches_of(name, file, _CHUNK, list(range(file.num_row_groups))):
        for row in _records(batch):
            line += 1
            record = row if isinstance(row, str) else {column: _plain(value) for column, value in row.items()}
            yield line, record, str(row)


def _records(batch: pa.RecordBatch) -> list[dict[str, Any] | str]:
    """The rows; for one with text that is not UTF-8, or a date that Python does not have, what is wrong with it."""
    try:
        found: list[dict[str, Any] | str] = batch.to_pylist()
        return found
    except (pa.ArrowException, ValueError, OverflowError) as error:
        if batch.num_rows == 1:
            return [f"cannot be read ({first_line(error)})"]
    return [record for k in range(batch.num_rows) for record in _records(batch.slice(k, 1))]


def _plain(value: Any) -> Any:
    """Dates and times as ISO 8601, as metadata has them."""
    return value.isoformat() if isinstance(value, date) else value  # a datetime is a date


_READERS = {"jsonl": _json_lines, "csv": _csv, "parquet": _parquet}
