"""The gate before the service: keys, sizes, depth of JSON, and how many requests are answered at a time.

What can be refused is refused before it is read: an unknown key before the body, a large body by its declared
length, or else as soon as it has grown beyond the limit.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from model_sync.service import auth
from model_sync.service.metrics import OTHER, ServiceMetrics
from model_sync.service.problems import BODY, Part, Problem

BODY_KEY = "cco.body"  # of the ASGI scope: the whole body, read already
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
    """ASGI middleware. `guarded`: the scope that a path needs. `unlimited`: paths that are answered however much is
    going on.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        keys: auth.Keys,
        guarded: Mapping[str, auth.Scope],
        unlimited: frozenset[str],
        metrics: ServiceMetrics,
    ) -> None:
        self._app, self._limits, self._keys, self._metrics = app, limits, keys, metrics
        self._guarded, self._unlimited = guarded, unlimited
        self._answering = 0
        metrics.in_flight.set_function(lambda: self._answering)

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

        self._answering += 1
        try:
            await self._answer(scope, receive, sending)
        except Problem as problem:
            await problem.response()(scope, receive, sending)
        except BaseException:
            status = 500 if status == 499 else status
            raise
        finally:
            self._answering -= 1
            # the router leaves in the scope what it found; what it did not find is not worth a series of its own
            path = scope["path"]
            label = path if path in self._guarded else getattr(scope.get("route"), "path", OTHER)
            self._metrics.answered(label, status, time.perf_counter() - began)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path not in self._unlimited and self._answering > self._limits.requests:
            raise Problem(
                503,
                "busy",
                f"{self._limits.requests} requests are being answered already: try again soon",
                headers={"Retry-After": str(self._limits.retry_after)},
            )
        needed = self._guarded.get(path)
        headers = Headers(scope=scope)
        if needed is not None:
            self._keys.check(auth.presented_key(headers), needed)
        if scope["method"] in _BODILESS:
            await self._app(scope, receive, send)
            return
        body = await self._body(headers, receive)
        if body is None:
            return
        if deeper_than(self._limits.depth, body):
            detail = f"is nested deeper than {self._limits.depth} arrays and objects"
            raise Problem(400, "depth", f"the body {detail}", [Part(BODY, detail)])
        scope[BODY_KEY] = body
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    async def _body(self, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body; None if the client went away. Raises Problem."""
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._limits.body:
            raise self._too_large()
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.reading):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._limits.body:
                        raise self._too_large()
                    parts.append(part)
                    if not message.get("more_body", False):
                        return parts[0] if len(parts) == 1 else b"".join(parts)
        except TimeoutError:
            seconds = self._limits.reading
            raise Problem(
                408, "slow", f"the body did not come within {seconds:g} s", headers={"Connection": "close"}
            ) from None

    def _too_large(self) -> Problem:
        detail = f"is larger than {self._limits.body} bytes"
        return Problem(413, "size", f"the body {detail}", [Part(BODY, detail)], {"Connection": "close"})
