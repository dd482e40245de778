"""The archive of `interactions`: its records as they are in the log, in Parquet files at a URL that fsspec knows.

    URL/source=P/day=YYYY-MM-DD/FIRST-LAST.parquet

P is the source partition, FIRST to LAST are the offsets that the file stands for (20 digits each; an offset that holds
no record, as transactions leave them, is in no file), and the day is that of the file's first record by its log time,
in UTC. Columns: offset, timestamp (log time, milliseconds since 1970), key, value. A file is written under another
name, which ends with .part, and counts from when it is renamed. So the names alone say what is archived and where to go
on. Files may overlap (two writers, or files that were just merged): of whatever log they are, it says one thing of an
offset, and readers take each offset once.
"""

from __future__ import annotations

import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet
from fsspec.implementations.local import LocalFileSystem

from agents.kafka.records import Records
from agents.state.directory import sync_folder
from agents.state.errors import is_full, one_line

FORMAT = 1
DAY_MS = 86_400_000
SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", pa.int64(), nullable=False),
        pa.field("key", pa.binary()),
        pa.field("value", pa.binary()),
    ]
)
GROUP_ROWS, GROUP_BYTES = 65_536, 32 << 20  # a group of rows, which is read at a time, has about as much at most

_ABOUT = b"cco"  # the key of what a file says of itself
_NAME = re.compile(r"source=([0-9]{1,5})/day=([0-9]{4}-[0-9]{2}-[0-9]{2})/([0-9]{20})-([0-9]{20})\.parquet")
_FIRST_DAY = datetime(1970, 1, 1, tzinfo=UTC)
_LEFT_OVER = timedelta(hours=1)  # a file in the making that is so old is of a writer that was killed


