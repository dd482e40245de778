"""Workers on a real broker: whatever happens to them, the published model ends as the batch rebuild of the log."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from tests.kafka.events import generated
from tests.kafka.world import MakeWorld, World, wait_for
from tests.servers.kafka import KafkaServer


def test_one_worker_publishes_the_batch_model(make_world: MakeWorld) -> None:
    world = make_world()
    worker = world.worker("alone")
    world.produce(generated(world, 4_000, seed=1))
    world.settle()
    world.check()
    assert worker.get("/readyz")[0] == 200
    assert worker.stop() == 0


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
    with world.producing(generated(world, 12_000, seed=4), rate=400):
        wait_for(lambda: world.workers["a"].get("/readyz")[0] == 200, "the first worker")
        world.worker("b")
        wait_for(lambda: _busy(world, "b"), "work for the second")
        world.worker("c")
        wait_for(lambda: _busy(world, "c"), "work for the third")
        assert world.workers["a"].stop() == 0
        assert world.workers["b"].stop() == 0
        wait_for(lambda: len((world.workers["c"].status() or {}).get("interactions", {})) == 4, "all work for the last")
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
        world.close()
