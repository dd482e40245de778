"""The doors of PredictionIO and the Universal Recommender: their answers and problems, to the letter."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents.engine import Engine
from cco.config import make_config
from model_sync.contract import Hit, Query
from model_sync.service.auth import ApiKey
from model_sync.service.store import StoreProblem
from model_sync.service.universal_recommender_query import AskedQuery
from tests.conformance.apps import EngineStore, app_of

CONFIG = make_config(
    {
        "indicators": {"purchase": {}, "view": {}},
        "priors": {"popular": "all", "recent": "none", "trending": "2d"},
        "items": {"rank": "defaultRank"},
    }
)
BOUGHT = {
    "event": "purchase",
    "entityType": "user",
    "entityId": "u1",
    "targetEntityType": "item",
    "targetEntityId": "a",
    "eventTime": "2024-05-01T12:00:00.000Z",
}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(CONFIG) as found:
        yield found


def call(
    app: FastAPI, method: str, path: str, body: object = None, headers: Mapping[str, str] = JSON
) -> httpx.Response:
    """One request; `body` is sent as JSON unless it is bytes."""

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(run())


def app(engine: Engine, keys: Sequence[ApiKey] = ()) -> FastAPI:
    store = EngineStore(engine)
    return app_of(CONFIG, store, store, keys)


def bought(user: str, item: str, **more: Any) -> dict[str, Any]:
    return {**BOUGHT, "entityId": user, "targetEntityId": item, **more}


def test_one_event(engine: Engine) -> None:
    answer = call(app(engine), "POST", "/events.json?accessKey=x", BOUGHT)
    assert answer.status_code == 201 and answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["eventId"] and len(answer.json()["eventId"]) == 32
    assert engine.history_of(user="u1")["purchase"] == ["a"]
    given = call(app(engine), "POST", "/events.json", bought("u1", "b", eventId="mine"))
    assert given.json() == {"eventId": "mine"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({**BOUGHT, "event": None}, "field event is required"),
        ({**BOUGHT, "event": ""}, "field event is required"),
        ({"event": "view", "entityId": "u"}, "field entityType is required"),
        ({**BOUGHT, "entityId": ""}, "field entityId is required"),
        ({**BOUGHT, "eventId": 7}, "eventId must be text"),
        ({**BOUGHT, "entityType": "shop"}, "entityType must be"),
        ({**BOUGHT, "eventTime": "noon"}, "noon"),
        ({**BOUGHT, "targetEntityId": None}, "item_id is missing"),
        ([BOUGHT], "must be a JSON object"),
        (None, "JSON"),
        (b"{", "not valid JSON"),
        (b'"\xff"', "not valid JSON"),
        (b"[" * 15, "not valid JSON"),
    ],
)
def test_a_wrong_event_is_400(engine: Engine, body: object, message: str) -> None:
    answer = call(app(engine), "POST", "/events.json", body)
    assert answer.status_code == 400
    assert list(answer.json()) == ["message"] and message in answer.json()["message"]
    assert engine.stats()["events_accepted"] == 0


def test_batch(engine: Engine) -> None:
    """Each event has its own outcome, in order, and a bad one harms no other."""
    batch = [
        bought("u1", "a", eventId="1"),
        bought("u1", "b", event="viwe"),
        "text",
        {"event": "$set", "entityType": "user", "entityId": "u1", "properties": {"x": 1}, "eventId": "4"},
        {"event": "$set", "entityType": "item", "entityId": "a", "properties": {"x": 1}, "eventId": "5"},
        bought("u1", "c", eventId="6"),
    ]
    answer = call(app(engine), "POST", "/batch/events.json", batch)
    assert answer.status_code == 200
    first, second, third, *rest = answer.json()
    assert first == {"status": 201, "eventId": "1"}
    assert second["status"] == 400 and "viwe" in second["message"] and list(second) == ["status", "message"]
    assert third == {"status": 400, "message": "an event must be a JSON object"}
    assert rest == [{"status": 201, "eventId": name} for name in "456"]
    assert sorted(engine.history_of(user="u1")["purchase"]) == ["a", "c"]
    assert engine.properties("a") == {"x": 1}


def test_a_batch_is_a_list_of_at_most_50(engine: Engine) -> None:
    many = [bought("u", f"i{k}") for k in range(51)]
    assert [one["status"] for one in call(app(engine), "POST", "/batch/events.json", many[:50]).json()] == [201] * 50
    too_many = call(app(engine), "POST", "/batch/events.json", many)
    assert too_many.status_code == 400
    assert too_many.json() == {"message": "Batch request must have less than or equal to 50 events"}
    assert call(app(engine), "POST", "/batch/events.json", BOUGHT).status_code == 400
    assert call(app(engine), "POST", "/batch/events.json", []).json() == []


def test_media_type(engine: Engine) -> None:
    """Also for safety: see `model_sync.service.app.body_of`."""
    for path, body in (("/events.json", BOUGHT), ("/queries.json", {"num": 1})):
        answer = call(app(engine), "POST", path, body, {"Content-Type": "text/plain"})
        assert answer.status_code == 415 and "Content-Type" in answer.json()["message"]


def test_channels_are_refused(engine: Engine) -> None:
    answer = call(app(engine), "POST", "/events.json?channel=live", BOUGHT)
    assert answer.status_code == 400 and "channel" in answer.json()["message"]


def test_status_and_reading(engine: Engine) -> None:
    assert call(app(engine), "GET", "/").json() == {"status": "alive"}
    for method, path in (("GET", "/events.json?limit=1"), ("GET", "/events/x.json"), ("DELETE", "/events/x.json")):
        answer = call(app(engine), method, path)
        assert answer.status_code == 501 and "not kept one by one" in answer.json()["message"]


WRITER = ApiKey("writer", "writing-0123456789", frozenset({"write"}))
READER = ApiKey("reader", "reading-0123456789", frozenset({"read"}))


def basic(user: str) -> dict[str, str]:
    return {**JSON, "Authorization": "Basic " + base64.b64encode(f"{user}:".encode()).decode()}


@pytest.mark.parametrize(
    ("query", "headers", "status", "message"),
    [
        ("?accessKey=writing-0123456789", JSON, 201, None),
        ("", basic("writing-0123456789"), 201, None),
        ("", {**JSON, "Authorization": "Bearer writing-0123456789"}, 201, None),
        ("", {**JSON, "X-API-Key": "writing-0123456789"}, 201, None),
        ("", JSON, 401, "Missing accessKey."),
        ("?accessKey=", JSON, 401, "Invalid accessKey."),
        ("?accessKey=writing-012345678", JSON, 401, "Invalid accessKey."),
        ("?accessKey=nobody", {**JSON, "X-API-Key": "writing-0123456789"}, 401, "Invalid accessKey."),
        ("", basic("nobody"), 401, "Invalid accessKey."),
        ("", {**JSON, "Authorization": "Basic ???"}, 401, "Invalid accessKey."),
        ("?accessKey=reading-0123456789", JSON, 403, "the API key reader does not have the scope write"),
    ],
)
def test_access_keys(engine: Engine, query: str, headers: dict[str, str], status: int, message: str | None) -> None:
    """In every place where PredictionIO takes one, for every route."""
    served = app(engine, (WRITER, READER))
    answer = call(served, "POST", f"/events.json{query}", BOUGHT, headers)
    assert answer.status_code == status
    if message is not None:
        assert answer.json() == {"message": message}
        assert engine.history_of(user="u1") == {}
    batch = call(served, "POST", f"/batch/events.json{query}", [BOUGHT], headers)
    assert batch.status_code == (200 if status == 201 else status)
    read = call(served, "GET", f"/events/x.json{query}", None, headers)
    assert read.status_code == (501 if status == 201 else status)


def test_queries_need_a_key_that_reads(engine: Engine) -> None:
    served = app(engine, (WRITER, READER))
    assert call(served, "POST", "/queries.json", {}).status_code == 401
    assert call(served, "POST", "/queries.json?accessKey=writing-0123456789", {}).status_code == 403
    assert call(served, "POST", "/queries.json?accessKey=reading-0123456789", {}).json() == {"itemScores": []}


def test_queries(engine: Engine) -> None:
    """The form of an answer, ranks, and that nothing is asked for num 0."""
    engine.ingest([bought(user, item) for user, items in {"u1": "abc", "u2": "ab", "u3": "c", "u4": "d"}.items()
                   for item in items])  # fmt: skip
    engine.put_items({"b": {"defaultRank": 7}, "never": {"defaultRank": "x"}})
    engine.drain()
    served = app(engine)
    answer = call(served, "POST", "/queries.json", {"item": "a", "withRanks": True})
    assert answer.status_code == 200 and answer.headers["x-recommendation-id"]
    scores = answer.json()["itemScores"]
    assert [hit["item"] for hit in scores] == ["b", "c", "d", "never"]
    assert scores[0]["score"] > 0 == scores[1]["score"]
    assert scores[0]["ranks"] == {"popRank": 2.0, "trendRank": 2.0, "userRank": 7.0}
    assert scores[3] == {"item": "never", "score": 0.0, "ranks": {"popRank": 0.0, "trendRank": 0.0}}
    nothing = call(served, "POST", "/queries.json", {"item": "a", "num": 0})
    assert nothing.json() == {"itemScores": []} and nothing.headers["x-recommendation-id"]
    assert call(served, "POST", "/queries.json", {"num": 1}).json()["itemScores"][0].keys() == {"item", "score"}
    for user in ("", "x" * 512, "é" * 512, "a\0"):
        assert len(call(served, "POST", "/queries.json", {"user": user}).json()["itemScores"]) == 5


def test_biases_multiply_and_add(engine: Engine) -> None:
    """The score of user and item together is the sum of theirs, each with its bias."""
    engine.ingest(
        [bought(f"u{k}", item) for k, items in enumerate(("abc", "abc", "bcd", "ad", "e", "e")) for item in items]
    )
    engine.drain()
    served = app(engine)

    def scores(**query: Any) -> dict[str, float]:
        found = call(served, "POST", "/queries.json", {**query, "returnSelf": True, "num": 100}).json()["itemScores"]
        return {hit["item"]: hit["score"] for hit in found}

    both = scores(itemSet=["e"], item="b", itemBias=3, itemSetBias=0.5)
    one, other = scores(item="b"), scores(itemSet=["e"])
    assert one["c"] > 0
    for item, score in both.items():
        assert score == pytest.approx(3 * one.get(item, 0.0) + 0.5 * other.get(item, 0.0), rel=1e-6)
    assert scores(item="b", itemSet=["b"])["c"] == pytest.approx(2 * one["c"], rel=1e-6)


@pytest.mark.parametrize("path", ["/queries.json", "/events.json", "/batch/events.json"])
def test_a_store_that_is_away_is_503(engine: Engine, path: str) -> None:
    class Away(EngineStore):
        """What an index or a log does that cannot be reached."""

        async def search(self, query: Query) -> list[Hit]:
            raise StoreProblem("the index cannot be reached: is it running?")

        async def accept(self, records: Sequence[Mapping[str, Any]]) -> list[str | None]:
            raise StoreProblem("the index cannot be reached: is it running?")

    store = Away(engine)
    bodies: dict[str, object] = {"/queries.json": {}, "/events.json": BOUGHT, "/batch/events.json": [BOUGHT]}
    answer = call(app_of(CONFIG, store, store), "POST", path, bodies[path])
    assert answer.status_code == 503 and answer.headers["retry-after"]
    assert answer.json() == {"message": "the index cannot be reached: is it running?"}


def test_a_service_without_a_sink(engine: Engine) -> None:
    answer = call(app_of(CONFIG, EngineStore(engine), None), "POST", "/events.json", BOUGHT)
    assert answer.status_code == 501 and answer.json() == {"message": "this service takes no events"}


@pytest.fixture(scope="module")
def small() -> Iterator[FastAPI]:
    """A service with a few items."""
    with Engine(CONFIG) as engine:
        engine.ingest([bought("u1", "a"), bought("u2", "a"), bought("u2", "b")])
        engine.put_items({"b": {"category": "a"}})
        engine.drain()
        yield app(engine)


_words = st.sampled_from(["", "a", "u1", "category", "purchase", "2024-05-01", "é", "\0", "x" * 600])
_scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | _words | st.text()
_anything = st.recursive(
    _scalars, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=5), part, max_size=3)
)
_names = [field.alias or name for name, field in AskedQuery.model_fields.items()]
_fields = st.lists(
    st.fixed_dictionaries(
        {"name": _words, "values": st.lists(_scalars, max_size=3), "bias": st.sampled_from([-1, 0, 1.05, 20])}
    ),
    max_size=2,
)
_ids = st.lists(_words, max_size=3)
_sane: dict[str, st.SearchStrategy[Any]] = {
    "user": _words, "item": _words, "itemSet": _ids, "blacklistItems": _ids, "fields": _fields,
    "eventNames": st.lists(st.sampled_from(["purchase", "view"])), "num": st.integers(0, 9), "from": st.integers(0, 9),
    "withRanks": st.booleans(), "currentDate": _words, "itemBias": st.floats(0, 9), "userBias": st.integers(0, 3),
}  # fmt: skip


@example({"user": "u1", "num": 0}, {})
@given(
    st.fixed_dictionaries({}, optional=_sane) | st.dictionaries(st.sampled_from(_names), _anything, max_size=4),
    st.dictionaries(st.sampled_from([*BOUGHT, "properties", "eventId"]), _anything),
)
@settings(max_examples=150)
def test_no_body_is_an_internal_error(small: FastAPI, query: dict[str, Any], odd: dict[str, Any]) -> None:
    """Whatever comes is answered, or refused with a message."""
    answer = call(small, "POST", "/queries.json", query)
    assert answer.status_code in (200, 400), answer.text
    assert ("itemScores" if answer.status_code == 200 else "message") in answer.json()
    event = call(small, "POST", "/events.json", {**BOUGHT, **odd})
    assert event.status_code in (201, 400), event.text
    assert ("eventId" if event.status_code == 201 else "message") in event.json()


def test_openapi(engine: Engine) -> None:
    """Both doors are described, with bodies and examples, and no reference leads nowhere."""
    document = call(app(engine), "GET", "/openapi.json").json()
    paths = document["paths"]
    for path in ("/events.json", "/batch/events.json", "/queries.json"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] and (content.get("example") or content.get("examples"))
    assert "$defs" not in json.dumps(document)
    assert paths["/queries.json"]["post"]["requestBody"]["content"]["application/json"]["schema"]["properties"]["from"]
