"""Producing on a real broker: what is in the log afterwards, also when answers are lost and brokers die."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiokafka.partitioner import DefaultPartitioner

from agents.kafka import producing
from agents.kafka.client import KafkaProblem
from agents.kafka.item_changes import ItemRecords, encode_change
from agents.kafka.producing import EventProducer, Produced, produce
from agents.kafka.reading import Records, read_topic
from agents.kafka.topics import create_topics
from agents.settings import Settings
from cco.config import Config, Retention, make_config
from cco.event_data import EventBatch, ItemChange
from cco.values import BadRecord
from cco.vocabulary import Vocabulary
from tests.cco.histories import Event, to_batch
from tests.oracle import partition_of
from tests.servers.cutting_proxy import CuttingProxy
from tests.servers.kafka import KafkaServer, fetch_kafka

SOURCES = 3
CONFIG = make_config(
    {"primary": "buy", "indicators": {"buy": {}, "view": {}}, "retention": {"source_partitions": SOURCES}}
)
USERS = ("u1", "u2", "ü", "用户", 'quo"te\\', "\x1f", "\U0001f600", "a b")


@pytest.fixture
def settings(kafka: KafkaServer, topic_prefix: str) -> Settings:
    made = Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix)
    asyncio.run(create_topics(CONFIG, made))
    return made


def messages_in(settings: Settings, topic: str = "interactions") -> list[Records]:
    async def read() -> list[Records]:
        return [records async for records in read_topic(settings, topic)]

    return asyncio.run(read())


def log_of(settings: Settings) -> list[list[tuple[bytes | None, dict[str, Any]]]]:
    """(key, value) of each message, by partition."""
    found: list[list[tuple[bytes | None, dict[str, Any]]]] = [[] for _ in range(SOURCES)]
    for records in messages_in(settings):
        pairs = zip(records.keys, records.values, strict=True)
        found[records.partition] += [(key, json.loads(value or b"")) for key, value in pairs]
    return found


def message_of(event: Event) -> tuple[bytes | None, dict[str, Any]]:
    user, kind, item, time_ = event
    if kind == "$clock":
        return None, {"event_type": kind, "timestamp": time_}
    value = {"user_id": user, "event_type": kind, "timestamp": time_}
    return user.encode(), value if kind == "$delete" else value | {"item_id": item}


def send(settings: Settings, work: Sequence[Any], users: Vocabulary, items: Vocabulary, **options: Any) -> Produced:
    return asyncio.run(produce(settings, CONFIG, users, items, work, **options))


def test_the_log_is_what_was_sent_in_order_and_where_java_would_put_it(settings: Settings) -> None:
    rng = np.random.default_rng(1)
    log: list[Event] = [
        (USERS[rng.integers(len(USERS))], ("buy", "view", "$delete", "$clock")[rng.integers(4)], f'i"{k % 7}', k)
        for k in range(500)
    ]
    users, items = Vocabulary(), Vocabulary()
    users.intern(["stranger"])  # so that position 0, which clock events hold, is somebody
    batches = [to_batch(CONFIG, log[at : at + 90], users, items) for at in range(0, len(log), 90)]
    done = send(settings, batches, users, items)
    clocks = sum(kind == "$clock" for _, kind, _, _ in log)
    found = log_of(settings)
    for partition in range(SOURCES):
        mine = [e for e in log if e[1] == "$clock" or partition_of(e[0], SOURCES) == partition]
        assert found[partition] == [message_of(event) for event in mine]
        assert done.offsets[partition] == len(mine)
        keys = {key for key, _ in found[partition] if key is not None}
        assert {DefaultPartitioner()(key, range(SOURCES), range(SOURCES)) for key in keys} == {partition}
    assert (done.events, done.messages) == (len(log), len(log) + (SOURCES - 1) * clocks)


def test_many_batches_stay_in_order(settings: Settings) -> None:
    number = 60_000
    users, items = Vocabulary(), Vocabulary()
    users.intern([f"user-{k:05}" for k in range(1000)])
    items.intern([f"item-{k:03}" for k in range(100)])
    order = np.arange(number, dtype=np.uint32)
    batch = EventBatch(order % 1000, order % 100, np.zeros(number, np.int16), order)
    before = int(time.time())
    done = send(settings, [batch.part(at, at + 25_000) for at in range(0, number, 25_000)], users, items)
    assert (done.events, sum(done.offsets.values())) == (number, number)
    times: list[list[int]] = [[] for _ in range(SOURCES)]
    for records in messages_in(settings):
        times[records.partition] += [json.loads(value or b"")["timestamp"] for value in records.values]
        assert before <= records.seconds.min() <= records.seconds.max() <= time.time()
    of_user = users.partitions(SOURCES)[order % 1000]
    assert times == [order[of_user == partition].tolist() for partition in range(SOURCES)]


def test_nothing_is_no_work(settings: Settings) -> None:
    assert send(settings, [EventBatch.join([])], Vocabulary(), Vocabulary()) == Produced()


def test_rate_paces_the_events(settings: Settings) -> None:
    users, items = Vocabulary(), Vocabulary()
    batch = to_batch(CONFIG, [("u1", "buy", "i1", k) for k in range(300)], users, items)
    begin = time.perf_counter()
    done = send(settings, [batch.part(0, 200), batch.part(200, 300)], users, items, rate=1000.0)
    assert time.perf_counter() - begin >= 0.3
    assert done.events == 300


def test_item_changes_are_in_the_log_as_they_were_said(settings: Settings) -> None:
    changes = [
        ItemChange("a", "set", {"title": "ä", "price": 1}),
        ItemChange("b", "set", {"title": "B"}),
        ItemChange("a", "set", {"price": 2, "tags": ["x", "y"]}),
        ItemChange("a", "unset", {"title": None}),
        ItemChange("b", "delete"),
    ]
    send(settings, [(EventBatch.join([]), changes[:2])], Vocabulary(), Vocabulary())
    send(settings, [(EventBatch.join([]), changes[2:])], Vocabulary(), Vocabulary())
    records = ItemRecords(CONFIG)
    found = [records.decode(key, value) for read in messages_in(settings, "items")
             for key, value in zip(read.keys, read.values, strict=True)]  # fmt: skip
    for item in ("a", "b"):  # one partition has all of an item
        assert [change for change in found if change.item_id == item] == [c for c in changes if c.item_id == item]
    assert records.decode(b"a", None) == ItemChange("a", "delete")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (b"a", b"{", "not valid JSON"),
        (b"b", encode_change(ItemChange("a", "delete"))[1], "the key is 'b', and the record is about 'a'"),
        (b"\xff", None, "the key is not UTF-8"),
        (b"", None, "item id"),
        (b"a", b'{"user_id":"u","item_id":"a","event_type":"buy"}', "not a change of an item"),
        (b"a", encode_change(ItemChange("a", "set", {"p": {"q": 1}}))[1], "is of type dict"),
    ],
)
def test_what_is_no_change_of_an_item_says_why(key: bytes, value: bytes | None, reason: str) -> None:
    with pytest.raises(BadRecord, match=reason):
        ItemRecords(CONFIG).decode(key, value)


def test_topics_that_do_not_fit_are_refused(settings: Settings, kafka: KafkaServer) -> None:
    nothing = [EventBatch.join([])]

    def sending(config: Config, settings: Settings) -> str:
        with pytest.raises(KafkaProblem) as caught:
            asyncio.run(produce(settings, config, Vocabulary(), Vocabulary(), nothing))
        return str(caught.value)

    name = settings.topic("interactions")
    assert sending(Config(), settings) == (
        f"Kafka at {kafka.bootstrap}: the topic {name} has 3 partitions, and the configuration wants 1: create it"
        " anew or correct the configuration (retention.source_partitions)"
    )
    other = Settings(brokers=kafka.bootstrap, topic_prefix=settings.topic_prefix + "x")
    assert sending(CONFIG, other) == (
        f"Kafka at {kafka.bootstrap} has no topic {other.topic('interactions')}: `cco topics create` makes it"
    )


def test_what_is_sent_when_the_input_fails_is_what_came_before(settings: Settings) -> None:
    users, items = Vocabulary(), Vocabulary()

    def work() -> Iterator[EventBatch]:
        yield to_batch(CONFIG, [("u1", "buy", "i1", 1)], users, items)
        raise ValueError("the input is damaged")

    with pytest.raises(ValueError, match="the input is damaged"):
        asyncio.run(produce(settings, CONFIG, users, items, work()))
    assert sum(len(messages) for messages in log_of(settings)) == 1


def numbered(users: Vocabulary, items: Vocabulary, begin: int, end: int) -> EventBatch:
    """Events whose times are their numbers."""
    users.intern([f"u{k}" for k in range(50)])
    items.intern(["i"])
    order = np.arange(begin, end, dtype=np.uint32)
    return EventBatch(order % 50, np.zeros_like(order), np.zeros(order.size, np.int16), order)


def in_log(settings: Settings, config: Config) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in range(config.retention.source_partitions)]
    for records in messages_in(settings):
        found[records.partition] += [json.loads(value or b"")["timestamp"] for value in records.values]
    return found


def expected(config: Config, users: Vocabulary, number: int) -> list[list[int]]:
    sources = config.retention.source_partitions
    partition = users.partitions(sources)[np.arange(number) % 50]
    return [np.flatnonzero(partition == source).tolist() for source in range(sources)]


def test_lost_answers_and_a_killed_broker_neither_lose_nor_repeat_nor_swap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(retention=Retention(source_partitions=2))
    users, items, number, step = Vocabulary(), Vocabulary(), 60_000, 1_000
    with CuttingProxy(lose={2, 3, 7, 12, 13, 14}) as proxy:
        advertised = {"advertised.listeners": f"CLIENTS://127.0.0.1:{proxy.port}"}
        settings = Settings(brokers=f"127.0.0.1:{proxy.port}")
        with KafkaServer(tmp_path, fetch_kafka(), settings=advertised) as server:
            proxy.target = int(server.bootstrap.rpartition(":")[2])

            def restart() -> None:
                server.kill()
                server.start()

            async def story() -> Produced:
                await create_topics(config, settings)
                async with EventProducer(settings, config, users, items) as producer:
                    for at in range(0, number, step):
                        await producer.send(numbered(users, items, at, at + step))
                        if at == number // 2:
                            restarting = asyncio.ensure_future(asyncio.to_thread(restart))
                await restarting
                return producer.done

            done = asyncio.run(story())
            assert done.messages == number
            assert proxy.lost == 6
            assert in_log(settings, config) == expected(config, users, number)

            def work() -> Iterator[EventBatch]:
                for at in range(0, number, step):
                    yield numbered(users, items, at, at + step)
                    if at == 3 * step:
                        server.kill()

            monkeypatch.setattr(producing, "GIVE_UP", 4.0)
            with pytest.raises(KafkaProblem) as caught:  # now it stays away
                asyncio.run(produce(settings, config, users, items, work()))
            assert str(caught.value) == (
                f"Kafka at {settings.brokers} did not answer in time while producing to interactions"
            )
