"""A worker's end: bounds that hold whatever hangs, and the name of what did not end."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from typing import Any

import pytest

from agents.workers import ending
from agents.workers.ending import Ending
from tests.agents.test_user_partition import said_in
from tests.kafka.world import wait_for

LONG = 60.0  # seconds


def test_a_task_that_loses_a_cancellation_ends_and_one_that_never_does_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ending, "AGAIN_SECONDS", 0.02)
    over = False

    async def loses_one() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(LONG)
        await asyncio.sleep(LONG)

    async def never_ends() -> None:
        while not over:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(LONG)

    async def story() -> None:
        nonlocal over
        tasks = [asyncio.create_task(work(), name=work.__name__) for work in (loses_one, never_ends)]
        await asyncio.sleep(0)
        try:
            await Ending().cancel(tasks, 2.0)
            assert tasks[0].cancelled() and not tasks[1].done()
        finally:
            over = True

    asyncio.run(story())
    assert [said["what"] for said in said_in(caplog)] == [["never_ends"]]


def test_what_does_not_end_in_time_is_named_and_holds_up_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def quick() -> None:
        pass

    async def fails() -> None:
        raise OSError("the disk is away")

    async def story() -> None:
        of, began = Ending(), time.monotonic()
        hanging = of.wait("Kafka", 0.05, asyncio.sleep(LONG))
        await asyncio.gather(hanging, of.wait("the sink", LONG, fails()), of.wait("the monitor", LONG, quick()))
        assert time.monotonic() - began < LONG / 2

    asyncio.run(story())
    told = {said["what"]: said for said in said_in(caplog)}
    assert set(told) == {"Kafka", "the sink"}
    assert told["Kafka"]["seconds"] == 0.05 and told["the sink"]["reason"] == "the disk is away"


def test_the_process_that_is_ended_says_what_it_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[Any] = []
    monkeypatch.setattr(os, "_exit", ended.append)

    async def story() -> None:
        of = Ending()
        hanging = asyncio.create_task(of.wait("Elasticsearch", LONG, asyncio.sleep(LONG)))
        await asyncio.sleep(0)
        of.exit_within(0.02, lambda: 1, "others")
        await asyncio.to_thread(wait_for, lambda: ended == [1], "the end")
        hanging.cancel()
        Ending().exit_within(0.0, lambda: 0, "others")
        await asyncio.to_thread(wait_for, lambda: ended == [1, 0], "the end of another")

    asyncio.run(story())
    assert [said["waiting_for"] for said in said_in(caplog)] == ["Elasticsearch", "others"]
