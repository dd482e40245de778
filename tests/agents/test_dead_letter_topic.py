"""Dead letters on a real broker: written as a worker writes them, listed, and sent again, each once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.partitioner import murmur2

from agents.cli.main import main
from agents.kafka import dead_letter_topic
from agents.kafka.client import KafkaProblem
from agents.kafka.dead_letter_topic import Choice, Listing, Retried
from agents.kafka.dead_letters import CODES, DeadLetter, marked
from agents.settings import Settings
from cco.config import parse_config
from cco.events import EventParser
from cco.vocabulary import Vocabulary
from tests.agents.test_dead_letters import LETTER, NOW_MS
from tests.servers.kafka import KafkaServer

PARTITIONS = 4
CONFIG = parse_config("[indicators.purchase]\n[indicators.view]", "test")
Capture = pytest.CaptureFixture[str]


def event(user: str = "u1", kind: str = "purchase", **more: object) -> bytes:
    return json.dumps({"user_id": user, "item_id": "i1", "event_type": kind, **more}).encode()


def partition_of(key: bytes) -> int:
    return int(murmur2(key) & 0x7FFFFFFF) % PARTITIONS


def elsewhere(key: bytes) -> int:
    return (partition_of(key) + 1) % PARTITIONS


@dataclass(frozen=True)
class World:
    """A test's own topics on the shared broker, and what happens to them."""

    settings: Settings

    def create(self, **topics: int) -> None:
        async def create() -> None:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.settings.brokers)
            await admin.start()
            try:
                new = [NewTopic(self.settings.topic(n.replace("_", "-")), count, 1) for n, count in topics.items()]
                answer = await admin.create_topics(new)
                assert not any(error[1] for error in answer.topic_errors), answer
            finally:
                await admin.close()

        asyncio.run(create())

    def write(self, topic: str, records: Iterable[dict[str, Any]]) -> list[tuple[int, int]]:
        """(partition, offset) of each record written."""

        async def write() -> list[tuple[int, int]]:
            producer = AIOKafkaProducer(bootstrap_servers=self.settings.brokers)
            await producer.start()
            try:
                waiting = [await producer.send(self.settings.topic(topic), **record) for record in records]
                done = await asyncio.gather(*waiting)
            finally:
                await producer.stop()
            return [(metadata.partition, metadata.offset) for metadata in done]

        return asyncio.run(write())

    def read(self, topic: str) -> list[ConsumerRecord[bytes, bytes]]:
        """All records of a topic, by partition and offset."""

        async def read() -> list[ConsumerRecord[bytes, bytes]]:
            consumer = AIOKafkaConsumer(
                bootstrap_servers=self.settings.brokers, auto_offset_reset="earliest", fetch_max_wait_ms=50
            )
            await consumer.start()
            try:
                name = self.settings.topic(topic)
                cluster = await consumer._client.fetch_all_metadata()
                places = [TopicPartition(name, p) for p in sorted(cluster.partitions_for_topic(name) or ())]
                consumer.assign(places)
                ends = await consumer.end_offsets(places)
                found: list[ConsumerRecord[bytes, bytes]] = []
                async with asyncio.timeout(20):
                    while len(found) < sum(ends.values()):
                        for records in (await consumer.getmany(timeout_ms=500)).values():
                            found += records
            finally:
                await consumer.stop()
            return sorted(found, key=lambda record: (record.partition, record.offset))

        return asyncio.run(read())

    def file(self, letters: Sequence[DeadLetter], partition: int = 0) -> list[tuple[int, int]]:
        """Write letters as a worker does; their topics get this test's prefix."""
        named = (replace(letter, topic=self.settings.topic(letter.topic)) for letter in letters)
        return self.write("dead-letters", [{**one.to_record()._asdict(), "partition": partition} for one in named])

    def list(self, limit: int = 100, **choice: Any) -> Listing:
        found: Listing = asyncio.run(dead_letter_topic.list_letters(self.settings, Choice(**choice), limit))
        return found

    def retry(self, **choice: Any) -> Retried:
        return asyncio.run(dead_letter_topic.retry(self.settings, Choice(**choice)))


@pytest.fixture
def world(kafka: KafkaServer, topic_prefix: str) -> World:
    found = World(Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix))
    found.create(interactions=PARTITIONS, dead_letters=1)
    return found


# -- listing --------------------------------------------------------------------------------------------


