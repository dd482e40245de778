"""Workers on a real broker: whatever happens to them, the published model ends as the batch rebuild of the log."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from agents.kafka.client import client_options
from agents.workers.patches_file import read_patches_topic
from cco.edits import LEAVE
from cco.edits_message import Kind, decode_header
from cco.edits_message import encode as encode_edits
from tests.cco.edits_data import make_edits
from tests.kafka.events import generated
from tests.kafka.flow import Flow
from tests.kafka.world import MakeWorld, WorkerProcess, World, wait_for
from tests.servers.kafka import KafkaServer


def test_one_worker_publishes_the_batch_model(make_world: MakeWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world(session_timeout="100s")  # a restart that waited for it would be seen
    world.produce(generated(world, 12_000, seed=31))
    worker = world.worker("alone")
    world.settle()
    fetches = check_whole_fetches(world, worker)
    world.produce(generated(world, 500, seed=9))  # to be told as events: what came before may have been told by a fill
    world.settle()
    world.check()
    assert worker.get("/readyz")[0] == 200
    check_metrics(world, worker)
    check_one_worker_a_folder(world)
    graceful, killed = restarted(world, worker, worker.stop), restarted(world, worker, worker.kill)
    world.settle()
    world.check()
    with capsys.disabled():
        print(f"\n{fetches}; with a session timeout of 100 s the first event")
        print(f"came {graceful:.1f} s after a graceful stop and start, {killed:.1f} s after SIGKILL and start")
    assert graceful < 60 and killed < 60


def check_whole_fetches(world: World, worker: WorkerProcess) -> str:
    """All that there was came in few pieces, and once; answers this in words."""
    topic = world.settings.topic("interactions")
    events, records = (worker.metric(f"cco_fetch_records_{what}", topic=topic) for what in ("count", "sum"))
    said = f"{records:,.0f} interactions in {events:,.0f} events of Faust's"
    assert records == sum(world.log_ends()) == worker.metric("cco_events_applied_total")
    assert records / events > 1_000, said
    return said


def restarted(world: World, worker: WorkerProcess, end: Callable[[], int | None]) -> float:
    """Seconds from its start to the first event, after it was ended."""
    assert not end()
    world.produce(generated(world, 500, seed=32))
    began = time.monotonic()
    worker.start()
    wait_for(lambda: _works(world, worker.name), "the first event")
    return time.monotonic() - began


def check_metrics(world: World, worker: WorkerProcess) -> None:
    """Of a worker that has done all kinds of work, and has nothing left to do."""
    fed = ("edits_sent_total", "edits_applied_total", "patches_sent_total", "row_age_seconds_count")
    assert [name for name in fed if not worker.metric(f"cco_{name}")] == []
    wait_for(lambda: worker.metric("cco_snapshot_seconds_count") > 0, "a snapshot")
    assert 0 < worker.metric("cco_snapshot_seconds_sum") < 60
    for source in range(len(world.log_ends())):
        assert 0 < worker.metric("cco_snapshot_age_seconds", source_partition=str(source)) < 60
    records, seconds = (worker.metric(f"cco_event_to_patch_seconds_{what}") for what in ("count", "sum"))
    assert 500 <= records <= sum(world.log_ends())  # each counts, and only once
    assert 0 < seconds < 60 * records


def check_one_worker_a_folder(world: World) -> None:
    """A second one that was given no settings of its own."""
    second = world.worker("second", "--name", "alone", "--state", str(world.folder / "state" / "alone"))
    assert second.wait() == 2
    said = second.log.read_text()
    assert "state/alone: is in use by another worker: give this one a --name and a --state of its own" in said


KILLS = 6  # in each of the tests of them; the soak has more


def at_any_moment(world: World, name: str, moments: random.Random, working: bool) -> None:
    """Return while a worker that was started just now takes up its work, or, `working`, after it has begun to."""
    worker = world.workers[name]
    wait_for(lambda: _works(world, name) if working else worker.url(), f"{name} to work, or to begin")
    time.sleep(moments.uniform(0.0, 1.0))


def _works(world: World, name: str) -> bool:
    sources = (world.workers[name].status() or {}).get("interactions", {}).values()
    return any(source["position"] > source["began_at"] for source in sources)


def test_kills_of_one_worker_lose_and_repeat_nothing(make_world: MakeWorld) -> None:
    world, moments = make_world(item_partitions=2), random.Random(5)
    worker = world.worker("only")
    with Flow(world, seed=2, users=300, items=80, pace=2_000.0).flowing(400):
        for kill in range(KILLS):
            at_any_moment(world, "only", moments, working=kill % 2 == 0)
            worker.kill()
            worker.start()
    world.settle()
    world.check()


def test_kills_of_two_workers(make_world: MakeWorld) -> None:
    world, moments = make_world(item_partitions=2, share=True, session_timeout="3s"), random.Random(6)
    workers = [world.worker("a"), world.worker("b")]
    with Flow(world, seed=3, users=300, items=80, pace=2_000.0).flowing(400):
        for kill in range(KILLS):
            worker, other = moments.sample(workers, 2)
            at_any_moment(world, worker.name, moments, working=kill % 2 == 0)
            worker.kill()
            if kill % 3 == 1:
                wait_for(partial(_has_all, world, other.name), "the other to take over")
            worker.start()
    world.settle()
    world.check()


def test_workers_come_and_go(make_world: MakeWorld) -> None:
    world = make_world(item_partitions=3, share=True, session_timeout="3s")
    world.worker("a")
    with Flow(world, seed=4, users=300, items=80, pace=600.0).flowing(400):  # until all is done
        wait_for(lambda: world.workers["a"].get("/readyz")[0] == 200, "the first worker")
        world.worker("b")
        wait_for(lambda: _busy(world, "b"), "work for the second")
        world.worker("c")
        wait_for(lambda: _busy(world, "c"), "work for the third")
        for name in ("a", "b"):
            world.workers[name].signal(signal.SIGTERM)
        assert [world.workers[name].wait(15) for name in ("a", "b")] == [0, 0]
        wait_for(lambda: _has_all(world, "c"), "all work for the last")
        ends = sum(world.log_ends())
        wait_for(lambda: sum(world.log_ends()) > ends, "events after the last stop")
    world.settle()
    world.check()


def _busy(world: World, name: str) -> bool:
    status = world.workers[name].status()
    return bool(status and (status["interactions"] or status["edits"]))


def _has_all(world: World, name: str) -> bool:
    return len((world.workers[name].status() or {}).get("interactions", {})) == 4


def test_a_zombie_writes_nothing_that_stays(make_world: MakeWorld) -> None:
    world = make_world(share=True, session_timeout="2s")
    zombie = world.worker("zombie")
    wait_for(zombie.is_ready, "the first worker")
    with Flow(world, seed=7, users=300, items=80, pace=1_300.0).flowing(500):  # until all is done
        wait_for(lambda: zombie.metric("cco_patches_sent_total") > 200, "patches of the first worker")
        rebalances = zombie.metric("cco_rebalances_total")
        zombie.signal(signal.SIGSTOP)
        said = {topic: records_of(world, topic) for topic in ("edits", "patches")}
        other = world.worker("other")
        wait_for(lambda: _has_all(world, "other"), "the other to take over")
        wait_for(lambda: other.metric("cco_patches_sent_total") > 0, "patches of the other")
        wait_for(lambda: not read_patches_topic(world.settings).outdated, "every row once from the other")
        check_late_edits(world, other, said["edits"])
        check_late_patches(world, said["patches"])
        ends = sum(world.log_ends())
        zombie.signal(signal.SIGCONT)
        wait_for(lambda: zombie.metric("cco_rebalances_total") > rebalances, "the zombie to hear that it was one")
        wait_for(lambda: sum(world.log_ends()) > ends + 500, "events while it wakes")
    world.settle()
    world.check()


def records_of(world: World, topic: str) -> list[Any]:
    """aiokafka's records of the only partition of a topic, up to now."""

    async def read() -> list[Any]:
        async with AIOKafkaConsumer(**client_options(world.settings)) as consumer:
            tp = TopicPartition(world.settings.topic(topic), 0)
            found: list[Any] = []
            consumer.assign([tp])
            consumer.seek(tp, 0)
            end = (await consumer.end_offsets([tp]))[tp]
            while not found or found[-1].offset < end - 1:
                found += (await consumer.getmany(tp, timeout_ms=1_000)).get(tp, [])
            return found

    return asyncio.run(read())


