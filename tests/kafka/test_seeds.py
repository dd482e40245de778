"""Seeds: what a rebuild writes for workers that have no state to go on from, and that they go on from it exactly."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from agents.kafka.reading import Ends, rebuild_from_log
from agents.rebuilds.sources import Rebuilt
from agents.state.seeds import write_seeds
from agents.state.shared_copy import SharedCopy
from cco.config import parse_config
from tests.kafka.events import CONFIG, generated
from tests.kafka.test_states import delete_records, folder_of, not_served, rebuilt, served
from tests.kafka.world import ROOT, MakeWorld, WorkerProcess, World, wait_for


def seeds_of(world: World, ends: Ends | None = None, served: Collection[int] = ()) -> dict[int, int]:
    """Rebuild the log up to `ends` and write seeds, as `cco rebuild --seed` does; answers the offsets.

    Of those partitions that are `served` the worker may have a copy that goes as far.
    """
    settings = world.settings.model_copy(update={"share": str(world.folder / "share")})
    offsets = dict(ends or enumerate(world.log_ends()))
    model = rebuild_from_log(settings, world.config, offsets)
    told = write_seeds(Rebuilt(world.config, settings, model, offsets))
    assert all(seed["written"] or int(source) in served for source, seed in told["partitions"].items()), told
    return offsets


def reconfigured(world: World, toml: str) -> None:
    """Another configuration, in the same file, and the log and the index are the same."""
    text = world.config_file.read_text()
    assert text.count(world.toml) == 1
    world.config_file.write_text(text.replace(world.toml, toml))
    world.toml, world.config = toml, parse_config(toml, "cco.toml")


def refused(worker: WorkerProcess, *words: str) -> None:
    """Wait until none of its partitions is served, for a reason that has these words."""
    wait_for(lambda: len(not_served(worker)) == 4, "all of it to be refused")
    for reason in not_served(worker).values():
        assert all(word in reason for word in words) and "\n" not in reason, reason
    assert worker.get("/readyz")[0] == 503 and worker.get("/healthz")[0] == 200


def test_all_state_is_lost_and_the_log_has_lost_its_beginning(make_world: MakeWorld) -> None:
    """What came after the seed is still in the log; the worker waits for it, and takes it by itself."""
    world = make_world(share=True, item_partitions=2)
    worker = world.worker("alone")
    batches = [generated(world, 3_000, seed=71)]
    world.produce(batches[-1])
    world.settle()
    world.wait_until_shared()
    worker.kill()
    for seed in (72, 73):  # while nobody learns
        batches.append(generated(world, 1_000, seed=seed))
        world.produce(batches[-1])
        if seed == 72:
            middle = dict(enumerate(world.log_ends()))
            model = rebuild_from_log(world.settings, world.config, middle)  # as an archive has it
    shutil.rmtree(world.folder / "state")
    shutil.rmtree(world.folder / "share")
    delete_records(world, {source: end - 3 for source, end in middle.items()})
    worker.start()
    refused(worker, "there is no state, and", "its first events are gone", "`cco rebuild --archive URL --seed`")

    settings = world.settings.model_copy(update={"share": str(world.folder / "share")})
    write_seeds(Rebuilt(world.config, settings, model, middle))
    world.settle()
    assert served(worker) == {source: ("seed", offset) for source, offset in middle.items()}
    assert world.model() == rebuilt(world, batches)
    batches.append(generated(world, 1_000, seed=74))
    world.produce(batches[-1])
    world.settle()
    assert world.model() == rebuilt(world, batches)
    wait_for(worker.is_ready, "the worker to be ready")

    worker.kill()  # and what it has made of the seed is a state like any other
    batches.append(generated(world, 500, seed=75))
    world.produce(batches[-1])
    worker.start()
    world.settle()
    assert world.model() == rebuilt(world, batches)
    assert {state for state, _ in served(worker).values()} == {"local"}
    assert worker.stop() == 0


ANOTHER_CAP = CONFIG.replace("user_cap = 20", "user_cap = 7")
CHANGES = {
    "a cap": ANOTHER_CAP,
    "a cap and sampling": ANOTHER_CAP.replace('sampling = "recent"\nwindow = "60d"', 'sampling = "uniform"\nseed = 5'),
}


DYING = """
import os, signal, sys
from agents.cli.main import main
from agents.state.shared_copy import SharedCopy
upload, left = SharedCopy.upload, iter((True, True, False))
def upload_or_die(self, *arguments, **named):
    if not next(left):
        os.kill(os.getpid(), signal.SIGKILL)
    return upload(self, *arguments, **named)
