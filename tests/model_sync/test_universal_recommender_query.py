"""Queries of the Universal Recommender translated into the Index contract's, with no server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from cco.config import Config, Indicator
from model_sync.availability import available
from model_sync.contract import MAX_HISTORY, Boost, Query, QueryError, Range, Rule, check_query
from model_sync.service.universal_recommender_query import Defaults, parse_query, ranks_of, translate

NOW = "2024-05-01T12:00:00+00:00"
CONFIG = Config(
    primary="buy",
    indicators={
        "buy": Indicator(events=("purchase", "order")),
        "view": Indicator(),
        "search": Indicator(weight=0.5),
    },
)
HISTORY = {"buy": ["i1", "i2"], "view": ["i2", "i3"], "search": ["shoes"]}


def asked(
    query: Mapping[str, Any], history: Mapping[str, list[str]] = HISTORY, defaults: Defaults | None = None
) -> Query:
    """The translated query, which the contract accepts too."""
    body = json.dumps(query).encode()
    given = history if "user" in query else {}
    found = translate(parse_query(body), given, CONFIG, NOW, defaults or Defaults())
    check_query(found, CONFIG)
    return found


def terms(query: Query) -> dict[tuple[str, str], float]:
    """(indicator, item) -> factor, of the whole history that is asked with."""
    return {
        (name, item): query.history_weights.get(name, {}).get(item, 1.0)
        for name, items in query.history.items()
        for item in items
    }


def test_nothing_asked_is_backfill_of_what_is_available() -> None:
    query = asked({})
    ranges, excluding = available(CONFIG, NOW)
    assert query == Query(ranges=ranges, exclude=excluding, exclude_items=frozenset(), num=20, fields=())


def test_no_body_is_an_empty_query() -> None:
    assert translate(parse_query(b""), {}, CONFIG, NOW) == asked({})


def test_user() -> None:
    query = asked({"user": "u1"})
    assert terms(query) == dict.fromkeys(
        [("buy", "i1"), ("buy", "i2"), ("view", "i2"), ("view", "i3"), ("search", "shoes")], 1.0
    )
    assert query.exclude_items == {"i1", "i2"}


def test_event_names_are_a_subset_by_indicator_or_event_type() -> None:
    """What was bought stays left out, whatever the events asked with."""
    assert asked({"user": "u1", "eventNames": ["view", "search"]}).history == {
        "view": ("i2", "i3"),
        "search": ("shoes",),
    }
    query = asked({"user": "u1", "eventNames": ["order"]})
    assert query.history == {"buy": ("i1", "i2")} and query.exclude_items == {"i1", "i2"}


def test_item_asks_with_itself_and_is_not_returned() -> None:
    query = asked({"item": "i9"})
    assert terms(query) == {("buy", "i9"): 1.0}
    assert query.exclude_items == {"i9"}
    assert asked({"item": "i9", "returnSelf": True}).exclude_items == frozenset()
    assert asked({"item": "i9"}, defaults=Defaults(return_self=True)).exclude_items == frozenset()
    assert asked({"item": "i9", "returnSelf": False}, defaults=Defaults(return_self=True)).exclude_items == {"i9"}


def test_item_set_is_never_returned() -> None:
    query = asked({"itemSet": ["a", "b", "a"], "returnSelf": True})
    assert terms(query) == {("buy", "a"): 1.0, ("buy", "b"): 1.0}
    assert query.exclude_items == {"a", "b"}


def test_biases_of_what_is_asked_together_are_added() -> None:
    query = asked(
        {"user": "u1", "userBias": 2, "item": "i1", "itemBias": 0.5, "itemSet": ["i1", "i7"], "itemSetBias": 3}
    )
    assert terms(query) == {
        ("buy", "i1"): 5.5,
        ("buy", "i7"): 3.0,
        ("buy", "i2"): 2.0,
        ("view", "i2"): 2.0,
        ("view", "i3"): 2.0,
        ("search", "shoes"): 2.0,
    }


def test_a_bias_of_0_leaves_that_part_out_of_the_score_only() -> None:
    query = asked({"user": "u1", "userBias": 0, "item": "i9"})
    assert terms(query) == {("buy", "i9"): 1.0}
    assert query.exclude_items == {"i1", "i2", "i9"}


def test_a_single_bias_of_1_needs_no_weights() -> None:
    assert not any(asked({"user": "u1", "userBias": 1, "item": "i9"}).history_weights.values())


def test_fields() -> None:
    query = asked(
        {
            "fields": [
                {"name": "category", "values": ["a", "b"], "bias": -1},
                {"name": "size", "values": [1, 2.5], "bias": -0.01},
                {"name": "brand", "values": ["x"], "bias": 0},
                {"name": "new", "values": [True], "bias": 1.05},
                {"name": "category", "values": ["c"], "bias": 0.5},
            ]
        }
    )
    _, unavailable = available(CONFIG, NOW)
    assert query.include == (Rule("category", ("a", "b")), Rule("size", (1, 2.5)))
    assert query.exclude == (Rule("brand", ("x",)), *unavailable)
    assert query.boost == (Boost("new", (True,), 1.05), Boost("category", ("c",), 0.5))
    assert query.boost[0].values[0] is True and isinstance(query.include[1].values[0], int)


def test_dates() -> None:
    """A range leaves its ends out; it is asked besides what is available, not in its place."""
    query = asked(
        {
            "dateRange": {"name": "date", "after": "2024-01-01T00:00:00+02:00", "before": "2024-02-01"},
            "currentDate": "2024-03-01",
        }
    )
    ranges, _ = available(CONFIG, "2024-03-01")
    assert query.ranges == (
        Range("date", "2023-12-31T22:00:00.001+00:00", "2024-01-31T23:59:59.999+00:00"),
        *ranges,
    )


@pytest.mark.parametrize(
    ("given", "ends"),
    [
        ({"after": "2024-01-01"}, ("2024-01-01T00:00:00.001+00:00", None)),
        ({"before": "2024-01-01", "after": ""}, (None, "2023-12-31T23:59:59.999+00:00")),
        ({"before": "0001-01-01"}, (None, "0005-04-19T09:46:40.000+00:00")),
        ({"after": "9999-12-31T23:59:59.999999"}, ("9987-04-02T17:46:40.000+00:00", None)),
    ],
)
def test_open_and_extreme_date_ranges(given: dict[str, str], ends: tuple[str | None, str | None]) -> None:
    found = asked({"dateRange": {"name": "date", **given}}).ranges[0]
    assert (found.min, found.max) == ends


def test_a_date_range_without_dates_is_none() -> None:
    assert asked({"dateRange": {"name": "date", "before": "", "after": None}}).ranges == available(CONFIG, NOW)[0]


def test_blacklists() -> None:
    assert asked({"user": "u1", "blacklistItems": ["x"]}).exclude_items == {"i1", "i2", "x"}
    both = Defaults(blacklist_events=("order", "view"))
    assert asked({"user": "u1"}, defaults=both).exclude_items == {"i1", "i2", "i3"}
    assert asked({"user": "u1"}, defaults=Defaults(blacklist_events=())).exclude_items == frozenset()


def test_paging() -> None:
    query = asked({"from": 40, "num": 7})
    assert (query.offset, query.num) == (40, 7)
    assert asked({}, defaults=Defaults(num=4)).num == 4


def test_numbers_are_ids_and_empty_ids_are_nobody() -> None:
    assert terms(asked({"item": 7, "itemSet": [8]})) == {("buy", "7"): 1.0, ("buy", "8"): 1.0}
    assert parse_query(b'{"user": 12}').user == "12"
    assert terms(asked({"item": "", "itemSet": []})) == {}


def test_a_long_history_is_cut_so_that_the_index_takes_it() -> None:
    """Latest first; the item that is asked about stays."""
    long = {"buy": [f"b{k}" for k in range(20_000)], "view": [f"v{k}" for k in range(20_000)]}
    query = asked({"user": "u", "item": "i9", "itemSet": [f"s{k}" for k in range(1_000)]}, long)
    assert sum(map(len, query.history.values())) <= MAX_HISTORY
    assert query.history["view"][0] == "v0" and "i9" in query.history["buy"] and "b0" in query.history["buy"]


def test_ranks() -> None:
    assert ranks_of("rank", {"rank": 3, "a": 1}, {"popular": 2.0, "recent": 1.0, "hot": 0.0, "trending": 5.0}) == {
        "popRank": 2.0,
        "recentRank": 1.0,
        "hotRank": 0.0,
        "trendRank": 5.0,
        "userRank": 3.0,
    }
    assert ranks_of("rank", {"rank": "3"}, {}) == {} and ranks_of("rank", {"rank": True}, {}) == {}
    assert asked({"withRanks": True}).fields == ("rank",)


@pytest.mark.parametrize(
    ("body", "path", "problem"),
    [
        (b"[]", "the body", "object"),
        (b"{", "the body", "not valid JSON"),
        (b'{"user": "\\ud800"}', "the body", "not valid JSON"),
        (b"[" * 100_000, "the body", "not valid JSON"),
        (b'{"user": ["u"]}', "user", "string"),
        (b'{"user": true}', "user", "string"),
        (b'{"num": -1}', "num", "greater than or equal to 0"),
        (b'{"num": "4"}', "num", "integer"),
        (b'{"num": 1001}', "num", "1000"),
        (b'{"from": 10001}', "from", "10000"),
        (b'{"blacklistitems": []}', "blacklistitems", "did you mean 'blacklistItems'"),
        (b'{"From": 1}', "From", "did you mean 'from'"),
        (b'{"fields": [{"name": "a", "values": ["b"], "bais": 1}]}', "fields[0].bais", "did you mean 'bias'"),
        (b'{"fields": [{"name": "a", "values": ["b"]}]}', "fields[0].bias", "required"),
        (b'{"fields": [{"name": "a", "values": [], "bias": 1}]}', "fields[0].values", "at least 1"),
        (b'{"fields": [{"name": "a", "values": [[1]], "bias": 1}]}', "fields[0].values[0]", ""),
        (b'{"fields": [{"name": "a", "values": [9007199254740993], "bias": 1}]}', "fields[0].values[0]", ""),
        (b'{"fields": [{"name": "a", "values": ["b"], "bias": 1e7}]}', "fields[0].bias", "1e+06"),
        (b'{"fields": [{"name": "a", "values": ["b"], "bias": NaN}]}', "fields[0].bias", "finite"),
        (b'{"userBias": -1}', "userBias", "0, or a number from"),
        (b'{"dateRange": {"before": "2024-01-01"}}', "dateRange.name", "required"),
        (b'{"dateRange": {"name": "d", "after": "yesterday"}}', "dateRange.after", "ISO 8601"),
        (b'{"currentDate": "now"}', "currentDate", "ISO 8601"),
        (b'{"eventNames": ["view", "vieww"]}', "eventNames[1]", "did you mean 'view'"),
    ],
)
def test_what_is_not_possible_is_named(body: bytes, path: str, problem: str) -> None:
    with pytest.raises(QueryError) as caught:
        translate(parse_query(body), {}, CONFIG, NOW)
    assert caught.value.path == path
    assert problem in caught.value.problem


def test_too_many_rules_are_refused() -> None:
    fields = [{"name": f"f{k}", "values": ["a"], "bias": -1} for k in range(65)]
    with pytest.raises(QueryError, match="fields"):
        parse_query(json.dumps({"fields": fields}).encode())
    check_query(translate(parse_query(json.dumps({"fields": fields[:64]}).encode()), {}, CONFIG, NOW), CONFIG)
