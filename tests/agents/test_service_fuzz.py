"""The whole service, its doors, keys and real sinks under fuzz: never an internal error, never past a key.

And whatever was acknowledged is kept: of the sink in this process, a state that is opened again has it; of Kafka, the
log has each record, and the workers' own parsers refuse none of them.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import zlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from agents.engine import Engine
from agents.kafka.item_changes import ItemRecords
from agents.kafka.reading import read_log, read_topic
from agents.kafka.topics import create_topics
from agents.serving.embedded import doors, embedded_service
from agents.serving.kafka_events import KafkaEvents
from agents.serving.learning import JOURNAL, Durable, EmbeddedStore, Learner
from agents.settings import Settings
from agents.state.journal import Journal
from cco.config import make_config
from cco.events import EventParser
from cco.vocabulary import Vocabulary
from model_sync.metadata import change_problem
from model_sync.service.app import make_service
from model_sync.service.auth import ApiKey
from model_sync.service.models import QUESTION_NAMES
from model_sync.service.universal_recommender_query import AskedQuery
from tests.agents.states import model_of
from tests.servers.kafka import KafkaServer

CONFIG = make_config({"primary": "buy", "indicators": {"buy": {}, "view": {}}, "priors": {"popular": "all"}})
READ, WRITE, BOTH = "read-key-0123456789", "write-key-0123456789", "both-key-0123456789"
KEYS = (
    ApiKey("reader", READ, frozenset({"read"})), ApiKey("writer", WRITE, frozenset({"write"})), ApiKey("both", BOTH),
)  # fmt: skip
SCOPES = {READ: {"read"}, WRITE: {"write"}, BOTH: {"read", "write"}}
NEEDED = {
    "/recommendations": "read", "/queries.json": "read", "/events": "write", "/events.json": "write",
    "/batch/events.json": "write",
}  # fmt: skip
TAKEN = (200, 201, 207)
CHECKS = [  # that of server errors would take for one what says "not possible here", 501
    status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance,
]  # fmt: skip
DEFECT = 500
QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck)}
BOUGHT = {
    "event": "buy", "entityType": "user", "entityId": "u1", "targetEntityType": "item", "targetEntityId": "a",
    "eventTime": "2024-05-01T12:00:00.000Z",
}  # fmt: skip


class Served:
    """A service in this process, on a loop that stays; `accepted` is what its sink took."""

    def __init__(self, app: FastAPI, runner: asyncio.Runner) -> None:
        self.app, self._runner = app, runner
        self.accepted: list[Any] = []
        sink = app.state.service.events
        take: Callable[[Any], Awaitable[list[str | None]]] = sink.accept

        async def accept(records: Any) -> list[str | None]:
            verdicts = await take(records)
            self.accepted += [record for record, verdict in zip(records, verdicts, strict=True) if verdict is None]
            return verdicts

        sink.accept = accept

    def run(self, work: Any) -> Any:
        return self._runner.run(work)

    def send(self, method: str, path: str, content: bytes, headers: dict[str, str]) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, content=content, headers=headers)

        answer: httpx.Response = self.run(send())
        return answer


@contextmanager
def embedded(folder: Path) -> Iterator[Served]:
    """`cco serve --embedded`, with its thread, its journal and its state.

    At the end, what would be there after a kill must be what it has.
    """
    engine = Engine(CONFIG)
    durable = Durable(engine, folder / "state", every=3_600)  # all of it is in the journal
    learner = Learner(engine, durable)
    with asyncio.Runner() as runner:
        served = Served(embedded_service(engine, learner, KEYS), runner)
        learner.start()
        try:
            yield served
            for copy in ("journal", "killed"):
                shutil.copytree(folder / "state", folder / copy)
        finally:
            learner.stop()
    engine.drain()
    with Engine(CONFIG) as again:
        entries = [entry for part in Journal(folder / "journal" / JOURNAL, 0).read() for entry in part]
        at = np.array([entry.at for entry in entries], np.int64)
        assert again.parser.records([entry.record for entry in entries], 1, at).rejections == []
        assert [entry.record for entry in entries] == served.accepted
    with Engine(CONFIG) as again:
        Durable(again, folder / "killed").finish()
        assert model_of(again) == model_of(engine)
        users = engine.users.names(range(len(engine.users)))
        for user in users:
            assert again.whole_history(user) == engine.whole_history(user)
        for item in engine.items.names(range(len(engine.items))):
            assert again.index.properties(item) == engine.index.properties(item)


@contextmanager
def on_kafka(options: Settings) -> Iterator[Served]:
    """`cco serve` beside workers, with an engine in the place of Elasticsearch. At the end the log must have it all."""
    with asyncio.Runner() as runner, Engine(CONFIG) as engine:
        runner.run(create_topics(CONFIG, options))
        sink = KafkaEvents(CONFIG, options)
        app = make_service(CONFIG, EmbeddedStore(engine), sink, KEYS, registry=CollectorRegistry(), doors=doors())
        served = Served(app, runner)
        try:
            yield served
        finally:
            runner.run(sink.close())
    interactions, changes = in_log(options)
    assert interactions + changes == len(served.accepted)


def in_log(options: Settings) -> tuple[int, int]:
    """How many interactions and changes of items there are, none of which a worker would refuse."""
    parser = EventParser(CONFIG, Vocabulary(), Vocabulary(), change_problem)
    interactions = 0
    for chunk in read_log(options, parser):
        assert chunk.rejections == []
        interactions += len(chunk.batch)

    async def read() -> int:
        records, found = ItemRecords(CONFIG), 0
        async for read in read_topic(options, "items"):
            for key, value in zip(read.keys, read.values, strict=True):
                records.decode(key, value)
                found += 1
        return found

    return interactions, asyncio.run(read())


# -- requests -------------------------------------------------------------------------------------------

words = st.sampled_from(["u1", "u2", "a", "b", "buy", "view", "2024-05-01", "é", "\0", "x" * 600, "$delete"]) | st.text(
    max_size=8
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | words
    | st.sampled_from([1e308, -0.0, 2**53, 1_700_000_000, 1_700_000_000_000, "2024-01-01T00:00:00+25:00"])
)  # fmt: skip
values = st.recursive(
    scalars, lambda part: st.lists(part, max_size=3) | st.dictionaries(words, part, max_size=3), max_leaves=10
)
event_names = st.sampled_from(["buy", "view", "$delete", "$set", "$unset", "$clock", "like"])
interactions = st.fixed_dictionaries(
    {"user_id": st.sampled_from(["u1", "u2", "ü", 7]) | scalars, "event_type": event_names | scalars},
    optional={"item_id": words | scalars, "timestamp": scalars, "event_id": values, "weight": scalars, "note": values},
)
of_prediction_io = st.fixed_dictionaries(
    {"event": event_names, "entityType": st.sampled_from(["user", "item"]) | scalars, "entityId": words},
    optional={
        "targetEntityType": st.just("item") | scalars, "targetEntityId": words, "eventTime": scalars,
        "properties": st.dictionaries(words, scalars | st.lists(scalars, max_size=3), max_size=3) | values,
        "eventId": words, "tags": values,
    },
)  # fmt: skip
few = st.sampled_from(["a", "b", "c d", "é/.."])
user_event: dict[str, st.SearchStrategy[Any]] = {
    "user_id": st.sampled_from(["u1", "u2", "ü", 7]), "event_type": st.sampled_from(["buy", "view"]), "item_id": few,
}  # fmt: skip
at_times: dict[str, st.SearchStrategy[Any]] = {"timestamp": st.integers(1_600_000_000, 1_700_000_000)}
sane = st.fixed_dictionaries(user_event, optional={**at_times, "note": values})
changes = st.fixed_dictionaries(
    {"event": st.sampled_from(["$set", "$unset", "$delete"]), "entityType": st.just("item"), "entityId": few},
    optional={"properties": st.dictionaries(st.sampled_from(["p", "q.r", "é"]), scalars, max_size=2)},
)
records = sane | changes | interactions | of_prediction_io
taken = st.fixed_dictionaries(user_event, optional=at_times)  # nothing is wrong with these
taken_by_doors = st.builds(
    lambda user, item: {**BOUGHT, "entityId": user, "targetEntityId": item}, st.sampled_from(["u1", "ü"]), few
) | st.builds(
    lambda item, value: {"event": "$set", "entityType": "item", "entityId": item, "properties": {"p": value}},
    few, st.sampled_from([1, 2.5, True, "é", ["a", "b"]]),
)  # fmt: skip
good_requests = st.one_of(
    st.tuples(st.just("/events"), taken | taken_by_doors | st.lists(taken | taken_by_doors, min_size=1, max_size=5)),
    st.tuples(st.just("/events.json"), taken_by_doors),
    st.tuples(st.just("/batch/events.json"), st.lists(taken_by_doors, min_size=1, max_size=5)),
)
ur_names = [field.alias or name for name, field in AskedQuery.model_fields.items()]
bodies: dict[str, st.SearchStrategy[Any]] = {
    "/recommendations": st.dictionaries(st.sampled_from(QUESTION_NAMES), values, max_size=4) | values,
    "/queries.json": st.dictionaries(st.sampled_from(ur_names), values, max_size=4) | values,
    "/events": st.lists(records, min_size=1, max_size=5) | records | values,
    "/events.json": records | values,
    "/batch/events.json": st.lists(records, max_size=5) | values,
}
requests = st.sampled_from(sorted(bodies)).flatmap(
    lambda path: st.tuples(
        st.just(path),
        st.one_of(*(bodies[path].map(json.dumps).map(str.encode) for _ in range(3)), st.binary(max_size=40)),
        st.sampled_from([READ, *5 * [WRITE, BOTH], None, "unknown-0123456789"]),
        st.sampled_from(["bearer", "x-api-key", "accessKey"]),
    )
)
Asked = tuple[str, bytes, str | None, str]


def check(served: Served, asked: Asked) -> int:
    """One request: its answer has the form of its door, and a key is asked for before anything else."""
    path, content, key, place = asked
    headers, query = {"Content-Type": "application/json"}, ""
    at_door = path.endswith(".json")
    if key is not None and place == "bearer":
        headers["Authorization"] = f"Bearer {key}"
    elif key is not None and (place == "x-api-key" or not at_door):
        headers["X-API-Key"] = key
    elif key is not None:
        query = f"?accessKey={key}"
    before = len(served.accepted)
    answer = served.send("POST", path + query, content, headers)
    status = answer.status_code
    scopes = SCOPES.get(key or "")
    if scopes is None:
        assert status == 401, answer.text
    elif NEEDED[path] not in scopes:
        assert status == 403, answer.text
    else:
        assert status in (*TAKEN, 400, 422), answer.text
    if status not in TAKEN:
        assert len(served.accepted) == before
        told = answer.json()
        assert told["message"] if at_door else told["status"] == status and told["detail"]
    for secret in (READ, WRITE, BOTH):
        assert secret not in answer.text
    return status


ODD = [
    ("/events", b'{"user_id":"u","item_id":"i","event_type":"buy","note":1e400}'),
    ("/events", b'{"user_id":"u","item_id":"i","event_type":"buy","note":"\\ud800"}'),
    ("/events", b'{"user_id":"u","item_id":"i","event_type":"buy","note":[[[[[[[[[[[[[[1]]]]]]]]]]]]]]}'),
    ("/events", b'{"user_id":1e3,"item_id":-0.0,"event_type":"buy"}'),
    ("/events", b'{"user_id":1180591620717411303424,"item_id":"i","event_type":"buy"}'),
    ("/events", b'{"user_id":"u","user":"v","item_id":"i","item":"j","event_type":"buy"}'),
    ("/events", b'{"user_id":"u","user_id":"v","item_id":"i","event_type":"buy"}'),
    ("/events.json", b'{"event":"$unset","entityType":"item","entityId":"i","properties":{"p":1}}'),
    ("/events.json", b'{"event":"$set","entityType":"item","entityId":"i","properties":{"p":1e400}}'),
]


def fuzz(served: Served, examples: int) -> None:
    """Many requests, odd ones first; and good ones, each of which must be taken."""
    for path, content in ODD:
        check(served, (path, content, BOTH, "bearer"))

    @settings(max_examples=examples, **QUICK)  # type: ignore[arg-type]
    @given(requests)
    def one(asked: Asked) -> None:
        check(served, asked)

    @settings(max_examples=examples // 5, **QUICK)  # type: ignore[arg-type]
    @given(good_requests)
    def good(asked: tuple[str, Any]) -> None:
        path, body = asked
        wanted = served.accepted + (body if isinstance(body, list) else [body])
        assert check(served, (path, json.dumps(body).encode(), WRITE, "bearer")) in TAKEN
        assert served.accepted == wanted

    one()
    good()


def test_embedded(tmp_path: Path) -> None:
    with embedded(tmp_path) as served:
        fuzz(served, 300)


def test_on_kafka(kafka: KafkaServer, topic_prefix: str) -> None:
    with on_kafka(Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix)) as served:
        fuzz(served, 250)


GOOD = {
    "/events": {"user_id": "u", "item_id": "i", "event_type": "buy", "timestamp": 1_700_000_000, "note": {"a": [1.5]}},
    "/events.json": {**BOUGHT, "properties": {"a": [1, "b"]}, "eventId": "mine"},
    "/batch/events.json": [BOUGHT, {"event": "$set", "entityType": "item", "entityId": "i", "properties": {"p": 1}}],
}


def test_damage_to_good_events(kafka: KafkaServer, topic_prefix: str, tmp_path: Path) -> None:
    """Both sinks say the same of it."""
    with (
        embedded(tmp_path) as here,
        on_kafka(Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix)) as there,
    ):

        @settings(max_examples=200, **QUICK)  # type: ignore[arg-type]
        @given(st.sampled_from(sorted(GOOD)), st.data())
        def one(path: str, data: st.DataObject) -> None:
            good = json.dumps(GOOD[path]).encode()
            at = data.draw(st.integers(0, len(good) - 1))
            until = data.draw(st.integers(at, min(at + 6, len(good))))
            content = good[:at] + data.draw(st.binary(max_size=3)) + good[until:]
            assert len({check(served, (path, content, WRITE, "bearer")) for served in (here, there)}) == 1

        one()
        assert here.accepted == there.accepted and len(here.accepted) > 20


# -- the doors, as the OpenAPI describes them -------------------------------------------------------------


def of_engine(keys: tuple[ApiKey, ...]) -> FastAPI:
    """The service with its doors over an engine, whose events are learned in another thread."""
    engine = Engine(CONFIG)
    learner = Learner(engine, None)
    app = embedded_service(engine, learner, keys)
    _LEARNERS.append(learner)
    return app


_LEARNERS: list[Learner] = []
OPEN = schemathesis.openapi.from_asgi("/openapi.json", of_engine(()))
LOCKED = schemathesis.openapi.from_asgi("/openapi.json", of_engine(KEYS))


@pytest.fixture(scope="module")
def learning() -> Iterator[None]:
    for learner in _LEARNERS:
        learner.start()
    yield
    for learner in _LEARNERS:
        learner.stop()


@OPEN.parametrize()
@settings(max_examples=25, **QUICK)  # type: ignore[arg-type]
def test_doors_are_as_the_openapi_says(learning: None, case: schemathesis.Case) -> None:
    assert case.call_and_validate(checks=CHECKS).status_code != DEFECT


@LOCKED.parametrize()
@settings(max_examples=25, **QUICK)  # type: ignore[arg-type]
def test_doors_with_keys_too(learning: None, case: schemathesis.Case) -> None:
    """Each key has its turn; what it may not do is refused as the OpenAPI says."""
    key = (READ, WRITE, BOTH, None, "unknown-0123456789")[zlib.crc32(repr((case.query, case.body)).encode()) % 5]
    for place, names in ((case.query, ("accessKey",)), (case.headers, ("Authorization", "X-API-Key"))):
        for name in names:
            if place:
                place.pop(name, None)
    response = case.call_and_validate(checks=CHECKS, headers={} if key is None else {"X-API-Key": key})
    status = response.status_code
    assert status != DEFECT
    if status in (404, 405) or case.path in ("/", "/health", "/ready"):  # nothing is done there, or for anybody
        return
    if key not in SCOPES:
        assert status == 401
    elif case.path in NEEDED and case.method == "POST" and NEEDED[case.path] not in SCOPES[key]:
        assert status == 403
