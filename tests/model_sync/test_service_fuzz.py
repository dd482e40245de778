"""Whatever is sent, the answer is what the OpenAPI says, and never an internal error."""

from __future__ import annotations

import json
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from model_sync.service.models import QUESTION_NAMES
from tests.model_sync.service_world import World

WORLD = World()
SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", WORLD.app)
CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance,
    response_schema_conformance,
]  # fmt: skip
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

scalars: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(
        ["u", "buy", "view", "2024-01-01", "phone", 1e308, -0.0, 2**53, 10**30, "\ud800", "\0"]
    )
)  # fmt: skip
names = st.sampled_from([*QUESTION_NAMES, "buy", "view", "field", "values", "min", "max", "factor", "match"]) | st.text(
    max_size=5
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
questions = st.dictionaries(st.sampled_from(QUESTION_NAMES), values, max_size=4)


@SCHEMA.parametrize()
@QUICK
def test_the_service_is_as_its_openapi_says(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=CHECKS)


def send(path: str, content: bytes) -> int:
    response = WORLD.request("POST", path, content=content, headers={"Content-Type": "application/json"})
    if response.status_code not in (200, 207):
        problem = response.json()
        assert problem["status"] == response.status_code and problem["detail"]
    return response.status_code


@pytest.mark.parametrize("path", ["/recommendations", "/events"])
@settings(max_examples=150, deadline=None)
@given(
    st.one_of(st.binary(max_size=60), questions.map(json.dumps).map(str.encode), values.map(json.dumps).map(str.encode))
)
def test_no_body_makes_an_internal_error(path: str, content: bytes) -> None:
    assert send(path, content) in (200, 207, 400, 422)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_a_good_body_does_either(data: st.DataObject) -> None:
    good = json.dumps(
        {
            "user": "u", "num": 5, "include": [{"field": "category", "values": ["device", 1, True]}],
            "ranges": [{"field": "price", "min": 1, "max": 5e2}], "boost": [{"field": "a", "values": [1], "factor": 2}],
            "indicators": {"buy": 1.5}, "current_date": "2024-01-01T00:00:00Z", "explain": True,
        }
    ).encode()  # fmt: skip
    at = data.draw(st.integers(0, len(good) - 1))
    until = data.draw(st.integers(at, min(at + 8, len(good))))
    assert send("/recommendations", good[:at] + data.draw(st.binary(max_size=3)) + good[until:]) in (200, 400, 422)
