"""Between Kafka and the agents: what of Faust we lean on, TLS and SASL, rebalances in mid-stream."""

from __future__ import annotations

import asyncio
import signal
import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import faust
import pytest
from aiokafka import AIOKafkaConsumer
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery
from faust.transport.consumer import Consumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.utils.queues import FlowControlEvent, FlowControlQueue

from agents.kafka import transport
from agents.kafka.client import client_options
from agents.kafka.transport import BatchApp, BatchConsumer, BatchTransport, LightRecords, NoTables, hook_problems
from agents.settings import Settings
from agents.workers.worker import MOST_BUFFERED, Worker
from cco.config import Config
from cco.delivery import claim_message
from tests.kafka.events import CONFIG, generated
from tests.kafka.flow import Flow
from tests.kafka.world import MakeWorld, WorkerProcess, World, wait_for
from tests.servers.kafka import KafkaServer, fetch_kafka

# -- what of Faust we lean on ---------------------------------------------------------------------------


def test_the_hooks_fit_the_installed_faust() -> None:
    assert hook_problems() == []


HOOKS: list[tuple[Any, str, str]] = [
    (Consumer, "getmany", "Consumer.getmany"),
    (Consumer, "perform_seek", "Consumer.perform_seek"),
    (Consumer, "on_partitions_assigned", "Consumer.on_partitions_assigned"),
    (Consumer, "_wait_next_records", "Consumer._wait_next_records"),
    (Consumer, "_get_active_partitions", "Consumer._get_active_partitions"),
    (Consumer, "pause_partitions", "Consumer.pause_partitions"),
    (Consumer, "resume_partitions", "Consumer.resume_partitions"),
    (Consumer, "_drain_messages", "Consumer._drain_messages"),
    (driver.Consumer, "_seek", "Consumer._seek"),
    (driver.AIOKafkaConsumerThread, "seek", "AIOKafkaConsumerThread.seek"),
    (driver.AIOKafkaConsumerThread, "call_thread", "AIOKafkaConsumerThread.call_thread"),
    (driver.Consumer, "_to_message", "Consumer._to_message"),
    (driver.Consumer, "assignment", "Consumer.assignment"),
    (driver.Consumer, "highwater", "Consumer.highwater"),
    (driver.Transport, "create_consumer", "Transport.create_consumer"),
    (Consumer, "on_buffer_full", "Consumer.on_buffer_full"),
    (Consumer, "on_buffer_drop", "Consumer.on_buffer_drop"),
    (FlowControlQueue, "put_nowait_enhanced", "FlowControlQueue.put_nowait_enhanced"),
    (Recovery, "_resume_streams", "Recovery._resume_streams"),
    (Recovery, "on_recovery_completed", "Recovery.on_recovery_completed"),
    (faust.App, "_new_transport", "App._new_transport"),
    (TableManager, "on_start", "TableManager.on_start"),
    (TableManager, "_update_channels", "TableManager._update_channels"),
    (faust.Worker, "_sentinel_task", "Worker._sentinel_task"),
    (LightRecords.__mro__[1], "_consumer_record", "PartitionRecords._consumer_record"),
]


@pytest.mark.parametrize("owner, attribute, name", HOOKS, ids=[hook[2] for hook in HOOKS])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_changed_hook_is_told_by_name(
    owner: type, attribute: str, name: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(self: object, other: int) -> None:
        """As a new version of Faust might have it."""

    if how == "changed":
        monkeypatch.setattr(owner, attribute, another)
    else:
        for base in owner.__mro__:  # it may be inherited
            if attribute in vars(base):
                monkeypatch.delattr(base, attribute)
    problems = hook_problems()
    assert [problem for problem in problems if f"Faust's {name} " in problem] == problems != []


def test_another_version_of_faust_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faust, "__version__", "0.16.0")
    assert hook_problems() == [f"faust-streaming is 0.16.0; the worker is made for {transport.FAUST} exactly"]


