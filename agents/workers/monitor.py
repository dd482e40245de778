"""The HTTP side of a worker, or of the archive, for Prometheus and for whoever keeps them running.

/metrics  what is counted.
/healthz  200 while the process works, else 503: restart it.
/readyz   200 while every owned partition is restored and within its limits, else 503: wait.
/status   what it does, as JSON.

503 says why: {"ok": false, "problems": [...]}. That the event loop runs is shown by there being an answer.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import numpy as np
from aiohttp import web

from agents.log import get_logger

_STOP_SECONDS = 1.0  # what an open request may take when the worker stops


class Condition(Protocol):
    """How it is. Called on the event loop for each request: must not block, and tell no guesses."""

    def health(self) -> list[str]:
        """What has failed and will not mend itself, a sentence each; empty while the process works."""
        ...

    def readiness(self) -> list[str]:
        """What is not as it should be yet (restoring, lag, staleness), a sentence each naming the partition."""
        ...

    def status(self) -> dict[str, Any]:
        """By partition: position, log end, lag, members, items, state, due, staleness (seconds)."""
        ...


class Exposition(Protocol):
    """What is told Prometheus: `Metrics` is one."""

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text and its content type, in the format that the Accept header of the request asks for."""
        ...


class MonitorError(OSError):
    """The monitor cannot listen: one readable line."""


class Monitor:
    """An HTTP server on host:port (0: any free port, see `port`), on the event loop that starts it."""

    def __init__(self, metrics: Exposition, condition: Condition, host: str, port: int) -> None:
        self._metrics, self._condition = metrics, condition
        self._host, self._port = host, port
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """The port that it listens on, once started."""
        return self._port

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self._port}"

    async def start(self) -> None:
        """Listen. Raises MonitorError if the address cannot be had."""
        listener = await self._listen()
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._answer_metrics),
                web.get("/healthz", self._answer_health),
                web.get("/readyz", self._answer_readiness),
                web.get("/status", self._answer_status),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_STOP_SECONDS)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        self._runner, self._port = runner, listener.getsockname()[1]

    async def stop(self) -> None:
        """Close the port, after at most a second for requests that are being answered."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _listen(self) -> socket.socket:
        """One socket, also where a name stands for several addresses: they would get different free ports."""
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                self._host, self._port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            family, _, _, _, address = found[0]
            return socket.create_server((str(address[0]), self._port), family=family)
        except OSError as error:
            number = error.errno or 0  # below 0 for names that are not found
            what = os.strerror(number) if number > 0 else error.strerror or str(error)
            raise MonitorError(
                f"the monitor cannot listen on {self._host}:{self._port}: {what}; choose another "
                "monitor_host (in [worker]) or --monitor-port (0: any free one)"
            ) from None

    async def _answer_metrics(self, request: web.Request) -> web.Response:
        try:
            body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        except Exception as error:
            return _failed(error)
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _answer_health(self, request: web.Request) -> web.Response:
        return _verdict(self._condition.health)

    async def _answer_readiness(self, request: web.Request) -> web.Response:
        return _verdict(lambda: list(dict.fromkeys(self._condition.health() + self._condition.readiness())))

    async def _answer_status(self, request: web.Request) -> web.Response:
        try:
            return _json(200, self._condition.status())
        except Exception as error:
            return _failed(error)


def _verdict(problems_of: Callable[[], list[str]]) -> web.Response:
    try:
        problems = problems_of()
    except Exception as error:
        return _failed(error)
    return _json(503 if problems else 200, {"ok": not problems, "problems": problems})


def _failed(error: Exception) -> web.Response:
    """A worker that cannot tell how it is is not well; the probe must see that, not a dropped connection."""
    get_logger().error("the monitor could not answer", exc_info=error)
    return _json(503, {"ok": False, "problems": [f"the worker cannot tell: {type(error).__name__}: {error}"]})


def _json(status: int, value: dict[str, Any]) -> web.Response:
    body = msgspec.json.encode(value, enc_hook=_plain)
    return web.Response(
        status=status, body=body, content_type="application/json", headers={"Cache-Control": "no-store"}
    )


def _plain(value: Any) -> Any:
    """What JSON has no word for: numpy's numbers as numbers, the rest as text."""
    return value.item() if isinstance(value, np.generic) else str(value)
