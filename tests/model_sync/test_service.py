"""The query service: what is asked by HTTP is what the index answers, and what is wrong is said with its place."""

from __future__ import annotations

import re
import uuid
from typing import Any

import httpx
import pytest

from model_sync.contract import Query, QueryError
from model_sync.service.models import EVENT_EXAMPLES, QUESTION_EXAMPLES
from tests.model_sync.service_world import KEYS, READ, WRITE, World


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_by_user_item_basket_history_and_nothing(world: World) -> None:
    assert world.items(user="u") == ["tablet", "pen", "cheap"]  # the phone is bought, others are not available
    assert world.items(user="nobody") == world.items() == ["phone", "tablet", "pen", "cheap"]  # by popularity
    assert world.items(user="stranger") == world.items()
    assert world.items(item="tablet", backfill="none") == ["phone", "pen"]
    assert world.items(items=["tablet", "phone"], backfill="none") == ["pen"]
    assert world.items(history={"view": ["phone"]}, backfill="none") == ["tablet"]
    assert world.items(history={"buy": ["tablet"], "view": ["phone"]}, backfill="none") == ["phone", "pen"]


def test_answers_have_all_that_is_known_of_them(world: World) -> None:
    answer = world.ask({"user": "u", "explain": True, "num": 2, "fields": ["title", "price"]})
    assert answer["history"] == 3
    tablet, pen = answer["items"]
    parts = [("buy", "phone", 4.0, 1.0, 4.0), ("view", "phone", 8.0, 0.5, 4.0)]
    assert [tuple(part.values()) for part in tablet["contributions"]] == parts
    assert (tablet["item"], tablet["score"], tablet["properties"]) == ("tablet", 8.0, {"title": "Tablet", "price": 300})
    assert "backfill" not in tablet
    assert (pen["score"], pen["backfill"], pen["contributions"]) == (0.0, 1.0, [])
    assert "contributions" not in world.ask({"user": "u"})["items"][0]


def test_every_answer_has_an_id_of_its_own_that_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "cco.service"):
        found = [world.ask({"num": 1})["recommendation_id"] for _ in range(50)]
    assert len(set(found)) == 50
    assert {uuid.UUID(one).version for one in found} == {7}
    assert [one[:10] for one in found] == sorted(one[:10] for one in found)
    logged = [getattr(record, "recommendation_id", None) for record in caplog.records]
    assert logged == found


def test_rules_pages_and_shares(world: World) -> None:
    device = {"field": "category", "values": ["device", "paper"]}
    assert world.items(include=[device]) == ["phone", "tablet", "pen"]
    assert world.items(include=[{**device, "match": "all"}]) == []
    assert world.items(exclude=[device]) == ["cheap"]
    assert world.items(ranges=[{"field": "price", "max": 300}]) == ["tablet", "pen", "cheap"]
    assert world.items(ranges=[{"field": "since", "min": "2024-01-01", "missing": True}]) == world.items()
    assert world.items(ranges=[{"field": "since", "min": "2024-01-01"}]) == ["pen"]
    assert world.items(boost=[{"field": "title", "values": ["Tablet"], "factor": 10}])[0] == "tablet"
    assert world.items(exclude_items=["phone", "unheard of"]) == ["tablet", "pen", "cheap"]
    assert world.items(num=2) + world.items(num=2, **{"from": 2}) == world.items()
    assert world.items(backfill="recent")[:2] == ["pen", "tablet"]
    assert world.items(user="u", priors={"recent": 2.0})[0] == "pen"


def test_random_backfill_begins_elsewhere_for_each_user_and_day(world: World) -> None:
    def order(**question: Any) -> tuple[str, ...]:
        return tuple(world.items(backfill="random", **question))

    mine = order(user="somebody")
    assert sorted(mine) == sorted(world.items())
    assert order(user="somebody", current_date="2026-06-01T23:59:59Z") == mine  # the same day
    assert order(user="somebody", num=2) + order(user="somebody", num=2, **{"from": 2}) == mine
    assert len({order(user=f"user {k}") for k in range(20)}) > 1
    assert len({order(user="somebody", current_date=f"2026-06-{day}") for day in range(10, 30)}) > 1
    assert len({order(history={"view": [f"seen {k}"]}) for k in range(20)}) > 1
    assert len({order(current_date=f"2026-06-{day}") for day in range(10, 30)}) > 1