def check_late_edits(world: World, owner: WorkerProcess, said: Sequence[Any]) -> None:
    """All that the zombie has said comes again, and an answer to its claim that it has not given: all of it is dropped.

    Not the claim itself, which would be a claim like any other: the last one in the log is right.
    """
    headers = [decode_header(record.value) for record in said]
    late = [
        (0, None, record.value, *record.headers)
        for record, header in zip(said, headers, strict=True)
        if header.kind is not Kind.CLAIM
    ]
    far = max(header.end for header in headers) + 1_000_000
    fill = next(header for header in headers if header.kind is Kind.FILL and header.source == 1)
    framed = msgspec.structs.replace(fill, start=far, end=far, part=0, last=False)
    nobody = make_edits([(LEAVE, 0, user, 0) for user in range(len(world.users))], [], [], members=0)
    late += [(0, None, message) for message in encode_edits(framed, nobody, world.users, world.items)]
    before, dropped = edits_of(owner), owner.metric("cco_messages_dropped_total")
    assert before["claim"] > fill.claim >= 0
    last = world.produce_raw(late, "edits")[-1]
    wait_for(lambda: edits_of(owner)["position"] > last, "the other to read all of it")
    wait_for(lambda: owner.metric("cco_messages_dropped_total") >= dropped + len(late), "all of it to be dropped")
    assert edits_of(owner)["claim"] == before["claim"]


