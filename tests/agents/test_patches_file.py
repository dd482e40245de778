"""Patches read back and put together: equal to the batch, whoever owned what, from files and from a real topic."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from hypothesis import given
from hypothesis import strategies as st

from agents.cli.main import main
from agents.kafka.topics import create_topics
from agents.settings import Settings
from agents.workers.item_partition import Claim
from agents.workers.patch_sinks import Encoded, FileSink, JsonRecord, TopicSink, encode_json
from agents.workers.patches_file import Materializer, PatchError, read_files, read_patches_topic
from cco.batch import rebuild
from cco.config import Config
from cco.item_stage import ItemStage
from cco.model_file import encode
from cco.pipeline import Pipeline
from cco.vocabulary import Vocabulary
from tests.cco.histories import Event, cases, to_batch, to_batches
from tests.examples import examples
from tests.servers.kafka import KafkaServer

PARTITIONS = 2
LOG: list[Event] = [
    (f"u{random.Random(k).randrange(20)}", "purchase", f"i{random.Random(-k).randrange(9)}", k) for k in range(1, 300)
]


def patches_of(
    config: Config, log: list[Event], generation: int, step: int, takeover: bool = False
) -> list[Encoded[JsonRecord]]:
    """What the owners of all item partitions send for a log, published every `step` events and drained.

    With `takeover` they do not know what the index holds.
    """
    users, items = Vocabulary(), Vocabulary()
    pipeline = Pipeline(config, users, items, PARTITIONS)
    if takeover:
        pipeline.item_stages = [
            ItemStage(config, users, items, p, PARTITIONS, index_is_empty=False) for p in range(PARTITIONS)
        ]
    found = []
    for now, batch in enumerate(to_batches(config, log, users, items, step)):
        pipeline.ingest(batch, now)
        for p, stage in enumerate(pipeline.item_stages):
            patches = stage.publish(now, 3)
            if patches is not None:
                found.append(encode_json(config, items, patches, p, Claim(generation)))
    for p, stage in enumerate(pipeline.item_stages):
        if takeover:
            stage.make_all_due(1e9)
        while (patches := stage.refresh(1e9, 5)) is not None:
            found.append(encode_json(config, items, patches, p, Claim(generation)))
    return found


def model_of(config: Config, log: list[Event]) -> bytes:
    users, items = Vocabulary(), Vocabulary()
    model = rebuild(config, [to_batch(config, log, users, items)], users, items)
    return b"".join(encode(model.rows(), items, config))


def lines_of(sent: list[Encoded[JsonRecord]]) -> list[bytes]:
    return [value for patches in sent for _, value in patches.records]


def materialized(lines: list[bytes]) -> Materializer:
    model = Materializer()
    for line in lines:
        model.add(line, "here")
    return model


@examples(60)
@given(cases(), st.integers(1, 25))
def test_all_patches_together_are_the_batch_s_model(case: tuple[Config, list[Event]], step: int) -> None:
    config, log = case
    assert b"".join(materialized(lines_of(patches_of(config, log, 7, step))).lines()) == model_of(config, log)


@examples(40)
@given(cases(), st.integers(1, 25), st.data())
def test_a_new_owner_sends_all_and_an_old_one_leaves_nothing(
    case: tuple[Config, list[Event]], step: int, data: st.DataObject
) -> None:
    config, log = case
    old = lines_of(patches_of(config, log[: data.draw(st.integers(0, len(log)))], 5, step))
    new = lines_of(patches_of(config, log, 9, len(log) or 1, takeover=True))
    before = data.draw(st.integers(0, len(old)))  # the rest comes late, somewhere among the new
    mixed = old[:before] + new
    for line in old[before:]:
        mixed.insert(data.draw(st.integers(before, len(mixed))), line)
    found = materialized(mixed)
    assert b"".join(found.lines()) == model_of(config, log)
    assert (found.records, found.outdated) == (len(mixed), 0)


def record(**changes: Any) -> bytes:
    whole = {
        "item": "i1", "partition": 0, "generation": 3, "position": [10],
        "indicators": {"buy": [["i2", 4.5], ["i3", 4.5]]}, "priors": [["popular", 3.0]],
    }  # fmt: skip
    return json.dumps(whole | changes).encode()


def test_fields_are_replaced_one_by_one_and_emptied() -> None:
    found = materialized([record(), record(indicators={"view": [["i9", 1.0]]}, priors=[["recent", 1.0], ["hot", 2.0]])])
    assert b"".join(found.lines()) == (
        b'{"item":"i1","indicators":{"buy":[["i2",4.5],["i3",4.5]],"view":[["i9",1.0]]},'
        b'"priors":{"hot":2.0,"recent":1.0}}\n'
    )
    found.add(record(indicators={"buy": [], "view": []}, priors=[]), "here")
    assert (list(found.lines()), found.items) == ([b""], 0)


def test_what_counts_is_told() -> None:
    lines = [record(), record(item="i2"), record(generation=4), record(generation=3), record(item="i3", partition=1)]
    found = materialized(lines)
    assert (found.records, found.dropped, found.outdated, found.items) == (5, 1, 1, 3)
    assert found.positions == {0: [10], 1: [10]}


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"", "not a record of patches: "),
        (b"\xff{}", "not a record of patches: "),
        (b'{"item": "i1"}', "missing required field `partition`"),
        (record(item=""), "length >= 1"),
        (record(generation=-1), "`int` >= 0"),
        (record(extra=1), "unknown field `extra`"),
        (record(indicators={"buy": [["i2", 1.0], ["i3", 2.0]]}), "'buy' of item 'i1' is out of order at 'i3'"),
        (record(indicators={"buy": [["i2", 1.0], ["i2", 1.0]]}), "'buy' of item 'i1' has a feature twice"),
        (record(indicators={"buy": [["i2", 0.0]]}), "has 0.0: a number above 0"),
        (record(priors=[["hot", -1.0]]), "the prior 'hot' of item 'i1', has -1.0: a number above 0"),
        (record(priors={"hot": 1.0}), "Expected `array`, got `object`"),
    ],
)
def test_what_is_no_record_is_said_with_its_line(tmp_path: Path, line: bytes, part: str) -> None:
    file = tmp_path / "patches.jsonl"
    file.write_bytes(record() + b"\n" + line + b"\n")
    with pytest.raises(PatchError) as caught:
        read_files([file])
    assert str(caught.value).startswith(f"{file}, line 2: not a record of patches: ")
    assert part in str(caught.value)


def test_a_last_line_without_its_end_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "patches.jsonl"
    file.write_bytes(record() + b"\n" + record(item="i2")[:-5])
    assert read_files([file]).records == 1


def test_files_of_several_workers_and_the_topic_say_the_same(
    kafka: KafkaServer, topic_prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config()
    settings = Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix, item_partitions=2, patches="topic")
    sent = patches_of(config, LOG[:200], 5, 20) + patches_of(config, LOG, 9, 30)
    files = [tmp_path / "one", tmp_path / "two"]

    async def write() -> None:
        await create_topics(config, settings)
        async with AIOKafkaProducer(bootstrap_servers=settings.brokers) as producer:
            topic = TopicSink(config, producer, settings.topic("patches"))
            sinks = [FileSink(config, path) for path in files]
            for patches in sent:
                await asyncio.gather(await topic.send(patches), await sinks[patches.partition].send(patches))
            for sink in sinks:
                await sink.close()

    asyncio.run(write())
    wanted = model_of(config, LOG)
    assert len(wanted) > 1_000
    model, kafka_options = str(tmp_path / "model"), ["--brokers", settings.brokers, "--topic-prefix", topic_prefix]
    for arguments in ([*map(str, files)], ["--topic", *kafka_options]):
        assert main(["patches", *arguments, "--model", model, "--json"]) == 0
        assert Path(model).read_bytes() == wanted
        report = json.loads(capsys.readouterr().out)
        assert (report["records"], report["dropped"], report["outdated_items"]) == (len(lines_of(sent)), 0, 0)
        assert report["positions"] == {"0": [len(LOG)], "1": [len(LOG)]}

    async def spoil() -> None:
        async with AIOKafkaProducer(bootstrap_servers=settings.brokers) as producer:
            await producer.send_and_wait(settings.topic("patches"), b"{}", b"i1", partition=1)

    asyncio.run(spoil())
    with pytest.raises(PatchError, match=rf"{settings.topic('patches')}, partition 1, offset \d+: not a record"):
        read_patches_topic(settings)
    capsys.readouterr()
    assert main(["patches", "--topic", *kafka_options]) == 2
    assert "partition 1, offset" in capsys.readouterr().err


def test_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p").write_bytes(record() + b"\n")
    assert main(["patches", str(tmp_path / "p")]) == 0
    assert capsys.readouterr().out.startswith('{"item":"i1",')
    assert main(["patches"]) == 2
    assert main(["patches", str(tmp_path / "p"), "--topic"]) == 2
    assert main(["patches", str(tmp_path / "p"), "--model", str(tmp_path / "p")]) == 2
    assert main(["patches", str(tmp_path / "absent")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "cco: error: name what to read: either files or --topic"
    assert "is the same file as the input" in said[2]
    assert said[3] == f"cco: error: {tmp_path}/absent: No such file or directory"
