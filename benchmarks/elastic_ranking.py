"""Queries through Elasticsearch and in memory answered alike; and the documents that are never sent."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from agents.demo.data import demo_config
from benchmarks import data
from benchmarks.elastic import client_of, node, peak
from benchmarks.measure import Bench
from benchmarks.scenario import Result
from cco.config import Config, parse_config
from cco.pipeline import Pipeline
from cco.rows import Patches
from model_sync.bulk_writer import Owner, RowWriter
from model_sync.contract import Query
from model_sync.elastic_admin import create
from model_sync.elastic_client import ElasticOptions, names, sync_client
from model_sync.elastic_documents import row_documents
from model_sync.elastic_index import ElasticIndex
from model_sync.memory import MemoryIndex
from model_sync.questions import latest
from tests.model_sync.ranking import differing, random_queries

QUERIES, QUICK_QUERIES = 2_000, 100
OWNER = Owner(0, 1, 1)
PUBLISH_ITEMS = 128  # as an item partition of a worker counts them
EVENTS, QUICK_EVENTS = 16_384, 1_024  # of a micro-batch
QUICK_LIMIT = 4_096  # events

PROPERTIES: dict[str, list[Any]] = {
    "category": [f"category {k}" for k in range(20)],
    "tags": ["new", "sale", "gift", "last one"],
    "price": [0.5, 1.25, 4, 10, 99.9, 250],
    "added": ["2010-12-01", "2011-03-15T12:00:00Z", "2011-08-01", "2011-12-09"],
    "in stock": [True, False],
}


# -- the same ranking -------------------------------------------------------------------------------------


def ranking(bench: Bench) -> Result:
    """The model of online-retail in both indices, with metadata; every hit of every query is compared."""
    log = data.load(bench, "online-retail")
    config = parse_config('primary = "purchase"\n[priors]\ntrending = "30d"\n', "benchmark")
    bench.warm_up(lambda: None)
    pipeline = Pipeline(config, log.user_ids, log.item_ids)
    for batch in log.batches():
        pipeline.ingest(batch, 0.0)
    found = list(pipeline.drain(0.0))
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="ranking-") as name, node(Path(name)) as server:
        options = ElasticOptions((server.url,))
        with sync_client(options) as client:
            if create(client, config, names(options)).problems:
                raise RuntimeError("the index cannot be made")
            memory = MemoryIndex(config, log.item_ids)
            elastic = ElasticIndex(client, names(options).items, config, log.item_ids)
            metadata = _metadata(log)
            for index in (memory, elastic):
                for patches in found:
                    index.apply(patches)
                index.put_items(metadata)
                index.delete_items(list(metadata)[::100])
                index.flush()
            asked = list(_queries(config, log, pipeline, QUICK_QUERIES if bench.quick else QUERIES))
            begin = time.perf_counter()
            different = differing(memory, elastic, asked)
            seconds = time.perf_counter() - begin
            hits = sum(len(memory.search(query)) for query in asked)
        if different:
            print(f"{len(different)} queries differ, the first is {different[0][0]}")
        return {
            "queries": len(asked), "differing": len(different), "hits": hits, "items": len(log.item_ids),
            "seconds": seconds, "node_bytes": peak(server),
        }  # fmt: skip


def _metadata(log: data.Log) -> dict[str, dict[str, Any]]:
    """Some properties of most items."""
    rng = np.random.default_rng(3)
    found = {}
    for item in log.item_ids.names(range(len(log.item_ids))):
        given = {name: values[rng.integers(len(values))] for name, values in PROPERTIES.items() if rng.random() < 0.9}
        if rng.random() < 0.5:
            given["tags"] = [PROPERTIES["tags"][k] for k in rng.permutation(4)[:2].tolist()]
        found[item] = given
    return found


def _queries(config: Config, log: data.Log, pipeline: Pipeline, number: int) -> Iterator[Query]:
    """Random ones; every other one has a user's own history instead of random items."""
    items = log.item_ids.names(range(len(log.item_ids)))
    rng = np.random.default_rng(6)
    for query, own in zip(random_queries(config, items, PROPERTIES, number), cycle((True, False)), strict=False):
        if own:
            history = pipeline.history(int(rng.integers(len(log.user_ids))))
            told = {name: log.item_ids.names([item for item, _ in entries]) for name, entries in history.items()}
            yield replace(query, history=latest(told), exclude_items=told["purchase"], weights={})
        else:
            yield query


# -- what is never sent -----------------------------------------------------------------------------------


def saved(bench: Bench) -> Result:
    """The demo's stream into Elasticsearch at full speed; after each micro-batch rows for a bounded time.

    The writer's queue is full most of the time, so rows wait to be counted: at the end all of them are.
    """
    log = data.load(bench, "demo")
    bench.warm_up(lambda: None)
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="saved-") as name, node(Path(name)) as server:
        options = ElasticOptions((server.url,))
        with sync_client(options) as client:
            if create(client, demo_config(), names(options)).problems:
                raise RuntimeError("the index cannot be made")
        return {**asyncio.run(_Stream(log, options).run(bench.quick)), "node_bytes": peak(server)}


class _Stream:
    """Counting on a thread of its own, while documents are on their way."""

    def __init__(self, log: data.Log, options: ElasticOptions) -> None:
        self._log, self._options = log, options
        self._config = demo_config()
        self._pipeline = Pipeline(self._config, log.user_ids, log.item_ids)
        self._compute = ThreadPoolExecutor(1)
        self._fields = self._put = self._prior_fields = 0
        self._futures: list[asyncio.Future[None]] = []

    async def run(self, quick: bool) -> Result:
        """All of it."""
        begin = time.perf_counter()
        async with client_of(self._options) as client:
            writer = RowWriter(client, names(self._options).items)
            for batch in self._log.batches(*((QUICK_EVENTS, QUICK_LIMIT) if quick else (EVENTS, None))):
                await self._do(self._pipeline.ingest, batch, time.monotonic())
                end = time.monotonic() + (0.01 if quick else 0.1)
                while self._pipeline.due() and time.monotonic() < end:
                    await self._send(writer, await self._do(self._pipeline.publish, time.monotonic(), PUBLISH_ITEMS))
            streamed = time.perf_counter() - begin
            rest = self._pipeline.drain(time.monotonic())
            while (patches := await self._do(next, rest, None)) is not None:
                await self._send(writer, [patches])
            await asyncio.gather(*self._futures)
            counts = writer.stats.counts
            await writer.close()
        self._compute.shutdown()
        counted = self._pipeline.rows_counted
        rows = self._fields - self._prior_fields
        events = min(len(self._log), QUICK_LIMIT) if quick else len(self._log)
        return {
            "events": events, "rows_counted": counted, "rows_sent": rows, "rows_unchanged": counted - rows,
            "fields_sent": self._fields, "documents_put": self._put, "documents_coalesced": counts.coalesced,
            "documents_stored": counts.stored, "stream_seconds": streamed, "seconds": time.perf_counter() - begin,
        }  # fmt: skip

    async def _do(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._compute, work, *arguments)

    async def _send(self, writer: RowWriter, found: Sequence[Patches]) -> None:
        for patches in found:
            documents = await self._do(row_documents, self._config, self._log.item_ids, patches)
            self._fields += len(patches.rows)
            self._prior_fields += int(np.count_nonzero(patches.rows.field == len(self._config.indicator_names)))
            self._put += len(documents)
            self._futures.append(await writer.put(OWNER, documents))
