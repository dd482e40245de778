"""Parquet batches as columns."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet

from agents.files.arrow import texts_of
from agents.files.csv_format import find_columns
from agents.files.streams import BLOCK, InputError
from cco.columns import Coded, Packed
from cco.events import Columns, EventParser
from cco.times import MISSING, times_of, times_of_numbers

T = TypeVar("T")


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Whatever pyarrow has to say of a damaged file becomes an InputError that names the file."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise InputError(f"{name}: cannot be read as Parquet ({first_line(error)})") from None


def open_parquet(name: str, source: str | BinaryIO) -> pa.parquet.ParquetFile:
    """The file; `name` is what errors call it. Raises InputError."""
    with reading(name):
        file = pa.parquet.ParquetFile(source, pre_buffer=False)  # else all that is read so far stays in memory
        told, of_groups = file.metadata.num_rows, _rows_of_groups(file)
    if told != sum(of_groups) or min(of_groups, default=0) < 0:
        raise InputError(f"{name}: damaged Parquet: it says {told} rows, and its groups of rows say {sum(of_groups)}")
    return file


def batches_of(
    name: str, file: pa.parquet.ParquetFile, most: int, groups: list[int], columns: list[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Batches of at most `most` rows of some groups. Raises InputError, also for other rows than the groups say."""
    sizes = _rows_of_groups(file)
    left = sum(sizes[group] for group in groups)
    with reading(name):
        batches = file.iter_batches(batch_size=most, row_groups=groups, columns=columns)
    while True:
        with reading(name):
            batch = next(batches, None)
        if batch is None:
            break
        left -= batch.num_rows
        yield batch
    if left:
        more = f"{left} rows less" if left > 0 else f"{-left} rows more"
        raise InputError(f"{name}: damaged Parquet: there are {more} in it than it says")