SharedCopy.upload = upload_or_die
main(sys.argv[1:])
"""


def half_of_the_seeds(world: World, worker: WorkerProcess) -> dict[int, int]:
    """A rebuild is killed between the seeds of two partitions: the worker takes those there are, and waits for others.

    Answers their offsets; more events have come when it returns.
    """
    command = [sys.executable, "-c", DYING, "rebuild", "--log", "--seed", "--config", str(world.config_file)]
    died = subprocess.run(command, capture_output=True, cwd=ROOT, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    wait_for(lambda: (set(served(worker)), set(not_served(worker))) == ({0, 1}, {2, 3}), "two seeds to be taken")
    ends = world.log_ends()
    assert served(worker) == {source: ("seed", ends[source]) for source in (0, 1)}
    world.produce(generated(world, 500, seed=86))
    assert worker.metric("cco_rows_counted_total") == 0  # half of the users make no model
    return dict(enumerate(ends[:2]))


def test_what_decides_retention_is_changed_and_changed_back(make_world: MakeWorld) -> None:
    world = make_world(share=True)
    before = world.toml
    worker = world.worker("alone")
    world.produce(generated(world, 3_000, seed=81))
    world.settle()
    shares = [SharedCopy(str(world.folder / "share"), f"interactions-{source}") for source in range(4)]
    ends = world.log_ends()
    wait_for(lambda: [copy.offset for s in shares if (copy := s.newest())] == ends, "copies of all of it")
    assert worker.stop() == 0
    reconfigured(world, CHANGES["a cap and sampling"])
    world.produce(generated(world, 500, seed=82))
    worker.start()
    refused(worker, "was made with another configuration", "`cco rebuild --seed`")
    assert worker.metric("cco_rows_counted_total") == 0
    early = half_of_the_seeds(world, worker)
    offsets = seeds_of(world, served=early) | early
    world.produce(generated(world, 500, seed=92))
    world.settle()
    assert served(worker) == {source: ("seed", offset) for source, offset in offsets.items()}
    world.check()
    asides = sorted(path.name for path in folder_of(world, 0).parent.glob("interactions-0.outdated-*"))
    assert asides == ["interactions-0.outdated-1"]

    # the copies of the first one are still there: from them it goes on
    assert worker.stop() == 0
    reconfigured(world, before)
    worker.start()
    world.settle()
    world.check()
    assert served(worker) == {source: ("shared", end) for source, end in enumerate(ends)}
    assert worker.stop() == 0


def test_the_command_and_two_workers(make_world: MakeWorld) -> None:
    """One has no state; the other's is as new as the seeds, and it keeps to its own."""
    world = make_world(share=True, session_timeout="3s")
    seeds_alone = {"CCO_SHARE_EVERY": "1d"}  # no copies of states
    old = world.worker("old", **seeds_alone)
    world.produce(generated(world, 2_000, seed=101))
    world.settle()
    assert old.stop() == 0
    told = world.cco("rebuild", "--log", "--seed")["seeds"]
    ends = world.log_ends()
    assert {int(s): seed["offset"] for s, seed in told["partitions"].items()} == dict(enumerate(ends))
    assert all(Path(seed["file"]).stat().st_size == seed["bytes"] for seed in told["partitions"].values())
    again = world.cco("rebuild", "--log", "--seed")["seeds"]  # nothing is newer
    assert not any(seed["written"] for seed in again["partitions"].values())
    world.produce(generated(world, 1_000, seed=102))
    old.start()
    new = world.worker("new", **seeds_alone)
    wait_for(lambda: served(new) and served(old), "work for both")
    world.settle()
    world.check()
    of_new, of_old = ({state for state, _ in served(worker, first=True).values()} for worker in (new, old))
    assert of_new == {"seed"} and of_old == {"local"}, (of_new, of_old)
    assert [worker.stop() for worker in (new, old)] == [0, 0]