def test_indicators_count_or_not(world: World) -> None:
    session = {"history": {"buy": ["phone"], "view": ["phone"]}, "num": 1}
    score = [world.ask({**session, **more})["items"][0]["score"] for more in (
        {}, {"indicators": {"view": 1}}, {"indicators": {"view": 0.5, "buy": 2}}, {"indicators": {"buy": 1, "view": 0}},
    )]  # fmt: skip
    assert score == [8.0, 4.0, 10.0, 4.0]
    assert world.ask({**session, "indicators": {"view": 1}})["history"] == 1
    assert world.ask({**session, "indicators": {}})["items"][0]["score"] == 0.0


def test_what_comes_back(world: World) -> None:
    assert "phone" in world.items(user="u", exclude_events=[])
    assert "pen" not in world.items(user="u", exclude_events=["look"])  # an event type of the indicator "view"
    assert "pen" not in world.items(user="u", exclude_events=["view"])  # the indicator itself
    assert "phone" not in world.items(user="u", exclude_events=["order"], return_self=True)
    assert "tablet" not in world.items(item="tablet")
    assert "tablet" not in world.items(item="tablet", exclude_events=[])
    assert "tablet" in world.items(item="tablet", return_self=True)
    assert "phone" in world.items(items=["tablet", "phone"], return_self=True)
    assert "phone" not in world.items(history={"buy": ["phone"]})
    assert "phone" in world.items(history={"buy": ["phone"]}, return_self=True)
    assert "phone" in world.items(history={"view": ["phone"]})


def test_dates_decide_what_is_available(world: World) -> None:
    assert "old" in world.items(current_date="2023-05-01")
    assert "soon" in world.items(current_date="2031-01-01T00:00:00+02:00")
    assert not {"old", "soon", "hidden"} & set(world.items())


WRONG: list[tuple[object, str, str]] = [
    ({"user": "u", "item": "i"}, "user, item, items, history", "more than one"),
    ({"user": 3}, "user", "str"),
    ({"user": ""}, "user", ""),
    ({"user": "é" * 300}, "user", "600 bytes"),
    ({"items": ["a", 3]}, "items[1]", "str"),
    ({"items": ["a"] * 1_001}, "items", "1000"),
    ({"history": {"bye": ["a"]}}, "history.bye", "did you mean 'buy'"),
    ({"history": {"buy": [None]}}, "history.buy[0]", "str"),
    ({"history": {"buy": ["a"], "view": ["a", "b", "c", ""]}}, "history.view[3]", ">= 1"),
    ({"history": {"buy": ["a"], "a.b\n": "a"}}, "history.a.b\n", "array"),
    ({"num": 0}, "num", ">= 1"),
    ({"num": 1_001}, "num", "1000"),
    ({"num": "3"}, "num", "int"),
    ({"num": True}, "num", "int"),
    ({"from": 10_001}, "from", "10000"),
    ({"from_": 1}, "from_", "did you mean 'from'"),
    ({"nmu": 1}, "nmu", "did you mean 'num'"),
    ({"indicators": {"vieww": 1}}, "indicators.vieww", "did you mean 'view'"),
    ({"indicators": {"view": -1}}, "indicators.view", ">= 0"),
    ({"indicators": {"view": 1e-9}}, "indicators.view", "1e-06"),
    ({"include": [{"field": "a"}]}, "include[0]", "values"),
    ({"include": [{"field": "a", "values": []}]}, "include[0].values", ">= 1"),
    ({"include": [{"field": "a", "values": [{}]}]}, "include[0].values[0]", "object"),
    ({"include": [{"field": "a", "values": [2**60]}]}, "include[0].values[0]", "2^53"),
    ({"include": [{"field": "a", "values": ["x"], "mode": 1}]}, "include[0].mode", "no such field"),
    ({"exclude": [{"field": "a", "values": ["x"], "match": "some"}]}, "exclude[0].match", "some"),
    ({"include": [{"field": "a", "values": ["x"]}] * 65}, "include", "64"),
    (
        {"include": [{"field": "a", "values": ["x"]}] * 40, "exclude": [{"field": "a", "values": ["x"]}] * 28},
        "include, exclude, boost and ranges",
        "rules",
    ),
    ({"boost": [{"field": "a", "values": ["x"], "factor": 0}]}, "boost[0].factor", "1e-06"),
    ({"ranges": [{"field": "a"}]}, "ranges[0]", "neither"),
    ({"ranges": [{"field": "a", "min": "yesterday"}]}, "ranges[0].min", "ISO 8601"),
    ({"ranges": [{"field": "a", "min": 1, "max": "2024-01-01"}]}, "ranges[0]", "another"),
    ({"exclude_items": ["a"] * 10_001}, "exclude_items", "10000"),
    ({"exclude_events": ["buy", "by"]}, "exclude_events[1]", 'did you mean "buy"'),
    ({"current_date": "today"}, "current_date", "ISO 8601"),
    ({"priors": {"popularity": 1}}, "priors.popularity", "did you mean 'popular'"),
    ({"priors": {"popular": 1e9}}, "priors.popular", "1000"),
    ({"backfill": "hottest"}, "backfill", "hottest"),
    ({"fields": "title"}, "fields", "array"),
    ([], "body", "object"),
]


