"""The door of Apache PredictionIO's event server, so that programs with its SDKs work unchanged.

POST /events.json        one event
POST /batch/events.json  up to 50 events
GET  /                   whether the server is there

`accessKey` in the query, or the user name of Basic authentication, is one of the service's API keys, with the scope
"write". Records go to the sink as they came. Answers have PredictionIO's form: {"eventId": ...}, or {"message": ...}
for what is wrong; what is refused before a route is reached (too large, too deep) is a problem as everywhere else.
"""

from __future__ import annotations

import base64
import binascii
import functools
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from model_sync.contract import QueryError
from model_sync.service.app import RETRY_AFTER, body_of
from model_sync.service.auth import Keys, Scope, presented_key
from model_sync.service.models import decode_any, encode
from model_sync.service.problems import MEDIA_TYPE, Problem, of_decoding
from model_sync.service.routes import PlainRoute
from model_sync.service.service import Service
from model_sync.service.store import StoreProblem

MAX_BATCH = 50  # events, as PredictionIO has it
MAX_EVENT_ID = 512  # characters
_NOT_KEPT = (
    "events are not kept one by one, so they can neither be read nor deleted: an indicator's removed_by event types"
    " take an interaction back, and $delete of a user deletes all of that user's"
)
Handler = Callable[[Request], Awaitable[Response]]


def in_its_form(answer: Handler) -> Handler:
    """A route whose problems have PredictionIO's form; what is wrong with a request is 400 there, never 422."""

    @functools.wraps(answer)
    async def answered(request: Request) -> Response:
        try:
            return await answer(request)
        except QueryError as error:
            problem = Problem(400, "invalid", str(error))
        except StoreProblem as error:
            problem = Problem(503, "store", str(error), headers={"Retry-After": str(RETRY_AFTER)})
        except Problem as error:
            problem = error
        status = HTTPStatus.BAD_REQUEST if problem.status == HTTPStatus.UNPROCESSABLE_ENTITY else problem.status
        return json_answer(status, {"message": problem.detail}, problem.headers)

    return answered


def access_key(request: Request) -> str | None:
    """The key of a request in one of PredictionIO's places, or in the service's own; None if there is none."""
    given = request.query_params.get("accessKey")
    if given is not None:
        return given
    kind, _, value = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return presented_key(request.headers)
    try:
        return base64.b64decode(value.strip(), validate=True).decode().partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        return ""  # a key that nobody has


def check_access(request: Request, keys: Keys, scope: Scope) -> None:
    """Raises Problem as `Keys.check` does, in PredictionIO's words where it has some."""
    key = access_key(request)
    try:
        keys.check(key, scope)
    except Problem as problem:
        if problem.status != HTTPStatus.UNAUTHORIZED:
            raise
        text = "Missing accessKey." if key is None else "Invalid accessKey."
        raise Problem(problem.status, problem.kind, text, headers=problem.headers) from None


def prediction_io_router(service: Service) -> APIRouter:
    """The routes of the event server, a door for `make_service`."""
    router = APIRouter(tags=["PredictionIO"], route_class=PlainRoute)

    @router.get("/", summary="Whether the server is there", openapi_extra=_STATUS)
    async def status() -> Response:
        return json_answer(HTTPStatus.OK, {"status": "alive"})

    @router.post("/events.json", status_code=201, summary="One event", openapi_extra=_EVENT)
    @in_its_form
    async def event(request: Request) -> Response:
        outcome = (await _accept(service, [await _body(request, service.keys)]))[0]
        return json_answer(outcome.pop("status"), outcome)

    @router.post("/batch/events.json", summary=f"Up to {MAX_BATCH} events", openapi_extra=_BATCH)
    @in_its_form
    async def batch(request: Request) -> Response:
        records = await _body(request, service.keys)
        if not isinstance(records, list):
            raise Problem(400, "invalid", "the body must be a list of events")
        if len(records) > MAX_BATCH:
            raise Problem(400, "invalid", f"Batch request must have less than or equal to {MAX_BATCH} events")
        return json_answer(HTTPStatus.OK, await _accept(service, records))

    @in_its_form
    async def not_kept(request: Request) -> Response:
        check_access(request, service.keys, "write")
        raise Problem(501, "events", _NOT_KEPT)

    for method, path, extra in (
        ("GET", "/events.json", _LIST),
        ("GET", "/events/{event_id:path}.json", _BY_ID),
        ("DELETE", "/events/{event_id:path}.json", _BY_ID),
    ):
        router.add_api_route(
            path,
            not_kept,
            methods=[method],
            status_code=501,
            summary="Not possible here",
            operation_id=f"prediction_io_{method}_{'event' if extra is _BY_ID else 'events'}",
            openapi_extra=extra,
        )
    return router


async def _body(request: Request, keys: Keys) -> Any:
    """What the body says. Raises Problem."""
    check_access(request, keys, "write")
    if "channel" in request.query_params:
        raise Problem(400, "invalid", "Invalid channel: there are no channels here; leave it out")
    try:
        return decode_any(await body_of(request))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise of_decoding(error) from None


