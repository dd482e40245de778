"""What a worker has of Elasticsearch: patches of rows, documents of users, metadata of items, and an eye on the index.

When the index that an alias names is one that was not seen before (deleted and made anew, gone back to), everything is
said to it from the beginning. One that a rebuild has ready is written beside the one that is served, see
`elastic_targets`; when it is swapped in, nothing is left to be said. Nothing is said to an index of another log than
ours, see `logs`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from elasticsearch import ApiError, TransportError
from faust.types import TP
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agents.elastic import elastic_options
from agents.health.modes import Reason
from agents.kafka.client import KafkaProblem
from agents.kafka.dead_letters import DeadLetter
from agents.kafka.logs import Log, log_differences, look_at_logs, reason_of, signature
from agents.kafka.topics import DEAD_LETTERS, ITEMS
from agents.log import get_logger
from agents.workers.elastic_targets import ElasticSink, Place, Target, Targets, fit, look, sign
from agents.workers.metadata_agent import MetadataAgent
from model_sync.bulk_types import Refusal, Rows, Statistics
from model_sync.bulk_writer import RowWriter, UserDocument, UserWriter, WriterStats
from model_sync.elastic_client import ElasticProblem, async_client, names
from model_sync.elastic_documents import fields_json
from model_sync.elastic_mapping import Difference, Kind, format_problem
from model_sync.elastic_metadata import MetadataWriter

if TYPE_CHECKING:
    from agents.workers.worker import Worker

LOOK_SECONDS = 1.0  # between two looks at which index is behind the aliases
WRITE_SECONDS = 3.0  # for documents on their way when the worker stops; the next owner sends all of them again
_COUNTED = ("stored", "coalesced", "retries", "conflicts", "rejections", "superseded", "refused", "fenced", "reads")


class ElasticPublishing:
    """Of one worker. What it begins, the worker ends: `watch_forever` runs in the background."""

    def __init__(self, worker: Worker) -> None:
        options = elastic_options(worker.settings)
        self._worker = worker
        self._client = async_client(options)
        self.names = names(options)
        self.trouble: str | None = None  # why the indices cannot be looked at, or must not be written
        self.targets = Targets()
        self.users = UserWriter(self._client, self.names.users, refused=self._refused, troubled=self._troubled)
        self.sink = ElasticSink(worker.config, self.targets)
        self.metadata = MetadataAgent(worker.config, worker.settings, worker.metrics, worker.producer, self._read_items)
        self._logs: dict[str, Log] = {}
        self._foreign: list[Difference] = []  # what says that an index is of another log
        self._is_ours = asyncio.Event()  # that none is, and our documents fit
        self._is_unsigned = False  # an index could not be signed
        self._users_index: str | None = None  # id of what is behind the alias
        self._served: str | None = None
        worker.metrics.registry.register(WriterMetrics(self))

    # -- the indices --------------------------------------------------------------------------------

    async def watch_forever(self) -> None:
        """Begin with the indices as they are, and go on with whatever follows them."""
        while not await self._look_at_logs():
            await asyncio.sleep(LOOK_SECONDS)
        while True:
            await self._look()
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_at_logs(self) -> bool:
        try:
            self._logs = await look_at_logs(self._worker.settings)
        except KafkaProblem as error:  # whatever needs Kafka says so too
            self.trouble = f"nothing is published before it is known which log this is: {error}"
            return False
        return True

    async def _look(self) -> None:
        try:
            users, _ = await look(self._client, self.names.users)
            served, following = await look(self._client, self.names.items)
        except (ApiError, TransportError, ElasticProblem) as error:  # the writers say more, and go on trying
            self.trouble = f"Elasticsearch: the index cannot be looked at: {str(error)[:300]}"
            return
        self.trouble = None
        foreign = [*await self._differences(users, "users"), *await self._differences(served, "items")]
        if foreign != self._foreign:
            for difference in foreign:
                get_logger().error("nothing is published", reason=str(difference))
            self._foreign = foreign
        if foreign:
            self._is_ours.clear()
            await self._follow([])
            return
        wanted = self._wanted(served, following)
        if not await self._fit([(users, "users"), *((place, "items") for place in wanted)]):
            self._is_ours.clear()
            await self._follow([])
            return
        self._is_ours.set()
        if users.id != self._users_index:
            get_logger().info("publishing users", users=self.names.users, index=users.id, before=self._users_index)
            self._users_index = users.id
            self._worker.users.tell_all_users()
        await self._follow(wanted)

    async def _fit(self, places: Sequence[tuple[Place, Kind]]) -> bool:
        """Whether documents of ours fit these indices: fields that indicators lack there are added."""
        for place, kind in places:
            problem = format_problem(place.name, kind, place.format, "writes")
            if problem is not None:
                self.trouble = f"Elasticsearch: nothing is published: {problem}"
                return False
            try:
                new = await fit(self._client, place, kind, self._worker.config)
            except (ApiError, TransportError, ElasticProblem) as error:
                self.trouble = (
                    f"Elasticsearch: nothing is published, for {place.name} has no fields for some indicators of"
                    f" cco.toml, and they cannot be added: {str(error)[:300]}: `cco index check` says what to do"
                )
                return False
            if new:
                get_logger().info("fields for new indicators", index=place.name, indicators=new)
        return True

    async def _differences(self, place: Place, kind: Kind) -> list[Difference]:
        """What says that an index is of another log than ours. One that nobody has signed is ours, and is signed."""
        ours = signature(self._logs, kind)
        found = list(log_differences(place.name, place.log, ours))
        known = place.log or {}
        signed = {**known, **{name: log for name, log in ours.items() if log["id"] or name not in known}}
        if not found and signed != place.log:
            try:
                await sign(self._client, place.name, signed)
            except (ApiError, TransportError) as error:  # without permission, say: it can be done without
                if not self._is_unsigned:
                    get_logger().warning("the index cannot be signed", index=place.name, reason=str(error)[:300])
                self._is_unsigned = True
        return found

    async def put_users(self, documents: Sequence[UserDocument]) -> asyncio.Future[None]:
        """Accept documents of users; waits while the queue is full, and while the index is not known to be ours."""
        await self._is_ours.wait()
        return await self.users.put(documents)

    def _wanted(self, served: Place, following: Place | None) -> list[Place]:
        """What is to be written. Rows of another configuration have no place in what was rebuilt for a new one."""
        epoch = self._worker.config.epoch
        if served.id not in (self._served, *self.targets.ids()) and self._served and served.epoch not in (None, epoch):
            self.trouble = (
                f"Elasticsearch: {served.name} was swapped in, and was rebuilt for another configuration than ours:"
                " nothing is published: start this worker again with the cco.toml of the rebuild"
            )
            return []
        self._served = served.id
        if following is None or following.id == served.id or following.epoch != epoch:
            return [served]
        if format_problem(following.name, "items", following.format, "writes") is not None:
            return [served]  # another version makes it
        return [served, following]

    async def _follow(self, wanted: list[Place]) -> None:
        """Write these indices from now on."""
        if [place.id for place in wanted] == self.targets.ids():
            return
        get_logger().info("publishing into", indices=[place.name for place in wanted])
        there = {target.place.id: target for target in self.targets}
        gone = self.targets.set([there.get(place.id) or self._target(place) for place in wanted])
        is_new = any(place.id not in there for place in wanted)
        for target in gone:
            target.metadata.close()
            self._worker.spawn(_close(target))
        if is_new:
            self._send_rows(frozenset(place.id for place in wanted if place.id in there))
        await self.metadata.follow({target.place.id: target.metadata for target in self.targets})
        for tp in sorted(self._worker.assignment):
            if tp.topic == self.metadata.topic and self.metadata.position(tp.partition) is None:
                await self.open(tp)

    async def open(self, tp: TP) -> None:
        """Take up a partition of `items`, unless it is taken away meanwhile."""
        await self.metadata.open(tp.partition)
        if tp not in self._worker.assignment:
            self.metadata.close(tp.partition)

    def _send_rows(self, holding: frozenset[str]) -> None:
        """Tell a new index every row; `holding`: ids of those that have had them so far."""
        if holding and self._worker.items.hand_over():
            self.targets.holding = holding
        else:
            self.targets.holding = frozenset()
            self._worker.items.send_all()

    def _target(self, place: Place) -> Target:
        def refused(refusal: Refusal) -> None:
            served = self.targets.served
            if served is None or served.place.id == place.id:  # else it is told by the other writer
                self._refused(refusal)

        rows = RowWriter(self._client, place.alias, refused=refused, troubled=self._troubled)
        return Target(place, rows, MetadataWriter(self._client, place.alias, self._worker.config))

    async def _read_items(self, partition: int, offset: int) -> None:
        await self._worker.consumer.begin(TP(self._worker.settings.topic(ITEMS), partition), offset)

    # -- what does not go well ----------------------------------------------------------------------

    def problems(self) -> Iterator[str]:
        """What is not as it should be, a sentence each."""
        return (reason.text for reason in self.reasons())

    def _troubles(self) -> Iterator[str]:
        served = self.targets.served
        rows = None if served is None else served.rows.stats.trouble
        metadata = None if served is None else served.metadata.trouble
        for trouble in dict.fromkeys((self.trouble, rows, self.users.stats.trouble, metadata)):
            if trouble is not None:
                yield trouble

    def reasons(self) -> Iterator[Reason]:
        """What that makes of the mode."""
        yield from map(reason_of, self._foreign)
        for problem in self._troubles():
            yield Reason("catching_up", "", problem)

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
        writers: list[RowWriter | UserWriter] = [self.users, *(target.rows for target in self.targets)]
        await asyncio.gather(*(writer.close(WRITE_SECONDS) for writer in writers))
        await self.metadata.stop()
        await self._client.close()

    def stats(self) -> Iterator[tuple[str, list[WriterStats], Statistics]]:
        """Writers by name: how each of them does now, and what they counted together."""
        yield "rows", [target.rows.stats for target in self.targets], self.targets.counts()
        users = self.users.stats
        yield "users", [users], users.counts


async def _close(target: Target) -> None:
    await target.rows.close(0.0)


class WriterMetrics(Collector):
    """How the writers do, for Prometheus."""

    def __init__(self, publishing: ElasticPublishing) -> None:
        self._publishing = publishing

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
        for name, writers, counted in self._publishing.stats():
            waiting.add_metric([name], sum(writer.documents for writer in writers))
            requests.add_metric([name], sum(writer.requests for writer in writers))
            latency.add_metric([name], counted.latency)
            for outcome in _COUNTED:
                counts.add_metric([name, outcome], getattr(counted, outcome))
        yield from (waiting, requests, latency, counts)
