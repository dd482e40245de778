"""What a worker does about indices that it is to write: partitions of `items` that are open, formats that fit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any, cast

from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from faust.types import TP
from prometheus_client import CollectorRegistry

from agents.kafka.topics import DEAD_LETTERS, ITEMS
from agents.kafka.transport import Fetched, Record
from agents.workers.elastic_publishing import ElasticPublishing
from agents.workers.elastic_targets import Place
from agents.workers.metrics import Metrics
from tests.kafka.world import MakeWorld, World

SERVED, NEXT = (Place(name, f"id of {name}", "items", None) for name in ("items-000001", "items-000002"))
LONGEST = 30.0  # seconds


class Life:
    """What `ElasticPublishing` asks of the worker that it belongs to; nobody reads and nobody counts."""

    def __init__(self, world: World) -> None:
        self.config = world.config
        self.settings = world.settings.model_copy(update={"elasticsearch_urls": "http://127.0.0.1:1"})  # never asked
        self.metrics = Metrics(CollectorRegistry())
        self.producer = self
        self.letters: list[bytes] = []
        self.items = self.consumer = self
        self.assignment = {TP(world.settings.topic(ITEMS), 0)}
        self.read: list[tuple[int, int]] = []
        self.tasks: list[asyncio.Task[None]] = []

    def hand_over(self) -> bool:
        return True

    def send_all(self) -> None:
        """Nothing is there."""

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.append(asyncio.create_task(work))

    async def send_and_wait(self, topic: str, *, key: bytes, value: bytes, headers: Any) -> None:
        assert topic == self.settings.topic(DEAD_LETTERS)
        self.letters.append(value)

    async def begin(self, tp: TP, offset: int) -> None:
        self.read.append((tp.partition, offset))


@asynccontextmanager
async def publishing_of(life: Life) -> AsyncIterator[ElasticPublishing]:
    """What is looked at, and no longer than a test may take."""
    publishing = ElasticPublishing(cast(Any, life))
    try:
        async with asyncio.timeout(LONGEST):
            yield publishing
    finally:
        await publishing.close()
        await asyncio.gather(*life.tasks)


def fetched_of(tp: TP, begin: int, *values: bytes) -> Fetched:
    """A fetch from offset `begin` on."""
    records = [
        Record(*tp, begin + k, 1_700_000_000_000, 0, b"i", value, None, 1, len(value), ())
        for k, value in enumerate(values)
    ]
    return Fetched(tp, begin, begin + len(records), records, 0, begin + len(records))


def test_a_partition_that_is_being_opened_is_opened_for_the_indices_of_then(make_world: MakeWorld) -> None:
    """A swap is over while it asks where the index that was served stands: the one that stays is nothing new."""
    asyncio.run(_opened(Life(make_world())))


async def _opened(life: Life) -> None:
    may_answer = asyncio.Event()
    async with publishing_of(life) as publishing:
        metadata = publishing.metadata
        try:
            await publishing._follow([SERVED, NEXT])
            assert life.read == [(0, 0)]
            metadata.close(0)  # given up, and then assigned again:
            committed, is_asked = metadata._indices[NEXT.id].committed, asyncio.Event()
            answer = committed.committed

            async def slow(partition: Any) -> Any:
                is_asked.set()
                await may_answer.wait()
                return await answer(partition)

            committed.committed = slow
            opening = asyncio.create_task(metadata.open(0))
            await is_asked.wait()
            following = asyncio.create_task(publishing._follow([NEXT]))
            while metadata._indices.keys() != {NEXT.id}:
                await asyncio.sleep(0.01)
            may_answer.set()
            await asyncio.gather(opening, following)
            assert metadata.position(0) == 0 and life.read == [(0, 0), (0, 0)]
        finally:
            may_answer.set()


def test_a_bad_record_is_a_dead_letter_once(make_world: MakeWorld) -> None:
    """An index that is new has all of the topic read again."""
    world = make_world()
    world.produce_raw([(0, b"i", value) for value in (b"bad", b"worse", b"also")], "items")
    asyncio.run(_told_once(Life(world)))


async def _told_once(life: Life) -> None:
    fetched = partial(fetched_of, TP(life.settings.topic(ITEMS), 0))
    async with publishing_of(life) as publishing:
        await publishing._follow([SERVED])
        await publishing.metadata.process(fetched(0, b"bad"))
        assert life.letters == [b"bad"]
        await publishing._follow([SERVED, NEXT])
        await publishing.metadata.process(fetched(0, b"bad", b"worse"))
        assert life.letters == [b"bad", b"worse"] and publishing.metadata.position(0) == 2
        await publishing._follow([NEXT])
        await publishing.metadata.process(fetched(2, b"also"))
        assert life.letters == [b"bad", b"worse", b"also"]


def test_partitions_that_are_opened_together_are_committed(make_world: MakeWorld) -> None:
    """As after a rebalance. What is not committed is read from the beginning by whoever has it next."""
    world = make_world(item_partitions=2)
    world.produce_raw([(partition, b"i", b"bad") for partition in (0, 1)], "items")
    asyncio.run(_committed(Life(world)))


async def _committed(life: Life) -> None:
    life.assignment = set()
    async with publishing_of(life) as publishing:
        metadata, topic = publishing.metadata, life.settings.topic(ITEMS)
        await publishing._follow([SERVED])
        await asyncio.gather(metadata.open(0), metadata.open(1))
        for partition in (0, 1):
            await metadata.process(fetched_of(TP(topic, partition), 0, b"bad"))
        committed = metadata._indices[SERVED.id].committed.committed
        assert [await committed(TopicPartition(topic, partition)) for partition in (0, 1)] == [1, 1]


def test_a_swap_waits_for_what_is_asked_of_the_index_before(make_world: MakeWorld) -> None:
    """A consumer that is stopped while it commits never answers, and the partition would stand still for ever."""
    world = make_world()
    world.produce_raw([(0, b"i", b"bad"), (0, b"i", b"worse")], "items")
    asyncio.run(_asked(Life(world)))


async def _asked(life: Life) -> None:
    may_commit, is_asked = asyncio.Event(), asyncio.Event()
    async with publishing_of(life) as publishing:
        metadata, fetched = publishing.metadata, partial(fetched_of, TP(life.settings.topic(ITEMS), 0))
        try:
            await publishing._follow([SERVED, NEXT])
            coordinator = metadata._indices[SERVED.id].committed._coordinator
            send = coordinator._send_req

            async def slow(request: Any) -> Any:
                is_asked.set()
                await may_commit.wait()
                if coordinator._closing.done():  # as where its connection is closed before the answer is there
                    coordinator.coordinator_dead()
                    raise KafkaConnectionError
                return await send(request)

            coordinator._send_req = slow
            processing = asyncio.create_task(metadata.process(fetched(0, b"bad")))
            await is_asked.wait()
            following = asyncio.create_task(publishing._follow([NEXT]))
            await asyncio.wait([following], timeout=1.0)  # time enough for a swap that waits for nothing
            may_commit.set()
            await asyncio.gather(processing, following)
            await metadata.process(fetched(1, b"worse"))
            assert metadata.position(0) == 2
        finally:
            may_commit.set()


def test_a_partition_that_is_taken_away_while_it_is_opened_is_not_kept(make_world: MakeWorld) -> None:
    """It would be told to lag behind for ever."""
    asyncio.run(_taken_away(Life(make_world())))


async def _taken_away(life: Life) -> None:
    begin = life.begin

    async def taken_away(tp: TP, offset: int) -> None:
        life.assignment.clear()  # when it was not open yet, so nobody closes it
        await begin(tp, offset)

    life.begin = taken_away  # type: ignore[method-assign]
    async with publishing_of(life) as publishing:
        await publishing._follow([SERVED])
        assert life.read == [(0, 0)] and publishing.metadata.position(0) is None


def test_what_has_documents_of_another_format_is_not_written(make_world: MakeWorld) -> None:
    asyncio.run(_refused(Life(make_world())))


async def _refused(life: Life) -> None:
    async with publishing_of(life) as publishing:
        assert not await publishing._fit([(replace(SERVED, format=1), "items")])
        told = "items-000001 has documents of format 1, and this version writes 2: `cco index check` says what to do"
        assert str(publishing.trouble).endswith(told)
        assert await publishing._fit([(replace(SERVED, format=2), "items"), (replace(SERVED, format=1), "users")])
        assert publishing._wanted(SERVED, replace(NEXT, epoch=life.config.epoch, format=1)) == [SERVED]
