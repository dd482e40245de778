"""`cco serve --embedded`: the whole product in one process: index in memory, state on disk, events by HTTP.

What was acknowledged is never lost: see `agents.serving.learning`. Killed at any moment and started again, the process
has the state that it would have had without the kill.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from agents.engine import Engine
from agents.serving.learning import Durable, EmbeddedStore, Learner
from agents.serving.settings import ServeSettings, check_reach
from cco.config import Config
from model_sync.service.app import Door, make_service
from model_sync.service.auth import ApiKey
from model_sync.service.prediction_io import prediction_io_router
from model_sync.service.universal_recommender import universal_recommender

STOP_SECONDS = 10  # what an open request may take when the service stops
SWITCH_SECONDS = 0.001  # that learning may hold the interpreter while a question waits


class ServeProblem(Exception):
    """The service cannot start: one readable line."""


def doors(open_queries: bool = False) -> tuple[Door, ...]:
    """For clients of other systems. `open_queries`: the Universal Recommender's, which know no keys, need none."""
    return prediction_io_router, universal_recommender(needs_key=not open_queries)


def embedded_service(
    engine: Engine, learner: Learner, keys: Sequence[ApiKey] = (), open_queries: bool = False
) -> FastAPI:
    """The query service over an engine and the thread that it learns in, which the caller starts and stops."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for name, text, value in (
        ("cco_due_rows", "Items with a row that is due to be counted.", lambda: learner.due),
        (
            "cco_staleness_seconds",
            "Time since the row that is longest out of date was exact.",
            lambda: learner.staleness,
        ),
    ):
        Gauge(name, text, registry=registry).set_function(value)
    return make_service(
        engine.config,
        EmbeddedStore(engine),
        learner,
        keys,
        registry=registry,
        health=learner.problems,
        model_age=learner.model_age,
        doors=doors(open_queries),
    )


class Server(uvicorn.Server):
    """uvicorn on a socket of ours; `on_started` is called once it answers."""

    def __init__(self, app: FastAPI, on_started: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app, loop="uvloop", http="httptools", ws="none", lifespan="on", log_config=None, access_log=False,
                proxy_headers=False, server_header=False, timeout_keep_alive=75,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )  # fmt: skip
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens (port 0: any free one). Raises ServeProblem."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server((str(address[0]), port), family=family, backlog=2048)
    except OSError as error:
        number = error.errno or 0  # below 0 for names that are not found
        what = os.strerror(number) if number > 0 else error.strerror or str(error)
        raise ServeProblem(
            f"cannot listen on {host}:{port}: {what}; choose another --host or --port (0: any free one)"
        ) from None


def url_of(listener: socket.socket) -> str:
    """Where a socket that listens is reached from this machine."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """uvicorn raises once more the signal that stopped it, for whoever was to be asked before: nobody."""
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def warm_up(config: Config) -> None:
    """Compile, or load, the kernels before the first question waits for them."""
    with Engine(config) as engine:
        engine.ingest(
            {"user_id": f"u{k % 3}", "item_id": f"i{k % 5}", "event_type": event, "timestamp": 1000 + k}
            for event in config.event_types
            for k in range(20)
        )
        engine.put_items({"i0": {"category": "a", "price": 1}})
        engine.drain()
        engine.recommend(user="u1", include={"category": ["a"]}, priors=dict.fromkeys(config.prior_names, 0.1))
        engine.explain("i1", user="u1")
        engine.recommend()


def serve_embedded(
    config: Config,
    settings: ServeSettings,
    keys: Sequence[ApiKey],
    *,
    threads: int = 1,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then commit the state. Raises ConfigError, ServeProblem, StateError."""
    check_reach(settings.host, list(keys))
    sys.setswitchinterval(SWITCH_SECONDS)
    listener = listen(settings.host, settings.port)
    with listener, Engine(config, threads=threads) as engine:
        warm_up(config)
        durable = Durable(engine, settings.state)
        learner = Learner(engine, durable)
        app = embedded_service(engine, learner, keys, settings.open_queries)
        gc.collect()
        gc.freeze()  # the state is large and stays: looking through it again and again is what makes answers late
        server = Server(app, lambda: say(f"serving {settings.state} on {url_of(listener)}"))
        learner.start()
        try:
            with stopped_by_signals():
                server.run(sockets=[listener])
        finally:
            learner.stop()


class BackgroundServer:
    """The service in a thread of this process, on any free port of this machine: for the demo and for tests."""

    def __init__(self, app: FastAPI) -> None:
        self._listener = listen("127.0.0.1", 0)
        self._started = threading.Event()
        self._server = Server(app, self._started.set)
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return url_of(self._listener)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        finally:
            self._started.set()

    def __enter__(self) -> BackgroundServer:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._listener.close()