def test_what_the_parser_refuses_is_listed_with_its_original_bytes(world: World) -> None:
    """Bad records written to `interactions`, read back, parsed as a worker parses them, filed, listed."""
    user = b"u1"
    home = partition_of(user)
    bad = [
        {"key": user, "value": b"\xff\xfe{not json", "partition": home},
        {"key": b"u2", "value": event("u1"), "partition": home},
        {"key": user, "value": None, "partition": home, "headers": [("trace", b"\x00")]},
        {"key": None, "value": event("u1", "return"), "partition": home},
    ]
    world.write("interactions", [{**record, "timestamp_ms": NOW_MS} for record in bad])
    records = world.read("interactions")
    parser = EventParser(CONFIG, Vocabulary(), Vocabulary())
    refused = parser.messages(
        [r.value for r in records], [r.key for r in records], np.array([r.timestamp // 1000 for r in records]),
        home, PARTITIONS,
    ).rejections  # fmt: skip
    letters = []
    for rejection in refused:
        r = records[rejection.line - 1]
        where = (world.settings.topic("interactions"), r.partition, r.offset, r.timestamp)
        letters.append(DeadLetter(rejection.code, rejection.reason, *where, r.key, r.value, tuple(r.headers)))
    world.write("dead-letters", [letter.to_record()._asdict() for letter in letters])
    listing = world.list()
    assert [filed.letter for filed in listing.letters] == letters
    assert [(f.letter.key, f.letter.value, f.letter.headers) for f in listing.letters] == [
        (r["key"], r["value"], tuple(r.get("headers", ()))) for r in bad
    ]
    assert [f.letter.offset for f in listing.letters] == [0, 1, 2, 3]
    assert {f.letter.timestamp for f in listing.letters} == {NOW_MS}
    assert listing.codes == {"json": 1, "key": 1, "empty": 1, "type": 1}
    assert set(listing.codes) <= set(CODES)


def test_the_last_letters_are_shown_and_all_are_counted(world: World) -> None:
    world.file([replace(LETTER, offset=k, code=("json", "time")[k % 2]) for k in range(3_000)])
    listing = world.list(limit=10, code="time")
    assert [filed.letter.offset for filed in listing.letters] == list(range(2_981, 3_000, 2))
    assert [filed.offset for filed in listing.letters] == list(range(2_981, 3_000, 2))
    assert (listing.found, listing.codes, listing.retried) == (1_500, {"time": 1_500}, 0)


def test_letters_written_again_after_a_crash_count_once(world: World) -> None:
    world.file([LETTER, replace(LETTER, offset=18)])
    world.file([LETTER, replace(LETTER, offset=18), replace(LETTER, offset=19)])
    listing = world.list()
    assert [(filed.offset, filed.letter.offset) for filed in listing.letters] == [(0, 17), (1, 18), (4, 19)]
    assert listing.found == 3


def test_letters_are_chosen_by_code_topic_and_offset(world: World) -> None:
    world.file(
        [
            LETTER,
            replace(LETTER, code="key", offset=18),
            replace(LETTER, topic="items", offset=3),
            replace(LETTER, offset=19),
        ]
    )

    def chosen(**choice: Any) -> list[int]:
        return [filed.offset for filed in world.list(**choice).letters]

    assert chosen(code="json") == [0, 2, 3]
    assert chosen(topic="items") == chosen(topic=world.settings.topic("items")) == [2]
    assert chosen(offsets=((0, 1, 2),)) == [1, 2]
    assert chosen(offsets=((0, 0, 0), (0, 3, 9))) == [0, 3]
    assert chosen(offsets=((1, 0, 9),)) == []
    assert chosen(code="json", topic="interactions", offsets=((0, 1, 3),)) == [3]


def test_foreign_records_are_counted_and_harm_nothing(world: World) -> None:
    world.file([LETTER])
    world.write("dead-letters", [{"value": b"hello"}, {"value": b"?", "headers": [("retried", b"1")]}])
    world.file([replace(LETTER, offset=18)])
    listing = world.list()
    assert (listing.found, listing.foreign) == (2, 2)
    assert world.retry().sent == 2


def test_an_empty_topic_has_no_letters(world: World) -> None:
    assert world.list() == Listing()
    assert world.retry() == Retried()


def test_a_large_record_passes_the_broker_cut(world: World) -> None:
    world.file([replace(LETTER, value=b"x" * 5_000_000)])
    [filed] = world.list().letters
    assert filed.letter.size == 5_000_002
    assert 900_000 < len(filed.letter.value or b"") < 1_000_000
    assert world.retry() == Retried(skipped={"too large to be here as a whole": 1})
    assert world.read("interactions") == []


# -- retrying -------------------------------------------------------------------------------------------


def test_a_retried_record_is_the_original_and_goes_once(world: World) -> None:
    value = event("u1", "return", extra="ü")
    world.file([replace(LETTER, code="type", value=value, headers=(("trace", b"\x07"),))])
    assert world.retry() == Retried(sent=1)
    [sent] = world.read("interactions")
    assert (sent.key, sent.value, sent.partition, sent.timestamp) == (b"u1", value, 2, NOW_MS)
    assert tuple(sent.headers) == (("trace", b"\x07"),)
    assert world.retry() == Retried(skipped={"retried before": 1})
    assert len(world.read("interactions")) == 1
    listing = world.list()
    assert ([filed.retried for filed in listing.letters], listing.found, listing.retried) == ([True], 1, 1)


def test_a_letter_written_again_after_its_retry_is_not_sent_again(world: World) -> None:
    world.file([LETTER, LETTER])
    assert world.retry() == Retried(sent=1)
    world.file([LETTER])  # a worker restored an old snapshot and came by once more
    assert world.retry() == Retried(skipped={"retried before": 1})
    world.file([replace(LETTER, offset=40)])  # the retried record, refused at its new place: another letter
    world.file([replace(LETTER, timestamp=NOW_MS + 1)])  # the topic was made anew: the same offset, another record
    assert world.retry() == Retried(sent=2, skipped={"retried before": 1})
    assert [filed.retried for filed in world.list().letters] == [True] * 3


def test_misplaced_records_go_under_their_key_to_its_partition(world: World) -> None:
    user, odd = b"u1", "ü/1".encode()
    world.file(
        [
            replace(LETTER, code="key", key=b"other", value=event("u1"), partition=elsewhere(user)),
            replace(LETTER, code="key", key=None, value=event("ü/1"), offset=18, partition=elsewhere(odd)),
            replace(LETTER, code="partition", key=user, value=event("u1"), offset=19, partition=elsewhere(user)),
            replace(LETTER, code="partition", key=user, value=event("u1"), offset=20, partition=PARTITIONS + 3),
            replace(
                LETTER, code="key", key=b"x", offset=21, partition=elsewhere(user),
                value=b'{"event":"view","entityType":"user","entityId":"u1","targetEntityId":"i"}',
            ),
        ]
    )  # fmt: skip
    assert world.retry() == Retried(sent=5, rekeyed=3)
    sent = world.read("interactions")
    assert sorted((r.key, r.partition) for r in sent) == sorted(
        [(user, partition_of(user))] * 4 + [(odd, partition_of(odd))]
    )
    # what was mended is accepted now, everywhere
    parser = EventParser(CONFIG, Vocabulary(), Vocabulary())
    for r in sent:
        times = np.array([r.timestamp // 1000])
        assert not parser.messages([r.value], [r.key], times, r.partition, PARTITIONS).rejections


def test_a_misplaced_record_that_names_no_user_goes_where_it_was(world: World) -> None:
    world.file([replace(LETTER, code="key", key=b"x", value=b"{", partition=3)])
    assert world.retry() == Retried(sent=1)
    [sent] = world.read("interactions")
    assert (sent.key, sent.partition) == (b"x", 3)


def test_nulls_stay_nulls(world: World) -> None:
    nothing = replace(LETTER, code="empty", key=None, value=None, partition=1)
    world.file([replace(nothing, key=b"u1"), replace(nothing, value=b"", offset=18), replace(nothing, offset=19)])
    assert world.retry() == Retried(sent=2, skipped={"with neither key nor value": 1})
    assert [(r.key, r.value, r.partition) for r in world.read("interactions")] == [(b"u1", None, 1), (None, b"", 1)]


def test_what_was_refused_for_its_time_gets_the_time_of_the_retry(world: World) -> None:
    world.file([replace(LETTER, code="time", value=event("u1", timestamp=NOW_MS // 1000 + 200_000))])
    assert world.retry() == Retried(sent=1)
    [sent] = world.read("interactions")
    assert sent.timestamp > NOW_MS + 200_000_000


def test_what_cannot_be_sent_is_left_alone_and_says_why(world: World) -> None:
    name = world.settings.topic
    world.file(
        [
            replace(LETTER, topic="edits", code="message"),
            replace(LETTER, topic="users", code="document"),
            replace(LETTER, topic="users", code="document", key=b"u2"),  # of the same place in the log, and another
            replace(LETTER, topic="items"),
            replace(LETTER, partition=PARTITIONS),
        ]
    )
    expected = {
        f"from {name('users')}: a document, which is made of events and not sent by itself: see what its reason says,"
        " `cco index create` for what the index lacks, then `cco audit --repair` to write it": 2,
        f"from {name('edits')}, which heals by a resync": 1,
        f"from {name('items')}, which is not there any more": 1,
        f"from a partition that {name('interactions')} does not have any more": 1,
    }
    assert world.retry() == Retried(skipped=expected)
    listed = world.list()
    assert (listed.found, listed.retried) == (5, 0)


def test_only_the_chosen_are_sent_and_the_others_can_follow(world: World) -> None:
    world.file([replace(LETTER, offset=k, code=("json", "time")[k % 2], value=b"%d" % k) for k in range(1_200)])
    assert world.retry(offsets=((0, 10, 12), (0, 700, 700))).sent == 4
    assert sorted(int(r.value or b"") for r in world.read("interactions")) == [10, 11, 12, 700]
    assert world.retry(code="json") == Retried(sent=597, skipped={"retried before": 3})
    assert world.list().retried == 601
    assert world.retry() == Retried(sent=599, skipped={"retried before": 601})
    markers = [marked(record.headers, record.value) or [] for record in world.read("dead-letters")]
    assert sum(map(len, markers)) == 1_200  # each is marked once
    assert sorted(int(r.value or b"") for r in world.read("interactions")) == list(range(1_200))


def test_letters_in_several_partitions_are_all_found(kafka: KafkaServer, topic_prefix: str) -> None:
    world = World(Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix))
    world.create(interactions=PARTITIONS, dead_letters=3)
    for partition in range(3):
        world.file([replace(LETTER, offset=partition)], partition)
    assert world.retry(offsets=((2, 0, 0),)) == Retried(sent=1)
    assert {(filed.partition, filed.retried) for filed in world.list().letters} == {(0, False), (1, False), (2, True)}
    assert world.retry().sent == 2


def test_a_missing_topic_is_told_and_not_created(kafka: KafkaServer, topic_prefix: str) -> None:
    world = World(Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix))
    for doing in (world.list, world.retry):
        with pytest.raises(KafkaProblem, match=f"has no topic {topic_prefix}dead-letters: `cco topics create`"):
            doing()


# -- the command ----------------------------------------------------------------------------------------


def run(capsys: Capture, world: World, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    where = ("--brokers", world.settings.brokers, "--topic-prefix", world.settings.topic_prefix)
    code = main(["dead-letters", *map(str, arguments), *where])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_command_lists_and_retries(world: World, capsys: Capture) -> None:
    name = world.settings.topic("interactions")
    world.file(
        [
            replace(LETTER, code="key", key=b"other", value=event("u1", "view"), reason="the key 'other' is wrong"),
            replace(LETTER, offset=18, value=b"\xff[red]", key=None),
        ]
    )
    code, text, _ = run(capsys, world, "list")
    assert code == 0
    assert text.splitlines()[-1] == "2 dead letters (1 json, 1 key), 0 of them retried"
    first, said, second, data = text.splitlines()[1:5]
    assert first.split()[:6] == ["0:0", "open", "key", f"{name}/2@17", "2016-10-19", "13:34:40"]
    assert first.rstrip().endswith("the key 'other' is wrong")
    assert said.strip() == "other: " + event("u1", "view").decode()
    assert second.split()[:4] == ["0:1", "open", "json", f"{name}/2@18"]
    assert data.strip() == "null: \\xff[red]"

    code, text, _ = run(capsys, world, "retry", "--reason", "key")
    assert (code, text) == (0, "1 records sent, 1 of them under another key\n")
    code, text, _ = run(capsys, world, "retry", "--offsets", "0", "--json")
    assert json.loads(text) == {"sent": 0, "rekeyed": 0, "skipped": {"retried before": 1}}
    assert [(r.key, r.partition) for r in world.read("interactions")] == [(b"u1", partition_of(b"u1"))]

    code, text, _ = run(capsys, world, "list", "--json", "--limit", 1)
    found = json.loads(text)
    assert (found["found"], found["retried"], found["codes"]) == (2, 1, {"json": 1, "key": 1})
    [letter] = found["letters"]
    assert (letter["letter"], letter["offset"], letter["retried"]) == ({"partition": 0, "offset": 1}, 18, False)
    assert (letter["key"], letter["value"]) == (None, {"base64": "/1tyZWRd"})
    code, text, _ = run(capsys, world, "list", "--limit", 1)
    assert (
        text.splitlines()[-1]
        == "2 dead letters (1 json, 1 key), 1 of them retried; 1 older ones are not shown (--limit)"
    )
