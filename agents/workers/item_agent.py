"""The item agent: messages of edits through the item stages, patches to the sink.

A shell: it moves bytes, on the event loop, and leaves what they mean to `ItemPartition`, on the compute thread.
An item partition begins with a claim, asks every source to fill it, and publishes once it is filled. Whatever
is lost on the way makes it begin anew: its state is derived from that of the user stages.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from aiokafka import AIOKafkaProducer

from agents.kafka.transport import BrokenOrderError, Fetched
from agents.log import get_logger
from agents.settings import Settings
from agents.workers.item_partition import Claim, Fate, ItemPartition, Timed
from agents.workers.metrics import Metrics
from agents.workers.patch_sinks import Encoded, Sink
from cco.config import Config
from cco.delivery import claim_message
from cco.row_counter import MapLike
from model_sync.bulk_types import FencedError, WriterClosedError

ASK_SECONDS = 1.0  # between two requests to a source that has not begun to answer
STALL_SECONDS = 15.0  # without any progress of a fill, after which it is asked for anew
QUIET_SECONDS = 0.3  # without edits, after which rows that are not due are refreshed
IDLE_SECONDS = 0.1  # between two looks at rows when nothing is due


class Request(msgspec.Struct, frozen=True):
    """What an item partition asks of sources, over `control`."""

    epoch: str
    partition: int
    claim: int
    sources: list[int]


@dataclass(slots=True)
class _Sent:
    """Patches on their way, or there before others that were sent earlier."""

    ranges: list[Timed]  # whose rows are all out once these patches are there, and all that were sent before
    arrived: bool = False


@dataclass(slots=True)
class _Owned:
    """An item partition of this worker."""

    partition: ItemPartition
    claim: Claim
    log_end: int = 0
    heard: float = 0.0  # clock time of the last message
    asked: float = 0.0
    progress: tuple[int, float] = (0, 0.0)  # of the fill, and when it was seen
    sent: deque[_Sent] = field(default_factory=deque)  # in the order of sending, until all before are there, too
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class ItemAgent:
    """All item partitions of a worker. Methods run on the event loop.

    `begin(partition, offset)` makes the consumer read a partition of `edits` from there on.
    """

    def __init__(
        self,
        config: Config,
        settings: Settings,
        metrics: Metrics,
        producer: AIOKafkaProducer,
        compute: Executor,
        map_chunks: MapLike,
        sink: Sink,
        begin: Callable[[int, int], Awaitable[None]],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._config, self._settings, self._metrics = config, settings, metrics
        self._producer, self._compute, self._map_chunks, self._sink = producer, compute, map_chunks, sink
        self._begin, self._failed = begin, failed
        self._owned: dict[int, _Owned] = {}
        self.fenced: dict[int, float] = {}  # partitions that another worker has claimed, and the clock time of it
        self._turns: dict[int, int] = {}  # by partition: how often it was claimed or given up
        self._later: dict[int, int] = {}  # by partition: the time of a claim that was found in the index
        self.topic = settings.topic("edits")
        self._wake = asyncio.Event()

    def owned(self) -> dict[int, ItemPartition]:
        """The item partitions that are ours, by number."""
        return {partition: owned.partition for partition, owned in self._owned.items()}

    def is_exact(self, partition: int) -> bool:
        """Whether every row in the sink is as the model at the position that is applied."""
        owned = self._owned[partition]
        life = owned.partition
        return life.exact and not (life.send_all or life.handing_over or owned.sent)

    def log_end(self, partition: int) -> int:
        """The offset after the last message of `edits` that is known to be in the log."""
        owned = self._owned[partition]
        return max(owned.log_end, owned.partition.position)

    def position(self, partition: int) -> int | None:
        """Where to read an item partition; None before it has claimed."""
        owned = self._owned.get(partition)
        return None if owned is None else owned.partition.position

    # -- assignment ---------------------------------------------------------------------------------

    async def claim(self, partition: int) -> None:
        """Begin, or begin anew: claim the partition, read it from there on, ask all sources."""
        turn = self._next_turn(partition)
        config, partitions = self._config, self._settings.item_partitions
        sources = config.retention.source_partitions
        message = claim_message(config.epoch, sources, partition, partitions, secrets.randbits(64))
        sent = await self._producer.send_and_wait(self.topic, value=message, partition=partition)
        if self._turns[partition] != turn:
            return  # given up or claimed again meanwhile
        of_items = ItemPartition(config, partition, partitions, sent.offset, self.topic, self._map_chunks)
        # Of two claims the later one in the log is right, and so it must be in the index, whatever the broker's clock
        # says: after it went back, whoever has the partition is taken for an earlier owner, once.
        claim = Claim(sent.offset, max(sent.timestamp, self._later.get(partition, -1) + 1))
        owned = _Owned(of_items, claim, progress=(0, time.monotonic()))
        self._owned[partition] = owned
        self.fenced.pop(partition, None)
        self._metrics.own_item_partition(partition)
        get_logger(topic=self.topic, partition=partition).info("claimed", claim=sent.offset)
        await self._begin(partition, of_items.position)
        if self._owned.get(partition) is owned:
            await self._ask(owned)

    def close(self, partition: int) -> None:
        """Give a partition up; its state is of no use to anybody."""
        self._next_turn(partition)
        self.fenced.pop(partition, None)
        if self._owned.pop(partition, None) is not None:
            self._metrics.release_item_partition(self.topic, partition)

    def _next_turn(self, partition: int) -> int:
        self._turns[partition] = self._turns.get(partition, 0) + 1
        return self._turns[partition]

    async def _ask(self, owned: _Owned) -> None:
        inbox = owned.partition.inbox
        if not inbox.waiting:
            return
        owned.asked = time.monotonic()
        request = Request(self._config.epoch, owned.partition.partition, inbox.claim, inbox.waiting)
        await self._producer.send(self._settings.topic("control"), value=msgspec.json.encode(request), partition=0)
        self._metrics.resyncs_asked.labels(owned.partition.partition).inc(len(inbox.waiting))

    async def tick(self) -> None:
        """Ask again where nobody has begun to answer; begin anew where an answer has stopped.

        And where another worker claimed the partition, but the group says that it is ours: that worker had it while
        we were out. If it is we who are outdated, the group tells us within the session timeout.
        """
        now = time.monotonic()
        for number, since in list(self.fenced.items()):
            if now - since > self._settings.session_timeout:
                await self.claim(number)
        for number, owned in list(self._owned.items()):
            partition = owned.partition
            if partition.inbox.filled:
                continue
            if partition.progress != owned.progress[0]:
                owned.progress = (partition.progress, now)
            if partition.inbox.waiting:
                if now - owned.asked >= ASK_SECONDS:
                    await self._ask(owned)
            elif now - owned.progress[1] > STALL_SECONDS:
                get_logger(topic=self.topic, partition=number).warning("a fill has stopped: asking anew")
                await self.claim(number)

    # -- edits --------------------------------------------------------------------------------------

    async def process(self, fetched: Fetched) -> None:
        """Apply a fetch of edits messages."""
        number = fetched.tp.partition
        owned = self._owned.get(number)
        if owned is None:
            return
        async with owned.turn:
            if self._owned.get(number) is not owned or fetched.end <= owned.partition.position:
                return
            if fetched.start > owned.partition.position:
                raise BrokenOrderError(self.topic, number, owned.partition.position, fetched.start)
            await self._take(owned, fetched)

    async def _take(self, owned: _Owned, fetched: Fetched) -> None:
        partition, number = owned.partition, fetched.tp.partition
        owned.log_end = max(fetched.end, fetched.log_end or 0)
        records = [record for record in fetched.records if record.offset >= partition.position]
        loop = asyncio.get_running_loop()
        owned.heard = time.monotonic()
        taken = await loop.run_in_executor(self._compute, partition.take, records, fetched.end, owned.heard)
        metrics, log = self._metrics, get_logger(topic=self.topic, partition=number)
        metrics.fetch_records.observe(len(fetched.records), self.topic)
        metrics.edits_applied.labels(number).inc(taken.edits)
        metrics.messages_dropped.labels(number).inc(taken.dropped)
        for letter in taken.letters:
            record = letter.to_record()
            await self._producer.send(
                self._settings.topic("dead-letters"), key=record.key, value=record.value, headers=record.headers
            )
        metrics.refused(letter.code for letter in taken.letters)
        if taken.filled:
            log.info("filled", items=len(partition.items), users=partition.facts.members)
        if taken.fate is Fate.BEGINS_ANEW:
            metrics.gaps.labels(number).inc()
            log.warning("edits were lost: beginning anew", position=partition.inbox.position)
            await self.claim(number)
        elif taken.fate is Fate.FENCED:
            self._fence(owned)
        self._wake.set()

    def _fence(self, owned: _Owned, at: int = -1) -> None:
        """Somebody else's claim was found, in the log of edits or, with the time `at`, in the index."""
        number = owned.partition.partition
        self._later[number] = max(at, self._later.get(number, -1))
        if self._owned.get(number) is not owned:
            return
        get_logger(topic=self.topic, partition=number).warning(
            "another worker has claimed the partition: leaving it alone", claim=owned.claim.offset
        )
        self.close(number)
        self.fenced[number] = time.monotonic()

    def send_all(self) -> None:
        """The index is another one than before: every row is sent once more."""
        for owned in self._owned.values():
            owned.partition.send_all = True
        self._wake.set()

    def hand_over(self) -> bool:
        """There is another index beside those that hold what was sent: every row is sent once more, for it alone.

        Patches tell what the others hold. Answers False, and does nothing, while an earlier hand-over goes on.
        """
        partitions = [owned.partition for owned in self._owned.values()]
        if any(partition.handing_over for partition in partitions):
            return False
        for partition in partitions:
            partition.hand_over = True
        self._wake.set()
        return True

    # -- rows ---------------------------------------------------------------------------------------

    async def publish_forever(self) -> None:
        """Count due rows and send their patches, as fast as the sink takes them."""
        while True:
            worked = False
            for number, owned in list(self._owned.items()):
                if owned.partition.inbox.countable:
                    worked |= await self._publish(number, owned)
            if not worked:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS):  # `wait_for` may lose a cancellation, see `Ending`
                        await self._wake.wait()

    async def _publish(self, number: int, owned: _Owned) -> bool:
        """One step; answers whether there may be more to do at once."""
        loop, partition = asyncio.get_running_loop(), owned.partition
        now = time.monotonic()
        counted = partition.stage.rows_counted
        quiet = now - owned.heard > QUIET_SECONDS
        more, ages, ranges, encoded = await loop.run_in_executor(self._compute, self._count, owned, now, quiet)
        self._metrics.rows_counted.labels(number).inc(partition.stage.rows_counted - counted)
        if self._owned.get(number) is not owned:
            return more
        if encoded is not None:
            owned.sent.append(sent := _Sent(ranges))
            future = await self._sink.send(encoded)
            future.add_done_callback(lambda done: self._arrived(owned, encoded, sent, done))
        elif owned.sent:  # with patches of earlier steps, perhaps
            owned.sent[-1].ranges += ranges
        else:
            self._are_out(ranges)
        if ages.size:
            self._metrics.row_age.observe(ages)
        return more

    def _count(
        self, owned: _Owned, now: float, quiet: bool
    ) -> tuple[bool, npt.NDArray[np.float64], list[Timed], Encoded[Any] | None]:
        """On the compute thread: is there more to do, ages of rows, ranges with all their rows counted, patches."""
        partition, nothing = owned.partition, np.zeros(0)
        counted = partition.stage.rows_counted
        patches, ranges = partition.publish(now)
        items, seconds = partition.counting
        if patches is None and quiet and not partition.stage.due():
            patches = partition.refresh(now)
        ages = partition.stage.ages if partition.stage.rows_counted > counted else nothing
        more = patches is not None or bool(partition.stage.due()) or partition.handing_over
        encoded = None
        if patches is not None and len(patches.rows):
            begin = time.perf_counter()
            encoded = self._sink.encode(partition.items, patches, partition.partition, owned.claim)
            seconds += time.perf_counter() - begin
        partition.pace.took(items, seconds)
        return more, ages, ranges, encoded

    def _arrived(self, owned: _Owned, encoded: Encoded[Any], sent: _Sent, done: asyncio.Future[Any]) -> None:
        if done.cancelled():
            return
        error = done.exception()
        if isinstance(error, FencedError):
            self._fence(owned, error.by[0])
            return
        if isinstance(error, WriterClosedError):
            return  # the worker stops; the next owner sends every row
        if error is not None:
            self._failed(error)
            return
        sent.arrived = True
        while owned.sent and owned.sent[0].arrived:
            self._are_out(owned.sent.popleft().ranges)
        self._metrics.patches_sent.labels(encoded.partition).inc(len(encoded.records))
        self._metrics.fields_sent.labels(encoded.partition).inc(encoded.fields)

    def _are_out(self, ranges: Sequence[Timed]) -> None:
        if ranges:
            now = time.time()
            self._metrics.latency.observe([now - then for then, _ in ranges], often=[number for _, number in ranges])
