"""Inputs as streams of bytes: opened, decompressed, recognised by their content, cut into whole lines."""

from __future__ import annotations

import gzip
import os
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

import numpy as np

STANDARD_INPUT = "-"
MAX_LINE = 1 << 20  # bytes
BLOCK = 8 << 20
SHOWN = 200
MOST_UNPACKED = 64 << 30  # bytes of a temporary file

Format = Literal["csv", "jsonl", "parquet", "empty"]

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_READ_BEFORE = "; what came before was read"
_FOREIGN = {
    b"PK\x03\x04": "a zip archive (or a spreadsheet): unpack it, or save it as CSV",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it, or use gzip",
    b"BZh": "compressed with bzip2: unpack it, or use gzip",
    b"\xfd7zXZ": "compressed with xz: unpack it, or use gzip",
    b"\xff\xfe": "UTF-16: convert it to UTF-8",
    b"\xfe\xff": "UTF-16: convert it to UTF-8",
}


class InputError(Exception):
    """An input that cannot be read (on): one readable line that names it."""


class Stream:
    """The bytes of one input, decompressed, with a look ahead at its start. Raises InputError on any failure."""

    def __init__(self, path: str, stdin: BinaryIO | None = None, opened: BinaryIO | None = None) -> None:
        self.name = "standard input" if path == STANDARD_INPUT else path
        self._standard = path == STANDARD_INPUT
        self._owned = not self._standard and opened is None
        self._raw = opened or (open_input(path) if self._owned else stdin or sys.stdin.buffer)
        self._counted = _Counted(self._raw)
        self._unpacked: gzip.GzipFile | _Counted = self._counted
        self._head = b""
        self._error: str | None = None
        if self.peek(len(_GZIP)) == _GZIP:
            self._counted.back(self._head)
            self._head = b""
            self._unpacked = gzip.GzipFile(fileobj=self._counted)  # type: ignore[call-overload]  # it only reads
        if self.peek(len(_BOM)) == _BOM:
            self._head = self._head[len(_BOM) :]

    @property
    def in_place(self) -> bool:
        """Whether these are the bytes of a file as it is stored, which can be read from any place of it."""
        return self._unpacked is self._counted and not self._standard and self._raw.seekable()

    @property
    def consumed(self) -> int:
        """Bytes read from the input so far, as it is stored."""
        return self._counted.count

    def peek(self, size: int) -> bytes:
        """The next `size` bytes (fewer at the end), which stay to be read."""
        while len(self._head) < size:
            try:
                more = self._next(size - len(self._head))
            except InputError:  # told when what came before has been read
                if not self._head:
                    raise
                break
            if not more:
                break
            self._head += more
        return self._head[:size]

    def read(self, size: int) -> bytes:
        """At most `size` bytes, b"" at the end."""
        data, self._head = self._head[:size], self._head[size:]
        return data or self._next(size)

    def _next(self, size: int) -> bytes:
        """What can be read, up to `size` bytes; a failure shows only after all that came before it."""
        parts: list[bytes] = []
        missing = size
        while missing and self._error is None:
            try:
                part = self._unpacked.read1(missing)
            except EOFError:
                self._error = f"the gzip file is cut off{_READ_BEFORE}"
            except (gzip.BadGzipFile, zlib.error) as error:
                self._error = f"the gzip file is damaged ({error}){_READ_BEFORE}"
            except OSError as error:
                self._error = error.strerror or str(error)
            else:
                if not part:
                    break
                parts.append(part)
                missing -= len(part)
        if self._error is not None and not parts:
            raise InputError(f"{self.name}: {self._error}")
        return b"".join(parts)

    def close(self) -> None:
        """Close the file; standard input, and what the caller opened, stay open."""
        if self._owned:
            self._raw.close()


