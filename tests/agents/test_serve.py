"""`cco serve --embedded`: answers of the engine over HTTP, and nothing acknowledged is lost by a kill -9."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from agents.cli.main import SERVE_PACKAGES, main
from agents.engine import Engine
from agents.replay import replay
from agents.serving.embedded import BackgroundServer, embedded_service
from agents.serving.learning import Durable, Learner
from agents.state.errors import StateError
from cco.config import parse_config
from tests.agents.states import ROOT, model_of, until
from tests.agents.test_without_kafka import SCRIPT

TOML = """
primary = "purchase"
max_staleness = 1
[indicators.purchase]
removed_by = ["return"]
[indicators.view]
[priors]
hot = "90d"
"""
CONFIG = parse_config(TOML, "cco.toml")
TAKEN = (200, 207, 422)  # all, some or none of the records were good
SEED = int(os.environ.get("CCO_SERVE_SEED", "20261123"))


def made_up(number: int, chance: random.Random) -> list[dict[str, Any]]:
    """Interactions, deletions and changes of items."""
    found: list[dict[str, Any]] = []
    for k in range(number):
        user, item = f"u{int(40 * chance.random() ** 2)}", f"i{int(25 * chance.random() ** 2)}"
        kind = chance.choices(("purchase", "view", "return", "set", "gone", "bad", "leave"), (50, 40, 4, 8, 1, 2, 1))[0]
        if kind == "set":
            properties = {"color": chance.choice(["red", "blue"]), "price": k}
            found.append({"event": "$set", "entityType": "item", "entityId": item, "properties": properties})
        elif kind == "gone":
            found.append({"event": "$delete", "entityType": "item", "entityId": item})
        elif kind == "bad":
            found.append({"user_id": user, "event_type": "unheard of"})
        elif kind == "leave":
            found.append({"user_id": user, "event_type": "$delete", "timestamp": 1_700_000_000 + 60 * k})
        else:
            found.append({"user_id": user, "item_id": item, "event_type": kind, "timestamp": 1_700_000_000 + 60 * k})
    return found


QUESTIONS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"user": "u1"}, {"user": "u1"}),
    ({"user": "nobody", "num": 3}, {"user": "nobody", "num": 3}),
    ({"item": "i1"}, {"item": "i1"}),
    ({"items": ["i1", "i2"], "num": 40}, {"items": ["i1", "i2"], "num": 40}),
    ({"history": {"view": ["i3"], "purchase": ["i1"]}}, {"history": {"view": ["i3"], "purchase": ["i1"]}}),
    ({}, {}),
    ({"user": "u2", "exclude_events": []}, {"user": "u2", "exclude_seen": False}),
    ({"item": "i1", "return_self": True}, {"item": "i1", "exclude_seen": False}),
    (
        {"user": "u3", "include": [{"field": "color", "values": ["red"]}], "exclude_items": ["i2"]},
        {"user": "u3", "include": {"color": ["red"]}, "exclude_items": ["i2"]},
    ),
    (
        {"user": "u4", "indicators": {"purchase": 0.5, "view": 2.0}, "priors": {"popular": 0.3}},
        {"user": "u4", "weights": {"purchase": 0.5, "view": 2.0}, "priors": {"popular": 0.3}},
    ),
]


def check_answers(engine: Engine, client: httpx.Client) -> None:
    """The same question gets the same answer from the engine and by HTTP."""
    for asked, of_engine in QUESTIONS:
        answer = client.post("/recommendations", json=asked)
        assert answer.status_code == 200, answer.text
        found = [(one["item"], one["score"], one["properties"]) for one in answer.json()["items"]]
        assert found == [(hit.item, hit.score, hit.properties) for hit in engine.recommend(**of_engine)], asked
    assert any(engine.recommend(**of_engine) for _, of_engine in QUESTIONS)


@contextmanager
def served(engine: Engine, durable: Durable | None = None) -> Iterator[httpx.Client]:
    learner = Learner(engine, durable)
    learner.start()
    try:
        with (
            BackgroundServer(embedded_service(engine, learner)) as server,
            httpx.Client(base_url=server.url, timeout=60) as client,
        ):
            yield client
    finally:
        learner.stop()


def drained(client: httpx.Client) -> bool:
    """Whether every row in the index is exact, those included that wait for `max_staleness`."""
    text = client.get("/metrics").text
    return "\ncco_due_rows 0.0" in text and "\ncco_staleness_seconds 0.0" in text


def test_the_engine_and_the_service_answer_the_same() -> None:
    records = made_up(2_000, random.Random(SEED))
    plain = Engine(CONFIG)
    with Engine(CONFIG) as engine, served(engine) as client:
        for at in range(0, len(records), 100):
            answer = client.post("/events", json=records[at : at + 100])
            assert answer.status_code in (200, 207), answer.text
            report = plain.ingest(records[at : at + 100])
            told = [(one["index"] + 1, one["problem"]) for one in answer.json()["rejected"]]
            assert told == [(rejection.line, rejection.reason) for rejection in report.rejected]
        until(lambda: drained(client), "the last row")
        plain.drain()
        check_answers(plain, client)


def test_a_users_own_event_counts_in_the_very_next_question() -> None:
    with Engine(CONFIG) as engine, served(engine) as client:
        for k in range(40):
            event = {"user_id": "me", "item_id": f"i{k}", "event_type": "purchase"}
            assert client.post("/events", json=event).json() == {"accepted": 1, "rejected": []}
            answer = client.post("/recommendations", json={"user": "me", "num": 100}).json()
            assert answer["history"] == k + 1
            assert f"i{k}" not in {found["item"] for found in answer["items"]}
            client.post("/events", json={"user_id": f"other {k % 3}", "item_id": f"i{k}", "event_type": "purchase"})


def test_rows_are_published_by_a_timer() -> None:
    with Engine(CONFIG) as engine, served(engine) as client:
        for user in ("a", "b"):
            for item in ("x", "y"):
                client.post("/events", json={"user_id": user, "item_id": item, "event_type": "purchase"})
        client.post("/events", json={"user_id": "c", "item_id": "z", "event_type": "purchase"})

        def found() -> list[str]:
            asked = client.post("/recommendations", json={"item": "x", "backfill": "none"}).json()
            return [one["item"] for one in asked["items"]]

        until(lambda: found() == ["y"], "the row")


def test_answers_tell_how_old_the_model_is() -> None:
    with Engine(CONFIG) as engine, served(engine) as client:
        assert client.post("/events", json=made_up(50, random.Random(SEED))).status_code in (200, 207)
        assert 0 <= client.post("/recommendations", json={}).json()["model_age"] <= 60
        assert "\ncco_model_age_seconds " in client.get("/metrics").text


def test_questions_are_answered_while_many_events_come() -> None:
    records = [record for record in made_up(12_000, random.Random(1)) if record.get("user_id") != "u1"]
    with Engine(CONFIG) as engine, served(engine) as client:
        client.post("/events", json={"user_id": "u1", "item_id": "i1", "event_type": "purchase"})
        done, wrong = threading.Event(), list[str]()

        def send(part: Sequence[Mapping[str, Any]]) -> None:
            with httpx.Client(base_url=client.base_url, timeout=60) as other:
                for at in range(0, len(part), 500):
                    answer = other.post("/events", json=part[at : at + 500])
                    if answer.status_code not in (200, 207):
                        wrong.append(answer.text)

        senders = [threading.Thread(target=send, args=(records[k::3],)) for k in range(3)]
        for sender in senders:
            sender.start()
        questions = 0
        while any(sender.is_alive() for sender in senders) or questions < 20:
            answer = client.post("/recommendations", json={"user": "u1", "explain": True})
            assert answer.status_code == 200, answer.text
            assert answer.json()["history"] == 1
            questions += 1
        for sender in senders:
            sender.join()
        done.set()
        assert not wrong


def test_what_a_replay_made_is_taken_up_and_is_the_services_from_then_on(tmp_path: Path) -> None:
    events, state, records = tmp_path / "a.jsonl", tmp_path / "state", made_up(600, random.Random(3))
    events.write_text("".join(json.dumps(record) + "\n" for record in records[:300]))
    replay(Engine(CONFIG), [str(events)], state=state)
    engine = Engine(CONFIG)
    with served(engine, Durable(engine, state)) as client:
        client.post("/events", json=records[300:450])
    engine = Engine(CONFIG)
    durable = Durable(engine, state)
    assert durable.replayed == 0  # a graceful stop leaves nothing in the journal
    with served(engine, durable) as client:
        client.post("/events", json=records[450:])
        plain = Engine(CONFIG)
        plain.ingest(records)
        plain.drain()
        until(lambda: drained(client), "the last row")
        check_answers(plain, client)
    assert model_of(Engine.load(state)) == model_of(plain)
    with pytest.raises(StateError, match="cco serve"):
        replay(Engine(CONFIG), [str(events)], state=state)


def test_events_without_a_time_keep_the_one_at_which_they_were_accepted(tmp_path: Path) -> None:
    """Also where the journal is applied again, later: a time decides what is retained."""
    engine, now = Engine(CONFIG), [1_700_000_000.0]
    durable = Durable(engine, tmp_path / "state", every=3600)
    learner = Learner(engine, durable, lambda: now[0])
    learner.start()
    with (
        BackgroundServer(embedded_service(engine, learner)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        for item in ("a", "b", "a", "c"):
            now[0] += 7
            client.post("/events", json={"user_id": "me", "item_id": item, "event_type": "view"})
        shutil.copytree(tmp_path / "state", tmp_path / "crashed")
    learner.stop()
    again = Engine(CONFIG)
    durable = Durable(again, tmp_path / "crashed")
    durable.abandon()
    assert durable.replayed >= 3  # all that came after the first checkpoint
    for one in (engine, again):
        found = one.pipeline.history(0)["view"]
        assert [(one.items.name(item), time - 1_700_000_000) for item, time in found] == [
            ("c", 28),
            ("a", 21),
            ("b", 14),
        ]


def test_events_that_cannot_be_kept_are_refused_and_questions_go_on(tmp_path: Path) -> None:
    engine = Engine(CONFIG)
    durable = Durable(engine, tmp_path / "state")
    event = {"user_id": "me", "item_id": "i", "event_type": "purchase"}
    learner = Learner(engine, durable)
    learner.start()
    with (
        BackgroundServer(embedded_service(engine, learner)) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        assert client.post("/events", json=event).status_code == 200
        durable.journal.failed = True  # as after a sync that failed
        refused = client.post("/events", json=event)
        assert (refused.status_code, refused.json()["type"]) == (503, "urn:cco:problem:store")
        until(lambda: client.get("/health").status_code == 503, "bad health")
        assert client.post("/events", json=event).status_code == 503
        assert client.post("/recommendations", json={"user": "me"}).json()["history"] == 1
    with pytest.raises(StateError, match="journal"):
        learner.stop()
    engine = Engine(CONFIG)
    durable = Durable(engine, tmp_path / "state")
    assert engine.history_of("me") == {"purchase": ["i"], "view": []}
    durable.abandon()


def test_clock_events_are_not_for_clients() -> None:
    with Engine(CONFIG) as engine, served(engine) as client:
        answer = client.post("/events", json={"event_type": "$clock", "timestamp": 1_700_000_000})
        assert answer.status_code == 422 and "$clock" in answer.json()["detail"]


class Process:
    """`cco serve --embedded` on a free port."""

    def __init__(self, folder: Path, *options: str) -> None:
        (folder / "cco.toml").write_text(TOML)
        command = [sys.executable, "-m", "agents", "serve", "--embedded", "--config", str(folder / "cco.toml"),
                   "--state", str(folder / "state"), "--port", "0", "--log-format", "json", *options]  # fmt: skip
        self.errors = (folder / "stderr").open("ab")
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=environment, cwd=folder
        )
        assert self.child.stdout is not None
        line = self.child.stdout.readline()  # comes once it answers
        assert " on http://127.0.0.1:" in line, (folder / "stderr").read_text()
        self.url = line.split()[-1]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.returncode is None:
            self.end(signal.SIGKILL)

    def end(self, number: int) -> int:
        self.child.send_signal(number)
        code = self.child.wait(60)
        assert self.child.stdout is not None
        self.child.stdout.close()
        self.errors.close()
        return code


async def send_until_killed(process: Process, groups: Sequence[list[dict[str, Any]]], after: int) -> list[bool]:
    """Send groups one after the other; kill -9 while one is on its way. Which ones were acknowledged?"""
    acknowledged = [False] * len(groups)
    async with httpx.AsyncClient(base_url=process.url, timeout=60) as client:
        for k, group in enumerate(groups):
            task = asyncio.create_task(client.post("/events", json=group))
            if k == after:
                while not task.done() and random.random() < 0.9:
                    await asyncio.sleep(0)
                process.child.send_signal(signal.SIGKILL)
            try:
                acknowledged[k] = (await task).status_code in TAKEN
            except httpx.TransportError:
                return acknowledged
    return acknowledged


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    plain, left = Engine(CONFIG), made_up(1_600, chance)
    for after in (3, 0, 12, 5):
        groups = [[left.pop(0) for _ in range(chance.choice((1, 7, 40)))] for _ in range(after + 1)]
        with Process(tmp_path) as process:
            acknowledged = asyncio.run(send_until_killed(process, groups, after))
        assert all(acknowledged[:after])
        for group, taken in zip(groups, acknowledged, strict=True):
            if taken:
                plain.ingest(group)
            else:  # on its way when the process was killed: whether it counts is not known, so it is sent again
                left[:0] = group
    with Process(tmp_path) as process, httpx.Client(base_url=process.url, timeout=60) as client:
        while left:
            group, left = left[:500], left[500:]
            assert client.post("/events", json=group).status_code in TAKEN
            plain.ingest(group)
        plain.drain()
        until(lambda: drained(client), "the last row")
        check_answers(plain, client)
        assert process.end(signal.SIGTERM) == 0
    assert list((tmp_path / "state" / "journal").iterdir()) == []
    assert model_of(Engine.load(tmp_path / "state")) == model_of(plain)


def test_it_does_not_listen_to_the_world_without_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--embedded", "--host", "0.0.0.0", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("cco: error: host 0.0.0.0: without keys anybody") and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
    assert main(["serve"]) == 2


def test_what_is_not_installed_is_said_with_its_extra(tmp_path: Path) -> None:
    hidden = (*SERVE_PACKAGES, "prometheus_client", "structlog")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(packages=hidden)], input="serve --embedded\nconfig", cwd=ROOT, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["2", "0"]
    assert done.stderr.splitlines()[0].endswith("is not installed: pip install 'streaming-cco[serve]'")


def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Engine(CONFIG) as engine, served(engine) as client:
        port = client.base_url.port
        assert main(["serve", "--embedded", "--port", str(port), "--state", str(tmp_path / "state")]) == 2
    assert "Address already in use" in capsys.readouterr().err
