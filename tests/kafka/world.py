"""Workers as real processes on a real broker, and the comparison that every test of them ends with.

A world has its own topics, group and folders. `model()` is what the patches made of the index, `batch()` the
batch rebuild of the log; both as the bytes of a model file.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from prometheus_client.parser import text_string_to_metric_families

from agents.cli.main import main
from agents.kafka.client import client_options
from agents.kafka.producing import produce
from agents.kafka.reading import rebuild_from_log
from agents.kafka.topics import create_topics, describe_topics
from agents.settings import Settings
from agents.state.shared_copy import SharedCopy
from agents.workers.patches_file import read_patches_topic
from cco.config import Config, parse_config
from cco.event_data import EventBatch
from cco.model_file import decode, difference, encode
from cco.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds
TICK = 0.05


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The first true answer of `condition`; an AssertionError that says what was waited for."""
    until = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        found = condition()
        if found:
            return found
        now = time.monotonic()
        assert now < until, f"waited {seconds:.0f} s for {what}"
        time.sleep(min(max(TICK, now - began), 1.0))  # a look that takes long also takes from whom it waits for


def administer(settings: Settings, what: Callable[[AIOKafkaAdminClient], Awaitable[Any]]) -> Any:
    """Have `what` done by a client for administrators, and answer what came of it."""

    async def run() -> Any:
        admin = AIOKafkaAdminClient(**client_options(settings))
        await admin.start()
        try:
            return await what(admin)
        finally:
            await admin.close()

    return asyncio.run(run())


def make_topics_anew(config: Config, settings: Settings, *names: str) -> None:
    """Other topics under the same names, all of them if none is named: their offsets begin at 0 again."""

    def there() -> list[str]:
        found = [topic.name for topic in asyncio.run(describe_topics(config, settings))]
        return [name for name in found if not names or name.removeprefix(settings.topic_prefix) in names]

    old = there()
    administer(settings, lambda admin: admin.delete_topics(old))
    wait_for(lambda: not there(), "the topics to go")
    asyncio.run(create_topics(config, settings))


