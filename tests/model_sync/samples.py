"""What the contract suite feeds to an index: ids, patches, metadata and queries, good and bad."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from cco.config import make_config
from model_sync.contract import Boost, Query, Range, Rule

CONFIG_TABLES: dict[str, Any] = {
    "primary": "buy",
    "indicators": {"buy": {"weight": 1.0}, "view": {"weight": 0.3}},
    "priors": {"popular": "all", "recent": "30d"},
}
CONFIG = make_config(CONFIG_TABLES)
# Dots, slashes, spaces, quotes, combining marks, the longest possible, prefixes of each other, a pair whose
# order differs between UTF-8 and UTF-16, and names that a search server might take for its own.
IDS = [
    "a", "A", "ab", "a.b", "a..b", ".", "a/b", "../x", "%2F", "a b", 'say "hi"', "ü", "u\u0308", "日本語", "\U0001f600",
    "\uffff", "\U00010000", "x" * 512, "é" * 256, "_id", "_source", "priors", "line\nbreak", "\\", "*", "1", "01",
]  # fmt: skip
WEIGHTS = [0.5, 1.0, 1.0078125, 1.3, 7.25, 100.0]
VALUES: list[Any] = [
    "red", "blue", "1", 1, 1.0, 2, -3.5, True, False, "2024-02-01", "2024-02-01T12:00:00Z", "2024-02-01T13:00:00+02:00",
    ["red", "blue"], ["red", 1, True], [1, 5, 9], ["2023-01-01", "2025-01-01"], [], None,
]  # fmt: skip
SCALARS = [v for v in VALUES if v is not None and not isinstance(v, list)]
PROPERTIES = ["color", "price", "since", "rank", "available"]


def _cut(text: str, size: int) -> str:
    """`text`, again and again, up to `size` bytes; at least its first character."""
    return (text.encode() * size)[:size].decode(errors="ignore") or text[0]


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=128)
any_ids = texts | st.builds(_cut, texts, st.integers(1, 512))  # all that an id can be, short ones and long ones
ids = st.sampled_from(IDS) | any_ids
entries = st.dictionaries(ids, st.sampled_from(WEIGHTS), max_size=6)
prior_entries = st.dictionaries(st.sampled_from(CONFIG.prior_names), st.sampled_from(WEIGHTS))
item_fields = st.fixed_dictionaries({}, optional={"buy": entries, "view": entries, "priors": prior_entries})
fields = st.dictionaries(ids, item_fields, max_size=5)
metadata = st.dictionaries(st.sampled_from(PROPERTIES), st.sampled_from(VALUES))
rule = st.builds(
    Rule,
    st.sampled_from(PROPERTIES),
    st.lists(st.sampled_from(SCALARS), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["any", "all"]),
)
boost = st.builds(
    Boost, st.sampled_from(PROPERTIES), st.tuples(st.sampled_from(SCALARS)), st.sampled_from([0.1, 0.5, 2.0, 3.3])
)
numbers = st.sampled_from([-4, 0.0, 1, 2.5, 5])
dates = st.sampled_from(["2023-06-01", "2024-02-01", "2024-02-01T11:30:00+00:00", "2024-02-01T12:00:00.001"])
span = st.one_of(
    st.builds(Range, st.sampled_from(PROPERTIES), numbers, st.none() | numbers, st.booleans()),
    st.builds(Range, st.sampled_from(PROPERTIES), st.none() | dates, dates, st.booleans()),
)


def few(what: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.just(()), st.lists(what, max_size=2).map(tuple))


queries = st.builds(
    Query,
    history=st.dictionaries(st.sampled_from(["buy", "view"]), st.lists(ids | st.just("unheard of"), max_size=20)),
    weights=st.dictionaries(st.sampled_from(["buy", "view"]), st.sampled_from([0, 0.7, 1.0, 20])),
    history_weights=st.just({})
    | st.dictionaries(
        st.sampled_from(["buy", "view"]), st.dictionaries(ids, st.sampled_from([0.1, 1, 3.3, 1e6]), max_size=4)
    ),
    include=few(rule),
    exclude=few(rule),
    boost=few(boost),
    ranges=few(span),
    exclude_items=few(ids),
    candidates=st.none() | st.lists(ids, max_size=12),
    num=st.sampled_from([1, 3, 10, 1000]),
    offset=st.sampled_from([0, 0, 1, 4]),
    priors=st.dictionaries(st.sampled_from(CONFIG.prior_names), st.sampled_from([0.0, 1e-5, 0.2, 1.5])),
    backfill=st.sampled_from(["auto", "auto", "recent", "rank", "random", None]),
    shuffle=st.sampled_from([0.0, 0.3, 0.75, 1.0]),
    fields=st.sampled_from([None, None, (), ("color", "nothing")]),
    explain=st.booleans(),
)
operations = st.one_of(
    st.tuples(st.just("apply"), fields),
    st.tuples(st.just("apply"), fields),
    st.tuples(st.just("put_items"), st.dictionaries(ids, metadata, max_size=4)),
    st.tuples(st.just("update_items"), st.dictionaries(ids, metadata, max_size=3)),
    st.tuples(st.just("unset"), st.dictionaries(ids, st.lists(st.sampled_from(PROPERTIES)), max_size=2)),
    st.tuples(st.just("delete_items"), st.lists(ids, max_size=2)),
    st.tuples(st.just("search"), queries),
    st.tuples(st.just("search"), queries),
)


BAD_QUERIES: list[tuple[dict[str, Any], str]] = [
    ({"num": 0}, "num"),
    ({"num": 1001}, "num"),
    ({"num": True}, "num"),
    ({"num": 10.0}, "num"),
    ({"offset": -1}, "offset"),
    ({"offset": 10_001}, "offset"),
    ({"offset": 10**5000}, "offset"),
    ({"history": {"bye": ["a"]}}, "history.bye"),
    ({"history": {"buy": "a"}}, "history.buy"),
    ({"history": {"buy": ["a", 3]}}, "history.buy"),
    ({"history": {"buy": ["a"] * 10_001}}, "history.buy"),
    ({"history": {"buy": ["a"] * 6_000, "view": ["a"] * 6_000}}, "history"),
    ({"weights": {"purchase": 1.0}}, "weights.purchase"),
    ({"weights": {"buy": float("nan")}}, "weights.buy"),
    ({"weights": {"buy": -1.0}}, "weights.buy"),
    ({"weights": {"buy": 1e9}}, "weights.buy"),
    ({"history_weights": {"purchase": {}}}, "history_weights.purchase"),
    ({"history_weights": {"buy": {"a": 0}}}, "history_weights.buy.a"),
    ({"priors": {"hot": 0.1}}, "priors.hot"),
    ({"priors": {"popular": -0.1}}, "priors.popular"),
    ({"priors": {"popular": float("inf")}}, "priors.popular"),
    ({"backfill": "hot"}, "backfill"),
    ({"shuffle": 1.5}, "shuffle"),
    ({"shuffle": float("nan")}, "shuffle"),
    ({"include": (Rule("", ("x",)),)}, "include[0].field"),
    ({"include": (Rule("a", ("x",)), Rule("a", ()))}, "include[1].values"),
    ({"exclude": (Rule("a", ("x",) * 1_001),)}, "exclude[0].values"),
    ({"exclude": (Rule("a", ("x", None)),)}, "exclude[0].values[1]"),
    ({"exclude": (Rule("a", (float("nan"),)),)}, "exclude[0].values[0]"),
    ({"include": (Rule("a", ("x",), "some"),)}, "include[0].match"),
    ({"include": (Rule("a", ("x",)),) * 68}, "include, exclude, boost and ranges"),
    ({"boost": (Boost("a", ("x",), 0.0),)}, "boost[0].factor"),
    ({"boost": (Boost("a", ("x",), 1e7),)}, "boost[0].factor"),
    ({"boost": (Boost("a", ("x",), 1e6),) * 3}, "boost"),
    ({"boost": (Boost("a", ("x",), 1e-6),) * 3}, "boost"),
    ({"ranges": (Range("a"),)}, "ranges[0]"),
    ({"ranges": (Range("a", 1, "2024-01-01"),)}, "ranges[0]"),
    ({"ranges": (Range("a", "yesterday"),)}, "ranges[0].min"),
    ({"ranges": (Range("a", None, float("inf")),)}, "ranges[0].max"),
    ({"ranges": (Range("a", True),)}, "ranges[0].min"),
    ({"exclude_items": "abc"}, "exclude_items"),
    ({"exclude_items": ["a"] * 20_001}, "exclude_items"),
    ({"candidates": ["a", None]}, "candidates"),
]
BAD_ITEMS: list[tuple[dict[Any, Any], str]] = [
    ({"": {}}, "is empty"),
    ({"x" * 513: {}}, "513 bytes"),
    ({"a\0b": {}}, "NUL"),
    ({"\ud800": {}}, "not valid"),
    ({7: {}}, "not text"),
    ({"i": ["color"]}, "list"),
    ({"i": {"color": {"deep": 1}}}, "color"),
    ({"i": {"color": [["nested"]]}}, "color"),
    ({"i": {"price": float("nan")}}, "not finite"),
    ({"i": {"price": 2**60}}, "2\\^53"),
    ({"i": {"price": 10**5000}}, "2\\^53"),
    ({"i": {"color": "x" * 40_000}}, "40000 bytes"),
    ({"i": {"color": "\ud800"}}, "surrogate"),
    ({"i": {"a.b": 1}}, "dot"),
    ({"i": {"": 1}}, "name"),
    ({"i": {" \n": 1}}, "blank"),
    ({"i": {str(k): 1 for k in range(1_001)}}, "1001 properties"),
    ({"i": {"color": ["x"] * 1_001}}, "1001 values"),
]
