"""Partial updates a second into Elasticsearch: our writer, one request for each row, and the client's parallel bulk."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from elasticsearch import Elasticsearch
from elasticsearch.helpers import parallel_bulk

from benchmarks.catalogue import TOP, draw_weights
from benchmarks.elastic import client_of, node, peak, settled
from benchmarks.measure import Bench, cpu_seconds
from benchmarks.scenario import Result
from cco.config import Config, parse_config
from cco.rows import Patches, Rows
from cco.vocabulary import Vocabulary
from model_sync.bulk_writer import Owner, RowWriter
from model_sync.elastic_admin import create
from model_sync.elastic_client import ElasticOptions, names, sync_client
from model_sync.elastic_documents import RowDocument, row_documents

DOCUMENTS, QUICK_DOCUMENTS = 30_000, 600
WARM_UP, ROUNDS = 1, 2  # times that each document changes after the first fill: before time is taken, and then
NAIVE_DOCUMENTS, QUICK_NAIVE = 3_000, 60  # of the first round, and no more: it would take minutes
THREADS, BULK_DOCUMENTS = 4, 500
PUBLISHED = 128  # items of a patch, as an item partition counts them
PAGE = 1_000
TOML = 'primary = "buy"\n[indicators.buy]\n[indicators.view]\n'
OWNER = Owner(0, 1, 1)

Expected = dict[str, dict[str, dict[str, float]]]  # by item and indicator, feature -> weight


class Source:
    """The same changes for every writer: each round gives every document other rows under both indicators."""

    def __init__(self, documents: int) -> None:
        self.config: Config = parse_config(TOML, "benchmark")
        self.kinds = self.config.indicator_names
        self.documents = documents
        self.items = Vocabulary()
        self.items.intern([f"item-{k}" for k in range(documents)])

    def patches(self, turn: int, limit: int | None = None) -> list[Patches]:
        """A round, PUBLISHED items at a time, of the first `limit` documents.

        -WARM_UP is the fill; those up to 0 are not timed.
        """
        rng = np.random.default_rng([WARM_UP + turn, 7])
        kinds, found = len(self.kinds), []
        for begin in range(0, limit or self.documents, PUBLISHED):
            some = min(PUBLISHED, (limit or self.documents) - begin)
            shape = (some * kinds, TOP)
            first = rng.integers(0, self.documents, (some * kinds, 1))
            steps = np.cumsum(rng.integers(1, max(2, self.documents // TOP), shape), axis=1)
            rows = Rows(
                np.repeat(np.arange(begin, begin + some, dtype=np.uint32), kinds),
                np.tile(np.arange(kinds, dtype=np.uint8), some),
                np.arange(0, some * kinds * TOP + 1, TOP, dtype=np.int64),
                ((first + steps) % self.documents).astype(np.uint32).ravel(),
                draw_weights(rng, shape).ravel(),
            )
            found.append(Patches((WARM_UP + turn,), rows))
        return found

    def encoded(self, patches: Patches) -> list[RowDocument]:
        """As workers hand them to the writer."""
        return row_documents(self.config, self.items, patches)

    def decoded(self, turn: int, limit: int | None = None) -> Expected:
        """As objects, for those who want them and for comparing."""
        return {
            document.item: {name: msgspec.json.decode(row)[0] for name, row in document.fields.items()}
            for patches in self.patches(turn, limit)
            for document in self.encoded(patches)
        }


def ours(bench: Bench) -> Result:
    """RowWriter, the one that has filled the index, from patches on: encoding is in the time.

    The node sees the same rounds before with every writer: it becomes twice as fast as it compiles what it does.
    """

    def work(source: Source, client: Elasticsearch, options: ElasticOptions) -> tuple[float, int, Expected]:
        seconds = asyncio.run(_write(source, options, range(-WARM_UP, ROUNDS + 1)))
        return sum(seconds[-ROUNDS:]), ROUNDS * source.documents * len(source.kinds), source.decoded(ROUNDS)

    return _measured(bench, work, filled=False)


async def _write(source: Source, options: ElasticOptions, turns: Sequence[int]) -> list[float]:
    """Seconds of each round; one begins when the one before is stored, so that nothing is coalesced.

    What the fill has left the node to merge is merged before a round whose time counts, with every writer.
    """
    rounds, found = [source.patches(turn) for turn in turns], []
    async with client_of(options) as client:
        writer = RowWriter(client, names(options).items)
        for turn, patches in zip(turns, rounds, strict=True):
            if turn == 1:
                await settled(client)
            begin = time.perf_counter()
            futures = []
            for some in patches:
                encoded = await asyncio.to_thread(source.encoded, some)  # workers do it on a thread too
                futures.append(await writer.put(OWNER, encoded))
            await asyncio.gather(*futures)
            found.append(time.perf_counter() - begin)
        if writer.stats.counts.coalesced:
            raise RuntimeError(f"{writer.stats.counts.coalesced} documents were coalesced: fewer were written")
        await writer.close()
    return found


async def _settle(options: ElasticOptions) -> None:
    async with client_of(options) as client:
        await settled(client)


def naive(bench: Bench) -> Result:
    """One request after the other, each for one row."""

    def work(source: Source, client: Elasticsearch, options: ElasticOptions) -> tuple[float, int, Expected]:
        changes = source.decoded(1, QUICK_NAIVE if bench.quick else NAIVE_DOCUMENTS)
        begin = time.perf_counter()
        for item, rows in changes.items():
            for name, row in rows.items():
                client.update(index=names(options).items, id=item, doc=_partial({name: row}))
        return time.perf_counter() - begin, len(changes) * len(source.kinds), source.decoded(0) | changes

    return _measured(bench, work)


def bulk_helper(bench: Bench, beforehand: bool) -> Result:
    """`elasticsearch.helpers.parallel_bulk` with both rows of a document in one action.

    From the same patches as ours, or (`beforehand`) with all actions there before time is taken.
    """

    def work(source: Source, client: Elasticsearch, options: ElasticOptions) -> tuple[float, int, Expected]:
        index = names(options).items
        patches = [source.patches(turn) for turn in range(1, ROUNDS + 1)]
        rounds: list[Iterable[Any]] = [_actions(source, some, index) for some in patches]
        if beforehand:
            rounds = [list(actions) for actions in rounds]
        begin = time.perf_counter()
        for some in rounds:
            answers = parallel_bulk(
                client, some, thread_count=THREADS, queue_size=THREADS, chunk_size=BULK_DOCUMENTS, raise_on_error=True
            )
            deque(answers, maxlen=0)
        seconds = time.perf_counter() - begin
        return seconds, ROUNDS * source.documents * len(source.kinds), source.decoded(ROUNDS)

    return _measured(bench, work)


def _actions(source: Source, patches: Sequence[Patches], index: str) -> Iterator[dict[str, Any]]:
    """As somebody would write it who has these patches and the helper."""
    kinds = len(source.kinds)
    for rows in (some.rows for some in patches):
        features, weights = source.items.names(rows.feature.tolist()), rows.weight.tolist()
        entries = [dict(zip(features[b:e], weights[b:e], strict=True)) for b, e in pairwise(rows.start.tolist())]
        for at, item in zip(range(0, len(rows), kinds), source.items.names(rows.item[::kinds].tolist()), strict=True):
            changed = dict(zip(source.kinds, entries[at : at + kinds], strict=True))
            yield {"_op_type": "update", "_index": index, "_id": item, "doc": _partial(changed)}


def _partial(rows: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {"rows": {name: [row] for name, row in rows.items()}, "filled": dict.fromkeys(rows, True)}


Work = Callable[[Source, Elasticsearch, ElasticOptions], tuple[float, int, Expected]]


def _measured(bench: Bench, work: Work, filled: bool = True) -> Result:
    """A node of its own, filled in the same way for all of them: rows a second, and what is not as it should be."""
    bench.warm_up(lambda: None)
    source = Source(QUICK_DOCUMENTS if bench.quick else DOCUMENTS)
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="writer-") as name, node(Path(name)) as server:
        options = ElasticOptions((server.url,))
        with sync_client(options) as client:
            if create(client, source.config, names(options)).problems:
                raise RuntimeError("the index cannot be made")
            if filled:
                asyncio.run(_write(source, options, range(-WARM_UP, 1)))
                asyncio.run(_settle(options))
            bench.start()
            seconds, rows, wanted = work(source, client, options)
            account = bench.memory() | {"cpu_seconds": cpu_seconds(), "node_cpu_seconds": cpu_seconds(server.pid)}
            lost = _differing(client, names(options).items, wanted)
        return {
            "rate": rows / seconds, "seconds": seconds, "rows": rows, "documents": len(wanted), "lost": lost,
            "node_bytes": peak(server), **account,
        }  # fmt: skip


def _differing(client: Elasticsearch, index: str, wanted: Expected) -> int:
    """Documents that are not there, or have other rows."""
    items, found = list(wanted), 0
    for at in range(0, len(items), PAGE):
        ids = items[at : at + PAGE]
        answer = client.mget(index=index, ids=ids, source_includes=["rows"])
        for item, document in zip(ids, answer["docs"], strict=True):
            rows = document["_source"]["rows"] if document["found"] else {}
            found += {name: row[0] for name, row in rows.items() if row} != wanted[item]
    return found