class WorkerProcess:
    """A `cco worker` in a process of its own."""

    def __init__(self, world: World, name: str, extra: Sequence[str] = ()) -> None:
        self.world, self.name = world, name
        self.environment: dict[str, str] = {}  # on top of ours, from the next start on
        self.log = world.folder / f"{name}.log"
        self._extra = list(extra)
        self._process: subprocess.Popen[bytes] | None = None
        self._url: str | None = None
        self._seen = 0

    def start(self) -> Self:
        """Start it, and return at once."""
        self._url = None
        self._seen = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "agents", "worker", "--config", str(self.world.config_file), "--name", self.name,
                 "--state", str(self.world.folder / "state" / self.name), "--log-format", "json", *self._extra],
                stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **self.environment},
            )  # fmt: skip
        return self

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, and wait."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, seconds: float = 15.0) -> int:
        """SIGTERM, and wait; answers the exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def wait(self, seconds: float = 60.0) -> int:
        """Its exit status."""
        assert self._process is not None
        return self._process.wait(seconds)

    def messages(self) -> list[dict[str, Any]]:
        """What it has logged in this life."""
        found = []
        with self.log.open("rb") as log:
            log.seek(self._seen)
            for line in log:
                if line.startswith(b"{") and line.endswith(b"}\n"):
                    found.append(json.loads(line))
        return found

    def url(self) -> str | None:
        """Where its monitor answers; None before it does."""
        if self._url is None and self.log.exists():
            self._url = next((str(m["monitor"]) for m in self.messages() if "monitor" in m), None)
        return self._url

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a page of its monitor; (0, "") while nobody answers."""
        url = self.url()
        if url is None:
            return 0, ""
        try:
            with urllib.request.urlopen(url + path, timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels; 0 while nobody answers."""
        samples = [s for f in text_string_to_metric_families(self.get("/metrics")[1]) for s in f.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def is_ready(self) -> bool:
        """Whether /readyz says so."""
        return self.get("/readyz")[0] == 200

    def status(self) -> dict[str, Any] | None:
        """Its /status; None while nobody answers, or if it has ended."""
        assert self.running, f"{self.name} has ended: {self.log.read_text()[-3000:]}"
        code, text = self.get("/status")
        return json.loads(text) if code == 200 else None


@dataclass
class World:
    """Topics, a group, a configuration and workers."""

    broker: str
    folder: Path
    prefix: str
    toml: str
    item_partitions: int = 1
    share: bool = False
    session_timeout: str = "6s"
    security: dict[str, str] = field(default_factory=dict)  # in the table [kafka]
    elasticsearch: str = ""  # URL of a node: patches go there, under the world's prefix, and not to their topic
    workers: dict[str, WorkerProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config: Config = parse_config(self.toml, "cco.toml")
        self.patches = self.folder / "patches.jsonl"
        values: dict[str, Any] = {"item_partitions": self.item_partitions, **self.security}
        patches = "none" if self.elasticsearch else "topic"
        if self.elasticsearch:
            values |= {"elasticsearch_urls": self.elasticsearch, "elasticsearch_index_prefix": self.prefix}
        self.settings = Settings(
            brokers=self.broker, topic_prefix=self.prefix, group=f"{self.prefix}group", patches=patches, **values
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_file = self.folder / "cco.toml"
        security = "".join(f"{key} = {json.dumps(value)}\n" for key, value in self.security.items())
        share = f'share = "{self.folder / "share"}"\nshare_every = "2s"\n' if self.share else ""
        elastic = (
            f'[elasticsearch]\nurls = "{self.elasticsearch}"\nindex_prefix = "{self.prefix}"\n'
            if self.elasticsearch
            else ""
        )
        self.config_file.write_text(
            f'{self.toml}\n[kafka]\nbrokers = "{self.broker}"\ntopic_prefix = "{self.prefix}"\n{security}'
            f'[worker]\ngroup = "{self.prefix}group"\npatches = "{patches}"\nitem_partitions = {self.item_partitions}\n'
            f'session_timeout = "{self.session_timeout}"\ncheckpoint_every = "200ms"\n{share}{elastic}'
        )
        asyncio.run(create_topics(self.config, self.settings))
        self.users, self.items = Vocabulary(), Vocabulary()

    def close(self) -> None:
        """Kill what still runs."""
        for worker in self.workers.values():
            if worker.running:
                worker.kill()

    def worker(self, name: str, *extra: str, **environment: str) -> WorkerProcess:
        """A worker, started. Its state is the one that it left under this name."""
        worker = self.workers[name] = WorkerProcess(self, name, extra)
        worker.environment = environment
        return worker.start()

    def command(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """A command's exit code, and what it says with --json, or its error. In this process, which has the kernels."""
        with redirect_stdout(io.StringIO()) as said, redirect_stderr(io.StringIO()) as error:
            code = main([*arguments, "--config", str(self.config_file), "--json"])
        return code, json.loads(said.getvalue()) if said.getvalue() else {"error": error.getvalue()}

    def cco(self, *arguments: str, fails: bool = False) -> dict[str, Any]:
        """What a command says that succeeds, or `fails`."""
        code, told = self.command(*arguments)
        assert (code != 0) == fails == ("error" in told), told
        return told

    # -- events -------------------------------------------------------------------------------------

    def batch_of(self, events: Iterable[tuple[str, str, str, int]]) -> EventBatch:
        """(user, item, event type, time) as a batch over this world's vocabularies."""
        rows = list(events)
        types = {name: k for k, name in enumerate(self.config.event_types)}
        return EventBatch(
            self.users.intern([row[0] for row in rows]),
            self.items.intern([row[1] for row in rows]),
            np.array([types[row[2]] for row in rows], np.int16),
            np.array([row[3] for row in rows], np.uint32),
        )

    @contextmanager
    def producing(self, batch: EventBatch, rate: float) -> Iterator[threading.Thread]:
        """Events flow at `rate` a second meanwhile; at the end all of them are in Kafka."""
        failures: list[BaseException] = []

        def run() -> None:
            try:
                self.produce(batch, rate)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        yield thread
        thread.join(PATIENCE)
        assert not failures, failures
        assert not thread.is_alive()

    def produce(self, batch: EventBatch, rate: float | None = None) -> None:
        """Send events and wait until Kafka has them."""
        asyncio.run(produce(self.settings, self.config, self.users, self.items, [batch], rate=rate))

    def produce_raw(
        self,
        messages: Iterable[tuple[int, bytes | None, bytes | None, *tuple[tuple[str, bytes], ...]]],
        topic: str = "interactions",
    ) -> list[int]:
        """(partition, key, value, headers one by one) to a topic, as they are; answers their offsets."""

        async def send() -> list[int]:
            producer = AIOKafkaProducer(
                **client_options(self.settings), max_request_size=1 << 24, compression_type="gzip"
            )
            await producer.start()
            try:
                name = self.settings.topic(topic)
                sent = [
                    await producer.send(name, value, key, partition, headers=headers)
                    for partition, key, value, *headers in messages
                ]
                return [int(done.offset) for done in await asyncio.gather(*sent)]
            finally:
                await producer.stop()

        return asyncio.run(send())

    # -- the end ------------------------------------------------------------------------------------

    def settled(self) -> bool:
        """Whether all partitions are served by the workers that run, and every row is exact at the end of the log."""
        assert any(worker.running for worker in self.workers.values()), self.told()
        sources: dict[str, dict[str, Any]] = {}
        edits: dict[str, dict[str, Any]] = {}
        for worker in self.workers.values():
            if worker.running:
                status = worker.status()
                if status is None:
                    return False
                sources |= status["interactions"]
                edits |= {p: e for p, e in status["edits"].items() if p not in edits or e["claim"] > edits[p]["claim"]}
        if len(edits) != self.item_partitions or not all(e["exact"] for e in edits.values()):
            return False
        ends = self.log_ends()  # of Kafka, which is a longer question than those to workers
        positions = [sources.get(str(s), {}).get("position") for s in range(len(ends))]
        return positions == ends and all(e["sources"] == ends for e in edits.values())

    def told(self) -> str:
        """The ends of the workers' logs."""
        return "\n".join(f"{worker.name}: {worker.log.read_text()[-3000:]}" for worker in self.workers.values())

    def log_ends(self) -> list[int]:
        """Offsets after the last record of each partition of interactions."""
        topic = self.settings.topic("interactions")
        partitions = [TopicPartition(topic, p) for p in range(self.config.retention.source_partitions)]

        async def ask() -> list[int]:
            async with AIOKafkaConsumer(**client_options(self.settings), retry_backoff_ms=10) as consumer:
                found = await consumer.end_offsets(partitions)
            return [int(found[partition]) for partition in partitions]

        return asyncio.run(ask())

    def group_state(self) -> str:
        """The broker's word for the state of our group."""
        (answer,) = administer(self.settings, lambda admin: admin.describe_consumer_groups([self.settings.group]))
        return str(answer.groups[0][2])

    def settle(self, seconds: float = PATIENCE) -> None:
        """Wait until the published model has caught up with the log."""
        wait_for(self.settled, "the published model to catch up with the log", seconds)

    def wait_until_shared(self) -> None:
        """Until there are shared copies of all states as of the end of the log."""
        copies = [SharedCopy(str(self.folder / "share"), f"interactions-{p}") for p in range(len(self.log_ends()))]

        def shared() -> bool:
            newest = [copy.newest() for copy in copies]
            return [copy and copy.offset for copy in newest] == self.log_ends()

        wait_for(shared, "shared copies of everything")

    def model(self) -> bytes:
        """What the patches made of the index, as a model file."""
        return b"".join(read_patches_topic(self.settings).lines())

    def batch(self) -> bytes:
        """The batch rebuild of the log, as a model file."""
        model = rebuild_from_log(self.settings, self.config)
        return b"".join(encode(model.rows(), model.items, self.config))

    def check(self, stream: bytes | None = None) -> None:
        """The index that the patches made (those of the topic) is, byte for byte, the batch rebuild of the log."""
        stream, batch = self.model() if stream is None else stream, self.batch()
        assert stream.count(b"\n") > 0
        if stream != batch:
            (self.folder / "stream.jsonl").write_bytes(stream)
            (self.folder / "batch.jsonl").write_bytes(batch)
            found = difference(decode(stream.splitlines()), decode(batch.splitlines()))
            raise AssertionError(f"{len(found)} differences: " + "; ".join(found[:5]))


MakeWorld = Callable[..., World]
