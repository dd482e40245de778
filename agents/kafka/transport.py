"""A Faust transport that hands an agent a whole fetch as one event, and begins where the agent's state stands.

Faust moves one message at a time, 13,000 a second; a fetch of thousands of records costs it the same. This
file knows the inside of Faust 0.15.3, in these places above all, and `hook_problems` says what an upgrade has broken:

- `Consumer.getmany`: yields (partition, message); ours yields one message a partition and fetch, whose value
  is a `Fetched`;
- `Consumer.on_buffer_full` and `on_buffer_drop`: which partitions are not asked for while an agent's queue is full;
- `Consumer.perform_seek`: runs after every rebalance, before the flow goes on; ours seeks to positions of
  ours and keeps partitions paused whose state is not there yet;
- `Consumer.on_partitions_assigned`: runs in every rebalance, also in one that leaves us nothing;
- aiokafka's `PartitionRecords._consumer_record`: makes an object of each record; ours makes a cheaper one;
- `App._new_transport`, by which an app gets the transport, and `Transport.Consumer`;
- `TableManager.on_start` and `Worker._sentinel_task`: each waits for a second, at the start and at the end.

The topics are to be declared with `acks=False`: what is committed to Kafka is for lag monitors alone.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import faust
import msgspec
from aiokafka.consumer import fetcher
from aiokafka.errors import IllegalStateError
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer as BaseConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.utils.queues import FlowControlQueue

FAUST = "0.15.3"  # the version whose inside this file knows
SOON = 0.01  # seconds between two looks at whether an agent has room again; Faust itself waits for a whole one
TABLES_SECONDS = 1.0  # that Faust waits for tables


@dataclass(frozen=True, slots=True)
class Fetched:
    """Records of one partition, in order, that follow each other in the log."""

    tp: TP
    start: int  # the offset that was asked for: the log has nothing between it and the first record
    end: int  # the offset after the last record
    records: Sequence[Any]  # aiokafka.ConsumerRecord
    seek: int  # number of the seek that this was read after: of another one, it is stale
    log_end: int | None  # offset after the last record of the partition, as far as is known


class BrokenOrderError(RuntimeError):
    """Records are missing between where a stage stands and what it is given: deleted from the log, or lost on the way.

    The worker must stop and begin from its state, which then says whether the log still has what it needs.
    """

    def __init__(self, topic: str, partition: int, position: int, found: int) -> None:
        super().__init__(f"{topic}-{partition}: the next record to apply is {position}, and the first there is {found}")


class Positions(Protocol):
    """Who knows where to read each partition. Called on the event loop."""

    def position(self, tp: TP) -> int | None:
        """The offset to read next; None keeps the partition paused until `BatchConsumer.begin`."""

    def assigned(self, tps: set[TP]) -> None:
        """These partitions are ours now, and no others."""


class BatchConsumer(driver.Consumer):
    """Yields whole fetches, and seeks to the positions of `app.positions`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seeks: dict[TP, int] = {}  # how often each partition was sought
        self._next: dict[TP, int] = {}  # the offset that the next fetch must begin with
        self._doubted: dict[TP, int] = {}  # the one at which a fetch began too late

    @property
    def positions(self) -> Positions:
        """The app's."""
        return cast(BatchApp, self.app).positions

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """In a rebalance. Where nothing is ours, Faust seeks nothing either: we tell it here."""
        await super().on_partitions_assigned(assigned, generation_id)
        if not assigned and not self.should_stop:
            self.positions.assigned(set())

    async def perform_seek(self) -> None:
        """After a rebalance: read on where the state stands. Nothing fetched before counts."""
        tps = {TP(tp.topic, tp.partition) for tp in self.assignment()}
        self.positions.assigned(tps)
        for tp in sorted(tps):
            self._read_offset[tp] = self._committed_offset[tp] = None
            self.seeks[tp] = self.seeks.get(tp, 0) + 1
            self._next.pop(tp, None)
            position = self.positions.position(tp)
            if position is None:
                self.pause_partitions({tp})
            else:
                with suppress(IllegalStateError):  # no longer ours: the next rebalance is on its way
                    await self._seek_to(tp, position)

    async def begin(self, tp: TP, position: int) -> None:
        """Read a partition that was kept paused. One that is no longer ours is left alone."""
        with suppress(IllegalStateError):
            await self._seek_to(tp, position)
            self.resume_partitions({tp})

    async def _seek_to(self, tp: TP, position: int) -> None:
        """What is fetched meanwhile does not count, whether it was begun before or after."""
        self._next[tp] = position
        self._read_offset[tp] = None  # what Faust remembers of it would drop a fetch that begins before
        self.seeks[tp] = self.seeks.get(tp, 0) + 1
        await self._seek(tp, position)
        self.seeks[tp] += 1

    async def _seek(self, partition: TP, offset: int) -> None:
        """In aiokafka's thread, which may be looking at what it has fetched: Faust's own way breaks it at times."""

        async def seek() -> None:
            self._thread.seek(partition, offset)

        await self._thread.call_thread(seek)

    def on_buffer_full(self, tp: TP) -> None:
        """All partitions of the topic wait until its queue has room.

        The queue is theirs together, and Faust has each wait for itself, until the queue is nearly empty: one that was
        not behind kept it from becoming so with its small fetches, and those that were stood still for minutes.
        """
        for each in list(self._get_active_partitions()):
            if each.topic == tp.topic:
                super().on_buffer_full(each)

    def on_buffer_drop(self, tp: TP) -> None:
        """All go on; of those that wait for their state as well, `begin` says when."""
        for each in list(self._buffered_partitions):
            if each.topic == tp.topic:
                super().on_buffer_drop(each)
                if each in self._paused_partitions:
                    self._get_active_partitions().discard(each)

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        """One message for each partition of a fetch. What is fetched and not handed over is sought again."""
        if self.flow_active and not self._get_active_partitions():
            await self.sleep(SOON)
            return
        if self._buffered_partitions:  # they take no part in the waiting, and may be asked for at any moment
            timeout = SOON
        seeks = dict(self.seeks)
        fetched, active = await self._wait_next_records(timeout)
        if fetched is None or self.should_stop:
            return
        for key, records in fetched.items():
            tp = TP(key.topic, key.partition)
            if not records or tp not in self._next:
                continue
            if (
                not self.flow_active  # a rebalance has begun
                or self.seeks[tp] != seeks.get(tp)  # fetched before the last seek, or after it: nobody knows
                or (tp not in (active or ()) and tp not in self._buffered_partitions)
                or self._is_doubtful(tp, records[0].offset)
            ):
                with suppress(IllegalStateError):  # no longer ours
                    await self._seek(tp, self._next[tp])
                continue
            end = records[-1].offset + 1
            batch = Fetched(tp, self._next[tp], end, records, self.seeks[tp], self.highwater(tp))
            self._next[tp] = end
            message = self._to_message(tp, records[-1])
            message.value, message.key = cast(Any, batch), None
            yield tp, message

    def _is_doubtful(self, tp: TP, offset: int) -> bool:
        """Whether records that begin at `offset` are to be fetched once more, because others should come first.

        Where the log itself has a hole (retention, markers of transactions), the same comes again after a seek.
        """
        expected = self._next[tp]
        if offset == expected or self._doubted.get(tp) == expected:
            return False
        self._doubted[tp] = expected
        return True


