"""From kappa to lambda and back on real servers: questions while a rebuild is swapped in, and workers that return.

The demo's purchases, one item partition, one worker; broker, node, worker, service, rebuild and client share two cores.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from agents.health.status import Status, look
from benchmarks import data
from benchmarks.clients import ROOT, Connection, milliseconds, serving
from benchmarks.elastic import node, peak
from benchmarks.kafka import HEAP, PATIENCE, Place, ingest, settled, until
from benchmarks.measure import Bench, spread, status_bytes
from benchmarks.scenario import Result
from cco.config import Config, parse_config
from model_sync.elastic_admin import create
from model_sync.elastic_client import ElasticOptions, names, sync_client
from model_sync.elastic_versions import versions
from tests.kafka.demo import CONFIG as TOML
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer, fetch_kafka

BEHIND = 1_000_000  # events that come while nobody learns
CONNECTIONS, PAUSE = 2, 0.02  # of the client; seconds between an answer and the next question
WARM_SECONDS, QUIET_SECONDS, QUICK_SECONDS = 20.0, 30.0, 2.0
QUESTIONS = 2_000
CATCH_UP_SECONDS = 1_200.0  # at most, for all of the demo's purchases
LOOK = 0.25  # seconds between two looks at how far the rebuild is, or at the mode

Phases = dict[str, tuple[float, float]]  # by name, when it began and ended (perf_counter)


@dataclass(frozen=True)
class Stack:
    """What runs."""

    place: Place
    node: ElasticsearchServer
    options: ElasticOptions
    log: data.Log

    def part(self, begin: int, end: int) -> data.Log:
        """Events of the log, as a log."""
        of = self.log.batch().part(begin, end)
        return data.Log(of.users, of.items, of.types, of.times, self.log.user_ids, self.log.item_ids)


@contextmanager
def stack(bench: Bench) -> Iterator[Stack]:
    """Servers, topics and indices."""
    config, log = parse_config(TOML, "benchmark"), data.load(bench, "demo")
    _check_types(config)
    with (
        tempfile.TemporaryDirectory(dir=bench.folder, prefix="lambda-") as name,
        node(Path(name) / "node") as server,
        KafkaServer(Path(name) / "broker", fetch_kafka(), heap=HEAP, flags=()) as broker,
    ):
        options = ElasticOptions((server.url,))
        with sync_client(options) as client:
            if create(client, config, names(options)).problems:
                raise RuntimeError("the index cannot be made")
        place = Place(config, TOML, Path(name).resolve(), broker.bootstrap, elasticsearch=server.url)
        try:
            yield Stack(place, server, options, log)
        finally:
            place.close()


def _check_types(config: Config) -> None:
    from agents.demo.data import demo_config

    if config.event_types != demo_config().event_types:
        raise RuntimeError("the demo's events are of other types than the configuration's")


def _caught_up(place: Place, total: int) -> None:
    """Wait until every row is as of the last of so many events, and in Elasticsearch. Raises TimeoutError."""
    end = time.monotonic() + CATCH_UP_SECONDS
    while not settled(place, "w", total):
        if time.monotonic() > end:
            raise TimeoutError("the worker to catch up")
        time.sleep(LOOK)


# -- back to kappa ----------------------------------------------------------------------------------------


def return_to_kappa(bench: Bench) -> Result:
    """Seconds from the start of a worker that is BEHIND events behind, its state its own, to the mode kappa.

    That is what `cco status` says, with no partition behind its log. `exact`: every row counted as of the last event,
    and in Elasticsearch.
    """
    bench.warm_up(lambda: None)
    with stack(bench) as found:
        place, total = found.place, len(found.log)
        before = total - min(BEHIND, total // 2 if bench.quick else total - 1)
        ingest(place, found.part(0, before))
        place.worker("w")
        _caught_up(place, before)
        place.workers["w"].kill()
        place.workers["w"].wait()
        ingest(place, found.part(before, total))
        begin = time.perf_counter()
        place.worker("w")
        modes: list[tuple[float, str]] = []
        until(lambda: _is_kappa(found, modes, begin), "mode kappa")
        kappa = time.perf_counter() - begin
        _caught_up(place, total)
        return {
            "kappa_seconds": kappa, "exact_seconds": time.perf_counter() - begin, "behind": total - before,
            "before": before, "modes": modes, "worker_bytes": place.peak("w"), "node_bytes": peak(found.node),
        }  # fmt: skip


def _is_kappa(found: Stack, modes: list[tuple[float, str]], begin: float) -> bool:
    """Looks; whoever has written in an earlier life does not count."""
    time.sleep(LOOK)
    seen = look(found.place.config, found.place.settings)
    if not modes or modes[-1][1] != seen.mode:
        modes.append((round(time.perf_counter() - begin, 2), seen.mode))
    return seen.mode == "kappa" and _has_read_all(seen, found.place.workers["w"].pid)


def _has_read_all(seen: Status, process: int) -> bool:
    lags = [partition.lag for partition in seen.partitions]
    return lags == [0] * len(lags) and [of["process"] for of in seen.workers if of["runs"]] == [process]


# -- questions --------------------------------------------------------------------------------------------


@dataclass
class Client:
    """Asks over some connections, with a pause after each answer, until it is stopped."""

    url: str
    questions: Sequence[dict[str, Any]]
    answers: list[tuple[float, float]] = field(default_factory=list)  # when (perf_counter), and milliseconds
    failures: list[str] = field(default_factory=list)

    async def ask(self, stop: asyncio.Event) -> None:
        """Until `stop`."""
        await asyncio.gather(*(self._one(stop, number) for number in range(CONNECTIONS)))

    async def _one(self, stop: asyncio.Event, number: int) -> None:
        connection: Connection | None = None
        at = number
        while not stop.is_set():
            begin = time.perf_counter()
            try:
                connection = connection or await Connection.to(self.url)
                await connection.post("/recommendations", self.questions[at % len(self.questions)])
                self.answers.append((time.perf_counter(), milliseconds(begin)))
            except (OSError, EOFError, RuntimeError) as error:
                self.failures.append(f"{type(error).__name__}: {error}")
                connection = None
            at += CONNECTIONS
            await asyncio.sleep(PAUSE)
        if connection is not None:
            connection.close()

    def between(self, begin: float, end: float) -> list[float]:
        """Milliseconds of the answers that came then."""
        return [took for when, took in self.answers if begin <= when <= end]


def swap_queries(bench: Bench, alive: bool) -> Result:
    """Latencies while nothing else happens, and while a rebuild is computed, loaded and swapped in.

    `alive`: whether the worker is, which then writes the whole of the next index too.
    """
    bench.warm_up(lambda: None)
    with stack(bench) as found:
        place, total = found.place, len(found.log)
        ingest(place, found.log)
        place.worker("w")
        _caught_up(place, total)
        if not alive:
            place.workers["w"].kill()
            place.workers["w"].wait()
        command = ["agents", "serve", "--config", str(place.file), "--port", "0", "--log-format", "json"]
        with serving(command, place.folder / "serve.log") as service:
            client = Client(service.url, _questions(found.log))
            phases, published = asyncio.run(_measure(bench, found, client))
            memory = {"service_bytes": status_bytes("VmHWM", service.pid), "node_bytes": peak(found.node)}
        return {**_figures(client, phases), **memory, "items": len(found.log.item_ids), "published": published}


def _questions(log: data.Log) -> list[dict[str, Any]]:
    """Four of five of a user, the fifth about an item."""
    rng = np.random.default_rng(8)
    users = log.user_ids.names(rng.integers(len(log.user_ids), size=QUESTIONS).tolist())
    items = log.item_ids.names(log.items[rng.integers(len(log), size=QUESTIONS)].tolist())
    return [
        {"item": item} if k % 5 == 4 else {"user": user}
        for k, (user, item) in enumerate(zip(users, items, strict=True))
    ]


async def _measure(bench: Bench, found: Stack, client: Client) -> tuple[Phases, dict[str, Any]]:
    """Ask, and rebuild meanwhile; answers when each phase began and ended, and what the rebuild reports."""
    quiet, stop = QUICK_SECONDS if bench.quick else QUIET_SECONDS, asyncio.Event()
    asking = asyncio.create_task(client.ask(stop))
    await asyncio.sleep(QUICK_SECONDS if bench.quick else WARM_SECONDS)
    begin = time.perf_counter()
    await asyncio.sleep(quiet)
    phases = {"quiet": (begin, time.perf_counter())}
    of_rebuild, published = await asyncio.to_thread(_rebuild, found)
    stop.set()
    await asking
    return phases | of_rebuild, published


def _rebuild(found: Stack) -> tuple[Phases, dict[str, Any]]:
    """`cco rebuild --log --publish`; answers when it was computing, loading and so on, by what its index says."""
    states: list[tuple[float, str]] = []
    begin, done = time.perf_counter(), threading.Event()
    watching = threading.Thread(target=_watch, args=(found.options, states, done))
    watching.start()
    command = [sys.executable, "-m", "agents", "rebuild", "--log", "--publish", "--json"]
    try:
        told = subprocess.run(
            [*command, "--config", str(found.place.file)], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE,
            check=False,
        )  # fmt: skip
    finally:
        done.set()
        watching.join()
    end = time.perf_counter()
    if told.returncode != 0:
        raise RuntimeError(told.stderr[-1000:])
    phases = {"swap": (begin, end)}
    for (when, state), until_ in zip(states, [*(when for when, _ in states[1:]), end], strict=True):
        phases[state] = phases.get(state, (when, until_))[0], until_
    return phases, json.loads(told.stdout)["published"]


def _watch(options: ElasticOptions, states: list[tuple[float, str]], done: threading.Event) -> None:
    with sync_client(options) as client:
        while not done.wait(LOOK):
            newest = versions(client, names(options))[0]
            state = newest.state if newest.number > 1 else "starting"
            if not states or states[-1][1] != state:
                states.append((time.perf_counter(), state))


def _figures(client: Client, phases: Phases) -> Result:
    quiet, swap = client.between(*phases["quiet"]), client.between(*phases["swap"])
    if min(len(quiet), len(swap)) == 0:
        raise RuntimeError(f"no question was answered: {client.failures[:3]}")
    calm, busy = spread(quiet), spread(swap)
    by_phase = {}
    for name, (begin, end) in phases.items():
        took = client.between(begin, end) or [0.0]
        p50, p99 = np.percentile(took, [50, 99]).tolist()
        by_phase[name] = {"seconds": end - begin, "answers": len(took), "p50": p50, "p99": p99, "max": max(took)}
    return {
        "failed": len(client.failures), "failures": client.failures[:5], "answers": len(swap),
        "quiet_p50": calm["p50"], "quiet_p99": calm["p99"], "quiet_max": calm["max"],
        "swap_p50": busy["p50"], "swap_p99": busy["p99"], "swap_max": busy["max"],
        "times_the_median": busy["p99"] / calm["p50"], "seconds": phases["swap"][1] - phases["swap"][0],
        "phases": by_phase,
    }  # fmt: skip
