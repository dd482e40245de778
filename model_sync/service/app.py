"""The query service: recommendations and events over HTTP, for any store and sink.

POST /recommendations  scope read
POST /events           scope write: one record, or a list of them
GET  /metrics          scope read: for Prometheus
GET  /health           200 while the process works, else 503: restart it
GET  /ready            200 while it can answer, else 503: wait
GET  /openapi.json     all of this, with examples
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from cco.config import Config
from model_sync.contract import QueryError
from model_sync.service import openapi
from model_sync.service.auth import ApiKey, Keys, Scope, presented_key
from model_sync.service.limits import Gate, Limits, read_body
from model_sync.service.metrics import ServiceMetrics
from model_sync.service.models import (
    MAX_RECORDS,
    QUESTION_NAMES,
    Accepted,
    Rejected,
    Verdict,
    decode_any,
    decode_question,
    encode,
    place_in_question,
)
from model_sync.service.problems import BODY, Part, Problem, invalid, of_decoding, of_query
from model_sync.service.routes import PlainRoute
from model_sync.service.service import Service, utc_now
from model_sync.service.store import EventSink, Store, StoreProblem

JSON = "application/json"
PATHS = frozenset(("/recommendations", "/events", "/health", "/ready", "/metrics"))
UNLIMITED = frozenset(("/health", "/ready", "/metrics"))
WRITES = frozenset(("/events", "/events.json", "/batch/events.json"))  # here and at the doors
LOOK_EVERY = 1.0  # seconds between two looks at whether the store is ready
RETRY_AFTER = 2  # seconds, while the store is away
TELL_EVERY = 10.0  # seconds between two lines in the log about that

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
Door = Callable[[Service], APIRouter]

_log = logging.getLogger("cco.service")


def make_service(
    config: Config,
    store: Store,
    events: EventSink | None,
    keys: Sequence[ApiKey] = (),
    *,
    limits: Limits | None = None,
    registry: CollectorRegistry | None = None,
    health: Callable[[], Sequence[str]] = tuple,
    now: Callable[[], str] = utc_now,
    model_age: Callable[[], float | None] = lambda: None,
    doors: Sequence[Door] = (),
    lifespan: Lifespan | None = None,
) -> FastAPI:
    """The service as an ASGI application; `app.state.service` is what it does.

    Without `keys` everybody may do everything: whoever listens with it sees to it that only this machine can
    reach it. `health` tells what has failed and will not mend itself, `model_age` for how many seconds events may be
    missing in the model. `doors` make further routes over the same
    service; they check keys themselves. Raises KeyProblem.
    """
    metrics = ServiceMetrics(registry or CollectorRegistry())
    metrics.follow_model_age(model_age)
    service = Service(config, store, events, Keys(keys), metrics, now, model_age)
    app = FastAPI(
        title="streaming-cco", version="1", docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Recommendations from live histories. Errors are problem details (RFC 9457) that name the field.",
    )  # fmt: skip
    app.state.service = service
    app.include_router(_routes(service, health))
    for door in doors:
        app.include_router(door(service))
    _answer_errors(app)
    openapi.describe(app, config, bool(keys))
    app.add_middleware(
        Gate, limits=limits or Limits(), known=PATHS, unlimited=UNLIMITED, writes=WRITES, metrics=metrics
    )
    return app


def json_response(value: Any, status: int = 200) -> Response:
    """A value as JSON."""
    return Response(encode(value), status, media_type=JSON)


def check_key(service: Service, request: Request, scope: Scope) -> None:
    """Raises Problem unless the request's key allows this. Before anything of the body is read."""
    service.keys.check(presented_key(request.headers), scope)


async def body_of(request: Request) -> bytes:
    """The body. Raises Problem unless it says that it is JSON, and where it is too much."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        # also for safety: a page in a browser may send anything else to any address without being asked
        raise Problem(415, "media-type", f"the body must be JSON: send it with Content-Type: {JSON}")
    return await read_body(request)


class _Readiness:
    """What the store says of itself: one look at a time, and not oftener than LOOK_EVERY, however many ask."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._looking = asyncio.Lock()
        self._looked = -math.inf
        self._problem: str | None = None

    async def problem(self) -> str | None:
        async with self._looking:
            if time.monotonic() - self._looked >= LOOK_EVERY:
                try:
                    self._problem = await self._store.problem()
                except StoreProblem as error:
                    self._problem = str(error)
                self._looked = time.monotonic()
            return self._problem


