"""Messages of a source partition: whatever comes, the good ones count, the bad ones say why, and none harms another."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cco.events import CLOCK, DELETE_USER, MESSAGES_TOGETHER, EventBatch, EventParser, Parsed, Rejection
from cco.values import CODES
from cco.vocabulary import Vocabulary
from tests.cco.test_events import NOW, RECORDS, event, parser, pio, tuples

PARTITIONS = 5
PARTITION = 2


def partition_of(user: str, count: int = PARTITIONS) -> int:
    vocabulary = Vocabulary()
    vocabulary.intern([user])
    return int(vocabulary.partitions(count)[0])


NAMES = [*(f"u{k}" for k in range(200)), *(f'ü{k}\n,"' for k in range(50)), *map(str, range(50))]
HERE = [name for name in NAMES if partition_of(name) == PARTITION]
AWAY = [name for name in NAMES if partition_of(name) != PARTITION]
HERE_NUMBER = next(int(name) for name in HERE if name.isdigit())
HERE_FOREIGN = next(name for name in HERE if not name.isascii())


class Message(NamedTuple):
    value: bytes | None
    key: bytes | None
    log_time: int = NOW


def message(record: object, key: str | bytes | None = HERE[0], log_time: int = NOW, **options: object) -> Message:
    value = json.dumps(record, **options).encode()  # type: ignore[arg-type]  # options of json.dumps
    return Message(value, key.encode() if isinstance(key, str) else key, log_time)


def said(user: str, item: str | None = "i", key: str | None = None, **changes: object) -> Message:
    """An event of a user, under the user's key."""
    return message(event(user_id=user, item_id=item, **changes), user if key is None else key)


def parse(of: EventParser, messages: Sequence[Message]) -> Parsed:
    log_times = np.array([m.log_time for m in messages], np.int64)
    return of.messages([m.value for m in messages], [m.key for m in messages], log_times, PARTITION, PARTITIONS)


def names(of: Vocabulary) -> list[str]:
    return of.names(range(len(of)))


def refusal(of: Message) -> Rejection:
    """Why one message is refused; it interns nothing."""
    alone = parser()
    parsed = parse(alone, [of])
    assert len(parsed.batch) == len(alone.users) == len(alone.items) == 0
    assert parsed.item_changes == []
    (rejection,) = parsed.rejections
    assert rejection.line == 1
    assert rejection.code in CODES
    assert len(rejection.record) <= 200
    return rejection


