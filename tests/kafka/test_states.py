"""States that are lost, damaged or of something else, and what a worker does about each: the defined answer."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin.records_to_delete import RecordsToDelete

from agents.cli.main import main
from agents.engine import Engine
from agents.kafka.logs import look_at_logs
from agents.state.store import StateStore
from agents.workers.user_partition import SourceLog, UserPartition
from cco.batch import rebuild
from cco.config import Config, parse_config
from cco.event_data import EventBatch
from cco.model_file import encode
from tests.agents.states import raw
from tests.kafka.events import CONFIG, generated
from tests.kafka.world import MakeWorld, WorkerProcess, World, administer, make_topics_anew, wait_for

EIGHT = CONFIG.replace("source_partitions = 4", "source_partitions = 8")
OTHER_CAP = EIGHT.replace("user_cap = 20", "user_cap = 21")
MB = 1 << 20


def folder_of(world: World, source: int, name: str = "alone") -> Path:
    """Where a worker keeps the state of a source partition."""
    return world.folder / "state" / name / f"interactions-{source}"


def files_in(folder: Path) -> dict[str, bytes]:
    """All that is in a folder, but what RocksDB notes about an attempt to open it."""
    noted = ("LOG", "LOCK", "OPTIONS")
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(noted)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def records_in(folder: Path) -> dict[object, object]:
    """The records of a state; opening one for a look at whose it is may move them to other files."""
    with raw(folder) as database:
        return dict(database.items())


def served(worker: WorkerProcess, first: bool = False) -> dict[int, tuple[str, int]]:
    """By source partition: where its state was from in this life, the last time or first, and where it began."""
    said = [message for message in worker.messages() if message["message"] == "the partition is served"]
    messages = [message for message in said if "state" in message]  # those of the topic of items have none
    return {message["partition"]: (message["state"], message["offset"]) for message in messages[:: -1 if first else 1]}


def not_served(worker: WorkerProcess) -> dict[int, str]:
    """By source partition: why it is not served."""
    return {int(source): reason for source, reason in (worker.status() or {}).get("not_served", {}).items()}


# -- what can happen to a state -------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Change a byte in the middle of every table and log of RocksDB."""
    files = [file for file in (path / "rocksdb").iterdir() if file.suffix in (".sst", ".log") and file.stat().st_size]
    assert files
    for file in files:
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def spoil_meta(path: Path) -> None:
    (path / "state.json").write_text('{"magic": "streaming-cco state", "form')


def lose_manifest(path: Path) -> None:
    (path / "rocksdb" / "CURRENT").unlink()


def made_by(config: Config, log: SourceLog) -> Callable[[Path], None]:
    """Another state in its place, as a worker would have made it of another log or configuration."""

    def make(path: Path) -> None:
        shutil.rmtree(path)
        partition = UserPartition(config, log, 1)
        partition.open(StateStore.open(path, config, sources=1))
        partition.finish()

    return make


def saved_by_an_engine(config: Config) -> Callable[[Path], None]:
    """What belongs to the embedded product in its place."""

    def make(path: Path) -> None:
        shutil.rmtree(path)
        Engine(config).save(path)

    return make


def log_of(world: World, source: int, **changed: Any) -> SourceLog:
    """As the worker sees it."""
    found = asyncio.run(look_at_logs(world.settings))["interactions"]
    log = SourceLog(found.topic, source, found.partitions, found.cluster, found.id)
    return replace(log, **changed)


