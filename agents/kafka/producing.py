"""Producing interactions to Kafka, many at a time: keyed by user, partitioned as Kafka's Java client does, idempotent.

Messages are laid out as columns and handed to the client as whole batches, one for each partition: that is what
makes a hundred thousand events a second possible. Each partition has at most one batch on its way and one that
waits, so memory is bounded and the order of a partition is the order of the events; the client numbers batches,
so what it sends again after a failure is in the log once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError

from agents.kafka.client import KafkaProblem, check_partitions, client_options, kafka_errors
from agents.kafka.item_changes import encode_change
from agents.kafka.topics import INTERACTIONS, ITEMS
from agents.settings import Settings
from cco.config import Config
from cco.event_data import CLOCK, DELETE_USER, EventBatch, ItemChange
from cco.vocabulary import Vocabulary

COMPRESSION = "lz4"
BATCH_BYTES = 768 << 10  # before compression; brokers take up to 1 MiB
ALL_BYTES = 128 << 20  # of all batches on their way or waiting
LEAST_BYTES = 16 << 10
GIVE_UP = 30.0  # seconds without an answer
CLOSING = 1.0  # seconds for what is on its way, after a failure
SLICES = 100  # of a second, when paced

Clock = Callable[[], float]


@dataclass(slots=True)
class Produced:
    """What was acknowledged: all of it is in the log."""

    events: int = 0  # clock events count once, though they are in every partition
    messages: int = 0
    item_changes: int = 0
    offsets: dict[int, int] = field(default_factory=dict)  # by partition, the offset after our last message


class Messages:
    """Events as messages: keys and values by row, and the rows of each partition."""

    def __init__(self, config: Config, users: Vocabulary, items: Vocabulary) -> None:
        self._users, self._items = users, items
        self._partitions = config.retention.source_partitions
        self._types = np.array([_field(name, b',"timestamp":') for name in config.event_types], np.object_)

    def encode(self, batch: EventBatch) -> tuple[list[bytes | None], list[bytes]]:
        """(keys, values) of each event: canonical JSON; a clock event has no key."""
        if not len(batch):
            return [], []
        user_at, user_of = np.unique(batch.users, return_inverse=True)
        item_at, item_of = np.unique(batch.items, return_inverse=True)
        types = batch.types
        with_item, clock = types >= 0, types == CLOCK
        users = self._users.names(user_at) if len(self._users) else [""]
        items = self._items.names(item_at) if len(self._items) else [""]
        keys = _objects([name.encode() for name in users])[user_of]
        begins = _objects([_field(name, b',"item_id":', b'{"user_id":') for name in users])[user_of]
        middles = _objects([_field(name, b',"event_type":') for name in items])[item_of]
        ends = np.empty(types.size, np.object_)
        ends[with_item] = self._types[types[with_item]]
        if not with_item.all():
            deleted = types == DELETE_USER
            begins[deleted] = _objects([_field(name, b"", b'{"user_id":') for name in users])[user_of[deleted]]
            middles[deleted], ends[deleted] = b',"event_type":', b'"$delete","timestamp":'
            begins[clock], middles[clock], ends[clock] = b"{", b'"event_type":', b'"$clock","timestamp":'
            keys[clock] = None
        parts = zip(begins.tolist(), middles.tolist(), ends.tolist(), batch.times.tolist(), strict=True)
        return keys.tolist(), [b"%b%b%b%d}" % part for part in parts]

    def rows(self, batch: EventBatch) -> list[list[int]]:
        """The rows of each partition, ascending; a clock event is in every one."""
        if self._partitions == 1:
            return [list(range(len(batch)))]
        of_user = self._users.partitions(self._partitions)
        clock = batch.types == CLOCK
        source = np.full(len(batch), self._partitions, np.int64)  # clock events come last
        source[~clock] = of_user[batch.users[~clock]]
        order = np.argsort(source, kind="stable")
        bounds = np.searchsorted(source[order], np.arange(self._partitions + 1)).tolist()
        rows = [order[a:b].tolist() for a, b in pairwise(bounds)]
        clocks = order[bounds[-1] :].tolist()
        return [sorted(row + clocks) for row in rows] if clocks else rows


def _objects(values: list[bytes]) -> np.ndarray[Any, np.dtype[np.object_]]:
    found = np.empty(len(values), np.object_)
    found[:] = values
    return found


def _field(text: str, after: bytes, before: bytes = b"") -> bytes:
    return before + msgspec.json.encode(text) + after


class EventProducer(AbstractAsyncContextManager["EventProducer"]):
    """Sends events, whose users and items are positions in the vocabularies, and changes of items.

    `async with EventProducer(...) as producer: await producer.send(batch)`: leaving it waits until all is
    acknowledged. Raises KafkaProblem, one readable line, at whatever Kafka does. `clock` (epoch seconds) gives
    the messages' timestamps.
    """

    def __init__(
        self, settings: Settings, config: Config, users: Vocabulary, items: Vocabulary, clock: Clock = time.time
    ) -> None:
        self.done = Produced()
        self._settings, self._config, self._clock = settings, config, clock
        self._messages = Messages(config, users, items)
        self._topic, self._items_topic = settings.topic(INTERACTIONS), settings.topic(ITEMS)
        self._sent: set[asyncio.Future[Any]] = set()
        self._failure: BaseException | None = None
        self._kafka: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        sources = self._config.retention.source_partitions
        room = max(LEAST_BYTES, min(BATCH_BYTES, ALL_BYTES // (3 * sources)))
        with kafka_errors(self._settings, "producing"):
            self._kafka = AIOKafkaProducer(
                **client_options(self._settings),
                acks="all",
                enable_idempotence=True,
                compression_type=COMPRESSION,
                max_batch_size=room,
                request_timeout_ms=int(GIVE_UP * 1000),
            )
            try:
                await self._kafka.start()
                await check_partitions(self._kafka.client, self._settings, self._topic, sources)
            except BaseException:
                await self._abandon()
                raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KafkaProblem) or (kind is not None and not issubclass(kind, Exception)):
            await self._abandon()
            return
        try:  # also when something else failed: what was handed over is sent
            await self.flush()
        except BaseException:
            await self._abandon()
            raise
        assert self._kafka is not None
        await self._kafka.stop()

    async def send(self, batch: EventBatch, changes: Sequence[ItemChange] = ()) -> None:
        """Hand over events, in order. Returns when all are sent or wait in the bounded queues: see `flush`."""
        assert self._kafka is not None, "not started"
        now = int(self._clock() * 1000)
        with kafka_errors(self._settings, f"producing to {self._topic}"):
            self._raise_failure()
            keys, values = self._messages.encode(batch)
            for partition, rows in enumerate(self._messages.rows(batch)):
                builder = self._kafka.create_batch()
                for k in rows:
                    if builder.append(timestamp=now, key=keys[k], value=values[k]) is None:  # full
                        await self._send(builder, partition)
                        builder = self._kafka.create_batch()
                        builder.append(timestamp=now, key=keys[k], value=values[k])
                if rows:
                    await self._send(builder, partition)
            self.done.events += len(batch)
        if changes:
            with kafka_errors(self._settings, f"producing to {self._items_topic}"):
                for change in changes:
                    await self._change(change, now)

    async def _send(self, builder: Any, partition: int) -> None:
        """Hand over a batch that is complete; waits while one of the partition waits already."""
        assert self._kafka is not None
        builder.close()
        count = builder.record_count()
        sent = await self._kafka.send_batch(builder, self._topic, partition=partition)
        self._sent.add(sent)
        sent.add_done_callback(lambda future: self._acknowledged(future, partition, count))
        await asyncio.sleep(0)  # let the client write while the next batch is filled

    def _acknowledged(self, sent: asyncio.Future[Any], partition: int | None, count: int) -> None:
        self._sent.discard(sent)
        if sent.cancelled():
            return
        error = sent.exception()
        if error is not None:
            self._failure = self._failure or error
        elif partition is not None:
            self.done.messages += count
            first = sent.result().offset
            if first >= 0:  # not known where the broker only says that it has the batch already
                self.done.offsets[partition] = first + count

    async def _change(self, change: ItemChange, now: int) -> None:
        assert self._kafka is not None
        key, value = encode_change(change)
        sent = await self._kafka.send(self._items_topic, value, key, timestamp_ms=now)
        self._sent.add(sent)
        sent.add_done_callback(lambda future: self._acknowledged(future, None, 1))
        self.done.item_changes += 1

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def flush(self) -> None:
        """Wait until everything is acknowledged. Raises KafkaProblem if it is not, or nothing is heard for long."""
        with kafka_errors(self._settings, f"producing to {self._topic}"):
            while self._sent:
                done, _ = await asyncio.wait(self._sent, timeout=GIVE_UP, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise KafkaTimeoutError
                await asyncio.sleep(0)  # callbacks of the done ones
                self._raise_failure()
            self._raise_failure()

    async def _abandon(self) -> None:
        """Close without waiting for what cannot be sent."""
        assert self._kafka is not None
        with suppress(Exception):
            await asyncio.wait_for(self._kafka.stop(), CLOSING)
        with suppress(Exception):
            await self._kafka.client.close()


Work = tuple[EventBatch, Sequence[ItemChange]]


async def produce(
    settings: Settings,
    config: Config,
    users: Vocabulary,
    items: Vocabulary,
    work: Iterable[EventBatch | Work],
    *,
    rate: float | None = None,
    tell: Callable[[Produced], None] = lambda done: None,
) -> Produced:
    """Send all events (and changes of items), in order, and return when Kafka has them.

    The vocabularies may grow while `work` is being consumed. `rate`: events a second, evenly. `tell` hears after
    each piece of work what is acknowledged. Raises KafkaProblem, one readable line.
    """
    begin, handed = time.perf_counter(), 0
    async with EventProducer(settings, config, users, items) as producer:
        for piece in work:
            batch, changes = piece if isinstance(piece, tuple) else (piece, ())
            size = len(batch) if rate is None else max(1, round(rate / SLICES))
            for at in range(0, len(batch), size or 1):
                part = batch.part(at, at + size)
                await producer.send(part)
                handed += len(part)
                if rate is not None:
                    await asyncio.sleep(begin + handed / rate - time.perf_counter())
            if changes:
                await producer.send(EventBatch.join([]), changes)
            tell(producer.done)
        await producer.flush()
        return producer.done
