"""The whole path: an event by HTTP, or by PredictionIO's SDK, through Kafka and a worker, back as a recommendation."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import httpx
import predictionio

from cco.event_data import ItemChange
from tests.kafka.events import BEGIN, DAY, generated
from tests.kafka.world import wait_for
from tests.stack.conftest import MakeStack
from tests.stack.serving import serving

VISIBLE = 2.0 + 2.0  # seconds: what is promised of an item that was changed; and what two busy cores may add to it
SHOPPER = "of the SDK"
WHEN = datetime.fromtimestamp(BEGIN + 120 * DAY, UTC)  # when the other events end
WIDE = [  # within all limits, and more than a node of this size looks up in one search
    {"field": "price", "values": list(range(1_000 * k, 1_000 * (k + 1))), "match": "all"} for k in range(64)
]


def names(answer: dict[str, Any]) -> list[str]:
    return [hit["item"] for hit in answer["items"]]


def visible(condition: Callable[[], bool], what: str) -> float:
    """Seconds until what was acknowledged just now is seen by everybody."""
    began = time.monotonic()
    wait_for(condition, what)
    return time.monotonic() - began


def test_events_change_recommendations_and_items_follow_their_metadata(make_stack: MakeStack) -> None:
    stack = make_stack()
    stack.worker("alone")
    stack.produce(generated(stack, 4_000, seed=1))
    stack.settle()
    with (
        serving(stack) as url,
        httpx.Client(base_url=url, timeout=10) as http,
        closing(predictionio.EventClient(access_key="any key will do", url=url)) as events,
        closing(predictionio.EngineClient(url=url)) as queries,
    ):
        wait_for(lambda: http.get("/ready").status_code == 200, "the service to be ready")
        popular = names(stack.ask(url, {}))
        assert len(popular) == 10 and names(stack.ask(url, {"user": "nobody yet"})) == popular

        bought = [{"user_id": "nobody yet", "item_id": item, "event_type": "purchase"} for item in popular[:2]]
        told = http.post("/events", json=bought)
        assert told.status_code in (200, 201, 202), told.text
        own = wait_for(
            lambda: (found := stack.ask(url, {"user": "nobody yet", "explain": True}))["history"] == 2 and found,
            "my events",
        )
        for item in popular[:2]:
            assert events.record_user_action_on_item("purchase", SHOPPER, item, event_time=WHEN).status == 201
        wait_for(lambda: stack.ask(url, {"user": SHOPPER})["history"] == 2, "the events of the SDK")
        stack.settle()  # these purchases changed rows too
        with stack.client() as client:
            client.indices.refresh(index=stack.names.items)
        own = stack.ask(url, {"user": "nobody yet", "explain": True})
        assert own["items"][0]["score"] > 0
        assert {c["item"] for hit in own["items"] for c in hit.get("contributions", ())} <= set(popular[:2])
        assert not set(popular[:2]) & set(names(own))  # what was bought is not recommended again
        same = stack.ask(url, {"history": {"purchase": popular[:2]}})
        assert [(h["item"], h["score"]) for h in same["items"]] == [(h["item"], h["score"]) for h in own["items"]]
        asked = queries.send_query({"user": SHOPPER, "num": 10})["itemScores"]
        assert asked == [{"item": h["item"], "score": h["score"]} for h in own["items"]]

        best, second = names(own)[:2]
        stack.change_items([ItemChange(best, "delete")])  # returns when Kafka has it
        took = [
            visible(lambda: best not in names(stack.ask(url, {"user": "nobody yet", "num": 100})), "the item to go")
        ]
        only = {"user": "nobody yet", "include": [{"field": "category", "values": ["tea"]}]}
        stack.change_items([ItemChange(second, "set", {"category": "tea", "price": 3})])
        took.append(visible(lambda: names(stack.ask(url, only)) == [second], "the category"))
        http.post("/events", json={"event": "$set", "entityType": "item", "entityId": second,
                                   "properties": {"recommendable": False}}).raise_for_status()  # fmt: skip
        took.append(visible(lambda: names(stack.ask(url, only)) == [], "the item to be hidden"))
        assert sorted(took)[1] < VISIBLE, took  # for a moment a busy machine may have other things to do

        told = http.post("/recommendations", json={"include": WIDE})
        assert told.status_code == 422 and "retry-after" not in told.headers, told.text
        assert [part["path"] for part in told.json()["errors"]] == ["include"], told.text

        events.delete_user(SHOPPER)
        wait_for(lambda: stack.ask(url, {"user": SHOPPER})["history"] == 0, "the SDK's user to be forgotten")
        http.post("/events", json={"user_id": "nobody yet", "event_type": "$delete"}).raise_for_status()
        wait_for(lambda: stack.ask(url, {"user": "nobody yet"})["history"] == 0, "my history to be forgotten")
    stack.check_all()
