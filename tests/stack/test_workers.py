"""Workers on a real broker and a real node: whatever happens, every document ends as the log says."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from agents.audit.audit import Auditor
from agents.kafka.dead_letter_topic import Choice, list_letters
from model_sync.elastic_documents import identity
from model_sync.elastic_mapping import KINDS, mapping, settings
from tests.kafka.events import generated
from tests.kafka.flow import Flow
from tests.kafka.world import WorkerProcess, wait_for
from tests.model_sync.holding_proxy import HoldingProxy, in_a_thread
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch
from tests.stack.conftest import MakeStack
from tests.stack.questions import Questioner
from tests.stack.serving import serving
from tests.stack.stack import Stack, changes_of

USERS, PACE = 300, 600.0  # of flows of events
LONGER = float(os.environ.get("NODE_STANDS_STILL", "0"))  # seconds: `make soak` sets it
ITEMS = [f"item-{k}" for k in range(90)]  # some without events, most with
QUESTIONS = [{"user": f"user-{k}"} for k in range(20)] + [{"item": "item-1", "priors": {"hot": 0.1}}, {}]
TO_DO = (  # what whoever runs it is told
    "is it running", "did not answer in time", "`cco index create` makes it", "try again", "its cluster's health",
)  # fmt: skip


def flow_of(stack: Stack, seed: int) -> Flow:
    return Flow(stack, seed, USERS, 80, PACE)


def test_every_document_is_as_the_log_says(make_stack: MakeStack) -> None:
    stack = make_stack(item_partitions=2)
    worker = stack.worker("alone")
    stack.produce(generated(stack, 4_000, seed=1))
    stack.change_items(changes_of(ITEMS, 1))
    stack.check_all()
    stack.change_items(changes_of(ITEMS[10:40], 2))
    stack.check_all()
    wait_for(lambda: worker.get("/readyz")[0] == 200, "the worker to be ready")
    assert worker.metric("cco_elasticsearch_documents_total", outcome="refused") == 0
    assert worker.metric("cco_item_changes_total") > 100
    _check_dead_letters(stack, worker)
    assert worker.stop() == 0


def _check_dead_letters(stack: Stack, worker: WorkerProcess) -> None:
    """What an index refuses is a dead letter, as it was; once the index fits, an audit writes it."""
    items, users = stack.names
    viewers = {user: document for user, document in stack.histories().items() if "view" in document["history"]}
    _narrow(stack)  # the worker sees that, and says everything to both anew

    def told() -> dict[str, dict[str, Any]] | None:
        found = _letters(stack)
        return found if found[users].keys() == viewers.keys() and len(found[items]) > 40 else None

    letters = wait_for(told, "what is refused to be in the topic of dead letters")
    assert worker.metric("cco_elasticsearch_documents_total", outcome="refused") >= len(viewers) + 40
    for user, document in letters[users].items():
        assert document.pop("position") > 0 and document == viewers[user]
    stack.create_index()
    with stack.client() as client:
        found = Auditor(stack.config, stack.settings, client, stack.names).run(0.0, repair=True)
        assert found.repaired >= len(viewers)
        stack.check_all()
        for stored in client.mget(index=items, ids=list(letters[items]))["docs"]:
            rows = letters[items][stored["_id"]]["rows"]
            assert "view" in rows and rows == {name: stored["_source"]["rows"][name] for name in rows}


def _narrow(stack: Stack) -> None:
    """Both indices made anew by somebody who does not know of views."""
    with stack.client() as client:
        for kind in KINDS:
            alias, wanted = getattr(stack.names, kind), mapping(kind, stack.config)
            for part in ("rows", "filled", "history", "counts"):
                wanted["properties"].get(part, {}).get("properties", {}).pop("view", None)
            client.indices.delete_index_template(name=alias)  # which would give it all the fields
            client.indices.delete(index=f"{alias}-000001")
            client.indices.create(index=f"{alias}-000001", mappings=wanted, settings=settings(), aliases={alias: {}})


def _letters(stack: Stack) -> dict[str, dict[str, Any]]:
    """The documents among the dead letters, by index and id."""
    listing = asyncio.run(list_letters(stack.settings, Choice(code="document"), 10_000))
    found: dict[str, dict[str, Any]] = {name: {} for name in stack.names}
    for letter in (filed.letter for filed in listing.letters):
        assert "strict_dynamic_mapping_exception" in letter.reason and "view" in letter.reason, letter.reason
        index, id = letter.topic.removeprefix("elasticsearch:"), (letter.key or b"").decode()
        found[index][id] = json.loads(letter.value or b"")
    return found


def test_kills_of_two_workers(make_stack: MakeStack) -> None:
    stack, moments = make_stack(item_partitions=2, share=True, session_timeout="3s"), random.Random(14)
    workers = [stack.worker("a"), stack.worker("b")]
    with flow_of(stack, 3).flowing(400):
        for kill in range(4):
            time.sleep(moments.uniform(0.5, 5.0))
            stack.change_items(changes_of(ITEMS, kill))
            worker = moments.choice(workers)
            worker.kill()
            time.sleep(moments.choice([0.0, 0.0, 5.0]))  # sometimes the other takes over
            worker.start()
    stack.check_all()


def test_a_zombie_leaves_nothing_behind(make_stack: MakeStack, elasticsearch: ElasticsearchServer) -> None:
    """Nor does a bulk of its own that was on its way when it was stopped, and comes when all is published."""
    stack, holding = make_stack(share=True, session_timeout="3s"), threading.Event()
    of_items = f"POST /{stack.names.items}".encode()
    proxy = HoldingProxy(
        elasticsearch.address, lambda line: holding.is_set() and not proxy.held and line.startswith(of_items)
    )
    with in_a_thread(proxy) as url:
        zombie = stack.worker("zombie", CCO_ELASTICSEARCH_URLS=url)
        wait_for(lambda: zombie.get("/readyz")[0] == 200, "the first worker")
        with flow_of(stack, 7).flowing(500):
            wait_for(lambda: zombie.metric("cco_patches_sent_total") > 200, "patches of the first worker")
            holding.set()
            wait_for(lambda: proxy.held, "a bulk of the first worker")
            zombie.signal(signal.SIGSTOP)  # with other requests on their way, too, and documents in its queue
            heir = stack.worker("heir")
            wait_for(lambda: len((heir.status() or {}).get("interactions", {})) == 4, "the heir")
            wait_for(lambda: heir.metric("cco_patches_sent_total") > 100, "patches of the heir")
            zombie.signal(signal.SIGCONT)
            late = wait_for(lambda: _refused(zombie), "the zombie to find out")
        assert late
        stack.settle()
        assert set(asyncio.run(proxy.deliver())) == {409}
        stack.check_all()


def _refused(zombie: WorkerProcess) -> bool:
    """Whether what it still had to write met another owner's documents; or it has ended, which is as good."""
    if not zombie.running:
        return True
    lost = [
        zombie.metric("cco_elasticsearch_documents_total", outcome=name)
        for name in ("conflicts", "fenced", "superseded")
    ]
    return sum(lost) > 0


