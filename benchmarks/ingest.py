"""Events in: interned ones into both stages, and a JSON Lines file all the way."""

from __future__ import annotations

import time
from collections.abc import Callable

from agents.engine import Engine
from agents.files.reading import read_events
from benchmarks import data
from benchmarks.measure import Bench
from benchmarks.scenario import Line, Raw, Result, Scenario, Task, memory, values
from cco.pipeline import Pipeline

LOG = "online-retail"
REPEATS = 9  # in one process: a whole ingest takes a tenth of a second; the median counts
CAPS = {"default": 100, "cap-500": 500}


def interned(bench: Bench, cap: int) -> Result:
    """Both stages, from nothing to the end of the log, in the engine's micro-batches; no rows are counted."""
    log, config = data.load(bench, LOG), data.purchases(cap)

    def work(limit: int | None) -> float:
        pipeline = Pipeline(config, log.user_ids, log.item_ids)
        begin = time.perf_counter()
        for batch in log.batches(limit=limit):
            pipeline.ingest(batch, 0.0)
        return time.perf_counter() - begin

    bench.warm_up(lambda: work(5_000))
    bench.start()
    return _rates([work(None) for _ in range(REPEATS)], len(log), bench)


def jsonl(bench: Bench, parse_only: bool) -> Result:
    """Read a file: parsed, validated, interned; and, unless `parse_only`, ingested into both stages."""
    events = len(data.load(bench, LOG))
    path = str(bench.folder / f"{LOG}.jsonl")
    config = data.purchases()

    def work() -> float:
        with Engine(config) as engine:
            take: Callable[..., object] = len if parse_only else lambda batch: engine.pipeline.ingest(batch, 0.0)
            begin = time.perf_counter()
            for chunk in read_events([path], engine.parser):
                take(chunk.batch)
                if chunk.rejections:
                    raise RuntimeError(f"a good event was rejected: {chunk.rejections[0]}")
            return time.perf_counter() - begin

    bench.warm_up(work)
    bench.start()
    return _rates([work() for _ in range(3)], events, bench)


def _rates(seconds: list[float], events: int, bench: Bench) -> Result:
    middle = sorted(seconds)[len(seconds) // 2]
    return {"rate": events / middle, "events": events, "seconds": middle, "all_seconds": seconds, **bench.memory()}


def _interned_lines(raw: Raw) -> list[Line]:
    return [
        Line(f"both stages, {name}", "M events/s", values(raw, name, "rate", 1e-6), "higher", target=3.0,
             memory=memory(raw, name))
        for name in CAPS
    ]  # fmt: skip


def _jsonl_lines(raw: Raw) -> list[Line]:
    names = {"ingested": ("parsed, validated, interned, ingested", 300.0), "parsed": ("parsed and interned only", None)}
    return [
        Line(what, "k events/s", values(raw, name, "rate", 1e-3), "higher", target=target, memory=memory(raw, name))
        for name, (what, target) in names.items()
    ]


_LOG = Task(LOG, "data.prepare", {"name": LOG})
SCENARIOS = [
    Scenario(
        "ingest-interned",
        f"ingest of the interned events of {LOG} into both stages",
        (_LOG,),
        tuple(Task(name, "ingest.interned", {"cap": cap}) for name, cap in CAPS.items()),
        _interned_lines,
    ),
    Scenario(
        "ingest-jsonl",
        f"a JSON Lines file of {LOG}",
        (_LOG, Task("JSON Lines", "data.prepare_jsonl", {"name": LOG})),
        (
            Task("ingested", "ingest.jsonl", {"parse_only": False}),
            Task("parsed", "ingest.jsonl", {"parse_only": True}),
        ),
        _jsonl_lines,
    ),
]
