"""A source partition and the agent around it: nothing is durable before Kafka has it, and a stop says what is not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agents.kafka.sending import Unacknowledged
from agents.settings import Settings
from agents.state.errors import StateError
from agents.state.store import StateStore
from agents.workers import pulse, user_agent
from agents.workers.condition import WorkerCondition
from agents.workers.item_agent import ItemAgent
from agents.workers.patch_sinks import NoSink
from agents.workers.user_agent import UserAgent, _acknowledge, _Owned
from agents.workers.user_partition import SourceLog, UserPartition
from agents.workers.worker import Worker
from tests.agents.test_item_partition import CONFIG, event_record

SECONDS = 30.0  # at most, for what takes a moment


def opened(path: Path) -> UserPartition:
    """As the state in `path` has it."""
    partition = UserPartition(CONFIG, SourceLog("interactions", 0, 1, "cluster"), 1)
    partition.open(StateStore.open(path, CONFIG, sources=1), interval=0.0)
    return partition


def applied(path: Path, number: int) -> UserPartition:
    """With so many more records applied, of which nothing is acknowledged."""
    partition = opened(path)
    more(partition, number)
    return partition


def more(partition: UserPartition, number: int) -> None:
    begin = partition.position
    partition.apply([event_record(begin + k, f"u{k % 3}", f"i{begin + k}") for k in range(number)], begin + number)


def committed(path: Path) -> int:
    """The offset of the state that is on the disk."""
    with StateStore.open(path, CONFIG, sources=1) as store:
        return 0 if store.commit.input is None else int(store.commit.input["offset"])


# -- what may be durable ----------------------------------------------------------------------------


def test_a_snapshot_waits_until_all_before_it_is_acknowledged(tmp_path: Path) -> None:
    state = tmp_path / "state"
    partition = applied(state, 5)
    assert partition.step()  # a cut at 5, all of it packed
    checkpoints = partition.checkpoints
    assert checkpoints is not None
    for acknowledged in (0, 4):
        partition.acknowledged = acknowledged
        partition.step()
        with pytest.raises(StateError, match="messages before it are not acknowledged"):
            checkpoints.complete()
        assert checkpoints.committed is None
    more(partition, 3)
    partition.acknowledged = 5  # not 8, but that is not in the cut
    checkpoints.complete()
    assert checkpoints.committed is not None and checkpoints.committed["offset"] == 5
    checkpoints.close()
    assert committed(state) == 5


@pytest.mark.parametrize("acknowledged", [0, 4])
def test_the_end_saves_nothing_that_is_not_acknowledged(acknowledged: int, tmp_path: Path) -> None:
    state = tmp_path / "state"
    partition = applied(state, 5)
    partition.acknowledged = acknowledged
    with pytest.raises(StateError, match=f"^interactions-0: Kafka has not .* offsets {acknowledged} to 4 said: the st"):
        partition.finish()
    assert committed(state) == 0
    again = applied(state, 5)
    assert again.restored_to == 0
    again.acknowledged = 5
    again.finish()
    again.finish()  # nothing is left to be done
    assert committed(state) == 5


# -- a worker's end ---------------------------------------------------------------------------------


def worker_of(tmp_path: Path) -> Worker:
    """One that is connected with nothing, so has nothing but what it computes."""
    worker = Worker(CONFIG, Settings(state=tmp_path))
    nobody: Any = None

    async def never(*place: int) -> Any:
        raise AssertionError(place)

    worker.users = UserAgent(CONFIG, worker.settings, worker.metrics, nobody, worker._compute, worker.fail, never)
    worker.items = ItemAgent(
        CONFIG, worker.settings, worker.metrics, nobody, worker._compute, map, NoSink(), never, worker.fail
    )
    worker.elastic = None
    worker.condition = WorkerCondition(worker)
    return worker


def own(worker: Worker, partition: UserPartition) -> Unacknowledged:
    """As after `UserAgent.open`."""
    sent = Unacknowledged(lambda position: _acknowledge(partition, position), worker.fail)
    worker.users._owned[0] = _Owned(partition, sent, partition.position)
    worker.metrics.own_source(0)
    return sent


@asynccontextmanager
async def hanging(compute: ThreadPoolExecutor) -> AsyncIterator[None]:
    """The compute thread is about something that does not end meanwhile."""
    end = threading.Event()
    compute.submit(end.wait, SECONDS)
    try:
        yield
    finally:
        end.set()


def said_in(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What the worker has logged, as fields."""
    return [record.msg for record in caplog.records if record.name == "cco" and isinstance(record.msg, dict)]


async def until_told(worker: Worker, hangs: bool) -> None:
    async with asyncio.timeout(SECONDS):
        while bool(worker.condition.health()) != hangs:
            await asyncio.sleep(0.005)


def test_a_stop_with_everything_acknowledged_saves_it_and_is_a_success(tmp_path: Path) -> None:
    async def story() -> None:
        worker, partition = worker_of(tmp_path), applied(tmp_path / "interactions-0", 5)
        on_the_way = asyncio.get_running_loop().create_future()
        own(worker, partition).add(5, [on_the_way])
        asyncio.get_running_loop().call_soon(on_the_way.set_result, None)
        await worker._save()
        assert worker.failure is None
        assert committed(tmp_path / "interactions-0") == 5

    asyncio.run(story())


def test_a_stop_without_acknowledgements_says_so_and_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(user_agent, "FLUSH_SECONDS", 0.01)

    async def story() -> None:
        worker, partition = worker_of(tmp_path), applied(tmp_path / "interactions-0", 5)
        own(worker, partition).add(5, [asyncio.get_running_loop().create_future()])
        await worker._save()
        said = said_in(caplog)
        assert str(worker.failure) == "not all states are saved"
        assert said[0]["event"] == "the last snapshot failed" and "0 to 4 said" in said[0]["reason"], said
        assert said[1]["partitions"] == [0], said
        assert committed(tmp_path / "interactions-0") == 0

    asyncio.run(story())


def test_a_stop_that_takes_too_long_says_so_and_is_a_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        worker, partition = worker_of(tmp_path), applied(tmp_path / "interactions-0", 5)
        partition.acknowledged = 5
        own(worker, partition)
        async with hanging(worker._compute):
            assert await worker.users.close_all(0.05) == [0]
        assert said_in(caplog)[0]["reason"] == "there was no time left for it"
        partition.finish()

    asyncio.run(story())


# -- a worker's health ------------------------------------------------------------------------------


def test_a_compute_thread_that_hangs_is_told_by_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "HUNG_SECONDS", 0.5)

    async def story() -> None:
        worker, state = worker_of(tmp_path), tmp_path / "interactions-0"
        opened(state).finish()
        own(worker, opened(state))  # with nothing to be saved, so nothing to say to anybody
        worker.pulse.warm()
        ticking = asyncio.create_task(worker._tick_forever())
        async with hanging(worker._compute):
            await until_told(worker, hangs=True)
        await until_told(worker, hangs=False)
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        await worker.users.close(0)

    asyncio.run(story())