class Record(msgspec.Struct, gc=False):
    """What aiokafka's ConsumerRecord has: that is a frozen dataclass, and making those took half of a worker's time."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    checksum: int | None
    serialized_key_size: int
    serialized_value_size: int
    headers: tuple[tuple[str, bytes], ...]


class LightRecords(fetcher.PartitionRecords):  # type: ignore[misc]  # not typed
    """Records of a fetch as `Record`s. Has no deserializers: neither Faust nor we use any."""

    def _consumer_record(self, tp: Any, record: Any) -> Record:
        key, value = record.key, record.value
        return Record(
            tp.topic,
            tp.partition,
            record.offset,
            record.timestamp,
            record.timestamp_type,
            key,
            value,
            record.checksum,
            -1 if key is None else len(key),
            -1 if value is None else len(value),
            tuple(record.headers),
        )


class BatchTransport(driver.Transport):
    """Faust's aiokafka transport with our consumer."""

    Consumer = BatchConsumer


class NoTables(TableManager):
    """Faust begins to read a second after its agents, in case that somebody makes a table meanwhile: nobody does here.

    What it does wait for in that second is that the agents say which topics they read.
    """

    async def on_start(self) -> None:
        """Go on once the topics of all agents are known, and a second later anyhow, as Faust does."""
        wanted = {name for agent in self.app.agents.values() for name in agent.get_topic_names()}
        with suppress(TimeoutError):
            async with asyncio.timeout(TABLES_SECONDS):
                while not wanted <= {name for topic in self.app.topics for name in topic.topics}:
                    await asyncio.sleep(SOON)
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()


