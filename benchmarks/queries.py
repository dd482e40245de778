"""Queries to the index in memory, filled with a year of purchases under three indicators."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from agents.demo.data import demo_config
from benchmarks import data
from benchmarks.measure import Bench, spread
from benchmarks.scenario import Line, Raw, Result, Scenario, Task, memory, values
from cco.pipeline import Pipeline
from model_sync.contract import Query
from model_sync.memory import MemoryIndex

QUERIES = 3_000
HISTORY = 100  # items


def search(bench: Bench, per_field: bool) -> Result:
    """Households ask for 10 products, those of their history excluded.

    100 history items in all, a third under each indicator; or (`per_field`) 100 under each.
    """
    log, config = data.load(bench, "demo"), demo_config()
    pipeline = Pipeline(config, log.user_ids, log.item_ids)
    for batch in log.batches():
        pipeline.ingest(batch, 0.0)
    index = MemoryIndex(config, log.item_ids)
    for patches in pipeline.drain(0.0):
        index.apply(patches)
    rng = np.random.default_rng(4)
    queries = [_query(log, pipeline, per_field, rng) for _ in range(300 if bench.quick else QUERIES)]
    bench.warm_up(lambda: [index.search(query) for query in queries[:50]])
    bench.start()
    times, hits = [], 0
    for query in queries:
        begin = time.perf_counter()
        found = index.search(query)
        times.append(1000 * (time.perf_counter() - begin))
        hits += len(found)
    terms = [sum(map(len, query.history.values())) for query in queries]
    return {
        **spread(times), "items": len(log.item_ids), "terms": float(np.mean(terms)), "hits": hits / len(queries),
        "index_bytes": sum(index.sizes().values()), **bench.memory(),
    }  # fmt: skip


def _query(log: data.Log, pipeline: Pipeline, per_field: bool, rng: np.random.Generator) -> Query:
    """The history of a random household, filled up from the log where it is too short."""
    history = pipeline.history(int(rng.integers(len(log.user_ids))))
    asked: dict[str, Sequence[str]] = {}
    for k, (name, entries) in enumerate(history.items()):
        wanted = HISTORY if per_field else HISTORY // len(history) + (k < HISTORY % len(history))
        items = dict.fromkeys(item for item, _ in entries[:wanted])
        while len(items) < wanted:
            items[int(log.items[rng.integers(len(log))])] = None
        asked[name] = log.item_ids.names(items)
    return Query(history=asked, exclude_items=set(asked["purchase"]), num=10)


def _lines(raw: Raw) -> list[Line]:
    kinds = {"in all": "100 history items in all", "per field": "100 history items in each field"}
    return [
        Line(f"{what}, {key}", "ms", values(raw, name, key), target=target, memory=memory(raw, name),
             note=f"{raw[name][0]['items']:,} items, 3 fields" if raw[name] else "")
        for name, what in kinds.items()
        for key, target in (("p50", 1.0), ("p99", 5.0))
    ]  # fmt: skip


SCENARIOS = [
    Scenario(
        "query",
        "a query to the index in memory: 68,000 items, 3 fields, 100 history items",
        (Task("demo", "data.prepare", {"name": "demo"}),),
        (
            Task("in all", "queries.search", {"per_field": False}),
            Task("per field", "queries.search", {"per_field": True}),
        ),
        _lines,
    )
]
