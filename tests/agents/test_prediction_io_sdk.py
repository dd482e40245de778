"""The `predictionio` SDK from PyPI, unchanged, against a real server: events in, recommendations out."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from pathlib import Path
from typing import Any

import predictionio
import pytest

from agents.engine import Engine
from agents.serving.embedded import BackgroundServer
from cco.config import make_config
from model_sync.service.app import make_service
from model_sync.service.auth import ApiKey
from model_sync.service.prediction_io import prediction_io_router
from model_sync.service.universal_recommender import universal_recommender
from tests.conformance.apps import EngineStore

CONFIG = make_config({"primary": "purchase", "indicators": {"purchase": {"removed_by": ["return"]}, "view": {}}})
WRITING, READING = "writing-0123456789", "reading-0123456789"
KEYS = (
    ApiKey("writer", WRITING, frozenset({"write"})),
    ApiKey("reader", READING, frozenset({"read"})),
)
ROOT = Path(__file__).resolve().parents[2]
WITHIN = 30.0  # seconds


@contextmanager
def serving(keys: Sequence[ApiKey] = (), needs_key: bool = True) -> Iterator[tuple[str, Engine]]:
    """Address of a server on a free port, and its engine, whose rows are exact after each request."""
    with Engine(CONFIG) as engine:
        store = EngineStore(engine)
        doors = (prediction_io_router, universal_recommender(needs_key=needs_key))
        with BackgroundServer(make_service(CONFIG, store, store, keys, doors=doors)) as server:
            yield server.url, engine


class Shop:
    """Both clients of the SDK, and the engine behind the server where that is in this process."""

    def __init__(self, url: str, engine: Engine | None, access_key: str = "any-key-will-do") -> None:
        self.events = predictionio.EventClient(access_key=access_key, url=url, threads=2)
        self.queries = predictionio.EngineClient(url=url)
        self._engine = engine

    @property
    def engine(self) -> Engine:
        assert self._engine is not None
        return self._engine

    def close(self) -> None:
        self.events.close()
        self.queries.close()

    def items(self, **query: Any) -> list[str]:
        """The items of an answer."""
        return [hit["item"] for hit in self.queries.send_query(query)["itemScores"]]


@pytest.fixture
def shop() -> Iterator[Shop]:
    with serving() as (url, engine):
        found = Shop(url, engine)
        yield found
        found.close()


def buy(shop: Shop, purchases: dict[str, str]) -> None:
    """Each user buys items of one letter."""
    for user, items in purchases.items():
        for item in items:
            answer = shop.events.record_user_action_on_item("purchase", user, item)
            assert answer.status == HTTPStatus.CREATED and answer.json_body["eventId"]


TASTES = {"u1": "abc", "u2": "abc", "u3": "abd", "v1": "xyz", "v2": "xyz", "v3": "wx"}


def test_events_in_recommendations_out(shop: Shop) -> None:
    """Who bought what goes with one thing gets the others; what a user does counts in the very next query."""
    buy(shop, TASTES)
    assert shop.items(user="new") == shop.items()
    shop.events.record_user_action_on_item("purchase", "new", "a")
    first = shop.queries.send_query({"user": "new", "num": 3})["itemScores"]
    assert [hit["item"] for hit in first] == ["b", "c", "d"] and all(hit["score"] > 0 for hit in first)
    assert "a" not in shop.items(user="new", num=20)
    shop.events.record_user_action_on_item("purchase", "new", "b")
    assert "b" not in shop.items(user="new", num=20)
    assert set(shop.items(item="x", num=2)) <= {"w", "y", "z"}
    assert set(shop.items(itemSet=["y", "z"], num=1)) == {"x"}
    assert shop.queries.asend_query({"user": "u3", "num": 1}).get_response()["itemScores"][0]["item"] == "c"


def test_against_the_whole_product(tmp_path: Path) -> None:
    """`cco serve --embedded` in a process of its own, killed in between: what was accepted is there afterwards."""

    def start() -> tuple[subprocess.Popen[str], Shop]:
        command = [sys.executable, "-m", "agents", "serve", "--embedded", "--state", str(tmp_path), "--port", "0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert process.stdout is not None
        return process, Shop(process.stdout.readline().split()[-1], None)

    def stop(process: subprocess.Popen[str], shop: Shop, number: int) -> None:
        shop.close()
        process.send_signal(number)
        process.wait(WITHIN)
        assert process.stdout is not None
        process.stdout.close()

    process, shop = start()
    try:
        buy(shop, TASTES)
        shop.events.set_item("d", {"category": "red"})
        stop(process, shop, signal.SIGKILL)
        process, shop = start()
        shop.events.record_user_action_on_item("purchase", "new", "a")
        eventually(lambda: shop.items(user="new", num=3), ["b", "c", "d"])
        red = [{"name": "category", "values": ["red"], "bias": -1}]
        assert shop.items(user="new", fields=red) == ["d"]
    finally:
        stop(process, shop, signal.SIGTERM)
    assert process.returncode == 0


def eventually(found: Callable[[], object], expected: object) -> None:
    """Rows are published a little after the event is accepted."""
    deadline = time.monotonic() + WITHIN
    while (last := found()) != expected:
        assert time.monotonic() < deadline, last


def test_an_empty_query_has_no_body(shop: Shop) -> None:
    """The SDK then sends no body and no media type."""
    buy(shop, {"u1": "ab"})
    assert shop.queries.send_query({}) == {"itemScores": [{"item": "a", "score": 0.0}, {"item": "b", "score": 0.0}]}


def test_items(shop: Shop) -> None:
    buy(shop, {"u1": "abc"})
    shop.events.set_item("a", {"category": ["red", "big"], "price": 3.5, "sold": True})
    shop.events.set_item("b", {"category": "red"})
    shop.events.set_item("c", {"category": "blue"})
    red = [{"name": "category", "values": ["red"], "bias": -1}]
    assert shop.items(fields=red) == ["a", "b"]
    assert shop.items(fields=[{"name": "category", "values": ["red"], "bias": 0}]) == ["c"]
    assert shop.items(fields=[{"name": "category", "values": ["blue"], "bias": 2}]) == ["c", "a", "b"]
    shop.events.unset_item("b", {"category": ""})
    assert shop.items(fields=red) == ["a"]
    shop.events.delete_item("a")
    assert shop.items(fields=red) == [] and shop.items() == ["b", "c"]
    shop.events.set_item("b")  # accepted, and changes nothing
    assert shop.engine.properties("b") == {}


def test_users(shop: Shop) -> None:
    """Properties of users are accepted and not used; deleting a user deletes the history."""
    buy(shop, {"u1": "ab"})
    shop.events.set_user("u1", {"age": 7})
    shop.events.unset_user("u1", {"age": 7})
    assert shop.items(user="u1") == []
    shop.events.delete_user("u1")
    assert not any(shop.engine.history_of(user="u1").values())


def test_create_event(shop: Shop) -> None:
    """With a time and a zone, at once and later, and with more than one thread of the SDK."""
    at = datetime.now(UTC) - timedelta(days=3)
    answer = shop.events.create_event("purchase", "user", "u1", "item", "ü/ö %", {"shop": "web"}, at)
    assert answer.status == HTTPStatus.CREATED
    shop.events.create_event("return", "user", "u1", "item", "ü/ö %", event_time=at + timedelta(days=1))
    assert not any(shop.engine.history_of(user="u1").values())
    requests = [shop.events.acreate_event("view", "user", f"u{k}", "item", "a") for k in range(50)]
    requests.append(shop.events.arecord_user_action_on_item("view", "last", "a"))
    ids = {request.get_response().json_body["eventId"] for request in requests}
    assert len(ids) == 51
    assert all(shop.engine.history_of(user=f"u{k}")["view"] == ["a"] for k in range(50))


def test_what_is_refused_says_why(shop: Shop) -> None:
    with pytest.raises(predictionio.NotCreatedError, match=r"status: 400 .*no indicator names the event type .*viwe"):
        shop.events.record_user_action_on_item("viwe", "u1", "a")
    with pytest.raises(predictionio.NotCreatedError, match=r"400.*field entityId is required"):
        shop.events.record_user_action_on_item("view", "", "a")
    with pytest.raises(predictionio.NotFoundError, match=r"400.*num: Input should be"):
        shop.queries.send_query({"num": -1})
    for read in (
        lambda: shop.events.get_event("an/id"),
        lambda: shop.events.get_event("id"),
        lambda: shop.events.delete_event("id"),
        lambda: shop.events.get_events(limit=3),
    ):
        with pytest.raises(predictionio.NotFoundError, match=r"501.*events are not kept one by one"):
            read()


def test_status(shop: Shop) -> None:
    assert shop.events.get_status() == {"status": "alive"} == shop.queries.get_status()


def test_access_keys() -> None:
    """Events need a key that may write; the SDK's queries have none, so the server has to allow that."""
    with serving(KEYS) as (url, engine):
        shop = Shop(url, engine, WRITING)
        buy(shop, {"u1": "a"})
        with pytest.raises(predictionio.NotFoundError, match=r"401.*Missing accessKey"):
            shop.items()
        for key, status in (("nobody-0123456789", 401), (READING, 403)):
            other = Shop(url, engine, key)
            with pytest.raises(predictionio.NotCreatedError, match=f"{status}"):
                buy(other, {"u2": "b"})
            other.close()
        shop.close()
        assert not engine.history_of(user="u2")
    with serving(KEYS, needs_key=False) as (url, engine):
        shop = Shop(url, engine, WRITING)
        buy(shop, {"u1": "a"})
        assert shop.items() == ["a"]
        shop.close()
