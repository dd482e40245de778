"""What a worker does about indices that it is to write: partitions of `items` that are open, formats that fit."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, cast

from faust.types import TP
from prometheus_client import CollectorRegistry

from agents.kafka.topics import ITEMS
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
        self.producer = None
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

    async def begin(self, tp: TP, offset: int) -> None:
        self.read.append((tp.partition, offset))


def test_a_partition_that_is_being_opened_is_opened_for_the_indices_of_then(make_world: MakeWorld) -> None:
    """A swap is over while it asks where the index that was served stands: the one that stays is nothing new."""
    asyncio.run(_opened(Life(make_world())))


async def _opened(life: Life) -> None:
    publishing, may_answer = ElasticPublishing(cast(Any, life)), asyncio.Event()
    metadata = publishing.metadata
    try:
        async with asyncio.timeout(LONGEST):
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
        await publishing.close()
        await asyncio.gather(*life.tasks)


def test_what_has_documents_of_another_format_is_not_written(make_world: MakeWorld) -> None:
    asyncio.run(_refused(Life(make_world())))


async def _refused(life: Life) -> None:
    publishing = ElasticPublishing(cast(Any, life))
    try:
        assert not await publishing._fit([(replace(SERVED, format=1), "items")])
        told = "items-000001 has documents of format 1, and this version writes 2: `cco index check` says what to do"
        assert str(publishing.trouble).endswith(told)
        assert await publishing._fit([(replace(SERVED, format=2), "items"), (replace(SERVED, format=1), "users")])
        assert publishing._wanted(SERVED, replace(NEXT, epoch=life.config.epoch, format=1)) == [SERVED]
    finally:
        await publishing.close()
