"""Events from files and standard input: CSV, JSON Lines, Parquet, gzipped or not, larger than memory.

Parquet is read from its end: gzipped, or from standard input or a pipe, it is written to a temporary file first.

A record is a line (a row in Parquet), good or bad, blank ones and those inside of quotes included; the
header of CSV is none. So the number of a record depends on the input alone, never on how it is cut.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import BinaryIO

from agents.files.csv_format import Header, Record, columns_of_block, columns_of_records, find_columns, split_records
from agents.files.items import ItemRecord, read_item_records, read_items
from agents.files.parquet_format import ParquetEvents, ahead
from agents.files.streams import (
    MAX_LINE,
    STANDARD_INPUT,
    InputError,
    Lines,
    Stream,
    in_file,
    read_lines,
    recognise,
    size_of,
)
from cco.event_data import shortened
from cco.events import EventBatch, EventParser, ItemChange, Parsed, Rejection
from model_sync.metadata import change_problem

__all__ = ["Chunk", "InputError", "read_events", "read_item_changes", "read_items"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some records of the input, parsed, and how far they reach."""

    batch: EventBatch
    rejections: list[Rejection]  # `file` and `line` as people count: lines from 1, a header counted
    item_changes: list[ItemChange]
    file: int  # position in the list of inputs
    record: int  # records of this file up to the end of this chunk
    records: int  # records of the whole input up to the end of this chunk: what to skip to go on from here
    bytes_read: int  # of the whole input, as stored
    bytes_total: int | None  # None if not known (standard input, a pipe)


def read_events(
    paths: Sequence[str | os.PathLike[str]],
    parser: EventParser,
    chunk: int = 65_536,
    *,
    skip: int = 0,
    stdin: BinaryIO | None = None,
    opened: BinaryIO | None = None,
    clock: Callable[[], int] | None = None,
) -> Iterator[Chunk]:
    """The events of all inputs in order, at most `chunk` records at a time; "-" is standard input.

    `skip` records, good and bad, of the whole input are passed over: give `Chunk.records` of the last
    chunk to go on after it. Raises InputError, one readable line, if an input cannot be read (all are
    looked for before the first is read) or ends before `skip`. A caller that must know which file it is reads
    hands in the one input `opened` and closes it: its name may stand for another file by now, or for none.
    With `clock`, records are as if written to a log now, in epoch seconds: that is the time of those without one,
    and times more than a day ahead of it are refused.
    """
    names = [os.fspath(path) for path in paths]
    if names.count(STANDARD_INPUT) > 1:
        raise InputError("standard input can be read once only")
    sizes = [size_of(name) for name in names] if opened is None else [os.fstat(opened.fileno()).st_size]
    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    before = records = 0
    for number, path in enumerate(names):
        stream = Stream(path, stdin, opened)
        try:
            reader = _Reader(path, stream, parser, chunk, max(0, skip - records), opened, clock or _no_clock)
            for parsed in reader.parts():
                share, size = reader.share, sizes[number]  # no share, or of an unknown size: bytes tell
                read = stream.consumed if share is None or size is None else round(share * size)
                yield Chunk(
                    parsed.batch,
                    [replace(rejection, file=stream.name) for rejection in parsed.rejections],
                    parsed.item_changes,
                    number,
                    reader.record,
                    records + reader.record,
                    before + read,
                    total,
                )
            records += reader.record
            before += sizes[number] or stream.consumed
        finally:
            stream.close()
    if records < skip:
        raise InputError(f"the input has {records} records, fewer than the {skip} to go on after: is it the same one?")


def _no_clock() -> None:
    return None


def read_item_changes(paths: Sequence[str], types: Mapping[str, str], chunk: int = 8_192) -> Iterator[Chunk]:
    """Records of items in files as changes that set their properties, at most `chunk` records at a time.

    `types`: `config.items.types`, see `read_item_records`. Raises InputError, as `read_events` does.
    """
    if list(paths).count(STANDARD_INPUT) > 1:
        raise InputError("standard input can be read once only")
    sizes = [size_of(path) for path in paths]
    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    before = records = 0
    for number, path in enumerate(paths):
        stream = Stream(path)
        try:
            found = read_item_records(stream, types)
            of_file = 0
            while part := list(islice(found, chunk)):
                of_file += len(part)
                changes, rejections = _changes(part, stream.name)
                yield Chunk(
                    EventBatch.join([]), rejections, changes, number, of_file, records + of_file,
                    before + stream.consumed, total,
                )  # fmt: skip
            records += of_file
            before += sizes[number] or stream.consumed
        finally:
            stream.close()


def _changes(part: Sequence[ItemRecord | Rejection], file: str) -> tuple[list[ItemChange], list[Rejection]]:
    changes: list[ItemChange] = []
    rejections: list[Rejection] = []
    for record in part:
        if isinstance(record, Rejection):
            rejections.append(record)
            continue
        change = ItemChange(record.item, "set", record.properties)
        problem = change_problem(change) if record.properties else "no properties of the item are given"
        if problem is None:
            changes.append(change)
        else:
            rejections.append(Rejection(record.line, problem, shortened(record.text), file, "item_change"))
    return changes, rejections


