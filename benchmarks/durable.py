"""What a durable state costs: `cco replay` of the demo's data with and without `--state`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from agents.demo_data import demo_config
from agents.engine import Engine
from agents.replay import CHUNK_WITH_STATE, replay
from benchmarks.measure import Bench
from benchmarks.scenario import Line, Raw, Result, Scenario, Task, memory, values

WARM_UP_LINES = 3_000


def run(bench: Bench, durable: bool) -> Result:
    """Replay the file; both ways in the chunks that a durable state asks for."""
    path = bench.folder / "demo.csv"

    def work(source: Path) -> Result:
        with tempfile.TemporaryDirectory(dir=bench.folder) as state, Engine(demo_config()) as engine:
            begin = time.perf_counter()
            done = replay(
                engine, [str(source)], state=Path(state) / "state" if durable else None, chunk=CHUNK_WITH_STATE
            )
            result: Result = {"seconds": time.perf_counter() - begin, "accepted": done.accepted}
            if done.checkpoints is not None:
                report = done.checkpoints
                result |= {"pause_ms": 1000 * report.longest_pause, "commits": report.commits,
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


def _lines(raw: Raw) -> list[Line]:
    seconds = values(raw, "with a state", "seconds")
    commits = values(raw, "with a state", "commits")
    return [
        Line("longest pause of the stream", "ms", values(raw, "with a state", "pause_ms"), target=50.0,
             note=f"{commits[0]:.0f} commits" if commits else ""),
        Line("replay with a state", "s", seconds, "lower", "without", values(raw, "without", "seconds"), "ratio",
             memory=memory(raw, "with a state"), peer_memory=memory(raw, "without")),
    ]  # fmt: skip


SCENARIOS = [
    Scenario(
        "durable",
        "replay of the demo's data with a durable state, and without",
        (
            Task("demo", "data.prepare", {"name": "demo"}),
            Task("CSV", "data.prepare_csv", {"name": "demo", "event_types": list(demo_config().event_types)}),
        ),
        (
            Task("with a state", "durable.run", {"durable": True}),
            Task("without", "durable.run", {"durable": False}),
        ),
        _lines,
    )
]
