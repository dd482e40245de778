"""Queries through the service: from Elasticsearch beside the Universal Recommender's way, and from memory."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from elasticsearch import AsyncElasticsearch
from elasticsearch.helpers import async_bulk

from benchmarks import catalogue
from benchmarks.catalogue import Catalogue, category
from benchmarks.clients import Connection, milliseconds, post, serving
from benchmarks.measure import Bench, spread, status_bytes
from benchmarks.peer_service import PEER, PeerReader
from benchmarks.scenario import Result
from cco.event_data import ItemChange
from model_sync.bulk_writer import Owner, RowWriter, UserDocument, UserWriter
from model_sync.elastic_admin import create
from model_sync.elastic_client import ElasticOptions, async_client, names, sync_client
from model_sync.elastic_documents import row_documents
from model_sync.elastic_metadata import MetadataWriter, PositionedChange
from model_sync.elastic_reader import AsyncElasticReader
from model_sync.elastic_users import user_document
from model_sync.service.models import Question
from model_sync.service.questions import query_of
from model_sync.service.service import utc_now
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch

HEAP = "2g"
OWNER = Owner(0, 1, 1)
QUESTIONS, QUICK_QUESTIONS = 1_000, 30  # that count, of each kind
WARM_UP, QUICK_WARM_UP = 500, 10  # before, of each kind: the server compiles what it does often
RATE_CONNECTIONS = 4
RATE_SECONDS, QUICK_RATE_SECONDS = 8.0, 1.0
PEER_CHUNK = 500  # documents of a request
KINDS = ("service", "peer_service", "direct", "peer", "search", "peer_search")
SEGMENTS = 4  # of each index: ours comes to so many by itself, and a search takes nearly as many times as long

Ask = Callable[[int], Awaitable[int]]


@contextmanager
def node(folder: Path) -> Iterator[ElasticsearchServer]:
    """A node with the heap and flags that figures are measured with; the folder's data are taken up."""
    with ElasticsearchServer(folder.resolve(), fetch_elasticsearch(), heap=HEAP, flags=()) as server:
        yield server


def peak(server: ElasticsearchServer) -> int:
    """Bytes resident at most."""
    return status_bytes("VmHWM", server.pid)


@asynccontextmanager
async def client_of(options: ElasticOptions) -> AsyncIterator[AsyncElasticsearch]:
    """A client with connections of its own."""
    client = async_client(options)
    try:
        yield client
    finally:
        await client.close()


# -- the index ------------------------------------------------------------------------------------------


def prepare(bench: Bench) -> Result:
    """Write the catalogue into a node as workers do, and beside it as the Universal Recommender does."""
    found = catalogue.load(bench)
    with node(bench.folder / "node") as server:
        options = ElasticOptions((server.url,))
        with sync_client(options) as client:
            if create(client, found.config, names(options)).problems:
                raise RuntimeError("the index cannot be made")
        return asyncio.run(_fill(found, options))


async def _fill(found: Catalogue, options: ElasticOptions) -> Result:
    begin = time.perf_counter()
    async with client_of(options) as client:
        await _write_rows(found, client, names(options).items)
        users = UserWriter(client, names(options).users)
        documents = [
            UserDocument(user, k + 1, user_document(_told(found.history(k)), 0, True, 0, k))
            for k, user in enumerate(found.users)
        ]
        await (await users.put(documents))
        await users.close()
        changes = [ItemChange(item, "set", given) for item, given in found.properties().items()]
        writer = MetadataWriter(client, names(options).items, found.config)
        for at in range(0, len(changes), catalogue.CHUNK):
            refused = await writer.write([PositionedChange(change) for change in changes[at : at + catalogue.CHUNK]])
            if refused:
                raise RuntimeError(refused[0].reason)
        await _write_peer(found, client)
        patient = client.options(request_timeout=300)
        await patient.indices.forcemerge(index=[names(options).items, PEER], max_num_segments=SEGMENTS)
        await settled(client)
    return {"seconds": time.perf_counter() - begin}


