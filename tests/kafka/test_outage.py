"""An outage that is longer than the log is kept: told, and repaired from the archive, by seeds."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import Any

from tests.kafka.events import generated
from tests.kafka.test_states import delete_records, served
from tests.kafka.world import ROOT, MakeWorld, World, wait_for


def cco(world: World, *arguments: str, fails: bool = False) -> dict[str, Any]:
    """What a command says with --json; with `fails`, its error."""
    command = [sys.executable, "-m", "agents", *arguments, "--config", str(world.config_file), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert (done.returncode != 0) == fails, done.stderr
    told: dict[str, Any] = {"error": done.stderr} if fails else json.loads(done.stdout)
    return told


def test_the_log_is_kept_for_less_than_the_outage(make_world: MakeWorld) -> None:
    world = make_world(share=True)
    archive, model = str(world.folder / "archive"), world.folder / "batch.jsonl"
    worker = world.worker("alone")
    world.produce(generated(world, 2_000, seed=111))
    cco(world, "archive", "run", archive, "--once")
    world.settle()
    kept = world.model()
    worker.kill()
    world.produce(generated(world, 1_000, seed=112))  # while nobody learns, and the archive goes on
    archived = cco(world, "archive", "run", archive, "--once")["offsets"]
    world.produce(generated(world, 1_000, seed=113))
    delete_records(world, {int(source): end - 2 for source, end in archived.items()})
    worker.start()
    wait_for(lambda: "records are gone" in worker.get("/readyz")[1], "the gap to be told")
    assert world.model() == kept  # what was published stays
    assert "rebuild from an archive instead" in cco(world, "rebuild", "--log", fails=True)["error"]

    told = cco(world, "rebuild", "--archive", archive, "--tail", "--seed", "--model", str(model))
    assert list(told["offsets"].values()) == world.log_ends()
    world.settle()
    assert served(worker) == {source: ("seed", end) for source, end in enumerate(world.log_ends())}
    assert world.model() == model.read_bytes()
    world.produce(generated(world, 500, seed=114))
    world.settle()
    cco(world, "rebuild", "--archive", archive, "--tail", "--model", str(model))
    assert world.model() == model.read_bytes()
    assert cco(world, "archive", "verify", archive)["ok"]
    assert worker.stop() == 0
    shutil.rmtree(archive)
    assert "there is no archive" in cco(world, "rebuild", "--archive", archive, fails=True)["error"]