GOOD = said(HERE[0])
GOOD_VALUE = json.dumps(event(user_id=HERE[0])).encode()
BAD: dict[str, tuple[Message, str, str]] = {  # message, code, part of the reason
    "tombstone": (Message(None, b"u"), "empty", "the message has no value (a tombstone)"),
    "tombstone without key": (Message(None, None), "empty", "no value"),
    "empty": (Message(b"", b"u"), "empty", "the message is empty"),
    "blank": (Message(b" \r\n", b"u"), "empty", "the message is empty"),
    "only a byte order mark": (Message(b"\xef\xbb\xbf", b"u"), "empty", "the message is empty"),
    "cut": (Message(b'{"user_id": "x", "item_id"', HERE[0].encode()), "json", "not valid JSON: Expecting ':'"),
    "cut after a break": (Message(b'{\n"user_id', HERE[0].encode()), "json", "at line 2, column 1"),
    "bytes": (Message(b"\x00\xff\xfe", b"u"), "json", "not valid UTF-8: byte 2 of the message"),
    "UTF-16": (Message(json.dumps(event()).encode("utf-16"), b"u"), "json", "not valid UTF-8"),
    "two objects": (Message(b"{}{}", b"u"), "json", "Extra data"),
    "two events": (Message(GOOD_VALUE + b"\n" + GOOD_VALUE, GOOD.key), "json", "Extra data"),
    "half of one that the next could complete": (Message(b'{"x": {}', b"u"), "json", "not valid JSON"),
    "deep": (Message(b"[" * 100_000, b"u"), "json", "nested too deeply"),
    "digits": (Message(b'{"user_id": ' + b"9" * 5_000 + b"}", b"u"), "json", "not valid JSON"),
    "array": (message([event()]), "shape", "not a JSON object but a list"),
    "null": (message(None), "shape", "not a JSON object but null"),
    "text": (message("x"), "shape", "not a JSON object but text"),
    "entity": (message(pio(entityType="pio_pr")), "shape", "entityType must be"),
    "delete with item": (said(HERE[0], event_type="$delete"), "shape", "$delete deletes a user"),
    "clock with item": (message({"event_type": "$clock", "timestamp": 5, "item_id": "i"}), "shape", "$clock moves"),
    "no type": (message({"user_id": HERE[0]}), "type", "the event type is missing"),
    "number as type": (said(HERE[0], event_type=3), "type", "the event type must be text"),
    "unknown type": (said(HERE[0], event_type="vew"), "type", 'did you mean "view"?'),
    "set of a user": (message(pio(event="$set", entityId=HERE[0])), "type", "properties of users are not used"),
    "view of an item": (message(pio(entityType="item")), "type", "an event of an item must be"),
    "no user": (message(event(user_id=None), b""), "user", "user_id is missing"),
    "empty user": (said(""), "user", "user_id is missing"),
    "long user": (said("x" * 513), "user", "has 513 bytes"),
    "user that is no text": (message(event(user_id="\ud800"), b"?"), "user", "user_id is not valid UTF-8"),
    "no item": (said(HERE[0], None), "item", "item_id is missing"),
    "item with NUL": (said(HERE[0], "a\0"), "item", "contains a NUL byte"),
    "item change with NUL": (message(pio(event="$set", entityType="item", entityId="\0")), "item", "NUL byte"),
    "clock without time": (message({"event_type": "$clock"}), "time", "$clock needs a timestamp"),
    "milliseconds": (said(HERE[0], timestamp=NOW * 1_000), "time", "looks like milliseconds"),
    "no date": (said(HERE[0], timestamp="soon"), "time", "neither epoch seconds nor"),
    "ahead": (said(HERE[0], timestamp=NOW + 86_401), "time", f"a day ahead of the record's log time {NOW}"),
    "no time at all": (message(event(user_id=HERE[0], timestamp=None), log_time=-1), "time", "its log time -1 is not"),
    "late log": (message(event(user_id=HERE[0], timestamp=None), log_time=1 << 40), "time", "is not within 1970 to"),
    "weight": (said(HERE[0], weight="2"), "weight", "weight must be a finite number"),
    "event_id": (said(HERE[0], event_id=3), "record", "event_id must be text"),
    "no key": (message(event(user_id=HERE[0]), None), "key", f"the key is missing; it must be the user id '{HERE[0]}'"),
    "empty key": (message(event(user_id=HERE[0]), b""), "key", "the key is empty"),
    "another key": (said(HERE[0], key=HERE[1]), "key", f"the key '{HERE[1]}' is not the user id '{HERE[0]}'"),
    "key of another here, user away": (said(AWAY[0], key=HERE[1]), "key", f"is not the user id '{AWAY[0]}'"),
    "longer key": (said(HERE[0], key=HERE[0] + "\0"), "key", "is not the user id"),
    "quoted key": (said(HERE[0], key=f'"{HERE[0]}"'), "key", f"the key '\"{HERE[0]}\"' is not the user id '{HERE[0]}'"),
    "key in Latin-1": (message(event(user_id="ü"), b"\xfc"), "key", r"the key '\\xfc' is not the user id 'ü'"),
    "long key": (said("ü" * 200, key="k" * 500), "key", f"the key '{'k' * 57}...' is not the user id '{'ü' * 57}...'"),
    "deletion by another": (message({"event_type": "$delete", "user_id": HERE[1]}), "key", "is not the user id"),
    "elsewhere": (
        said(AWAY[0]),
        "partition",
        f"the key '{AWAY[0]}' belongs to partition {partition_of(AWAY[0])} of 5, not to 2: its producer must partition"
        " by murmur2, as Kafka's Java client does (with librdkafka: partitioner=murmur2_random)",
    ),
    "deletion elsewhere": (message({"event_type": "$delete", "user_id": AWAY[1]}, AWAY[1]), "partition", "belongs to"),
    "PredictionIO elsewhere": (message(pio(entityId=AWAY[2]), AWAY[2]), "partition", "belongs to partition"),
    "set of an item": (message(pio(event="$set", entityType="item")), "item_change", "belongs to the topic items"),
    "deletion of an item": (
        message(pio(event="$delete", entityType="item", entityId=HERE[0])),
        "item_change",
        "belongs to the topic items",
    ),
    "set of nothing": (message(pio(event="$set", entityType="item", properties={})), "item_change", "needs properties"),
}


@pytest.mark.parametrize("name", BAD)
def test_refused(name: str) -> None:
    bad, code, reason = BAD[name]
    found = refusal(bad)
    assert (found.code, reason in found.reason) == (code, True), found


