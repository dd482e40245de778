"""What a rebuild on Spark reads, cut into stretches: a task reads one, with the readers that the other engine has.

A stretch is named by place and numbers, and read where the task runs: files and folders must be at the same path on all
machines, or at a URL.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from agents.archive.archive import Archive
from agents.files.parquet_format import ParquetEvents
from agents.files.reading import read_events
from agents.files.streams import STANDARD_INPUT, InputError, Stream, recognise, size_of
from agents.kafka.records import parsed
from cco.events import EventParser, Parsed

STRETCH = 1 << 20  # records, about, where a file or a partition can be cut at all
CHUNK = 65_536  # records parsed together
_LINE, _PACKED_LINE = 64, 16  # bytes of a record in text files, in gzipped ones: guesses


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the input: offsets of a source partition of an archive, or records of a file, in their order."""

    place: str  # URL of the archive, or path of the file
    name: str  # the same as it was given
    source: int | None  # None: a file
    begin: int  # offset, or records before it
    end: int | None  # offset, or record to end before; None: the whole file
    size: int  # records, or a guess

    def read(self, parser: EventParser) -> Iterator[Parsed]:
        """What it says, some records at a time. Raises InputError, ArchiveError."""
        if self.source is not None:
            where = f"{self.name}/source={self.source}"
            for records in Archive(self.place).read(self.source, self.begin, self.end or 0):
                found = parsed(records, parser, where)
                yield Parsed(found.batch, found.rejections, found.item_changes)
        elif self.end is None:
            for chunk in read_events([self.place], parser, CHUNK):
                yield self._named(Parsed(chunk.batch, chunk.rejections, chunk.item_changes))
        else:
            yield from map(self._named, self._parquet(parser, self.end))

    def _parquet(self, parser: EventParser, end: int) -> Iterator[Parsed]:
        source, record = ParquetEvents.open(self.place), self.begin
        for batch in source.batches(min(CHUNK, end - record), record):
            some = batch.slice(0, end - record)
            yield parser.columns(source.columns(some, parser), record + 1)
            record += some.num_rows
            if record >= end:
                return
        raise InputError(f"{self.name}: ends after {record} records, and had {end}: it was changed meanwhile")

    def _named(self, found: Parsed) -> Parsed:
        return replace(found, rejections=[replace(rejection, file=self.name) for rejection in found.rejections])


def stretches_of_archive(url: str, ends: Mapping[int, int]) -> list[Stretch]:
    """The offsets before `ends`, by source partition, cut where files end. Raises ArchiveError."""
    archive, found = Archive(url), []
    place = archive.url if "://" in url else os.path.abspath(url)
    files = archive.files()
    for source, end in sorted(ends.items()):
        begin = 0
        for after in sorted({min(file.last + 1, end) for file in files.get(source, ())} | {end}):
            if after - begin >= STRETCH or (after == end and after > begin):
                found.append(Stretch(place, archive.url, source, begin, after, after - begin))
                begin = after
    return found


def stretches_of_files(paths: Sequence[str]) -> list[Stretch]:
    """All records of the files: Parquet cut between its groups of rows, others whole. Raises InputError."""
    if STANDARD_INPUT in paths:
        raise InputError("standard input: cannot be read by tasks of Spark; name files")
    sizes = {path: size_of(path) for path in paths}  # all are looked for before the first is opened
    return [stretch for path in paths for stretch in _of_file(path, sizes[path] or 0)]


def _of_file(path: str, size: int) -> Iterator[Stretch]:
    place = os.path.abspath(path)
    stream = Stream(path)
    try:
        kind, in_place = recognise(stream), stream.in_place
    finally:
        stream.close()
    if kind == "parquet" and in_place:
        groups = ParquetEvents.open(path).file.metadata
        begin = record = 0
        for group in range(groups.num_row_groups):
            record += groups.row_group(group).num_rows
            if record > begin and (record - begin >= STRETCH or group == groups.num_row_groups - 1):
                yield Stretch(place, path, None, begin, record, record - begin)
                begin = record
    elif kind != "empty":
        yield Stretch(place, path, None, 0, None, size // (_PACKED_LINE if path.endswith(".gz") else _LINE))