def test_an_owner_goes_on_after_the_brokers_clock_went_back(make_stack: MakeStack) -> None:
    """Its claims are then earlier than those of owners before it, of which the index has the times."""
    stack = make_stack(session_timeout="3s")
    stack.produce(generated(stack, 2_000, seed=13))
    tomorrow = 1_000 * (int(time.time()) + 86_400)
    items = ["item-1", "item-2", "no event has it"]
    with stack.client() as client:
        for k, item in enumerate(items):
            owner = {"at": tomorrow + k, "claim": 3 + k}
            document = {**identity(item), "rows": {"purchase": [{"item-7": 1.0}]}, "owner": owner}
            client.index(index=stack.names.items, id=item, document=document)
    worker = stack.worker("alone")
    wait_for(
        lambda: any("another worker has claimed" in told["message"] for told in worker.messages()),
        "the worker to find the later claim",
    )
    with stack.client() as client:  # what no owner writes stays: it is none of any log
        client.delete(index=stack.names.items, id=items[-1])
    stack.check_all()
    assert worker.stop() == 0


def test_the_node_stands_still_and_dies_and_the_index_is_deleted(make_stack: MakeStack, tmp_path: Path) -> None:
    """And its aliases are lost, and its disk is full, all while events flow."""
    with ElasticsearchServer(tmp_path / "node", fetch_elasticsearch(), heap="512m") as node:
        stack = make_stack(url=node.url)
        worker, flow = stack.worker("alone"), flow_of(stack, 8)
        with serving(stack) as url:
            with flow.flowing(600):
                stack.change_items(changes_of(ITEMS, 1))
                wait_for(lambda: worker.metric("cco_patches_sent_total") > 100, "the first patches")
                stack.wait_until_answered(url)
                _stands_still(stack, node, worker, url)
            stack.check_all()
            with Questioner(url, QUESTIONS) as questioner:
                with flow.flowing(600):
                    _dies(stack, node, worker)
                    _loses_its_indices(stack, worker, url)
                stack.check_all()
                stack.wait_until_answered(url)
                failures = list(questioner.failures)
                _are_clear(failures)
                assert any("is it running" in told for told in failures)
                assert any("`cco index create` makes it" in told for told in failures)
                with stack.read_only():  # as when the disk is full
                    flow.send(500)
                    wait_for(lambda: "disk" in worker.get("/readyz")[1], "the worker to say so")
                    stack.ask(url, {"user": "user-1"})
                stack.check_all()
                assert questioner.failures == failures  # what is there can be read all the time
        assert worker.stop() == 0