class _Reader:
    """The records of one file. `record` counts those read or skipped; `share` is read of it, if bytes do not say."""

    def __init__(
        self,
        path: str,
        stream: Stream,
        parser: EventParser,
        chunk: int,
        skip: int,
        opened: BinaryIO | None,
        clock: Callable[[], int | None],
    ) -> None:
        self.path = path
        self.clock = clock
        self.opened = opened
        self.stream = stream
        self.parser = parser
        self.chunk = chunk
        self.skip = skip
        self.record = 0
        self.share: float | None = None

    def parts(self) -> Iterator[Parsed]:
        """What becomes of the records, some at a time; `record` and `share` are up to date at each."""
        kind = recognise(self.stream)
        if kind == "jsonl":
            yield from self._json_lines()
        elif kind == "csv":
            yield from self._csv()
        elif kind == "parquet":
            yield from self._parquet()

    def _json_lines(self) -> Iterator[Parsed]:
        for lines in self._unskipped(read_lines(self.stream, self.chunk)):
            first = self.record + 1
            parsed = self.parser.lines(lines.data, first, self.clock())
            self.record += lines.count
            yield _with_overlong(parsed, lines.overlong, first)

    def _csv(self) -> Iterator[Parsed]:
        pieces = read_lines(self.stream, self.chunk)
        start = next(pieces)
        if 0 in start.overlong:
            raise InputError(f"{self.stream.name}: the first line is longer than {MAX_LINE} bytes: is it CSV at all?")
        header = Header.parse(start.data[: start.data.index(b"\n")], self.stream.name)
        places = find_columns(header.names, self.stream.name)
        pending: list[bytes] = []  # lines of a record that goes on in the next piece
        overlong: dict[int, bytes] = {}  # among them
        for lines in self._unskipped(chain([start.without(1)], pieces)):
            first = self.record + 2  # the header is line 1
            columns = None if pending else columns_of_block(lines.data, lines.count, header, places, self.parser)
            if columns is not None:
                parsed = self.parser.columns(columns, first, self.clock())
                self.record += lines.count
                yield _with_overlong(parsed, lines.overlong, first)
                continue
            raw = pending + lines.data.split(b"\n")[: lines.count]
            overlong |= {k + len(pending): begin for k, begin in lines.overlong.items()}
            records, used = split_records(raw, header, final=False)
            pending = raw[used:]
            if used:
                yield self._csv_records(records, raw[:used], header, places, overlong)
            overlong = {k - used: begin for k, begin in overlong.items() if k >= used}
        if pending:
            records, _ = split_records(pending, header, final=True)
            yield self._csv_records(records, pending, header, places, overlong)

    def _csv_records(
        self,
        records: Sequence[Record],
        raw: Sequence[bytes],
        header: Header,
        places: dict[str, int],
        overlong: dict[int, bytes],
    ) -> Parsed:
        first = self.record + 2
        columns = columns_of_records(records, header, places, self.parser, raw)
        parsed = self.parser.columns(columns, first, self.clock())
        self.record += len(raw)
        return _with_overlong(parsed, {k: begin for k, begin in overlong.items() if k < len(raw)}, first)

    def _parquet(self) -> Iterator[Parsed]:
        if self.stream.in_place:
            yield from self._parquet_of(ParquetEvents.open(self.path, self.opened))
            return
        with in_file(self.stream) as unpacked:
            yield from self._parquet_of(ParquetEvents.open(self.stream.name, unpacked))

    def _parquet_of(self, source: ParquetEvents) -> Iterator[Parsed]:
        self.record = min(self.skip, source.rows)
        with closing(ahead(source.parts(self.parser, self.chunk, self.record))) as parts:
            for rows, columns in parts:
                parsed = self.parser.columns(columns, self.record + 1, self.clock())
                self.record += rows
                self.share = self.record / source.rows
                yield parsed

    def _unskipped(self, pieces: Iterable[Lines]) -> Iterator[Lines]:
        for lines in pieces:
            passed = min(self.skip, lines.count)
            self.skip -= passed
            self.record += passed
            if passed < lines.count:
                yield lines.without(passed)


def _with_overlong(parsed: Parsed, overlong: dict[int, bytes], first: int) -> Parsed:
    """`parsed` with the lines reported that were too long to be read; `first` is the number of line 0."""
    if not overlong:
        return parsed
    reason = f"the line is longer than {MAX_LINE} bytes"
    more = [Rejection(first + k, reason, begin.decode(errors="replace")) for k, begin in overlong.items()]
    rejections = sorted(parsed.rejections + more, key=lambda rejection: rejection.line)
    return Parsed(parsed.batch, rejections, parsed.item_changes)