class BatchApp(faust.App):
    """A Faust app with our transport. `positions` must be set before it starts."""

    positions: Positions

    def _new_transport(self) -> BatchTransport:
        fetcher.PartitionRecords = LightRecords
        return BatchTransport(self.conf.broker_consumer, self)


class Host(faust.Worker):
    """Faust's worker, which runs an app, and ends when it has ended."""

    async def _sentinel_task(self) -> None:
        """The last thing that the event loop does: Faust waits for a second, for nothing."""


_CALLED: tuple[tuple[str, type, str], ...] = (  # or overridden; as Faust has it, and its parameters
    ("Consumer.getmany", BaseConsumer, "self, timeout"),
    ("Consumer.perform_seek", BaseConsumer, "self"),
    ("Consumer.on_partitions_assigned", BaseConsumer, "self, assigned, generation_id"),
    ("Consumer._wait_next_records", BaseConsumer, "self, timeout"),
    ("Consumer._get_active_partitions", BaseConsumer, "self"),
    ("Consumer.pause_partitions", BaseConsumer, "self, tps"),
    ("Consumer.resume_partitions", BaseConsumer, "self, tps"),
    ("Consumer._seek", driver.Consumer, "self, partition, offset"),
    ("AIOKafkaConsumerThread.seek", driver.AIOKafkaConsumerThread, "self, partition, offset"),
    ("AIOKafkaConsumerThread.call_thread", driver.AIOKafkaConsumerThread, "self, fun, args, kwargs"),
    ("Consumer._to_message", driver.Consumer, "self, tp, record"),
    ("Consumer.assignment", driver.Consumer, "self"),
    ("Consumer.highwater", driver.Consumer, "self, tp"),
    ("App._new_transport", faust.App, "self"),
    ("TableManager._update_channels", TableManager, "self"),
    ("Worker._sentinel_task", faust.Worker, "self"),
    ("PartitionRecords._consumer_record", fetcher.PartitionRecords, "self, tp, record"),
)
_RELIED_ON: tuple[tuple[str, type, Sequence[str]], ...] = (  # and what must stand in its source
    ("Consumer._drain_messages", BaseConsumer, ("getmany(timeout=", "_read_offset.__getitem__")),
    ("Consumer.on_buffer_full", BaseConsumer, ("self._buffered_partitions.add(tp)",)),
    ("Consumer.on_buffer_drop", BaseConsumer, ("active_partitions.add(tp)", "buffered_partitions.discard(tp)")),
    ("FlowControlQueue.put_nowait_enhanced", FlowControlQueue, ("on_pressure_high()",)),
    ("Transport.create_consumer", driver.Transport, ("self.Consumer(",)),
    ("TableManager.on_start", TableManager, ("self._update_channels()", "self.recovery.start()")),
    ("Recovery._resume_streams", Recovery, ("consumer.perform_seek()", "consumer.resume_flow()")),
    ("Recovery.on_recovery_completed", Recovery, ("consumer.perform_seek()", "consumer.resume_flow()")),
)


def hook_problems() -> list[str]:
    """What of Faust's inside is not as this file expects it: one line each, none if all is well."""
    problems = []
    if faust.__version__ != FAUST:
        problems.append(f"faust-streaming is {faust.__version__}; the worker is made for {FAUST} exactly")
    for name, owner, expected in _CALLED:
        function = getattr(owner, name.partition(".")[2], None)
        found = "" if function is None else ", ".join(inspect.signature(function).parameters)
        if found != expected:
            problems.append(f"Faust's {name} {f'takes {found}' if found else 'is gone'}; expected: {expected}")
    for name, owner, texts in _RELIED_ON:
        function = getattr(owner, name.partition(".")[2], None)
        source = "" if function is None else _source(function)
        missing = [text for text in texts if text not in source]
        if missing:
            problems.append(f"Faust's {name} no longer has: {', '.join(missing)}")
    return problems


def _source(function: Any) -> str:
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return ""
