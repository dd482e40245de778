"""What a worker has sent and Kafka has not yet acknowledged, in order, bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

MOST_RANGES = 64  # on their way at a time


class Unacknowledged:
    """Positions whose messages are on their way. `acknowledged(position)` is called in order as they arrive.

    A failed send is final: `failed` is called with it, and nothing is acknowledged any more.
    """

    def __init__(self, acknowledged: Callable[[int], None], failed: Callable[[BaseException], None]) -> None:
        self._acknowledged, self._failed = acknowledged, failed
        self._waiting: deque[tuple[int, asyncio.Future[Any]]] = deque()
        self._broken = False

    def add(self, position: int, futures: Sequence[asyncio.Future[Any]]) -> None:
        """Everything up to `position` is said once `futures`, and those before them, are done."""
        together = asyncio.gather(*futures)
        self._waiting.append((position, together))
        together.add_done_callback(self._arrived)

    def _arrived(self, future: asyncio.Future[Any]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            if not self._broken:
                self._broken = True
                self._failed(error)
            return
        while self._waiting and self._waiting[0][1].done() and not self._broken:
            self._acknowledged(self._waiting.popleft()[0])

    async def room(self) -> None:
        """Wait until less than MOST_RANGES are on their way."""
        while len(self._waiting) >= MOST_RANGES and not self._broken:
            await asyncio.wait([self._waiting[0][1]])
            await asyncio.sleep(0)  # callbacks run after those who wait

    async def flush(self, seconds: float) -> bool:
        """Wait for all of it, for so long at most; answers whether all is acknowledged."""
        pending = [future for _, future in self._waiting]
        if pending:
            await asyncio.wait(pending, timeout=seconds)
            await asyncio.sleep(0)
        return not self._waiting and not self._broken
