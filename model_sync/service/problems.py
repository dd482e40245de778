"""What can be wrong with a request, as problem details (RFC 9457): one sentence, and the path of the offending part."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

import msgspec
from starlette.responses import Response

from model_sync.contract import QueryError

MEDIA_TYPE = "application/problem+json"
BODY = "body"  # the path of the body as a whole

_AT = re.compile(r"^(?P<what>.*?)(?: - at (?P<key>`key` in )?`\$(?P<path>.*)`)?$", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_OF_QUERY = {"weights": "indicators", "offset": "from", "num": "num"}  # the request's words for the query's


class Part(msgspec.Struct):
    """One part of a request that is wrong."""

    path: str
    problem: str


class ProblemDetails(msgspec.Struct):
    """Why a request was not answered."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[Part] = []


class Problem(Exception):
    """Ends a request with problem details. `kind` is the last word of their type."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        errors: Sequence[Part] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail = status, kind, detail
        self.errors, self.headers = list(errors), dict(headers or {})

    def body(self) -> bytes:
        """The problem details as JSON."""
        title = HTTPStatus(self.status).phrase
        return msgspec.json.encode(
            ProblemDetails(f"urn:cco:problem:{self.kind}", title, self.status, self.detail, self.errors)
        )

    def response(self) -> Response:
        """The answer that says it."""
        return Response(self.body(), self.status, self.headers, MEDIA_TYPE)


def invalid(path: str, problem: str) -> Problem:
    """For one part of the body that is not possible."""
    return Problem(422, "invalid", f"{path}: {problem}", [Part(path, problem)])


def of_query(error: QueryError) -> Problem:
    """For a question that cannot be answered, in the request's own words."""
    head, dot, rest = error.path.partition(".")
    return invalid(_OF_QUERY.get(head, head) + dot + rest, error.problem)


def of_decoding(error: Exception, names: Sequence[str] = (), place: Callable[[str], str] = str) -> Problem:
    """For a body that is no JSON (400), or not what it should be (422). `names` are the fields known at its top.

    `place`: the path to show for the decoder's.
    """
    text = str(error)
    if isinstance(error, RecursionError):
        return Problem(400, "json", "the body is nested too deeply", [Part(BODY, "is nested too deeply")])
    if not isinstance(error, msgspec.ValidationError):
        return Problem(400, "json", f"the body is not valid JSON: {text}", [Part(BODY, text)])
    found = _AT.match(text)
    what, path = (text, "") if found is None else (found["what"], (found["path"] or "").lstrip("."))
    unknown = _UNKNOWN.fullmatch(what)
    if unknown is not None:
        path = f"{path}.{unknown[1]}" if path else unknown[1]
        near = difflib.get_close_matches(unknown[1], names, 1) if "." not in path and "[" not in path else []
        what = f"there is no such field; did you mean {near[0]!r}?" if near else "there is no such field"
    elif found is not None and found["key"]:
        what = f"a name in it: {what}"
    return invalid(place(path) or BODY, what.replace("`", '"'))
