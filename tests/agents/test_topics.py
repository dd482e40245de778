"""Topics on a real broker: made as they must be, every difference named; and whose state fits which log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from agents.cli.main import main
from agents.kafka.client import KafkaProblem
from agents.kafka.topics import check_topics, create_topics, describe_topics, state_problem, topic_problems, topic_specs
from agents.settings import Settings
from cco.config import Config, Retention
from tests.servers.kafka import KafkaServer

ALL = ["interactions", "items", "edits", "control", "dead-letters"]
CONFIG = Config(retention=Retention(source_partitions=3))


@pytest.fixture
def settings(kafka: KafkaServer, topic_prefix: str) -> Settings:
    return Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix, item_partitions=2, patches="topic")


async def make(settings: Settings, name: str, partitions: int, **changed: str) -> None:
    """Make a topic without asking how it must be."""
    configs = {key.replace("_", "."): value for key, value in changed.items()}
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.brokers)
    await admin.start()
    try:
        response = await admin.create_topics([NewTopic(settings.topic(name), partitions, 1, topic_configs=configs)])
        assert [(code, message) for _, code, message in response.topic_errors] == [(0, None)]
        async with asyncio.timeout(30):
            while settings.topic(name) not in await admin.list_topics():  # brokers learn of it a little later
                pass
    finally:
        await admin.close()


async def send(settings: Settings, name: str, partition: int, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=settings.brokers, max_request_size=2_000_000) as producer:
        await producer.send_and_wait(settings.topic(name), value, partition=partition)


def test_create_makes_all_topics_as_they_must_be(settings: Settings) -> None:
    async def story() -> None:
        names = [settings.topic(name) for name in [*ALL, "patches"]]
        assert await describe_topics(CONFIG, settings) == []
        problems = await check_topics(CONFIG, settings)
        assert problems == [
            f"{name}: is missing: `cco topics create`, with the same settings, makes it" for name in names
        ]
        created = await asyncio.gather(create_topics(CONFIG, settings), create_topics(CONFIG, settings))
        assert sorted(created[0].topics + created[1].topics) == sorted(names)  # each was made by one of the two
        assert [one.problems for one in created] == [[], []]
        assert await check_topics(CONFIG, settings, retention=None) == []
        # An edits message of the largest size has room.
        await send(settings, "edits", 1, bytes(1_000_000))
        await send(settings, "interactions", 2, b"{}")
        await send(settings, "interactions", 2, b"{}")
        found = {
            topic.name.removeprefix(settings.topic_prefix): topic for topic in await describe_topics(CONFIG, settings)
        }
        assert {name: len(topic.partitions) for name, topic in found.items()} == {
            "interactions": 3, "items": 2, "edits": 2, "control": 1, "dead-letters": 1, "patches": 2,
        }  # fmt: skip
        assert [(part.begin, part.end) for part in found["interactions"].partitions] == [(0, 0), (0, 0), (0, 2)]
        assert [(part.begin, part.end) for part in found["edits"].partitions] == [(0, 0), (0, 1)]
        assert {part.leader for topic in found.values() for part in topic.partitions} == {1}
        kept = {
            name: (topic.settings["cleanup.policy"], topic.settings["retention.ms"]) for name, topic in found.items()
        }
        assert kept["interactions"] == ("delete", "-1")
        assert kept["edits"] == ("delete", "3600000")
        assert kept["control"] == ("delete", "600000")
        assert kept["dead-letters"] == ("delete", "2592000000")
        assert kept["items"] == ("delete", "-1")  # every change of every item
        assert found["edits"].settings["message.timestamp.type"] == "LogAppendTime"
        assert kept["patches"] == ("delete", "-1")

    asyncio.run(story())


def test_every_difference_is_named(settings: Settings) -> None:
    command = f"kafka-configs --bootstrap-server {settings.brokers} --alter"

    async def story() -> None:
        wrong: list[tuple[str, int, Mapping[str, str]]] = [
            ("interactions", 2, {"cleanup_policy": "compact", "retention_bytes": "1000000"}),
            ("items", 7, {"cleanup_policy": "compact"}),
            ("edits", 3, {"retention_ms": "60000", "max_message_bytes": "1000"}),
            ("control", 2, {"retention_ms": "-1"}),
        ]
        for name, partitions, changed in wrong:
            await make(settings, name, partitions, **changed)
        for ask in (check_topics(CONFIG, settings, retention=None), create_topics(CONFIG, settings)):
            answer = await ask
            problems = answer if isinstance(answer, list) else answer.problems
            lines = [line.removeprefix(settings.topic_prefix) for line in problems]
            begins = [
                "interactions: has 2 partitions, and the configuration says retention.source_partitions = 3: set",
                f"interactions: cleanup.policy is compact, and must be delete: {command}",
                "interactions: retention.ms is 604800000 (7 d), and must be at least -1 (unlimited): ",
                "interactions: retention.bytes is 1000000, and must be at least -1 (unlimited): ",
                "items: cleanup.policy is compact, and must be delete: ",
                "items: retention.ms is 604800000 (7 d), and must be at least -1 (unlimited): ",
                "edits: has 3 partitions, and the settings say item_partitions = 2: set it to 3, or stop all workers,",
                "edits: retention.ms is 60000 (1 min), and must be at least 3600000 (1 h): ",
                "edits: max.message.bytes is 1000, and must be at least 1048588: ",
                "edits: message.timestamp.type is CreateTime, and must be LogAppendTime: ",
                "control: has 2 partitions, and must have 1: ",
                "dead-letters: is missing: ",
                "patches: is missing: ",
            ]
            if not isinstance(answer, list):  # creating made what was missing, and left the others alone
                assert answer.topics == [settings.topic("dead-letters"), settings.topic("patches")]
                begins = begins[:-2]
            assert len(lines) == len(begins)
            for line, begin in zip(lines, begins, strict=True):
                assert line.startswith(begin), line
            assert f"--entity-name {settings.topic('interactions')} --add-config cleanup.policy=delete" in problems[1]

    asyncio.run(story())


def test_shorter_retention_is_fine_where_it_was_asked_for(settings: Settings) -> None:
    async def story() -> None:
        await create_topics(CONFIG, settings, retention=86_400)
        assert await check_topics(CONFIG, settings) == []
        assert await check_topics(CONFIG, settings, retention=3_600) == []
        (problem,) = await check_topics(CONFIG, settings, retention=2 * 86_400)
        assert "retention.ms is 86400000 (1 d), and must be at least 172800000 (2 d)" in problem

    asyncio.run(story())


def test_the_command(kafka: KafkaServer, topic_prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--brokers", kafka.bootstrap, "--topic-prefix", topic_prefix]
    names = [topic_prefix + name for name in ALL]

    def run(*arguments: str) -> tuple[int, Any]:
        code = main(["topics", *arguments, *flags])
        said = capsys.readouterr().out
        return code, json.loads(said) if "--json" in arguments else said

    assert run("describe")[0] == 1
    assert run("check")[0] == 1
    assert run("create", "--json") == (0, {"ok": True, "created": names, "problems": []})
    assert run("create") == (0, "all topics are there\n")
    assert run("check") == (0, "the topics are as they must be\n")
    code, described = run("describe", "--json")
    assert code == 0
    assert [topic["name"] for topic in described["topics"]] == names
    assert described["topics"][0]["partitions"] == [{"partition": 0, "leader": 1, "replicas": 1, "begin": 0, "end": 0}]
    code, text = run("describe")
    assert code == 0
    assert (
        f"{topic_prefix}edits: cleanup.policy=delete, message.timestamp.type=LogAppendTime, retention.ms=3600000"
        in text
    )
    asyncio.run(make(Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix + "b-"), "control", 2))
    flags[-1] += "b-"
    code, created = run("create", "--json")
    assert (code, created["ok"]) == (1, False)
    assert created["problems"][0].startswith(f"{topic_prefix}b-control: has 2 partitions")
    code, created = run("create", "--json", "--item-partitions", "2", "--patches", "topic")  # as `cco worker` has them
    assert created["created"] == [f"{topic_prefix}b-patches"]
    assert any("b-edits: has 1 partition, and the settings say item_partitions = 2" in p for p in created["problems"])
    code, described = run("describe", "--json", "--patches", "topic")
    assert [topic["name"] for topic in described["topics"]][-1] == f"{topic_prefix}b-patches"
    code, checked = run("check", "--json", "--item-partitions", "2")
    assert sum("item_partitions = 2" in problem for problem in checked["problems"]) == 1


def test_no_broker_is_one_line() -> None:
    with pytest.raises(KafkaProblem, match=r"^Kafka at 127.0.0.1:1 cannot be reached while checking topics: [^\n]*$"):
        asyncio.run(check_topics(CONFIG, Settings(brokers="127.0.0.1:1")))


def test_what_cannot_be_created_is_named(settings: Settings) -> None:
    with pytest.raises(KafkaProblem, match=rf"the topic {settings.topic('interactions')} cannot be created: .*replica"):
        asyncio.run(create_topics(CONFIG, settings, replicas=2))


def test_a_longer_limit_is_no_problem(settings: Settings) -> None:
    (spec,) = (spec for spec in topic_specs(CONFIG, settings) if spec.name.endswith("edits"))
    longer = {**spec.settings, "retention.ms": "-1", "max.message.bytes": "9999999"}
    from agents.kafka.topics import PartitionFound, TopicFound

    found = TopicFound(spec.name, tuple(PartitionFound(p, 1, 1) for p in range(2)), longer)
    assert list(topic_problems(spec, found, settings)) == []
    assert len(list(topic_problems(spec, replace(found, partitions=found.partitions[:1]), settings))) == 1


OURS = {"topic": "interactions", "partition": 1, "partitions": 3, "cluster": "abc", "topic_id": "one"}


@pytest.mark.parametrize(
    ("changed", "begin", "end", "says"),
    [
        ({}, 0, 10, None),
        ({}, 5, 10, None),
        ({}, 0, 5, None),
        ({}, 5, 5, None),
        ({}, 0, 4, "goes on at offset 5 of interactions-1, which ends at 4: the topic was made anew"),
        ({}, 6, 10, "goes on at offset 5 of interactions-1, which begins at 6: 1 records are gone"),
        ({"partitions": 4}, 0, 10, "was made with 4 source partitions, and now there are 3: set retention.source_par"),
        ({"cluster": "xyz"}, 0, 10, "is of another Kafka cluster (xyz, now abc)"),
        ({"topic": "other"}, 0, 10, "is of the topic other, not of interactions: set topic_prefix"),
        ({"partition": 2}, 0, 10, "is of partition 2, not 1"),
        ({"topic_id": "two"}, 0, 10, "is of another topic interactions (id two, now one): it was made anew"),
        ({"topic_id": None}, 0, 10, None),
    ],
)
def test_a_state_that_does_not_fit_its_log(changed: dict[str, Any], begin: int, end: int, says: str | None) -> None:
    problem = state_problem("states/interactions-1", {**OURS, "offset": 5, **changed}, OURS, begin, end)
    if says is None:
        assert problem is None
    else:
        assert problem is not None
        assert problem.startswith(f"states/interactions-1: the state {says}")
        assert "{" not in problem


def test_no_state_needs_the_whole_log() -> None:
    assert state_problem("states/interactions-1", None, OURS, 0, 10) is None
    assert state_problem("states/interactions-1", None, OURS, 0, 0) is None
    lost = state_problem("states/interactions-1", None, OURS, 3, 10)
    assert lost is not None
    assert "there is no state, and interactions-1 begins at offset 3" in lost
    foreign = state_problem("states/interactions-1", {"files": []}, OURS, 0, 10)
    assert foreign is not None
    assert "is none of a worker's" in foreign
