"""A `cco serve` in a process of its own, and the same service in a thread of this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agents.serving.embedded import BackgroundServer
from agents.serving.stack import stack_service
from tests.kafka.world import ROOT, wait_for
from tests.stack.stack import Stack


@contextmanager
def serving(stack: Stack) -> Iterator[str]:
    """The URL of a service over a stack, at a free port; at the end it is stopped, and must stop in order."""
    log = stack.folder / "serve.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "agents", "serve", "--config", str(stack.config_file), "--port", "0"],
            stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    try:
        yield wait_for(lambda: _url(log, process), "the service")
    finally:
        process.terminate()
        assert process.wait(15) == 0


@contextmanager
def serving_here(stack: Stack) -> Iterator[str]:
    """As `serving`, where the service is only asked: without the start of a process, which takes seconds."""
    with BackgroundServer(stack_service(stack.config, stack.settings)) as server:
        yield server.url


def _url(log: Path, process: subprocess.Popen[bytes]) -> str | None:
    assert process.poll() is None, log.read_text()
    return next((line.split()[-1] for line in log.read_text().splitlines() if line.startswith("serving ")), None)
