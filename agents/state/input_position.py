"""Where in its input files a replay stands, kept with the state, and checked before it goes on.

Going on is exact only if what was read is still what is there: each file's first 64 KiB are compared, files
that were read to their end must not have grown (their new events would belong before those of the next
file), compressed files and Parquet must be as large as they were, and the last plain file may have grown
only after a complete line. The name under which a file was read is for messages alone: a log that was
rotated is the same file under its new name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, BinaryIO

from agents.files.streams import InputError, open_input, size_of
from agents.state.errors import StateError

HEAD = 64 << 10
_MAGIC_FIXED = (b"\x1f\x8b", b"PAR1")  # gzip and Parquet: files that never grow


@dataclass(frozen=True, slots=True)
class FilePosition:
    """How far a file is read, and what tells that it is the same one."""

    name: str
    records: int = 0  # consumed, good and bad
    bytes: int = 0  # read of the file as it is stored
    size: int | None = None  # of a file that must not grow
    head: int = 0  # how many of its first bytes `sha256` is of
    sha256: str = ""
    open_end: bool = False  # the last record consumed had no line break


@dataclass(slots=True)
class InputPosition:
    """The files that were touched, in order, the last one perhaps in the middle; and totals of what they held."""

    files: list[FilePosition] = field(default_factory=list)
    accepted: int = 0
    rejected: int = 0
    item_changes: int = 0

    @property
    def records(self) -> int:
        """Records consumed, of all files."""
        return sum(file.records for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """Plain values for a commit record."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> InputPosition:
        """The converse of `to_json`."""
        return cls(**{**value, "files": [FilePosition(**file) for file in value["files"]]})

    def begun(self, name: str, stored: BinaryIO) -> InputPosition:
        """The position with the next file begun, which is open as `stored`. Raises InputError."""
        file = replace(_with_head(FilePosition(name), stored, HEAD), head=0, sha256="")
        return replace(self, files=[*self.files, file])

    def gone_on(self, name: str, stored: BinaryIO) -> InputPosition:
        """The position with its last file, where it goes on, open as `stored` under its name of today.

        Raises InputError if it is another one than `rest` saw.
        """
        file = self.files[-1]
        if file.head and _with_head(file, stored, file.head).sha256 != file.sha256:
            raise InputError(f"{name}: was replaced while it was opened: start again")
        return replace(self, files=[*self.files[:-1], replace(file, name=name)])

    def advanced(self, stored: BinaryIO, records: int, bytes_read: int, at_end: bool) -> InputPosition:
        """The position with the present file, open as `stored`, consumed up to `records`.

        `bytes_read` of it were looked at, all of them if `at_end`. Raises InputError.
        """
        file = replace(self.files[-1], records=records, bytes=bytes_read)
        if file.head < min(HEAD, bytes_read):
            file = _with_head(file, stored, min(HEAD, bytes_read))
        if at_end and file.size is None and bytes_read:
            file = replace(file, open_end=_read_at(file.name, stored, bytes_read - 1, 1) != b"\n")
        return replace(self, files=[*self.files[:-1], file])

    def rest(self, paths: Sequence[str], where: object) -> list[tuple[int, str, int]]:
        """(number, path, records to skip) of each input that may have more. Raises StateError if they are others.

        `where` names the state in errors.
        """
        if len(paths) < len(self.files):
            raise StateError(
                f"{where}: the state has read {len(self.files)} inputs, and {len(paths)} are given: name all of them,"
                " in the same order, and new ones after them"
            )
        for number, file in enumerate(self.files):
            problem = _problem(file, paths[number], number < len(self.files) - 1)
            if problem:
                raise StateError(
                    f"{where}: input {number + 1}, {paths[number]}, {problem}; give the inputs that the state was made"
                    " from, or replay into a new directory"
                )
        skips = [self.files[-1].records] if self.files else []
        skips += [0] * (len(paths) - len(self.files))
        first = len(paths) - len(skips)
        return [(first + k, paths[first + k], skip) for k, skip in enumerate(skips)]


def _problem(file: FilePosition, path: str, finished: bool) -> str | None:
    """What speaks against going on with `path` where `file` stands, as the end of a sentence."""
    size = size_of(path) or 0
    with open_input(path) as stored:
        same = not file.head or _with_head(FilePosition(path), stored, file.head).sha256 == file.sha256
    if size < file.bytes or not same:
        return f"is not the file that was read before (then {file.name})"
    if file.size is not None:
        return None if size == file.size else "has changed: compressed files and Parquet are read once and never grow"
    if size > file.bytes and finished:
        return "has grown since it was read to its end; only the last input may grow"
    if size > file.bytes and file.open_end:
        return "has grown in the middle of a line: its last line was applied before it was complete"
    return None


def _with_head(file: FilePosition, stored: BinaryIO, head: int) -> FilePosition:
    """The file with a digest of its first `head` bytes, and its size if it must not grow."""
    data = _read_at(file.name, stored, 0, head)
    fixed = data.startswith(_MAGIC_FIXED) or file.size is not None
    size = os.fstat(stored.fileno()).st_size if fixed else None
    return replace(file, head=len(data), sha256=hashlib.sha256(data).hexdigest(), size=size)


def _read_at(name: str, stored: BinaryIO, at: int, size: int) -> bytes:
    """Bytes of an open file; who reads on in it is not disturbed."""
    try:
        return os.pread(stored.fileno(), size, at)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
