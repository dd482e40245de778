"""Workers on a real broker, both on this machine's cores: throughput, latency, restarts, scaling."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from agents.kafka.topics import create_topics
from agents.settings import Settings
from benchmarks import data
from benchmarks.measure import Bench, cpu_seconds, status_bytes
from benchmarks.runner import run_task
from benchmarks.scenario import Result, Task
from cco.config import Config
from cco.vocabulary import Vocabulary
from tests.servers.kafka import KafkaServer, fetch_kafka

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 300.0  # seconds
TICK = 0.02
LOOK = 0.1  # between two looks at workers whose cores are measured
HEAP = "1g"
SESSION, SLEEP = 6.0, 60.0  # seconds: of sessions, where workers are killed and where they are put to sleep


class Place:
    """A broker, topics for one configuration, and workers; `elasticsearch` is the URL of a node with its indices."""

    def __init__(
        self,
        config: Config,
        toml: str,
        folder: Path,
        broker: str,
        item_partitions: int = 1,
        agents: str = "both",
        session: float = SESSION,
        elasticsearch: str | None = None,
        prefix: str = "",
    ) -> None:
        self.config, self.folder = config, folder
        self._again = partial(
            Place, config, toml, broker=broker, item_partitions=item_partitions, agents=agents, session=session,
            elasticsearch=elasticsearch,
        )  # fmt: skip
        patches = "none" if elasticsearch else "topic"  # patches go where there is a node, or else to their topic
        self.settings = Settings(
            brokers=broker, topic_prefix=prefix, item_partitions=item_partitions, patches=patches,
            elasticsearch_urls=elasticsearch,
        )  # fmt: skip
        self.file = folder / "cco.toml"
        self.file.write_text(
            f'{toml}\n[kafka]\nbrokers = "{broker}"\ntopic_prefix = "{prefix}"\n'
            f'[worker]\ngroup = "{prefix}cco"\nitem_partitions = {item_partitions}\n'
            f'agents = "{agents}"\npatches = "{patches}"\nsession_timeout = "{session:.0f}s"\n'
            + (f'[elasticsearch]\nurls = "{elasticsearch}"\n' if elasticsearch else "")
        )
        asyncio.run(create_topics(config, self.settings, replicas=1))
        self.vocabularies = (Vocabulary(), Vocabulary())  # of whoever sends events
        self.broker = 0  # its process, where that is ours
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, int] = {}

    def worker(self, name: str, core: int | None = None) -> None:
        """Start a worker, on one core if that is named."""
        log = self.folder / f"{name}.log"
        self._logs[name] = log.stat().st_size if log.exists() else 0
        command = [sys.executable, "-m", "agents", "worker", "--config", str(self.file), "--name", name,
                   "--state", str(self.folder / name), "--log-format", "json"]  # fmt: skip
        if core is not None:
            command = ["taskset", "-c", str(core), *command]
        with log.open("ab") as out:
            self.workers[name] = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)

    def status(self, name: str) -> dict[str, Any] | None:
        """The worker's /status; None while there is none."""
        if self.workers[name].poll() is not None:
            raise RuntimeError(f"{name} ended: {(self.folder / f'{name}.log').read_text()[-2000:]}")
        with (self.folder / f"{name}.log").open("rb") as log:
            log.seek(self._logs[name])
            lines = [json.loads(line) for line in log if line.startswith(b"{") and line.endswith(b"}\n")]
        url = next((line["monitor"] for line in lines if "monitor" in line), None)
        if url is None:
            return None
        with suppress(OSError), urllib.request.urlopen(f"{url}/status", timeout=5) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
        return None

    def metrics(self, name: str) -> str:
        """The worker's /metrics."""
        with (self.folder / f"{name}.log").open("rb") as log:
            log.seek(self._logs[name])
            url = next(json.loads(line)["monitor"] for line in log if b'"monitor"' in line)
        with urllib.request.urlopen(f"{url}/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    def signal(self, number: signal.Signals) -> None:
        """Send all workers a signal."""
        for process in self.workers.values():
            process.send_signal(number)

    def peak(self, name: str) -> int:
        """Bytes resident at most, of a worker that runs."""
        return status_bytes("VmHWM", self.workers[name].pid)

    def spent(self) -> tuple[float, float]:
        """CPU seconds so far, of all workers and of the broker."""
        return sum(cpu_seconds(process.pid) for process in self.workers.values()), cpu_seconds(self.broker)

    @contextmanager
    def beside(self, prefix: str) -> Iterator[Place]:
        """Another one on the same broker: its topics, group and folder have this prefix."""
        (folder := self.folder / prefix).mkdir()
        other = self._again(folder=folder, prefix=prefix)
        other.broker = self.broker
        try:
            yield other
        finally:
            other.close()

    def close(self) -> None:
        """Kill the workers."""
        for process in self.workers.values():
            process.kill()
            process.wait()


@contextmanager
def place(
    bench: Bench, config: Config, toml: str, item_partitions: int = 1, agents: str = "both", session: float = SESSION
) -> Iterator[Place]:
    """A broker of its own, on the cores that this process may use, and a place on it."""
    with tempfile.TemporaryDirectory(dir=bench.folder, prefix="kafka-") as name:
        folder = Path(name)
        with KafkaServer(folder / "broker", fetch_kafka(), heap=HEAP, flags=()) as server:
            found = Place(config, toml, folder, server.bootstrap, item_partitions, agents, session)
            found.broker = server.pid
            try:
                yield found
            finally:
                found.close()


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true answer. Raises TimeoutError."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(TICK)
    return found


def purchases(sources: int = 1, staleness: float = 10.0) -> tuple[Config, str]:
    """Configuration of a log of purchases as an object and as text."""
    from cco.config import parse_config

    toml = f'primary = "purchase"\nmax_staleness = {staleness}\n[retention]\nsource_partitions = {sources}\n'
    return parse_config(toml, "benchmark"), toml


def ingest(found: Place, log: data.Log, rate: float | None = None, limit: int | None = None) -> None:
    """Send a log of purchases through the producer."""
    from agents.kafka.producing import produce

    batches = list(log.batches(16_384, limit))
    asyncio.run(produce(found.settings, found.config, log.user_ids, log.item_ids, batches, rate=rate))


def applied(status: dict[str, Any] | None) -> int:
    """Records applied by the user stages."""
    return sum(source["position"] for source in status["interactions"].values()) if status else 0


def acknowledged(status: dict[str, Any] | None) -> int:
    """Records whose edits Kafka has."""
    return sum(source["acknowledged"] for source in status["interactions"].values()) if status else 0


def whole_path(bench: Bench, name: str, workers: int, sources: int, item_partitions: int) -> Result:
    """JSON in, patches out: from the moment when the workers go on until every row is exact.

    All of it has run once before, with other topics: a broker that has just begun compiles for a minute of work.
    """
    config, toml = purchases(sources)
    log = data.load(bench, name)
    bench.warm_up(lambda: None)
    with place(bench, config, toml, item_partitions, session=SLEEP) as found:
        with found.beside("warm-") as first:
            _preloaded(first, log, workers)
        return _preloaded(found, log, workers)


def _preloaded(found: Place, log: data.Log, workers: int) -> Result:
    cores, sources = sorted(os.sched_getaffinity(0)), found.config.retention.source_partitions
    names = [f"w{k}" for k in range(workers)]
    for k, worker in enumerate(names):
        found.worker(worker, cores[-1 - k % len(cores)])
    until(lambda: spread_out(found, names, sources, found.settings.item_partitions), "all partitions to be served")
    found.signal(signal.SIGSTOP)  # the log is there as a whole when they begin
    ingest(found, log)
    before = found.spent()
    begin, total, edits_done, stalest = time.perf_counter(), len(log), 0.0, 0.0
    found.signal(signal.SIGCONT)
    while True:
        states = [s for s in map(found.status, names) if s]
        items = [e for s in states for e in s["edits"].values()]
        stalest = max([stalest, *(e["staleness"] for e in items)])
        if not edits_done and sum(map(applied, states)) == total:
            edits_done = time.perf_counter() - begin
        if edits_done and all(e["exact"] and sum(e["sources"]) == total for e in items):
            break
        time.sleep(LOOK)
    seconds = time.perf_counter() - begin
    of_workers, of_broker = (after - first for after, first in zip(found.spent(), before, strict=True))
    rows = sum(counted(found.metrics(name), "cco_rows_counted_total") for name in names)
    return {
        "cpu_seconds": of_workers, "broker_cpu_seconds": of_broker, "rows_counted": rows,
        "rate": total / seconds, "edits_rate": total / edits_done, "seconds": seconds,
        "events": total, "stalest_seconds": stalest, "peak_bytes": max(map(found.peak, names)),
    }  # fmt: skip


def spread_out(found: Place, names: list[str], sources: int, item_partitions: int) -> bool:
    """Whether every worker has its share, and nothing is left to do."""
    states = [found.status(name) for name in names]
    items = [e for s in states if s for e in s["edits"].values()]
    shares = [len(s["interactions"]) for s in states if s]
    even = len(shares) == len(names) and max(shares) - min(shares) <= 1
    return even and sum(shares) == sources and len(items) == item_partitions and all(e["exact"] for e in items)


def side_by_side(bench: Bench, name: str, copies: int) -> Result:
    """The engine in memory over the log, in processes at once that share nothing but the machine, on a core each."""
    bench.warm_up(lambda: None)
    task = Task("engine", "models.stream", {"name": name, "threads": 1})

    def run(core: int) -> Result:
        os.sched_setaffinity(0, {core})  # of this thread, and so of the process that it starts
        return run_task(task, bench.folder, bench.quick)

    with ThreadPoolExecutor(copies) as threads:
        found = list(threads.map(run, sorted(os.sched_getaffinity(0))[-copies:]))
    return {"seconds": max(result["seconds"] for result in found)}


def user_agent(bench: Bench, name: str) -> Result:
    """JSON in, edits out and acknowledged: the user agent alone, on one core."""
    config, toml = purchases()
    log = data.load(bench, name)
    bench.warm_up(lambda: None)
    with place(bench, config, toml, agents="users") as found:
        ingest(found, log)
        found.worker("users", max(os.sched_getaffinity(0)))
        begin, first, done = 0.0, 0, 0
        while done < len(log):
            done = acknowledged(found.status("users"))
            if done and not begin:
                begin, first = time.perf_counter(), done
            time.sleep(0.02)
        return {"rate": (done - first) / (time.perf_counter() - begin), "peak_bytes": found.peak("users")}


def one_by_one(bench: Bench, name: str, events: int) -> Result:
    """The same work by a Faust agent that gets one message per event, on one core: see `kafka_peer`."""
    config, toml = purchases()
    log = data.load(bench, name)
    events = min(events, len(log))
    bench.warm_up(lambda: None)
    with place(bench, config, toml) as found:
        ingest(found, log, limit=events)
        core = max(os.sched_getaffinity(0))
        done = subprocess.run(
            ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.kafka_peer",
             str(found.file), str(found.folder), str(events)],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(done.stderr[-1000:])
        result: Result = json.loads(lines[-1])
        return result


def latency(bench: Bench, name: str, rate: float, seconds: float) -> Result:
    """Event to patch at a rate, from the record's timestamp to the acknowledged patch of the last touched row.

    No row is to be older than half a second: left to itself, the order by relative change lets rows that hardly change
    wait.
    """
    config, toml = purchases(staleness=0.5)
    log = data.load(bench, name)
    bench.warm_up(lambda: None)
    with place(bench, config, toml) as found:
        warm = min(len(log) // 2, 100_000)
        ingest(found, log, limit=warm)
        found.worker("w")
        until(lambda: settled(found, "w", warm), "the worker to catch up")
        before = buckets(found.metrics("w"))
        number = min(int(rate * seconds), len(log) - warm)
        rest = data.Log(
            log.users[warm : warm + number], log.items[warm : warm + number], log.types[warm : warm + number],
            log.times[warm : warm + number], log.user_ids, log.item_ids,
        )  # fmt: skip
        ingest(found, rest, rate=rate)
        until(lambda: settled(found, "w", warm + number), "the last rows")
        counted = {bound: count - before.get(bound, 0.0) for bound, count in buckets(found.metrics("w")).items()}
        return {
            "p50_ms": 1000 * quantile(counted, 0.5), "p99_ms": 1000 * quantile(counted, 0.99),
            "messages": max(counted.values()), "peak_bytes": found.peak("w"),
        }  # fmt: skip


def settled(found: Place, name: str, total: int) -> bool:
    """Whether a single worker has published everything exactly."""
    status = found.status(name)
    if status is None or applied(status) != total or not status["edits"]:
        return False
    return all(e["exact"] and sum(e["sources"]) == total for e in status["edits"].values())


def counted(text: str, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))
    )


def buckets(text: str) -> dict[float, float]:
    """Cumulated counts of the latency, by upper bound in seconds."""
    found = {}
    for line in text.splitlines():
        if line.startswith("cco_event_to_patch_seconds_bucket{"):
            bound, count = line.split('le="')[1].split('"} ')
            found[float(bound)] = float(count)
    return found


def quantile(cumulated: dict[float, float], q: float) -> float:
    """The upper bound of the bucket that holds the quantile: never better than the truth. Seconds."""
    total = max(cumulated.values())
    return next((bound for bound, count in sorted(cumulated.items()) if count >= q * total), float("inf"))
