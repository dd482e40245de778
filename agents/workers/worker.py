"""The worker: a Faust app with a user agent and an item agent, their state, their metrics, and one way to end.

Faust and Kafka's group protocol spread the partitions of `interactions` and `edits` over the workers of a
group. Partitions are opened beside the event loop and read once their state is there.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

import faust
import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from faust.types import TP
from prometheus_client import CollectorRegistry
from yarl import URL

from agents.kafka.client import client_options
from agents.kafka.control import is_send_again
from agents.kafka.topics import ITEMS, check_topics
from agents.kafka.transport import BatchApp, BatchConsumer, Fetched, Host, NoTables, hook_problems
from agents.log import get_logger
from agents.settings import Settings
from agents.state.directory import lock
from agents.state.errors import StateError
from agents.warm_up import warm_up
from agents.workers.condition import WorkerCondition
from agents.workers.ending import Ending
from agents.workers.item_agent import ItemAgent, Request
from agents.workers.metrics import Metrics
from agents.workers.monitor import Monitor
from agents.workers.patch_sinks import FileSink, NoSink, Sink, TopicSink
from agents.workers.pulse import Pulse
from agents.workers.user_agent import TICK_SECONDS, UserAgent
from cco.config import Config

if TYPE_CHECKING:
    from agents.workers.elastic_publishing import ElasticPublishing

TOPICS = {"both": ("interactions", "edits"), "users": ("interactions",), "items": ("edits",)}
ROLE_OF_METADATA = ("both", "items")  # workers that also read the topic of items, if there is an Elasticsearch
CLOSE_SECONDS = 6.0  # for snapshots and acknowledgements when the worker is asked to stop
TASKS_SECONDS, LET_GO_SECONDS = 0.6, 1.5  # for what runs in the background, and for what is left after snapshots
STOP_SECONDS, LEAVE_SECONDS = 9.0, 2.0  # at most until the process ends: in all, and after the state is safe
OPEN_AGAIN_SECONDS = 1.0
TURN_SECONDS = 0.0005  # of a thread while kernels are loaded: who speaks with Kafka waits for one at each answer
MOST_BUFFERED = 4  # fetches that wait for an agent
REQUEST_SECONDS = 60.0  # a broker may be away for so long
MOST_MESSAGE_BYTES = 4 << 20


class WorkerError(Exception):
    """The worker cannot start: a readable line for each reason."""


class Worker:
    """One worker of a group. `app` is what Faust runs; everything else begins and ends with it."""

    def __init__(self, config: Config, settings: Settings) -> None:
        self.config, self.settings = config, settings
        self.metrics = Metrics(CollectorRegistry())
        self.app = make_app(settings, self)
        self.failure: BaseException | None = None
        self.ready = False
        self.pulse = Pulse()
        self._saving = False  # a stop has begun, and states are not there yet
        self._assigned: set[TP] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._compute = ThreadPoolExecutor(1, "compute")
        self._rows = ThreadPoolExecutor(settings.threads, "rows") if settings.threads > 1 else None

    # -- life ---------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Connect and listen. Before anything else is computed, kernels are loaded, or compiled."""
        self.spawn(self._warm_up())
        options = client_options(self.settings)
        self.producer = AIOKafkaProducer(
            **options, enable_idempotence=True, acks="all", compression_type="zstd", max_batch_size=1 << 20,
            max_request_size=MOST_MESSAGE_BYTES, request_timeout_ms=int(1000 * REQUEST_SECONDS),
        )  # fmt: skip
        await self.producer.start()
        self._control = AIOKafkaConsumer(**options, group_id=None, enable_auto_commit=False)
        await self._control.start()
        self.elastic = self._make_elastic()
        self.sink = self._make_sink()
        self.users = UserAgent(
            self.config, self.settings, self.metrics, self.producer, self._compute, self.fail, self._bounds,
        )  # fmt: skip
        self.items = ItemAgent(
            self.config, self.settings, self.metrics, self.producer, self._compute,
            self._rows.map if self._rows else map, self.sink, self._read_edits, self.fail,
        )  # fmt: skip
        self.condition = WorkerCondition(self)
        self.metrics.before_scrape(self.condition.refresh_metrics)
        self.monitor = Monitor(self.metrics, self.condition, self.settings.monitor_host, self.settings.monitor_port)
        await self.monitor.start()
        get_logger().info("worker", name=self.settings.name, group=self.settings.group, monitor=self.monitor.url)
        listening = self.pulse.listen_forever(self._control, self._read)
        for endless in (self._tick_forever(), self._control_forever(), self.items.publish_forever(), listening):
            self.spawn(endless)
        if self.elastic is not None:
            from agents.health.reports import Reporter  # of an extra that others can do without

            self.spawn(self.elastic.watch_forever())
            self.spawn(Reporter(self).report_forever())
            self.spawn(self.users.publish_forever(self.elastic.put_users))
        self.ready = True

    async def _warm_up(self) -> None:
        usual = sys.getswitchinterval()
        sys.setswitchinterval(TURN_SECONDS)
        await asyncio.get_running_loop().run_in_executor(self._compute, warm_up)
        sys.setswitchinterval(usual)
        gc.freeze()  # what is loaded by now stays
        gc.enable()
        self.pulse.warm()

    def _make_elastic(self) -> ElasticPublishing | None:
        if not self.settings.elasticsearch_url_list:
            return None
        from agents.workers.elastic_publishing import ElasticPublishing  # of an extra that others can do without

        return ElasticPublishing(self)

    def _make_sink(self) -> Sink:
        if self.elastic is not None:
            return self.elastic.sink
        if self.settings.patches == "topic":
            return TopicSink(self.config, self.producer, self.settings.topic("patches"))
        path = self.settings.patches_file
        return NoSink() if path is None else FileSink(self.config, path)

    async def stop(self) -> None:
        """Commit what is acknowledged and let go of everything; the process then ends within STOP_SECONDS."""
        ending = Ending()
        ending.exit_within(STOP_SECONDS, self._status, "a worker that had not begun")
        if not self.ready:
            return
        self.ready, self._saving = False, True
        await ending.cancel(self._tasks, TASKS_SECONDS)
        closing = [ending.wait("the last snapshots", CLOSE_SECONDS + 0.5, self._save())]
        if self.elastic is not None:
            closing.append(ending.wait("Elasticsearch", CLOSE_SECONDS, self.elastic.close()))
        await asyncio.gather(*closing)
        await asyncio.gather(
            ending.wait("the producer", LET_GO_SECONDS, self.producer.stop()),
            ending.wait("the consumer of control", LET_GO_SECONDS, self._control.stop()),
            ending.wait("the sink of patches", LET_GO_SECONDS, self.sink.close()),
            ending.wait("the monitor", LET_GO_SECONDS, self.monitor.stop()),
        )
        self._compute.shutdown(wait=False, cancel_futures=True)
        # Faust's own end waits for the group protocol, for a minute if a rebalance is going on: not we for it
        ending.exit_within(LEAVE_SECONDS, self._status, "Faust, which leaves the group")

    def _status(self) -> int:
        return 0 if self.failure is None and not self._saving else 1

    async def _save(self) -> None:
        """Give up the sources. States that stay at an earlier commit lose nothing, but are no good end."""
        unsaved = await self.users.close_all(CLOSE_SECONDS)
        if unsaved:
            get_logger().error("the worker ends, and these states are not saved", partitions=unsaved)
            self.failure = self.failure or StateError("not all states are saved")
        self._saving = False

    def spawn(self, work: Coroutine[Any, Any, object]) -> None:
        """Run in the background; a failure ends the worker."""

        async def watched() -> None:
            try:
                await work
            except asyncio.CancelledError:
                raise
            except Exception as error:
                self.fail(error)

        task = asyncio.create_task(watched(), name=getattr(work, "__qualname__", ""))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def fail(self, error: BaseException) -> None:
        """End the worker: positions stay where they are durable, and the next life goes on from there."""
        if self.failure is None:
            self.failure = error
            get_logger().error("the worker stops", reason=str(error) or repr(error), exc_info=error)
            self._ending = asyncio.ensure_future(self.app.crash(error))

    # -- partitions ---------------------------------------------------------------------------------

    @property
    def assignment(self) -> set[TP]:
        """The partitions that are ours."""
        return self._assigned

    def position(self, tp: TP) -> int | None:
        """Where to read a partition, as `Positions` has it."""
        if tp.topic == self.users.topic:
            return self.users.position(tp.partition)
        if self.elastic is not None and tp.topic == self.elastic.metadata.topic:
            return self.elastic.metadata.position(tp.partition)
        return self.items.position(tp.partition)

    def assigned(self, tps: set[TP]) -> None:
        """What is ours now: the rest is given up, what is new is opened beside the event loop."""
        self.metrics.rebalances.inc()
        lost, new = self._assigned - tps, tps - self._assigned
        self._assigned = tps
        get_logger().info("assigned", partitions=sorted(f"{tp.topic}-{tp.partition}" for tp in tps))
        for tp in lost:
            if tp.topic == self.users.topic:
                self.spawn(self.users.close(tp.partition))
            elif self.elastic is not None and tp.topic == self.elastic.metadata.topic:
                self.elastic.metadata.close(tp.partition)
            else:
                self.items.close(tp.partition)
        for tp in sorted(new):
            self.spawn(self._open(tp))

    async def _open(self, tp: TP) -> None:
        if tp.topic == self.items.topic:
            await self.items.claim(tp.partition)
            if tp not in self._assigned:
                self.items.close(tp.partition)
            return
        if self.elastic is not None and tp.topic == self.elastic.metadata.topic:
            await self.elastic.open(tp)
            return
        while tp in self._assigned and tp.partition not in self.users.owned():
            position = await self.users.open(tp.partition)
            if tp not in self._assigned:
                await self.users.close(tp.partition)
            elif position is not None:
                await self.consumer.begin(tp, position)
            else:  # somebody may mend what is wrong, or its last owner may let go of it
                await asyncio.sleep(OPEN_AGAIN_SECONDS)

    async def _bounds(self, source: int) -> tuple[int, int]:
        key = TopicPartition(self.users.topic, source)
        begins, ends = await asyncio.gather(self._control.beginning_offsets([key]), self._control.end_offsets([key]))
        return begins[key], ends[key]

    def _read(self) -> set[TopicPartition]:
        return {TopicPartition(self.settings.topic("control"), 0), *(TopicPartition(*tp) for tp in self._assigned)}

    @property
    def consumer(self) -> BatchConsumer:
        """Faust's, which is ours."""
        return cast(BatchConsumer, self.app.consumer)

    async def _read_edits(self, partition: int, offset: int) -> None:
        await self.consumer.begin(TP(self.items.topic, partition), offset)

    # -- what comes in ------------------------------------------------------------------------------

    async def take(self, fetched: Fetched) -> None:
        """A fetch, from one of Faust's agents."""
        if not self.ready or self.failure is not None or fetched.seek != self.consumer.seeks.get(fetched.tp):
            return
        try:
            if fetched.tp.topic == self.users.topic:
                await self.users.process(fetched)
            elif self.elastic is not None and fetched.tp.topic == self.elastic.metadata.topic:
                await self.elastic.metadata.process(fetched)
            else:
                await self.items.process(fetched)
        except Exception as error:  # Faust would count the message as done and go on
            self.fail(error)

    async def _control_forever(self) -> None:
        key = TopicPartition(self.settings.topic("control"), 0)
        self._control.assign([key])
        await self._control.seek_to_end(key)
        async for record in self._control:
            if is_send_again(record.value or b"", self.config.epoch):
                get_logger().info("asked to publish everything once more")
                self.items.send_all()
                self.users.tell_all_users()
                continue
            try:
                request = msgspec.json.decode(record.value or b"", type=Request)
            except msgspec.MsgspecError as error:
                get_logger(topic=key.topic, offset=record.offset).warning("no request", reason=str(error))
                continue
            if request.epoch == self.config.epoch:
                self.users.asked(request.partition, request.claim, request.sources)

    async def _tick_forever(self) -> None:
        while True:
            began = time.monotonic()
            await self.users.tick()
            await self.items.tick()
            self.condition.note()
            self.pulse.tick()
            await asyncio.sleep(max(0.01, TICK_SECONDS - (time.monotonic() - began)))


