"""`cco audit`: whatever is wrong in the index or in a state is found, named and mended, and nothing else is."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from agents.audit.audit import Audit, Auditor
from agents.cli.main import main
from agents.state.store import StateStore
from tests.kafka.events import generated
from tests.kafka.flow import Flow
from tests.kafka.world import wait_for
from tests.stack.conftest import MakeStack
from tests.stack.stack import Stack, changes_of

ITEMS = [f"item-{k}" for k in range(90)]


def audit(stack: Stack, wait: float = 0.0, **options: Any) -> Audit:
    with stack.client() as client:
        return Auditor(stack.config, stack.settings, client, stack.names).run(wait, **options)


def named(found: Audit) -> set[tuple[str, str]]:
    return {(difference.kind, difference.key) for difference in found.differences}


def spoil(client: Elasticsearch, stack: Stack, turn: int) -> set[tuple[str, str]]:
    """Wrong documents of every kind, behind the workers' backs; what an audit should name.

    Of users others in each turn: Elasticsearch remembers for a minute how often one was deleted.
    """
    items, users = stack.names
    hits = client.search(index=items, query={"term": {"filled.purchase": True}}, size=4)["hits"]["hits"]
    heavier, empty, gone, renamed = (hit["_id"] for hit in hits)
    row = hits[0]["_source"]["rows"]["purchase"]
    name = next(iter(row[0]))
    client.update(index=items, id=heavier, doc={"rows": {"purchase": [{**row[0], name: row[0][name] * 2}]}})
    client.update(index=items, id=empty, doc={"rows": {"purchase": []}})  # but `filled` says that it is not
    client.delete(index=items, id=gone)
    client.update(index=items, id=renamed, doc={"rank": 3.5, "returned": "bm9uZQ=="})
    client.index(index=items, id="never seen", document={
        "id": "never seen", "shuffle": 0.5, "rows": {"view": [{heavier: 9.5}]}, "filled": {"view": True},
    })  # fmt: skip
    found = stack.documents_of_users()
    other, lost = sorted(user for user, document in found.items() if document["member"])[2 * turn : 2 * turn + 2]
    history = {name: [*reversed(ids), "nothing"] for name, ids in found[other]["history"].items()}
    client.update(index=users, id=other, doc={"history": history})
    client.delete(index=users, id=lost)
    client.indices.refresh(index=f"{items},{users}")
    return {
        ("rows", heavier), ("rows", empty), ("rows", gone), ("rows", "never seen"), ("metadata", renamed),
        ("users", other), ("users", lost),
    }  # fmt: skip


def test_what_is_wrong_is_named_and_mended(make_stack: MakeStack, capsys: pytest.CaptureFixture[str]) -> None:
    stack = make_stack(item_partitions=2, share=True)
    worker = stack.worker("alone")
    stack.produce(generated(stack, 4_000, seed=1))
    stack.change_items(changes_of(ITEMS, 1))
    stack.check_all()
    right = audit(stack)
    assert right.ok and right.items >= 80 and right.users > 200 and right.events > 3_000, right

    with stack.client() as client:
        expected = spoil(client, stack, 0)
    found = audit(stack)
    assert named(found) == expected, found.differences
    run = ["audit", "--config", str(stack.config_file), "--wait", "0"]
    assert main([*run, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert {(d["kind"], d["key"]) for d in document["differences"]} == expected and document["ok"] is False
    assert main(run) == 1
    said = capsys.readouterr().out
    assert "metadata of 1" in said and "2 differ" in said and "`cco audit --repair` mends" in said, said

    sent = worker.metric("cco_patches_sent_total")
    # It waits so long before it repairs, for all of it is wrong for good, as the log stands still.
    assert main([*run[:-1], "8", "--repair"]) == 0, capsys.readouterr().out
    assert "everything is as the log says" in capsys.readouterr().out
    wait_for(lambda: worker.metric("cco_patches_sent_total") >= sent + 60, "the worker to publish everything again")
    stack.check_all()
    assert audit(stack).ok
    stack.wait_until_shared()
    assert worker.stop() == 0  # and with nobody there who could publish it
    with stack.client() as client:
        expected = spoil(client, stack, 1)
    assert named(audit(stack)) == expected
    assert audit(stack, repair=True).ok
    states_are_compared_at_their_own_offsets(stack)


def states_are_compared_at_their_own_offsets(stack: Stack) -> None:
    ends, folder = stack.log_ends(), stack.folder / "state" / "alone"
    settings = stack.settings.model_copy(update={"share": str(stack.folder / "share")})
    with stack.client() as client:
        auditor = Auditor(stack.config, settings, client, stack.names)
        found = auditor.run(0.0, folders=[folder])
        assert found.ok and len(found.states) == 8, found.states
        assert all(check.problem is None and check.users > 0 and check.offset for check in found.states), found.states
        assert [check.offset for check in found.states] == ends + ends
        (folder / "interactions-1").rename(folder / "interactions-9")
        (folder / "interactions-0").rename(folder / "interactions-1")
        found = auditor.run(0.0, folders=[folder])
        assert [check.source for check in found.states if check.problem] == [1] and not found.ok
        (folder / "interactions-1").rename(folder / "interactions-0")

        store = StateStore.open(folder / "interactions-0", stack.config, sources=1)
        claimed = {**(store.commit.input or {}), "offset": ends[0] - 40}
        store.write_commit(**{**_of(store), "input": claimed})  # as if it stood for less of the log than it does
        store.close()
        found = auditor.run(0.0, folders=[folder])
        assert {difference.kind for difference in found.differences} == {"state"}, found.differences
        assert all("offset" in difference.text for difference in found.differences)


def _of(store: StateStore) -> dict[str, Any]:
    commit = store.commit
    return {"sources": commit.sources, "users": commit.users, "items": commit.items, "full": False}


def test_events_that_go_on_are_no_difference(make_stack: MakeStack) -> None:
    stack = make_stack()
    stack.worker("alone")
    flow = Flow(stack, seed=2, users=300, items=80, pace=1_800.0)
    flow.send(2_000)
    stack.settle()
    with flow.flowing(200):
        found = audit(stack, wait=12.0)
        assert found.ok, found.differences
        assert found.notes == [
            "no state was compared: there is no shared copy (`worker.share`), and no --state has one"
        ], found.notes
        with stack.client() as client:
            client.index(index=stack.names.items, id="never seen", refresh=True, document={
                "id": "never seen", "shuffle": 0.5, "rows": {"view": [{"item-1": 9.5}]}, "filled": {"view": True},
            })  # fmt: skip
        wrong = audit(stack, wait=1.0)
        assert ("rows", "never seen") in named(wrong)
    stack.settle()
    wait_for(lambda: named(audit(stack)) == {("rows", "never seen")}, "everything else to be right")


def test_a_log_whose_beginning_is_gone_needs_an_archive(
    make_stack: MakeStack, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    from aiokafka import TopicPartition
    from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

    stack = make_stack()
    stack.produce(generated(stack, 500, seed=5))

    async def delete() -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=stack.broker)
        await admin.start()
        at = TopicPartition(stack.settings.topic("interactions"), 0)
        await admin.delete_records({at: RecordsToDelete(before_offset=10)})
        await admin.close()

    asyncio.run(delete())
    began = time.monotonic()
    assert main(["audit", "--config", str(stack.config_file)]) == 2
    assert "archive" in capsys.readouterr().err and time.monotonic() - began < 20
