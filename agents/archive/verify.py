"""The archive compared with the log that it is of, record by record: `cco archive verify`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from agents.archive.archive import Archive, ArchiveError, ArchiveFile, holes, missing
from agents.kafka.client import KafkaProblem
from agents.kafka.reading import read_topic, synchronously
from agents.kafka.records import Records
from agents.kafka.topics import INTERACTIONS, describe_topics
from agents.settings import Settings
from cco.config import Config

SHOWN = 20  # differences of a partition that are told; the rest is counted


@dataclass(slots=True)
class PartitionVerified:
    """What was found in one partition."""

    partition: int
    archived: int  # offset after what is archived without a hole
    begin: int  # of the log
    end: int  # of the log
    records: int = 0  # of the archive that were read
    compared: int = 0  # of these, with the log
    different: int = 0  # offsets
    differences: list[str] = field(default_factory=list)  # the first ones, a sentence each
    problems: list[str] = field(default_factory=list)  # of the archive as such

    @property
    def ok(self) -> bool:
        """Whether it is whole and says what the log says."""
        return not self.different and not self.problems

    @property
    def behind(self) -> int:
        """Offsets of the log that are not archived yet."""
        return max(0, self.end - self.archived)

    def differs(self, offset: int, what: str) -> None:
        """Note a difference."""
        self.different += 1
        if len(self.differences) < SHOWN:
            self.differences.append(f"partition {self.partition}, offset {offset}: {what}")


def verify(
    archive: Archive, config: Config, settings: Settings, tell: Callable[[int, int], None] = lambda done, total: None
) -> list[PartitionVerified]:
    """Read the whole archive, and compare what the log still has with it.

    `tell` hears how much of the archive is read, as offsets count. Not to be called where an event loop runs. Raises
    ArchiveError if there is no archive that can be compared, KafkaProblem.
    """
    partitions, bounds = config.retention.source_partitions, asyncio.run(_bounds(config, settings))
    found = archive.files()
    if not found:
        raise ArchiveError(f"{archive.url}: there is no archive: `cco archive run` makes it")
    if len(bounds) != partitions:
        raise KafkaProblem(
            f"the topic {settings.topic(INTERACTIONS)} has {len(bounds)} partitions, and the configuration wants"
            f" {partitions} (retention.source_partitions)"
        )
    archive.check_partitions(found, partitions)
    wanted = {partition: missing(found.get(partition, ()))[0] for partition in range(partitions)}
    done, total, told = 0, sum(wanted.values()), []
    for partition, (begin, end) in bounds.items():
        result = PartitionVerified(partition, wanted[partition], begin, end)
        _problems(result, found.get(partition, []))
        try:
            for at in _compare(archive, settings, result):
                tell(done + at, total)
        except ArchiveError as error:
            result.problems.append(str(error))
        done += wanted[partition]
        told.append(result)
    return told


async def _bounds(config: Config, settings: Settings) -> dict[int, tuple[int, int]]:
    """Where each partition of the log begins and ends. Raises KafkaProblem."""
    name = settings.topic(INTERACTIONS)
    topic = next((topic for topic in await describe_topics(config, settings) if topic.name == name), None)
    if topic is None:
        raise KafkaProblem(f"Kafka at {settings.brokers} has no topic {name}: is the topic prefix right?")
    found = {}
    for partition in topic.partitions:
        if partition.begin is None or partition.end is None:
            raise KafkaProblem(f"{name}, partition {partition.partition}: has no leader now: try again")
        found[partition.partition] = (partition.begin, partition.end)
    return found


def _problems(result: PartitionVerified, files: list[ArchiveFile]) -> None:
    for first, after in holes(files):
        result.problems.append(f"partition {result.partition}: the offsets {first} to {after - 1} are missing")
    if result.archived > result.end:
        result.problems.append(
            f"partition {result.partition}: is archived up to offset {result.archived}, and the log ends at"
            f" {result.end}: it is another log"
        )


def _compare(archive: Archive, settings: Settings, result: PartitionVerified) -> Iterator[int]:
    """Compare a partition, and yield the offsets up to which that is done."""
    archived = _Cursor(archive.read(result.partition, 0, result.archived))
    first, end = min(result.begin, result.archived), min(result.archived, result.end)
    for records in archived.up_to(first):  # what the log does not have any more can be read, at least
        result.records += len(records.keys)
        yield records.next_offset
    if first < end:
        ends, begins = {result.partition: end}, {result.partition: first}
        for logged in synchronously(lambda: read_topic(settings, INTERACTIONS, ends, begins=begins)):
            ours = [row for records in archived.up_to(logged.next_offset) for row in _rows(records)]
            theirs = _rows(logged)
            result.records += len(ours)
            result.compared += len(theirs)
            if ours != theirs:
                _name(result, ours, theirs)
            yield logged.next_offset
    for records in archived.up_to(result.archived):
        result.records += len(records.keys)
        for offset in records.offsets.tolist():
            result.differs(offset, "is in the archive, and not in the log")
        yield records.next_offset


_Row = tuple[int, int, bytes | None, bytes | None]


def _rows(records: Records) -> list[_Row]:
    return list(zip(records.offsets.tolist(), records.milliseconds.tolist(), records.keys, records.values, strict=True))


def _name(result: PartitionVerified, archived: list[_Row], logged: list[_Row]) -> None:
    ours: Mapping[int, _Row] = {row[0]: row for row in archived}
    theirs: Mapping[int, _Row] = {row[0]: row for row in logged}
    for offset in sorted(ours.keys() | theirs.keys()):
        if offset not in ours:
            result.differs(offset, "is in the log, and not in the archive")
        elif offset not in theirs:
            result.differs(offset, "is in the archive, and not in the log")
        elif ours[offset] != theirs[offset]:
            parts = zip(("timestamp", "key", "value"), ours[offset][1:], theirs[offset][1:], strict=True)
            names = ", ".join(name for name, mine, other in parts if mine != other)
            result.differs(offset, f"archive and log differ in {names}")


class _Cursor:
    """Records of one partition that are taken up to one offset after another."""

    def __init__(self, source: Iterator[Records]) -> None:
        self._source = source
        self._rest: Records | None = None

    def up_to(self, end: int) -> Iterator[Records]:
        """Those before `end` that were not taken yet."""
        while True:
            records = self._rest if self._rest is not None else next(self._source, None)
            self._rest = None
            if records is None:
                return
            part = records.between(0, end)
            if part.keys:
                yield part
            if len(part.keys) < len(records.keys):
                self._rest = records.between(end, records.next_offset)
                return
