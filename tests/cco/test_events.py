"""From records to events: every record is accepted or refused with a reason, and never harms another."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cco.config import parse_config
from cco.events import CLOCK, DELETE_USER, EventBatch, EventParser, ItemChange, Parsed
from cco.times import BAD, MISSING, times_of
from cco.vocabulary import Vocabulary

CONFIG = parse_config('[indicators.purchase]\nremoved_by = ["return"]\n[indicators.view]', "test")
TYPES = {"purchase": 0, "return": 1, "view": 2}
NOW = 1_476_884_080
DTYPES = ["uint32", "uint32", "int16", "uint32"]


def parser() -> EventParser:
    return EventParser(CONFIG, Vocabulary(), Vocabulary())


def tuples(of: EventParser, batch: EventBatch) -> list[tuple[str | None, str | None, int, int]]:
    """(user, item, type, time) of each event, checking the shapes on the way."""
    assert [str(c.dtype) for c in (batch.users, batch.items, batch.types, batch.times)] == DTYPES
    assert len(batch) == batch.users.size == batch.items.size == batch.times.size
    return [
        (
            of.users.name(int(user)) if kind != CLOCK else None,
            of.items.name(int(item)) if kind >= 0 else None,
            int(kind),
            int(time),
        )
        for user, item, kind, time in zip(batch.users, batch.items, batch.types, batch.times, strict=True)
    ]


def one(record: object, log_time: int | None = None) -> Any:
    """What one record becomes: a tuple, an ItemChange or the reason; by way of lines where it can be written."""
    of = parser()
    direct = outcome(of, of.records([record], log_time=log_time))
    try:
        line = json.dumps(record).encode()
    except (TypeError, ValueError):
        return direct
    of = parser()
    assert outcome(of, of.lines(line, log_time=log_time)) == direct
    return direct


def outcome(of: EventParser, parsed: Parsed) -> Any:
    found = [
        *tuples(of, parsed.batch),
        *parsed.item_changes,
        *(rejection.reason for rejection in parsed.rejections),
    ]
    assert len(found) == 1
    if isinstance(found[0], str):
        assert len(of.users) == len(of.items) == 0  # what is refused interns nothing
    return found[0]


def event(**changes: object) -> dict[str, object]:
    return {"user_id": "u", "item_id": "i", "event_type": "purchase", "timestamp": NOW} | changes


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (event(), ("u", "i", 0, NOW)),
        (event(event_type="return", context={"a": [1]}, event_id="e1", weight=2), ("u", "i", 1, NOW)),
        (event(timestamp=NOW + 0.9), ("u", "i", 0, NOW)),
        (event(timestamp="2016-10-19T13:34:40Z"), ("u", "i", 0, NOW)),
        (event(timestamp="2016-10-19T15:34:40.7+02:00"), ("u", "i", 0, NOW)),
        (event(timestamp="2016-10-19T13:34:40"), ("u", "i", 0, NOW)),
        (event(timestamp="2016-10-19"), ("u", "i", 0, 1_476_835_200)),
        (event(timestamp=str(NOW)), ("u", "i", 0, NOW)),
        (event(timestamp=f" {NOW}.5 "), ("u", "i", 0, NOW)),
        (event(timestamp=datetime(2016, 10, 19, 13, 34, 40, tzinfo=UTC)), ("u", "i", 0, NOW)),
        (event(timestamp=np.int64(NOW), weight=np.float32(1)), ("u", "i", 0, NOW)),
        (event(timestamp=None), ("u", "i", 0, 0)),
        (event(timestamp=""), ("u", "i", 0, 0)),
        (event(timestamp=4_102_444_800), ("u", "i", 0, 4_102_444_800)),
        (event(user_id=17, item_id=-3), ("17", "-3", 0, NOW)),
        (event(user_id="é" * 256, item_id="x" * 512), ("é" * 256, "x" * 512, 0, NOW)),
        ({"user": "u", "item": "i", "event": "view", "timestamp": NOW}, ("u", "i", 2, NOW)),
        ({"user_id": "u", "item": "i", "event": "view", "timestamp": NOW}, ("u", "i", 2, NOW)),
        ({"user": "u", "item": "i", "event_type": "view"}, ("u", "i", 2, 0)),
        ({"event_type": "$delete", "user_id": "u", "timestamp": NOW}, ("u", None, DELETE_USER, NOW)),
        ({"event_type": "$clock", "timestamp": NOW}, (None, None, CLOCK, NOW)),
    ],
)
def test_accepted(record: dict[str, object], expected: tuple[object, ...]) -> None:
    assert one(record) == expected


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (event(user_id="x" * 513), "user_id has 513 bytes; at most 512"),
        (event(item_id="é" * 257), "item_id has 514 bytes"),
        (event(item_id="a\0b"), "item_id contains a NUL"),
        (event(item_id="\ud800"), "item_id is not valid UTF-8"),
        (event(user_id=""), "user_id is missing"),
        (event(item_id=None), "item_id is missing"),
        (event(user_id=True), "user_id must be text or a whole number, not true or false"),
        (event(user_id=1.0), "user_id must be text or a whole number, not a number"),
        (event(item_id=["i"]), "item_id must be text or a whole number, not a list"),
        (
            event(event_type="purchas"),
            "no indicator names the event type 'purchas' (did you mean \"purchase\"?); known: pu",
        ),
        (event(event_type=None), "the event type is missing"),
        (event(event_type=3), "the event type must be text, not a number"),
        (event(event_type="$set"), "no indicator names the event type '$set'"),
        (event(timestamp=-1), "the time -1 is before 1970-01-01"),
        (event(timestamp=-0.5), "the time -0.5 is before 1970-01-01"),
        (event(timestamp=4_102_444_801), "after 2100-01-01"),
        (event(timestamp="9999-12-31T00:00:00Z"), "after 2100-01-01"),
        (event(timestamp="0001-01-01T00:00:00+23:00"), "before 1970"),
        (event(timestamp=NOW * 1_000), f"the time {NOW * 1_000} looks like milliseconds: divide by 1000"),
        (event(timestamp=str(NOW * 1_000)), "looks like milliseconds"),
        (event(timestamp=float(10**11)), "looks like milliseconds"),
        (event(timestamp=2.0**70), "looks like milliseconds"),
        (event(timestamp=math.nan), "the time nan is not a finite number"),
        (event(timestamp=math.inf), "the time inf is not a finite number"),
        (event(timestamp=10**400), "the time inf is not a finite number"),
        (event(timestamp="soon"), "the time 'soon' is neither epoch seconds nor ISO 8601"),
        (event(timestamp="0x10"), "neither epoch seconds nor"),
        (event(timestamp="9" * 5_000), "not a finite number"),
        (event(timestamp=True), "the time must be epoch seconds or ISO 8601, not bool"),
        (event(timestamp=[NOW]), "the time must be epoch seconds or ISO 8601, not list"),
        (event(weight=math.nan), "weight must be a finite number, not nan"),
        (event(weight=-math.inf), "weight must be a finite number, not -inf"),
        (event(weight="2"), "weight must be a finite number, not 2"),
        (event(weight=True), "weight must be a finite number, not True"),
        (event(event_id=3), "event_id must be text, not a number"),
        ({"event_type": "$delete"}, "user_id is missing"),
        ({"event_type": "$delete", "user_id": "u", "item_id": "i"}, "$delete deletes a user"),
        ({"event_type": "$clock"}, "$clock needs a timestamp"),
        ({"event_type": "$clock", "timestamp": NOW, "user_id": "u"}, "$clock moves the time on"),
        ({}, "the event type is missing"),
        ([1], "the record is not a JSON object but a list"),
        ("text", "the record is not a JSON object but text"),
        (None, "the record is not a JSON object but null"),
    ],
)
def test_refused(record: object, reason: str) -> None:
    found = one(record)
    assert isinstance(found, str)
    assert reason in found


def pio(**changes: object) -> dict[str, object]:
    base = {"event": "view", "entityType": "user", "entityId": "u", "targetEntityType": "item", "targetEntityId": "i"}
    return base | {"eventTime": "2016-10-19T13:34:40.000Z", "properties": {"x": 1}} | changes


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (pio(), ("u", "i", 2, NOW)),
        (pio(entityId=5, eventTime=None), ("5", "i", 2, 0)),
        (pio(event="$delete", targetEntityId=None), ("u", None, DELETE_USER, NOW)),
        (pio(event="$set", entityType="item", entityId="i"), ItemChange("i", "set", {"x": 1})),
        (pio(event="$unset", entityType="item", entityId=7), ItemChange("7", "unset", {"x": 1})),
        (pio(event="$delete", entityType="item", entityId="i", properties=None), ItemChange("i", "delete", {})),
        (pio(event="$set"), "$set of a user: properties of users are not used"),
        (pio(event="$set", entityType="item", properties={}), "$set of an item needs properties"),
        (pio(event="$set", entityType="item", properties=[1]), "properties must be an object"),
        (pio(event="$set", entityType="item", entityId="a\0"), "entityId contains a NUL byte"),
        (pio(event="$set", entityType="item", entityId=1.5), "entityId must be text or a whole number"),
        (pio(event="view", entityType="item"), 'an event of an item must be "$set"'),
        (pio(entityType="pio_pr"), 'entityType must be "user" or "item", not \'pio_pr\''),
        (pio(targetEntityId=None), "item_id is missing"),
        (pio(eventTime="later"), "the time 'later' is neither"),
        (pio(event="$delete"), "$delete deletes a user"),
    ],
)
def test_prediction_io(record: dict[str, object], expected: object) -> None:
    found = one(record)
    assert expected in found if isinstance(expected, str) else found == expected


def test_log_time() -> None:
    assert one(event(timestamp=None), NOW) == ("u", "i", 0, NOW)
    assert one(event(timestamp=NOW + 86_400), NOW) == ("u", "i", 0, NOW + 86_400)
    assert "more than a day ahead of the record's log time" in one(event(timestamp=NOW + 86_401), NOW)
    of = parser()
    records = [event(timestamp=None), event(timestamp=10**6), event(timestamp=None)]
    parsed = of.records(records, log_time=np.array([5, 6, 7]))
    assert parsed.batch.times.tolist() == [5, 7]
    assert [rejection.line for rejection in parsed.rejections] == [2]


def test_lines_that_are_no_json() -> None:
    of = parser()
    good = json.dumps(event()).encode()
    bad = [
        b"{",
        b"\xff\xfe",
        good[:-1],
        good + good,
        good + b" " + good,
        b"[" * 100_000,
        b'{"event_type": ' + b"9" * 5_000 + b"}",
        b'{"user_id":"a","item_id":"b","event_type":"view","weight":1e999}',
        b'{"user_id":' + b"9" * 5_000 + b',"item_id":"b","event_type":"view"}',
        b'{"user_id":"a\0","item_id":"b","event_type":"view"}',
    ]
    lines = [line for wrong in bad for line in (wrong, good)]
    parsed = of.lines(b"\n".join(lines), first=100)
    assert len(parsed.batch) == len(bad)
    assert [rejection.line for rejection in parsed.rejections] == list(range(100, 100 + 2 * len(bad), 2))
    assert len(of.users) == len(of.items) == 1
    assert all(len(rejection.record) <= 200 and rejection.reason for rejection in parsed.rejections)


def test_an_object_over_two_lines_is_two_bad_lines() -> None:
    good = json.dumps(event())
    spread = good[:-1] + ', "x":\n{}}'
    for text in (
        f"{good} {good}",
        f"{spread}\n{good} {good}",
        f'{{"event_type":\n{good[1:]}\n{good} {good}',
        f"{good}\n{good[:9]}\r{good[9:]}\n{good} {good}",
    ):
        of = parser()
        parsed = of.lines(text.encode())
        assert len(parsed.batch) + len(parsed.rejections) == text.count("\n") + 1
        assert len(parsed.rejections) >= 1


def test_blank_lines_count_and_say_nothing() -> None:
    of = parser()
    good = json.dumps(event()).encode()
    parsed = of.lines(b"\n \r\n" + good + b"\r\n\n" + good + b"\nx\n\n")
    assert len(parsed.batch) == 2
    assert [(rejection.line, rejection.record) for rejection in parsed.rejections] == [(6, "x")]
    assert of.lines(b"").rejections == of.lines(b"\n\n").rejections == []


def test_many_lines_with_a_bad_one_here_and_there() -> None:
    lines = [json.dumps(event(user_id=f"u{k}", timestamp=k)).encode() for k in range(2_000)]
    odd = [b"", b"bad", json.dumps(pio(eventTime=7)).encode(), b"{}"]
    for n, k in enumerate((0, 1, 2, 3, 127, 128, 130, 383, 700, 1_023, 1_998, 1_999)):
        lines[k] = odd[n % 4].replace(b"7", str(k).encode())
    lines[511] = lines[639] = b""  # the last ones of what is tried together
    of = parser()
    parsed = of.lines(b"\n".join(lines), first=1)
    expected = [k for k in range(2_000) if b"user_id" in lines[k] or b"entityId" in lines[k]]
    assert parsed.batch.times.tolist() == expected
    bad = [k for k in range(2_000) if k not in expected and lines[k]]
    assert [rejection.line for rejection in parsed.rejections] == [k + 1 for k in bad]
    assert [rejection.record for rejection in parsed.rejections] == [lines[k].decode() for k in bad]


RECORDS = st.one_of(
    st.builds(
        event,
        user_id=st.sampled_from(["a", "b", "", "x" * 513, 7, None]),
        item_id=st.sampled_from(["i", "j", "k\0", 3, 1.5]),
        event_type=st.sampled_from(["purchase", "view", "return", "vew", "$delete", "$clock"]),
        timestamp=st.sampled_from([0, NOW, NOW + 0.5, "2020-01-01", "x", None, -1, 10**12]),
    ),
    st.builds(
        pio, event=st.sampled_from(["view", "$set", "$delete", "x"]), entityType=st.sampled_from(["user", "item"])
    ),
    st.builds(lambda u: {"user": u, "item": "i", "event": "view"}, st.sampled_from(["a", "c", None])),
)
LINES = st.one_of(
    RECORDS.map(lambda record: json.dumps(record).encode()),
    st.just(json.dumps(event()).encode()),
    st.binary(max_size=20).map(lambda data: data.replace(b"\n", b"")),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=12), st.data())
def test_a_line_means_the_same_in_any_company(lines: list[bytes], data: st.DataObject) -> None:
    alone = parser()
    parts = [alone.lines(line, first=k + 1) for k, line in enumerate(lines)]
    together = parser()
    whole = together.lines(b"\n".join(lines))
    assert tuples(together, whole.batch) == tuples(alone, EventBatch.join([part.batch for part in parts]))
    assert whole.rejections == [rejection for part in parts for rejection in part.rejections]
    assert whole.item_changes == [change for part in parts for change in part.item_changes]
    assert together.users.names(range(len(together.users))) == alone.users.names(range(len(alone.users)))
    for line, part in zip(lines, parts, strict=True):
        said = len(part.batch) + len(part.rejections) + len(part.item_changes)
        assert said == (1 if line.strip() else 0)
    cut = data.draw(st.integers(0, len(lines)))
    halves = parser()
    batches = [halves.lines(b"\n".join(half)).batch for half in (lines[:cut], lines[cut:])]
    assert tuples(halves, EventBatch.join(batches)) == tuples(together, whole.batch)


@given(st.lists(st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.none())))
def test_times_of_agrees_with_one_by_one(values: list[object]) -> None:
    together = times_of(values)
    assert together.dtype == np.int64
    assert together.tolist() == [int(times_of([value, "x"])[0]) for value in values]
    assert all(t in (BAD, MISSING) or 0 <= t <= 4_102_444_800 for t in together.tolist())


def test_batches_join_and_part() -> None:
    of = parser()
    batch = of.records([event(user_id=name) for name in "abc"]).batch
    joined = EventBatch.join([batch.part(0, 1), batch.part(1, 3)])
    assert joined.users.tolist() == batch.users.tolist() == [0, 1, 2]
    assert len(EventBatch.join([])) == 0
