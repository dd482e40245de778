"""What is written into Elasticsearch: names, tokens, documents."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cco.config import make_config
from cco.vocabulary import Vocabulary
from model_sync.backfill import rank_value, shuffle_of, shuffle_values
from model_sync.contract import Range
from model_sync.elastic_documents import (
    equality_token,
    fields_json,
    identity_json,
    metadata_fields,
    ordered,
    properties_of,
    range_tokens,
    returned_properties,
    row_documents,
    tokens,
)
from model_sync.elastic_names import decoded, encoded
from model_sync.elastic_query import row_entries
from tests.model_sync.reference import patches
from tests.model_sync.samples import CONFIG, IDS, VALUES

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53)
TEXTS = st.text(max_size=6) | st.sampled_from(["x" * 201, "é" * 101, "#" + "0" * 64, "a\0b", "\1", "\1\2"])
SCALARS = st.booleans() | NUMBERS | TEXTS
NAMES = st.sampled_from(["a", "b", "a\0b", "a\1", "a\1\2", "\0", "t"]) | st.text(min_size=1, max_size=3)


@given(st.text(max_size=20), st.text(max_size=20))
def test_names_have_no_dots_and_come_back(one: str, other: str) -> None:
    for name in (one, other, one + "." + other, "%2E" + one, one + "%25"):
        assert "." not in encoded(name) and decoded(encoded(name)) == name
    assert (encoded(one) == encoded(other)) == (one == other)


@given(NUMBERS, NUMBERS)
def test_digits_are_in_the_order_of_the_numbers(one: float, other: float) -> None:
    assert (ordered(one) < ordered(other)) == (float(one) < float(other))
    assert (ordered(one) == ordered(other)) == (float(one) == float(other))
    assert len(ordered(one)) == 16


@given(NAMES, SCALARS, NAMES, SCALARS)
def test_tokens_are_equal_for_equal_values_only(name: str, value: Any, other_name: str, other: Any) -> None:
    alike = isinstance(value, bool) == isinstance(other, bool) and isinstance(value, str) == isinstance(other, str)
    same = name == other_name and alike and value == other
    assert (equality_token(name, value) == equality_token(other_name, other)) == same
    assert len(equality_token(name, value).encode()) < 32_766


@given(NAMES, NUMBERS, NUMBERS | st.none(), NUMBERS | st.none())
def test_ranges_hold_the_numbers_between(name: str, value: float, low: float | None, high: float | None) -> None:
    first, last = range_tokens(Range(name, low, high))
    found = any(first <= token <= last for token in tokens({name: value, name + "x": 0.5}))
    assert found == ((-math.inf if low is None else low) <= value <= (math.inf if high is None else high))


def test_dates_are_moments() -> None:
    first, last = range_tokens(Range("since", "2024-02-01T13:00:00+02:00", "2024-02-01T11:00:00Z"))
    assert first == last and first in tokens({"since": ["soon", "2024-02-01T11:00:00"]})
    assert tokens({"since": "soon"}) == ["+since", "=tsince\0soon"]
    assert tokens({"empty": [], "flag": [True, True]}) == ["+flag", "=bflag\x001"]


@pytest.mark.parametrize("value", VALUES)
def test_properties_come_back_as_they_were(value: Any) -> None:
    given_ = {"v": value} if value is not None else {}
    fields = json.loads(json.dumps(metadata_fields(CONFIG, given_, 7)))
    assert properties_of(fields) == returned_properties(fields["returned"]) == given_
    assert fields["known"] is True and fields["deleted"] is False
    assert fields["metadata_position"] == 7
    nothing: dict[str, Any] = {"available": [], "expires": []}
    gone = metadata_fields(CONFIG, None, None, deleted=True)
    assert (
        gone
        == {"known": False, "deleted": True, "properties": [], "returned": None, "tokens": [], "rank": None} | nothing
    )
    assert properties_of(gone) == {}


def test_ranks_and_numbers_by_chance() -> None:
    config = make_config({"items": {"rank": "position"}})
    assert metadata_fields(config, {"position": 2.5, "rank": 9}, None)["rank"] == 2.5
    assert [rank_value(v) for v in (0, -1, True, "3", [3], None, math.nan, 1e300)] == [0.0] * 7 + [rank_value(1e18)]
    items = Vocabulary()
    items.intern(IDS)
    assert [shuffle_of(item) for item in IDS] == shuffle_values(items.hashes).tolist()
    assert len({shuffle_of(item) for item in IDS}) == len(IDS)


def test_rows_are_whole_fields_by_encoded_names() -> None:
    items = Vocabulary()
    row = {"a.b": 2.0, "%2E": 1.5, "x" * 512: 0.5}
    given_ = {"i.": {"buy": row, "view": {}}, "j": {"priors": {"popular": 3.0, "recent": 4.0}}}
    first, second = row_documents(CONFIG, items, patches(CONFIG, items, given_))
    assert (first.item, second.item) == ("i.", "j")
    assert first.fields["view"] == b"[]"
    [stored] = json.loads(first.fields["buy"])
    assert list(stored) == ["a%2Eb", "%252E", "x" * 512]
    assert row_entries([stored]) == row
    whole = json.loads(b"{%b,%b}" % (identity_json(first.item), fields_json(first.fields)))
    assert whole == {
        "id": "i.",
        "shuffle": shuffle_of("i."),
        "rows": {"buy": [stored], "view": []},
        "filled": {"buy": True, "view": False},
    }
    assert json.loads(b"{%b}" % fields_json(second.fields)) == {
        "priors": [{"recent": 4.0, "popular": 3.0}],
        "filled": {"priors": True},
    }
