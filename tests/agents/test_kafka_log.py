"""The log read back on a real broker: batch rebuilds from it, against the oracle and against files."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from agents.cli.main import main
from agents.kafka.client import KafkaProblem
from agents.kafka.reading import OffsetsError, parse_ends, read_log, rebuild_from_log
from agents.kafka.topics import create_topics
from agents.settings import Settings
from cco.batch import Model
from cco.config import Config, make_config
from cco.events import EventParser
from cco.model_file import encode
from cco.vocabulary import Vocabulary
from tests.oracle import Oracle, partition_of
from tests.servers.kafka import KafkaServer

SOURCES = 2
TOML = """
primary = "buy"
[indicators.buy]
user_cap = 4
[indicators.view]
removed_by = ["hide"]
[retention]
sampling = "recent"
window = 50
visitor_window = 20
source_partitions = 2
[priors]
recent = 24
trending = 24
"""
Message = tuple[int, bytes | None, bytes, int]  # partition, key, value, timestamp in milliseconds
NOW = 1_700_000_000


@pytest.fixture
def config() -> Config:
    import tomllib

    return make_config(tomllib.loads(TOML))


@pytest.fixture
def settings(kafka: KafkaServer, topic_prefix: str, config: Config) -> Settings:
    made = Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix)
    asyncio.run(create_topics(config, made))
    return made


def write(settings: Settings, messages: Sequence[Message]) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=settings.brokers, acks="all") as producer:
            for partition, key, value, milliseconds in messages:
                await producer.send(
                    settings.topic("interactions"), value, key, partition=partition, timestamp_ms=milliseconds
                )

    asyncio.run(send())


def interaction(user: str, kind: str, item: str, time: int | None, partition: int | None = None) -> Message:
    value: dict[str, object] = {"user_id": user, "event_type": kind, "item_id": item}
    if time is not None:
        value["timestamp"] = time
    at = partition_of(user, SOURCES) if partition is None else partition
    return at, user.encode(), json.dumps(value).encode(), NOW * 1000


def clock(partition: int, time: int) -> Message:
    return partition, None, json.dumps({"event_type": "$clock", "timestamp": time}).encode(), NOW * 1000


def file_of(model: Model) -> list[str]:
    return b"".join(encode(model.rows(), model.items, model.config)).decode().splitlines()


def story(seed: int, number: int = 400) -> list[tuple[Message, tuple[str, str, str, int], int]]:
    """Messages, the events that they are, and their partitions; clock events in one partition each."""
    rng = random.Random(seed)
    told = []
    for k in range(number):
        user, kind = f"u{rng.randrange(12)}", rng.choice(["buy", "view", "view", "hide", "$clock"])
        item, time = f"i{rng.randrange(8)}", k // 3 + rng.randrange(10)
        if kind == "$clock":
            at = rng.randrange(SOURCES)
            told.append((clock(at, time + 15 * at), (user, kind, item, time + 15 * at), at))
        else:
            told.append((interaction(user, kind, item, time), (user, kind, item, time), partition_of(user, SOURCES)))
    return told


def oracle_of(config: Config, told: Sequence[tuple[Message, tuple[str, str, str, int], int]]) -> list[str]:
    oracle = Oracle(config)
    for _, event, partition in told:
        oracle.apply(*event, source=partition)
    return oracle.model_lines()


def test_the_rebuild_of_a_log_is_what_the_oracle_says_whole_and_up_to_any_end(
    settings: Settings, config: Config
) -> None:
    told = story(1)
    write(settings, [message for message, _, _ in told])
    assert file_of(rebuild_from_log(settings, config)) == oracle_of(config, told)
    by_partition = [[entry for entry in told if entry[2] == partition] for partition in range(SOURCES)]
    for ends in ({0: 60, 1: 25}, {0: 0, 1: 80}, {1: 40}):
        read = [entry for partition, end in ends.items() for entry in by_partition[partition][:end]]
        assert file_of(rebuild_from_log(settings, config, ends)) == oracle_of(config, read)
    assert oracle_of(config, told) != oracle_of(config, [entry for entry in told if entry[1][1] != "$clock"])


def test_what_user_stages_refuse_is_left_out_and_said_with_its_offset(settings: Settings, config: Config) -> None:
    other = 1 - partition_of("u1", SOURCES)
    write(
        settings,
        [
            interaction("u1", "buy", "i1", 1),
            (1 - other, b"u1", b"not JSON", NOW * 1000),
            interaction("u1", "buy", "i2", 2, partition=other),
            interaction("u1", "buy", "i3", NOW + 90_000),
            interaction("u1", "buy", "i4", None),
        ],
    )
    items = Vocabulary()
    chunks = list(read_log(settings, EventParser(config, Vocabulary(), items)))
    name = settings.topic("interactions")
    found = {(r.file, r.line): r.reason for chunk in chunks for r in chunk.rejections}
    assert found.keys() == {(f"{name}/{1 - other}", 1), (f"{name}/{1 - other}", 2), (f"{name}/{other}", 0)}
    assert "not valid JSON" in found[f"{name}/{1 - other}", 1]
    assert "belongs to partition" in found[f"{name}/{other}", 0]
    accepted = [(chunk.file, items.names(chunk.batch.items), chunk.batch.times.tolist()) for chunk in chunks]
    assert (1 - other, ["i1", "i4"], [1, NOW]) in accepted  # no time: that of the log, in whole seconds
    assert sum(len(names) for _, names, _ in accepted) == 2


def test_times_of_the_log_are_rounded_down(settings: Settings, config: Config) -> None:
    partition, key, value, _ = interaction("u1", "buy", "i1", None)
    write(settings, [(partition, key, value, NOW * 1000 + 999)])
    (chunk,) = read_log(settings, EventParser(config, Vocabulary(), Vocabulary()))
    assert chunk.batch.times.tolist() == [NOW]


def test_ends_and_beginnings_that_are_not_there_are_said(settings: Settings, config: Config) -> None:
    name = settings.topic("interactions")
    write(settings, [interaction("u1", "buy", f"i{k}", k) for k in range(5)])
    mine = partition_of("u1", SOURCES)

    def problem(ends: dict[int, int] | None) -> str:
        with pytest.raises(KafkaProblem) as caught:
            rebuild_from_log(settings, config, ends)
        return str(caught.value)

    assert problem({mine: 6}) == f"{name}, partition {mine}: ends at offset 5, before the 6 that is wanted"
    assert problem({2: 1}) == f"{name}, partition 2: is not there; the topic has the partitions 0 to 1"

    async def delete() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=settings.brokers)
        await admin.start()
        await admin.delete_records({TopicPartition(name, mine): RecordsToDelete(before_offset=3)})
        await admin.close()

    asyncio.run(delete())
    assert problem(None) == (
        f"{name}, partition {mine}: begins at offset 3, what came before is deleted: rebuild from an archive instead"
    )
    assert len(rebuild_from_log(settings, config, {1 - mine: 0}).rows()) == 0


def test_ingest_and_rebuild_of_the_log_give_the_file_s_model(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cco.toml").write_text(TOML)
    rng = random.Random(2)
    lines = [f"u{rng.randrange(30)},i{rng.randrange(12)},{rng.choice(['buy', 'view', 'hide'])},{k}" for k in range(600)]
    header = "user,item,event,timestamp\n"
    (tmp_path / "first.csv").write_text(header + "\n".join([*lines[:300], "u1,i1,by,3", "u1,,buy,3"]))
    (tmp_path / "second.csv").write_text(header + "\n".join(lines[300:]))
    config = ["--config", str(tmp_path / "cco.toml")]
    kafka = ["--brokers", settings.brokers, "--topic-prefix", settings.topic_prefix]

    def cco(*arguments: str) -> dict[str, object]:
        assert main([*arguments, *config, "--json"]) == 0
        report: dict[str, object] = json.loads(capsys.readouterr().out)
        return report

    def model(*arguments: str) -> bytes:
        cco("rebuild", *arguments, "--model", str(tmp_path / "model"))
        return (tmp_path / "model").read_bytes()

    first, second = str(tmp_path / "first.csv"), str(tmp_path / "second.csv")
    sent = cco("ingest", first, *kafka, "--dead-letters", str(tmp_path / "dead"))
    assert (sent["events"], sent["rejected"], sent["messages"]) == (300, 2, 300)
    assert len((tmp_path / "dead").read_text().splitlines()) == 2
    assert model("--log", *kafka) == model(first)
    (tmp_path / "ends").write_text(json.dumps(sent))
    assert cco("ingest", second, *kafka)["events"] == 300
    assert model("--log", *kafka) == model(first, second)
    assert model("--log", *kafka, "--end-offsets", str(tmp_path / "ends")) == model(first)
    offsets = sent["offsets"]
    assert isinstance(offsets, dict)
    pairs = ",".join(f"{partition}:{offset}" for partition, offset in offsets.items())
    assert cco("rebuild", "--log", *kafka, "--end-offsets", pairs)["offsets"] == offsets
    assert main(["ingest", first, *kafka, *config, "--strict"]) == 2
    assert "2 records rejected (--strict)" in capsys.readouterr().err


def test_times_that_the_log_would_refuse_are_not_sent_and_missing_ones_are_now(
    settings: Settings, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cco.toml").write_text(TOML)
    (tmp_path / "events.jsonl").write_text(
        '{"user_id": "u1", "item_id": "i1", "event_type": "buy"}\n'
        '{"user_id": "u1", "item_id": "i2", "event_type": "buy", "timestamp": 4000000000}\n'
        '{"user_id": "u1", "item_id": "i3", "event_type": "buy", "timestamp": 0}\n'
        '{"event": "$set", "entityType": "item", "entityId": "i1", "properties": {"title": "One"}}\n'
    )
    kafka = ["--brokers", settings.brokers, "--topic-prefix", settings.topic_prefix]
    assert main(["ingest", str(tmp_path / "events.jsonl"), "--config", str(tmp_path / "cco.toml"), *kafka]) == 0
    said = capsys.readouterr()
    assert "events.jsonl:2: the time" in said.err
    assert "item changes sent     1" in said.out
    (chunk,) = read_log(settings, EventParser(config, Vocabulary(), Vocabulary()))
    assert chunk.rejections == []
    now, ever = chunk.batch.times.tolist()
    assert (now > NOW, ever) == (True, 0)


def test_usage(kafka: KafkaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "e.csv").write_text("user,item,event,timestamp\nu1,i1,purchase,1\n")
    events = str(tmp_path / "e.csv")
    for arguments, line in (
        (["rebuild"], "name what to read: either EVENTS, --log or --archive"),
        (["rebuild", events, "--log"], "name what to read: either EVENTS, --log or --archive"),
        (["rebuild", events, "--brokers", "x"],
         "--end-offsets, --brokers and --topic-prefix go with --log or --archive"),
        (["ingest", events, "--brokers", kafka.bootstrap, "--topic-prefix", "absent-"],
         f"Kafka at {kafka.bootstrap} has no topic absent-interactions: `cco topics create` makes it"),
        (["ingest", events, "--brokers", "127.0.0.1:1"],
         "Kafka at 127.0.0.1:1 cannot be reached while producing: is it running, and is the address right?"
         " (--brokers)"),
        (["rebuild", "--log", "--brokers", "127.0.0.1:1"],
         "Kafka at 127.0.0.1:1 cannot be reached while reading interactions: is it running, and is the address right?"
         " (--brokers)"),
    ):  # fmt: skip
        assert main(arguments) == 2
        assert capsys.readouterr().err == f"cco: error: {line}\n"


def test_end_offsets_as_text_and_as_json(tmp_path: Path) -> None:
    assert parse_ends("0:12,1:7") == {0: 12, 1: 7}
    file = tmp_path / "ends"
    for text, ends in (('{"0": 3}', {0: 3}), ('{"events": 1, "offsets": {"1": 4}}', {1: 4})):
        file.write_text(text)
        assert parse_ends(str(file)) == ends
    for text in ("[]", "{}", '{"a": 1}', '{"0": -1}', "no JSON"):
        file.write_text(text)
        with pytest.raises(OffsetsError):
            parse_ends(str(file))
    with pytest.raises(OffsetsError, match="twice"):
        parse_ends("0:1,0:2")
    with pytest.raises(FileNotFoundError):
        parse_ends(str(tmp_path / "absent"))


def test_rows_of_no_log_are_none(settings: Settings, config: Config) -> None:
    model = rebuild_from_log(settings, config)
    assert (len(model.rows()), model.n_users) == (0, 0)
    assert model.rows().item.dtype == np.uint32