def edits_of(owner: WorkerProcess) -> dict[str, Any]:
    """What it tells of the only item partition."""
    found: dict[str, Any] = wait_for(lambda: (owner.status() or {}).get("edits", {}).get("0"), "its owner to tell")
    return found


def check_late_patches(world: World, said: Sequence[Any]) -> None:
    """All that the zombie has sent comes again, and for each item a row of a later position: readers drop all of it."""
    late = [(0, record.key, record.value) for record in said]
    for item, patch in {record.key: json.loads(record.value) for record in said}.items():
        forged = {**patch, "position": [1_000_000] * 4, "indicators": {"purchase": [("item-0", 99.0)]}}
        late.append((0, item, json.dumps(forged).encode()))
    before = read_patches_topic(world.settings)
    world.produce_raw(late, "patches")
    after = read_patches_topic(world.settings)
    assert after.dropped == before.dropped + len(late) > 200


def test_the_broker_is_killed_in_mid_stream(make_world: MakeWorld, tmp_path: Path) -> None:
    from tests.servers.kafka import fetch_kafka

    with KafkaServer(tmp_path / "kafka", fetch_kafka()) as server:
        world = make_world(broker=server.bootstrap)
        worker = world.worker("alone")
        wait_for(worker.is_ready, "the worker")
        flow = Flow(world, seed=8, users=300, items=80, pace=1_300.0)
        with flow.flowing(600):
            for _ in range(2):
                wanted = worker.metric("cco_events_applied_total") + 600
                wait_for(partial(_has_applied, worker, wanted), "events to be applied")
                server.kill()
                server.start()
            ends = sum(world.log_ends())
            wait_for(lambda: sum(world.log_ends()) > ends + 300, "the producer to go on")
            assert worker.running
        world.settle()
        world.check()
        check_silence(worker, server)
        flow.send(500)
        world.settle()
        world.check()
        assert worker.stop() == 0
        world.close()
        server.kill()


def _has_applied(worker: WorkerProcess, events: float) -> bool:
    return worker.metric("cco_events_applied_total") >= events


def check_silence(worker: WorkerProcess, server: KafkaServer) -> None:
    """A worker with nothing to do, which cannot see by lag that there is no Kafka."""
    wait_for(worker.is_ready, "the worker to hear of Kafka again")
    server.kill()
    wait_for(lambda: "Kafka has not answered" in worker.get("/readyz")[1], "the worker to tell")
    assert worker.get("/healthz")[0] == 200 and worker.metric("cco_mode", mode="catching_up") == 1
    server.start()
    wait_for(worker.is_ready, "the worker to hear of Kafka again")
