"""The whole model from interned events: caps 500, top 50, one indicator; by the stream and by the batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks import data
from benchmarks.measure import Bench
from benchmarks.scenario import MB, Line, Raw, Result, Scenario, Task, absences, memory, values
from cco.batch import rebuild
from cco.config import Config
from cco.pipeline import Pipeline
from cco.rows import Rows

CAP = 500
WARM_UP_EVENTS = 5_000
PEER_RUNS = 3  # of recoreco where one takes a minute


def stream(bench: Bench, name: str, threads: int) -> Result:
    """Ingest all events, then count every row once: what the stream's patches amount to."""
    log, config = data.load(bench, name), data.purchases(CAP)

    def work(limit: int | None) -> tuple[list[Rows], float, float]:
        with ThreadPoolExecutor(threads) as pool:
            pipeline = Pipeline(config, log.user_ids, log.item_ids, 1, pool.map if threads > 1 else map)
            begin = time.perf_counter()
            for batch in log.batches(limit=limit):
                pipeline.ingest(batch, 0.0)
            ingested = time.perf_counter() - begin
            rows = [patches.rows for patches in pipeline.drain(0.0)]
            return rows, ingested, time.perf_counter() - begin - ingested

    bench.warm_up(lambda: work(WARM_UP_EVENTS))
    begin = bench.start()
    rows, ingest_seconds, drain_seconds = work(None)
    seconds = time.perf_counter() - begin
    account = bench.memory()
    return {
        "seconds": seconds, "ingest_seconds": ingest_seconds, "drain_seconds": drain_seconds,
        "fields": sum(map(len, rows)), "entries": sum(part.feature.size for part in rows), **account,
    }  # fmt: skip


def batch(bench: Bench, name: str, threads: int) -> Result:
    """The same by the batch rebuild."""
    log, config = data.load(bench, name), data.purchases(CAP)
    bench.warm_up(partial(_rebuild, config, log, WARM_UP_EVENTS, threads))
    begin = bench.start()
    rows = _rebuild(config, log, None, threads)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "fields": len(rows), "entries": int(rows.feature.size), **bench.memory()}


def _rebuild(config: Config, log: data.Log, limit: int | None, threads: int) -> Rows:
    return rebuild(config, log.batches(limit=limit), log.user_ids, log.item_ids, threads).rows()


def scenario(name: str, log: str) -> Scenario:
    """The scenario over one log."""
    tasks = []
    slow = PEER_RUNS if log == "completejourney" else None
    for cores in (1, 2):
        cell = {"name": log}
        tasks += [
            Task(f"stream-{cores}", "models.stream", {**cell, "threads": cores}, cores),
            Task(f"recoreco-{cores}", "peers.recoreco", {**cell, "which": "events"}, cores, slow),
            Task(f"batch-{cores}", "models.batch", {**cell, "threads": cores}, cores),
            Task(f"implicit-{cores}", "peers.implicit", {**cell, "cap": CAP, "threads": cores}, cores),
        ]
    tasks.append(Task("recoreco-retained", "peers.recoreco", {"name": log, "which": "retained"}, 1, slow))
    tasks.append(Task("scipy", "peers.scipy", {"name": log, "cap": CAP}))
    return Scenario(
        name,
        f"whole model of {log} from interned events, caps {CAP}, top 50, one indicator",
        (
            Task(log, "data.prepare", {"name": log}),
            Task("retained pairs", "data.prepare_retained", {"name": log, "cap": CAP}),
            Task("files for recoreco", "data.prepare_tsv", {"name": log, "cap": CAP}),
        ),
        tuple(tasks),
        partial(_lines, log),
    )


def _lines(log: str, raw: Raw) -> list[Line]:
    lines = []
    for ours in ("stream", "batch"):
        for cores, target in ((1, 25.0), (2, 40.0)):
            lines.append(_against(raw, f"{ours}-{cores}", f"recoreco-{cores}", "recoreco", target))
        lines.append(_against(raw, f"{ours}-1", "recoreco-retained", "recoreco, retained pairs only", None))
        for cores in (1, 2):
            lines.append(_against(raw, f"{ours}-{cores}", f"implicit-{cores}", "implicit (counts only)", 1.0))
        lines.append(_against(raw, f"{ours}-1", "scipy", "scipy", 5.0))
    lines += _memory_lines(log, raw)
    return lines


def _against(raw: Raw, ours: str, theirs: str, peer: str, target: float | None) -> Line:
    cores = raw[ours][0]["cores"] if raw[ours] else []
    what = f"{ours.split('-', maxsplit=1)[0]}, {len(cores)} core{'s' if len(cores) > 1 else ''}"
    return Line(
        what, "s", values(raw, ours, "seconds"), "lower", peer, values(raw, theirs, "seconds"), "ratio", target,
        memory(raw, ours), memory(raw, theirs), absences(raw, theirs),
    )  # fmt: skip


def _memory_lines(log: str, raw: Raw) -> list[Line]:
    """Memory as a figure of its own: of the whole process, and by how much the work made it grow."""
    lines = []
    whole: Callable[[str], list[float]] = partial(memory, raw)
    for ours in ("stream", "batch"):
        if log == "completejourney":
            note = "Python and numba included, inputs apart"
            lines.append(Line(f"{ours}, peak memory", "MB", whole(f"{ours}-1"), target=300.0, note=note))
            lines.append(
                Line(f"{ours}, peak memory", "MB", whole(f"{ours}-1"), "lower", "scipy", whole("scipy"), "ratio", 10.0,
                     note="both with Python and libraries, inputs apart")
            )  # fmt: skip
        grown = values(raw, f"{ours}-1", "growth_bytes", 1 / MB)
        lines.append(
            Line(f"{ours}, growth of memory", "MB", grown, "lower", "scipy",
                 values(raw, "scipy", "growth_bytes", 1 / MB), "ratio", 10.0, note="by the work alone")
        )  # fmt: skip
    return lines


SCENARIOS = [scenario("model-online-retail", "online-retail"), scenario("model-completejourney", "completejourney")]
