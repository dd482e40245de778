"""The topics: which there are, how they must be, making them, checking them, and looking into them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import GroupCoordinatorNotAvailableError, for_code
from aiokafka.protocol.group import LeaveGroupRequest

from agents.kafka.client import KafkaProblem, client_options, kafka_errors
from agents.settings import Settings
from cco.config import Config

INTERACTIONS, ITEMS, EDITS, CONTROL = "interactions", "items", "edits", "control"
DEAD_LETTERS, PATCHES = "dead-letters", "patches"

DAY = 86_400
REPLICAS = 3  # of each partition, where there are so many brokers
UNLIMITED = -1

_MINUTE_MS, _HOUR_MS, _DAY_MS = 60_000, 3_600_000, 86_400_000
_EXISTS = 36  # Kafka's code for a topic that is there already
_NO_MEMBER = 25  # and for one who is no member of a group any more
_PATIENCE = 30.0  # seconds until a new topic's partitions have leaders
_POLL = 0.05  # seconds
_AT_LEAST = ("retention.ms", "retention.bytes", "max.message.bytes")
_SAME = ("cleanup.policy", "message.timestamp.type")
_SHOWN = (*_SAME, *_AT_LEAST, "segment.ms", "min.insync.replicas")

PartitionRule = Literal["retention.source_partitions", "item_partitions", "one", "any"]


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """How a topic must be.

    `rule` says where the count of partitions comes from; with "any", only a new topic gets it. `settings` are those of
    a new topic; of an existing one `cleanup.policy` and `message.timestamp.type` must be the same, and `retention.ms`,
    `retention.bytes` and `max.message.bytes` not less (-1: unlimited).
    """

    name: str  # on the broker, with its prefix
    partitions: int
    rule: PartitionRule
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartitionFound:
    """A partition on the broker: it has the offsets `begin` to `end` - 1, None where they were not asked for."""

    partition: int
    leader: int | None
    replicas: int
    begin: int | None = None
    end: int | None = None


@dataclass(frozen=True, slots=True)
class TopicFound:
    """A topic on the broker; `settings` are the effective ones."""

    name: str
    partitions: tuple[PartitionFound, ...]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Created:
    """What `create_topics` did: names of new topics, and what is wrong with those that were there."""

    topics: list[str]
    problems: list[str]


def topic_specs(config: Config, settings: Settings, retention: float | None = None) -> list[TopicSpec]:
    """The topics of a configuration. `retention`: seconds that interactions are kept; None: for ever.

    `interactions` is the truth: a state that is lost is made from it, if it is still there as a whole. `edits` and
    `control` are only messages on their way: whoever missed some is filled again.
    """
    sources, targets = config.retention.source_partitions, settings.item_partitions

    def deleting(milliseconds: int, **others: int) -> dict[str, str]:
        found = {"cleanup.policy": "delete", "retention.ms": str(milliseconds), "retention.bytes": str(UNLIMITED)}
        return found | {name.replace("_", "."): str(value) for name, value in others.items()}

    kept = UNLIMITED if retention is None else int(retention * 1000)
    specs: list[tuple[str, int, PartitionRule, dict[str, str]]] = [
        (INTERACTIONS, sources, "retention.source_partitions", deleting(kept)),
        # Not compacted: $set merges, so an item's last record alone does not say what the item is.
        (ITEMS, targets, "any", deleting(UNLIMITED)),
        # Only whole segments are deleted, so short retention needs short segments. A message of edits has at most
        # 1,000,000 bytes, and what Kafka puts around it.
        (EDITS, targets, "item_partitions",
         deleting(_HOUR_MS, segment_ms=10 * _MINUTE_MS, max_message_bytes=1_048_588)
         | {"message.timestamp.type": "LogAppendTime"}),  # the times of claims: of the broker's clock, not the workers'
        (CONTROL, 1, "one", deleting(10 * _MINUTE_MS, segment_ms=5 * _MINUTE_MS)),
        (DEAD_LETTERS, 1, "any", deleting(30 * _DAY_MS)),
    ]  # fmt: skip
    if settings.patches == "topic":
        # Not compacted: a patch has an item's changed fields, so the last one of an item does not say it all.
        specs.append((PATCHES, targets, "any", deleting(UNLIMITED)))
    return [TopicSpec(settings.topic(name), count, rule, found) for name, count, rule, found in specs]


async def create_topics(
    config: Config, settings: Settings, *, retention: float | None = None, replicas: int | None = None
) -> Created:
    """Make the topics that are missing, wait until they can be used, and check the others.

    Where `edits` is made anew, the group of the workers, who are to be stopped, begins anew, too.
    `retention`: see `topic_specs`. `replicas` of each partition; None: 3, or as many as there are brokers.
    Raises KafkaProblem.
    """
    specs = topic_specs(config, settings, retention)
    with kafka_errors(settings, "creating topics"):
        async with _admin(settings) as admin:
            found = await _find(admin, [spec.name for spec in specs])
            missing = [spec for spec in specs if spec.name not in found]
            copies = replicas or min(REPLICAS, len((await admin.describe_cluster())["brokers"]))
            created = await _create(admin, missing, copies) if missing else []
            if settings.topic(EDITS) in created and settings.topic(INTERACTIONS) in found:
                await _dismiss(admin, settings.group)
    there = [(spec, found[spec.name]) for spec in specs if spec.name in found]
    problems = [line for spec, topic in there for line in topic_problems(spec, topic, settings)]
    return Created(created, problems)


async def check_topics(config: Config, settings: Settings, *, retention: float | None = 0.0) -> list[str]:
    """What is wrong with the topics, a line each, with what to do; nothing if a worker can use them.

    `retention`: seconds that interactions must be kept at least, None: for ever. Raises KafkaProblem.
    """
    specs = topic_specs(config, settings, retention)
    with kafka_errors(settings, "checking topics"):
        async with _admin(settings) as admin:
            found = await _find(admin, [spec.name for spec in specs])
    return [line for spec in specs for line in topic_problems(spec, found.get(spec.name), settings)]


async def describe_topics(config: Config, settings: Settings) -> list[TopicFound]:
    """The topics that are there, with settings and offsets, in the order of `topic_specs`. Raises KafkaProblem."""
    names = [spec.name for spec in topic_specs(config, settings)]
    with kafka_errors(settings, "looking at topics"):
        async with _admin(settings) as admin:
            found = await _find(admin, names)
        return await _with_offsets(settings, [found[name] for name in names if name in found])


def topic_problems(spec: TopicSpec, found: TopicFound | None, settings: Settings) -> Iterator[str]:
    """A line for each difference between how a topic of `settings` must be and how it is, with what to do."""
    if found is None:
        yield f"{spec.name}: is missing: `cco topics create`, with the same settings, makes it"
        return
    count = len(found.partitions)
    if spec.rule != "any" and count != spec.partitions:
        yield f"{spec.name}: has {_partitions(count)}, {_about_partitions(spec, count)}"
    for key, demanded in spec.settings.items():
        actual = found.settings.get(key)
        if actual is None or key not in (*_SAME, *_AT_LEAST):
            continue
        if key in _AT_LEAST:
            wrong, must = _limit(actual) < _limit(demanded), "must be at least"
        else:
            wrong, must = actual != demanded, "must be"
        if wrong:
            yield (
                f"{spec.name}: {key} is {_readable(key, actual)}, and {must} {_readable(key, demanded)}: kafka-configs"
                f" --bootstrap-server {','.join(settings.broker_list)} --alter --entity-type topics --entity-name"
                f" {spec.name} --add-config {key}={demanded}"
            )


def _about_partitions(spec: TopicSpec, count: int) -> str:
    if spec.rule == "retention.source_partitions":
        return (
            f"and the configuration says retention.source_partitions = {spec.partitions}: set it to {count}, or choose"
            " another topic_prefix, create the topics and ingest the events again (adding partitions would send users"
            " to others than their histories are in)"
        )
    if spec.rule == "item_partitions":
        # Patches are numbered by offsets of this topic: after others of another number, new ones would not count.
        return (
            f"and the settings say item_partitions = {spec.partitions}: set it to {count}, or stop all workers, delete"
            " the topic, with all patches in their topic or files, and create it again (its messages are said again)"
        )
    return "and must have 1: stop all workers, delete it and create it again (its messages are of the moment)"


def _partitions(count: int) -> str:
    return f"{count} partition{'s' * (count != 1)}"


def _limit(value: str) -> float:
    """A limit as a number; -1 stands for none."""
    return float("inf") if int(value) == UNLIMITED else int(value)


def _readable(key: str, value: str) -> str:
    """A setting as Kafka writes it, and in words where that is hard to read."""
    if key not in _AT_LEAST:
        return value
    number = int(value)
    if number == UNLIMITED:
        return f"{value} (unlimited)"
    if key == "retention.ms":
        for unit, name in ((_DAY_MS, "d"), (_HOUR_MS, "h"), (_MINUTE_MS, "min"), (1000, "s")):
            if number >= unit:
                return f"{value} ({number / unit:.4g} {name})"
    return value


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**client_options(settings))
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def _partitions_of(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, tuple[PartitionFound, ...]]:
    """The partitions of those topics that exist."""
    found: dict[str, tuple[PartitionFound, ...]] = {}
    for topic in await admin.describe_topics():  # all: asking by name would make brokers create what is missing
        if topic["topic"] in names and not topic["error_code"]:
            found[topic["topic"]] = tuple(
                PartitionFound(
                    partition["partition"],
                    partition["leader"] if partition["leader"] >= 0 else None,
                    len(partition["replicas"]),
                )
                for partition in sorted(topic["partitions"], key=lambda partition: int(partition["partition"]))
            )
    return found


async def _find(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, TopicFound]:
    """The topics of these names that exist."""
    partitions = await _partitions_of(admin, names)
    if not partitions:
        return {}
    wanted = dict.fromkeys(_SHOWN, "")
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in partitions]
    found: dict[str, TopicFound] = {}
    for response in await admin.describe_configs(resources):
        for code, message, _, name, entries in response.resources:
            if code:
                raise for_code(code)(f"the settings of {name} cannot be read: {message}")
            values = {entry[0]: entry[1] for entry in entries}
            found[name] = TopicFound(name, partitions[name], {key: values[key] for key in _SHOWN if key in values})
    return found


async def _create(admin: AIOKafkaAdminClient, specs: Sequence[TopicSpec], replicas: int) -> list[str]:
    """Make topics, and return the names of those that we made when all of them can be used."""
    # With a copy to spare, acknowledged by a majority: no acknowledged record is lost with one broker.
    in_sync = {"min.insync.replicas": str(max(1, min(2, replicas - 1)))}
    new = [NewTopic(spec.name, spec.partitions, replicas, topic_configs={**spec.settings, **in_sync}) for spec in specs]
    response = await admin.create_topics(new)
    created = []
    for name, code, message in response.topic_errors:
        if code not in (0, _EXISTS):
            raise KafkaProblem(f"the topic {name} cannot be created: {message or for_code(code).__name__}")
        if code == 0:
            created.append(name)
    names = [spec.name for spec in specs]
    async with asyncio.timeout(_PATIENCE):
        while not _usable(await _partitions_of(admin, names), names):
            await asyncio.sleep(_POLL)
    return created


async def _dismiss(admin: AIOKafkaAdminClient, group: str) -> None:
    """Have Kafka forget the members of a group, all of them.

    A worker that has stopped is one until its session ends, and would be given what it had before, which is nothing of
    the new partitions of a topic. One that runs joins again.
    """
    try:
        node = await admin.find_coordinator(group)
    except GroupCoordinatorNotAvailableError:
        return  # there has never been a group on this cluster
    for answer in await admin.describe_consumer_groups([group], node):
        for code, _, _, _, _, members in answer.groups:
            codes = [code]
            for member, *_ in members:
                codes.append((await admin._client.send(node, LeaveGroupRequest(group, member))).error_code)
            for failed in set(codes) - {0, _NO_MEMBER}:
                raise for_code(failed)(f"the members of the group {group} cannot be removed from it")


def _usable(found: Mapping[str, tuple[PartitionFound, ...]], names: Sequence[str]) -> bool:
    return all(found.get(name) and all(p.leader is not None for p in found[name]) for name in names)


async def _with_offsets(settings: Settings, topics: Sequence[TopicFound]) -> list[TopicFound]:
    served = [
        TopicPartition(topic.name, found.partition)
        for topic in topics
        for found in topic.partitions
        if found.leader is not None
    ]
    if not served:
        return list(topics)
    async with AIOKafkaConsumer(**client_options(settings)) as consumer:
        begins: dict[Any, int] = await consumer.beginning_offsets(served)
        ends: dict[Any, int] = await consumer.end_offsets(served)
    return [
        TopicFound(
            topic.name,
            tuple(
                PartitionFound(
                    found.partition,
                    found.leader,
                    found.replicas,
                    begins.get(TopicPartition(topic.name, found.partition)),
                    ends.get(TopicPartition(topic.name, found.partition)),
                )
                for found in topic.partitions
            ),
            topic.settings,
        )
        for topic in topics
    ]


def state_problem(
    where: object, stored: Mapping[str, Any] | None, ours: Mapping[str, Any], begin: int, end: int
) -> str | None:
    """Why a state cannot go on with a partition of `interactions`, in a sentence with what to do; None if it can.

    `where` the state is. `stored`: what was committed with it: `topic`, `partition`, `partitions` (of the topic),
    `cluster` and `topic_id` (Kafka's ids), `offset` (the next to read); None if nothing was. `ours`: the same as
    it is now, without the offset. The log has the offsets `begin` to `end` - 1.
    """
    if stored is not None:
        if "offset" not in stored or "topic" not in stored:
            return f"{where}: the state is none of a worker's: name another directory for the worker's states (--state)"
        for key, problem in _CHANGED.items():
            if stored.get(key) != ours[key]:
                return f"{where}: {problem.format(stored=stored.get(key), ours=ours[key])}"
        if stored.get("topic_id") and ours["topic_id"] and stored["topic_id"] != ours["topic_id"]:
            return (
                f"{where}: the state is of another topic {ours['topic']} (id {stored['topic_id']}, now"
                f" {ours['topic_id']}): it was made anew; if the events are in it from the start, remove the state and"
                " its shared copy, so that they are read again"
            )
    log = f"{ours['topic']}-{ours['partition']}"
    anew = "choose another topic_prefix, create the topics and ingest the events again"
    if stored is None:
        if begin == 0:
            return None
        return (
            f"{where}: there is no state, and {log} begins at offset {begin}, its first events are gone: bring the"
            f" state or a shared copy of it back, {_SEED}, or {anew}"
        )
    offset = int(stored["offset"])
    if offset > end:
        return (
            f"{where}: the state goes on at offset {offset} of {log}, which ends at {end}: the topic was made anew or"
            f" lost its last records; if the events are in it from the start, remove the state and its shared copy, so"
            " that they are read again"
        )
    if offset < begin:
        return (
            f"{where}: the state goes on at offset {offset} of {log}, which begins at {begin}: {begin - offset} records"
            f" are gone that it has not seen; bring a newer state or shared copy, {_SEED}, or {anew}, with a longer"
            " retention"
        )
    return None


_SEED = "or let a rebuild write one (`cco rebuild --archive URL --seed`)"
_REMOVE = "or remove the state and its shared copy, so that the events are read again from the start"
_CHANGED = {
    "cluster": "the state is of another Kafka cluster ({stored}, now {ours}): go back to its brokers, " + _REMOVE,
    "topic": "the state is of the topic {stored}, not of {ours}: set topic_prefix as it was, or name another directory"
    " for the worker's states (--state)",
    "partition": "the state is of partition {stored}, not {ours}: was the directory renamed? Give it its name back, "
    + _REMOVE,
    "partitions": "the state was made with {stored} source partitions, and now there are {ours}: set"
    " retention.source_partitions = {stored} again, with the topic that fits, " + _REMOVE,
}
