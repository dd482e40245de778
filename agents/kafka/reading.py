"""Topics read up to an end that is fixed beforehand, for rebuilds and proofs: no group, no commits.

The log time of a message is its timestamp in whole seconds, so what a log says never depends on when it is read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing
from dataclasses import replace

import numpy as np
from aiokafka import AIOKafkaConsumer, TopicPartition

from agents.files.reading import Chunk
from agents.kafka.client import KafkaProblem, check_partitions, client_options, kafka_errors
from agents.kafka.records import Ends, OffsetsError, Records, parse_ends, parsed
from agents.kafka.topics import INTERACTIONS
from agents.settings import Settings
from cco.batch import Model, rebuild
from cco.config import Config
from cco.events import EventParser
from cco.vocabulary import Vocabulary

__all__ = [
    "Ends",
    "OffsetsError",
    "Records",
    "parse_ends",
    "read_log",
    "read_topic",
    "rebuild_from_log",
    "synchronously",
]

PATIENCE = 30.0  # seconds without a message that must be there
FETCH_BYTES = 4 << 20
FETCH_RECORDS = 65_536
FETCH_WAIT_MS = 20  # that the broker waits for more: there is nothing to wait for


async def read_topic(
    settings: Settings,
    topic: str,
    ends: Ends | None = None,
    partitions: int | None = None,
    begins: Ends | None = None,
) -> AsyncGenerator[Records, None]:
    """The messages of a topic (its name without prefix), partition by partition, each in order.

    Up to `ends`, for the partitions that it names and no others; else up to where each partition ends when this
    begins. From the offsets `begins` on, 0 for partitions that it does not name; nothing where the end is before.
    `partitions` is how many there must be. Raises KafkaProblem: no such topic or partition, a beginning that is gone,
    an end that is not reached, or whatever Kafka does.
    """
    name = settings.topic(topic)
    with kafka_errors(settings, f"reading {name}"):
        consumer = AIOKafkaConsumer(
            **client_options(settings),
            enable_auto_commit=False,
            auto_offset_reset="none",
            max_partition_fetch_bytes=FETCH_BYTES,
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
        try:
            await consumer.start()
            found = await _partitions(consumer, settings, name, partitions)
            wanted = await _checked_ends(consumer, name, found, ends, begins or {})
            total, read = sum(end - begin for begin, end in wanted.values()), 0
            # Assigned once: a consumer that stops soon after another assignment never ends (aiokafka 0.14).
            consumer.assign(found)
            consumer.pause(*found)
            for partition, (begin, end) in sorted(wanted.items()):
                async for records in _read_partition(consumer, TopicPartition(name, partition), begin, end):
                    yield replace(records, read=read + records.next_offset - begin, total=total)
                read += end - begin
        finally:
            await consumer.stop()


async def _partitions(
    consumer: AIOKafkaConsumer, settings: Settings, name: str, expected: int | None
) -> list[TopicPartition]:
    cluster = await consumer._client.fetch_all_metadata()  # the public way would make a missing topic
    count = len(cluster.partitions_for_topic(name) or ())
    await check_partitions(consumer._client, settings, name, count or 1 if expected is None else expected)
    return [TopicPartition(name, partition) for partition in range(count)]


async def _checked_ends(
    consumer: AIOKafkaConsumer, name: str, found: list[TopicPartition], ends: Ends | None, begins: Ends
) -> dict[int, tuple[int, int]]:
    """By partition, where to begin and where to end; those left out where that is nothing."""
    now = await consumer.end_offsets(found)
    begin = await consumer.beginning_offsets(found)
    there = {at.partition: int(now[at]) for at in found}
    wanted = {}
    for partition, end in (there if ends is None else ends).items():
        where, at = f"{name}, partition {partition}", begins.get(partition, 0)
        if partition not in there:
            raise KafkaProblem(f"{where}: is not there; the topic has the partitions 0 to {len(there) - 1}")
        if end > there[partition]:
            raise KafkaProblem(f"{where}: ends at offset {there[partition]}, before the {end} that is wanted")
        if at > there[partition]:
            raise KafkaProblem(f"{where}: ends at offset {there[partition]}, before {at}, where to go on: another log?")
        first = int(begin[TopicPartition(name, partition)])
        if first > at and end > at:
            instead = "rebuild from an archive instead" if at == 0 else f"and offset {at} is where to go on from"
            raise KafkaProblem(f"{where}: begins at offset {first}, what came before is deleted: {instead}")
        if end > at:
            wanted[partition] = (at, end)
    return wanted


async def _read_partition(
    consumer: AIOKafkaConsumer, at: TopicPartition, begin: int, end: int
) -> AsyncGenerator[Records, None]:
    consumer.seek(at, begin)
    consumer.resume(at)
    heard = time.monotonic()
    while (position := await consumer.position(at)) < end:  # also past offsets that hold no message
        fetched = (await consumer.getmany(at, timeout_ms=200, max_records=FETCH_RECORDS)).get(at, [])
        if not fetched:
            if time.monotonic() - heard > PATIENCE:
                raise KafkaProblem(f"{at.topic}, partition {at.partition}: no answer for offset {position}, end {end}")
            continue
        heard = time.monotonic()
        records = [record for record in fetched if record.offset < end]
        count = len(records)
        yield Records(
            at.partition,
            [record.key for record in records],
            [record.value for record in records],
            np.fromiter((record.offset for record in records), np.int64, count),
            np.fromiter((record.timestamp for record in records), np.int64, count),
            next_offset=min(fetched[-1].offset + 1, end),
        )
    consumer.pause(at)


def read_log(
    settings: Settings, parser: EventParser, ends: Ends | None = None, begins: Ends | None = None
) -> Generator[Chunk, None, None]:
    """The events of the topic `interactions`, as parsed with the rules of the user stages: see `log_records.parsed`.

    A rejection names the topic and partition as its file. Not to be called where an event loop runs. Raises as
    `read_topic`.
    """
    partitions = parser.config.retention.source_partitions
    name = settings.topic(INTERACTIONS)
    for records in synchronously(lambda: read_topic(settings, INTERACTIONS, ends, partitions, begins)):
        yield parsed(records, parser, f"{name}/{records.partition}")


def synchronously(make: Callable[[], AsyncGenerator[Records, None]]) -> Iterator[Records]:
    """The same, for code that is no coroutine: between two steps the loop stands still."""

    async def step(source: AsyncGenerator[Records, None]) -> Records | None:
        return await anext(source, None)

    with asyncio.Runner() as runner:
        source = make()
        try:
            while (records := runner.run(step(source))) is not None:
                yield records
        finally:
            runner.run(_close(source))


async def _close(source: AsyncGenerator[Records, None]) -> None:
    async with aclosing(source):
        pass


def rebuild_from_log(settings: Settings, config: Config, ends: Ends | None = None, threads: int = 1) -> Model:
    """The model of the log up to `ends` (default: up to where it ends now), in batch, without what is refused.

    Not to be called where an event loop runs. Raises KafkaProblem.
    """
    users, items = Vocabulary(), Vocabulary()
    chunks = read_log(settings, EventParser(config, users, items), ends)
    return rebuild(config, ((chunk.file, chunk.batch) for chunk in chunks), users, items, threads=threads)
