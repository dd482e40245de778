"""What one service takes: sizes, depth of JSON, and how many requests are answered at a time.

What can be refused is refused before it is read: a large body by its declared length, or else as soon as it has grown
beyond the limit. A route asks for the body (`read_body`) once it has looked at the key.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_sync.service.metrics import OTHER, ServiceMetrics
from model_sync.service.problems import BODY, Part, Problem

LIMITS_KEY = "cco.limits"  # of the ASGI scope
_BODILESS = ("GET", "HEAD", "OPTIONS")
_TEXTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # linear, whatever the body is
_OPENING, _CLOSING = (b"[", b"{"), (b"]", b"}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one service takes. Sizes in bytes, times in seconds."""

    body: int = 2 << 20
    depth: int = 16  # of arrays and objects in each other
    requests: int = 256  # that are answered at a time; whoever comes then is asked to come again
    reading: float = 30.0  # that a client may take to send a body
    retry_after: int = 1


def deeper_than(limit: int, body: bytes) -> bool:
    """Whether arrays and objects of a JSON text are nested deeper than that. Of what is no JSON it answers anything."""
    if sum(map(body.count, _OPENING)) <= limit:
        return False
    rest = np.frombuffer(_TEXTS.sub(b"", body), np.uint8)
    steps = np.zeros(rest.size, np.int8)
    for marks, step in ((_OPENING, 1), (_CLOSING, -1)):
        for mark in marks:
            steps[rest == mark[0]] = step
    return int(np.cumsum(steps, dtype=np.int64).max(initial=0)) > limit


class Gate:
    """ASGI middleware. `known`: paths that metrics name. `unlimited`: those that are answered to GET however much is
    going on. `writes`: those that take events; they have slots of their own, so that waiting for whoever takes the
    events keeps nobody from asking.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        known: Set[str],
        unlimited: Set[str],
        writes: Set[str],
        metrics: ServiceMetrics,
    ) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._known, self._unlimited, self._writes = known, unlimited, writes
        self._answering = {False: 0, True: 0}  # by: is it a write
        metrics.in_flight.set_function(lambda: sum(self._answering.values()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 499  # nothing was answered: the client has gone

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        path = scope["path"]
        write = path in self._writes
        self._answering[write] += 1
        try:
            self._admit(path, scope["method"], self._answering[write])
            scope[LIMITS_KEY] = self._limits
            await self._app(scope, receive, sending)
        except Problem as problem:
            await problem.response()(scope, receive, sending)
        except BaseException:
            status = 500 if status == 499 else status
            raise
        finally:
            self._answering[write] -= 1
            # the router leaves in the scope what it found; what it did not find is not worth a series of its own
            label = path if path in self._known else getattr(scope.get("route"), "path", OTHER)
            self._metrics.answered(label, status, time.perf_counter() - began)

    def _admit(self, path: str, method: str, answering: int) -> None:
        """Raises Problem."""
        if not path.isprintable():  # a router may take "/events" and a line break for "/events"
            raise Problem(404, "path", "there is nothing at a path with control characters")
        if answering > self._limits.requests and not (path in self._unlimited and method in _BODILESS):
            raise Problem(
                503,
                "busy",
                f"{self._limits.requests} requests are being answered already: try again soon",
                headers={"Retry-After": str(self._limits.retry_after)},
            )


async def read_body(request: Request) -> bytes:
    """The whole body of a request that came through a `Gate`. Raises Problem, ClientDisconnect."""
    limits: Limits = request.scope[LIMITS_KEY]
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.body:
        raise _too_large(limits)
    parts, size = [], 0
    try:
        async with asyncio.timeout(limits.reading):
            async for part in request.stream():
                size += len(part)
                if size > limits.body:
                    raise _too_large(limits)
                parts.append(part)
    except TimeoutError:
        seconds = limits.reading
        raise Problem(
            408, "slow", f"the body did not come within {seconds:g} s", headers={"Connection": "close"}
        ) from None
    body = b"".join(parts)
    if deeper_than(limits.depth, body):
        detail = f"is nested deeper than {limits.depth} arrays and objects"
        raise Problem(400, "depth", f"the body {detail}", [Part(BODY, detail)])
    return body


def _too_large(limits: Limits) -> Problem:
    detail = f"is larger than {limits.body} bytes"
    return Problem(413, "size", f"the body {detail}", [Part(BODY, detail)], {"Connection": "close"})
