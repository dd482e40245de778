"""Where patches go may be slow, full or gone: memory stays bounded, staleness tells, and nothing is lost."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agents.workers.patches_file import read_files
from tests.kafka.events import CONFIG, generated
from tests.kafka.world import MakeWorld, WorkerProcess, World, wait_for

PIECE = 4096  # bytes that a slow reader takes at a time
SOON = CONFIG.replace('max_staleness = "20s"', 'max_staleness = "2s"')
MB = 1 << 20


def model_of(files: Sequence[Path]) -> bytes:
    """What patches in files made of the index, as a model file."""
    return b"".join(read_files(files).lines())


class Reader:
    """Reads a named pipe into a file, as fast as it is let."""

    def __init__(self, pipe: Path, copy: Path) -> None:
        self.open, self.over = threading.Event(), False
        self.bytes = 0
        self._pipe, self._copy = pipe, copy
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        descriptor = os.open(self._pipe, os.O_RDONLY | os.O_NONBLOCK)
        with self._copy.open("ab", buffering=0) as copy:
            while not self.over:
                self.open.wait(0.1)
                if self.open.is_set() and select.select([descriptor], [], [], 0.1)[0]:
                    data = os.read(descriptor, PIECE)
                    copy.write(data)
                    self.bytes += len(data)
        os.close(descriptor)

    @contextmanager
    def reading(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self.over = True
            self._thread.join()


def resident(worker: WorkerProcess) -> float:
    """Bytes of memory."""
    return worker.metric("process_resident_memory_bytes")


def staleness(worker: WorkerProcess) -> float:
    return worker.metric("cco_staleness_seconds")


def at_the_end(world: World, worker: WorkerProcess) -> bool:
    """Whether the user stages and the item stage have applied the whole log; patches may be missing."""
    status, ends = worker.status(), world.log_ends()
    if status is None or not status["edits"]:
        return False
    return bool(
        [status["interactions"].get(str(s), {}).get("position") for s in range(len(ends))] == ends
        and status["edits"]["0"]["sources"] == ends
    )


def test_a_slow_sink_makes_patches_late_and_nothing_else(make_world: MakeWorld) -> None:
    world = make_world(SOON)
    pipe, copy = world.folder / "pipe", world.folder / "copy.jsonl"
    os.mkfifo(pipe)
    worker = world.worker("alone", "--patches", str(pipe))
    wait_for(lambda: worker.metric("cco_lag_records") == 0 and worker.status(), "a worker whose pipe nobody reads")
    reader = Reader(pipe, copy)
    with reader.reading():
        reader.open.set()
        world.produce(generated(world, 3_000, seed=21))
        world.settle()
        wait_for(lambda: model_of([copy]) == world.batch(), "all of it to be read from the pipe")
        wait_for(lambda: worker.is_ready() and staleness(worker) < 1, "a worker that is up to date")

        reader.open.clear()  # from here on nobody reads, and the pipe is full soon
        world.produce(generated(world, 10_000, seed=22))
        wait_for(lambda: at_the_end(world, worker), "the stages to go on")
        before, read = resident(worker), reader.bytes
        world.produce(generated(world, 30_000, seed=23))
        wait_for(lambda: at_the_end(world, worker), "the stages to go on for long")
        assert resident(worker) - before < 25 * MB
        assert reader.bytes == read
        wait_for(lambda: staleness(worker) > 3, "staleness that shows it")
        assert not world.settled()
        code, why = worker.get("/readyz")
        assert code == 503 and "older than max_staleness" in why, why
        assert 0 < worker.metric("cco_due_rows") <= 80  # rows, and not all their patches, wait

        reader.open.set()
        world.settle()
        wait_for(lambda: worker.is_ready() and staleness(worker) < 1, "staleness to recover")
        world.check(model_of([copy]))

        reader.open.clear()  # nobody reads again, and the worker is to stop
        world.produce(generated(world, 5_000, seed=24))
        wait_for(lambda: at_the_end(world, worker), "the stages to go on")
        assert worker.stop(10) == 0
    worker = world.worker("alone")  # its patches go to a topic now
    world.settle()
    world.check()
    began = worker.status()
    assert began is not None and sum(s["began_at"] for s in began["interactions"].values()) == sum(world.log_ends())


def test_a_file_is_whole_whatever_happened(make_world: MakeWorld) -> None:
    world = make_world(item_partitions=2)
    path = world.folder / "patches.jsonl"
    worker = world.worker("alone", "--patches", str(world.folder))
    assert worker.wait() == 1
    (reason,) = [str(message["reason"]) for message in worker.messages() if "cannot start" in message["message"]]
    assert reason.startswith(f"{world.folder}: patches cannot be written: Is a directory"), reason
    worker = world.worker("alone", "--patches", "/dev/full")
    world.produce(generated(world, 2_000, seed=25))
    assert worker.wait() == 1
    (reason,) = [str(message["reason"]) for message in worker.messages() if message["message"] == "the worker stops"]
    assert reason.startswith("/dev/full: patches cannot be written: No space left"), reason

    worker = world.worker("alone", "--patches", str(path))
    for kill in range(2):
        wait_for(lambda: path.exists() and path.stat().st_size > 10_000, "patches")
        world.produce(generated(world, 2_000, seed=26 + kill))
        worker.kill()
        with path.open("ab") as file:
            file.write(b'{"item":"item-1","partition":0,"generation":')  # where the kill may cut a line
        worker.start()
    world.settle()
    world.check(model_of([path]))
    assert worker.stop() == 0
    assert path.read_bytes().endswith(b"}\n") and b':{"item"' not in path.read_bytes()
    assert model_of([path]) == world.batch()
