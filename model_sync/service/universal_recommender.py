"""The door of the Universal Recommender: POST /queries.json, so that programs that ask one work unchanged.

Answers and problems have its form, {"itemScores": [...]} and {"message": ...}; the recommendation_id is a header.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cco.vocabulary import id_problem
from model_sync.contract import Hit, Query
from model_sync.service.app import body_of
from model_sync.service.prediction_io import PROBLEMS, check_access, described, in_its_form, json_answer
from model_sync.service.routes import PlainRoute
from model_sync.service.service import Service, new_id
from model_sync.service.universal_recommender_query import AskedQuery, Defaults, parse_query, ranks_of, translate

ID_HEADER = "X-Recommendation-Id"
_NOBODY: dict[str, list[str]] = {}


def universal_recommender(
    defaults: Defaults | None = None, *, needs_key: bool = True
) -> Callable[[Service], APIRouter]:
    """A door for `make_service`. The SDK sends queries without a key: `needs_key` false answers them all the same."""
    used = defaults or Defaults()

    def router(service: Service) -> APIRouter:
        return _router(service, used, needs_key)

    return router


def _router(service: Service, defaults: Defaults, needs_key: bool) -> APIRouter:
    router = APIRouter(tags=["Universal Recommender"], route_class=PlainRoute)

    @router.post("/queries.json", summary="Items for a user, an item or a set", openapi_extra=_QUERIES)
    @in_its_form
    async def queries(request: Request) -> Response:
        if needs_key:
            check_access(request, service.keys, "read")
        # for {} the SDK sends no body, and so no media type
        is_empty = request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers
        asked = parse_query(b"" if is_empty else await body_of(request))
        known = asked.user and id_problem(asked.user) is None
        history = await service.store.history(asked.user) if asked.user and known else _NOBODY
        query = translate(asked, history, service.config, service.now(), defaults)
        if asked.num == 0:
            return json_answer(200, {"itemScores": []}, {ID_HEADER: new_id()})
        given, hits = await service.search(query)
        scores = [{"item": hit.item, "score": hit.score} for hit in hits]
        if asked.withRanks:
            scores = [{**score, "ranks": of} for score, of in zip(scores, await _ranks(service, hits), strict=True)]
        return json_answer(200, {"itemScores": scores}, {ID_HEADER: given})

    return router


async def _ranks(service: Service, hits: Sequence[Hit]) -> list[dict[str, float]]:
    """The priors and the rank of each hit. A prior takes a search of these items alone, whose backfill is its value."""
    if not hits:
        return []
    items, names = tuple(hit.item for hit in hits), service.config.prior_names
    asked = Query(candidates=items, num=len(items), fields=())
    found = await asyncio.gather(*(service.store.search(replace(asked, backfill=name)) for name in names))
    values = [{hit.item: hit.backfill for hit in of_prior} for of_prior in found]
    return [
        ranks_of(
            service.config.items.rank,
            hit.properties,
            {name: of_prior.get(hit.item, 0.0) for name, of_prior in zip(names, values, strict=True)},
        )
        for hit in hits
    ]


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema without references, which would point into another document."""
    if isinstance(schema, dict):
        reference = schema.get("$ref")
        if reference is not None:
            return _inlined(definitions[reference.rpartition("/")[2]], definitions)
        return {name: _inlined(part, definitions) for name, part in schema.items() if name != "$defs"}
    return [_inlined(part, definitions) for part in schema] if isinstance(schema, list) else schema


_SCHEMA = AskedQuery.model_json_schema()
_EXAMPLES = {
    "user": {"value": {"user": "u1", "num": 4}},
    "item": {"value": {"item": "i9", "fields": [{"name": "category", "values": ["Tablets"], "bias": -1}]}},
    "basket": {"value": {"itemSet": ["i1", "i2"], "blacklistItems": ["i3"]}},
}
_QUERIES = described(
    {"itemScores": [{"item": "i9", "score": 12.5}]},
    body={"schema": _inlined(_SCHEMA, _SCHEMA.get("$defs", {})), "examples": _EXAMPLES},
    problems=PROBLEMS,
)
