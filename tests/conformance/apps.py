"""The real service with both doors: over the engine and its index in memory, or over a real Elasticsearch."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from agents.engine import Engine
from cco.config import Config
from cco.rows import Patches, Rows
from model_sync.contract import Hit, Query
from model_sync.elastic_admin import create
from model_sync.elastic_client import ElasticOptions, IndexNames, async_client, names, sync_client
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_reader import AsyncElasticReader
from model_sync.elastic_users import user_document
from model_sync.metadata import Properties
from model_sync.service.app import make_service
from model_sync.service.auth import ApiKey
from model_sync.service.prediction_io import prediction_io_router
from model_sync.service.store import EventSink, Store
from model_sync.service.universal_recommender import universal_recommender

BATCH = 50
NamedRows = dict[tuple[str, str], dict[str, float]]  # (item, indicator) -> feature -> weight, as published


class EngineStore:
    """An engine as store and as sink of the service."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def search(self, query: Query) -> list[Hit]:
        return self.engine.index.search(query)

    async def history(self, user: str) -> Mapping[str, list[str]]:
        return self.engine.history_of(user=user)

    async def properties(self, item: str) -> Properties | None:
        return self.engine.index.properties(item)

    async def problem(self) -> str | None:
        return None

    async def accept(self, records: Sequence[Mapping[str, Any]]) -> list[str | None]:
        verdicts: list[str | None] = [None] * len(records)
        for rejection in self.engine.ingest(records).rejected:
            verdicts[rejection.line - 1] = rejection.reason
        self.engine.drain()
        return verdicts


class ElasticStore:
    """What workers have published, as the store of the service."""

    def __init__(self, reader: AsyncElasticReader) -> None:
        self._reader = reader

    async def search(self, query: Query) -> list[Hit]:
        return await self._reader.search(query)

    async def history(self, user: str) -> Mapping[str, list[str]]:
        return (await self._reader.history(user)).items

    async def properties(self, item: str) -> Properties | None:
        return await self._reader.properties(item)

    async def problem(self) -> str | None:
        return None


def app_of(config: Config, store: Store, events: EventSink | None, keys: Sequence[ApiKey] = ()) -> FastAPI:
    """The service with both doors."""
    return make_service(config, store, events, keys, doors=(prediction_io_router, universal_recommender()))


async def send(app: FastAPI, records: Sequence[Mapping[str, Any]]) -> None:
    """Send events as a program of PredictionIO does; all have to be accepted."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
        for at in range(0, len(records), BATCH):
            answer = await client.post("/batch/events.json?accessKey=any", json=list(records[at : at + BATCH]))
            assert answer.status_code == 200, answer.text
            assert [one["status"] for one in answer.json()] == [201] * len(records[at : at + BATCH]), answer.text


@asynccontextmanager
async def memory_app(config: Config, records: Sequence[Mapping[str, Any]]) -> AsyncIterator[tuple[FastAPI, NamedRows]]:
    """The service over an engine that has learned from these records, which came through its door."""
    with Engine(config) as engine:
        store = EngineStore(engine)
        app = app_of(config, store, store)
        await send(app, records)
        yield app, named(engine, engine.index.rows())


@asynccontextmanager
async def elastic_app(
    config: Config, records: Sequence[Mapping[str, Any]], url: str
) -> AsyncIterator[tuple[FastAPI, NamedRows]]:
    """The service over indices in Elasticsearch with the model of an engine that has learned from these records."""
    options = ElasticOptions((url,), prefix=f"conformance-{uuid.uuid4().hex[:8]}-")
    with Engine(config) as engine, published_indices(engine, options) as index_names:
        await send(app_of(config, EngineStore(engine), EngineStore(engine)), records)
        rows = named(engine, publish(engine, options).rows())
        client = async_client(options)
        try:
            yield app_of(config, ElasticStore(AsyncElasticReader(client, index_names, config)), None), rows
        finally:
            await client.close()


@contextmanager
def published_indices(engine: Engine, options: ElasticOptions) -> Iterator[IndexNames]:
    """New indices, gone afterwards."""
    client = sync_client(options)
    found = names(options)
    create(client, engine.config, found)
    try:
        yield found
    finally:
        client.indices.delete(index=[f"{name}-000001" for name in found])
        client.close()


def named(engine: Engine, rows: Rows) -> NamedRows:
    """Rows of the indicators, by names."""
    names = engine.config.indicator_names
    found: NamedRows = {}
    for r, (item, field) in enumerate(zip(rows.item.tolist(), rows.field.tolist(), strict=True)):
        if field < len(names):
            entries = slice(int(rows.start[r]), int(rows.start[r + 1]))
            features = engine.items.names(rows.feature[entries].tolist())
            weights = rows.weight[entries].tolist()
            found[engine.items.name(item), names[field]] = dict(zip(features, weights, strict=True))
    return found


def publish(engine: Engine, options: ElasticOptions) -> ElasticIndex:
    """Rows, metadata and users' histories of an engine into Elasticsearch, visible to searches."""
    client, found = sync_client(options), names(options)
    index = ElasticIndex(client, found.items, engine.config, engine.items)
    index.apply(Patches((0,), engine.rows()))
    items = engine.items.names(range(len(engine.items)))
    known = {item: engine.index.properties(item) for item in items}
    index.put_items({item: properties for item, properties in known.items() if properties is not None})
    index.flush()
    for user in engine.users.names(range(len(engine.users))):
        history = {name: (ids, len(ids)) for name, ids in engine.history_of(user=user).items()}
        client.index(index=found.users, id=user, document=json.loads(user_document(history, 0, True, 0, 1)))
    return index