def make_app(settings: Settings, worker: Worker) -> BatchApp:
    """The Faust app: two agents over two topics, positions of our own."""

    class App(BatchApp):
        """Begins and ends the worker with itself."""

        async def on_start(self) -> None:
            await super().on_start()
            try:
                await worker.start()
            except Exception as error:  # for Faust, a worker that could not start has done its work
                worker.failure = error
                get_logger().error("the worker cannot start", reason=str(error) or repr(error))
                raise

        async def on_stop(self) -> None:
            await worker.stop()
            await super().on_stop()

    app = App(
        settings.group,
        broker=[URL(f"kafka://{broker}") for broker in settings.broker_list],
        broker_credentials=_credentials(settings),
        store="memory://",
        TableManager=NoTables,
        datadir=settings.state / "faust",
        autodiscover=False,
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=settings.name,
        consumer_max_fetch_size=8 << 20,
        broker_max_poll_records=settings.fetch_records,
        broker_session_timeout=settings.session_timeout,
        broker_request_timeout=max(90.0, settings.session_timeout),  # less, and Faust refuses to start
        broker_heartbeat_interval=settings.session_timeout / 4,
        broker_rebalance_timeout=max(60.0, settings.session_timeout),
        stream_buffer_maxsize=MOST_BUFFERED,
        stream_wait_empty=False,
        worker_redirect_stdouts=False,
    )
    app.positions = worker
    names = TOPICS[settings.agents]
    if settings.elasticsearch_url_list and settings.agents in ROLE_OF_METADATA:
        names += (ITEMS,)
    for name in names:
        topic = app.topic(settings.topic(name), key_type=bytes, value_type=bytes, key_serializer="raw",
                          value_serializer="raw", acks=False)  # fmt: skip

        async def take(stream: faust.StreamT[Any]) -> None:
            async for event in stream.events():
                await worker.take(cast(Fetched, event.value))

        app.agent(topic, name=f"{name}-agent")(take)
    return app


