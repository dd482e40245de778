"""An outage that is longer than the log is kept: told, and repaired from the archive, by seeds."""

from __future__ import annotations

import shutil

from tests.kafka.events import generated
from tests.kafka.test_states import delete_records, served
from tests.kafka.world import MakeWorld, wait_for


def test_the_log_is_kept_for_less_than_the_outage(make_world: MakeWorld) -> None:
    world = make_world(share=True)
    archive, model = str(world.folder / "archive"), world.folder / "batch.jsonl"
    worker = world.worker("alone")
    world.produce(generated(world, 2_000, seed=111))
    world.cco("archive", "run", archive, "--once")
    world.settle()
    kept = world.model()
    worker.kill()
    world.produce(generated(world, 1_000, seed=112))  # while nobody learns, and the archive goes on
    archived = world.cco("archive", "run", archive, "--once")["offsets"]
    world.produce(generated(world, 1_000, seed=113))
    delete_records(world, {int(source): end - 2 for source, end in archived.items()})
    worker.start()
    wait_for(lambda: "records are gone" in worker.get("/readyz")[1], "the gap to be told")
    assert world.model() == kept  # what was published stays
    assert "rebuild from an archive instead" in world.cco("rebuild", "--log", fails=True)["error"]

    told = world.cco("rebuild", "--archive", archive, "--tail", "--seed", "--model", str(model))
    assert list(told["offsets"].values()) == world.log_ends()
    world.settle()
    assert served(worker) == {source: ("seed", end) for source, end in enumerate(world.log_ends())}
    assert world.model() == model.read_bytes()
    world.produce(generated(world, 500, seed=114))
    world.settle()
    world.cco("rebuild", "--archive", archive, "--tail", "--model", str(model))
    assert world.model() == model.read_bytes()
    assert world.cco("archive", "verify", archive)["ok"]
    assert worker.stop() == 0
    shutil.rmtree(archive)
    assert "there is no archive" in world.cco("rebuild", "--archive", archive, fails=True)["error"]
