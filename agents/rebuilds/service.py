"""Rebuilds that SIGTERM ends: one, or one after the other as a service (`cco rebuild --every`)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

AGAIN_SECONDS = 60.0  # after a failure, at least and as a rule


class Terminated(SystemExit):
    """SIGTERM came, and what was going on has cleaned up after itself."""


@contextmanager
def ended_by_sigterm() -> Iterator[Callable[[], None]]:
    """SIGTERM is as Ctrl-C meanwhile, at once, and raises Terminated at the end. In the main thread alone.

    What is open is closed on the way: a rebuild gives back its lock, and removes what it has not published. Yields
    what to call now and then: where a library kept the interruption to itself, it raises it again.
    """
    came = False

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal came
        if came:
            return  # it is cleaning up by now
        came = True
        interrupt = signal.getsignal(signal.SIGINT)  # where an event loop runs, it ends what the loop is at
        if callable(interrupt):
            interrupt(signal.SIGINT, frame)
        else:  # shells have commands in the background ignore Ctrl-C
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield check
    except KeyboardInterrupt:
        if came:
            raise Terminated(128 + signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def keep(
    every: float,
    work: Callable[[], None],
    wanted: Callable[[], str | None],
    failures: tuple[type[Exception], ...],
    tell: Callable[[str, dict[str, Any]], None],
) -> None:
    """Do `work` now and then `every` seconds, counted from begin to begin, if it is wanted then; until SIGTERM.

    `wanted` answers why it is not, or None. After a failure, which is told, the next turn comes early: what was in the
    way may be gone in a minute, as the lock of a rebuild that was killed is in five. `tell(what, fields)`.
    """
    try:
        with ended_by_sigterm() as check:
            while True:
                began = time.monotonic()
                turn = began + every
                try:
                    why_not = wanted()
                    if why_not is None:
                        work()
                        tell("rebuilt", {"seconds": round(time.monotonic() - began, 3)})
                    else:
                        tell("no rebuild is wanted", {"reason": why_not})
                except failures as error:
                    turn = min(turn, _again(began, time.monotonic()))
                    again = max(0.0, turn - time.monotonic())
                    tell("the rebuild failed", {"reason": " ".join(str(error).split()), "again_seconds": round(again)})
                check()
                time.sleep(max(0.0, turn - time.monotonic()))
    except Terminated:
        tell("stopped", {})


def _again(began: float, failed: float) -> float:
    """When to try again what began and failed then. One that fails at its end may take half of the time, not all."""
    return failed + max(AGAIN_SECONDS, failed - began)
