"""50 million generated interactions: ingest, the heaviest rows, and what the state takes."""

from __future__ import annotations

import gc
import time

import numpy as np

from benchmarks import data
from benchmarks.measure import Bench, spread, status_bytes
from benchmarks.scenario import MB, Line, Raw, Result, Scenario, Task, memory, values
from benchmarks.single_rows import RowCaller
from cco.pipeline import Pipeline
from cco.vocabulary import Vocabulary

EVENTS, USERS, ITEMS = 50_000_000, 1_000_000, 200_000
QUICK = 200
ROWS = 10_000
SHIFTS = {"shifted": 50.0, "plain": 0.0}
BILLION = 1e9


def stream(bench: Bench, shift: float) -> Result:
    """Ingest into both stages, chunk by generated chunk; then rows as events touch them."""
    scale = QUICK if bench.quick else 1
    users, items = Vocabulary(), Vocabulary()
    config = data.purchases()
    bench.warm_up(lambda: _warm(shift))
    source = data.Zipf(EVENTS // scale, USERS // scale, ITEMS // scale, shift)
    bench.start()
    empty = status_bytes("VmRSS")
    users.intern([f"user-{n}" for n in range(source.users)])
    items.intern([f"item-{n}" for n in range(source.items)])
    _ = users.hashes, items.hashes, items.partitions(1)
    gc.collect()
    ids_bytes = status_bytes("VmRSS") - empty
    pipeline = Pipeline(config, users, items)
    seconds, slowest = 0.0, 0.0
    for chunk in source.chunks():
        for at in range(0, len(chunk), data.MICRO_BATCH):
            begin = time.perf_counter()
            pipeline.ingest(chunk.part(at, at + data.MICRO_BATCH), 0.0)
            took = time.perf_counter() - begin
            seconds += took
            slowest = max(slowest, took)
    del chunk
    gc.collect()
    account = bench.memory()
    state_bytes = status_bytes("VmRSS") - empty
    retained = pipeline.retained()["purchase"]
    result = {
        "rate": source.events / seconds, "slowest_batch_seconds": slowest, "retained": retained,
        "ids_bytes": ids_bytes, "state_bytes": state_bytes, "stage_bytes": sum(pipeline.nbytes().values()),
        "bytes_per_interaction": state_bytes / retained,
        "stage_bytes_per_interaction": (state_bytes - ids_bytes) / retained, **account,
    }  # fmt: skip
    return {**result, **_rows(pipeline, source, 500 if bench.quick else ROWS)}


def _warm(shift: float) -> None:
    small = data.Zipf(20_000, 500, 300, shift)
    users, items = Vocabulary(), Vocabulary()
    users.intern([str(n) for n in range(small.users)])
    items.intern([str(n) for n in range(small.items)])
    pipeline = Pipeline(data.purchases(), users, items)
    for chunk in small.chunks():
        pipeline.ingest(chunk, 0.0)
    _rows(pipeline, small, 10)


def _rows(pipeline: Pipeline, source: data.Zipf, count: int) -> Result:
    caller = RowCaller(pipeline)
    drawn = caller.touched_by(source.draw_users(count), np.random.default_rng(3)).tolist()
    hottest, holders = pipeline.heaviest(1)[0]
    hottest_ms = sorted(caller.microseconds(hottest) / 1000 for _ in range(7))[3]
    state = caller.state
    start = int(state.holders.head[hottest, 0])
    steps = int(state.primary.head[state.holders.data[start : start + holders], 1].sum(dtype=np.int64))
    times = spread([caller.microseconds(item) / 1000 for item in drawn])
    return {
        "rows": times, "p50": times["p50"], "p99": times["p99"], "p99.9": times["p99.9"],
        "hottest_ms": hottest_ms, "hottest_users": holders, "hottest_increments": steps,
    }  # fmt: skip


def _lines(raw: Raw) -> list[Line]:
    lines = []
    for name, shift in SHIFTS.items():
        kind = f"Zipf 1/(rank+{shift:.0f})" if shift else "Zipf 1/rank"
        heavy = values(raw, name, "hottest_users")
        steps = values(raw, name, "hottest_increments", 1e-6)
        hottest = f"{heavy[0]:,.0f} users, {steps[0]:,.1f} M increments" if heavy else ""
        kept = values(raw, name, "retained", 1e-6)
        stored = f"{kept[0]:,.1f} M retained; ids included" if kept else ""
        each = values(raw, name, "bytes_per_interaction")
        ids_apart = values(raw, name, "stage_bytes_per_interaction")
        rate = values(raw, name, "rate", 1e-6)
        lines += [
            Line(f"{kind}: ingest, both stages", "M events/s", rate, "higher", target=1.5, memory=memory(raw, name)),
            Line(f"{kind}: a touched row, p99.9", "ms", values(raw, name, "p99.9"), target=20.0),
            Line(f"{kind}: the hottest row", "ms", values(raw, name, "hottest_ms"), note=hottest),
            Line(f"{kind}: resident memory of the state", "MB", values(raw, name, "state_bytes", 1 / MB),
                 target=2500.0, note=stored),
            Line(f"{kind}: memory a retained interaction", "bytes", each),
            Line(f"{kind}: computed: 1 billion retained interactions", "GB", [BILLION * x / 1e9 for x in each],
                 target=24.0, note="from the line above"),
            Line(f"{kind}: the same without ids", "GB", [BILLION * x / 1e9 for x in ids_apart],
                 note="both vocabularies apart"),
        ]  # fmt: skip
    return lines


SCENARIOS = [
    Scenario(
        "large",
        f"{EVENTS:,} generated interactions, {USERS:,} users, {ITEMS:,} items, one indicator, cap 100",
        (),
        tuple(Task(name, "large.stream", {"shift": shift}, most_runs=3) for name, shift in SHIFTS.items()),
        _lines,
    )
]
