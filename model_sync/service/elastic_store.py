"""A store of the service on Elasticsearch: what the reader finds, and its problems as the service's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from model_sync.contract import Hit, Query
from model_sync.elastic_client import ElasticProblem
from model_sync.elastic_reader import AsyncElasticReader
from model_sync.metadata import Properties
from model_sync.service.store import StoreProblem


@contextmanager
def _problems() -> Iterator[None]:
    try:
        yield
    except ElasticProblem as error:
        raise StoreProblem(str(error)) from error


class ElasticStore:
    """See `Store`. Users' histories are as of the last write, whether searches see it yet or not."""

    def __init__(self, reader: AsyncElasticReader) -> None:
        self._reader = reader

    async def search(self, query: Query) -> list[Hit]:
        with _problems():
            return await self._reader.search(query)

    async def history(self, user: str) -> Mapping[str, list[str]]:
        with _problems():
            return (await self._reader.history(user)).items

    async def properties(self, item: str) -> Properties | None:
        with _problems():
            return await self._reader.properties(item)

    async def problem(self) -> str | None:
        """Asks both indices for as little as there is, and of which format they are."""
        try:
            await self.search(Query(num=1, fields=()))
            await self.history("-")
            with _problems():
                await self._reader.check_formats()
        except StoreProblem as error:
            return str(error)
        return None