def test_every_code_is_tried() -> None:
    assert {code for _, code, _ in BAD.values()} == set(CODES)


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (GOOD, (HERE[0], "i", 0, NOW)),
        (said(HERE_FOREIGN, "ï" * 256), (HERE_FOREIGN, "ï" * 256, 0, NOW)),
        (message(event(user_id=HERE_FOREIGN), HERE_FOREIGN, ensure_ascii=False), (HERE_FOREIGN, "i", 0, NOW)),
        (message(event(user_id=HERE_NUMBER), str(HERE_NUMBER)), (str(HERE_NUMBER), "i", 0, NOW)),
        (message(event(user_id=HERE[0]), indent=2), (HERE[0], "i", 0, NOW)),
        (GOOD._replace(value=b"\r\n " + GOOD_VALUE + b"\n\n"), (HERE[0], "i", 0, NOW)),
        (GOOD._replace(value=b"\xef\xbb\xbf" + GOOD_VALUE), (HERE[0], "i", 0, NOW)),
        (message({"user": HERE[0], "item": "i", "event": "view"}), (HERE[0], "i", 2, NOW)),
        (message(pio(entityId=HERE[0], eventTime="2016-10-19")), (HERE[0], "i", 2, 1_476_835_200)),
        (message({"event_type": "$delete", "user_id": HERE[0], "timestamp": 7}), (HERE[0], None, DELETE_USER, 7)),
        (message({"event_type": "$delete", "user_id": HERE[0]}), (HERE[0], None, DELETE_USER, NOW)),
        (message({"event_type": "$clock", "timestamp": 7}, None), (None, None, CLOCK, 7)),
        (message({"event_type": "$clock", "timestamp": 7}, b""), (None, None, CLOCK, 7)),
        (message({"event_type": "$clock", "timestamp": 7}, AWAY[0]), (None, None, CLOCK, 7)),
        (message(event(user_id=HERE[0], timestamp=None), log_time=12), (HERE[0], "i", 0, 12)),
        (message(event(user_id=HERE[0], timestamp=86_412), log_time=12), (HERE[0], "i", 0, 86_412)),
    ],
)
def test_accepted(of: Message, expected: tuple[object, ...]) -> None:
    alone = parser()
    parsed = parse(alone, [of])
    assert parsed.rejections == []
    assert tuples(alone, parsed.batch) == [expected]
    assert names(alone.users) == ([expected[0]] if expected[0] else [])
    together = parser()  # it does the same in company
    assert tuples(together, parse(together, [GOOD, of, GOOD]).batch)[1] == expected


def test_partitions_are_those_of_kafka() -> None:
    """The hash is from UtilsTest of Apache Kafka: murmur2("21") == -973932308."""
    belongs = (-973_932_308 & 0x7FFF_FFFF) % 8
    for partition in range(8):
        of = parser()
        values = [message(event(user_id="21")).value]
        parsed = of.messages(values, [b"21"], np.array([NOW]), partition, 8)
        assert (len(parsed.batch), len(parsed.rejections)) == ((1, 0) if partition == belongs else (0, 1))
        assert len(of.users) == len(of.items) == len(parsed.batch)


def test_every_message_has_its_own_log_time() -> None:
    times = [None, 86_400 + 11, 86_400 + 13, None, 86_400 + 15, 86_400 + 14]  # the third and the fifth are ahead
    messages = [message(event(user_id=HERE[0], timestamp=time), log_time=10 + k) for k, time in enumerate(times)]
    parsed = parse(parser(), messages * MESSAGES_TOGETHER)
    assert parsed.batch.times.tolist() == [10, 86_411, 13, 86_414] * MESSAGES_TOGETHER
    assert [r.line for r in parsed.rejections[:3]] == [3, 5, 9]


@pytest.mark.parametrize("name", BAD)
def test_poison_harms_no_neighbour_wherever_it_is(name: str) -> None:
    bad = BAD[name][0]
    reason = refusal(bad)
    good = [said(HERE[k], f"i{k}", timestamp=k) for k in range(9)]
    for place in range(len(good) + 1):
        of = parser()
        parsed = parse(of, [*good[:place], bad, *good[place:]])
        assert parsed.batch.times.tolist() == list(range(9))
        assert names(of.users) == HERE[:9]
        assert names(of.items) == [f"i{k}" for k in range(9)]
        assert [(r.line, r.reason, r.code) for r in parsed.rejections] == [(place + 1, reason.reason, reason.code)]


def test_poison_in_a_large_batch() -> None:
    n = 2 * MESSAGES_TOGETHER + 200
    messages = [said(HERE[k % len(HERE)], f"i{k}", timestamp=k) for k in range(n)]
    places = [0, 1, 127, 128, 300, MESSAGES_TOGETHER - 1, MESSAGES_TOGETHER, 2 * MESSAGES_TOGETHER, n - 2, n - 1]
    kinds = list(BAD.values())
    for first in range(len(kinds)):
        of = parser()
        chosen = {place: kinds[(first + k) % len(kinds)] for k, place in enumerate(places)}
        parsed = parse(of, [chosen[k][0] if k in chosen else m for k, m in enumerate(messages)])
        expected = [k for k in range(n) if k not in chosen]
        assert parsed.batch.times.tolist() == expected
        assert names(of.items) == [f"i{k}" for k in expected]
        assert [(r.line, r.code) for r in parsed.rejections] == [(k + 1, chosen[k][1]) for k in places]