def _told(history: dict[str, list[str]]) -> dict[str, tuple[Sequence[str], int]]:
    return {name: (ids, len(ids)) for name, ids in history.items()}


async def _write_rows(found: Catalogue, client: AsyncElasticsearch, index: str) -> None:
    rows = RowWriter(client, index)
    futures = [await rows.put(OWNER, row_documents(found.config, found.items, patches)) for patches in found.patches()]
    await asyncio.gather(*futures)
    await rows.close()


async def _write_peer(found: Catalogue, client: AsyncElasticsearch) -> None:
    """The ids of each row as an array of keywords: the weights' order is lost, and the server's idf takes its place."""
    kinds = found.config.indicator_names
    mapped = {"id": {"type": "keyword"}, "category": {"type": "keyword"}, "title": {"type": "keyword", "index": False}}
    await client.indices.create(
        index=PEER,
        settings={"number_of_shards": 1, "number_of_replicas": 0, "refresh_interval": "1s"},
        mappings={"dynamic": "strict", "properties": {**mapped, **{name: {"type": "keyword"} for name in kinds}}},
    )
    actions = (
        {"_index": PEER, "_id": item, "id": item, **given, **{n: found.row(k, t) for t, n in enumerate(kinds)}}
        for k, (item, given) in enumerate(found.properties().items())
    )
    await async_bulk(client, actions, chunk_size=PEER_CHUNK)


async def settled(client: AsyncElasticsearch) -> None:
    """Everything visible to searches, on disk, and no merge on its way."""
    await client.options(request_timeout=300).indices.flush(wait_if_ongoing=True)
    await client.indices.refresh()
    while (await client.indices.stats(metric=["merge"]))["_all"]["total"]["merges"]["current"]:
        await asyncio.sleep(0.1)


# -- questions --------------------------------------------------------------------------------------------


def query(bench: Bench) -> Result:
    """The same questions to our index and to the peer's, in turn, over one connection each.

    "service" and "peer_service" ask `cco serve`; "direct" and "peer" look the user's history up and search; "search"
    and "peer_search" are told the history.
    """
    found = catalogue.load(bench)
    bench.warm_up(lambda: None)
    with node(bench.folder / "node") as server:
        options = ElasticOptions((server.url,))
        file = bench.folder / "query.toml"
        file.write_text(f'{catalogue.TOML}[elasticsearch]\nurls = "{server.url}"\n')
        command = ["serve", "--config", str(file), "--port", "0", "--log-format", "json"]
        with (
            serving(["agents", *command], bench.folder / "query.log") as service,
            serving(["benchmarks.peer_service", *command], bench.folder / "peer.log") as peer_service,
        ):
            times = asyncio.run(_ask_all(bench, found, options, (service.url, peer_service.url)))
            result: Result = {
                "service_bytes": status_bytes("VmHWM", service.pid), "node_bytes": peak(server),
                "items": len(found.items),
            }  # fmt: skip
        for kind in KINDS:
            result[kind] = spread(times[kind])
            result |= {f"{kind}_{key}": result[kind][key] for key in ("p50", "p99")}
        return {**result, **_sizes(options)}


def _sizes(options: ElasticOptions) -> Result:
    with sync_client(options) as client:
        stats = client.indices.stats(index=[names(options).items, PEER], metric=["store", "segments", "docs"])
    return {
        "indices": {
            name: {"bytes": of["primaries"]["store"]["size_in_bytes"], "segments": of["primaries"]["segments"]["count"]}
            for name, of in stats["indices"].items()
        }
    }