@pytest.mark.parametrize(("question", "path", "what"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_asked_wrongly_says_where(world: World, question: object, path: str, what: str) -> None:
    problem = world.ask(question, 422)
    assert problem["type"] == "urn:cco:problem:invalid" and problem["status"] == 422
    assert [part["path"] for part in problem["errors"]] == [path]
    assert what in problem["errors"][0]["problem"]
    assert problem["detail"].startswith(path)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b'{"user": "\xff"}', "application/json", 400),
        (b'{"user": "\\ud800"}', "application/json", 400),
        (b'{"num": 1} x', "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"{}", None, 415),
        (b"{}", "application/json; charset=utf-8", 200),
    ],
)
def test_bodies_that_are_no_json(world: World, content: bytes, kind: str | None, status: int) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = world.request("POST", "/recommendations", content=content, headers=headers)
    assert response.status_code == status, response.text


def test_other_paths_and_methods(world: World) -> None:
    missing = world.request("GET", "/nothing")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    wrong = world.request("GET", "/recommendations")
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["status"]) == (405, "POST", 405)


def test_events_one_and_many() -> None:
    world = World()
    one, bad = {"user_id": "u", "item_id": "i"}, {"item_id": "i"}
    sent = {name: world.request("POST", "/events", json=body) for name, body in {
        "one": one, "some": [one, bad, one], "all": [one, one], "bad": bad, "none": [bad, bad], "empty": [],
        "text": "a", "mixed": [one, 3], "many": [one] * 1_001,
    }.items()}  # fmt: skip
    assert {name: response.status_code for name, response in sent.items()} == {
        "one": 200, "some": 207, "all": 200, "bad": 422, "none": 422, "empty": 422, "text": 422, "mixed": 422,
        "many": 422,
    }  # fmt: skip
    assert sent["one"].json() == {"accepted": 1, "rejected": []}
    assert sent["some"].json() == {"accepted": 2, "rejected": [{"index": 1, "problem": "user_id is missing"}]}
    assert sent["bad"].json()["detail"] == "user_id is missing"
    assert sent["bad"].json()["errors"] == [{"path": "body", "problem": "user_id is missing"}]
    assert [part["path"] for part in sent["none"].json()["errors"]] == ["[0]", "[1]"]
    assert [part["path"] for part in sent["mixed"].json()["errors"]] == ["[1]"]
    assert len(world.sink.taken) == 5
    world.sink.away = "the disk is full"
    away = world.request("POST", "/events", json=one)
    assert (away.status_code, away.json()["detail"]) == (503, "the disk is full")
    assert World(events=None).request("POST", "/events", json=one).status_code == 501


def test_a_store_that_is_away_is_no_internal_error() -> None:
    world = World(health=lambda: ["learning has stopped"])
    assert world.request("GET", "/health").json() == {"ok": False, "problems": ["learning has stopped"]}
    assert World().request("GET", "/ready").json() == {"ok": True, "problems": []}
    world = World()
    world.store.away = "Elasticsearch does not answer"
    for question in ({"user": "u"}, {}):
        response = world.request("POST", "/recommendations", json=question)
        assert (response.status_code, response.headers["retry-after"]) == (503, "2")
        assert response.json()["detail"] == "Elasticsearch does not answer"
    ready = world.request("GET", "/ready")
    assert (ready.status_code, ready.json()["problems"]) == (503, ["Elasticsearch does not answer"])
    assert world.request("GET", "/health").status_code == 200