ANY_RECORD = st.one_of(
    RECORDS,
    st.builds(event, user_id=st.sampled_from(HERE + AWAY[:5]), item_id=st.sampled_from(["i", "ï", "k\0", 3])),
    st.builds(lambda user: {"event_type": "$delete", "user_id": user}, st.sampled_from(HERE[:3] + AWAY[:3])),
)


@st.composite
def any_message(draw: st.DrawFn) -> Message:
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from([bad for bad, _, _ in BAD.values()]))
    record = draw(ANY_RECORD)
    user = record.get("user_id", record.get("user", record.get("entityId")))
    value = json.dumps(record, indent=draw(st.sampled_from([None, None, None, 1]))).encode()
    key: bytes | None = str(user).encode(errors="replace")
    if draw(st.integers(0, 3)) == 0:
        key = draw(st.one_of(st.none(), st.binary(max_size=4), st.sampled_from(HERE[:3]).map(str.encode)))
    return Message(
        draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\n"])) + value, key, draw(st.integers(-1, 2 * NOW))
    )


def is_here(user: str | None, key: bytes | None) -> bool:
    return user is None or (key == user.encode() and partition_of(user) == PARTITION)


@settings(max_examples=300, deadline=None)
@given(st.lists(any_message(), max_size=15))
def test_a_message_means_the_same_in_any_company(messages: list[Message]) -> None:
    alone = parser()
    parts = [parse(alone, [m]) for m in messages]
    together = parser()
    whole = parse(together, messages)
    assert tuples(together, whole.batch) == tuples(alone, EventBatch.join([part.batch for part in parts]))
    assert names(together.users) == names(alone.users)
    assert names(together.items) == names(alone.items)
    expected = [(k + 1, r.reason, r.code, r.record) for k, part in enumerate(parts) for r in part.rejections]
    assert [(r.line, r.reason, r.code, r.record) for r in whole.rejections] == expected
    assert all(len(part.batch) + len(part.rejections) == 1 for part in parts)  # nothing is dropped silently
    assert whole.item_changes == []
    found = tuples(together, whole.batch)
    accepted = [m for m, part in zip(messages, parts, strict=True) if len(part.batch)]
    assert all(is_here(one[0], m.key) for one, m in zip(found, accepted, strict=True))
    assert set(names(together.users)) == {user for user, *_ in found if user is not None}
    assert set(names(together.items)) == {item for _, item, *_ in found if item is not None}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(ANY_RECORD, st.integers(0, 2 * NOW)), max_size=12))
def test_the_same_records_say_the_same_as_messages(records: list[tuple[dict[str, object], int]]) -> None:
    direct, by_message = parser(), parser()
    kept: list[dict[str, object]] = []
    messages: list[Message] = []
    for record, log_time in records:
        users = parser()
        parsed = users.records([record], log_time=log_time)
        user = next(iter(names(users.users)), "")
        if parsed.item_changes or (user and partition_of(user) != PARTITION):
            continue
        kept.append(record)
        messages.append(message(record, user, log_time))
    expected = direct.records(kept, log_time=np.array([m.log_time for m in messages], np.int64))
    found = parse(by_message, messages)
    assert tuples(by_message, found.batch) == tuples(direct, expected.batch)
    assert [(r.line, r.reason, r.code) for r in found.rejections] == [
        (r.line, r.reason, r.code) for r in expected.rejections
    ]
    assert names(by_message.users) == names(direct.users)


def test_keys_that_only_look_alike_when_joined() -> None:
    users = [f"{HERE[0]}\nx", "y"]
    of = parser()
    values = [message(event(user_id=user)).value for user in users]
    parsed = of.messages(values, [HERE[0].encode(), b"x\ny"], np.array([NOW, NOW]), 0, 1)
    assert [r.code for r in parsed.rejections] == ["key", "key"]
    assert len(of.users) == 0


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="1 values, 0 keys and 1 log times"):
        parser().messages([GOOD.value], [], np.array([NOW]), 0, 1)
    for partition, partitions in ((1, 1), (-1, 1), (0, 0), (0, 1 << 16)):
        with pytest.raises(ValueError, match="there is no partition"):
            parser().messages([GOOD.value], [GOOD.key], np.array([NOW]), partition, partitions)
    nothing = parser().messages([], [], np.empty(0, np.int64), 0, 1)
    assert (len(nothing.batch), nothing.rejections, nothing.item_changes) == (0, [], [])
