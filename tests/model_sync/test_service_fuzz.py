"""Whatever is sent, the answer is what the OpenAPI says, and never an internal error."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Coroutine, Iterator, Mapping
from threading import Thread
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cco.vocabulary import Vocabulary
from model_sync.contract import Hit, Query
from model_sync.elastic_admin import create
from model_sync.elastic_client import ElasticOptions, async_client, sync_client
from model_sync.elastic_client import names as aliases
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_reader import AsyncElasticReader
from model_sync.elastic_users import user_document
from model_sync.metadata import Properties
from model_sync.service.app import make_service
from model_sync.service.elastic_store import ElasticStore
from model_sync.service.models import QUESTION_NAMES
from model_sync.service.universal_recommender import universal_recommender
from tests.model_sync.reference import patches
from tests.model_sync.service_world import CONFIG, HISTORIES, ITEMS, ROWS, World
from tests.servers.elasticsearch import ElasticsearchServer

WORLD = World()
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", WORLD.app)
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))

scalars: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(
        ["u", "buy", "view", "2024-01-01", "phone", 1e308, -0.0, 2**53, 10**30, "\ud800", "\0"]
    )
)  # fmt: skip
names = st.sampled_from([*QUESTION_NAMES, "buy", "view", "field", "values", "min", "max", "factor", "match"]) | st.text(
    max_size=5
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
questions = st.dictionaries(st.sampled_from(QUESTION_NAMES), values, max_size=4)


@SCHEMA.parametrize()
@QUICK
def test_the_service_is_as_its_openapi_says(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


def send(path: str, content: bytes) -> int:
    response = WORLD.request("POST", path, content=content, headers={"Content-Type": "application/json"})
    if response.status_code not in (200, 207):
        problem = response.json()
        assert problem["status"] == response.status_code and problem["detail"]
    return response.status_code


@pytest.mark.parametrize("path", ["/recommendations", "/events"])
@settings(max_examples=150, deadline=None)
@given(
    st.one_of(st.binary(max_size=60), questions.map(json.dumps).map(str.encode), values.map(json.dumps).map(str.encode))
)
def test_no_body_makes_an_internal_error(path: str, content: bytes) -> None:
    assert send(path, content) in (200, 207, 400, 422)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_a_good_body_does_either(data: st.DataObject) -> None:
    good = json.dumps(
        {
            "user": "u", "num": 5, "include": [{"field": "category", "values": ["device", 1, True]}],
            "ranges": [{"field": "price", "min": 1, "max": 5e2}], "boost": [{"field": "a", "values": [1], "factor": 2}],
            "indicators": {"buy": 1.5}, "current_date": "2024-01-01T00:00:00Z", "explain": True,
        }
    ).encode()  # fmt: skip
    at = data.draw(st.integers(0, len(good) - 1))
    until = data.draw(st.integers(at, min(at + 8, len(good))))
    assert send("/recommendations", good[:at] + data.draw(st.binary(max_size=3)) + good[until:]) in (200, 400, 422)


# -- on Elasticsearch ---------------------------------------------------------------------------------------


class StoreElsewhere:
    """An ElasticStore on a loop of its own: each request of schemathesis comes on another."""

    store: ElasticStore

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    async def there(self, work: Coroutine[Any, Any, Any]) -> Any:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self.loop))

    async def search(self, query: Query) -> list[Hit]:
        found: list[Hit] = await self.there(self.store.search(query))
        return found

    async def history(self, user: str) -> Mapping[str, list[str]]:
        found: Mapping[str, list[str]] = await self.there(self.store.history(user))
        return found

    async def properties(self, item: str) -> Properties | None:
        found: Properties | None = await self.there(self.store.properties(item))
        return found

    async def problem(self) -> str | None:
        found: str | None = await self.there(self.store.problem())
        return found


STORE = StoreElsewhere()
ON_ELASTICSEARCH = make_service(CONFIG, STORE, None, doors=(universal_recommender(needs_key=False),))
QUESTIONS = schemathesis.openapi.from_asgi("/openapi.json", ON_ELASTICSEARCH).include(
    path_regex="^/(recommendations|queries.json|ready)$"
)
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def filled(elasticsearch: ElasticsearchServer) -> Iterator[None]:
    """The node has the shop of `service_world`, and the store reads it."""
    options = ElasticOptions((elasticsearch.url,), prefix=f"t{uuid.uuid4().hex[:8]}-")
    client, thread, items = async_client(options), Thread(target=STORE.loop.run_forever, daemon=True), Vocabulary()
    with sync_client(options) as sync:
        create(sync, CONFIG, aliases(options))
        index = ElasticIndex(sync, aliases(options).items, CONFIG, items)
        index.apply(patches(CONFIG, items, ROWS))
        index.put_items(ITEMS)
        index.flush()
        for user, told in HISTORIES.items():
            history = {name: (ids, len(ids)) for name, ids in told.items() if name in CONFIG.indicators}
            lines: Any = [{"index": {"_id": user}}, json.loads(user_document(history, 1_700_000_000, True, 0, 1))]
            assert not sync.bulk(index=aliases(options).users, operations=lines)["errors"]
        thread.start()
        STORE.store = ElasticStore(AsyncElasticReader(client, aliases(options), CONFIG))
        yield
        asyncio.run_coroutine_threadsafe(client.close(), STORE.loop).result()
        STORE.loop.call_soon_threadsafe(STORE.loop.stop)
        thread.join()
        sync.indices.delete(index=list(sync.indices.get_alias(index=f"{options.prefix}*")))
        sync.indices.delete_index_template(name=f"{options.prefix}*")


@QUESTIONS.parametrize()
@settings(QUICK, max_examples=20)
def test_so_it_is_on_elasticsearch(filled: None, case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(questions)
def test_no_question_is_too_much_for_elasticsearch(filled: None, question: dict[str, Any]) -> None:
    async def ask() -> int:
        transport = httpx.ASGITransport(ON_ELASTICSEARCH)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return (await client.post("/recommendations", content=json.dumps(question), headers=JSON)).status_code

    assert asyncio.run(ask()) in (200, 400, 422)
