"""The metadata agent: changes of items from the topic `items` into the items index.

A shell without state: each document knows the offset of the last change applied to it, so a change that comes again is
skipped there, and one of an owner that was followed by another finds the document changed. Where to read on is
committed to Kafka in a group of the index's own: an index that is made anew gets all changes from the beginning.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from agents.dead_letters import DeadLetter
from agents.item_changes import ItemRecords
from agents.kafka_client import client_options
from agents.log import get_logger
from agents.metrics import Metrics
from agents.settings import Settings
from agents.topics import DEAD_LETTERS, ITEMS
from agents.transport import BrokenOrderError, Fetched
from cco.config import Config
from cco.values import BadRecord
from model_sync.elastic_metadata import MetadataWriter, PositionedChange

MOST_CHANGES = 500  # written together


@dataclass(slots=True)
class _Owned:
    position: int
    log_end: int
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


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
        writer: MetadataWriter,
        begin: Callable[[int, int], Awaitable[None]],
    ) -> None:
        self._settings, self._metrics, self._producer, self._writer = settings, metrics, producer, writer
        self._begin = begin
        self._records = ItemRecords(config)
        self._owned: dict[int, _Owned] = {}
        self._positions: AIOKafkaConsumer | None = None
        self.topic = settings.topic(ITEMS)

    async def follow(self, index: str) -> None:
        """Positions are those of the index with this id from now on; what is open is to be opened again."""
        await self.stop()
        self._positions = AIOKafkaConsumer(
            **client_options(self._settings), group_id=f"{self._settings.group}-items-{index}", enable_auto_commit=False
        )
        await self._positions.start()

    async def stop(self) -> None:
        """Let go of everything; what is not committed comes again."""
        self._owned.clear()
        positions, self._positions = self._positions, None
        if positions is not None:
            await positions.stop()

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written just now."""
        return self._writer.trouble

    def lags(self) -> dict[int, int]:
        """By partition that is open, how many records of its log are not applied."""
        return {partition: max(0, owned.log_end - owned.position) for partition, owned in self._owned.items()}

    def position(self, partition: int) -> int | None:
        """Where to read a partition; None if it is not open."""
        owned = self._owned.get(partition)
        return None if owned is None else owned.position

    async def open(self, partition: int) -> None:
        """Take up a partition, after what was committed for the index, or from the beginning."""
        positions = self._positions
        if positions is None:
            return  # no index yet: `follow` comes first
        key = TopicPartition(self.topic, partition)
        positions.assign([TopicPartition(self.topic, p) for p in {*self._owned, partition}])
        begin = (await positions.beginning_offsets([key]))[key]
        end = (await positions.end_offsets([key]))[key]
        committed = await positions.committed(key)
        if positions is not self._positions:
            return  # another index has come meanwhile
        position = max(begin, min(end, committed or 0))
        self._owned[partition] = _Owned(position, end)
        get_logger(topic=self.topic, partition=partition).info("the partition is served", offset=position, log_end=end)
        await self._begin(partition, position)

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
            records = [record for record in fetched.records if record.offset >= owned.position]
            for at in range(0, len(records), MOST_CHANGES):
                await self._apply(partition, records[at : at + MOST_CHANGES])
                if self._owned.get(partition) is not owned:
                    return
            owned.position = fetched.end
            self._metrics.fetch_records.observe(len(fetched.records), self.topic)
            await self._commit(partition, owned)

    async def _apply(self, partition: int, records: Sequence[Any]) -> None:
        changes: list[PositionedChange] = []
        by_offset = {record.offset: record for record in records}
        for record in records:
            try:
                changes.append(PositionedChange(self._records.decode(record.key, record.value), record.offset))
            except BadRecord as error:
                await self._refuse(partition, record, error.code, str(error))
        for position, reason in await self._writer.write(changes):
            await self._refuse(partition, by_offset[position], "item_change", reason)
        self._metrics.item_changes.labels(partition).inc(len(changes))

    async def _refuse(self, partition: int, record: Any, code: str, reason: str) -> None:
        letter = DeadLetter(
            code, reason, self.topic, partition, record.offset, record.timestamp, record.key, record.value,
            tuple(record.headers),
        ).to_record()  # fmt: skip
        await self._producer.send_and_wait(
            self._settings.topic(DEAD_LETTERS), key=letter.key, value=letter.value, headers=letter.headers
        )
        self._metrics.refused([code])

    async def _commit(self, partition: int, owned: _Owned) -> None:
        """Only what saves work: a change that comes again is skipped."""
        assert self._positions is not None
        try:
            await self._positions.commit({TopicPartition(self.topic, partition): owned.position})
        except KafkaError as error:
            get_logger(topic=self.topic, partition=partition).warning("not committed", reason=str(error))