def test_our_consumer_is_the_one_that_faust_makes() -> None:
    app = Worker(Config(), Settings()).app
    assert isinstance(app, BatchApp) and isinstance(app.transport, BatchTransport)
    assert isinstance(app.consumer, BatchConsumer)
    assert isinstance(app.tables, NoTables)  # with Faust's own a worker begins a second later


def test_partitions_that_are_behind_have_their_turns_beside_one_that_is_not() -> None:
    """Faust's own queue and its callbacks, as its conductor joins them. With Faust's own answers they had none."""
    consumer = Worker(Config(), Settings()).app.consumer
    tps = [TP("interactions", partition) for partition in range(4)]
    full, drop = ({tp: partial(call, tp) for tp in tps} for call in (consumer.on_buffer_full, consumer.on_buffer_drop))
    consumer._active_partitions = set(tps)
    queue = FlowControlQueue[TP](MOST_BUFFERED, flow_control=FlowControlEvent())

    def put(tp: TP, fetches: int) -> None:
        for _ in range(fetches):
            queue.put_nowait_enhanced(tp, on_pressure_high=full[tp], on_pressure_drop=drop[tp])

    live, *behind = tps
    for tp in behind * 2:
        put(tp, 1)
    while queue.qsize() > 2:
        queue.get_nowait()
    taken = Counter[TP]()
    for _ in range(1_000):
        for tp in sorted(consumer._get_active_partitions()):  # what is fetched while the agent takes one
            put(tp, 1 if tp == live else 3)
        assert queue.qsize() <= 4 * MOST_BUFFERED
        taken[queue.get_nowait()] += 1
    assert min(taken[tp] for tp in behind) > 200, taken


def test_a_partition_that_waits_for_its_state_stays_paused_when_the_queue_has_room() -> None:
    consumer = Worker(Config(), Settings()).app.consumer
    one, other, elsewhere = TP("interactions", 0), TP("interactions", 1), TP("edits", 0)
    consumer._active_partitions = {one, other, elsewhere}
    consumer.on_buffer_full(one)
    assert consumer._get_active_partitions() == {elsewhere}
    consumer._paused_partitions = {other}
    consumer.on_buffer_drop(one)
    assert consumer._get_active_partitions() == {one, elsewhere}


# -- TLS and SASL ---------------------------------------------------------------------------------------


def refused(world: World, name: str, **environment: str) -> str:
    """What a worker that cannot start says, in one line; what the client logs comes before."""
    worker = world.worker(name, **environment)
    assert worker.wait() == 2
    lines = worker.log.read_text().splitlines()
    assert all(line.startswith("{") for line in lines[:-1]), lines
    return lines[-1]


def check_worker(world: World) -> None:
    """One that works."""
    world.worker("alone")
    world.produce(generated(world, 500, seed=41))
    world.settle()
    world.check()


