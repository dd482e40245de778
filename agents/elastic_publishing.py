"""What a worker has of Elasticsearch: patches of rows, documents of users, metadata of items, and an eye on the index.

When the index that an alias names is another one than before (deleted, made anew, swapped), nothing of it is known any
more, and everything is said once more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from elasticsearch import ApiError, TransportError
from faust.types import TP
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agents.dead_letters import DeadLetter
from agents.elastic import elastic_options
from agents.item_partition import Claim
from agents.log import get_logger
from agents.metadata_agent import MetadataAgent
from agents.patch_sinks import Encoded
from agents.topics import DEAD_LETTERS, ITEMS
from cco.config import Config
from cco.rows import Patches
from cco.vocabulary import Vocabulary
from model_sync.bulk_types import Refusal, Rows
from model_sync.bulk_writer import Owner, RowWriter, UserWriter
from model_sync.elastic_client import async_client, names
from model_sync.elastic_documents import RowDocument, fields_json, row_documents
from model_sync.elastic_metadata import MetadataWriter

if TYPE_CHECKING:
    from agents.worker import Worker

LOOK_SECONDS = 1.0  # between two looks at which index is behind the aliases
WRITE_SECONDS = 3.0  # for documents on their way when the worker stops; the next owner sends all of them again
_COUNTED = ("stored", "coalesced", "retries", "conflicts", "rejections", "superseded", "refused", "fenced", "reads")


class ElasticSink:
    """A `patch_sinks.Sink` over the items index."""

    def __init__(self, config: Config, writer: RowWriter) -> None:
        self._config, self._writer = config, writer

    def encode(self, items: Vocabulary, patches: Patches, partition: int, claim: Claim) -> Encoded[RowDocument]:
        """One document for each item that `patches` has fields of."""
        return Encoded(partition, claim, row_documents(self._config, items, patches), len(patches.rows))

    async def send(self, encoded: Encoded[RowDocument]) -> asyncio.Future[Any]:
        """Waits while the writer's queue is full."""
        owner = Owner(encoded.partition, encoded.claim.at, encoded.claim.offset)
        return await self._writer.put(owner, encoded.records)

    async def close(self) -> None:
        """The writer is closed by `ElasticPublishing`."""


class ElasticPublishing:
    """Of one worker. What it begins, the worker ends: `watch_forever` runs in the background."""

    def __init__(self, worker: Worker) -> None:
        options = elastic_options(worker.settings)
        self._worker = worker
        self._client = async_client(options)
        self.names = names(options)
        self.index: str | None = None  # id of what is behind the aliases
        self.trouble: str | None = None  # why it cannot be looked at
        self.rows = RowWriter(self._client, self.names.items, refused=self._refused, troubled=self._troubled)
        self.users = UserWriter(self._client, self.names.users, refused=self._refused, troubled=self._troubled)
        self.sink = ElasticSink(worker.config, self.rows)
        writer = MetadataWriter(self._client, self.names.items, worker.config)
        self.metadata = MetadataAgent(
            worker.config, worker.settings, worker.metrics, worker.producer, writer, self._read_items
        )
        worker.metrics.registry.register(WriterMetrics({"rows": self.rows, "users": self.users}))

    # -- the index ----------------------------------------------------------------------------------

    async def watch_forever(self) -> None:
        """Begin with the index as it is, and anew whenever it is another one."""
        while True:
            await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        try:
            index = "-".join([await self._id(self.names.items), await self._id(self.names.users)])
        except (ApiError, TransportError) as error:  # the writers say more, and go on trying
            self.trouble = f"Elasticsearch: the index cannot be looked at: {str(error)[:300]}"
            return
        self.trouble = None
        if index != self.index:
            get_logger().info("publishing into an index", items=self.names.items, index=index, before=self.index)
            self.index = index
            await self._begin_anew(index)

    async def _id(self, alias: str) -> str:
        answer = await self._client.indices.get_settings(index=alias, name="index.uuid")
        return "+".join(sorted(str(of["settings"]["index"]["uuid"]) for of in answer.body.values()))

    async def _begin_anew(self, index: str) -> None:
        self.rows.forget()
        self._worker.items.send_all()
        self._worker.users.tell_all_users()
        await self.metadata.follow(index)
        for tp in sorted(self._worker.assignment):
            if tp.topic == self.metadata.topic:
                await self.metadata.open(tp.partition)

    async def _read_items(self, partition: int, offset: int) -> None:
        await self._worker.consumer.begin(TP(self._worker.settings.topic(ITEMS), partition), offset)

    # -- what does not go well ----------------------------------------------------------------------

    def problems(self) -> Iterator[str]:
        """What is not as it should be, a sentence each."""
        for trouble in dict.fromkeys(
            (self.trouble, self.rows.stats.trouble, self.users.stats.trouble, self.metadata.trouble)
        ):
            if trouble is not None:
                yield trouble

    def _troubled(self, trouble: str | None) -> None:
        if trouble is None:
            get_logger().info("Elasticsearch takes documents again")
        else:
            get_logger().warning("Elasticsearch takes no documents; trying again", reason=trouble)

    def _refused(self, refusal: Refusal) -> None:
        """A document that would be refused again: a dead letter, with the document. Its neighbours are stored."""
        payload = refusal.payload
        if isinstance(payload, Rows):
            topic, value = self.names.items, b"{%b}" % fields_json(payload.fields)
            partition, offset, at = payload.owner.partition, payload.owner.claim, payload.owner.at
        else:
            topic, value, partition, offset, at = self.names.users, payload.body, 0, payload.version, 0
        letter = DeadLetter(
            "document", refusal.reason, f"elasticsearch:{topic}", partition, offset, at, refusal.key.encode(), value
        )
        get_logger().error("Elasticsearch refuses a document", index=topic, id=refusal.key, reason=refusal.reason)
        self._worker.metrics.refused([letter.code])
        self._worker.spawn(self._send_letter(letter))

    async def _send_letter(self, letter: DeadLetter) -> None:
        record = letter.to_record()
        await self._worker.producer.send_and_wait(
            self._worker.settings.topic(DEAD_LETTERS), key=record.key, value=record.value, headers=record.headers
        )

    async def close(self) -> None:
        """Finish what was accepted, as far as that goes."""
        await asyncio.gather(self.rows.close(WRITE_SECONDS), self.users.close(WRITE_SECONDS))
        await self.metadata.stop()
        await self._client.close()


class WriterMetrics(Collector):
    """How the writers do, for Prometheus."""

    def __init__(self, writers: dict[str, RowWriter | UserWriter]) -> None:
        self._writers = writers

    def collect(self) -> Iterator[Metric]:
        """As of now."""
        waiting = GaugeMetricFamily(
            "cco_elasticsearch_queue_documents", "Documents that wait for Elasticsearch.", labels=["writer"]
        )
        requests = GaugeMetricFamily(
            "cco_elasticsearch_requests", "Requests to Elasticsearch on their way.", labels=["writer"]
        )
        latency = GaugeMetricFamily(
            "cco_elasticsearch_latency_seconds", "Time that the last request took.", labels=["writer"]
        )
        counts = CounterMetricFamily(
            "cco_elasticsearch_documents", "Documents, by what became of them.", labels=["writer", "outcome"]
        )
        for name, writer in self._writers.items():
            stats = writer.stats
            waiting.add_metric([name], stats.documents)
            requests.add_metric([name], stats.requests)
            latency.add_metric([name], stats.counts.latency)
            for outcome in _COUNTED:
                counts.add_metric([name, outcome], getattr(stats.counts, outcome))
        yield from (waiting, requests, latency, counts)