class ArchiveError(Exception):
    """An archive that cannot be used, read or written: one readable line that names the place."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """A whole file of an archive."""

    source: int
    first: int  # offset
    last: int  # offset, included
    day: str
    size: int = 0  # bytes

    @property
    def name(self) -> str:
        """Its path within the archive."""
        return f"source={self.source}/day={self.day}/{self.first:020}-{self.last:020}.parquet"


def day_of(milliseconds: int) -> str:
    """The day of a log time in UTC, as names of folders have it."""
    try:
        return (_FIRST_DAY + timedelta(milliseconds=milliseconds)).strftime("%Y-%m-%d").rjust(10, "0")
    except OverflowError:  # a producer may write anything
        return "9999-12-31" if milliseconds > 0 else "0001-01-01"


def missing(files: Sequence[ArchiveFile], at: int = 0) -> tuple[int, int | None]:
    """The first offset from `at` on that none of a source's files has, and the first after it that one has, or None.

    `files` as `Archive.files` gives them.
    """
    for file in files:
        if file.first > at:
            return at, file.first
        at = max(at, file.last + 1)
    return at, None


def holes(files: Sequence[ArchiveFile]) -> list[tuple[int, int]]:
    """Offsets that no file has while a later one is there: (first, the one after the last)."""
    found, at = [], 0
    while (end := missing(files, at))[1] is not None:
        found.append((end[0], end[1]))
        at = end[1]
    return found


class Archive:
    """An archive at a URL. Methods raise ArchiveError when the place cannot be reached, read or written."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") or url
        try:
            self._fs, root = fsspec.url_to_fs(url)
        except Exception as error:
            raise ArchiveError(f"{url}: cannot be used for an archive: {one_line(error)}") from error
        self._root = root.rstrip("/")

    # -- files --------------------------------------------------------------------------------------

    def files(self) -> dict[int, list[ArchiveFile]]:
        """All whole files by source, by their first offset, the longer one first. Empty where there is nothing yet."""
        found: dict[int, list[ArchiveFile]] = {}
        for name, entry in self._entries().items():
            match = _NAME.fullmatch(name)
            if match is not None and int(match[3]) <= int(match[4]):
                file = ArchiveFile(int(match[1]), int(match[3]), int(match[4]), match[2], entry.get("size") or 0)
                found.setdefault(file.source, []).append(file)
        for files in found.values():
            files.sort(key=in_order)
        return dict(sorted(found.items()))

    def ends(self, partitions: int) -> dict[int, int]:
        """By source, the offset after what is archived. Raises ArchiveError unless it is whole and of so many sources.

        That is, if there is nothing, offsets are missing, or the log has another number of partitions.
        """
        found = self.files()
        if any(missing(files)[1] is not None for files in found.values()):
            found = self.files()  # they were merged while the folder was looked through, and are there
        if not found:
            raise ArchiveError(f"{self.url}: there is no archive: `cco archive run` makes it")
        self.check_partitions(found, partitions)
        for source, files in found.items():
            begin, end = missing(files)
            if end is not None:
                raise ArchiveError(
                    f"{self.url}/source={source}: the offsets {begin} to {end - 1} are missing: `cco archive run`"
                    " archives them, if the log still has them"
                )
        return {source: missing(found.get(source, ()))[0] for source in range(partitions)}

    def check_partitions(self, found: dict[int, list[ArchiveFile]], partitions: int) -> None:
        """Raise ArchiveError if the log that was archived has another number of partitions."""
        for _, about in self._newest(found):
            there = int(about["partitions"])
            if there != partitions:
                raise ArchiveError(
                    f"{self.url}: is the archive of a topic with {there} partition{'s' * (there != 1)}, and"
                    f" retention.source_partitions is {partitions}: name another archive, or set it to {there}"
                )

    def topic_id(self) -> str | None:
        """Kafka's id of the topic that this is the archive of, as a newest file says; None if none of them does."""
        return next((about["topic_id"] for _, about in self._newest(self.files()) if "topic_id" in about), None)

    def check_topic(self, found: dict[int, list[ArchiveFile]], topic: str, id: str | None) -> None:
        """Raise ArchiveError if what is archived came from another topic than that of this id of Kafka's.

        What was archived before files had the id, or from a broker that tells none, is not looked at.
        """
        if id is None:
            return
        for file, about in self._newest(found):
            there = about.get("topic_id")
            if there not in (None, id):
                raise ArchiveError(
                    f"{self.url}: is the archive of another topic: {file.name} came from the one with id {there},"
                    f" and {topic} has id {id}: it was made anew, or is of another cluster: name another archive"
                )

    def _newest(self, found: Mapping[int, Sequence[ArchiveFile]]) -> Iterator[tuple[ArchiveFile, dict[str, Any]]]:
        """The newest file of each source, and what it says of itself, but for those that were merged just now."""
        for files in filter(None, found.values()):
            about = None
            with suppress(FileNotFoundError), self.opened(files[-1]) as file:
                about = _about(file)
            if about is not None:
                yield files[-1], about

    def remove(self, files: Iterable[ArchiveFile]) -> None:
        """Remove files; those that are gone already are none of our business."""
        for file in files:
            with self._explained(f"{self.url}/{file.name}", "removing it"), suppress(FileNotFoundError):
                self._fs.rm_file(f"{self._root}/{file.name}")

    def remove_left_over(self) -> int:
        """Remove files in the making whose writers were killed an hour ago or earlier; answers how many."""
        removed = 0
        for name in self._entries():
            if name.endswith(".part") and name.startswith("source="):
                with suppress(Exception):  # another one did it; or times are not known there, so it stays
                    path = f"{self._root}/{name}"
                    if datetime.now(UTC) - self._fs.modified(path) > _LEFT_OVER:
                        self._fs.rm_file(path)
                        removed += 1
        return removed

    def _entries(self) -> dict[str, dict[str, Any]]:
        """What is there, by path within the archive."""
        with self._explained(self.url, "listing the archive"):
            self._fs.invalidate_cache()
            if isinstance(self._fs, LocalFileSystem) and os.path.exists(self._root):
                os.listdir(self._root)  # what may not be read is not the same as nothing
            try:
                entries: dict[str, dict[str, Any]] = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {name.removeprefix(self._root).lstrip("/"): entry for name, entry in entries.items()}

    # -- writing ------------------------------------------------------------------------------------

    def write(
        self, tables: Iterable[pa.Table], source: int, first: int, last: int, day: str, about: dict[str, Any]
    ) -> ArchiveFile:
        """Write a file of the tables (of SCHEMA; each becomes a group of rows), whole or not at all.

        `about` is kept with it: `topic`, `partitions`, and `topic_id` where Kafka tells it.
        """
        file = ArchiveFile(source, first, last, day)
        finished = f"{self._root}/{file.name}"
        folder, name = finished.rsplit("/", 1)
        unfinished = f"{folder}/{name}.{secrets.token_hex(4)}.part"
        told = {"format": FORMAT, "source": source, "first": first, "last": last, **about}
        with self._explained(f"{self.url}/{file.name}", "writing it"):
            self._fs.makedirs(folder, exist_ok=True)
            try:
                with self._fs.open(unfinished, "wb") as opened:
                    _write(opened, tables, told)
                    opened.flush()
                    with suppress(AttributeError, io.UnsupportedOperation):
                        os.fsync(opened.fileno())
                size = int(self._fs.size(unfinished))
                self._fs.mv(unfinished, finished)
                if isinstance(self._fs, LocalFileSystem):
                    sync_folder(Path(folder))
            except BaseException:
                with suppress(Exception):  # `remove_left_over` does if this does not
                    self._fs.rm_file(unfinished)
                raise
        return replace(file, size=size)

    # -- reading ------------------------------------------------------------------------------------

    @contextmanager
    def opened(self, file: ArchiveFile) -> Iterator[pa.parquet.ParquetFile]:
        """A file to be read. Raises FileNotFoundError if it is gone, ArchiveError if it cannot be read."""
        where = f"{self.url}/{file.name}"
        with self._explained(where, "reading it", damage=True), self._fs.open(f"{self._root}/{file.name}", "rb") as raw:
            parquet = pa.parquet.ParquetFile(raw, page_checksum_verification=True)
            about = _about(parquet)
            if about.get("format") != FORMAT or about.get("source") != file.source:
                raise ArchiveError(f"{where}: is no file of this archive: remove it")
            yield parquet

    def groups(self, file: ArchiveFile) -> Iterator[pa.Table]:
        """The records of a file, some at a time. Raises as `opened`."""
        with self.opened(file) as parquet:
            for group in range(parquet.num_row_groups):
                yield parquet.read_row_group(group, columns=SCHEMA.names)

    def tables(self, source: int, begin: int, end: int) -> Iterator[pa.Table]:
        """The records with offsets from `begin` to before `end`, each once, in order, some at a time.

        Files may be merged by others meanwhile. Raises ArchiveError also where offsets are missing.
        """
        at, gone, missed = begin, None, -1
        while at < end:
            files = self.files().get(source, [])
            if gone is not None and gone in files:
                raise ArchiveError(f"{self.url}/{gone.name}: cannot be opened, and is there")
            for file in _covering(files, at, end):
                try:
                    for table in self.groups(file):
                        part = _between(table, at, end)
                        if part.num_rows:
                            at = int(part.column("offset")[-1].as_py()) + 1
                            yield part
                except FileNotFoundError:
                    gone = file
                    break
                at = min(file.last + 1, end)
            else:
                if missed == at < end:  # also in another look, after one that others merged files in
                    raise ArchiveError(f"{self.url}/source={source}: offset {at} is missing: see `cco archive verify`")
                missed = at

    def read(self, source: int, begin: int, end: int) -> Iterator[Records]:
        """As `tables`, as records."""
        for table in self.tables(source, begin, end):
            yield records_of(source, table)

    def last_record(self, files: Sequence[ArchiveFile]) -> Records | None:
        """The last one of a source's files; None if they have none."""
        for file in sorted(files, key=lambda file: -file.last):
            table = None
            for table in self.groups(file):  # noqa: B007  # the last one
                pass
            if table is not None and table.num_rows:
                return records_of(file.source, table.slice(table.num_rows - 1))
        return None

    @contextmanager
    def _explained(self, where: str, doing: str, damage: bool = False) -> Iterator[None]:
        """Turn whatever a file system or Parquet says into an ArchiveError; a file that is gone stays one."""
        try:
            yield
        except (ArchiveError, FileNotFoundError):
            raise
        except pa.ArrowException as error:
            raise ArchiveError(_damaged(where, error) if damage else f"{where}: {doing} failed: {error}") from error
        except Exception as error:
            if damage and isinstance(error, OSError) and error.errno is None:  # so Arrow tells of pages that are wrong
                raise ArchiveError(_damaged(where, error)) from error
            full = "there is no room: " if is_full(error) else ""
            raise ArchiveError(f"{where}: {doing} failed: {full}{one_line(error)}") from error


