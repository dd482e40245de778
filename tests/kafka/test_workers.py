"""Workers on a real broker: whatever happens to them, the published model ends as the batch rebuild of the log."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from tests.kafka.events import generated
from tests.kafka.flow import Flow
from tests.kafka.world import MakeWorld, WorkerProcess, World, wait_for
from tests.servers.kafka import KafkaServer


def test_one_worker_publishes_the_batch_model(make_world: MakeWorld) -> None:
    world = make_world()
    worker = world.worker("alone")
    world.produce(generated(world, 4_000, seed=1))
    world.settle()
    world.produce(generated(world, 500, seed=9))  # to be told as events: what came before may have been told by a fill
    world.settle()
    world.check()
    assert worker.get("/readyz")[0] == 200
    check_metrics(world, worker)
    check_one_worker_a_folder(world)
    assert worker.stop() == 0


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


def test_kills_of_one_worker_lose_and_repeat_nothing(make_world: MakeWorld) -> None:
    world, moments = make_world(item_partitions=2), random.Random(5)
    worker = world.worker("only")
    with world.producing(generated(world, 12_000, seed=2), rate=400) as producing:
        kills = 0
        while producing.is_alive() or kills < 6:
            time.sleep(moments.uniform(0.2, 7.0))
            worker.kill()
            kills += 1
            worker.start()
    world.settle()
    world.check()


def test_kills_of_two_workers(make_world: MakeWorld) -> None:
    world, moments = make_world(item_partitions=2, share=True, session_timeout="3s"), random.Random(6)
    workers = [world.worker("a"), world.worker("b")]
    with world.producing(generated(world, 12_000, seed=3), rate=400) as producing:
        kills = 0
        while producing.is_alive() or kills < 6:
            time.sleep(moments.uniform(0.2, 7.0))
            worker = moments.choice(workers)
            worker.kill()
            kills += 1
            time.sleep(moments.choice([0.0, 0.0, 5.0]))  # sometimes the other takes over
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
        assert world.workers["a"].stop() == 0
        assert world.workers["b"].stop() == 0
        wait_for(lambda: len((world.workers["c"].status() or {}).get("interactions", {})) == 4, "all work for the last")
        ends = sum(world.log_ends())
        wait_for(lambda: sum(world.log_ends()) > ends, "events after the last stop")
    world.settle()
    world.check()


def _busy(world: World, name: str) -> bool:
    status = world.workers[name].status()
    return bool(status and (status["interactions"] or status["edits"]))


def test_a_zombie_writes_nothing_that_stays(make_world: MakeWorld) -> None:
    world = make_world(share=True, session_timeout="3s")
    zombie = world.worker("zombie")
    wait_for(lambda: zombie.get("/readyz")[0] == 200, "the first worker")
    with world.producing(generated(world, 8_000, seed=7), rate=500):
        time.sleep(3)
        zombie.signal(signal.SIGSTOP)
        other = world.worker("other")
        wait_for(lambda: len((other.status() or {}).get("interactions", {})) == 4, "the other to take over")
        time.sleep(2)
        zombie.signal(signal.SIGCONT)
    world.settle()
    world.check()


def test_the_broker_is_killed_in_mid_stream(make_world: MakeWorld, tmp_path: Path) -> None:
    from tests.servers.kafka import fetch_kafka

    with KafkaServer(tmp_path / "kafka", fetch_kafka()) as server:
        world = make_world(broker=server.bootstrap)
        worker = world.worker("alone")
        wait_for(lambda: worker.get("/readyz")[0] == 200, "the worker")
        with world.producing(generated(world, 8_000, seed=8), rate=600):
            for _ in range(2):
                time.sleep(3)
                server.kill()
                time.sleep(1)
                server.start()
            if not worker.running:
                worker.start()
        world.settle()
        world.check()
        check_silence(worker, server)
        assert worker.stop() == 0
        world.close()


def check_silence(worker: WorkerProcess, server: KafkaServer) -> None:
    """A worker with nothing to do, which cannot see by lag that there is no Kafka."""
    wait_for(worker.is_ready, "the worker to hear of Kafka again")
    server.kill()
    wait_for(lambda: "Kafka has not answered" in worker.get("/readyz")[1], "the worker to tell")
    assert worker.get("/healthz")[0] == 200 and worker.metric("cco_mode", mode="catching_up") == 1
    server.start()
    wait_for(worker.is_ready, "the worker to hear of Kafka again")