def test_tls_and_sasl(make_world: MakeWorld, tmp_path: Path) -> None:
    store, certificate = tmp_path / "broker.p12", tmp_path / "broker.pem"
    of_store = ["-alias", "broker", "-keystore", str(store), "-storetype", "PKCS12", "-storepass", "secret"]
    names = ["-dname", "CN=broker", "-ext", "SAN=ip:127.0.0.1", "-keyalg", "EC"]
    subprocess.run(["keytool", "-genkeypair", *of_store, *names], check=True, capture_output=True)
    export = subprocess.run(["keytool", "-exportcert", "-rfc", *of_store], check=True, capture_output=True)
    certificate.write_bytes(export.stdout)
    users = 'username="broker" password="of the broker" user_broker="of the broker" user_learner="of the learner"'
    settings = {
        "listener.security.protocol.map": "CLIENTS:SASL_SSL,CONTROLLER:PLAINTEXT",
        "ssl.keystore.location": str(store), "ssl.keystore.type": "PKCS12", "ssl.keystore.password": "secret",
        "ssl.truststore.location": str(certificate), "ssl.truststore.type": "PEM",
        "sasl.enabled.mechanisms": "PLAIN",
        "sasl.mechanism.inter.broker.protocol": "PLAIN",
        "listener.name.clients.plain.sasl.jaas.config":
            f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};",
    }  # fmt: skip
    security = {
        "security_protocol": "SASL_SSL", "ssl_cafile": str(certificate), "sasl_mechanism": "PLAIN",
        "sasl_username": "learner", "sasl_password": "of the learner",
    }  # fmt: skip
    with KafkaServer(tmp_path / "kafka", fetch_kafka(), settings=settings) as server:
        world = make_world(broker=server.bootstrap, security=security)
        said = refused(world, "tls-refused", CCO_SSL_CAFILE=ssl.get_default_verify_paths().cafile or str(tmp_path))
        assert said.startswith(f"cco: error: Kafka at {server.bootstrap}: TLS failed while checking topics"), said
        said = refused(world, "sasl-refused", CCO_SASL_PASSWORD="a wrong one")
        assert said.startswith(f"cco: error: Kafka at {server.bootstrap} refused the login of learner"), said
        assert "a wrong one" not in said
        check_worker(world)
        assert "of the learner" not in world.workers["alone"].log.read_text()
        world.close()
        server.kill()


@pytest.mark.parametrize("protocol", ["SSL", "SASL_PLAINTEXT", "SASL_SSL"])
def test_faust_is_told_of_tls_and_sasl(protocol: str) -> None:
    values: dict[str, Any] = {"security_protocol": protocol}
    if protocol != "SSL":
        values |= {"sasl_mechanism": "SCRAM-SHA-512", "sasl_username": "u", "sasl_password": "p"}
    app = Worker(Config(), Settings(**values)).app
    options = driver.credentials_to_aiokafka_auth(app.conf.broker_credentials, app.conf.ssl_context)
    assert options["security_protocol"] == protocol
    told = [options.get(f"sasl_{name}") for name in ("mechanism", "plain_username", "plain_password")]
    assert told == ([None] * 3 if protocol == "SSL" else ["SCRAM-SHA-512", "u", "p"])
    assert isinstance(options.get("ssl_context"), ssl.SSLContext) == protocol.endswith("SSL")


# -- another member of the group ------------------------------------------------------------------------


class Member:
    """Another member of a world's group, which takes partitions and does nothing with them.

    It lives only while one of its methods runs: in between it is frozen, as a process that hangs.
    """

    def __init__(self, world: World) -> None:
        self._loop = asyncio.new_event_loop()
        self._world = world
        self._assignor = Worker(world.config, world.settings).app.assignor
        self._consumer: AIOKafkaConsumer | None = None
        self._joining: asyncio.Task[None] | None = None

    async def _start(self) -> None:
        settings = self._world.settings
        self._consumer = AIOKafkaConsumer(
            settings.topic("interactions"), settings.topic("edits"), **client_options(settings),
            group_id=settings.group, enable_auto_commit=False, session_timeout_ms=60_000,
            heartbeat_interval_ms=200, rebalance_timeout_ms=60_000, partition_assignment_strategy=[self._assignor],
        )  # fmt: skip
        await self._consumer.start()

    def join(self) -> int:
        """Join the group, and answer the number of partitions that it is given."""
        self._loop.run_until_complete(self._start())
        assert self._consumer is not None
        return len(self._consumer.assignment())

    def ask_to_join(self, heard: Callable[[], bool]) -> None:
        """Begin to join the group, until it is heard of: whoever is in it must do so again."""
        self._joining = self._loop.create_task(self._start())

        def is_heard() -> bool:
            self._loop.run_until_complete(asyncio.sleep(0.1))
            return heard()

        wait_for(is_heard, "the others to hear of it")

    def leave(self) -> None:
        """Leave the group, wherever it is in it."""
        if self._joining is not None:
            self._joining.cancel()
        if self._consumer is not None:
            self._loop.run_until_complete(asyncio.wait_for(self._consumer.stop(), 10))
        self._loop.close()