def table_of(records: Records) -> pa.Table:
    """Records as a table of SCHEMA."""
    columns = [
        pa.array(records.offsets),
        pa.array(records.milliseconds),
        pa.array(records.keys, pa.binary()),
        pa.array(records.values, pa.binary()),
    ]
    return pa.table(columns, schema=SCHEMA)


def records_of(source: int, table: pa.Table) -> Records:
    """A table of SCHEMA as records."""
    columns = [table.column(name).combine_chunks() for name in SCHEMA.names]
    offsets, times = (column.to_numpy(zero_copy_only=False).astype(np.int64, copy=False) for column in columns[:2])
    keys, values = (column.to_numpy(zero_copy_only=False).tolist() for column in columns[2:])
    return Records(source, keys, values, offsets, times, int(offsets[-1]) + 1 if len(offsets) else 0)


def in_order(file: ArchiveFile) -> tuple[int, int]:
    """What a source's files are sorted by: the first offset, the longer one first."""
    return file.first, -file.last


def _covering(files: Sequence[ArchiveFile], at: int, end: int) -> Iterator[ArchiveFile]:
    """Files that together have all from `at` on, up to `end` or to where offsets are missing; each the longest."""
    place = 0
    while at < end:
        best: ArchiveFile | None = None
        while place < len(files) and files[place].first <= at:
            best = max(best or files[place], files[place], key=lambda file: file.last)
            place += 1
        if best is None or best.last < at:
            return
        yield best
        at = best.last + 1


