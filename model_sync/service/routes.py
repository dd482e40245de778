"""Routes of endpoints that read the request themselves and answer a response."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class PlainRoute(APIRoute):
    """Calls its endpoint with the request, or with nothing, and is described like any other.

    FastAPI would look at each request for parameters, a body and dependencies, of which there are none here.
    """

    def get_route_handler(self) -> Handler:
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        if inspect.signature(endpoint).parameters:
            return endpoint

        async def without(request: Request) -> Response:
            return await endpoint()

        return without
