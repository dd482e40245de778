"""The agent that keeps the archive of `interactions`: every record of the log, as it is, exactly once.

It has no state. What the files' names say is archived; what they do not say is read from the log and written, so it can
be killed at any time, and two of them at a time do the work twice and no harm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from agents.archive.archive import DAY_MS, Archive, ArchiveError, ArchiveFile, day_of, in_order, missing, table_of
from agents.archive.compaction import compact, due
from agents.kafka.client import check_partitions, client_options, kafka_errors
from agents.kafka.logs import look_at
from agents.kafka.reading import FETCH_BYTES
from agents.kafka.records import Records
from agents.kafka.topics import INTERACTIONS
from agents.settings import Settings
from cco.config import Config

EVERY = 60.0  # seconds that a record waits at most until it is archived
FILE_BYTES = 32 << 20  # of records of a partition, after which a file is written at once
HELD_BYTES = 256 << 20  # of records of all partitions
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between attempts to write, each twice the one before
LOOK_SECONDS = 5.0  # between two looks at where the log ends, and whether it is still the same

_POLL_MS = 200
_FETCH_RECORDS = 65_536
_RECORD_BYTES = 150  # of a held record besides its key and value
_PATIENCE = 30.0  # seconds without a record that must be there

T = TypeVar("T")
_Record: TypeAlias = "ConsumerRecord[bytes, bytes]"


@dataclass(slots=True)
class _Source:
    """A partition: what is held of it, and the stretch of offsets that is being archived."""

    at: int  # the next offset to read
    stop: int | None  # where files begin that are there already
    first: int = 0  # offset that the next file begins with
    records: list[_Record] = field(default_factory=list)
    size: int = 0  # bytes held
    since: float = 0.0  # when the first of them came
    log_end: int = 0  # offset, as of the last look
    files: int = 0  # written
    archived: int = 0  # records in them

    def take(self, records: Sequence[_Record], at: int) -> None:
        if not self.records:
            self.since = time.monotonic()
        self.records += records
        self.size += sum(_RECORD_BYTES + len(r.key or b"") + len(r.value or b"") for r in records)
        self.at = at

    @property
    def first_unwritten(self) -> int:
        """Offset of the first record that is in no file; offsets without records, of transactions, are passed over."""
        return self.first if self.records else max(self.first, self.at)

    def records_held(self, partition: int) -> Records:
        """What is held, as records up to `at`."""
        held = self.records
        return Records(
            partition,
            [record.key for record in held],
            [record.value for record in held],
            np.fromiter((record.offset for record in held), np.int64, len(held)),
            np.fromiter((record.timestamp for record in held), np.int64, len(held)),
            self.at,
        )

    def written(self) -> None:
        """What was held is in a file."""
        self.first, self.records, self.size = self.at, [], 0


@dataclass(slots=True)
class Archived:
    """What an agent did: by partition, where its archive ends; files and records written, and files merged."""

    offsets: dict[int, int] = field(default_factory=dict)
    files: int = 0
    records: int = 0
    merged: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """How a partition stands: offsets up to where it is archived and where its log ends; what was written here."""

    archived: int
    log_end: int
    records: int
    files: int

    @property
    def lag(self) -> int:
        """Records of the log, as offsets count, that are not archived."""
        return max(0, self.log_end - self.archived)


@dataclass(frozen=True, slots=True)
class Told:
    """Something that happened, for a log: `problem` is None where it is no problem."""

    what: str
    partition: int
    file: ArchiveFile | None = None
    problem: str | None = None


class ArchiveAgent:
    """Archives the topic `interactions` of `settings`. For one call of `run`.

    `every`: seconds that a record waits at most until it is in a file. `tell` hears of each file and each failure.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        archive: Archive,
        *,
        every: float = EVERY,
        tell: Callable[[Told], None] = lambda told: None,
    ) -> None:
        self.done = Archived()
        self.trouble: str | None = None  # why files cannot be written just now
        self.failures = 0  # of attempts to write a file
        self._config, self._settings, self._archive = config, settings, archive
        self._every, self._tell = every, tell
        self._topic = settings.topic(INTERACTIONS)
        self._partitions = config.retention.source_partitions
        self._files: dict[int, list[ArchiveFile]] = {}
        self._sources: dict[int, _Source] = {}
        self._stopping = asyncio.Event()
        self._once = False
        self._topic_id: str | None = None  # None: Kafka tells none
        self._replaced: ArchiveError | None = None  # the topic is another one by now

    def stop(self) -> None:
        """Archive what was read, and end `run`."""
        self._stopping.set()

    def standing(self) -> dict[int, Standing]:
        """By partition, once it is known."""
        return {
            partition: Standing(of.first_unwritten, max(of.log_end, of.at), of.archived, of.files)
            for partition, of in sorted(self._sources.items())
        }

    async def run(self, once: bool = False) -> Archived:
        """Archive until `stop`; with `once`, up to where the log ends now.

        While files cannot be written it holds what fits, reads no further and tries again; with `once`, or when it is
        to stop, it raises instead. Raises ArchiveError, also where the log has lost what is not archived; KafkaProblem.
        """
        self._once = once
        self._files = await asyncio.to_thread(self._archive.files)
        await asyncio.to_thread(self._archive.check_partitions, self._files, self._partitions)
        with kafka_errors(self._settings, f"reading {self._topic}"):
            consumer = AIOKafkaConsumer(
                **client_options(self._settings),
                enable_auto_commit=False,
                auto_offset_reset="none",
                max_partition_fetch_bytes=FETCH_BYTES,
            )
            try:
                await consumer.start()
                await check_partitions(consumer._client, self._settings, self._topic, self._partitions)
                self._topic_id = await self._id(consumer)
                await asyncio.to_thread(self._archive.check_topic, self._files, self._topic, self._topic_id)
                tps = [TopicPartition(self._topic, partition) for partition in range(self._partitions)]
                ends = await self._begin(consumer, tps)
                looking = asyncio.create_task(self._look_forever(consumer, tps))
                try:
                    await self._follow(consumer, tps, ends)
                finally:
                    looking.cancel()
                    await asyncio.gather(looking, return_exceptions=True)
            finally:
                await consumer.stop()
        return self.done

    # -- where to read ------------------------------------------------------------------------------

    async def _begin(self, consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition]) -> dict[int, int]:
        """Go to where each partition's archive ends; answers where its log does."""
        begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        for tp in tps:
            files, end = self._files.setdefault(tp.partition, []), int(ends[tp])
            archived = max((file.last + 1 for file in files), default=0)
            if archived > end:
                raise ArchiveError(
                    f"{self._archive.url}: partition {tp.partition} is archived up to offset {archived}, and"
                    f" {self._topic} ends at {end}: it was made anew, or is another one: name another archive"
                )
            at, stop = missing(files)
            if int(begins[tp]) > at:
                raise self._lost(tp.partition, at, int(begins[tp]))
            self._sources[tp.partition] = _Source(at, stop, first=at, log_end=end)
        # Assigned once: a consumer that stops soon after another assignment never ends (aiokafka 0.14).
        consumer.assign(tps)
        for tp in tps:  # at once: it is not to look for a position by itself
            consumer.seek(tp, self._sources[tp.partition].at)
        for tp in tps:
            await self._same_log(consumer, tp, int(begins[tp]))
            consumer.seek(tp, self._sources[tp.partition].at)
        return {tp.partition: int(ends[tp]) for tp in tps}

    async def _same_log(self, consumer: AIOKafkaConsumer, tp: TopicPartition, first: int) -> None:
        """Raise ArchiveError if the log, which begins at `first`, has another record where the archive has its last."""
        archived = await asyncio.to_thread(self._archive.last_record, self._files[tp.partition])
        if archived is None or int(archived.offsets[0]) < first:
            return
        offset, until = int(archived.offsets[0]), time.monotonic() + _PATIENCE
        consumer.seek(tp, offset)
        found: Sequence[_Record] = ()
        while not found:
            found = (await consumer.getmany(tp, timeout_ms=_POLL_MS, max_records=1)).get(tp, [])
            if not found and time.monotonic() > until:
                raise TimeoutError
        there = (found[0].offset, found[0].timestamp, found[0].key, found[0].value)
        if there != (offset, int(archived.milliseconds[0]), archived.keys[0], archived.values[0]):
            raise ArchiveError(
                f"{self._archive.url}: is the archive of another log: offset {offset} of partition {tp.partition} is"
                f" another record in {self._topic}: name another archive"
            )

    def _lost(self, partition: int, at: int, first: int) -> ArchiveError:
        return ArchiveError(
            f"{self._topic}, partition {partition}: begins at offset {first}, and {self._archive.url} has what came"
            f" before offset {at}: {first - at} records were deleted before they were archived. No rebuild can have"
            " them back: keep the log for longer, and begin anew with another topic_prefix and archive"
        )

    async def _look_forever(self, consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition]) -> None:
        """Keep in mind where the log ends, also while nothing can be written, and so nothing is read."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with suppress(KafkaError):
                for tp, end in (await consumer.end_offsets(tps)).items():
                    self._sources[tp.partition].log_end = int(end)
                now = await self._id(consumer)
                if now is not None and self._topic_id not in (None, now):
                    self._replaced = ArchiveError(
                        f"{self._topic} was made anew: its id was {self._topic_id}, and is {now}: what it has now does"
                        f" not go into {self._archive.url}: name another archive"
                    )

    async def _id(self, consumer: AIOKafkaConsumer) -> str | None:
        """Of the topic, Kafka's; None where the topic cannot be seen just now, or has none."""
        found = (await look_at(consumer._client, [self._topic])).get(self._topic)
        return None if found is None else found.id

    # -- following ----------------------------------------------------------------------------------

    async def _follow(self, consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition], ends: dict[int, int]) -> None:
        while not self._stopping.is_set():
            if self._replaced is not None:
                raise self._replaced
            try:
                fetched = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_FETCH_RECORDS)
            except OffsetOutOfRangeError:
                begins = await consumer.beginning_offsets(tps)
                behind = [tp for tp in tps if begins[tp] > self._sources[tp.partition].at]
                if not behind:
                    raise
                for partition in self._sources:  # the log may not have these for long either
                    await self._write(partition)
                at, first = self._sources[behind[0].partition].at, int(begins[behind[0]])
                raise self._lost(behind[0].partition, at, first) from None
            for tp in tps:
                await self._take(consumer, tp, fetched.get(tp, []))
            await self._write_due()
            if self._once and all(
                source.stop is None and source.at >= ends[partition] for partition, source in self._sources.items()
            ):
                break
        for partition in self._sources:
            await self._write(partition)

    async def _take(self, consumer: AIOKafkaConsumer, tp: TopicPartition, records: list[_Record]) -> None:
        source = self._sources[tp.partition]
        position = await consumer.position(tp)  # also past offsets that hold no record
        if source.stop is not None and position >= source.stop:
            records = [record for record in records if record.offset < source.stop]
            position = source.stop
        for number, part in enumerate(_by_day(source.records, records)):
            if number:
                await self._write(tp.partition)
            source.take(part, part[-1].offset + 1 if part else source.at)
        source.at = position
        if position == source.stop:
            await self._write(tp.partition, to_stop=True)
            source.at, source.stop = missing(self._files[tp.partition], position)
            source.first = source.at
            consumer.seek(tp, source.at)

    async def _write_due(self) -> None:
        old = time.monotonic() - self._every
        for partition, source in self._sources.items():
            if source.records and (source.since <= old or source.size >= FILE_BYTES):
                await self._write(partition)
        while sum(source.size for source in self._sources.values()) > HELD_BYTES:
            await self._write(max(self._sources, key=lambda partition: self._sources[partition].size))

    async def _write(self, partition: int, to_stop: bool = False) -> None:
        """Write what is held of a partition; `to_stop`: also if that is nothing, to fill a hole without records."""
        source = self._sources[partition]
        self.done.offsets[partition] = source.first
        if not source.records and not to_stop:
            return
        if self._replaced is not None:  # who knows of which of the two they are
            raise self._replaced
        records = source.records_held(partition)
        day = day_of(int(records.milliseconds[0]) if records.keys else 0)
        about: dict[str, Any] = {"topic": self._topic, "partitions": self._partitions}
        if self._topic_id is not None:
            about["topic_id"] = self._topic_id

        def write() -> ArchiveFile:
            return self._archive.write([table_of(records)], partition, source.first, source.at - 1, day, about)

        file = await self._persistently(partition, write)
        source.written()
        source.files += 1
        source.archived += len(records.keys)
        self.done.offsets[partition] = source.first
        self.done.files += 1
        self.done.records += len(records.keys)
        self._tell(Told("archived", partition, file))
        self._files[partition] = sorted([*self._files[partition], file], key=in_order)
        await self._merge(partition)

    async def _persistently(self, partition: int, work: Callable[[], T]) -> T:
        """What `work` answers, tried until it does. With `once`, or when we are to stop, its failure is ours."""
        pause = FIRST_PAUSE
        while True:
            try:
                done = await asyncio.to_thread(work)
            except ArchiveError as error:
                self.trouble, self.failures = str(error), self.failures + 1
                if self._once or self._stopping.is_set():
                    raise
                self._tell(Told("cannot write, trying again", partition, problem=str(error)))
            else:
                self.trouble = None
                return done
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _merge(self, partition: int) -> None:
        """Merge files that became many. A failure harms nothing: the files stay as they are."""
        runs = due(self._files[partition])
        if not runs:
            return
        try:
            done = await asyncio.to_thread(compact, self._archive, self._files[partition], runs)
        except FileNotFoundError:  # somebody else merges
            self._files = {**self._files, **await asyncio.to_thread(self._archive.files)}
            return
        except ArchiveError as error:
            self._tell(Told("cannot merge files", partition, problem=str(error)))
            return
        gone = set(done.removed)
        kept = [file for file in self._files[partition] if file not in gone]
        self._files[partition] = sorted([*kept, *done.made], key=in_order)
        self.done.merged += len(gone)
        for file in done.made:
            self._tell(Told("merged", partition, file))


def _by_day(held: Sequence[_Record], records: list[_Record]) -> Iterator[list[_Record]]:
    """The records, cut before each one of a later day (UTC) than the first of its file.

    The first of them go to what is held already: none if they are of a later day.
    """
    if not records:
        return
    day, begin = (held or records)[0].timestamp // DAY_MS, 0
    for place, record in enumerate(records):
        if record.timestamp // DAY_MS > day:
            yield records[begin:place]
            begin, day = place, record.timestamp // DAY_MS
    yield records[begin:]
