"""Events without end, for soaks: skewed users and items, returns, deletions, clocks; late, repeated, out of order."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from agents.kafka.producing import Produced, produce
from cco.event_data import CLOCK, DELETE_USER, EventBatch
from tests.kafka.world import PATIENCE, World

BEGIN = 1_000_000_000  # epoch seconds of the first event: there is room for decades
DAY = 86_400
PIECE = 2_000  # events generated at a time
REPEATED, LATE, DELETED, CLOCKS = 0.05, 0.25, 0.002, 0.001  # shares


class Flow:
    """Events of `users` users over `items` items, `pace` seconds of event time from one to the next.

    What is retained stays the same in the long run: ids are few, and windows and caps are in force.
    """

    def __init__(self, world: World, seed: int, users: int, items: int, pace: float) -> None:
        self._world, self._random = world, np.random.default_rng(seed)
        self._users = world.users.intern([f"user-{k}" for k in range(users)])
        self._items = world.items.intern([f"item-{k}" for k in range(items)])
        types = world.config.event_types
        self._types = np.array([types.index(name) for name in ("purchase", "view", "return")], np.int16)
        self._pace, self._now = pace, float(BEGIN)
        self.sent = Produced()

    def batch(self, number: int) -> EventBatch:
        """The next `number` events."""
        random = self._random
        users = self._users[(self._users.size * random.random(number) ** 1.5).astype(np.int64)]
        items = self._items[(self._items.size * random.random(number) ** 2).astype(np.int64)]
        types = random.choice(self._types, number, p=[0.35, 0.6, 0.05])
        times = self._now + self._pace * np.arange(number)
        self._now += self._pace * number
        times -= np.where(random.random(number) < LATE, 5 * DAY * random.random(number), 0.0)
        again = np.flatnonzero(random.random(number) < REPEATED)
        earlier = np.maximum(again - random.integers(1, 50, again.size), 0)
        for column in (users, items, types, times):
            column[again] = column[earlier]
        types[random.random(number) < DELETED] = DELETE_USER
        types[random.random(number) < CLOCKS] = CLOCK
        return EventBatch(users, items, types, (times // 60 * 60).astype(np.uint32))

    def send(self, number: int) -> None:
        """Send so many, as fast as it goes, and wait until Kafka has them."""
        self._produce(iter([self.batch(number)]), None)

    @contextmanager
    def flowing(self, rate: float) -> Iterator[None]:
        """Events flow at `rate` a second meanwhile; at the end all of them are in Kafka."""
        failures: list[BaseException] = []
        end = threading.Event()

        def pieces() -> Iterator[EventBatch]:
            while not end.is_set():
                yield self.batch(max(1, min(PIECE, round(rate / 10))))

        def run() -> None:
            try:
                self._produce(pieces(), rate)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join(PATIENCE)
        if failures:
            raise failures[0]
        assert not thread.is_alive(), f"the producer has not ended after {PATIENCE:.0f} s"

    def _produce(self, pieces: Iterator[EventBatch], rate: float | None) -> None:
        world, before = self._world, self.sent.events
        begin = time.perf_counter()
        done = asyncio.run(produce(world.settings, world.config, world.users, world.items, pieces, rate=rate))
        self.seconds = time.perf_counter() - begin
        self.sent = Produced(before + done.events, done.messages, done.item_changes, done.offsets)
