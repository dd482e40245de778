"""Poison on a real broker: each bad record is one dead letter, and its neighbours count as if it were not there."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from aiokafka.partitioner import murmur2

from agents.cli.main import main
from agents.kafka.dead_letter_topic import Choice, Listing, list_letters
from agents.kafka.dead_letters import LIMIT
from agents.kafka.reading import read_topic
from agents.kafka.topics import describe_topics
from agents.settings import Settings
from cco.batch import rebuild
from cco.config import parse_config
from cco.delivery import claim_message
from cco.event_data import EventBatch
from cco.model_file import encode
from tests.kafka.events import BEGIN, CONFIG, DAY, generated
from tests.kafka.world import MakeWorld, WorkerProcess, World, wait_for

SOURCES = 4
TOGETHER = 5  # records in a fetch, so in a batch
HOME = 2  # the partition of the poison
NOW_MS = 1000 * BEGIN  # what `timestamp` must not look like


def partition_of(key: str) -> int:
    return int(murmur2(key.encode()) & 0x7FFFFFFF) % SOURCES


def users_of(partition: int, number: int) -> list[str]:
    """The first `number` of user-0, user-1, ... whose key belongs to a partition."""
    found = (name for k in range(100_000) if partition_of(name := f"user-{k}") == partition)
    return [next(found) for _ in range(number)]


USER, OTHER = users_of(HOME, 2)
STRANGER = users_of((HOME + 1) % SOURCES, 1)[0]


def event(user: object = USER, item: object = "bad", kind: object = "purchase", **more: object) -> bytes:
    return json.dumps({"user_id": user, "item_id": item, "event_type": kind, "timestamp": BEGIN, **more}).encode()


Message = tuple[int, bytes | None, bytes | None]  # partition, key, value


@dataclass(frozen=True)
class Poison:
    """A record that is refused, and the code that says why."""

    name: str
    code: str
    value: bytes | None
    key: bytes | None = USER.encode()


POISONS = [
    Poison("not JSON", "json", b"\xff\xfe{no"),
    Poison("cut off", "json", event()[:-9]),
    Poison("two in one", "json", event() + b"\n" + event()),
    Poison("half a character", "item", event(item="x").replace(b'"x"', b'"\\ud83d"')),
    Poison("deep", "json", b"[" * 50_000),
    Poison("empty", "empty", b""),
    Poison("blank", "empty", b" \n"),
    Poison("null value", "empty", None),
    Poison("another's key", "key", event(), OTHER.encode()),
    Poison("no key", "key", event(), None),
    Poison("an empty key", "key", event(), b""),
    Poison("a key that is no text", "key", event(), b"\xff\x00"),
    Poison("another partition's user", "partition", event(STRANGER), STRANGER.encode()),
    Poison("a list", "shape", b"[1, 2]"),
    Poison("a number", "shape", b"7"),
    Poison("unknown type", "type", event(kind="purchased")),
    Poison("no type", "type", event(kind=None)),
    Poison("far ahead", "time", event(timestamp=int(time.time()) + 3 * DAY)),
    Poison("milliseconds", "time", event(timestamp=NOW_MS)),
    Poison("infinite time", "time", event().replace(str(BEGIN).encode(), b"1e999")),
    Poison("no user", "user", event(None)),
    Poison("long user", "user", event("u" * 600_000)),
    Poison("no item", "item", event(item="")),
    Poison("NUL in the item", "item", event(item="a\x00b")),
    Poison("weight", "weight", event(weight="much")),
    Poison("item change", "item_change", json.dumps(
        {"event": "$set", "entityType": "item", "entityId": "i1", "properties": {"a": [1]}}).encode(), b"i1"),
]  # fmt: skip
HUGE = ("user", event("u" * 5_000_000))  # more than a letter holds; the broker takes it, for it is compressed


def good_events(number: int) -> list[tuple[str, str, str, int]]:
    """Purchases and views of users of HOME; no two are alike."""
    random_, users = random.Random(11), users_of(HOME, 30)
    kinds = ["purchase", "purchase", "view"]
    return [
        (random_.choice(users), f"item-{int(25 * random_.random() ** 2)}", random_.choice(kinds), BEGIN + 60 * k)
        for k in range(number)
    ]


def as_message(row: tuple[str, str, str, int]) -> Message:
    user, item, kind, time = row
    return HOME, user.encode(), event(user, item, kind, timestamp=time)


def rebuilt(world: World, batches: Sequence[EventBatch]) -> bytes:
    """The batch model of these events, as a model file."""
    model = rebuild(world.config, batches, world.users, world.items)
    return b"".join(encode(model.rows(), model.items, world.config))


def letters_of(settings: Settings, **choice: Any) -> Listing:
    return asyncio.run(list_letters(settings, Choice(**choice), 100_000))


def end_of(world: World, topic: str) -> int:
    """Records in a topic."""
    found = asyncio.run(describe_topics(world.config, world.settings))
    return sum(p.end or 0 for t in found if t.name == world.settings.topic(topic) for p in t.partitions)


def test_poison_in_every_position_of_a_batch(make_world: MakeWorld, capsys: pytest.CaptureFixture[str]) -> None:
    world = make_world()
    good = good_events(4 * len(POISONS) * TOGETHER)
    messages: list[Message] = []
    expected: list[tuple[object, ...]] = []
    left = iter(good)
    for position in range(TOGETHER):
        for poison in POISONS:
            block = [as_message(next(left)) for _ in range(TOGETHER - 1)]
            block.insert(position, (HOME, poison.key, poison.value))
            expected.append((poison.code, HOME, len(messages) + position, poison.key, poison.value, None))
            messages += block
    code, huge = HUGE
    expected.append((code, HOME, len(messages), USER.encode(), huge[:1000], len(huge) + len(USER)))
    messages.append((HOME, USER.encode(), huge))
    assert world.produce_raw(messages) == list(range(len(messages)))

    # no snapshot is taken, so that the next life says all of it again
    small = {"CCO_FETCH_RECORDS": str(TOGETHER), "CCO_CHECKPOINT_EVERY": "1h"}
    worker = world.worker("alone", **small)
    world.settle()
    fetches = worker.metric("cco_fetch_records_count", topic=world.settings.topic("interactions"))
    assert fetches <= len(messages) / TOGETHER + 10  # they were as we meant them: whole batches of so many
    assert worker.metric("cco_events_applied_total") == len(good)
    counts = Counter(code for code, *_ in expected)
    assert {code: worker.metric("cco_dead_letters_total", code=str(code)) for code in counts} == counts
    world.check()
    assert world.batch() == rebuilt(world, [world.batch_of(good)])

    def told() -> list[tuple[object, ...]]:
        """The letters from HOME, by offset."""
        found = [filed.letter for filed in letters_of(world.settings).letters]
        assert {letter.topic for letter in found} == {world.settings.topic("interactions")}
        assert all(letter.reason and "\n" not in letter.reason for letter in found)
        home = sorted((letter for letter in found if letter.partition == HOME), key=lambda letter: letter.offset)
        return [
            (x.code, x.partition, x.offset, x.key, x.value if x.size is None else (x.value or b"")[:1000], x.size)
            for x in home
        ]

    assert told() == expected
    assert LIMIT * 0.9 < max(len(filed.letter.value or b"") for filed in letters_of(world.settings).letters) < LIMIT

    worker.kill()
    written = end_of(world, "dead-letters")
    worker.environment = {}
    worker.start()
    check_misplaced_ones_are_retried(world, good, capsys)
    assert end_of(world, "dead-letters") >= written + len(expected) - TOGETHER  # they were written again,
    assert told()[: len(expected)] == expected  # and count once
    check_late_and_repeated_events(world)


def check_misplaced_ones_are_retried(
    world: World, good: list[tuple[str, str, str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A producer with another partitioner: `cco dead-letters retry` brings its events to where they belong."""
    random_ = random.Random(12)
    rows = [(f"user-{k % 50}", f"lost-{random_.randrange(6)}", "purchase", BEGIN + 7 * DAY) for k in range(200)]
    ours = [(crc32(user.encode()) % SOURCES, user) for user, *_ in rows]
    messages = [
        (p, user.encode(), event(*row[:3], timestamp=row[3])) for (p, user), row in zip(ours, rows, strict=True)
    ]
    lost = sum(partition_of(user) != partition for partition, user in ours)
    assert 0 < lost < len(rows)
    world.produce_raw(messages)
    world.settle()
    world.check()
    before = letters_of(world.settings, code="partition")
    assert before.found - before.retried == lost + TOGETHER  # and those of the other test
    capsys.readouterr()
    for sent in (lost + TOGETHER, 0):
        assert (
            main(["dead-letters", "retry", "--config", str(world.config_file), "--reason", "partition", "--json"]) == 0
        )
        assert json.loads(capsys.readouterr().out)["sent"] == sent
    assert letters_of(world.settings, code="partition").retried == lost + TOGETHER
    world.settle()
    world.check()
    stranger = [(STRANGER, "bad", "purchase", BEGIN)]
    assert world.model() == rebuilt(world, [world.batch_of([*good, *rows, *stranger])])
    assert world.model().count(b'"lost-') > 0


