"""Which log it is: what tells a topic from another one of the same name, and an index from one of another log.

Documents of users and the metadata of items are written by offset: of two, the one of the larger offset counts. Where a
topic was made anew, or has other partitions than before, offsets say that no longer, and documents of the earlier log
would refuse all that follows, without a word. So each index says of which log it is (`_meta.cco.log`): whoever writes
it first signs it, by the ids that Kafka gives to topics, and whoever comes with another log is told.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from agents.health.modes import Reason
from agents.kafka.client import client_options, kafka_errors
from agents.kafka.topics import INTERACTIONS, ITEMS
from agents.settings import Settings
from model_sync.elastic_mapping import LOG, Difference, Kind

NEW_INDEX = (
    "its documents bear offsets of that log, and would refuse those of this one: choose another index_prefix; or stop"
    " the workers, remove their states and shared copies, delete the indices, and `cco index create` makes new ones,"
    " which workers fill"
)
_MADE_FROM: dict[Kind, tuple[str, ...]] = {"items": (INTERACTIONS, ITEMS), "users": (INTERACTIONS,)}
_BYTES = 16  # of an id
_NO_ID = bytes(_BYTES)

Signature = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Log:
    """A topic as it is now. `id`: Kafka's; None where the broker tells none (before 2.8)."""

    topic: str
    cluster: str
    id: str | None
    partitions: int


async def look_at_logs(settings: Settings) -> dict[str, Log]:
    """`interactions` and `items`, by these names, as far as they can be seen. Raises KafkaProblem."""
    client = AIOKafkaClient(**client_options(settings))
    with kafka_errors(settings, "looking at topics"):
        try:
            await client.bootstrap()
            found = await look_at(client, [settings.topic(name) for name in (INTERACTIONS, ITEMS)])
        finally:
            await client.close()
    return {name: found[settings.topic(name)] for name in (INTERACTIONS, ITEMS) if settings.topic(name) in found}


async def look_at(client: AIOKafkaClient, topics: Sequence[str]) -> dict[str, Log]:
    """Those of `topics`, by their names on the broker, that are there and ours to see. Raises aiokafka's KafkaError."""
    found = await _metadata(client, topics)
    logs = {}
    for topic in found["topics"]:
        if topic["error_code"] == 0:
            name, id = str(topic["topic"]), topic.get("topic_id", _NO_ID)
            logs[name] = Log(name, str(found["cluster_id"]), _text(id), len(topic["partitions"]))
    return logs


def signature(logs: Mapping[str, Log], kind: Kind) -> Signature:
    """What an index that is made from these logs has in `_meta.cco.log`."""
    return {name: asdict(logs[name]) for name in _MADE_FROM[kind] if name in logs}


def log_differences(index: str, found: Mapping[str, Any] | None, ours: Signature) -> Iterator[Difference]:
    """What keeps an index from being written from our log. `found`: its signature; None: nobody has signed it."""
    for name, log in ours.items():
        signed = (found or {}).get(name)
        if signed is not None and not _is_same(signed, log):
            yield Difference(index, f"_meta.cco.{LOG}.{name}", _told(log), _told(signed), False, NEW_INDEX)


def reason_of(difference: Difference) -> Reason:
    """One of these as a reason why nothing is learned."""
    where, wanted, found = difference.where, difference.wanted, difference.found
    text = f"the index {where} is of another log: it was made from {found}, and now there is {wanted}"
    return Reason("lambda", "", f"{text}: nothing is published into it", difference.remedy)


def _is_same(signed: Mapping[str, Any], log: Mapping[str, Any]) -> bool:
    if signed.get("partitions") != log["partitions"]:
        return False
    if signed.get("id") and log["id"]:
        return bool(signed["id"] == log["id"])
    return all(signed.get(key) == log[key] for key in ("cluster", "topic"))


def _told(log: Mapping[str, Any]) -> str:
    number = log.get("partitions")
    which = f"id {log['id']}" if log.get("id") else f"cluster {log.get('cluster')}"
    return f"the topic {log.get('topic')} ({which}, {number} partition{'s' * (number != 1)})"


def _text(id: bytes) -> str | None:
    """As Kafka's own tools print it."""
    return None if id == _NO_ID else base64.urlsafe_b64encode(id).rstrip(b"=").decode()


# -- Kafka's metadata with the ids of topics, which aiokafka does not ask for -------------------------


class _Uuid(AbstractType):  # type: ignore[misc]  # not typed, as all of these
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: Any) -> bytes:
        return bytes(data.read(_BYTES))


class _Answer(Response):  # type: ignore[misc]
    API_KEY, API_VERSION = 3, 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32), ("host", CompactString()), ("port", Int32), ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16), ("partition", Int32), ("leader", Int32), ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)), ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)), ("tags", TaggedFields),
                    ),
                ),
                ("topic_authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )  # fmt: skip


class _Question(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION, FLEXIBLE_VERSION, RESPONSE_TYPE = 3, 10, True, _Answer
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _WithIds(Request[_Question]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def build(self, struct: type[Any]) -> Any:
        return struct([(_NO_ID, name, {}) for name in self._names], False, False, False, {})


async def _metadata(client: AIOKafkaClient, names: Sequence[str]) -> dict[str, Any]:
    """Of these topics, none of which is made by the question; without ids, where the broker knows none."""
    node = client.get_random_node()
    try:
        answer = await client.send(node, _WithIds(names))
    except (NotImplementedError, IncompatibleBrokerVersion):
        answer = await client.send(node, MetadataRequest(list(names), False))
    found: dict[str, Any] = answer.to_object()
    return found
