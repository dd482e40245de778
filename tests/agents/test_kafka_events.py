"""Events by HTTP into a real broker: what is in the log, what is refused, and what happens while the broker is away."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from agents.kafka.item_changes import ItemRecords
from agents.kafka.reading import read_topic
from agents.kafka.topics import create_topics
from agents.serving import kafka_events
from agents.serving.kafka_events import KafkaEvents
from agents.settings import Settings
from cco.config import make_config
from cco.event_data import ItemChange
from model_sync.service.store import StoreProblem
from tests.oracle import partition_of
from tests.servers.kafka import KafkaServer, fetch_kafka

CONFIG = make_config({"primary": "buy", "indicators": {"buy": {}, "view": {}}, "retention": {"source_partitions": 3}})


async def log_of(settings: Settings, topic: str) -> list[tuple[int, bytes, bytes]]:
    return [
        (records.partition, key or b"", value or b"")
        async for records in read_topic(settings, topic)
        for key, value in zip(records.keys, records.values, strict=True)
    ]


def test_records_are_in_the_log_as_they_came(kafka: KafkaServer, topic_prefix: str) -> None:
    settings = Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix)
    good = [
        {"user_id": "ü", "item_id": "i", "event_type": "buy", "campaign": {"name": "tea"}},
        {"user_id": 7, "item_id": "j", "event_type": "view", "timestamp": 1_700_000_000},
        {"event": "buy", "entityType": "user", "entityId": "u3", "targetEntityType": "item", "targetEntityId": "i"},
        {"user_id": "ü", "event_type": "$delete"},
        {"event": "$set", "entityType": "item", "entityId": "i", "properties": {"price": 3}},
    ]
    bad = {
        "clock": {"event_type": "$clock", "timestamp": 1},
        "no indicator": {"user_id": "u", "item_id": "i", "event_type": "like"},
        "bytes": {"user_id": "u", "item_id": "i", "event_type": "buy", "note": "x" * 1_100_000},
        "of type dict": {"event": "$set", "entityType": "item", "entityId": "i", "properties": {"p": {"q": 1}}},
    }

    async def story() -> None:
        await create_topics(CONFIG, settings)
        events = KafkaEvents(CONFIG, settings)
        mixed = [good[0], *bad.values(), *good[1:]]
        answers = await events.accept(mixed)
        assert [mixed[k] for k, answer in enumerate(answers) if answer is None] == good
        for words, answer in zip(bad, answers[1 : 1 + len(bad)], strict=True):
            assert words in (answer or "")
        await events.close()
        found = await log_of(settings, "interactions")
        assert sorted(json.dumps(json.loads(value)) for _, _, value in found) == sorted(map(json.dumps, good[:4]))
        for partition, key, _ in found:
            assert partition == partition_of(key.decode(), 3)
        assert {key.decode() for _, key, _ in found} == {"ü", "7", "u3"}
        [(_, key, value)] = await log_of(settings, "items")
        assert ItemRecords(CONFIG).decode(key, value) == ItemChange("i", "set", {"price": 3})

    asyncio.run(story())


def test_while_the_broker_stands_still_clients_are_told_so_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"user_id": "u", "item_id": "i", "event_type": "buy"}

    async def story(server: KafkaServer) -> None:
        settings = Settings(brokers=server.bootstrap)
        await create_topics(CONFIG, settings)
        events = KafkaEvents(CONFIG, settings)
        assert await events.accept([event]) == [None]
        monkeypatch.setattr(kafka_events, "REQUEST_SECONDS", 1.5)
        server.pause()
        begin = time.monotonic()
        told = await asyncio.gather(*(events.accept([event]) for _ in range(20)), return_exceptions=True)
        assert time.monotonic() - begin < 6
        assert all(isinstance(each, StoreProblem) and "may be sent again" in str(each) for each in told)
        server.resume()
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await events.accept([event]) == [None]
                    break
                except StoreProblem:
                    continue
        await events.close()

    with KafkaServer(tmp_path / "broker", fetch_kafka()) as server:
        asyncio.run(story(server))


def test_a_broker_that_is_not_there_is_said_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_events, "REQUEST_SECONDS", 1.5)
    events = KafkaEvents(CONFIG, Settings(brokers="127.0.0.1:1"))
    with pytest.raises(StoreProblem, match="Kafka does not take events"):
        asyncio.run(events.accept([{"user_id": "u", "item_id": "i", "event_type": "buy"}]))
