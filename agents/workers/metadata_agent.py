"""The metadata agent: changes of items from the topic `items` into the items index.

A shell without state: each document knows the offset of the last change applied to it, so a change that comes again is
skipped there, and one of an owner that was followed by another finds the document changed. Where to read on is
committed to Kafka in a group of the index's own: an index that is seen for the first time gets all changes from the
beginning, whether it is served yet or not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from agents.kafka.client import client_options
from agents.kafka.dead_letters import DeadLetter
from agents.kafka.item_changes import ItemRecords
from agents.kafka.topics import DEAD_LETTERS, ITEMS
from agents.kafka.transport import BrokenOrderError, Fetched
from agents.log import get_logger
from agents.settings import Settings
from agents.workers.metrics import Metrics
from cco.config import Config
from cco.values import BadRecord
from model_sync.bulk_types import WriterClosedError
from model_sync.elastic_metadata import MetadataWriter, PositionedChange

MOST_CHANGES = 500  # written together


@dataclass(slots=True)
class _Owned:
    position: int  # up to which all indices have it
    log_end: int
    log_time: float | None = None  # epoch seconds at which the last change that is applied was logged
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True)
class _Index:
    """An index that is written, and up to where it has the partitions."""

    writer: MetadataWriter
    committed: AIOKafkaConsumer
    positions: dict[int, int] = field(default_factory=dict)
    is_stopped: bool = False
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)  # what is asked of a stopped consumer is never answered

    async def stop(self) -> None:
        """Let go of the consumer, once nothing is asked of it."""
        async with self.turn:
            self.is_stopped = True
            await self.committed.stop()


class MetadataAgent:
    """All partitions of `items` of a worker. Methods run on the event loop.

    `begin(partition, offset)` makes the consumer read a partition from there on.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        metrics: Metrics,
        producer: AIOKafkaProducer,
        begin: Callable[[int, int], Awaitable[None]],
    ) -> None:
        self._settings, self._metrics, self._producer = settings, metrics, producer
        self._begin = begin
        self._records = ItemRecords(config)
        self._owned: dict[int, _Owned] = {}
        self._indices: dict[str, _Index] = {}  # by id, the one that is served first
        self.topic = settings.topic(ITEMS)

    async def follow(self, writers: Mapping[str, MetadataWriter]) -> None:
        """Write these indices, by their ids, from now on. What is not open then is to be opened.

        All, if one is new; else what `open` was just at, for the indices before.
        """
        before = self._indices
        found: dict[str, _Index] = {}
        for index, writer in writers.items():
            found[index] = before.get(index) or _Index(writer, await self._consumer(index))
        if any(index not in before for index in found):
            self._owned.clear()
        self._indices = found
        for index, gone in before.items():
            if index not in found:
                await gone.stop()

    async def _consumer(self, index: str) -> AIOKafkaConsumer:
        group = f"{self._settings.group}-items-{index}"
        consumer = AIOKafkaConsumer(**client_options(self._settings), group_id=group, enable_auto_commit=False)
        await consumer.start()
        return consumer

    async def stop(self) -> None:
        """Let go of everything; what is not committed comes again."""
        self._owned.clear()
        await self.follow({})

    def lags(self) -> dict[int, int]:
        """By partition that is open, how many records of its log are not applied."""
        return {partition: max(0, owned.log_end - owned.position) for partition, owned in self._owned.items()}

    def log_times(self) -> dict[int, float | None]:
        """By partition that is open, when what was applied last was logged, epoch seconds; None: nothing was yet."""
        return {partition: owned.log_time for partition, owned in self._owned.items()}

    def position(self, partition: int) -> int | None:
        """Where to read a partition; None if it is not open."""
        owned = self._owned.get(partition)
        return None if owned is None else owned.position

    async def open(self, partition: int) -> None:
        """Take up a partition, after what was committed for the index that has least, or from the beginning."""
        indices = self._indices
        if not indices:
            return  # no index yet: `follow` comes first
        ends = [await self._look_up(index, partition) for index in indices.values()]
        if indices is not self._indices:
            return  # other indices are written by now: whoever told us so opens it for them
        position = min(index.positions[partition] for index in indices.values())
        self._owned[partition] = _Owned(position, ends[-1])
        told = get_logger(topic=self.topic, partition=partition)
        told.info("the partition is served", offset=position, log_end=ends[-1])
        await self._begin(partition, position)

    async def _look_up(self, index: _Index, partition: int) -> int:
        """Find out up to where an index has a partition; answers the end of its log."""
        key = TopicPartition(self.topic, partition)
        async with index.turn:
            if index.is_stopped:
                return 0  # `open` is told by its caller that others are written now
            index.committed.assign([TopicPartition(self.topic, p) for p in {*index.positions, partition}])
            begin = (await index.committed.beginning_offsets([key]))[key]
            end: int = (await index.committed.end_offsets([key]))[key]
            index.positions[partition] = max(begin, min(end, await index.committed.committed(key) or 0))
        return end

    def close(self, partition: int) -> None:
        """Give a partition up."""
        if self._owned.pop(partition, None) is not None:
            with suppress(KeyError):
                self._metrics.lag.remove(self.topic, partition)

    async def process(self, fetched: Fetched) -> None:
        """Write the changes of a fetch, and commit. Waits while Elasticsearch is away. Raises BrokenOrderError."""
        partition = fetched.tp.partition
        owned = self._owned.get(partition)
        if owned is None:
            return
        async with owned.turn:
            if self._owned.get(partition) is not owned or fetched.end <= owned.position:
                return
            if fetched.start > owned.position:
                raise BrokenOrderError(self.topic, partition, owned.position, fetched.start)
            owned.log_end = max(fetched.end, fetched.log_end or 0)
            changes = await self._decode(partition, [r for r in fetched.records if r.offset >= owned.position])
            for index, written in list(self._indices.items()):
                if not await self._write(partition, owned, index, written, changes, fetched):
                    return
            owned.position = fetched.end
            if fetched.records:
                owned.log_time = fetched.records[-1].timestamp / 1000
            self._metrics.item_changes.labels(partition).inc(len(changes))
            self._metrics.fetch_records.observe(len(fetched.records), self.topic)

    async def _decode(self, partition: int, records: Sequence[Any]) -> list[tuple[PositionedChange, Any]]:
        """Changes with their records. What is none is a dead letter, once: not where another index is behind."""
        served = next(iter(self._indices.values()), None)
        told = 0 if served is None else served.positions.get(partition, 0)
        found = []
        for record in records:
            try:
                change = self._records.decode(record.key, record.value)
            except BadRecord as error:
                if record.offset >= told:
                    await self._refuse(partition, record, error.code, str(error))
            else:
                found.append((PositionedChange(change, record.offset), record))
        return found

    async def _write(
        self,
        partition: int,
        owned: _Owned,
        index: str,
        written: _Index,
        changes: Sequence[tuple[PositionedChange, Any]],
        fetched: Fetched,
    ) -> bool:
        """What an index does not have yet, and commit. False: the partition is not ours any more, or opened anew."""
        position = written.positions.get(partition, 0)
        left = [(change, record) for change, record in changes if record.offset >= position]
        is_served = index == next(iter(self._indices), None)
        for at in range(0, len(left), MOST_CHANGES):
            part = left[at : at + MOST_CHANGES]
            by_offset = {record.offset: record for _, record in part}
            try:
                refused = await written.writer.write([change for change, _ in part])
            except WriterClosedError:
                return self._owned.get(partition) is owned  # this index is written no more
            for offset, reason in refused if is_served else ():
                await self._refuse(partition, by_offset[offset], "item_change", reason)
            if self._owned.get(partition) is not owned:
                return False
        written.positions[partition] = max(position, fetched.end)
        if index in self._indices:
            await self._commit(partition, written)
        return True

    async def _refuse(self, partition: int, record: Any, code: str, reason: str) -> None:
        letter = DeadLetter(
            code, reason, self.topic, partition, record.offset, record.timestamp, record.key, record.value,
            tuple(record.headers),
        ).to_record()  # fmt: skip
        await self._producer.send_and_wait(
            self._settings.topic(DEAD_LETTERS), key=letter.key, value=letter.value, headers=letter.headers
        )
        self._metrics.refused([code])

    async def _commit(self, partition: int, written: _Index) -> None:
        """Only what saves work: a change that comes again is skipped."""
        async with written.turn:
            if written.is_stopped:
                return
            try:
                await written.committed.commit({TopicPartition(self.topic, partition): written.positions[partition]})
            except (KafkaError, IllegalStateError) as error:
                get_logger(topic=self.topic, partition=partition).warning("not committed", reason=str(error))
