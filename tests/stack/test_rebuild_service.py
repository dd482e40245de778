"""`cco rebuild --every` as a service: it publishes what workers do not, and leaves healthy ones alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_sync.elastic_versions import versions
from tests.kafka.events import generated
from tests.kafka.world import ROOT, wait_for
from tests.stack.conftest import MakeStack
from tests.stack.stack import Stack, _safely


@contextmanager
def service(stack: Stack, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`cco rebuild --log --publish --every 1s` meanwhile; it ends well at SIGTERM."""
    command = [sys.executable, "-m", "agents", "rebuild", "--log", "--publish", "--every", "1s", *arguments]
    with log.open("ab") as out:
        process = subprocess.Popen(
            [*command, "--config", str(stack.config_file), "--json"], stdout=out, stderr=out, cwd=ROOT, env=os.environ
        )
    try:
        yield process
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()


def said(log: Path) -> list[dict[str, Any]]:
    """What it has logged and reported."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def is_published(stack: Stack, what: str) -> None:
    """Wait until what is served is the model of the log as it is now."""
    batch = stack.batch()
    wait_for(lambda: _safely(stack.model) == batch, what)


def test_it_publishes_again_and_again_and_an_outage_is_only_told(make_stack: MakeStack, tmp_path: Path) -> None:
    stack, log = make_stack(), tmp_path / "service.log"
    stack.produce(generated(stack, 800, seed=1))
    with service(stack, log, "--when", "always"):
        is_published(stack, "the first model")
        stack.produce(generated(stack, 800, seed=2))
        is_published(stack, "the second model")
        third = f"made {stack.names.items}-000004"
        wait_for(lambda: third in [line.get("message") for line in said(log)], "a third one to begin")
    with stack.client() as client:
        assert [v.name for v in versions(client, stack.names) if v.role == "loading"] == []
    assert said(log)[-1]["message"] == "stopped"
    steps = [line["message"] for line in said(log) if "message" in line]
    assert {f"made {stack.names.items}-000002", f"{stack.names.items}-000002 is served"} <= set(steps), steps


def test_it_leaves_a_healthy_system_alone(make_stack: MakeStack, tmp_path: Path) -> None:
    stack, log = make_stack(), tmp_path / "service.log"
    stack.produce(generated(stack, 800, seed=3))
    worker = stack.worker("w1")
    stack.settle()
    wait_for(lambda: stack.mode() == "kappa", "the worker's first report")
    with service(stack, log, "--when", "unhealthy"):
        wait_for(lambda: sum(m.get("reason") == "the mode is kappa" for m in said(log)) >= 2, "two turns not taken")
        assert not any("published" in line for line in said(log))
        worker.kill()
        stack.produce(generated(stack, 800, seed=4))
        is_published(stack, "a rebuild instead of the worker")
    worker.start()
    stack.check_all()