def _between(table: pa.Table, begin: int, end: int) -> pa.Table:
    """The records with offsets from `begin` to before `end`."""
    first, last = np.searchsorted(table.column("offset").to_numpy(), (begin, end)).tolist()
    return table.slice(first, last - first)


def _write(opened: Any, tables: Iterable[pa.Table], about: dict[str, Any]) -> None:
    schema = SCHEMA.with_metadata({_ABOUT: json.dumps(about)})
    with pa.parquet.ParquetWriter(
        opened,
        schema,
        compression="zstd",
        use_dictionary=["key"],
        column_encoding={"offset": "DELTA_BINARY_PACKED", "timestamp": "DELTA_BINARY_PACKED"},
        write_page_checksum=True,
    ) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))


def _about(file: pa.parquet.ParquetFile) -> dict[str, Any]:
    """What a file says of itself; nothing if it is none of ours."""
    try:
        about = json.loads((file.schema_arrow.metadata or {}).get(_ABOUT, b"{}"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def about_of(file: pa.parquet.ParquetFile) -> dict[str, Any]:
    """What `Archive.write` was told about it."""
    about = _about(file)
    return {name: about[name] for name in ("topic", "partitions", "topic_id") if name in about}


def _damaged(where: str, error: Exception) -> str:
    return (
        f"{where}: the file is damaged ({one_line(error)}): remove it, and `cco archive run` archives its records"
        " again, if the log still has them"
    )
