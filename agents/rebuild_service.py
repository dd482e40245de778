"""Rebuilds one after the other, as a service: `cco rebuild --every`."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Stopped(Exception):
    """SIGTERM came: a rebuild is left at the end of one of its steps, and cleans up after itself."""


class Stopping:
    """Whether SIGTERM came. A rebuild asks between its steps, so that none of them is left half done."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def check(self) -> None:
        """Raise Stopped if it came."""
        if self._event.is_set():
            raise Stopped

    def wait(self, seconds: float) -> bool:
        """Whether it comes within so many seconds."""
        return self._event.wait(max(0.0, seconds))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGTERM meanwhile. For the main thread."""

        def stop(number: int, frame: FrameType | None) -> None:
            self._event.set()

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def keep(
    every: float,
    work: Callable[[Stopping], None],
    wanted: Callable[[], str | None],
    failures: tuple[type[Exception], ...],
    tell: Callable[[str, dict[str, Any]], None],
) -> None:
    """Do `work` now and then `every` seconds, counted from begin to begin, if it is wanted then; until SIGTERM.

    `wanted` answers why it is not, or None. A failure is told, and the next turn is another attempt. `tell(what,
    fields)`.
    """
    stopping = Stopping()
    with stopping.listening():
        while True:
            began = time.monotonic()
            try:
                why_not = wanted()
                if why_not is None:
                    work(stopping)
                    tell("rebuilt", {"seconds": round(time.monotonic() - began, 3)})
                else:
                    tell("no rebuild is wanted", {"reason": why_not})
            except Stopped:
                pass
            except failures as error:
                tell("the rebuild failed", {"reason": " ".join(str(error).split())})
            if stopping.wait(began + every - time.monotonic()):
                tell("stopped", {})
                return
