"""A worker's end: everything that it waits for has a bound, and what does not end within it is named in the log."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from agents.log import get_logger

AGAIN_SECONDS = 0.2  # between two cancellations of a task
TELL_SECONDS = 0.5  # for the last line of the log, whoever holds it up


class Ending:
    """What a stop waits for just now."""

    def __init__(self) -> None:
        self._waiting_for: list[str] = []

    async def wait(self, what: str, seconds: float, work: Coroutine[Any, Any, object]) -> None:
        """Have `work` done, for so long at most. Never raises: the rest of the end is not to suffer from it."""
        task, log = asyncio.ensure_future(work), get_logger()
        self._waiting_for.append(what)
        done, _ = await asyncio.wait([task], timeout=seconds)
        self._waiting_for.remove(what)
        if not done:
            task.cancel()  # and not waited for
            log.warning("this did not end in time, and the worker ends without it", what=what, seconds=seconds)
        elif not task.cancelled() and (error := task.exception()) is not None:
            log.warning("this failed at the end of the worker", what=what, reason=str(error) or repr(error))

    async def cancel(self, tasks: Collection[asyncio.Task[None]], seconds: float) -> None:
        """End tasks, within `seconds`.

        Again and again: until Python 3.12 `asyncio.wait_for` loses a cancellation that comes as its own wait ends.
        """
        until, left = time.monotonic() + seconds, set(tasks)
        self._waiting_for.append("background tasks")
        while left and time.monotonic() < until:
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=min(AGAIN_SECONDS, seconds))
        self._waiting_for.pop()
        if left:
            names = sorted(task.get_name() for task in left)
            get_logger().warning("these did not end in time, and the worker ends without them", what=names)

    def exit_within(self, seconds: float, status: Callable[[], int], otherwise: str) -> None:
        """End the process with `status()` then, if it is still there; `otherwise` is what is waited for by others."""

        def tell() -> None:
            waiting_for = ", ".join(self._waiting_for) or otherwise
            get_logger().warning("the process ends, whatever it waits for", waiting_for=waiting_for, seconds=seconds)

        def end() -> None:
            telling = threading.Thread(target=tell, daemon=True)
            telling.start()
            telling.join(TELL_SECONDS)
            os._exit(status())

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
