"""Events a second that are sustained while no row is out of date for longer than a bound.

The log is repeated without end. So that every round makes the edits of the first, each user is deleted
just before his first event of a round ($delete) and begins anew; times go on by the log's span. The
state is thus always that of about one whole log, and every event works as it did the first time.
Deletions are not counted as events.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from agents.engine import Engine
from benchmarks import data
from benchmarks.measure import Bench
from benchmarks.scenario import Line, Raw, Result, Scenario, Task, absences, memory, values
from cco.event_data import DELETE_USER, EventBatch
from cco.pipeline import Pipeline
from model_sync.memory import MemoryIndex

STEP = 16_384  # events between two looks at the rows that are due
SHARES = (1.0, 0.8, 0.6, 0.4)  # of the bound given to the stream as max_staleness: the first that keeps it counts
CAP = 100
BOUNDS = {"online-retail": (1.0, 300.0), "completejourney": (5.0, 50.0)}  # seconds; thousand events/s to reach


def rounds(log: data.Log) -> Iterator[EventBatch]:
    """The log again and again with its deletions, STEP events at a time."""
    first = np.unique(log.users, return_index=True)[1]
    users, items = np.insert(log.users, first, log.users[first]), np.insert(log.items, first, 0)
    types, times = np.insert(log.types, first, DELETE_USER), np.insert(log.times, first, log.times[first])
    span = int(log.times[-1]) - int(log.times[0]) + 1
    turn = 0
    while True:
        later = (times.astype(np.int64) + turn * span).clip(max=2**32 - 1).astype(np.uint32)
        whole = EventBatch(users, items, types, later)
        for at in range(0, len(whole), STEP):
            yield whole.part(at, at + STEP)
        turn += 1


def _window(bench: Bench, bound: float) -> float:
    return 1.5 * bound if bench.quick else max(4 * bound, 8.0)


def stream(bench: Bench, name: str, bound: float) -> Result:
    """As fast as it goes: after each step of events those rows are counted that would become too old."""
    log = data.load(bench, name)
    bench.warm_up(lambda: _attempt(log, bound, 0.1))
    bench.start()
    attempts = []
    for share in SHARES:
        found = _attempt(log, share * bound, _window(bench, bound))
        attempts.append({**found, "max_staleness": share * bound})
        if found["worst_staleness"] <= bound:
            return {**found, "held": True, "attempts": attempts, **bench.memory()}
    return {"held": False, "attempts": attempts, **bench.memory()}


def _attempt(log: data.Log, staleness: float, seconds: float) -> Result:
    """Rate and the age that any row reached before its successor was in the index."""
    pipeline = Pipeline(data.purchases(CAP, staleness=staleness), log.user_ids, log.item_ids)
    index = MemoryIndex(pipeline.config, log.item_ids)
    source = rounds(log)
    for _ in range(-(-len(log) // STEP)):  # the state is that of a whole log before the clock starts
        pipeline.ingest(next(source), time.perf_counter())
    for patches in pipeline.drain(time.perf_counter()):
        index.apply(patches)
    counted, events, patched, worst = pipeline.rows_counted, 0, 0, 0.0
    begin = time.perf_counter()
    now = begin
    while now - begin < seconds:
        batch = next(source)
        pipeline.ingest(batch, now)
        events += int(np.count_nonzero(batch.types >= 0))
        began = time.perf_counter()
        oldest = pipeline.staleness(began)
        for patches in pipeline.publish(began, 0):
            index.apply(patches)
            patched += len(patches.rows)
        now = time.perf_counter()
        worst = max(worst, oldest + now - began)  # the old row stood in the index until now
    return {
        "rate": events / (now - begin), "worst_staleness": worst, "events": events, "seconds": now - begin,
        "rows_counted": pipeline.rows_counted - counted, "fields_published": patched,
    }  # fmt: skip


def engine(bench: Bench, name: str, bound: float) -> Result:
    """The same through Engine.ingest, which also spends time on rows that are due but not old."""
    log = data.load(bench, name)

    def work(seconds: float) -> Result:
        with Engine(data.purchases(CAP, staleness=bound)) as running:
            running.users, running.items = log.user_ids, log.item_ids
            running.pipeline = Pipeline(running.config, log.user_ids, log.item_ids)
            running.index = MemoryIndex(running.config, log.item_ids)
            source = rounds(log)
            for _ in range(-(-len(log) // STEP)):
                running.pipeline.ingest(next(source), time.monotonic())
            running.drain()
            running.counters.worst_staleness = 0.0
            events, begin = 0, time.monotonic()
            while (now := time.monotonic()) - begin < seconds:
                batch = EventBatch.join([next(source) for _ in range(4)])
                running.ingest(batch)
                events += int(np.count_nonzero(batch.types >= 0))
            return {"rate": events / (now - begin), "worst_staleness": running.counters.worst_staleness}

    bench.warm_up(lambda: work(0.1))
    bench.start()
    found = work(_window(bench, bound))
    return {**found, "held": found["worst_staleness"] <= bound, **bench.memory()}


def refit(bench: Bench, name: str) -> Result:
    """Seconds of one refit of implicit from the interned events retained so far, matrix included."""
    try:
        recommender: Any = importlib.import_module("implicit.nearest_neighbours").CosineRecommender
        sparse: Any = importlib.import_module("scipy.sparse")
    except ImportError as error:
        return {"absent": f"implicit is not installed ({error})"}
    bounds, indices = data.retained(bench, name, CAP)
    users = np.repeat(np.arange(bounds.size - 1, dtype=np.int32), np.diff(bounds))

    def fit() -> float:
        begin = time.perf_counter()
        shape = (bounds.size - 1, int(indices.max()) + 1)
        matrix = sparse.coo_matrix((np.ones(indices.size), (users, indices)), shape).tocsr()
        recommender(K=50, num_threads=1).fit(matrix, show_progress=False)
        return time.perf_counter() - begin

    bench.warm_up(fit)
    bench.start()
    return {"seconds": sorted(fit() for _ in range(3))[1], **bench.memory()}


def _lines(raw: Raw) -> list[Line]:
    lines = []
    for name, (bound, target) in BOUNDS.items():
        fits = values(raw, f"implicit {name}", "seconds")
        if fits:
            late = 2 * max(fits)  # an event that comes just after a refit began waits for the end of the next
            peer = f"implicit: {'keeps' if late <= bound else 'breaks'} it: refit of {max(fits):.2f} s, no LLR"
        else:
            peer = absences(raw, f"implicit {name}")
        for kind, aim in (("stream", target), ("engine", None)):
            task = f"{kind} {name}"
            held = all(result["held"] for result in raw[task])
            worst = values(raw, task, "worst_staleness")
            note = f"oldest row {max(worst):.2f} s" if held and worst else "the bound was not kept"
            lines.append(
                Line(f"{name}, {kind}, rows within {bound:.0f} s", "k events/s",
                     values(raw, task, "rate", 1e-3) if held else [], "higher", target=aim,
                     memory=memory(raw, task), note=f"{note}; {peer}" if kind == "stream" else note)
            )  # fmt: skip
    return lines


def _tasks() -> Iterator[Task]:
    for name, (bound, _) in BOUNDS.items():
        yield Task(f"stream {name}", "sustained.stream", {"name": name, "bound": bound})
        yield Task(f"implicit {name}", "sustained.refit", {"name": name})
        yield Task(f"engine {name}", "sustained.engine", {"name": name, "bound": bound})


SCENARIOS = [
    Scenario(
        "sustained",
        f"events a second while every row is republished in time, cap {CAP}, index in memory",
        tuple(
            task
            for name in BOUNDS
            for task in (
                Task(name, "data.prepare", {"name": name}),
                Task(f"retained pairs of {name}", "data.prepare_retained", {"name": name, "cap": CAP}),
            )
        ),
        tuple(_tasks()),
        _lines,
    )
]
