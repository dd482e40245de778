"""What README.md shows about Kafka works as it is written."""

from __future__ import annotations

import gzip
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from agents.cli.main import main
from tests.kafka.world import ROOT, WorkerProcess, World, wait_for
from tests.servers.kafka import KafkaServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## On Kafka\n")[2].partition("\n## ")[0]
EVENTS = 40


def commands() -> list[list[str]]:
    """The commands of the section, without their `cco`."""
    (block,) = re.findall(r"^```\n(cco topics create.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    return [shlex.split(line)[1:] for line in block.splitlines()]


def test_the_commands_on_kafka(
    kafka: KafkaServer,
    topic_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"BROKERS": kafka.bootstrap, "TOPIC_PREFIX": topic_prefix, "GROUP": topic_prefix}.items():
        monkeypatch.setenv(f"CCO_{name}", value)
    shutil.copy(ROOT / "deploy" / "cco.toml", "cco.toml")
    events = "".join(
        f"u{k % 7},i{k * k % 5},{'view' if k % 3 else 'purchase'},{1700000000 + k}\n" for k in range(EVENTS)
    )
    Path("events.csv.gz").write_bytes(gzip.compress(("user,item,event,timestamp\n" + events).encode()))
    place = SimpleNamespace(folder=tmp_path, config_file=tmp_path / "cco.toml")
    worker = WorkerProcess(cast(World, place), "worker-1", ["--monitor-port", "0"])
    try:
        for command in commands():
            if command[0] == "worker":
                options = "--config cco.toml --name worker-1 --state state/worker-1 --monitor-port 9101"
                assert command[1:] == shlex.split(options)
                worker.start()  # in a process of its own, at a port that is free
                continue
            if command[0] == "patches":
                wait_for(lambda: is_exact(worker), "everything to be published")
            assert main(command) == 0, (command, capsys.readouterr())
    finally:
        worker.kill()
    said = capsys.readouterr().out
    assert "equal" in said
    assert "0 dead letters" in said


def is_exact(worker: WorkerProcess) -> bool:
    """Whether it has applied all events, and published what they made."""
    status = worker.status()
    return bool(
        status
        and status["edits"]
        and sum(told["position"] for told in status["interactions"].values()) == EVENTS
        and all(told["exact"] and sum(told["sources"]) == EVENTS for told in status["edits"].values())
    )


def test_what_the_section_names_is_there() -> None:
    for path in re.findall(r"\]\((?!#)([^)]+)\)", SECTION) + re.findall(r"`(tests/[\w/.]+)`", SECTION):
        assert (ROOT / path).exists(), path
    metrics = (ROOT / "agents" / "workers" / "metrics.py").read_text(encoding="utf-8")
    for name in re.findall(r"\bcco_(\w+?)(?:_total)?\b", SECTION):
        assert f'"{name}"' in metrics, name
    made = subprocess.run(["make", "--dry-run", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"`make ([\w-]+)", SECTION):
        assert f"make {target} " in made, target
