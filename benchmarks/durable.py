"""What a durable state costs the stream: `cco replay` with and without `--state`.

How long the stream stands still is seen from outside of the checkpoints, by the clock that the engine looks at before
and after each batch of events and between every 256 items that it counts. From one look to the next the stream's
thread works; as far as it does not - it waits for the interpreter's lock, for the disk, for the core - it stands
still. Between the last look in a chunk and the chunk's end there is nothing but a step of a checkpoint: all of that
counts.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from agents.demo.data import demo_config
from agents.engine import Engine
from agents.files.reading import Chunk
from agents.replay import CHUNK_WITH_STATE, replay
from benchmarks import data
from benchmarks.measure import Bench
from benchmarks.scenario import MB, Line, Raw, Result, Scenario, Task, memory, values

WARM_UP_LINES = 3_000
EVENTS, USERS, ITEMS, SHIFT = 2_000_000, 300_000, 20_000, 50.0
QUICK = 100
LOGS = {"demo": "the demo's data", "generated": f"{EVENTS // 1_000_000} M events of {USERS:,} users"}
MOST_MS = 50.0
_OPENING = 2  # looks at the clock before the stream goes: when the engine is made, and at its first event


class Heartbeat:
    """When the stream was last alive, and for how long it was not, in seconds; what follows the last chunk is left out.

    The thread that asks for the time must be the stream's.
    """

    def __init__(self) -> None:
        self.longest_stop = 0.0
        self.longest_chunk = 0.0  # from the end of a chunk to the end of the next
        self._looks = 0
        self._wall = self._cpu = 0.0  # at the last look
        self._stop = 0.0  # the longest since the end of the last chunk
        self._chunk_ended: float | None = None

    def clock(self) -> float:
        """For an engine. Since the last look the stream was at work, as far as its thread ran."""
        self._looks += 1
        wall, cpu = time.perf_counter(), time.thread_time()
        if self._looks > _OPENING:
            self._stop = max(self._stop, wall - self._wall - (cpu - self._cpu))
        self._wall, self._cpu = wall, cpu
        return wall

    def chunk_ended(self, chunk: Chunk) -> None:
        """For `replay`. Since the last look there was nothing but a step of a checkpoint, if there are any."""
        wall = time.perf_counter()
        self.longest_stop = max(self.longest_stop, self._stop, wall - self._wall)
        if self._chunk_ended is not None:
            self.longest_chunk = max(self.longest_chunk, wall - self._chunk_ended)
        self._stop, self._wall, self._cpu, self._chunk_ended = 0.0, wall, time.thread_time(), wall


def prepare_generated(bench: Bench) -> Result:
    """Write interactions drawn at random as CSV."""
    scale = QUICK if bench.quick else 1
    path = bench.folder / "generated.csv"
    with path.open("w", encoding="utf-8") as out:
        out.write("user,item,event,timestamp\n")
        for chunk in data.Zipf(EVENTS // scale, USERS // scale, ITEMS // scale, SHIFT).chunks():
            rows = zip(chunk.users.tolist(), chunk.items.tolist(), chunk.times.tolist(), strict=True)
            out.writelines(f"user-{user},item-{item},purchase,{moment}\n" for user, item, moment in rows)
    return {"bytes": path.stat().st_size}


def run(bench: Bench, log: str, durable: bool) -> Result:
    """Replay the file; both ways in the chunks that a durable state asks for."""
    path = bench.folder / f"{log}.csv"
    config = demo_config() if log == "demo" else data.purchases()

    def work(source: Path) -> Result:
        beat = Heartbeat()
        with tempfile.TemporaryDirectory(dir=bench.folder) as name, Engine(config, clock=beat.clock) as engine:
            state = Path(name) / "state" if durable else None
            begin = time.perf_counter()
            done = replay(engine, [str(source)], state=state, chunk=CHUNK_WITH_STATE, on_chunk=beat.chunk_ended)
            result: Result = {
                "seconds": time.perf_counter() - begin, "accepted": done.accepted,
                "longest_stop_ms": 1000 * beat.longest_stop, "longest_chunk_ms": 1000 * beat.longest_chunk,
            }  # fmt: skip
            if done.checkpoints is not None:
                report = done.checkpoints
                result |= {"step_ms": 1000 * report.longest_pause, "commits": report.commits,
                           "written_bytes": report.bytes_written}  # fmt: skip
            return result

    bench.warm_up(lambda: work(_first_lines(path)))
    bench.start()
    return {**work(path), **bench.memory()}


def _first_lines(path: Path) -> Path:
    short = path.with_name("short.csv")
    with path.open("rb") as source:
        short.write_bytes(b"".join(line for line, _ in zip(source, range(WARM_UP_LINES), strict=False)))
    return short


def _task(log: str, durable: bool) -> str:
    return f"{log}, with a state" if durable else f"{log}, without"


def _lines(raw: Raw) -> list[Line]:
    lines = []
    for log, words in LOGS.items():
        ours, peer = _task(log, True), _task(log, False)
        commits, written = values(raw, ours, "commits"), values(raw, ours, "written_bytes", 1 / MB)
        note = f"{commits[0]:.0f} commits, {written[0]:.0f} MB" if commits else ""
        without = "without a state"
        lines += [
            Line(f"{words}: the stream stands still, longest", "ms", values(raw, ours, "longest_stop_ms"), "lower",
                 without, values(raw, peer, "longest_stop_ms"), target=MOST_MS, note=note),
            Line(f"{words}: a step of a checkpoint by its own account, longest", "ms", values(raw, ours, "step_ms")),
            Line(f"{words}: from micro-batch to micro-batch, longest", "ms", values(raw, ours, "longest_chunk_ms"),
                 "lower", without, values(raw, peer, "longest_chunk_ms")),
            Line(f"{words}: replay with a state", "s", values(raw, ours, "seconds"), "lower", without,
                 values(raw, peer, "seconds"), "ratio", memory=memory(raw, ours), peer_memory=memory(raw, peer)),
        ]  # fmt: skip
    return lines


SCENARIOS = [
    Scenario(
        "durable",
        f"replay with a durable state, and without: {' and '.join(LOGS.values())}",
        (
            Task("demo", "data.prepare", {"name": "demo"}),
            Task("CSV", "data.prepare_csv", {"name": "demo", "event_types": list(demo_config().event_types)}),
            Task("generated", "durable.prepare_generated"),
        ),
        tuple(
            Task(_task(log, durable), "durable.run", {"log": log, "durable": durable})
            for log in LOGS
            for durable in (True, False)
        ),
        _lines,
    )
]