def test_metrics_count_requests_and_the_share_of_backfill(world: World) -> None:
    fresh = World()
    fresh.items(user="u")
    fresh.ask({"num": 0}, 422)
    fresh.items(include=[{"field": "x", "values": [1]}])
    fresh.request("POST", "/events", json=[{"user_id": "u"}, {}])
    fresh.request("GET", "/nowhere/at/all")
    text = fresh.request("GET", "/metrics").text
    found = dict(re.findall(r"^(cco_\S+) (\S+)$", text, re.MULTILINE))
    assert found['cco_requests_total{route="/recommendations",status="200"}'] == "2.0"
    assert found['cco_requests_total{route="/recommendations",status="422"}'] == "1.0"
    assert found['cco_requests_total{route="/events",status="207"}'] == "1.0"
    assert found['cco_requests_total{route="other",status="404"}'] == "1.0"
    assert found['cco_request_seconds_count{route="/recommendations"}'] == "3.0"
    assert (found["cco_hits_total"], found["cco_backfill_hits_total"]) == ("1.0", "2.0")
    assert found["cco_empty_answers_total"] == "1.0"
    assert found['cco_events_received_total{result="rejected"}'] == "1.0"
    assert found["cco_requests_in_flight"] == "1.0"  # this one


def test_what_the_openapi_shows_as_examples_works(world: World) -> None:
    document = world.request("GET", "/openapi.json").json()
    question = document["paths"]["/recommendations"]["post"]["requestBody"]["content"]["application/json"]
    assert question["examples"] == QUESTION_EXAMPLES
    for example in QUESTION_EXAMPLES.values():
        value = dict(example["value"])  # type: ignore[call-overload]
        if "history" in value:  # written for a shop with another configuration
            value["history"], value["indicators"] = {"buy": ["phone"]}, {"buy": 1.0}
        world.ask(value)
    assert set(EVENT_EXAMPLES) == set(document["paths"]["/events"]["post"]["requestBody"]["content"]
                                      ["application/json"]["examples"])  # fmt: skip
    names = document["components"]["schemas"]["Question"]["properties"]
    assert {"from", "exclude_events", "current_date", "return_self"} <= set(names)
    assert "securitySchemes" not in document["components"]
    with_keys = World(KEYS).request("GET", "/openapi.json").json()
    assert set(with_keys["components"]["securitySchemes"]) == {"bearer", "header"}


def test_the_index_would_answer_the_same(world: World) -> None:
    direct = world.store.index.search(Query(history={"buy": ["tablet"]}, exclude_items=["tablet"], num=3))
    asked = world.ask({"item": "tablet", "num": 3, "current_date": "2026-06-01"})["items"]
    assert [(hit.item, hit.score) for hit in direct if hit.item not in ("old", "soon", "hidden")] == [
        (found["item"], found["score"]) for found in asked
    ]
    with pytest.raises(QueryError):
        world.store.index.search(Query(num=0))


def headers_of(key: str | None, how: str) -> dict[str, str]:
    if key is None:
        return {}
    return {"Authorization": f"Bearer {key}"} if how == "bearer" else {"X-API-Key": key}


@pytest.mark.parametrize("how", ["bearer", "header"])
@pytest.mark.parametrize(
    ("key", "read", "write"),
    [(None, 401, 401), ("wrong-key-0123456789", 401, 401), (READ, 200, 403), (WRITE, 403, 200), (READ[:-1], 401, 401)],
)
def test_keys_and_their_scopes(how: str, key: str | None, read: int, write: int) -> None:
    world, headers = World(KEYS), headers_of(key, how)
    assert world.request("POST", "/recommendations", json={}, headers=headers).status_code == read
    assert world.request("GET", "/metrics", headers=headers).status_code == read
    response: httpx.Response = world.request("POST", "/events", json={"user_id": "u"}, headers=headers)
    assert response.status_code == write
    assert len(world.sink.taken) == (write == 200)
    assert ("www-authenticate" in response.headers) == (write == 401)
    for path in ("/health", "/ready", "/openapi.json"):
        assert world.request("GET", path, headers=headers).status_code == 200
