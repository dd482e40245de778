"""Reading for the query service, asynchronously: recommendations, users' histories, properties."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import quote

import msgspec
from elasticsearch import ApiError, AsyncElasticsearch

from cco.config import Config
from cco.vocabulary import id_problem
from model_sync.contract import Hit, Query
from model_sync.elastic_client import ElasticProblem, IndexNames, elastic_errors
from model_sync.elastic_index import known_properties
from model_sync.elastic_mapping import KINDS, format_problem
from model_sync.elastic_query import Body, SearchFailed, of_part, plan, too_large
from model_sync.elastic_users import UserHistory, user_history
from model_sync.metadata import Properties

_FORMAT = "*.mappings._meta.cco.format"
_HEADERS = {"accept": "application/json", "content-type": "application/json"}
_encode = msgspec.json.Encoder().encode  # a question of 60 terms is encoded in a tenth of the client's time


class AsyncElasticReader:
    """Searches the items and looks up users. Raises ElasticProblem where Elasticsearch cannot answer."""

    def __init__(self, client: AsyncElasticsearch, names: IndexNames, config: Config) -> None:
        # a connection that was closed just when it was to be used again: reading may be repeated
        self._client, self._names, self._config = client.options(max_retries=1), names, config
        items, users = (quote(name, safe="") for name in names)
        self._search_path, self._users_path = f"/{items}/_search", f"/{users}/_mget"

    async def search(self, query: Query) -> list[Hit]:
        """The best hits, best first. Raises QueryError too, also for what is too large for this Elasticsearch."""
        steps = plan(query, self._config)
        answers: Any = None
        with elastic_errors():
            while True:
                try:
                    bodies = steps.send(answers)
                except StopIteration as done:
                    return cast(list[Hit], done.value)
                except SearchFailed as error:
                    raise ElasticProblem(str(error)) from None
                try:
                    answers = await self._answers(bodies)
                except ApiError as error:
                    smaller = too_large(query, error.body)
                    if smaller is not None:
                        raise smaller from None
                    raise

    async def _answers(self, bodies: list[Body]) -> list[Mapping[str, Any]]:
        """In one request, a plain one where there is one thing to ask."""
        if len(bodies) > 1:
            searches = [part for body in bodies for part in ({}, body)]
            found = await self._client.msearch(index=self._names.items, searches=searches)
            return cast(list[Mapping[str, Any]], found["responses"])
        return [await self._post(self._search_path, bodies[0])]

    async def _post(self, path: str, body: Body) -> Mapping[str, Any]:
        """As the client's own methods do, without what they do to find out what is asked."""
        answer = await self._client.perform_request("POST", path, headers=_HEADERS, body=_encode(body))
        return cast(Mapping[str, Any], answer.body)

    async def history(self, user: str) -> UserHistory:
        """What is retained of a user as of the last write, visible to searches or not."""
        if id_problem(user) is not None:
            return UserHistory()
        with elastic_errors():
            [found] = (await self._post(self._users_path, {"ids": [user]}))["docs"]
        if "error" in found:
            raise ElasticProblem(f"the history of a user cannot be read: {of_part(found['error'])}")
        return user_history(found["_source"] if found["found"] else None)

    async def check_formats(self) -> None:
        """Raises ElasticProblem if an index has documents of another format than those that are read here."""
        for alias, kind in zip(self._names, KINDS, strict=True):
            with elastic_errors():
                of = await self._client.indices.get_mapping(index=alias, filter_path=_FORMAT)
            for index, found in of.body.items():
                problem = format_problem(index, kind, found["mappings"]["_meta"]["cco"]["format"], "reads")
                if problem is not None:
                    raise ElasticProblem(problem)

    async def properties(self, item: str) -> Properties | None:
        """Metadata of an item as of the last write; None where it has none or is deleted."""
        if id_problem(item) is not None:
            return None
        with elastic_errors():
            answer = await self._client.mget(
                index=self._names.items, ids=[item], source_includes=["known", "properties"]
            )
        return known_properties(answer["docs"][0])
