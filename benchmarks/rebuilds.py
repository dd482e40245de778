"""`cco rebuild` from Parquet on both engines: 1 to 50 million generated interactions; the demo's against a self-join.

Each run is the command as a user types it, in processes of its own; memory is that of all of them together.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from benchmarks import data
from benchmarks.large import EVENTS, ITEMS, USERS
from benchmarks.measure import Bench
from benchmarks.scenario import Line, Raw, Result, Scenario, Task, absences, memory, values

MILLIONS = (1, 5, 20, 50)
QUICK = 200
SHIFT = 50.0
LOOK_EVERY = 0.25  # seconds
WARM_UP = 20_000  # events
SLOW_RUNS = 2  # where one takes minutes
SECONDS, MEMORY = 60.0, 6_000.0  # at most, for 50 M interactions on two cores

DEMO_TOML = """primary = "purchase"
[indicators.purchase]
events = ["purchase", "purchase-discount", "purchase-coupon", "purchase-discount-coupon"]
[indicators.discount]
events = ["purchase-discount", "purchase-discount-coupon"]
[indicators.coupon]
events = ["purchase-coupon", "purchase-discount-coupon"]
[retention]
sampling = "recent"
"""


# -- inputs ---------------------------------------------------------------------------------------------


def prepare_generated(bench: Bench, millions: int) -> Result:
    """Write so many interactions, 50 of each user and 250 of each item on average, as a user's Parquet file."""
    scale = EVENTS // (millions * 1_000_000) * (QUICK if bench.quick else 1)
    path = bench.folder / f"generated-{millions}.parquet"
    _write(path, data.Zipf(EVENTS // scale, USERS // scale, ITEMS // scale, SHIFT))
    _write(bench.folder / "small.parquet", data.Zipf(WARM_UP, 500, 300, SHIFT))
    return {"bytes": path.stat().st_size}


def _write(path: Path, source: data.Zipf) -> None:
    users, items = (pa.array([f"{kind}-{n}" for n in range(count)])
                    for kind, count in (("user", source.users), ("item", source.items)))  # fmt: skip
    kinds = pa.array(["purchase"])
    names = ("user", "item", "event")
    schema = pa.schema([*((name, pa.string()) for name in names), ("timestamp", pa.int64())])
    with pa.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for chunk in source.chunks():
            columns = [
                users.take(pa.array(chunk.users)), items.take(pa.array(chunk.items)),
                kinds.take(pa.array(chunk.types.astype(np.int32))), pa.array(chunk.times.astype(np.int64)),
            ]  # fmt: skip
            writer.write_table(pa.table(columns, schema=schema), row_group_size=len(chunk))


def prepare_demo(bench: Bench) -> Result:
    """Write the demo's purchases with their types as Parquet, for both."""
    found = data.prepare(bench, "demo")
    if "absent" in found:
        return found
    from agents.demo.data import demo_config

    log, names = data.load(bench, "demo"), demo_config().event_types
    columns = {
        "user": log.user_ids.names(log.users),
        "item": log.item_ids.names(log.items),
        "event": [names[kind] for kind in log.types.tolist()],
        "timestamp": log.times.astype(np.int64),
    }
    pyarrow.parquet.write_table(pa.table(columns), bench.folder / "demo.parquet", compression="zstd")
    _write(bench.folder / "small.parquet", data.Zipf(WARM_UP, 500, 300, SHIFT))
    (bench.folder / "demo.toml").write_text(DEMO_TOML)
    return found


# -- tasks ----------------------------------------------------------------------------------------------


def generated(bench: Bench, millions: int, engine: str) -> Result:
    """The model of generated interactions."""
    bench.warm_up(lambda: _rebuild(bench, "small.parquet", engine))
    return _rebuild(bench, f"generated-{millions}.parquet", engine)


def demo(bench: Bench) -> Result:
    """The model of the demo's purchases, by this machine."""
    bench.warm_up(lambda: _rebuild(bench, "small.parquet", "local"))
    return _rebuild(bench, "demo.parquet", "local", "demo.toml")


def _rebuild(bench: Bench, name: str, engine: str, config: str | None = None) -> Result:
    model = bench.folder / f"model-{engine}.jsonl"
    command = [sys.executable, "-m", "agents", "rebuild", str(bench.folder / name), "--engine", engine]
    command += ["--model", str(model), "--json", *(["--config", str(bench.folder / config)] if config else [])]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with watched(process.pid) as peak:
        out, told = process.communicate()
    whole = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {told[-500:]}")
    report = json.loads(out)
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    return {
        "seconds": report["seconds"], "reading_seconds": report["reading_seconds"], "process_seconds": whole,
        "without_reading_seconds": report["seconds"] - report["reading_seconds"], "events": report["events"],
        "rows": report["rows"], "model_bytes": report["model_bytes"], "sha256": digest, "peak_bytes": peak[0],
    }  # fmt: skip


@contextmanager
def watched(process: int) -> Iterator[list[int]]:
    """The most that a process and its descendants had in memory at once, in bytes; shared pages count once."""
    peak, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY):
            peak[0] = max(peak[0], sum(map(_proportional, [process, *_descendants(process)])))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        over.set()
        watcher.join()


def _descendants(process: int) -> list[int]:
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [process]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def _proportional(process: int) -> int:
    """What is resident of a process, pages that it shares with others divided among them."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


# -- reports --------------------------------------------------------------------------------------------


def _equal(raw: Raw, *tasks: str) -> str:
    """Whether all runs of these tasks gave the same bytes."""
    digests = {result["sha256"] for task in tasks for result in raw.get(task, ())}
    return "the same model, byte for byte" if len(digests) == 1 else f"{len(digests)} DIFFERENT MODELS"


def _scaling(raw: Raw) -> list[Line]:
    lines = []
    for millions in MILLIONS:
        ours, theirs = f"local-{millions}", f"spark-{millions}"
        last = millions == MILLIONS[-1]
        lines.append(
            Line(f"{millions} M interactions, local", "s", values(raw, ours, "seconds"), "lower", "spark",
                 values(raw, theirs, "seconds"), target=SECONDS if last else None, memory=memory(raw, ours),
                 peer_memory=memory(raw, theirs), note=_equal(raw, ours, theirs))
        )  # fmt: skip
        lines.append(
            Line(f"{millions} M interactions, local: reading", "s", values(raw, ours, "reading_seconds"), "lower",
                 "spark", values(raw, theirs, "reading_seconds"))
        )  # fmt: skip
        if last:
            lines.append(Line(f"{millions} M interactions, local: memory", "MB", memory(raw, ours), target=MEMORY))
    return lines


def _self_join(raw: Raw) -> list[Line]:
    def line(what: str, ours: str, theirs: str, ratio: float | None, note: str = "") -> Line:
        return Line(
            what, "s", values(raw, "local", ours), "lower", "self-join on Spark", values(raw, "self-join", theirs),
            "ratio", ratio, memory(raw, "local"), memory(raw, "self-join"), note,
        )  # fmt: skip

    shared: list[Any] = [result.get("agreement") for result in raw.get("self-join", ()) if "agreement" in result]
    agreement = f"{shared[0]:.2%} of the peer's entries are in our rows" if shared else absences(raw, "self-join")
    return [
        line("without loading: retention, rows, writing the model", "without_reading_seconds", "seconds", 20.0,
             "the peer gets the retained pairs, and writes nothing; " + agreement),
        line("loading: reading, parsing and interning events; reading pairs", "reading_seconds", "loading_seconds",
             None, "and the start of the JVM apart"),
    ]  # fmt: skip


SCENARIOS = [
    Scenario(
        "rebuild-scaling",
        "cco rebuild from Parquet on two cores: generated interactions, one indicator, cap 100, on both engines",
        tuple(Task(f"{millions} M", "rebuilds.prepare_generated", {"millions": millions}) for millions in MILLIONS),
        tuple(
            Task(f"{engine}-{millions}", "rebuilds.generated", {"millions": millions, "engine": engine}, 2,
                 SLOW_RUNS if millions >= 20 else None)
            for millions in MILLIONS
            for engine in ("local", "spark")
        ),
        _scaling,
    ),
    Scenario(
        "rebuild-self-join",
        "the model of the demo's purchases, three indicators, cap 100, two cores, against a self-join of DataFrames",
        (Task("demo", "rebuilds.prepare_demo"), Task("retained pairs", "spark_self_join.prepare")),
        (
            Task("local", "rebuilds.demo", cores=2),
            Task("self-join", "spark_self_join.self_join", cores=2, most_runs=SLOW_RUNS),
        ),
        _self_join,
    ),
]  # fmt: skip