def test_each_state_that_does_not_fit_is_refused_and_left_alone(
    make_world: MakeWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    world = make_world(EIGHT, session_timeout="60s")
    worker = world.worker("alone")
    world.produce(generated(world, 3_000, seed=51))
    world.settle()
    assert worker.stop() == 0

    four = parse_config(CONFIG, "four")
    spoilers: list[tuple[Callable[[Path], None], str]] = [
        (flip, "is damaged"),
        (spoil_meta, "state.json cannot be read"),
        (lose_manifest, "is damaged"),
        (made_by(parse_config(OTHER_CAP, "cap"), log_of(world, 3)),
         "indicators.view.user_cap: 21 in the state, 20 in the configuration"),
        (made_by(four, log_of(world, 0, partitions=4)),
         "retention.source_partitions: 4 in the state, 8 in the configuration"),
        (saved_by_an_engine(world.config), "was saved by Engine.save, with 8 source partition(s)"),
        (made_by(world.config, log_of(world, 5)), "and not from partition 6: was it renamed"),
        (made_by(world.config, log_of(world, 7, cluster="elsewhere")), "of another Kafka cluster (elsewhere, now "),
    ]  # fmt: skip
    folders = [folder_of(world, source) for source in range(8)]
    for (spoil, _), folder in zip(spoilers, folders, strict=True):
        spoil(folder)
    files = [files_in(folder) for folder in folders[:5]]
    records = [records_in(folder) for folder in folders[5:]]
    worker.start()
    wait_for(lambda: len(not_served(worker)) == 8, "all of them to be refused")
    for source, (_, expected) in enumerate(spoilers):
        reason = not_served(worker)[source]
        assert expected in reason and str(folders[source]) in reason and "\n" not in reason, reason
        assert any(words in reason for words in ("remove", "new directory", "another directory")), reason
    code, text = worker.get("/readyz")
    assert code == 503 and all(f"interactions-{source} is not served" in text for source in range(8)), text
    assert worker.metric("cco_mode", mode="lambda") == 1
    assert worker.get("/healthz")[0] == 200
    folders[0].rename(world.folder / "gone")  # as it says, and the worker sees it by itself
    wait_for(lambda: served(worker) == {0: ("new", 0)}, "the first of them to be served")
    code, _, said = topics_check(world, capsys)
    assert code == 0 and f"{folders[0].parent}: a worker has it open, and its /readyz says" in said, said
    end = world.log_ends()[0]
    wait_for(lambda: positions(worker) == {0: end}, "its events to be applied")
    assert worker.stop() == 0
    code, told, _ = topics_check(world, capsys)
    assert (code, told["ok"], told["states"], len(told["problems"])) == (1, False, 8, 7), told
    for source, problem in enumerate(told["problems"], 1):
        assert problem.startswith(str(folders[source])) and spoilers[source][1] in problem, problem
    assert [files_in(folder) for folder in folders[1:5]] == files[1:]
    assert [records_in(folder) for folder in folders[5:]] == records
    for folder in folders[1:]:
        shutil.rmtree(folder)
    check_other_counts_are_refused(world)
    worker = with_more_item_partitions(world)
    world.settle()
    world.check()
    assert served(worker) == {0: ("local", end)} | dict.fromkeys(range(1, 8), ("new", 0))
    assert worker.is_ready() and worker.metric("cco_mode", mode="kappa") == 1
    assert worker.stop() == 0
    check_a_topic_made_anew(world, worker)


def topics_check(world: World, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """`cco topics check` with the worker's states: exit code, what it says as JSON, and warnings."""
    folder = str(world.folder / "state" / "alone")
    code = main(["topics", "check", "--config", str(world.config_file), "--state", folder, "--json"])
    said = capsys.readouterr()
    return code, json.loads(said.out), said.err


def check_other_counts_are_refused(world: World) -> None:
    """A configuration that does not fit the topics."""
    other = world.folder / "other.toml"
    other.write_text(world.config_file.read_text().replace("source_partitions = 8", "source_partitions = 4"))
    worker = world.worker("other", "--config", str(other), "--item-partitions", "3")
    assert worker.wait() == 2
    said = worker.log.read_text().splitlines()
    assert len(said) == 2 and all(line.startswith(f"cco: error: {world.prefix}") for line in said), said
    assert "has 8 partitions, and the configuration says retention.source_partitions = 4" in said[0]
    assert "has 1 partition, and the settings say item_partitions = 3" in said[1]


def with_more_item_partitions(world: World) -> WorkerProcess:
    """Topics are made anew, as the refusal says: the states of users are good for any number of item partitions.

    The worker was a member of its group a moment ago, and its session is far from over: it is given both partitions.
    """
    world.item_partitions = 2
    world.settings = world.settings.model_copy(update={"item_partitions": 2})
    assert world.group_state() == "Stable"
    make_topics_anew(world.config, world.settings, "edits", "patches")
    assert world.group_state() == "Empty"
    worker = world.worker("alone", "--item-partitions", "2")
    world.produce(generated(world, 1_000, seed=60))
    return worker


def check_a_topic_made_anew(world: World, worker: WorkerProcess) -> None:
    """It has more records than the states have read of the one before it."""
    before = world.log_ends()
    make_topics_anew(world.config, world.settings, "interactions", "patches")
    world.produce(generated(world, 8_000, seed=62))
    assert all(end > read for end, read in zip(world.log_ends(), before, strict=True))
    worker.start()
    wait_for(lambda: len(not_served(worker)) == 8, "all of them to be refused")
    topic = world.settings.topic("interactions")
    assert all(f"is of another topic {topic} (id " in reason for reason in not_served(worker).values())
    (world.folder / "state" / "alone").rename(world.folder / "state" / "gone")  # and the worker sees it by itself
    world.settle()
    world.check()
    assert served(worker) == dict.fromkeys(range(8), ("new", 0))


def test_a_lost_state_comes_from_the_shared_copy(make_world: MakeWorld) -> None:
    world = make_world(share=True)
    worker = world.worker("alone")
    world.produce(generated(world, 3_000, seed=52))
    world.settle()
    ends = world.log_ends()
    world.wait_until_shared()
    worker.kill()
    folders = [folder_of(world, source) for source in range(4)]
    shutil.rmtree(folders[0])
    flip(folders[1])
    spoil_meta(folders[2])
    made_by(parse_config(OTHER_CAP, "cap"), log_of(world, 3))(folders[3])
    world.produce(generated(world, 1_000, seed=53))
    worker.start()
    world.settle()
    world.check()
    assert served(worker) == {source: ("shared", ends[source]) for source in range(4)}
    asides = sorted(path.name for path in folders[0].parent.glob("interactions-*.*-1"))
    assert asides == ["interactions-1.damaged-1", "interactions-2.damaged-1", "interactions-3.outdated-1"]

    worker.kill()  # and on another machine it goes on under its name
    world.produce(generated(world, 1_000, seed=54))
    worker = world.worker("alone", "--state", str(world.folder / "another machine"))
    world.settle()
    world.check()
    assert [state for state, _ in served(worker).values()] == ["shared"] * 4
    assert all(offset >= ends[source] for source, (_, offset) in served(worker).items())


# -- the disk is full -----------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[Callable[[WorkerProcess, bool], None]]:
    """A disk of 24 MB, which can be filled; without the right to mount one, a limit on the worker's files.

    `fill(worker, True)` leaves next to nothing of it, False makes room.
    """
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(folder)]
    mounted = bool(shutil.which("mount")) and not subprocess.run(mount, capture_output=True, check=False).returncode

    def fill_disk(worker: WorkerProcess, full: bool) -> None:
        ballast = folder / "ballast"
        if full:
            free = shutil.disk_usage(folder).free - 64_000
            ballast.write_bytes(bytes(free))
        else:
            ballast.unlink()

    def limit(worker: WorkerProcess, full: bool) -> None:
        if full:
            most = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)[1]
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (64_000, most))

    yield fill_disk if mounted else limit
    if mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_worker_and_loses_nothing(make_world: MakeWorld) -> None:
    world = make_world(share=True)  # copies are of what is committed, and no newer
    with small_disk(world.folder / "disk") as fill:
        worker = world.worker("alone", "--state", str(world.folder / "disk" / "state"))
        world.produce(generated(world, 2_000, seed=55))
        world.settle()
        ends = world.log_ends()
        world.wait_until_shared()
        fill(worker, True)
        world.produce(generated(world, 10_000, seed=56, users=8_000))
        assert worker.wait() == 1
        (reason,) = [str(m["reason"]) for m in worker.messages() if m["message"] == "the worker stops"]
        assert "full" in reason and "the state stays at its last commit; make room" in reason, reason
        fill(worker, False)
        worker.start()
        world.settle()
        world.check()
        began = served(worker)
        assert all(state == "local" and offset >= ends[source] for source, (state, offset) in began.items()), began
        assert worker.stop() == 0