def check_late_and_repeated_events(world: World) -> None:
    """Everything again, in another order, and what is far too late."""
    batch = generated(world, 1_500, seed=13)
    order = np.random.default_rng(14).permutation(len(batch))
    late = world.batch_of([(f"user-{k % 40}", f"item-{k % 7}", "view", BEGIN - 100 * DAY + k) for k in range(200)])
    again = EventBatch(batch.users[order], batch.items[order], batch.types[order], batch.times[order])
    for some in (batch, again, late, batch):
        world.produce(some)
    world.settle()
    world.check()


def edits_message(world: World) -> bytes:
    """One that a worker wrote."""

    async def first() -> bytes:
        async for records in read_topic(world.settings, "edits"):
            return max((value for value in records.values if value), key=len)
        raise AssertionError("there are no edits")

    return asyncio.run(first())


def test_garbage_among_edits_and_requests_harms_nobody(make_world: MakeWorld) -> None:
    world = make_world()
    worker = world.worker("alone")
    world.produce(generated(world, 1_000, seed=15))
    world.settle()
    true, config = edits_message(world), world.config
    damaged = bytes([*true[:-1], true[-1] ^ 1])
    other = parse_config(CONFIG.replace("user_cap = 12", "user_cap = 13"), "other")
    foreign = claim_message(other.epoch, SOURCES, 0, 1, session=1)
    unfit = claim_message(config.epoch, SOURCES, 0, 2, session=1)
    bad = [b"garbage", None, b"", damaged, true[:40], foreign, unfit]
    for number, value in enumerate(bad, 1):  # one at a time: after what cannot be read, the worker begins anew
        (offset,) = world.produce_raw([(0, b"key", value)], "edits")
        wait_for(partial(_is_past, worker, offset), f"the worker to go on after {value!r}")
        wait_for(lambda: letters_of(world.settings, code="message").found == number, f"letter {number}")  # noqa: B023
    assert [filed.letter.value for filed in letters_of(world.settings).letters] == bad
    requests: list[dict[str, object]] = [
        {"epoch": config.epoch, "partition": 99, "claim": 1 << 40, "sources": [0, 77, -1]},
        {"epoch": config.epoch, "partition": -1, "claim": 1, "sources": [0]},
        {"epoch": other.epoch, "partition": 0, "claim": 1 << 40, "sources": [0]},
    ]
    texts: Iterable[bytes | None] = [b"{", None, b"\xff", *(json.dumps(request).encode() for request in requests)]
    world.produce_raw([(0, b"key", text) for text in texts], "control")
    world.produce(generated(world, 1_000, seed=16))
    world.settle()
    world.check()
    assert worker.running and worker.is_ready()
    assert worker.metric("cco_gaps_total") >= 5  # unreadable messages are as good as lost


def _is_past(worker: WorkerProcess, offset: int) -> bool:
    """Whether item partition 0 is filled, beyond an offset of its log."""
    of_items = ((worker.status() or {}).get("edits") or {}).get("0")
    return bool(of_items and of_items["filled"] and of_items["position"] > offset)
