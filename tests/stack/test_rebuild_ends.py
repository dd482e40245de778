"""Rebuilds that are killed, that SIGTERM ends, or whose node dies, with workers that are alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from elasticsearch import Elasticsearch

from agents.cli.main import main
from model_sync import elastic_load
from model_sync.elastic_versions import NEXT, versions
from tests.kafka.events import generated
from tests.kafka.flow import Flow
from tests.kafka.test_states import served
from tests.kafka.world import ROOT, wait_for
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch
from tests.servers.kafka import KafkaServer, fetch_kafka
from tests.stack.conftest import MakeStack
from tests.stack.questions import Questioner
from tests.stack.serving import serving_here
from tests.stack.stack import Stack, changes_of
from tests.stack.test_swap import ITEMS, QUESTIONS, follows, rebuild, roles

AT_ONCE = 30.0  # seconds, however busy the machine is: a rebuild that was killed is in the way for 300


@contextmanager
def rebuilding(stack: Stack, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`cco rebuild --log --publish` meanwhile; it is killed if it is still there at the end."""
    command = [sys.executable, "-m", "agents", "rebuild", "--log", "--publish", *arguments]
    process = subprocess.Popen(
        [*command, "--config", str(stack.config_file)], cwd=ROOT, env=os.environ, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def is_locked(stack: Stack) -> bool:
    """Whether a rebuild has begun."""
    return "loading" in roles(stack).values()


def is_shown(stack: Stack) -> bool:
    """Whether live workers are shown the next index."""
    with stack.client() as client:
        return bool(client.indices.exists_alias(name=stack.names.items + NEXT))


def end(process: subprocess.Popen[str]) -> str:
    """SIGTERM; what it says, once it has ended as it should."""
    began = time.monotonic()
    process.terminate()
    said = process.communicate(timeout=60)[0]
    assert (process.returncode, time.monotonic() - began < AT_ONCE) == (128 + signal.SIGTERM, True), said
    assert said.splitlines()[-1] == "cco: terminated", said
    return said


def test_killed_while_live_workers_take_it_over(make_stack: MakeStack, capsys: pytest.CaptureFixture[str]) -> None:
    """The seeds are written, and the workers write two indices, one of which nobody will ever publish."""
    stack = make_stack(item_partitions=2, share=True, session_timeout="20s")
    worker = stack.worker("alone")
    stack.produce(generated(stack, 3_000, seed=1))
    stack.change_items(changes_of(ITEMS, 1))
    stack.settle()
    with serving_here(stack) as url, Questioner(url, QUESTIONS) as questioner:
        worker.signal(signal.SIGSTOP)  # the rebuild waits for somebody to write what it shows
        with rebuilding(stack, "--seed") as process:
            wait_for(lambda: is_shown(stack), "the next index to be shown")
            process.kill()
            process.wait()
        worker.signal(signal.SIGCONT)
        both = [f"{stack.names.items}-{number:06d}" for number in (1, 2)]
        wait_for(lambda: both in [m.get("indices") for m in worker.messages()], "the worker to write both")
        assert roles(stack) == {"000001": "live", "000002": "loading"}
        stack.change_items(changes_of(ITEMS, 2))
        command = ["rebuild", "--log", "--publish", "--config", str(stack.config_file)]
        with stack.producing(generated(stack, 1_000, seed=2), rate=500):
            assert main(command) == 2
            assert "no second rebuild" in capsys.readouterr().err
        assert main([*command, "--take-over"]) == 0, capsys.readouterr()
        wait_for(lambda: follows(worker, f"{stack.names.items}-000003"), "the worker to write the third alone")
        assert questioner.failures == []
    assert roles(stack) == {"000003": "live", "000001": "previous"}
    stack.check_all()
    worker.kill()  # the seed that the dead one has left is as good as any
    (stack.folder / "state").rename(stack.folder / "lost")
    worker.start()
    stack.check_all()
    assert {state for state, _ in served(worker).values()} <= {"seed", "shared"}


@pytest.mark.usefixtures("nobody_lives")
def test_sigterm_gives_the_lock_back_at_once(make_stack: MakeStack, tmp_path: Path) -> None:
    with KafkaServer(tmp_path / "kafka", fetch_kafka()) as broker:
        stack = make_stack(broker=broker.bootstrap)
        stack.produce(generated(stack, 1_000, seed=3))
        broker.pause()  # it waits for the log
        with rebuilding(stack) as process:
            wait_for(lambda: is_locked(stack), "the rebuild to begin")
            end(process)
        assert roles(stack) == {"000001": "live"}
        broker.resume()
        with rebuilding(stack) as process:  # and it waits for workers to write the next index
            wait_for(lambda: is_shown(stack), "the next index to be shown")
            end(process)
        assert roles(stack) == {"000001": "live"}
        with rebuilding(stack, "--every", "1h", "--when", "always") as process:
            wait_for(lambda: is_shown(stack), "the next index to be shown")
            began = time.monotonic()
            process.terminate()
            assert (process.wait(60), time.monotonic() - began < AT_ONCE) == (0, True)
        assert roles(stack) == {"000001": "live"}
        rebuild(stack)  # nothing is in its way
        stack.check()


def test_ctrl_c_is_ignored_in_the_background_and_sigterm_is_not(make_stack: MakeStack) -> None:
    """As a shell without job control starts what ends with &."""
    stack = make_stack()
    stack.produce(generated(stack, 500, seed=4))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with rebuilding(stack) as process:
            wait_for(lambda: is_shown(stack), "the next index to be shown")
            end(process)
    finally:
        signal.signal(signal.SIGINT, before)
    assert roles(stack) == {"000001": "live"}


def test_the_node_dies_while_a_worker_and_a_rebuild_write(
    make_stack: MakeStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of loading; and again when live workers have written the next index, just before the swap."""
    monkeypatch.setattr(elastic_load, "MOST_DOCUMENTS", 20)
    monkeypatch.setattr(elastic_load, "TELL_SECONDS", 0.0)
    steps, starts = ["loaded 60 ", "live agents have written"], list[threading.Thread]()
    with ElasticsearchServer(tmp_path / "node", fetch_elasticsearch(), heap="512m") as node:
        stack = make_stack(url=node.url)
        worker = stack.worker("alone")
        flow = Flow(stack, seed=5, users=300, items=80, pace=1_800.0)
        flow.send(3_000)
        stack.change_items(changes_of(ITEMS, 1))
        stack.settle()

        def tell(text: str) -> None:
            if steps and text.startswith(steps[0]):
                del steps[0]
                for start in starts:
                    start.join()
                node.kill()
                stack.change_items(changes_of(ITEMS, 2 + len(starts)))  # while it is away
                starts.append(threading.Thread(target=node.start))
                starts[-1].start()

        with flow.flowing(200):
            done = rebuild(stack, tell, patiently=True)
        assert steps == []
        starts[-1].join()
        assert done.index == f"{stack.names.items}-000002"
        stack.check_all()
        assert roles(stack) == {"000002": "live", "000001": "previous"}
        wait_for(worker.is_ready, "the worker to be ready")
        with stack.client() as client:
            assert not _left_over(client, stack)
        assert worker.stop() == 0


def _left_over(client: Elasticsearch, stack: Stack) -> list[str]:
    return [version.name for version in versions(client, stack.names) if version.role in ("left over", "loading")]
