"""Merging the small files of an archive's days into large ones, while others write and read.

The large file is written first, then the small ones are removed: a crash in between leaves files that overlap, which
harms nothing, and the next time removes those that another file contains. What is removed is always contained in one
whole file that is there, so two who merge at a time lose nothing either.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from agents.archive.archive import GROUP_BYTES, GROUP_ROWS, Archive, ArchiveError, ArchiveFile, about_of

LARGEST = 256 << 20  # bytes: what is merged comes to no more than this
TIER = 16  # so many files of like size are merged by who goes on writing: each record is rewritten a few times at most
_SMALLEST = 1 << 16  # bytes: up to 16 times as many, sizes are alike


@dataclass(frozen=True, slots=True)
class Compacted:
    """What was done."""

    made: tuple[ArchiveFile, ...] = ()
    removed: tuple[ArchiveFile, ...] = ()


def due(files: Sequence[ArchiveFile]) -> list[list[ArchiveFile]]:
    """Files of a source worth merging while it is written to: neighbours of one day and of like size, 16 or more."""
    return [run for run in _runs(files, tiers=True) if len(run) >= TIER]


def mergeable(files: Sequence[ArchiveFile]) -> list[list[ArchiveFile]]:
    """All neighbours of one day among the files of a source that can become one."""
    return [run for run in _runs(files, tiers=False) if len(run) > 1]


def contained(files: Sequence[ArchiveFile]) -> list[tuple[ArchiveFile, ArchiveFile]]:
    """The files of a source that another one of them contains, each with that one."""
    found: list[tuple[ArchiveFile, ArchiveFile]] = []
    longest: ArchiveFile | None = None
    for file in files:
        if longest is not None and file.last <= longest.last:
            found.append((file, longest))
        else:
            longest = file
    return found


def compact(
    archive: Archive, files: Sequence[ArchiveFile], runs: Iterable[Sequence[ArchiveFile]] | None = None
) -> Compacted:
    """Merge runs of the files of a source, by default all that can be, and remove what is contained in others.

    Raises ArchiveError; FileNotFoundError if another one who merges was first.
    """
    made, removed = [], []
    within = contained(files)
    for file, other in within:
        with archive.opened(other):  # at least its end is whole
            removed.append(file)
    archive.remove(removed)
    for run in mergeable(files) if runs is None else runs:
        made.append(_merge(archive, run))
        archive.remove(run)
        removed += run
    return Compacted(tuple(made), tuple(removed))


def _merge(archive: Archive, run: Sequence[ArchiveFile]) -> ArchiveFile:
    source, first, last = run[0].source, run[0].first, max(file.last for file in run)
    about: dict[str, Any] = {}
    for each in run:
        with archive.opened(each) as file:
            about |= about_of(file)  # older ones may not say of which topic they are
    written = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal written
        for table in _together(archive.tables(source, first, last + 1)):
            written += table.num_rows
            yield table

    merged = archive.write(counted(), source, first, last, run[0].day, about)
    with archive.opened(merged) as file:
        if file.metadata.num_rows != written:
            raise ArchiveError(f"{archive.url}/{merged.name}: has not what was written to it: remove it")
    return merged


def _together(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same records in groups of the size that is read at a time."""
    held: list[pa.Table] = []
    rows = size = 0
    for table in tables:
        if held and (rows + table.num_rows > GROUP_ROWS or size + table.nbytes > GROUP_BYTES):
            yield pa.concat_tables(held)
            held, rows, size = [], 0, 0
        held.append(table)
        rows += table.num_rows
        size += table.nbytes
    if held:
        yield pa.concat_tables(held)


def _runs(files: Sequence[ArchiveFile], tiers: bool) -> Iterator[list[ArchiveFile]]:
    """Neighbours of one day, together not too large, and with `tiers` of like size; without contained files."""
    inside = {file for file, _ in contained(files)}
    run: list[ArchiveFile] = []
    for file in files:
        if file in inside:
            continue
        if run and (
            file.day != run[-1].day
            or file.first > run[-1].last + 1
            or sum(each.size for each in run) + file.size > LARGEST
            or (tiers and _tier(file) != _tier(run[-1]))
        ):
            yield run
            run = []
        run.append(file)
    if run:
        yield run


def _tier(file: ArchiveFile) -> int:
    return int(math.log(max(file.size, _SMALLEST) / _SMALLEST, TIER))