@contextmanager
def member(world: World) -> Iterator[Member]:
    found = Member(world)
    try:
        yield found
    finally:
        found.leave()


def lag(world: World, worker: WorkerProcess) -> int:
    """Records that a worker has not applied of what it has."""
    sources, ends = (worker.status() or {}).get("interactions", {}), world.log_ends()
    return sum(ends[int(number)] - int(source["position"]) for number, source in sources.items())


def rebalancing(worker: WorkerProcess) -> int:
    """How often the worker has heard that its group takes up another member."""
    return sum("because it is rebalancing" in str(message["message"]) for message in worker.messages())


def test_rebalances_in_mid_stream_lose_nothing_and_hold_up_no_stop(make_world: MakeWorld) -> None:
    world = make_world(session_timeout="3s")
    worker = world.worker("alone")
    wait_for(worker.is_ready, "the worker")
    before, joined = worker.metric("cco_rebalances_total"), list[int]()

    def enough_joined_and_left() -> bool:
        with member(world) as other:
            joined.append(other.join())
        assert joined[-1] > 0
        return len(joined) >= 3 and worker.metric("cco_rebalances_total") - before >= 6

    with Flow(world, seed=33, users=300, items=80, pace=1_000.0).flowing(1_200):
        wait_for(enough_joined_and_left, "six rebalances")
    world.settle()
    world.check()
    assert worker.metric("cco_events_applied_total") >= sum(world.log_ends())  # in one life
    check_fenced(world, worker)

    with member(world) as joining, member(world) as frozen:  # which leave in the other order
        frozen.join()
        heard = rebalancing(worker)
        joining.ask_to_join(lambda: rebalancing(worker) > heard and world.group_state() == "PreparingRebalance")

        def stands_still() -> bool:
            world.produce(generated(world, 50, seed=34))
            return lag(world, worker) > 150

        wait_for(stands_still, "the worker to stand still")
        assert world.group_state() == "PreparingRebalance"  # the frozen one would have to know
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 10
    waited_for = [message["waiting_for"] for message in worker.messages() if "waiting_for" in message]
    assert waited_for == ["Faust, which leaves the group"]


def check_fenced(world: World, worker: WorkerProcess) -> None:
    """Somebody who lost an item partition long ago claims it, and goes: the worker comes back."""
    late = claim_message(world.config.epoch, world.config.retention.source_partitions, 0, 1, session=1)
    world.produce_raw([(0, b"late", late)], "edits")
    claimed = "another worker has claimed the partition"
    wait_for(lambda: any(claimed in str(m["message"]) for m in worker.messages()), "the claim to be seen")
    world.produce(generated(world, 1_000, seed=36))
    world.settle()
    world.check()
    assert worker.is_ready()


def test_a_worker_that_lost_everything_knows_it(make_world: MakeWorld) -> None:
    """It was away for long, and there is nothing left for it: of that Faust tells its consumers nothing."""
    world = make_world(
        CONFIG.replace("source_partitions = 4", "source_partitions = 1"), share=True, session_timeout="2s"
    )
    first = world.worker("first")
    world.produce(generated(world, 1_000, seed=37))
    world.settle()
    first.signal(signal.SIGSTOP)
    second = world.worker("second")
    wait_for(lambda: second.status() and second.is_ready(), "the second to take over")
    first.signal(signal.SIGCONT)
    idle = "no partition is assigned"
    wait_for(lambda: [idle in w.get("/readyz")[1] for w in (first, second)].count(True) == 1, "one to have nothing")
    world.produce(generated(world, 1_000, seed=38))
    world.settle()
    world.check()

    def partitions() -> list[int]:
        told = [worker.status() or {} for worker in (first, second)]
        return sorted(len(of.get("interactions", ())) + len(of.get("edits", ())) for of in told)

    wait_for(lambda: partitions() == [0, 2], "one to have all of it")