@dataclass(slots=True)
class ParquetEvents:
    """A Parquet file of events. Raises InputError if it is damaged or its columns are not as needed."""

    name: str
    file: pa.parquet.ParquetFile
    names: dict[str, str]  # column name of each key that is there

    @classmethod
    def open(cls, path: str, opened: BinaryIO | None = None) -> ParquetEvents:
        """`path` names it in errors, and is read unless it is `opened` already."""
        file = open_parquet(path, opened or path)
        with reading(path):
            names = list(file.schema_arrow.names)
        found = {key: names[place] for key, place in find_columns(names, path).items()}
        for key, name in found.items():
            _check_type(key, name, file.schema_arrow.field(name).type, path)
        return cls(path, file, found)

    @property
    def rows(self) -> int:
        return int(self.file.metadata.num_rows)

    def batches(self, most: int, skip: int) -> Iterator[pa.RecordBatch]:
        """Batches of at most `most` rows, without the first `skip` rows. Raises InputError."""
        sizes = _rows_of_groups(self.file)
        groups = list(range(len(sizes)))
        while groups and sizes[groups[0]] <= skip:
            skip -= sizes[groups.pop(0)]
        if not groups:
            return
        size = sum(self.file.metadata.row_group(group).total_byte_size for group in groups)
        rows = sum(sizes[group] for group in groups)
        most = max(1, min(most, BLOCK * rows // max(size, 1)))  # wide rows: fewer of them, as of lines of text
        for batch in batches_of(self.name, self.file, most, groups, list(self.names.values())):
            dropped = min(skip, batch.num_rows)
            skip -= dropped
            if batch.num_rows > dropped:
                yield batch.slice(dropped)

    def parts(self, parser: EventParser, most: int, skip: int) -> Iterator[tuple[int, Columns]]:
        """Batches as `batches` gives them: how many rows, and their columns."""
        for batch in self.batches(most, skip):
            yield batch.num_rows, self.columns(batch, parser)

    def columns(self, batch: pa.RecordBatch, parser: EventParser) -> Columns:
        """The columns of a batch."""
        with reading(self.name):
            return self._columns(batch, parser)

    def _columns(self, batch: pa.RecordBatch, parser: EventParser) -> Columns:
        columns = {key: batch.column(name) for key, name in self.names.items()}
        users, items, events = (_ids(columns["user"]), _ids(columns["item"]), _coded(columns["event"]))
        n = batch.num_rows
        times, raw = np.full(n, MISSING, np.int64), None
        if "timestamp" in columns:
            times, raw = _times(columns["timestamp"])
        bad_weights = np.zeros(n, np.bool_)
        if "weight" in columns:
            weights = columns["weight"].cast(pa.float64()).to_numpy(zero_copy_only=False)  # null becomes NaN
            bad_weights = ~np.isfinite(weights) & _valid(columns["weight"])

        def record(k: int) -> dict[str, Any]:
            row: dict[str, Any] = {
                self.names["user"]: _value(columns["user"], k),
                self.names["item"]: _value(columns["item"], k),
                self.names["event"]: _value(columns["event"], k),
            }
            if raw is not None:
                row["timestamp"] = raw[k] if times[k] != MISSING else None
            if bad_weights[k]:
                row["weight"] = float(weights[k])
            return row

        return Columns(
            users,
            items,
            parser.types_of(events),
            times,
            bad_weights.copy(),
            record,
            lambda k: _shown(record(k).values()),
        )


def ahead(parts: Iterator[T]) -> Generator[T, None, None]:
    """The same, each made in a thread while the one before is being used: Arrow decodes without the GIL."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(next, parts, None)
        while (part := waiting.result()) is not None:
            waiting = pool.submit(next, parts, None)
            yield part


def _rows_of_groups(file: pa.parquet.ParquetFile) -> list[int]:
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def first_line(error: BaseException) -> str:
    """What an error says first, at most 200 characters of it."""
    return str(error).split("\n", 1)[0][:200]


def _shown(values: Any) -> str:
    return ",".join("" if value is None else str(value).encode(errors="replace").decode() for value in values)


def _check_type(key: str, name: str, kind: pa.DataType, path: str) -> None:
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)
    allowed = {
        "user": (text or types.is_integer(kind), "text or whole numbers"),
        "item": (text or types.is_integer(kind), "text or whole numbers"),
        "event": (text, "text"),
        "timestamp": (
            text
            or types.is_integer(kind)
            or types.is_floating(kind)
            or types.is_timestamp(kind)
            or types.is_date(kind),
            "epoch seconds, timestamps, dates or text in ISO 8601",
        ),
        "weight": (types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind), "numbers"),
        "event_id": (True, ""),
    }
    good, needed = allowed[key]
    if not good and not (types.is_null(kind) and key in ("user", "item", "event", "timestamp")):
        raise InputError(f"{path}: the column {name} is of type {kind}; needed: {needed}")


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _valid(column: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)


def _coded(column: pa.Array) -> Coded:
    """Different values as text and a code for each row, -1 for null."""
    column = _plain(column)
    if pa.types.is_null(column.type):
        return Coded([], np.full(len(column), -1, np.int32))
    encoded = column.dictionary_encode()
    values = encoded.dictionary
    texts = [str(v) for v in values.to_pylist()] if pa.types.is_integer(values.type) else texts_of(values)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return Coded(texts, codes.astype(np.int32))


def _ids(column: pa.Array) -> Coded | Packed:
    """As UTF-8 where that is what it is, which is the quickest to be interned."""
    types, kind = pa.types, column.type
    small, large = (
        types.is_string(kind) or types.is_binary(kind),
        types.is_large_string(kind) or types.is_large_binary(kind),
    )
    if column.null_count or not (small or large):
        return _coded(column)
    _, bounds, data = column.buffers()
    offsets = np.frombuffer(bounds, np.int32 if small else np.int64)[column.offset :][: len(column) + 1].astype(
        np.int64
    )
    begin, end = (int(offsets[0]), int(offsets[-1])) if len(column) else (0, 0)
    text = np.frombuffer(data, np.uint8)[begin:end].copy() if end > begin else np.zeros(0, np.uint8)
    return Packed(text, offsets - begin if len(column) else np.zeros(1, np.int64))


def _value(column: pa.Array, k: int) -> str | None:
    """The text of a row, None where there is none."""
    found: str | None = texts_of(_plain(column.slice(k, 1)).cast(_text_type(column.type)))[0]
    return found


def _text_type(kind: pa.DataType) -> pa.DataType:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_integer(kind) or pa.types.is_null(kind) else kind


def _times(column: pa.Array) -> tuple[npt.NDArray[np.int64], Any]:
    """Times as `times_of` makes them, and the values that they were (indexable by row) for error messages."""
    column = _plain(column)
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), MISSING, np.int64), [None] * len(column)
    valid = _valid(column)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        if pa.types.is_date(kind):
            kind, column = pa.timestamp("s"), column.cast(pa.timestamp("s"))
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        values = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False) // per_second
    elif pa.types.is_integer(kind) or pa.types.is_floating(kind):
        values = column.fill_null(0).to_numpy(zero_copy_only=False)
    else:
        texts = texts_of(column)
        return times_of(texts), texts
    return np.where(valid, times_of_numbers(values), MISSING), values
