"""Rows counted one at a time, as often as events touch them; and one event, from its arrival to the index."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from benchmarks import data
from benchmarks.measure import Bench, spread
from benchmarks.scenario import Line, Raw, Result, Scenario, Task, memory, values
from cco.event_data import EventBatch
from cco.pipeline import Pipeline
from cco.rows import Patches
from llr.kernels import top_rows
from llr.xlogx import table
from model_sync.memory import MemoryIndex

LOG = "completejourney"
ROWS = 20_000
EVENTS = 400
MOST_TRIES = 400_000  # events drawn; most of a full uniform history's are not kept and touch nothing
NEVER_OLD = 4e9  # max_staleness under which only rows that are due are counted
TARGETS = {100: (40.0, 500.0), 500: (200.0, 1500.0)}


class RowCaller:
    """Calls the row kernel on rows of a pipeline with one indicator, all arrays at hand.

    One call into compiled code, with what Python and numba add to it: about 10 us a row.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        stage = pipeline.item_stages[0]
        items = pipeline.items
        self.state = stage._state  # the adjacency itself: what the item stage hands to the kernel
        self._columns, self._members = stage._column_counts(0), pipeline.members()
        self._ids = items.bytes_, items.offsets
        top_k = pipeline.config.indicators[pipeline.config.primary].top_k
        self._row, self._length = np.empty(1, np.uint32), np.empty(1, np.int32)
        self._cells, self._touched = np.zeros(len(items), np.uint32), np.empty(len(items) + 1, np.uint32)
        self._feature, self._llr = np.empty((1, top_k), np.uint32), np.empty((1, top_k), np.float64)
        self._top_k, self._table = top_k, table()

    def microseconds(self, item: int) -> float:
        """Count, score and select the row of an item."""
        holders, primary = self.state.holders, self.state.primary
        self._row[0] = item
        begin = time.perf_counter_ns()
        top_rows(
            self._row, holders.head, holders.data, primary.head, 1, 0, primary.data, self._columns, self._members,
            True, self._top_k, 0.0, False, *self._ids, self._table, self._cells, self._touched,
            self._feature, self._llr, self._length,
        )  # fmt: skip
        return (time.perf_counter_ns() - begin) / 1000

    def touched_by(self, users: npt.NDArray[np.uint32], rng: np.random.Generator) -> npt.NDArray[np.uint32]:
        """For each user (of an event) one of the rows that its event touches: an item of the user's history."""
        head = self.state.primary.head[users].astype(np.int64)
        head = head[head[:, 1] > 0]
        return self.state.primary.data[head[:, 0] + (rng.random(len(head)) * head[:, 1]).astype(np.int64)]


def loaded(log: data.Log, cap: int) -> Pipeline:
    """Both stages with the whole log applied."""
    pipeline = Pipeline(data.purchases(cap, staleness=NEVER_OLD), log.user_ids, log.item_ids)
    for batch in log.batches():
        pipeline.ingest(batch, 0.0)
    return pipeline


def rows(bench: Bench, cap: int) -> Result:
    """Rows drawn as events touch them: an event, then an item of its user's history."""
    log, rng = data.load(bench, LOG), np.random.default_rng(1)
    caller = RowCaller(loaded(log, cap))
    drawn = caller.touched_by(log.users[rng.integers(0, len(log), ROWS)], rng).tolist()
    bench.warm_up(lambda: [caller.microseconds(item) for item in drawn[:500]])
    bench.start()
    return {**spread([caller.microseconds(item) for item in drawn]), **bench.memory()}


def one_event(bench: Bench) -> Result:
    """An event of a user who buys something new: ingested, its rows counted and published."""
    log, rng = data.load(bench, LOG), np.random.default_rng(2)
    pipeline = loaded(log, 100)
    index = MemoryIndex(pipeline.config, log.item_ids)
    for patches in pipeline.drain(0.0):
        index.apply(patches)
    moment = int(log.times[-1]) + 1

    def arrive(user: int, item: int) -> tuple[float, int]:
        event = EventBatch(
            np.array([user], np.uint32), np.array([item], np.uint32), np.zeros(1, np.int16),
            np.array([moment], np.uint32),
        )  # fmt: skip
        begin = time.perf_counter()
        pipeline.ingest(event, 1.0)
        touched = pipeline.due()
        found: list[Patches] = pipeline.publish(1.0, 1 << 30)
        for patches in found:
            index.apply(patches)
        return 1000 * (time.perf_counter() - begin), touched

    def some(wanted: int) -> tuple[list[float], list[int], int]:
        times: list[float] = []
        touched: list[int] = []
        tries = 0
        while len(times) < wanted and tries < MOST_TRIES:
            tries += 1
            took, rows_touched = arrive(int(log.users[rng.integers(len(log))]), int(log.items[rng.integers(len(log))]))
            if rows_touched > 1:  # one: the item's prior alone, nothing was kept
                times.append(took)
                touched.append(rows_touched)
        return times, touched, tries

    bench.warm_up(lambda: some(20))
    bench.start()
    times, touched, tries = some(EVENTS)
    return {**spread(times), "rows_touched": float(np.mean(touched)), "events_drawn": tries, **bench.memory()}


def _row_lines(raw: Raw) -> list[Line]:
    lines = []
    for cap, (middle, high) in TARGETS.items():
        for key, target in (("p50", middle), ("p99", high), ("p99.9", None)):
            name = f"cap-{cap}"
            note = "Python's call included"
            lines.append(Line(f"one row, cap {cap}, {key}", "us", values(raw, name, key), target=target,
                              memory=memory(raw, name), note=note))  # fmt: skip
    return lines


def _event_lines(raw: Raw) -> list[Line]:
    touched = values(raw, "one-event", "rows_touched")
    note = f"{np.mean(touched):.0f} rows touched by an event" if touched else ""
    return [
        Line(f"one event to the index, {key}", "ms", values(raw, "one-event", key), target=target,
             memory=memory(raw, "one-event"), note=note)
        for key, target in (("p50", 10.0), ("p99", 20.0), ("max", None))
    ]  # fmt: skip


_LOG = Task(LOG, "data.prepare", {"name": LOG})
SCENARIOS = [
    Scenario(
        "one-row",
        f"one row counted and scored, weighted by how often rows are touched, {LOG}",
        (_LOG,),
        tuple(Task(f"cap-{cap}", "single_rows.rows", {"cap": cap}) for cap in TARGETS),
        _row_lines,
    ),
    Scenario(
        "one-event",
        f"one event in, every row that it touches counted, scored and republished, {LOG}, cap 100",
        (_LOG,),
        (Task("one-event", "single_rows.one_event"),),
        _event_lines,
    ),
]
