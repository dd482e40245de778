"""The monitor's HTTP server, asked as Prometheus and a container's probes ask it."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from agents import log
from agents.workers.metrics import Metrics
from agents.workers.monitor import Monitor, MonitorError

SECONDS = 10


@dataclass
class Worker:
    """A worker's condition, as a test wants it."""

    failed: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    told: dict[str, Any] = field(default_factory=dict)
    defect: Exception | None = None

    def health(self) -> list[str]:
        if self.defect:
            raise self.defect
        return self.failed

    def readiness(self) -> list[str]:
        return self.waiting

    def status(self) -> dict[str, Any]:
        if self.defect:
            raise self.defect
        return self.told


@contextmanager
def event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread, as a worker's does beside the one who asks."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with event_loop() as running:
        yield running


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


@pytest.fixture
def monitor(loop: asyncio.AbstractEventLoop, worker: Worker, metrics: Metrics) -> Iterator[Monitor]:
    found = Monitor(metrics, worker, "127.0.0.1", 0)
    run(loop, found.start)
    yield found
    run(loop, found.stop)


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """What is logged, as JSON lines."""
    root, stream = logging.getLogger(), io.StringIO()
    handlers, level = list(root.handlers), root.level
    log.set_up("json", stream)
    yield stream
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def run(loop: asyncio.AbstractEventLoop, start: Callable[[], Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(start(), loop).result(SECONDS)


def ask(monitor: Monitor, path: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    try:
        with urlopen(Request(monitor.url + path, headers=headers), timeout=SECONDS) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def verdict(monitor: Monitor, path: str) -> tuple[int, dict[str, Any]]:
    status, content_type, body = ask(monitor, path)
    assert content_type.startswith("application/json")
    return status, json.loads(body)


def test_metrics_are_those_of_the_worker(monitor: Monitor, metrics: Metrics) -> None:
    metrics.events_applied.labels(2).inc(41)
    status, content_type, body = ask(monitor, "/metrics")
    assert (status, content_type) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert 'cco_events_applied_total{source_partition="2"} 41.0' in body.splitlines()


def test_metrics_in_the_format_that_was_asked_for(monitor: Monitor) -> None:
    status, content_type, body = ask(monitor, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert status == 200
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith("# EOF\n")


def test_health_follows_the_worker(monitor: Monitor, worker: Worker) -> None:
    assert verdict(monitor, "/healthz") == (200, {"ok": True, "problems": []})
    worker.failed = ["interactions/3: the user stage has stopped: the disk is full"]
    assert verdict(monitor, "/healthz") == (503, {"ok": False, "problems": worker.failed})
    worker.failed = []
    assert verdict(monitor, "/healthz")[0] == 200


def test_who_waits_is_healthy_and_not_ready(monitor: Monitor, worker: Worker) -> None:
    worker.waiting = ["edits/0: staleness 75.0 s is above max_staleness 60.0 s"]
    assert verdict(monitor, "/healthz")[0] == 200
    assert verdict(monitor, "/readyz") == (503, {"ok": False, "problems": worker.waiting})
    worker.waiting = []
    assert verdict(monitor, "/readyz") == (200, {"ok": True, "problems": []})


def test_who_has_failed_is_not_ready(monitor: Monitor, worker: Worker) -> None:
    worker.failed, worker.waiting = ["the producer has failed"], ["interactions/0: restoring"]
    assert verdict(monitor, "/readyz") == (503, {"ok": False, "problems": [*worker.failed, *worker.waiting]})
    worker.waiting = [*worker.failed, "interactions/0: restoring"]  # who says it twice is heard once
    assert verdict(monitor, "/readyz") == (503, {"ok": False, "problems": worker.waiting})


def test_a_worker_that_cannot_tell_is_not_well(
    monitor: Monitor, worker: Worker, metrics: Metrics, logged: io.StringIO
) -> None:
    worker.defect = KeyError("edits")
    for path in ("/healthz", "/readyz", "/status"):
        status, answer = verdict(monitor, path)
        assert (status, answer["ok"]) == (503, False)
        assert answer["problems"] == ["the worker cannot tell: KeyError: 'edits'"]
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    assert len(lines) == 3
    assert all("in health" in line["exception"] or "in status" in line["exception"] for line in lines)
    worker.defect = None
    metrics.before_scrape(lambda: metrics.staleness.set(1))  # without its label
    assert ask(monitor, "/metrics")[0] == 503


def test_status_is_what_the_worker_tells(monitor: Monitor, worker: Worker) -> None:
    worker.told = {
        "mode": "kappa",
        "interactions": {3: {"position": np.int64(17), "staleness": np.float32(0.5), "caught_up": np.bool_(True)}},
        "lag": float("inf"),
    }
    status, answer = verdict(monitor, "/status")
    assert status == 200
    assert answer == {
        "mode": "kappa",
        "interactions": {"3": {"position": 17, "staleness": 0.5, "caught_up": True}},
        "lag": None,
    }


def test_other_paths_and_methods_are_refused(monitor: Monitor) -> None:
    assert ask(monitor, "/")[0] == 404
    with pytest.raises(HTTPError) as refused, urlopen(monitor.url + "/healthz", data=b"", timeout=SECONDS):
        pass
    refused.value.close()
    assert refused.value.code == 405


def test_a_blocked_event_loop_gives_no_answer(monitor: Monitor, loop: asyncio.AbstractEventLoop) -> None:
    release, blocked = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        release.wait(SECONDS)

    loop.call_soon_threadsafe(block)
    assert blocked.wait(SECONDS)
    try:
        with pytest.raises((TimeoutError, URLError)), urlopen(monitor.url + "/healthz", timeout=0.1):
            pass
    finally:
        release.set()
    assert ask(monitor, "/healthz")[0] == 200


def test_a_taken_port_is_told_in_one_line(loop: asyncio.AbstractEventLoop, monitor: Monitor, metrics: Metrics) -> None:
    second = Monitor(metrics, Worker(), "127.0.0.1", monitor.port)
    with pytest.raises(MonitorError) as refused:
        run(loop, second.start)
    assert str(refused.value) == (
        f"the monitor cannot listen on 127.0.0.1:{monitor.port}: Address already in use; choose another monitor_host "
        "(in [worker]) or --monitor-port (0: any free one)"
    )
    assert ask(monitor, "/healthz")[0] == 200  # the first one is not disturbed


def test_a_host_that_is_not_here_is_told_in_one_line(loop: asyncio.AbstractEventLoop, metrics: Metrics) -> None:
    for host in ("192.0.2.1", "no-such-host.invalid"):
        with pytest.raises(MonitorError, match=f"^the monitor cannot listen on {host}:0: [^\n]+$"):
            run(loop, Monitor(metrics, Worker(), host, 0).start)


def test_workers_on_one_machine_take_different_ports(
    loop: asyncio.AbstractEventLoop, monitor: Monitor, metrics: Metrics
) -> None:
    second = Monitor(metrics, Worker(["the second one"]), "localhost", 0)
    run(loop, second.start)
    assert second.port not in (0, monitor.port)
    assert verdict(second, "/healthz")[1]["problems"] == ["the second one"]
    assert verdict(monitor, "/healthz")[0] == 200
    run(loop, second.stop)


def test_stopping_frees_the_port_at_once_though_a_client_stays(
    loop: asyncio.AbstractEventLoop, worker: Worker, metrics: Metrics
) -> None:
    first = Monitor(metrics, worker, "127.0.0.1", 0)
    run(loop, first.start)
    with socket.create_connection(("127.0.0.1", first.port), timeout=SECONDS) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: here\r\n\r\n")
        assert client.recv(12) == b"HTTP/1.1 200"
        stopping: Future[None] = asyncio.run_coroutine_threadsafe(first.stop(), loop)
        stopping.result(SECONDS)
        run(loop, first.stop)  # once more is nothing
        with pytest.raises(URLError):
            urlopen(first.url + "/healthz", timeout=SECONDS)
        again = Monitor(metrics, worker, "127.0.0.1", first.port)
        run(loop, again.start)
        assert ask(again, "/healthz")[0] == 200
        run(loop, again.stop)
