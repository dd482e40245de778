"""What the engine leaves out: items that are not recommendable, not yet available or expired; and its backfill."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from agents.engine import Engine
from cco.config import ConfigError, make_config
from model_sync.contract import QueryError

JUNE = "2024-06-01T00:00:00Z"


def shop() -> Engine:
    engine = Engine()
    for user in range(8):
        for item in ("x", "y") if user < 5 else ("z",):
            engine.ingest([{"user_id": f"u{user}", "item_id": item, "event_type": "purchase", "timestamp": 1}])
    engine.drain()
    return engine


def names(engine: Engine, now: str | None = JUNE, **asked: object) -> list[str]:
    return sorted(hit.item for hit in engine.recommend(now=now, **asked))  # type: ignore[arg-type]


def test_only_what_is_available_is_recommended() -> None:
    engine = shop()
    assert names(engine) == ["x", "y", "z"]
    engine.put_items({"x": {"available": "2024-06-01"}, "y": {"available": "2024-06-02"}})
    assert names(engine) == ["x", "z"]
    engine.put_items({"x": {"expires": "2024-05-31T23:59:59Z"}, "y": {"expires": "2024-06-01"}})
    assert names(engine) == ["y", "z"]
    engine.put_items({"x": {"recommendable": False}, "y": {"recommendable": True}, "z": {"recommendable": "no"}})
    assert names(engine) == ["y", "z"]
    engine.put_items({"x": {"available": "soon"}})
    assert names(engine) == ["y", "z"]


def test_without_a_date_the_clock_counts() -> None:
    engine = shop()
    now, hour = datetime.now(UTC), timedelta(hours=1)
    engine.put_items(
        {
            "x": {
                "available": (now - hour).isoformat(),
                "expires": (now + hour).isoformat(),
            },
            "y": {"available": (now + hour).isoformat()},
            "z": {"expires": (now - hour).isoformat()},
        }
    )
    assert names(engine, now=None) == ["x"]


def test_an_item_that_is_not_available_has_no_explanation() -> None:
    engine = shop()
    assert [part.history_item for part in engine.explain("x", items=["y"], now=JUNE)] == ["y"]
    engine.put_items({"x": {"available": "2024-07-01"}})
    assert engine.explain("x", items=["y"], now=JUNE) == []
    assert engine.explain("x", items=["y"], now="2024-07-01") != []


def test_the_names_of_the_properties_are_configured() -> None:
    engine = Engine(make_config({"items": {"recommendable": "listed", "rank": "position"}}))
    engine.put_items({"a": {"listed": False}, "b": {"recommendable": False, "position": 1}, "c": {"position": 2}})
    assert [hit.item for hit in engine.recommend(backfill="rank")] == ["c", "b"]
    assert engine.recommend(backfill=None) == []
    assert make_config({"items": {"rank": "position"}}).epoch == make_config({}).epoch


def test_random_backfill_begins_elsewhere_for_each_user_and_day() -> None:
    engine = shop()

    def order(user: str, now: str = JUNE) -> tuple[str, ...]:
        return tuple(hit.item for hit in engine.recommend(user=user, backfill="random", now=now))

    assert order("new") == order("new", "2024-06-01T23:00:00Z")
    assert len({order(f"new {k}") for k in range(20)}) > 1
    assert len({order("new", f"2024-06-{day}") for day in range(10, 30)}) > 1
    assert len(order("\ud800")) == 3  # what is no id is nobody


def test_the_limit_of_rules_leaves_room_for_those_of_availability() -> None:
    engine = shop()
    assert names(engine, ranges=(), exclude={f"field {k}": "x" for k in range(64)}) == ["x", "y", "z"]
    with pytest.raises(QueryError, match="rules; at most"):
        engine.recommend(exclude={f"field {k}": "x" for k in range(65)})


@pytest.mark.parametrize("now", ["yesterday", "", 5])
def test_a_date_that_is_none_is_refused(now: object) -> None:
    with pytest.raises(QueryError, match=r"now: .* is not an ISO 8601 date"):
        shop().recommend(now=now)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"rank": "a.b"}, "items.rank: 'a.b' is not allowed; allowed: the name of a property"),
        ({"available": ""}, "items.available"),
        ({"types": {"price": "double"}}, "items.types.price: 'double' is not allowed; allowed: keyword"),
        ({"types": {"a.b": "float"}}, "items.types"),
        ({"types": {" ": "float"}}, "items.types"),
        ({"expires": " "}, "items.expires"),
        ({"rnk": "x"}, 'did you mean "rank"'),
    ],
)
def test_bad_tables_are_explained(table: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem.replace("[", r"\[")):
        make_config({"items": table})
