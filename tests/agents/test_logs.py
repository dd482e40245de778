"""Which log it is: Kafka's ids of topics, read from a real broker, and what they say of an index."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import asdict, replace
from typing import Any

import pytest
from aiokafka.admin import NewPartitions
from aiokafka.errors import IncompatibleBrokerVersion

from agents.kafka import logs
from agents.kafka.client import KafkaProblem
from agents.kafka.logs import Log, log_differences, look_at_logs, reason_of, signature
from agents.kafka.topics import create_topics, describe_topics
from agents.settings import Settings
from cco.config import make_config
from tests.kafka.world import administer, wait_for
from tests.servers.kafka import KafkaServer

CONFIG = make_config({"primary": "buy", "indicators": {"buy": {}}, "retention": {"source_partitions": 3}})
INTERACTIONS = Log("t-interactions", "cluster", "first", 3)
ITEMS = Log("t-items", "cluster", "second", 1)
OURS = {"interactions": INTERACTIONS, "items": ITEMS}


def there(settings: Settings) -> set[str]:
    return {topic.name for topic in asyncio.run(describe_topics(CONFIG, settings))}


def test_a_topic_that_is_made_anew_has_another_id(kafka: KafkaServer, topic_prefix: str) -> None:
    settings = Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix)
    assert asyncio.run(look_at_logs(settings)) == {}
    assert there(settings) == set()  # to ask for them makes none
    asyncio.run(create_topics(CONFIG, settings))
    first = asyncio.run(look_at_logs(settings))
    assert {name: (log.topic, log.partitions) for name, log in first.items()} == {
        "interactions": (f"{topic_prefix}interactions", 3), "items": (f"{topic_prefix}items", 1),
    }  # fmt: skip
    assert first["interactions"].id != first["items"].id and len(first["items"].id or "") == 22
    assert first["items"].cluster == first["interactions"].cluster != ""
    assert asyncio.run(look_at_logs(settings)) == first

    administer(settings, lambda admin: admin.create_partitions({settings.topic("items"): NewPartitions(2)}))
    wait_for(lambda: asyncio.run(look_at_logs(settings))["items"].partitions == 2, "the partition")
    assert asyncio.run(look_at_logs(settings))["items"] == replace(first["items"], partitions=2)

    administer(settings, lambda admin: admin.delete_topics([settings.topic("interactions")]))
    wait_for(lambda: settings.topic("interactions") not in there(settings), "the topic to go")
    assert list(asyncio.run(look_at_logs(settings))) == ["items"]
    asyncio.run(create_topics(CONFIG, settings))
    again = asyncio.run(look_at_logs(settings))["interactions"]
    assert again.id != first["interactions"].id and replace(again, id=None) == replace(first["interactions"], id=None)


def test_a_broker_that_tells_no_ids(kafka: KafkaServer, topic_prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One before 2.8 refuses the question; nothing else is known of it then than of any topic of that name."""

    class Old(logs._WithIds):  # type: ignore[misc]
        API_KEY = 3

        def prepare(self, versions: Any) -> Any:
            raise IncompatibleBrokerVersion("no")

    settings = Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix)
    asyncio.run(create_topics(CONFIG, settings))
    known = asyncio.run(look_at_logs(settings))
    monkeypatch.setattr(logs, "_WithIds", Old)
    assert asyncio.run(look_at_logs(settings)) == {name: replace(log, id=None) for name, log in known.items()}


def test_without_a_broker_it_is_one_line() -> None:
    asked: Coroutine[Any, Any, Any] = look_at_logs(Settings(brokers="127.0.0.1:1"))
    with pytest.raises(KafkaProblem, match="cannot be reached while looking at topics"):
        asyncio.run(asked)


@pytest.mark.parametrize(
    ("signed", "now", "said"),
    [
        (INTERACTIONS, INTERACTIONS, None),
        (None, INTERACTIONS, None),
        (INTERACTIONS, replace(INTERACTIONS, id="other"), "id other"),
        (INTERACTIONS, replace(INTERACTIONS, partitions=4), "4 partitions"),
        (replace(INTERACTIONS, partitions=1), INTERACTIONS, "1 partition)"),
        (replace(INTERACTIONS, id=None), INTERACTIONS, None),
        (INTERACTIONS, replace(INTERACTIONS, id=None), None),
        (replace(INTERACTIONS, id=None, cluster="other"), INTERACTIONS, "cluster other"),
        (replace(INTERACTIONS, id=None, topic="s-interactions"), INTERACTIONS, "s-interactions"),
        (replace(INTERACTIONS, cluster="renamed"), INTERACTIONS, None),  # an id says it all
    ],
)
def test_what_makes_an_index_one_of_another_log(signed: Log | None, now: Log, said: str | None) -> None:
    found = None if signed is None else {"interactions": asdict(signed), "later": {}}
    told = list(log_differences("users-000001", found, signature({**OURS, "interactions": now}, "users")))
    if said is None:
        assert told == []
        return
    [difference] = told
    assert not difference.in_place
    assert said in str(difference) and "`cco index create` makes new ones" in str(difference)
    reason = reason_of(difference)
    assert reason.mode == "lambda" and "users-000001 is of another log" in reason.text and said in reason.text
    assert "index_prefix" in reason.remedy


def test_the_index_of_items_is_made_from_both() -> None:
    assert signature(OURS, "users") == {"interactions": asdict(INTERACTIONS)}
    both = signature(OURS, "items")
    assert set(both) == {"interactions", "items"} and signature({}, "items") == {}
    other = {**both, "items": {**both["items"], "id": "x"}, "interactions": {**both["interactions"], "id": "y"}}
    assert [difference.path for difference in log_differences("i", other, both)] == [
        "_meta.cco.log.interactions", "_meta.cco.log.items",
    ]  # fmt: skip
