"""A rebuild published by a swap while workers, events, changes of items and questions go on."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
from elasticsearch.helpers import scan

from agents.cli.main import main
from agents.kafka.reading import rebuild_from_log
from cco.event_data import ItemChange
from cco.model_file import encode
from model_sync import elastic_swap
from model_sync.elastic_swap import Published, rebuilding
from model_sync.elastic_versions import rollback, versions
from tests.kafka.events import CONFIG, generated
from tests.kafka.flow import Flow
from tests.kafka.test_states import positions
from tests.kafka.world import ROOT, WorkerProcess, wait_for
from tests.stack.conftest import MakeStack
from tests.stack.questions import Questioner
from tests.stack.serving import serving_here
from tests.stack.stack import Stack, changes_of

ITEMS = [f"item-{k}" for k in range(90)]
QUESTIONS = [{"user": f"user-{k}"} for k in range(20)] + [{"item": "item-1"}, {}]


def rebuild(stack: Stack, tell: Callable[[str], None] = lambda _: None, patiently: bool = False) -> Published:
    """Of the log, published; `patiently`: workers are waited for, as if they said that they are there."""
    with rebuilding(stack.config, stack.options, source="log", tell=tell, someone_writes=lambda _: patiently) as swap:
        ends = dict(enumerate(stack.log_ends()))
        model = rebuild_from_log(stack.settings, stack.config, ends)
        return swap.publish(model.rows(), model.items, {str(source): end for source, end in ends.items()})


def follows(worker: WorkerProcess, index: str) -> bool:
    """Whether a worker has seen that an index is the one to write."""
    told = [message["indices"] for message in worker.messages() if message["message"] == "publishing into"]
    return bool(told) and told[-1] == [index]


def roles(stack: Stack) -> dict[str, str]:
    with stack.client() as client:
        return {version.name.rpartition("-")[2]: version.role for version in versions(client, stack.names)}


def _busy(worker: WorkerProcess) -> bool:
    status = worker.status()
    return bool(status and status["edits"])


def test_a_swap_under_live_traffic(make_stack: MakeStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_swap, "STANDSTILL_SECONDS", 60.0)
    stack = make_stack(item_partitions=2, share=True, session_timeout="3s")
    first = stack.worker("first")
    flow = Flow(stack, seed=1, users=300, items=80, pace=1_800.0)
    flow.send(4_000)
    stack.change_items(changes_of(ITEMS, 1))
    stack.check_all()  # questions see all of it
    turns = iter(range(2, 100))
    said: list[str] = []

    def tell(text: str) -> None:
        said.append(text)
        stack.change_items(changes_of(ITEMS[10:40], next(turns)))  # at every step
        if text.startswith("verified"):
            second = stack.worker("second")  # joins, and takes partitions over, while the new index is shown
            wait_for(second.url, "the second worker to begin")

    with serving_here(stack) as url:
        wait_for(first.is_ready, "the worker to be ready")
        with Questioner(url, QUESTIONS) as questioner, flow.flowing(250):
            done = rebuild(stack, tell)
            for worker in stack.workers.values():
                wait_for(partial(follows, worker, done.index), f"{worker.name} to write the new index alone")
                wait_for(partial(_busy, worker), f"work for {worker.name}")
        assert questioner.failures == []
        assert questioner.asked > 20 and [found for found in questioner.found if not found.items] == []
    assert done.index == f"{stack.names.items}-000002"
    assert done.live_share == 1.0  # two workers, one of which has only just come
    stack.check_all()
    assert roles(stack) == {"000002": "live", "000001": "previous"}
    assert first.metric("cco_elasticsearch_documents_total", outcome="refused") == 0

    with stack.client() as client:
        _, index = rollback(client, stack.config, stack.names)
    wait_for(lambda: all(follows(worker, index) for worker in stack.workers.values()), "workers to go back")
    flow.send(500)
    stack.check_all()
    assert roles(stack) == {"000001": "live", "000002": "previous"}
    assert all(worker.stop() == 0 for worker in stack.workers.values())


@pytest.mark.usefixtures("nobody_lives")
def test_published_without_a_worker_and_then_gone_on_with(make_stack: MakeStack) -> None:
    stack = make_stack()
    worker = stack.worker("alone")
    stack.produce(generated(stack, 3_000, seed=4))
    stack.change_items(changes_of(ITEMS, 1))
    stack.check_all()  # questions see all of it
    worker.kill()
    stack.produce(generated(stack, 3_000, seed=5))
    hidden = "item-3"
    later = [ItemChange(hidden, "delete"), ItemChange("item-4", "set", {"color": "late"})]
    with serving_here(stack) as url, Questioner(url, QUESTIONS) as questioner:
        done = rebuild(stack, lambda text: stack.change_items(later) if text.startswith("verified") else None)
        assert (done.live_share, done.index) == (0.0, f"{stack.names.items}-000002")
        stack.check()  # what is served has learned of all events, with nobody there to learn
    assert questioner.failures == [] and [found for found in questioner.found if not found.items] == []
    worker.start()
    stack.check_all()
    stack.produce(generated(stack, 500, seed=6))
    stack.check_all()


def test_a_rebuild_that_gives_up_leaves_workers_as_they_were(
    make_stack: MakeStack, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = make_stack()
    worker = stack.worker("alone")
    stack.produce(generated(stack, 3_000, seed=7))
    stack.change_items(changes_of(ITEMS, 1))
    stack.settle()
    model = rebuild_from_log(stack.settings, stack.config)

    def tell(text: str) -> None:
        if text.startswith("live agents"):
            raise KeyboardInterrupt

    with (
        stack.producing(generated(stack, 2_000, seed=8), rate=500),
        pytest.raises(KeyboardInterrupt),
        rebuilding(stack.config, stack.options, tell=tell) as swap,
    ):
        swap.publish(model.rows(), model.items, {})
    assert roles(stack) == {"000001": "live"}
    stack.change_items(changes_of(ITEMS, 2))
    stack.check_all()
    wait_for(worker.is_ready, "the worker to be ready")
    assert "000002" not in str(roles(stack))  # nobody has made it again by writing
    wait_for(lambda: stack.mode() == "kappa", "the mode")
    monkeypatch.setattr(elastic_swap, "NOBODY_SECONDS", 0.0)
    a_worker_that_is_slow_to_begin_is_waited_for(stack, capsys)
    assert worker.stop() == 0


def a_worker_that_is_slow_to_begin_is_waited_for(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    """It says that it is there, and so is not taken to be gone because it writes nothing for a moment.

    And it writes what is served no more than before: nothing has changed there.
    """
    before = _versions(stack, f"{stack.names.items}-000001")
    assert main(["rebuild", "--log", "--publish", "--json", "--config", str(stack.config_file)]) == 0
    assert json.loads(capsys.readouterr().out)["published"]["live_share"] == 1.0
    assert before == _versions(stack, f"{stack.names.items}-000001")
    stack.check()


def test_workers_of_another_configuration_keep_away(make_stack: MakeStack) -> None:
    stack = make_stack()
    worker = stack.worker("old")
    stack.produce(generated(stack, 3_000, seed=9))
    stack.settle()
    new = make_stack(CONFIG.replace("user_cap = 12", "user_cap = 3"))
    with rebuilding(new.config, stack.options) as swap:
        model = rebuild_from_log(stack.settings, new.config)
        done = swap.publish(model.rows(), model.items, {})
    assert done.live_share == 0
    wait_for(lambda: "rebuilt for another configuration" in worker.get("/readyz")[1], "the worker to say so")
    stack.produce(generated(stack, 500, seed=10))
    wait_for(lambda: positions(worker).get(0) == stack.log_ends()[0], "events")
    assert stack.model() == b"".join(encode(model.rows(), model.items, new.config))


def _versions(stack: Stack, index: str) -> dict[str, int]:
    """How often each document was written."""
    with stack.client() as client:
        client.indices.refresh(index=index)
        return {hit["_id"]: hit["_version"] for hit in scan(client, query={"version": True}, index=index, source=False)}


def _all(stack: Stack) -> str:
    return ",".join(f"{source}:{end}" for source, end in enumerate(stack.log_ends()))


@pytest.mark.usefixtures("nobody_lives")
def test_the_command(make_stack: MakeStack, capsys: pytest.CaptureFixture[str]) -> None:
    stack = make_stack()
    stack.produce(generated(stack, 2_000, seed=11))
    command = ["rebuild", "--log", "--publish", "--json", "--config", str(stack.config_file)]
    assert main(command) == 0
    said = capsys.readouterr()
    published = json.loads(said.out)["published"]
    assert (published["index"], published["previous"]) == (f"{stack.names.items}-000002", f"{stack.names.items}-000001")
    steps = said.err.splitlines()  # no terminal, and so no progress bar
    assert (steps[0], steps[-1]) == (f"cco: made {published['index']}", f"cco: {published['index']} is served"), steps
    stack.check()
    with rebuilding(stack.config, stack.options):
        assert main(command) == 2
        assert "no second rebuild" in capsys.readouterr().err
        assert main([*command[:-3], *command[-2:], "--take-over", "--end-offsets", _all(stack)]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"\bsame 100\.0%, live share 0\.0%, time [\d.]+ s, removed ", shown), shown
    stack.check()
    assert roles(stack) == {"000004": "live", "000002": "previous"}
    with stack.client() as client:
        told = [version.rebuild["source"] for version in versions(client, stack.names)]
    assert told == ["log, in part", "log"]  # the latest first


def test_a_model_that_spark_has_computed(make_stack: MakeStack, capsys: pytest.CaptureFixture[str]) -> None:
    stack = make_stack()
    stack.produce(generated(stack, 1_000, seed=12))
    archive, config = str(stack.folder / "archive"), ["--config", str(stack.config_file)]
    assert main(["archive", "run", archive, "--once", *config]) == 0
    command = [sys.executable, "-m", "agents", "rebuild", "--archive", archive, "--engine", "spark", "--publish"]
    small = {"PYSPARK_SUBMIT_ARGS": "--master local[1] --conf spark.ui.enabled=false pyspark-shell"}
    done = subprocess.run(
        [*command, "--json", *config], capture_output=True, text=True, cwd=ROOT, env=os.environ | small, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["published"]["index"] == f"{stack.names.items}-000002"
    stack.check()
