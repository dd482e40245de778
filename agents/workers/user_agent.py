"""The user agent: fetches of `interactions` through the user stages, edits and dead letters to Kafka, state to disk.

A shell: it moves bytes, on the event loop, and leaves what they mean to `UserPartition`, on the compute thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from agents.kafka.logs import Log, look_at
from agents.kafka.sending import Unacknowledged
from agents.kafka.topics import state_problem
from agents.kafka.transport import BrokenOrderError, Fetched
from agents.log import get_logger
from agents.settings import Settings
from agents.state.checkpoint import Checkpointer
from agents.state.errors import StateError
from agents.state.shared_copy import SharedCopy, open_newest
from agents.state.store import StateStore
from agents.workers.item_partition import EVENT_TIME
from agents.workers.metrics import Metrics
from agents.workers.user_partition import SourceLog, Told, UserPartition
from cco.config import Config
from model_sync.bulk_types import WriterClosedError
from model_sync.elastic_users import UserDocument

IDLE_SECONDS = 0.5  # between two looks at whether users have changed, if no event tells
TICK_SECONDS = 0.1  # between steps of checkpoints and fills when no events come
FLUSH_SECONDS = 3.0  # for acknowledgements when a partition is given up


PutUsers = Callable[[Sequence[UserDocument]], Awaitable[asyncio.Future[None]]]


@dataclass(slots=True)
class _Owned:
    """A source partition of this worker."""

    partition: UserPartition
    sent: Unacknowledged
    log_end: int
    told: tuple[int, int] = (0, 0)  # shared copies and their failures that the metrics know of
    # what is computed is sent before the next thing is: messages are in the order of what they say
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)


class UserAgent:
    """All source partitions of a worker. Methods run on the event loop."""

    def __init__(
        self,
        config: Config,
        settings: Settings,
        metrics: Metrics,
        producer: AIOKafkaProducer,
        compute: Executor,
        failed: Callable[[BaseException], None],
        bounds: Callable[[int], Awaitable[tuple[int, int]]],
    ) -> None:
        self._config, self._settings, self._metrics = config, settings, metrics
        self._bounds = bounds  # the first offset of a source in the log, and the one after its last
        self._producer, self._compute, self._failed = producer, compute, failed
        self._owned: dict[int, _Owned] = {}
        self._wake = asyncio.Event()  # users have changed
        self._looking: asyncio.Future[dict[str, Log]] | None = None  # at the topic, on behalf of who opens a partition
        self.problems: dict[int, str] = {}  # by source: why it is not served
        self._noted: dict[int, list[str]] = {}  # by source: what was said when it was last opened
        self.topic = settings.topic("interactions")
        self._edits_topic, self._letters_topic = settings.topic("edits"), settings.topic("dead-letters")

    def owned(self) -> dict[int, UserPartition]:
        """The partitions that are open, by source."""
        return {source: owned.partition for source, owned in self._owned.items()}

    def log_end(self, source: int) -> int:
        """The offset after the last record of a source that is known to be in the log."""
        owned = self._owned[source]
        return max(owned.log_end, owned.partition.position)

    def position(self, source: int) -> int | None:
        """Where to read a source; None if it is not open."""
        owned = self._owned.get(source)
        return None if owned is None else owned.partition.position

    # -- assignment ---------------------------------------------------------------------------------

    async def open(self, source: int) -> int | None:
        """Take up the state of a source.

        Answers where to read on; None if it cannot be served, and then `problems` says why.
        """
        loop = asyncio.get_running_loop()
        log = get_logger(topic=self.topic, partition=source)
        try:
            place = await self._look_at_log(source)
            reading = loop.run_in_executor(None, self._open_store, source)
            (begin, end), (store, origin, notes) = await asyncio.gather(self._bounds(source), reading)
            for note in notes:
                if note not in self._noted.get(source, ()):
                    log.warning(note)
            self._noted[source] = notes
            problem = state_problem(store.path, store.commit.input, asdict(place), begin, end)
            if problem is not None:
                store.close()
                raise StateError(problem)
            partition = UserPartition(self._config, place, self._settings.item_partitions)
            partition.tell_all_at = end
            # nobody else knows the partition yet, and the compute thread may still be loading kernels
            await loop.run_in_executor(None, self._take_up, partition, store)
        except StateError as error:
            if source in self._owned:
                return None  # an earlier call was still about it, and has done it meanwhile
            if self.problems.get(source) != str(error):
                log.error("the partition is not served", reason=str(error))
            self.problems[source] = str(error)
            return None
        self.problems.pop(source, None)
        sent = Unacknowledged(lambda position: _acknowledge(partition, position), self._failed)
        self._owned[source] = _Owned(partition, sent, end)
        self._metrics.own_source(source)
        log.info("the partition is served", state=origin, offset=partition.position, log_end=end)
        async with self._owned[source].turn:
            await self._send(self._owned[source], Told(partition.marks()), None)
        return partition.position

    async def _look_at_log(self, source: int) -> SourceLog:
        """What a state must be of. Raises StateError while Kafka does not say."""
        if self._looking is None or self._looking.done():  # partitions that are opened together ask once
            self._looking = asyncio.ensure_future(look_at(self._producer.client, [self.topic]))
        try:
            found = (await asyncio.shield(self._looking)).get(self.topic)
        except KafkaError as error:
            raise StateError(f"{self.topic}: Kafka does not say which topic it is: {error!r}") from error
        if found is None:
            raise StateError(f"{self.topic}: there is no such topic, or it is not ours to see: `cco topics check`")
        return SourceLog(self.topic, source, self._config.retention.source_partitions, found.cluster, found.id)

    def _share(self, source: int) -> SharedCopy | None:
        return None if self._settings.share is None else SharedCopy(self._settings.share, f"interactions-{source}")

    def _path(self, source: int) -> Path:
        return self._settings.state / f"interactions-{source}"

    def _open_store(self, source: int) -> tuple[StateStore, str, list[str]]:
        return open_newest(self._path(source), self._config, self._share(source), source=source)

    def _take_up(self, partition: UserPartition, store: StateStore) -> None:
        try:
            partition.open(
                store,
                interval=self._settings.checkpoint_every,
                share=self._share(partition.source),
                share_every=self._settings.share_every,
            )
        except BaseException:
            store.close()
            raise

    async def close_all(self, seconds: float) -> list[int]:
        """Give all sources up, within `seconds`. Answers those whose state is not saved as it is."""
        closing = {source: asyncio.ensure_future(self.close(source)) for source in self._owned}
        if closing:
            _, late = await asyncio.wait(closing.values(), timeout=seconds)
            for task in late:
                task.cancel()
        found = await asyncio.gather(*closing.values(), return_exceptions=True)
        return sorted(source for source, saved in zip(closing, found, strict=True) if saved is not True)

    async def close(self, source: int) -> bool:
        """Give a source up: commit what is acknowledged, and let go of its state. Answers whether that is all of it."""
        owned = self._owned.pop(source, None)
        self.problems.pop(source, None)
        if owned is None:
            return True
        log = get_logger(topic=self.topic, partition=source)
        try:
            async with owned.turn:
                await owned.sent.flush(FLUSH_SECONDS)
                await asyncio.get_running_loop().run_in_executor(self._compute, owned.partition.finish)
        except StateError as error:  # what is not committed will be read again
            log.error("the last snapshot failed", reason=str(error))
            return False
        except asyncio.CancelledError:
            log.error("the last snapshot failed", reason="there was no time left for it")
            raise
        finally:
            self._metrics.release_source(self.topic, source)
        return True

    # -- events -------------------------------------------------------------------------------------

    async def process(self, fetched: Fetched) -> None:
        """Apply a fetch and send what it says. Raises BrokenOrderError, StateError."""
        owned = self._owned.get(fetched.tp.partition)
        if owned is not None:
            async with owned.turn:
                if self._owned.get(fetched.tp.partition) is owned:  # it may have been given up meanwhile
                    await self._apply(owned, fetched)

    async def _apply(self, owned: _Owned, fetched: Fetched) -> None:
        partition = owned.partition
        if fetched.end <= partition.position:
            return
        if fetched.start > partition.position:
            raise BrokenOrderError(self.topic, partition.source, partition.position, fetched.start)
        if fetched.records[0].offset > partition.position:
            await self._check_hole(partition, fetched.records[0].offset)
        owned.log_end = max(fetched.end, fetched.log_end or 0)
        records = fetched.records
        if fetched.start < partition.position:
            records = [record for record in records if record.offset >= partition.position]
        loop = asyncio.get_running_loop()
        told = await loop.run_in_executor(self._compute, partition.apply, records, fetched.end)
        self._wake.set()
        await self._send(owned, told, min((record.timestamp for record in records), default=None))
        self._metrics.fetch_records.observe(len(fetched.records), self.topic)
        self._metrics.events_applied.labels(partition.source).inc(told.events)
        self._metrics.events_replayed.labels(partition.source).inc(told.replayed)
        self._metrics.refused(letter.code for letter in told.letters)
        await self._step(owned)

    async def _check_hole(self, partition: UserPartition, offset: int) -> None:
        """The log goes on later than where we stand: markers of transactions, or records that retention deleted."""
        begin, _ = await self._bounds(partition.source)
        if begin > partition.position:
            raise BrokenOrderError(self.topic, partition.source, partition.position, begin)
        get_logger(topic=self.topic, partition=partition.source).info(
            "no records between", position=partition.position, next=offset
        )

    async def _send(self, owned: _Owned, told: Told, event_time: int | None) -> None:
        """Send messages and dead letters; the position counts as said when all of them are acknowledged."""
        partition = owned.partition
        await owned.sent.room()
        headers = [] if event_time is None else [(EVENT_TIME, str(event_time).encode())]
        position = partition.position
        futures = [
            await self._producer.send(self._edits_topic, value=message, partition=target, headers=headers)
            for target, message in told.messages
        ]
        for letter in told.letters:
            record = letter.to_record()
            futures.append(
                await self._producer.send(
                    self._letters_topic, key=record.key, value=record.value, headers=record.headers
                )
            )
        owned.sent.add(position, futures)
        self._metrics.edits_sent.labels(partition.source).inc(told.edits)
        self._metrics.edits_sent_bytes.labels(partition.source).inc(sum(len(m) for _, m in told.messages))
        if told.fills_done:
            self._metrics.resyncs_answered.labels(partition.source).inc(told.fills_done)

    async def _step(self, owned: _Owned) -> None:
        """A step of the checkpoint, and of the answers to item partitions."""
        loop = asyncio.get_running_loop()
        partition = owned.partition
        marks = await loop.run_in_executor(self._compute, partition.step)
        self._tell(owned)
        if marks:
            await self._send(owned, Told(marks), None)
        if partition.filling:
            await self._send(owned, await loop.run_in_executor(self._compute, partition.fill_some), None)

    def _tell(self, owned: _Owned) -> None:
        """To the metrics: what snapshots and shared copies did since the last time."""
        checkpoints, told = owned.partition.checkpoints, owned.told
        if checkpoints is None:
            return
        seconds, shared = checkpoints.report.seconds, checkpoints.shared
        if seconds:
            self._metrics.snapshot_seconds.observe([seconds.popleft() for _ in range(len(seconds))])
        self._metrics.shared_copies.inc(shared.copies - told[0])
        self._metrics.shared_copy_failures.inc(shared.failures - told[1])
        owned.told = (shared.copies, shared.failures)

    async def tick(self) -> None:
        """For times without events: snapshots and fills go on. Raises StateError."""
        for source, owned in list(self._owned.items()):
            async with owned.turn:
                if self._owned.get(source) is owned:
                    await self._step(owned)

    # -- documents of users -------------------------------------------------------------------------

    async def publish_forever(self, put: PutUsers) -> None:
        """Keep the documents of users as their histories are, as fast as `put` takes them."""
        loop = asyncio.get_running_loop()
        while True:
            worked = False
            self._wake.clear()
            for source, owned in list(self._owned.items()):
                documents = await loop.run_in_executor(self._compute, owned.partition.user_documents)
                if documents:
                    worked = True
                    future = await put(documents)
                    future.add_done_callback(partial(self._stored, source, len(documents)))
            if not worked:
                with suppress(TimeoutError):
                    async with asyncio.timeout(IDLE_SECONDS):  # `wait_for` may lose a cancellation, see `Ending`
                        await self._wake.wait()

    def _stored(self, source: int, number: int, done: asyncio.Future[None]) -> None:
        error = None if done.cancelled() else done.exception()
        if error is None and not done.cancelled():
            self._metrics.user_documents.labels(source).inc(number)
        elif error is not None and not isinstance(error, WriterClosedError):  # or the next owner tells everybody
            self._failed(error)

    def tell_all_users(self) -> None:
        """The index is another one than before: every user is told once more."""
        for owned in self._owned.values():
            owned.partition.tell_all_users = True

    def asked(self, partition: int, claim: int, sources: list[int]) -> None:
        """An item partition asks to be filled by these sources."""
        if not 0 <= partition < self._settings.item_partitions:
            get_logger().warning("there is no such item partition", partition=partition, claim=claim)
            return
        for source in sources:
            if source in self._owned:
                self._owned[source].partition.ask(partition, claim)

    def checkpoints(self) -> dict[int, Checkpointer]:
        """What keeps the state durable, by source."""
        found = ((source, owned.partition.checkpoints) for source, owned in self._owned.items())
        return {source: checkpoints for source, checkpoints in found if checkpoints is not None}


def _acknowledge(partition: UserPartition, position: int) -> None:
    partition.acknowledged = max(partition.acknowledged, position)
