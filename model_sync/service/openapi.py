"""The OpenAPI of the service, made from the very types that requests are decoded into."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cco.config import Config
from model_sync.service.models import (
    ANSWER_EXAMPLE,
    EVENT_EXAMPLES,
    MAX_RECORDS,
    QUESTION_EXAMPLES,
    Accepted,
    Answer,
    Question,
    Verdict,
)
from model_sync.service.problems import MEDIA_TYPE, ProblemDetails

_TYPES = (Question, Answer, Accepted, Verdict, ProblemDetails)
_PROBLEMS = {
    400: "The body is no JSON, or nested too deeply.",
    401: "No API key, or one that is not known.",
    403: "The API key does not allow this.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not said to be JSON.",
    422: "Something in the body is not possible; `errors` says where.",
    501: "This service takes no events.",
    503: "Too many requests, or the store is away: try again after `Retry-After` seconds.",
}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _answered(name: str, description: str, example: Any = None) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": _ref(name)}
    if example is not None:
        media["example"] = example
    return {"description": description, "content": {"application/json": media}}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {
        status: {"description": _PROBLEMS[status], "content": {MEDIA_TYPE: {"schema": _ref("ProblemDetails")}}}
        for status in statuses
    }


_RECORD = {
    "type": "object",
    "description": "An interaction (`user_id`, `item_id`, `event_type`, `timestamp`), or PredictionIO's shape.",
}
_VERDICTS: dict[int | str, dict[str, Any]] = {
    200: _answered("Verdict", "All is well."),
    503: _answered("Verdict", "It is not; `problems` says why."),
}
DOCUMENTED: dict[str, dict[str, Any]] = {
    "/recommendations": {
        "operation_id": "recommend",
        "responses": {
            200: _answered("Answer", "The best items, best first.", ANSWER_EXAMPLE),
            **_problems(400, 401, 403, 408, 413, 415, 422, 503),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _ref("Question"), "examples": QUESTION_EXAMPLES}},
            }
        },
    },
    "/events": {
        "operation_id": "send_events",
        "responses": {
            200: _answered("Accepted", "All records were accepted.", {"accepted": 2, "rejected": []}),
            207: _answered("Accepted", "Some were; `rejected` names the others."),
            **_problems(400, 401, 403, 408, 413, 415, 422, 501, 503),
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {
                    "application/json": {
                        "schema": {
                            "oneOf": [
                                _RECORD,
                                {"type": "array", "items": _RECORD, "minItems": 1, "maxItems": MAX_RECORDS},
                            ]
                        },
                        "examples": EVENT_EXAMPLES,
                    }
                },
            }
        },
    },
    "/health": {"operation_id": "health", "responses": _VERDICTS},
    "/ready": {"operation_id": "ready", "responses": _VERDICTS},
    "/metrics": {
        "operation_id": "metrics",
        "responses": {
            200: {
                "description": "Metrics in Prometheus' or OpenMetrics' text format.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **_problems(401, 403),
        },
    },
}


def describe(app: FastAPI, config: Config, keys: bool) -> None:
    """Give `app` its OpenAPI: with the indicators and priors of this configuration, and keys where they are needed."""
    _, schemas = msgspec.json.schema_components(_TYPES, ref_template="#/components/schemas/{name}")
    _name_properties(schemas["Question"]["properties"], config)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            components = document.setdefault("components", {})
            components.setdefault("schemas", {}).update(schemas)
            if keys:
                components["securitySchemes"] = {
                    "bearer": {"type": "http", "scheme": "bearer"},
                    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                }
                for path in ("/recommendations", "/events", "/metrics"):
                    for operation in document["paths"][path].values():
                        operation["security"] = [{"bearer": []}, {"header": []}]
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _name_properties(properties: dict[str, Any], config: Config) -> None:
    """Only names of this configuration are possible where names of indicators and priors are asked for."""
    for field, names in (
        ("history", config.indicator_names),
        ("indicators", config.indicator_names),
        ("priors", config.prior_names),
    ):
        for schema in (properties[field], *properties[field].get("anyOf", ())):
            if schema.get("type") == "object":
                schema["propertyNames"] = {"enum": list(names)}
    properties["backfill"]["enum"] = [*config.prior_names, "random", "rank", "auto", "none"]
