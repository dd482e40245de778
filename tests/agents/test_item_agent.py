"""When an event counts as published: once Kafka, or the index, has all patches of its rows."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_client import CollectorRegistry

from agents.settings import Settings
from agents.workers.item_agent import ItemAgent, _Owned
from agents.workers.item_partition import Claim
from agents.workers.metrics import Metrics
from agents.workers.patch_sinks import Encoded, NoSink
from tests.agents.test_item_partition import CLAIM, CONFIG, World
from tests.agents.test_metrics import value


class HeldSink(NoSink):
    """Patches arrive when the test says so."""

    def __init__(self) -> None:
        self.sent: list[asyncio.Future[Any]] = []

    async def send(self, encoded: Encoded[int]) -> asyncio.Future[Any]:
        self.sent.append(asyncio.get_running_loop().create_future())
        return self.sent[-1]


class Publishing:
    """An item agent that has one partition, which is filled and published; its sink holds what is sent from now on."""

    def __init__(self, compute: ThreadPoolExecutor) -> None:
        self.world, self.sink, self.metrics = World(), HeldSink(), Metrics(CollectorRegistry())
        nobody: Any = None

        async def never(partition: int, offset: int) -> None:
            raise AssertionError

        def failed(error: BaseException) -> None:
            raise AssertionError from error

        self.agent = ItemAgent(CONFIG, Settings(), self.metrics, nobody, compute, map, self.sink, never, failed)
        for user, items in {"u1": "ab", "u2": "ab", "u3": "cd", "u4": "cd"}.items():
            self.world.buy(user, *items)
        self.owned = _Owned(self.world.filled().items, Claim(CLAIM), heard=math.inf)  # never quiet
        self.agent._owned[0] = self.owned

    async def bought(self, user: str, *items: str) -> int:
        """All rows that it touches are counted; answers how many batches of patches are on their way by then."""
        self.world.take(self.world.buy(user, *items, event_time=time.time()), time.monotonic())
        while self.owned.partition.waiting:
            await self.agent._publish(0, self.owned)
        return len(self.sink.sent)

    async def arrives(self, number: int) -> None:
        self.sink.sent[number].set_result(None)
        await asyncio.sleep(0)  # callbacks run after those who wait

    @property
    def told(self) -> float | None:
        """Records whose latency is told."""
        return value(self.metrics, "cco_event_to_patch_seconds_count")


def test_the_latency_is_told_when_all_patches_before_are_there() -> None:
    async def story() -> None:
        with ThreadPoolExecutor(1) as compute:
            publishing = Publishing(compute)
            assert await publishing.bought("u5", "a", "b") == 1
            assert publishing.told == 0
            assert await publishing.bought("u5", "a") == 1  # again: no row changes, so nothing is sent
            assert publishing.told == 0
            assert await publishing.bought("u6", "c", "d", "a") == 2
            await publishing.arrives(1)
            assert publishing.told == 0
            assert not publishing.agent.is_exact(0)
            await publishing.arrives(0)
            assert publishing.told == 6  # records, each of them
            assert await publishing.bought("u6", "c") == 2  # nothing is on its way
            assert publishing.told == 7

    asyncio.run(story())