def _routes(service: Service, health: Callable[[], Sequence[str]]) -> APIRouter:
    router = APIRouter(route_class=PlainRoute)
    readiness = _Readiness(service.store)

    async def recommendations(request: Request) -> Response:
        """The best items for a user, an item, a basket, a history, or for anybody."""
        check_key(service, request, "read")
        body = await body_of(request)
        try:
            question = decode_question(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise of_decoding(error, QUESTION_NAMES, lambda path: place_in_question(path, body)) from None
        return json_response(await service.recommend(question))

    async def events(request: Request) -> Response:
        """Take interactions, deletions and changes of items. 207 says that some records were rejected, 422 all."""
        check_key(service, request, "write")
        body = await body_of(request)
        records = records_of(body)
        verdicts = await service.accept(records)
        rejected = [Rejected(k, problem) for k, problem in enumerate(verdicts) if problem is not None]
        if rejected and len(rejected) == len(verdicts):
            detail = "no record was accepted" if len(verdicts) > 1 else rejected[0].problem
            path = "[{}]" if body.lstrip().startswith(b"[") else BODY
            raise Problem(422, "rejected", detail, [Part(path.format(one.index), one.problem) for one in rejected])
        return json_response(Accepted(len(verdicts) - len(rejected), rejected), 207 if rejected else 200)

    async def healthy() -> Response:
        """Whether the process works."""
        problems = list(health())
        return json_response(Verdict(not problems, problems), 503 if problems else 200)

    async def ready() -> Response:
        """Whether questions can be answered."""
        problems = list(health())
        problem = await readiness.problem()
        if problem is not None:
            problems.append(problem)
        return json_response(Verdict(not problems, problems), 503 if problems else 200)

    async def metrics(request: Request) -> Response:
        """For Prometheus."""
        check_key(service, request, "read")
        body, kind = service.metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": kind})

    paths: tuple[tuple[str, str, Callable[..., Awaitable[Response]]], ...] = (
        ("POST", "/recommendations", recommendations),
        ("POST", "/events", events),
        ("GET", "/health", healthy),
        ("GET", "/ready", ready),
        ("GET", "/metrics", metrics),
    )
    for method, path, answer in paths:
        router.add_api_route(
            path, answer, methods=[method], response_model=None, response_class=Response, **openapi.DOCUMENTED[path]
        )
    return router


def records_of(body: bytes, most: int = MAX_RECORDS) -> list[Mapping[str, Any]]:
    """The records in a body: one object, or a list of them. Raises Problem."""
    try:
        found = decode_any(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise of_decoding(error) from None
    records: list[Any] = found if isinstance(found, list) else [found]
    if not 1 <= len(records) <= most:
        raise invalid(BODY, f"{len(records)} records; 1 to {most} are possible")
    for k, record in enumerate(records):
        if not isinstance(record, dict):
            raise invalid(f"[{k}]" if isinstance(found, list) else BODY, "a record is a JSON object")
    return records


def _answer_errors(app: FastAPI) -> None:
    """Everything that goes wrong becomes problem details."""

    async def problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response()

    async def query(request: Request, error: Exception) -> Response:
        assert isinstance(error, QueryError)
        return of_query(error).response()

    told_at = -math.inf

    async def store(request: Request, error: Exception) -> Response:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at > TELL_EVERY:  # it is the same with every request
            told_at = now
            _log.warning("the store cannot answer: %s", error)
        return Problem(503, "store", str(error), headers={"Retry-After": str(RETRY_AFTER)}).response()

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return Problem(error.status_code, "http", detail, headers=error.headers).response()

    async def validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        parts = [Part(".".join(map(str, one["loc"][1:])) or "body", str(one["msg"])) for one in error.errors()]
        return Problem(422, "invalid", "; ".join(f"{part.path}: {part.problem}" for part in parts), parts).response()

    async def defect(request: Request, error: Exception) -> Response:
        return Problem(500, "internal", f"an internal error, please report it: {type(error).__name__}").response()

    async def gone(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody reads it: the client left before its body was whole

    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Problem, problem)
    app.add_exception_handler(QueryError, query)
    app.add_exception_handler(StoreProblem, store)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(Exception, defect)
