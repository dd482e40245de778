"""Topics read from their beginning to an end that is fixed beforehand, for rebuilds and proofs: no group, no commits.

The log time of a message is its timestamp in whole seconds, so what a log says never depends on when it is read.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from aiokafka import AIOKafkaConsumer, TopicPartition

from agents.files import Chunk
from agents.kafka_client import KafkaProblem, check_partitions, client_options, kafka_errors
from agents.settings import Settings
from agents.topics import INTERACTIONS
from cco.batch import Model, rebuild
from cco.config import Config
from cco.events import EventParser
from cco.vocabulary import Vocabulary

PATIENCE = 30.0  # seconds without a message that must be there
FETCH_BYTES = 4 << 20
FETCH_RECORDS = 65_536
FETCH_WAIT_MS = 20  # that the broker waits for more: there is nothing to wait for

_PAIRS = re.compile(r"[0-9]{1,5}:[0-9]{1,18}(,[0-9]{1,5}:[0-9]{1,18})*")

Ends = Mapping[int, int]  # by partition, the offset to end before


class OffsetsError(ValueError):
    """End offsets that cannot be understood: one readable line."""


def parse_ends(text: str) -> Ends:
    """End offsets as "0:12,1:7", or from a JSON file with {"0": 12, "1": 7}, alone or under "offsets".

    Raises OffsetsError, or OSError for the file.
    """
    pairs: object
    if _PAIRS.fullmatch(text.strip()):
        listed = [pair.split(":") for pair in text.strip().split(",")]
        pairs = dict(listed)
        if len(dict(listed)) < len(listed):
            raise OffsetsError(f"{text}: names a partition twice")
    else:
        try:
            pairs = json.loads(Path(text).read_text(encoding="utf-8"))
        except ValueError as error:
            raise OffsetsError(f"{text}: is neither partition:offset,... nor a file of JSON ({error})") from None
        if isinstance(pairs, dict) and "offsets" in pairs:
            pairs = pairs["offsets"]
    try:
        ends = {int(partition): int(offset) for partition, offset in pairs.items()}  # type: ignore[attr-defined]
    except (ValueError, TypeError, AttributeError):
        raise OffsetsError(f'{text}: holds no offsets by partition, such as {{"0": 12, "1": 7}}') from None
    if not ends or min(*ends, *ends.values()) < 0:
        raise OffsetsError(f"{text}: offsets and partitions are whole numbers from 0 on, and there must be one")
    return ends


@dataclass(frozen=True, slots=True)
class Records:
    """Messages of one partition, in order; n of them."""

    partition: int
    keys: list[bytes | None]
    values: list[bytes | None]
    offsets: npt.NDArray[np.int64]  # (n,)
    seconds: npt.NDArray[np.int64]  # (n,) log times: epoch seconds, rounded down
    next_offset: int  # where the partition goes on
    read: int  # of the topic up to here, as offsets count
    total: int  # and in all


async def read_topic(
    settings: Settings, topic: str, ends: Ends | None = None, partitions: int | None = None
) -> AsyncGenerator[Records, None]:
    """The messages of a topic (its name without prefix), partition by partition, each in order.

    Up to `ends`, for the partitions that it names and no others; else up to where each partition ends when this
    begins. `partitions` is how many there must be. Raises KafkaProblem: no such topic or partition, a beginning
    that is gone, an end that is not reached, or whatever Kafka does.
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
            wanted = await _checked_ends(consumer, name, found, ends)
            total, read = sum(wanted.values()), 0
            # Assigned once: a consumer that stops soon after another assignment never ends (aiokafka 0.14).
            consumer.assign(found)
            consumer.pause(*found)
            for partition, end in sorted(wanted.items()):
                async for records in _read_partition(consumer, TopicPartition(name, partition), end):
                    yield replace(records, read=read + records.next_offset, total=total)
                read += end
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
    consumer: AIOKafkaConsumer, name: str, found: list[TopicPartition], ends: Ends | None
) -> dict[int, int]:
    now = await consumer.end_offsets(found)
    begin = await consumer.beginning_offsets(found)
    there = {at.partition: int(now[at]) for at in found}
    wanted = there if ends is None else dict(ends)
    for partition, end in wanted.items():
        where = f"{name}, partition {partition}"
        if partition not in there:
            raise KafkaProblem(f"{where}: is not there; the topic has the partitions 0 to {len(there) - 1}")
        if end > there[partition]:
            raise KafkaProblem(f"{where}: ends at offset {there[partition]}, before the {end} that is wanted")
        first = int(begin[TopicPartition(name, partition)])
        if first > 0 and end > 0:
            raise KafkaProblem(
                f"{where}: begins at offset {first}, what came before is deleted: rebuild from an archive instead"
            )
    return wanted


async def _read_partition(consumer: AIOKafkaConsumer, at: TopicPartition, end: int) -> AsyncGenerator[Records, None]:
    consumer.seek(at, 0)
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
            np.fromiter((record.timestamp for record in records), np.int64, count) // 1000,
            next_offset=min(fetched[-1].offset + 1, end),
            read=0,
            total=0,
        )
    consumer.pause(at)


def read_log(settings: Settings, parser: EventParser, ends: Ends | None = None) -> Generator[Chunk, None, None]:
    """The events of the topic `interactions`, as parsed with the rules of the user stages.

    `Chunk.file` is the source partition, `record` the offset after the chunk; bytes are offsets as well. A rejection
    names the topic and partition as its file and the offset as its line. Not to be called where an event loop runs.
    Raises as `read_topic`.
    """
    partitions = parser.config.retention.source_partitions
    name = settings.topic(INTERACTIONS)
    for records in _synchronously(lambda: read_topic(settings, INTERACTIONS, ends, partitions)):
        parsed = parser.messages(records.values, records.keys, records.seconds, records.partition, partitions)
        rejections = [
            replace(rejection, file=f"{name}/{records.partition}", line=int(records.offsets[rejection.line - 1]))
            for rejection in parsed.rejections
        ]
        yield Chunk(
            parsed.batch,
            rejections,
            parsed.item_changes,
            file=records.partition,
            record=records.next_offset,
            records=records.read,
            bytes_read=records.read,
            bytes_total=records.total,
        )


def _synchronously(make: Callable[[], AsyncGenerator[Records, None]]) -> Iterator[Records]:
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