# -- the log's beginning is gone ------------------------------------------------------------------------


def delete_records(world: World, before: dict[int, int]) -> None:
    """Delete the beginnings of partitions of interactions: all records before these offsets."""
    topic = world.settings.topic("interactions")
    all_before = {TopicPartition(topic, p): RecordsToDelete(before_offset=o) for p, o in before.items()}
    administer(world.settings, lambda admin: admin.delete_records(all_before))


def rebuilt(world: World, batches: list[EventBatch]) -> bytes:
    """The batch model of these events, as a model file: the log does not have them all any more."""
    model = rebuild(world.config, batches, world.users, world.items)
    return b"".join(encode(model.rows(), model.items, world.config))


def test_a_log_whose_beginning_is_gone(make_world: MakeWorld) -> None:
    world = make_world(share=True, session_timeout="2s")
    worker = world.worker("alone")
    batches = [generated(world, 2_000, seed=57)]
    world.produce(batches[-1])
    world.settle()
    first = world.log_ends()
    world.wait_until_shared()
    delete_records(world, {source: end - 20 for source, end in enumerate(first)})
    worker.kill()
    worker.start()  # the states are newer than what is gone
    batches.append(generated(world, 1_000, seed=58))
    world.produce(batches[-1])
    world.settle()
    assert world.model() == rebuilt(world, batches)
    assert [state for state, _ in served(worker).values()] == ["local"] * 4
    world.wait_until_shared()

    # of partition 1 records are deleted before they are read
    position = world.log_ends()[1]
    worker.signal(signal.SIGSTOP)
    wait_for(lambda: world.group_state() == "Empty", "the group to miss it")  # and no request of it is open any more
    world.produce(generated(world, 1_000, seed=59))
    ends = world.log_ends()
    delete_records(world, {1: ends[1] - 5})
    worker.signal(signal.SIGCONT)
    assert worker.wait() == 1
    (reason,) = [str(m["reason"]) for m in worker.messages() if m["message"] == "the worker stops"]
    topic = world.settings.topic("interactions")
    assert reason == f"{topic}-1: the next record to apply is {position}, and the first there is {ends[1] - 5}"

    shutil.rmtree(folder_of(world, 0))
    shutil.rmtree(world.folder / "share" / "interactions-0")
    worker.start()
    wait_for(lambda: set(not_served(worker)) == {0, 1} and set(served(worker)) == {2, 3}, "half of it")
    reasons = not_served(worker)
    assert f"there is no state, and {topic}-0 begins at offset {first[0] - 20}" in reasons[0], reasons
    assert f"at offset {position} of {topic}-1, which begins at {ends[1] - 5}" in reasons[1], reasons
    assert f"{ends[1] - 5 - position} records are gone that it has not seen" in reasons[1], reasons
    wait_for(lambda: positions(worker) == {2: ends[2], 3: ends[3]}, "the others to go on")
    assert worker.metric("cco_mode", mode="lambda") == 1 and worker.get("/readyz")[0] == 503


def positions(worker: WorkerProcess) -> dict[int, int]:
    """By source partition that is served."""
    status = worker.status() or {}
    return {int(source): found["position"] for source, found in status.get("interactions", {}).items()}