async def _accept(service: Service, records: Sequence[Any]) -> list[dict[str, Any]]:
    """What became of each record: {"status": 201, "eventId"} or {"status": 400, "message"}.

    Raises Problem and StoreProblem.
    """
    outcomes: list[dict[str, Any]] = []
    sent: list[tuple[int, Mapping[str, Any]]] = []
    for k, record in enumerate(records):
        problem = _problem(record)
        if problem is not None:
            outcomes.append({"status": 400, "message": problem})
            continue
        outcomes.append({"status": 201, "eventId": record.get("eventId") or uuid.uuid4().hex})
        if not _without_effect(record):
            sent.append((k, record))
    if sent:
        reasons = await service.accept([record for _, record in sent])
        for (k, _), reason in zip(sent, reasons, strict=True):
            if reason is not None:
                outcomes[k] = {"status": 400, "message": reason}
    return outcomes


def _problem(record: object) -> str | None:
    """What PredictionIO refuses before it looks closer; the rest is the parser's."""
    if not isinstance(record, dict):
        return "an event must be a JSON object"
    for name in ("event", "entityType", "entityId"):
        if record.get(name) in (None, ""):
            return f"field {name} is required"
    event_id = record.get("eventId")
    if event_id is not None and (not isinstance(event_id, str) or len(event_id) > MAX_EVENT_ID):
        return f"eventId must be text of at most {MAX_EVENT_ID} characters"
    return None


def _without_effect(record: Mapping[str, Any]) -> bool:
    """Whether it is accepted, so that programs that send it work, and means nothing here.

    That is properties of a user, which the Universal Recommender does not use either, and no properties of an item.
    """
    kind, event = record["entityType"], record["event"]
    return (kind == "user" and event in ("$set", "$unset")) or (
        kind == "item" and event == "$set" and record.get("properties") in (None, {})
    )


def json_answer(status: int, content: object, headers: Mapping[str, str] | None = None) -> Response:
    """A value as JSON."""
    return Response(encode(content), status, headers, "application/json")


def described(
    answer: object, *, status: int = 200, body: Mapping[str, object] | None = None, problems: Sequence[int] = ()
) -> dict[str, Any]:
    """What FastAPI does not find out by itself: the body (of OpenAPI's form), an example of the answer, problems."""
    of_problem = {
        "description": "What is wrong",
        "content": {
            "application/json": {"schema": _MESSAGE, "example": {"message": "user: Input should be a valid string"}}
        },
    }
    found: dict[str, Any] = {"parameters": [_KEY], "responses": {str(code): of_problem for code in problems}}
    if answer is not None:
        content = {"application/json": {"schema": {}, "example": answer}}
        found["responses"][str(status)] = {"description": "Successful Response", "content": content}
    if body is not None:
        found["requestBody"] = {"content": {"application/json": body}}
    return found


_KEY = {"name": "accessKey", "in": "query", "schema": {"type": "string"}, "description": "An API key."}
_MESSAGE = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}
PROBLEMS = (400, 401, 403, 408, 413, 415, 501, 503)
_EXAMPLE = {
    "event": "purchase",
    "entityType": "user",
    "entityId": "u1",
    "targetEntityType": "item",
    "targetEntityId": "i9",
    "eventTime": "2024-05-01T12:00:00.000Z",
}
_RECORD = {
    "type": "object",
    "required": ["event", "entityType", "entityId"],
    "properties": {
        "event": {"type": "string"},
        "entityType": {"enum": ["user", "item"]},
        "entityId": {"type": "string"},
        "targetEntityType": {"type": "string"},
        "targetEntityId": {"type": "string"},
        "eventTime": {"type": "string", "format": "date-time"},
        "properties": {"type": "object"},
        "eventId": {"type": "string", "maxLength": MAX_EVENT_ID},
    },
}
_ACCEPTED = {"eventId": "5f0c9a1e7d6b4c3a8e2f1b0d9c8a7e6f"}
_STATUS = described({"status": "alive"})
_EVENT = described(_ACCEPTED, status=201, body={"schema": _RECORD, "example": _EXAMPLE}, problems=PROBLEMS)
_BATCH = described(
    [{"status": 201, **_ACCEPTED}, {"status": 400, "message": "field event is required"}],
    body={"schema": {"type": "array", "maxItems": MAX_BATCH, "items": _RECORD}, "example": [_EXAMPLE]},
    problems=PROBLEMS,
)
_LIST = described(None, problems=(401, 403, 501, 503))
_BY_ID = described(None, problems=(401, 403, 501, 503))
_BY_ID["parameters"].append({"name": "event_id", "in": "path", "required": True, "schema": {"type": "string"}})
_BY_ID["responses"]["404"] = {
    "description": "No path has control characters.",
    "content": {MEDIA_TYPE: {"schema": {"type": "object"}}},
}