def _credentials(settings: Settings) -> faust.auth.Credentials | None:
    options = client_options(settings)
    if settings.sasl_mechanism is not None:
        return faust.SASLCredentials(
            username=options["sasl_plain_username"], password=options["sasl_plain_password"],
            mechanism=settings.sasl_mechanism, ssl_context=options.get("ssl_context"),
        )  # fmt: skip
    if "ssl_context" in options:
        return faust.SSLCredentials(options["ssl_context"])
    return None


def run(config: Config, settings: Settings) -> int:
    """Run a worker until it is asked to stop (SIGTERM, SIGINT) or fails; answers the exit status.

    Raises WorkerError if the topics or the installed Faust do not fit, KafkaProblem if Kafka cannot be reached.
    """
    problems = hook_problems() + asyncio.run(check_topics(config, settings))
    if problems:
        raise WorkerError("\n".join(problems))
    mine = "is in use by another worker: give this one a --name and a --state of its own"
    try:  # for as long as the process lives; when partitions are locked, they may be thrown out by name already
        lock(settings.state, read_only=False, in_use=mine)
    except StateError as error:
        raise WorkerError(str(error)) from None
    (settings.state / "faust").mkdir(parents=True, exist_ok=True)
    worker = Worker(config, settings)
    host = Host(worker.app, loglevel="WARNING", override_logging=False, redirect_stdouts=False, quiet=True)
    host.spinner = None  # its escape codes would be in the middle of the log
    with suppress(SystemExit):
        host.execute_from_commandline()
    return 0 if worker.failure is None and host.crash_reason is None else 1
