"""Questions to the engine: what is asked wrongly says where, and what is kept can always be asked with."""

from __future__ import annotations

from typing import Any

import pytest

from agents.engine import REFRESH_SECONDS, REJECTIONS_KEPT, Engine
from cco.config import Config, Indicator
from model_sync.contract import Boost, QueryError, Range

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"items": "ab"}, "items"),
    ({"items": 3}, "items"),
    ({"items": ["a", 3]}, "items[1]"),
    ({"items": ["a"] * 1_001}, "items"),
    ({"user": 3}, "user"),
    ({"item": ["a"]}, "item"),
    ({"history": {"purchase": "ab"}}, "history.purchase"),
    ({"history": {"purchase": [1]}}, "history.purchase[0]"),
    ({"history": {"purchase": None}}, "history.purchase"),
    ({"history": {3: ["a"]}}, "history"),
    ({"history": ["a"]}, "history"),
    ({"exclude_items": "ab"}, "exclude_items"),
    ({"exclude_items": [None]}, "exclude_items[0]"),
    ({"exclude_items": ["a"] * 10_001}, "exclude_items"),
    ({"boost": [1]}, "boost[0]"),
    ({"boost": "ab"}, "boost"),
    ({"boost": [Boost("f", "ab", 2.0)]}, "boost[0].values"),  # type: ignore[arg-type]
    ({"ranges": [3]}, "ranges[0]"),
    ({"ranges": Range("f", 1)}, "ranges"),
    ({"include": [1]}, "include"),
    ({"include": {"a": None}}, "include.a"),
    ({"include": {"a": {"b": 1}}}, "include.a"),
    ({"exclude": {3: "x"}}, "exclude"),
    ({"weights": ["a"]}, "weights"),
    ({"priors": 3}, "priors"),
    ({"num": "3"}, "num"),
]


@pytest.mark.parametrize(("asked", "path"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_asked_wrongly_says_where(asked: dict[str, Any], path: str) -> None:
    engine = Engine()
    with pytest.raises(QueryError) as caught:
        engine.recommend(**asked)
    assert caught.value.path == path
    if set(asked) <= {"user", "items", "history"}:
        with pytest.raises(QueryError) as caught:
            engine.explain("a", **asked)
        assert caught.value.path == path
    with pytest.raises(QueryError, match=r"^item: "):
        engine.explain(3, items=["a"])  # type: ignore[arg-type]


def test_collections_of_all_kinds_may_be_asked_with() -> None:
    engine = Engine()
    for ids in (["a"], ("a",), {"a"}, {"a": 1}.keys()):
        assert engine.recommend(items=list(ids), exclude_items=ids, include={"f": {"x", "y"}}) == []


def bought(engine: Engine, user: str, event: str, items: range) -> None:
    engine.ingest({"user_id": user, "event_type": event, "item_id": f"i{k}", "timestamp": 1000 + k} for k in items)


def test_who_has_a_lot_can_be_recommended_to() -> None:
    """The latest items ask; all of them are seen, and the caller may leave out as many more."""
    big = Indicator(user_cap=10_000)
    with Engine(Config(primary="buy", indicators={"buy": big, "view": big})) as engine:
        bought(engine, "u", "buy", range(6_000))
        bought(engine, "u", "view", range(2_000))
        bought(engine, "v", "buy", range(5_999, 6_003))
        bought(engine, "w", "buy", range(20_000, 20_001))
        engine.drain()
        asked = engine.history_of(user="u")
        assert asked["buy"] == [f"i{k}" for k in range(5_999, 4_999, -1)]
        assert asked["view"] == [f"i{k}" for k in range(1_999, 999, -1)]
        found = {hit.item for hit in engine.recommend(user="u", num=1_000)}
        assert found == {"i6000", "i6001", "i6002", "i20000"}
        others = ["i6000", *(f"x{k}" for k in range(9_999))]
        assert {hit.item for hit in engine.recommend(user="u", exclude_items=others)} == found - {"i6000"}
        assert engine.explain("i6000", user="u")


def test_many_indicators_share_the_most_that_can_be_asked_with() -> None:
    names = [f"t{k}" for k in range(20)]
    with Engine(Config(primary="t0", indicators={name: Indicator(user_cap=1_000) for name in names})) as engine:
        for name in names:
            bought(engine, "u", name, range(1_000))
        assert {len(ids) for ids in engine.history_of(user="u").values()} == {500}
        assert engine.recommend(user="u") == []


def test_a_flood_of_bad_records_is_counted_and_the_first_are_kept() -> None:
    report = Engine().ingest({"event_type": "nothing"} for _ in range(REJECTIONS_KEPT + 5_000))
    assert (report.accepted, report.rejected_count, len(report.rejected)) == (0, 15_000, 10_000)
    assert report.rejected[-1].line == 10_000


def test_the_names_count_among_the_bytes() -> None:
    engine = Engine()
    before = sum(engine.stats()["bytes"].values())
    bought(engine, "u", "purchase", range(20_000))
    sizes = engine.stats()["bytes"]
    assert sizes["items' names"] == engine.items.nbytes() > 2_000_000
    assert sum(sizes.values()) > before + 2_000_000


def test_rows_do_not_stay_too_old_when_events_stop_and_somebody_asks() -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 0.001  # so that time passes while rows are counted
        return now

    engine = Engine(Config(max_staleness=5.0), clock=clock)
    for user in range(30):
        bought(engine, f"u{user}", "purchase", range(user, user + 3))
    engine.drain()
    bought(engine, "new", "purchase", range(3))  # N has changed: every row is a little out of date
    assert engine.pipeline.staleness(now) > 0
    now += 3
    engine.recommend(user="new")
    assert engine.pipeline.staleness(now) > 3, "not too old yet"
    now += 3
    began = now
    engine.recommend(user="new")
    assert engine.pipeline.staleness(now) == 0
    assert now - began < REFRESH_SECONDS + 0.01