class _Counted:
    """A binary file that counts what is read of it and takes bytes back."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._back = b""
        self.count = 0

    def back(self, data: bytes) -> None:
        self._back = data

    def read(self, size: int = -1) -> bytes:
        if self._back:
            data, self._back = (self._back, b"") if size < 0 else (self._back[:size], self._back[size:])
            return data
        data = self._raw.read(size)
        self.count += len(data)
        return data

    read1 = read


def open_input(path: str) -> BinaryIO:
    """A file to be read. Raises InputError."""
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def size_of(path: str) -> int | None:
    """Bytes of a regular file, None for standard input and pipes. Raises InputError if it cannot be read."""
    if path == STANDARD_INPUT:
        return None
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise InputError(f"{path}: is a folder; name the files in it")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: no permission to read it")
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def recognise(stream: Stream) -> Format:
    """The format of an input, by its content, then by its name. Raises InputError for a foreign one."""
    head = stream.peek(4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise InputError(f"{stream.name}: is {what}")
    text = head.lstrip()
    if not text and len(head) < 4096:
        while stream.read(BLOCK):  # or it is cut off: that is told here
            pass
        return "empty"
    endings = stream.name.lower().removesuffix(".gz").rsplit(".", 1)
    if text.startswith(b"{") or endings[-1] in ("jsonl", "ndjson", "jl"):
        return "jsonl"
    if endings[-1] == "json":
        if text.startswith(b"["):
            raise InputError(f"{stream.name}: is one JSON array; write one object on each line (jq -c '.[]' does it)")
        return "jsonl"
    return "csv"


@contextmanager
def in_file(stream: Stream) -> Iterator[BinaryIO]:
    """What is left of a stream in a temporary file without a name, for a format that is read from its end.

    Raises InputError if it cannot be read, or there is no room for it.
    """
    advice = "write it unpacked to a file, and name that"
    with tempfile.TemporaryFile() as file:
        size = 0
        try:
            while block := stream.read(BLOCK):
                size += len(block)
                if size > MOST_UNPACKED:
                    raise InputError(f"{stream.name}: has more than {MOST_UNPACKED} bytes when unpacked: {advice}")
                file.write(block)
            file.seek(0)
        except InputError as error:  # nothing was read: there was no end to begin with
            raise InputError(str(error).removesuffix(_READ_BEFORE)) from None
        except OSError as error:
            where = f"{tempfile.gettempdir()} ({error.strerror or error})"
            raise InputError(f"{stream.name}: cannot be unpacked to {where}: set TMPDIR, or {advice}") from None
        yield file


@dataclass(slots=True)
class Lines:
    """Whole lines. Those that are too long are blank in `data`; `overlong` has how they began."""

    data: bytes
    count: int
    overlong: dict[int, bytes] = field(default_factory=dict)

    def without(self, first: int) -> Lines:
        """All but the first lines."""
        data = self.data
        start = 0
        for _ in range(first):
            start = data.index(b"\n", start) + 1
        kept = {k - first: begin for k, begin in self.overlong.items() if k >= first}
        return Lines(data[start:], self.count - first, kept)


def read_lines(stream: Stream, most: int) -> Iterator[Lines]:
    """The lines of a stream, at most `most` at a time; one longer than MAX_LINE is never held whole."""
    carry = b""
    begin: bytes | None = None  # of the overlong line that we are in
    while block := stream.read(BLOCK):
        overlong: dict[int, bytes] = {}
        if begin is not None:
            end = block.find(b"\n")
            if end < 0:
                continue
            overlong[0], begin = begin, None
            text = block[end:]
        else:
            text = carry + block
        last = text.rfind(b"\n") + 1
        carry = text[last:]
        if len(carry) > MAX_LINE:
            begin, carry = carry[:SHOWN], b""
        if last:
            yield from _cut(text[:last], overlong, most)
    if begin is not None:
        yield Lines(b"\n", 1, {0: begin})
    elif carry:
        yield from _cut(carry + b"\n", {}, most)


def _cut(text: bytes, overlong: dict[int, bytes], most: int) -> Iterator[Lines]:
    """`text`, whole lines each with its line break, in pieces of `most` lines."""
    ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
    lengths = np.diff(ends, prepend=0)
    if lengths.max() > MAX_LINE + 1:
        starts = ends - lengths
        for k in np.flatnonzero(lengths > MAX_LINE + 1).tolist():
            overlong[k] = text[starts[k] : starts[k] + SHOWN]
        text = b"".join(
            b"\n" if k in overlong else text[start:end]
            for k, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True))
        )
        yield from _cut(text, overlong, most)
        return
    for first in range(0, len(ends), most):
        count = min(most, len(ends) - first)
        start = int(ends[first - 1]) if first else 0
        here = {k - first: begin for k, begin in overlong.items() if first <= k < first + count}
        yield Lines(text[start : int(ends[first + count - 1])], count, here)