def _stands_still(stack: Stack, node: ElasticsearchServer, worker: WorkerProcess, url: str) -> None:
    """Questions fail clearly meanwhile, and not late; events are taken."""
    with httpx.Client(base_url=url, timeout=30) as http:
        node.pause()
        try:
            asked = http.post("/recommendations", json={"user": "user-1"})
            assert asked.status_code == 503 and "did not answer in time" in asked.json()["detail"]
            event = {"user_id": "me", "item_id": ITEMS[0], "event_type": "purchase"}
            assert http.post("/events", json=event).status_code == 200
            stack.change_items(changes_of(ITEMS, 3))
            wait_for(lambda: "did not answer in time" in worker.get("/readyz")[1], "the worker to say so")
            time.sleep(LONGER)
            assert http.post("/recommendations", json={"user": "user-1"}).status_code == 503 and worker.running
        finally:
            node.resume()
        stack.wait_until_answered(url)
        wait_for(lambda: stack.ask(url, {"user": "me"})["history"] == 1, "my event")


def _dies(stack: Stack, node: ElasticsearchServer, worker: WorkerProcess) -> None:
    """Questions are answered meanwhile, or fail clearly."""
    node.kill()
    wait_for(lambda: "Elasticsearch" in worker.get("/readyz")[1], "the worker to say so")
    stack.change_items(changes_of(ITEMS, 2))
    node.start()
    sent = worker.metric("cco_patches_sent_total")
    wait_for(lambda: worker.metric("cco_patches_sent_total") > sent, "patches to go on")


def _loses_its_indices(stack: Stack, worker: WorkerProcess, url: str) -> None:
    """Both, and then both aliases."""
    found = _indices_found(worker)
    stack.delete_index()
    wait_for(lambda: worker.get("/readyz")[0] != 200, "the worker to miss the index")
    stack.create_index()
    wait_for(lambda: _indices_found(worker) > found, "the worker to find the new one")
    stack.wait_until_answered(url)
    stack.delete_aliases()
    wait_for(lambda: "no index is behind the alias" in worker.get("/readyz")[1], "the worker to say so")
    stack.create_index()


def _indices_found(worker: WorkerProcess) -> int:
    """How often it has begun to publish."""
    return sum(told["message"] == "publishing into" for told in worker.messages())


def _are_clear(failures: Sequence[str]) -> None:
    """Each is a problem of the store, with what to do, and never an internal error."""
    for told in failures:
        assert told.startswith("RuntimeError: /recommendations: 503 ") and "urn:cco:problem:store" in told, told
        assert any(to_do in told for to_do in TO_DO), told
