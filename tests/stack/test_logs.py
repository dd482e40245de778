"""Topics that are made anew, or get more partitions, under an index that is there: told, and never refused silently."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import NewPartitions

from agents.cli.main import main
from agents.health import status
from model_sync.elastic_mapping import FORMATS
from tests.kafka.events import generated
from tests.kafka.world import WorkerProcess, administer, make_topics_anew, wait_for
from tests.stack.conftest import MakeStack
from tests.stack.stack import Stack, changes_of

ITEMS = [f"item-{k}" for k in range(40)]


def documents(stack: Stack) -> tuple[bytes, dict[str, Any]]:
    return stack.model(), stack.documents_of_users()


def told(stack: Stack, worker: WorkerProcess, capsys: pytest.CaptureFixture[str]) -> str:
    """What everybody says who is asked, once the worker is up."""
    readiness = wait_for(
        lambda: (found := worker.get("/readyz"))[0] == 503 and "another log" in found[1] and found[1], "the worker"
    )
    found = status.look(stack.config, stack.settings)
    assert found.mode == "lambda" and any("of another log" in why for why in found.why)
    assert any("choose another index_prefix" in remedy for remedy in found.what_to_do)
    capsys.readouterr()
    assert main(["index", "check", "--config", str(stack.config_file), "--json"]) == 1
    checked = json.loads(capsys.readouterr().out)
    assert checked["log"] == "compared" and all("_meta.cco.log" in each["text"] for each in checked["problems"])
    assert (worker.status() or {})["mode"] == "lambda"
    return str(readiness)


def test_an_index_and_the_log_that_it_is_of(make_stack: MakeStack, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a signature it is ours, as ever; then its topic gets more partitions; then all topics are made anew."""
    stack = make_stack()
    worker = stack.worker("alone")
    stack.produce(generated(stack, 3_000, seed=21))
    stack.change_items(changes_of(ITEMS, 1))
    stack.check_all()
    assert main(["index", "check", "--config", str(stack.config_file)]) == 0
    assert worker.stop() == 0
    nobody_has_signed_it(stack, worker)
    items_get_more_partitions(stack, worker, capsys)
    topics_are_made_anew(stack, worker, capsys)


def nobody_has_signed_it(stack: Stack, worker: WorkerProcess) -> None:
    """As one of before there were signatures."""
    with stack.client() as client:
        for alias in stack.names:
            [(index, found)] = client.indices.get_mapping(index=alias).body.items()
            meta = found["mappings"]["_meta"]["cco"]
            signed = meta.pop("log")
            assert set(signed) == ({"interactions", "items"} if alias == stack.names.items else {"interactions"})
            client.indices.put_mapping(index=index, meta={"cco": meta})
        worker.start()
        stack.produce(generated(stack, 500, seed=25))
        stack.check_all()
        [found] = client.indices.get_mapping(index=stack.names.items).body.values()
        assert set(found["mappings"]["_meta"]["cco"]["log"]) == {"interactions", "items"}
        assert found["mappings"]["_meta"]["cco"]["format"] == FORMATS["items"]
    assert worker.stop() == 0


def items_get_more_partitions(stack: Stack, worker: WorkerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    """Items are elsewhere then, where offsets are lower: the index of items would refuse their changes."""
    topic = stack.settings.topic("items")
    administer(stack.settings, lambda admin: admin.create_partitions({topic: NewPartitions(3)}))
    worker.start()
    readiness = told(stack, worker, capsys)
    assert f"{stack.prefix}items-000001" in readiness and f"{stack.prefix}users-000001" not in readiness
    assert worker.stop() == 0


def topics_are_made_anew(stack: Stack, worker: WorkerProcess, capsys: pytest.CaptureFixture[str]) -> None:
    before = documents(stack)
    make_topics_anew(stack.config, stack.settings)
    shutil.rmtree(Path(stack.folder, "state"))
    stack.produce(generated(stack, 2_000, seed=22))  # fewer: each offset is below that of the index
    stack.change_items(changes_of(ITEMS[:20], 2))
    worker.start()
    readiness = told(stack, worker, capsys)
    for index in ("items", "users"):
        assert f"{stack.prefix}{index}-000001 is of another log" in readiness
    wait_for(lambda: worker.metric("cco_rows_counted_total") > 50, "the worker to learn all the same")
    assert main(["rebuild", "--log", "--publish", "--config", str(stack.config_file)]) != 0
    assert "_meta.cco.log.interactions" in capsys.readouterr().err
    assert documents(stack) == before

    stack.delete_index()
    stack.create_index()
    stack.check_all()
    wait_for(worker.is_ready, "the worker to be ready")
    wait_for(lambda: stack.mode() == "kappa", "the mode")
    assert worker.stop() == 0
