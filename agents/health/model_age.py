"""How old the model is that questions are answered from, for the query service beside workers."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from elasticsearch import ApiError, AsyncElasticsearch, TransportError

from agents.health.reports import model_as_of, rebuilt_as_of, stream_as_of
from agents.settings import Settings
from cco.config import Config
from model_sync.elastic_client import IndexNames
from model_sync.elastic_status import read_async, status_index

EVERY = 5.0  # seconds between two looks


class ModelAge:
    """Looks every few seconds; between two looks, and while nothing can be seen, the model grows older."""

    def __init__(self, client: AsyncElasticsearch, names: IndexNames, config: Config, settings: Settings) -> None:
        self._client, self._names = client, names
        self._status = status_index(settings.elasticsearch_index_prefix)
        self._partitions = config.retention.source_partitions, settings.item_partitions
        self._as_of: float | None = None

    def __call__(self) -> float | None:
        """Seconds since which events may be missing in the model; None while that is not known."""
        return None if self._as_of is None else max(0.0, time.time() - self._as_of)

    async def follow_forever(self) -> None:
        """Until it is cancelled. Whatever goes wrong, questions are answered."""
        while True:
            with suppress(ApiError, TransportError):
                self._as_of = await self._look() or self._as_of
            await asyncio.sleep(EVERY)

    async def _look(self) -> float | None:
        stream = stream_as_of(await read_async(self._client, self._status), *self._partitions)
        found = await self._client.indices.get_mapping(index=self._names.items)
        metas = [of["mappings"].get("_meta", {}).get("cco", {}) for of in found.body.values()]
        return model_as_of(stream, [rebuilt_as_of(meta.get("rebuild")) for meta in metas])
