"""The Universal Recommender's hand-made shop: what its integration test imports, asks and expects.

Its dates are days before and after the import, and it asks on the day of the import; so do we.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from cco.config import Config, make_config
from tests.shared import shared

# The items in the order of its import script, which decides their dates.
DATED = ("Iphone 6", "Ipad-retina", "Nexus", "Surface", "Iphone 4", "Galaxy", "Iphone 5")
STEP = timedelta(days=0.8)  # between two lines, and between the dates of two items
DEFAULT_NUM = 4  # of its engine.json


@dataclass(frozen=True)
class Case:
    """One published query and its answer: (item, score), best first."""

    query: dict[str, Any]
    expected: list[tuple[str, float]]


@cache
def published() -> dict[str, Any]:
    """Everything that was published, and what was computed from it once."""
    found: dict[str, Any] = json.loads(shared("conformance/ur_cases.json").read_text())
    return found


def config() -> Config:
    """Its engine.json in our words."""
    return make_config(
        {
            "primary": "purchase",
            "indicators": {name: {} for name in published()["indicators"]},
            "retention": {"min_primary": published()["minEventsPerUser"], "visitor_window": "none"},
            "anti_correlations": True,
            "items": {"rank": "defaultRank"},
        }
    )


def cases(now: datetime) -> list[Case]:
    """The 28 queries."""
    dates = {"$BEFORE": now + timedelta(days=1), "$AFTER": now - timedelta(days=1)}
    found = []
    for case in published()["cases"]:
        query = json.loads(json.dumps(case["query"]))
        for end in ("before", "after"):
            if end in query.get("dateRange", {}):
                query["dateRange"][end] = dates[query["dateRange"][end]].isoformat(timespec="seconds")
        found.append(Case(query, [(hit["item"], hit["score"]) for hit in case["expected"]]))
    return found


def records(now: datetime) -> Iterator[dict[str, Any]]:
    """What the import script sends, in its order and in PredictionIO's shape."""
    lines = shared("data/ur-handmade/raw/sample-handmade-data.txt").read_text().splitlines()
    for k, line in enumerate(lines):
        subject, event, rest = line.split(",")
        at = (now - k * STEP).isoformat(timespec="milliseconds")
        if event == "$set":
            name, *values = rest.split(":")
            value: object = float(values[0]) if name == "defaultRank" else values
            yield _of_item(subject, {name: value}, at)
        else:
            yield {
                "event": event,
                "entityType": "user",
                "entityId": subject,
                "targetEntityType": "item",
                "targetEntityId": rest,
                "eventTime": at,
            }
    for k, item in enumerate(DATED):
        date = now - 3 * STEP + k * STEP
        dates = {"date": date, "available": date - timedelta(days=2), "expires": date + timedelta(days=2)}
        yield _of_item(item, {name: when.isoformat() for name, when in dates.items()}, now.isoformat())


def _of_item(item: str, properties: dict[str, object], at: str) -> dict[str, Any]:
    return {"event": "$set", "entityType": "item", "entityId": item, "properties": properties, "eventTime": at}


@cache
def bought() -> dict[str, frozenset[str]]:
    """The purchases of each user."""
    found: dict[str, set[str]] = {}
    for line in shared("data/ur-handmade/raw/sample-handmade-data.txt").read_text().splitlines():
        user, event, item = line.split(",")
        if event == "purchase":
            found.setdefault(user, set()).add(item)
    return {user: frozenset(items) for user, items in found.items()}


def eligible(query: Mapping[str, Any], now: datetime) -> set[str]:
    """The items that may be the answer, said once more from the published documents and the published rules."""
    found = set()
    for item, document in published()["es_model_docs"].items():
        date = now - 3 * STEP + DATED.index(item) * STEP
        has = [bool({*field["values"]} & {*document.get(field["name"], ())}) for field in query.get("fields", ())]
        biases = [field["bias"] for field in query.get("fields", ())]
        span = query.get("dateRange", {})
        if (
            item not in published()["hidden_by_dates"]
            and item not in bought().get(query.get("user", ""), ())
            and item != query.get("item")
            and all(there for there, bias in zip(has, biases, strict=True) if bias < 0)
            and not any(there for there, bias in zip(has, biases, strict=True) if bias == 0)
            and (not span or datetime.fromisoformat(span["after"]) < date < datetime.fromisoformat(span["before"]))
        ):
            found.add(item)
    return found
