"""`cco serve` beside workers: recommendations from Elasticsearch, events into Kafka."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from agents.elastic import elastic_options
from agents.health.model_age import ModelAge
from agents.health.system_mode import SystemMode
from agents.serving.embedded import Server, doors, listen, stopped_by_signals, url_of
from agents.serving.kafka_events import KafkaEvents
from agents.serving.settings import ServeSettings, check_reach
from agents.settings import Settings
from cco.config import Config
from model_sync.elastic_client import async_client, names
from model_sync.elastic_reader import AsyncElasticReader
from model_sync.service.app import make_service
from model_sync.service.auth import ApiKey
from model_sync.service.elastic_store import ElasticStore


def stack_service(
    config: Config, settings: Settings, keys: Sequence[ApiKey] = (), open_queries: bool = False
) -> FastAPI:
    """The query service over Elasticsearch and Kafka. Raises ConfigError where Elasticsearch is not set up."""
    options = elastic_options(settings)
    client, events = async_client(options), KafkaEvents(config, settings)
    store = ElasticStore(AsyncElasticReader(client, names(options), config))
    age = ModelAge(client, names(options), config, settings)
    mode, registry = SystemMode(config, settings), CollectorRegistry()
    registry.register(mode)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.ensure_future(age.follow_forever())
        with mode.following():
            yield
        following.cancel()
        await events.close()
        await client.close()

    return make_service(
        config, store, events, keys, registry=registry, model_age=age, doors=doors(open_queries), lifespan=lifespan
    )


def serve_stack(
    config: Config,
    settings: Settings,
    serving: ServeSettings,
    keys: Sequence[ApiKey],
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or Ctrl-C, also while Elasticsearch or Kafka is away. Raises ConfigError, ServeProblem."""
    check_reach(serving.host, list(keys))
    app = stack_service(config, settings, keys, serving.open_queries)
    listener = listen(serving.host, serving.port)
    gc.collect()
    gc.freeze()  # what is there now stays: looking through it again and again is what makes answers late
    with listener, stopped_by_signals():
        Server(app, lambda: say(f"serving {settings.elasticsearch_urls} on {url_of(listener)}")).run(sockets=[listener])