async def _ask_all(
    bench: Bench, found: Catalogue, options: ElasticOptions, urls: tuple[str, str]
) -> dict[str, list[float]]:
    wait, count = (QUICK_WARM_UP, QUICK_QUESTIONS) if bench.quick else (WARM_UP, QUESTIONS)
    async with client_of(options) as client:
        services = [await Connection.to(url) for url in urls]
        readers = [reader(client, names(options), found.config) for reader in (AsyncElasticReader, PeerReader)]
        ours, theirs = (_asks(found, *pair) for pair in zip(readers, services, strict=True))
        asks = dict(zip(KINDS, (ask for pair in zip(ours, theirs, strict=True) for ask in pair), strict=True))
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for k in range(wait + count):
            for turn in range(len(KINDS)):  # none is always the first to ask for a user
                kind = KINDS[(k + turn) % len(KINDS)]
                begin = time.perf_counter()
                hits = await asks[kind](k % len(found.histories))
                times[kind].append(milliseconds(begin))
                if not hits:
                    raise RuntimeError(f"no recommendations: {kind}")
        for service in services:
            service.close()
    return {kind: of[wait:] for kind, of in times.items()}


def _asks(found: Catalogue, reader: AsyncElasticReader, connection: Connection) -> tuple[Ask, Ask, Ask]:
    """Through the service, directly, and told the history; they answer the number of hits."""
    users = found.users

    def question(user: int) -> dict[str, Any]:
        return {"user": users[user], "include": [{"field": "category", "values": [category(user)]}]}

    async def service(user: int) -> int:
        answer = await connection.post("/recommendations", question(user))
        return len(answer["items"]) if answer["history"] == found.histories[0].size else 0

    async def search(user: int, history: dict[str, list[str]] | None = None) -> int:
        asked = msgspec.convert(question(user), Question)
        wanted = query_of(asked, found.config, history or found.history(user), utc_now())
        return len(await reader.search(wanted))

    async def direct(user: int) -> int:
        return await search(user, (await reader.history(users[user])).items)

    return service, direct, search


# -- from memory ------------------------------------------------------------------------------------------


def memory_service(bench: Bench) -> Result:
    """The embedded service on one core with the catalogue in its index, asked from the other core."""
    found = catalogue.load(bench)
    bench.warm_up(lambda: None)
    cores = sorted(os.sched_getaffinity(0))
    command = ["benchmarks.embedded_server", str(bench.folder), str(cores[0])]
    with serving(command, bench.folder / "memory.log") as service:
        os.sched_setaffinity(0, cores[-1:])
        import uvloop

        seconds = QUICK_RATE_SECONDS if bench.quick else RATE_SECONDS
        requests = [
            post("/recommendations", {"user": user, "include": [{"field": "category", "values": [category(k)]}]})
            for k, user in enumerate(found.users)
        ]
        uvloop.run(_load(service.url, requests, 1, seconds / 4, found.histories[0].size))
        alone = uvloop.run(_load(service.url, requests, 1, seconds, found.histories[0].size))
        busy = uvloop.run(_load(service.url, requests, RATE_CONNECTIONS, seconds, found.histories[0].size))
        return {
            "p50": alone["p50"], "p99": alone["p99"], "rate_alone": alone["rate"], "rate": busy["rate"],
            "busy_p50": busy["p50"], "busy_p99": busy["p99"], "service_bytes": status_bytes("VmHWM", service.pid),
            "log_bytes": (bench.folder / "memory.log").stat().st_size,
        }  # fmt: skip


async def _load(url: str, requests: Sequence[bytes], connections: int, seconds: float, terms: int) -> Result:
    """Ask without a pause over so many connections."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def one(seed: int) -> None:
        connection = await Connection.to(url)
        if json.loads(await connection.exchange(requests[seed]))["history"] != terms:
            raise RuntimeError("a history is not known")
        chosen = np.random.default_rng(seed).integers(0, len(requests), 1 << 16).tolist()
        at = 0
        while (begin := time.perf_counter()) < end:
            await connection.exchange(requests[chosen[at % len(chosen)]])
            times.append(milliseconds(begin))
            at += 1
        connection.close()

    begin = time.perf_counter()
    await asyncio.gather(*(one(seed) for seed in range(connections)))
    return {**spread(times), "rate": len(times) / (time.perf_counter() - begin)}
