"""The topic of dead letters: listing them, and sending their records again, each once.

A crash between sending a record and its marker sends it twice, which harms nothing: the history of a user
is a set.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from agents.kafka.client import KafkaProblem, client_options, kafka_errors
from agents.kafka.dead_letters import DeadLetter, DeadLetterError, Origin, marked, marker
from agents.kafka.topics import DEAD_LETTERS, INTERACTIONS, ITEMS
from agents.settings import Settings
from cco.event_data import ItemChange
from cco.fields import FieldRules
from cco.values import BadRecord

MISPLACED = ("key", "partition")  # codes of records that are right but for their place in the log
RETRYABLE = (INTERACTIONS, ITEMS)

_TOGETHER = 500  # letters sent before their markers
_SILENCE_SECONDS = 30.0
_POLL_MS = 500
_WAIT_MS = 50  # that a fetch of nothing takes: the next request of the same connection waits for it


@dataclass(frozen=True, slots=True)
class Choice:
    """Which letters: those that meet every condition given."""

    code: str | None = None
    topic: str | None = None  # as in the settings or as on the broker
    offsets: tuple[tuple[int, int, int], ...] = ()  # (partition, first, last) of letters in their own topic

    def takes(self, settings: Settings, letter: DeadLetter, partition: int, offset: int) -> bool:
        """Whether the letter at (partition, offset) of its own topic is meant."""
        return (
            self.code in (None, letter.code)
            and (self.topic is None or letter.topic in (self.topic, settings.topic(self.topic)))
            and (not self.offsets or any(p == partition and a <= offset <= b for p, a, b in self.offsets))
        )


@dataclass(frozen=True, slots=True)
class Filed:
    """A letter and where it lies in its own topic."""

    letter: DeadLetter
    partition: int
    offset: int
    retried: bool = False


@dataclass(slots=True)
class Listing:
    """Some letters, the last ones, and the numbers of all that were meant."""

    letters: list[Filed] = field(default_factory=list)
    found: int = 0
    retried: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    foreign: int = 0  # records in the topic that are neither letters nor markers


@dataclass(slots=True)
class Retried:
    """What became of letters: sent, of these with another key, and left alone, by reason."""

    sent: int = 0
    rekeyed: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


class _Log:
    """The topic from its beginning to where it ended when it was opened; can be read several times."""

    def __init__(self, settings: Settings, consumer: AIOKafkaConsumer) -> None:
        self._topic, self._consumer = settings.topic(DEAD_LETTERS), consumer
        self._brokers = settings.brokers
        self._ends: dict[TopicPartition, int] = {}
        self.partitions: dict[str, int] = {}  # of each topic of the broker
        self.retried: set[Origin] = set()
        self.foreign = 0

    async def open(self) -> None:
        cluster = await self._consumer._client.fetch_all_metadata()  # the public way would make a missing topic
        self.partitions = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in cluster.topics()}
        if self._topic not in self.partitions:
            raise KafkaProblem(
                f"Kafka at {self._brokers} has no topic {self._topic}: `cco topics create` makes it; is the topic "
                "prefix right? (--topic-prefix)"
            )
        partitions = [TopicPartition(self._topic, p) for p in range(self.partitions[self._topic])]
        self._consumer.assign(partitions)
        self._ends = await self._consumer.end_offsets(partitions)

    async def letters(self) -> AsyncIterator[Filed]:
        """Each letter once, whatever was written again; markers go to `retried`."""
        begins = await self._consumer.beginning_offsets(list(self._ends))
        for partition, begin in begins.items():
            self._consumer.seek(partition, begin)
        self.foreign = 0
        seen: set[Origin] = set()
        async for record in self._records():
            try:
                origins = marked(record.headers, record.value)
                if origins is not None:
                    self.retried.update(origins)
                    continue
                letter = DeadLetter.from_record(record.key, record.value, record.headers)
            except DeadLetterError:
                self.foreign += 1
                continue
            if letter.origin not in seen:
                seen.add(letter.origin)
                yield Filed(letter, record.partition, record.offset)

    async def _records(self) -> AsyncIterator[ConsumerRecord[bytes, bytes]]:
        heard = time.monotonic()
        left = {partition for partition, end in self._ends.items() if await self._consumer.position(partition) < end}
        while left:
            found = await self._consumer.getmany(*left, timeout_ms=_POLL_MS)
            for partition, records in found.items():
                for record in records:
                    if record.offset < self._ends[partition]:
                        yield record
            done = {p for p in left if await self._consumer.position(p) >= self._ends[p]}
            if found or done:
                heard = time.monotonic()
            elif time.monotonic() - heard > _SILENCE_SECONDS:
                raise TimeoutError(f"no record of {self._topic} came for {_SILENCE_SECONDS:.0f} s")
            left -= done


@asynccontextmanager
async def _log(settings: Settings, doing: str) -> AsyncIterator[_Log]:
    with kafka_errors(settings, doing):
        consumer = AIOKafkaConsumer(
            **client_options(settings),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_WAIT_MS,
        )
        try:
            await consumer.start()
            log = _Log(settings, consumer)
            await log.open()
            yield log
        finally:
            await consumer.stop()


async def list_letters(settings: Settings, choice: Choice, limit: int) -> Listing:
    """The last `limit` letters that are meant, oldest first. Raises KafkaProblem."""
    listing, last = Listing(), deque[Filed](maxlen=limit)
    codes: Counter[str] = Counter()
    origins: list[Origin] = []
    async with _log(settings, "reading dead letters") as log:
        async for filed in log.letters():
            if choice.takes(settings, filed.letter, filed.partition, filed.offset):
                codes[filed.letter.code] += 1
                origins.append(filed.letter.origin)
                last.append(filed)
        listing.letters = [replace(filed, retried=filed.letter.origin in log.retried) for filed in last]
        listing.found, listing.codes = len(origins), dict(sorted(codes.items()))
        listing.retried = sum(origin in log.retried for origin in origins)
        listing.foreign = log.foreign
    return listing


async def retry(settings: Settings, choice: Choice) -> Retried:
    """Send the letters that are meant and were not retried yet to where they came from. Raises KafkaProblem.

    A record under a wrong key goes out under the right one, and so to the right partition; all others
    go where they were. The record keeps its timestamp, which stands in for a missing one, unless it was
    refused for its time.
    """
    async with _log(settings, "retrying dead letters") as log:
        async for _ in log.letters():  # first what was retried: markers come after their letters
            pass
        producer = AIOKafkaProducer(**client_options(settings), enable_idempotence=True, acks="all")
        try:
            await producer.start()
            sender = _Sender(settings, log, producer)
            async for filed in log.letters():
                if choice.takes(settings, filed.letter, filed.partition, filed.offset):
                    await sender.take(filed)
            await sender.flush()
            return sender.result
        finally:
            await producer.stop()


class _Sender:
    """Sends letters back, some hundred at a time, and marks them once they are acknowledged."""

    def __init__(self, settings: Settings, log: _Log, producer: AIOKafkaProducer) -> None:
        self._topic = settings.topic(DEAD_LETTERS)
        self._retryable = [settings.topic(name) for name in RETRYABLE]
        self._partitions, self._done = log.partitions, log.retried
        self._producer = producer
        self._waiting: list[asyncio.Future[Any]] = []
        self._sent: dict[int, list[Origin]] = {}  # by partition of the letters
        self.result = Retried()

    async def take(self, filed: Filed) -> None:
        letter = filed.letter
        problem = self._problem(letter)
        if problem is not None:
            self.result.skipped[problem] = self.result.skipped.get(problem, 0) + 1
            return
        right = right_key(letter)
        self._waiting.append(
            await self._producer.send(
                letter.topic,
                value=letter.value,
                key=letter.key if right is None else right,
                partition=letter.partition if right is None else None,
                timestamp_ms=letter.timestamp if letter.code != "time" and letter.timestamp >= 0 else None,
                headers=list(letter.headers),
            )
        )
        self.result.rekeyed += right is not None and right != letter.key
        self._sent.setdefault(filed.partition, []).append(letter.origin)
        if len(self._waiting) >= _TOGETHER:
            await self.flush()

    async def flush(self) -> None:
        """Wait until what was sent is acknowledged, then mark it."""
        await asyncio.gather(*self._waiting)
        self.result.sent += len(self._waiting)
        self._waiting.clear()
        for partition, origins in self._sent.items():
            await self._producer.send_and_wait(self._topic, partition=partition, **marker(origins)._asdict())
        self._sent.clear()

    def _problem(self, letter: DeadLetter) -> str | None:
        """Why a letter is left alone; None if it is to be sent."""
        if letter.origin in self._done:
            return "retried before"
        if letter.code == "document":
            return (
                f"from {letter.topic}: a document, which is made of events and not sent by itself: see what its reason"
                " says, `cco index create` for what the index lacks, then `cco audit --repair` to write it"
            )
        if letter.topic not in self._retryable:
            return f"from {letter.topic}, which heals by a resync"
        if letter.size is not None:
            return "too large to be here as a whole"
        if letter.key is None and letter.value is None:
            return "with neither key nor value"
        count = self._partitions.get(letter.topic)
        if count is None:
            return f"from {letter.topic}, which is not there any more"
        if letter.partition >= count and letter.code not in MISPLACED:
            return f"from a partition that {letter.topic} does not have any more"
        return None


def right_key(letter: DeadLetter) -> bytes | None:
    """The key that a misplaced record should have had; None if its place is not what was wrong, or it names none."""
    if letter.code not in MISPLACED:
        return None
    try:
        record = json.loads(letter.value or b"")
        named = [record.get("event"), record.get("event_type")] if isinstance(record, Mapping) else []
        types = {name: 0 for name in named if isinstance(name, str)}  # whether it is known is not asked here
        found = FieldRules(types, {}).accept(record, None)
    except (BadRecord, ValueError, RecursionError):
        return None
    name = found.item_id if isinstance(found, ItemChange) else found.user
    return None if name is None else name.encode()
