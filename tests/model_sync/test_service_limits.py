"""What the service refuses before it reads it, and how many requests it answers at a time; keys that are possible."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from model_sync.service.auth import ApiKey, KeyProblem, Keys
from model_sync.service.limits import Limits, deeper_than
from model_sync.service.prediction_io import prediction_io_router
from model_sync.service.universal_recommender import universal_recommender
from tests.model_sync.service_world import KEYS, World

JSON = [(b"content-type", b"application/json")]


def answered(
    world: World, parts: Sequence[bytes], headers: Sequence[tuple[bytes, bytes]] = (), path: str = "/recommendations"
) -> tuple[int, dict[str, str], Any, int]:
    """(status, headers, decoded body, parts of the body that the service asked for); after them nothing comes."""
    read, sent = 0, list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        nonlocal read
        if read == len(parts):
            await asyncio.Event().wait()
        read += 1
        return {"type": "http.request", "body": parts[read - 1], "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": [*JSON, *headers],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip

    async def run() -> None:
        async with asyncio.timeout(20):
            await world.app(scope, receive, send)

    asyncio.run(run())
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, json.loads(sent[1]["body"]), read


def test_a_large_body_is_refused_by_its_length_unread() -> None:
    status, headers, problem, read = answered(World(), [b"{"], [(b"content-length", b"99999999999999999999999")])
    assert (status, read, headers["connection"]) == (413, 0, "close")
    assert problem["errors"][0]["path"] == "body" and str(2 << 20) in problem["detail"]


def test_a_body_that_grows_too_large_is_refused_at_once() -> None:
    world = World(limits=Limits(body=1_000))
    status, _, _, read = answered(world, [b"x" * 300] * 100)
    assert (status, read) == (413, 4)


@pytest.mark.parametrize("path", ["/recommendations", "/events", "/events.json", "/batch/events.json", "/queries.json"])
def test_without_a_key_the_body_is_not_read(path: str) -> None:
    world = World(KEYS, doors=(prediction_io_router, universal_recommender()))
    status, _, _, read = answered(world, [b"{"] * 10, path=path)
    assert (status, read) == (401, 0)


@pytest.mark.parametrize("path", ["/nowhere", "/health", "/ready"])
def test_what_nobody_takes_is_not_read(path: str) -> None:
    status, _, _, read = answered(World(), [b"{"] * 10, path=path)
    assert (status, read) == (405 if path != "/nowhere" else 404, 0)


@pytest.mark.parametrize("path", ["/recommendations", "/events", "/metrics", "/health"])
@pytest.mark.parametrize("odd", ["\n", "\r\n", "\0", "\x7f", "/\n"])
def test_a_path_with_a_line_break_is_no_way_around_a_key(path: str, odd: str) -> None:
    world = World(KEYS)
    record = b'{"user_id":"u","event_type":"$delete"}'
    status, _, _, read = answered(world, [record], path=path + odd)
    assert (status, read, world.sink.taken) == (404, 0, [])


def test_events_that_wait_keep_nobody_from_asking() -> None:
    world = World(limits=Limits(requests=2))

    async def run() -> tuple[int, int]:
        waiting = asyncio.Event()

        async def accept(records: Sequence[Any]) -> list[str | None]:
            await waiting.wait()
            return [None for _ in records]

        world.sink.accept = accept  # type: ignore[method-assign]
        async with world.client() as client:
            first = [asyncio.create_task(client.post("/events", json={"user_id": "u"})) for _ in range(2)]
            await asyncio.sleep(0.1)
            refused = (await client.post("/events", json={"user_id": "u"})).status_code
            asked = (await client.post("/recommendations", json={})).status_code
            waiting.set()
            await asyncio.gather(*first)
        return refused, asked

    assert asyncio.run(run()) == (503, 200)


def test_however_many_ask_whether_it_is_ready_the_store_is_asked_once() -> None:
    world, asked = World(), list[int]()
    problem = world.store.problem

    async def looked() -> str | None:
        asked.append(1)
        return await problem()

    world.store.problem = looked  # type: ignore[method-assign]

    async def run() -> set[int]:
        async with world.client() as client:
            return {answer.status_code for answer in await asyncio.gather(*(client.get("/ready") for _ in range(50)))}

    assert (asyncio.run(run()), len(asked)) == ({200}, 1)


def test_a_body_that_does_not_come_is_given_up() -> None:
    status, headers, problem, _ = answered(World(limits=Limits(reading=0.05)), [b"{"])
    assert (status, headers["connection"]) == (408, "close")
    assert "0.05 s" in problem["detail"]


@pytest.mark.parametrize("path", ["/recommendations", "/events"])
def test_deep_json_is_refused(path: str) -> None:
    world = World()
    for deep in (b"[" * 20 + b"]" * 20, b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b"[" * 500_000):
        response = world.request("POST", path, content=deep, headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["type"]) == (400, "urn:cco:problem:depth")
    assert not world.sink.taken


def test_depth_is_of_brackets_outside_of_texts() -> None:
    flat = json.dumps([{"a": "[[[[[[[{{{{{"}, {"b": '"[[['}, {"c": "\\[[[["}, {"d": "\\\\"}] * 30).encode()
    assert not deeper_than(2, flat) and deeper_than(1, flat)
    assert deeper_than(3, b'["]]]]", [[[1]]]]')  # closing ones in texts do not count either
    assert deeper_than(5, b'{"a\\"":[[[[[[[[')
    assert not deeper_than(2, b'"[[[[["')
    hostile = b'"' + b'\\"' * 1_000_000  # a text that never ends must not be looked for from each of its quotes
    began = time.perf_counter()
    deeper_than(1, b"[[" + hostile)
    assert time.perf_counter() - began < 2


def test_more_requests_than_it_takes_are_asked_to_come_again() -> None:
    world = World(limits=Limits(requests=3))

    async def run() -> tuple[list[int], Any, int, list[int]]:
        world.store.gate = asyncio.Event()
        async with world.client() as client:
            first = [asyncio.create_task(client.post("/recommendations", json={})) for _ in range(3)]
            async with asyncio.timeout(20):
                while world.store.searching < 3:
                    await asyncio.sleep(0)
                refused = await client.post("/recommendations", json={})
                healthy = (await client.get("/health")).status_code
                world.store.gate.set()
                done = [(await task).status_code for task in first]
                again = [(await client.post("/recommendations", json={})).status_code for _ in range(4)]
        return done, refused, healthy, again

    done, refused, healthy, again = asyncio.run(run())
    assert (refused.status_code, refused.headers["retry-after"], healthy) == (503, "1", 200)
    assert refused.json()["type"] == "urn:cco:problem:busy"
    assert (done, again) == ([200] * 3, [200] * 4)


def test_keys_that_are_not_possible() -> None:
    good = "0123456789abcdef"
    assert good not in repr(ApiKey("a", good))
    for key, scopes in (("short", {"read"}), ("x" * 1_025, {"read"}), (good + " ", {"read"}), (good, set())):
        with pytest.raises(KeyProblem) as caught:
            ApiKey("a", key, frozenset(scopes))  # type: ignore[arg-type]
        assert key not in str(caught.value)
    for keys in ([ApiKey("a", good), ApiKey("b", good)], [ApiKey("a", good), ApiKey("a", good * 2)]):
        with pytest.raises(KeyProblem, match="there twice"):
            Keys(keys)
    keys_ = Keys([ApiKey("a", good), ApiKey("b", good * 2)])
    assert [getattr(keys_.find(key), "name", None) for key in (good, good * 2, good[:-1], "\udc80", None)] == [
        "a", "b", None, None, None,
    ]  # fmt: skip
