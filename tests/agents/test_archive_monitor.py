"""What the archive's agent tells at its monitor port: records, files and lag by partition, and why it stands still."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agents.cli.main import main
from agents.kafka.topics import create_topics
from agents.settings import Settings
from cco.config import parse_config
from tests.agents.test_archive_agent import write_config
from tests.agents.test_kafka_log import SOURCES, TOML, story, write
from tests.kafka.world import ROOT, wait_for
from tests.servers.kafka import KafkaServer


@pytest.fixture
def settings(kafka: KafkaServer, topic_prefix: str) -> Settings:
    made = Settings(brokers=kafka.bootstrap, topic_prefix=topic_prefix)
    asyncio.run(create_topics(parse_config(TOML, "cco.toml"), made))
    return made


@pytest.fixture
def config_file(tmp_path: Path, settings: Settings) -> Path:
    return write_config(tmp_path, settings)


@contextmanager
def running(config_file: Path, url: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`cco archive run` with a monitor at a free port; it ends well at SIGTERM."""
    command = [sys.executable, "-m", "agents", "archive", "run", str(url), "--config", str(config_file)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--every", "0.1", "--monitor-port", "0"], stdout=out, stderr=out, cwd=ROOT, env=os.environ
        )
    try:
        yield process
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()


def monitor(log: Path) -> str | None:
    """Where it answers, once it has said so."""
    told = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return next((str(line["monitor"]) for line in told if "monitor" in line), None)


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(url: str) -> dict[tuple[str, str], float]:
    """By metric and source partition."""
    families = text_string_to_metric_families(get(f"{url}/metrics")[1])
    return {
        (sample.name, sample.labels.get("source_partition", "")): sample.value
        for family in families
        for sample in family.samples
        if sample.name.startswith("cco_archive")
    }


def test_records_files_and_lag(settings: Settings, config_file: Path, tmp_path: Path) -> None:
    log, folder, told = tmp_path / "log", tmp_path / "archive", story(1)
    write(settings, [message for message, _, _ in told[:200]])
    ends = [sum(message[0] == partition for message, _, _ in told[:200]) for partition in range(SOURCES)]
    with running(config_file, folder, log):
        url = wait_for(lambda: monitor(log), "the monitor")
        wait_for(lambda: sum(of.get("archived", 0) for of in status(url).values()) == 200, "what was sent")
        found = samples(url)
        for partition, end in enumerate(ends):
            at = str(partition)
            assert (found["cco_archive_records_total", at], found["cco_archive_lag_records", at]) == (end, 0)
            assert 1 <= found["cco_archive_files_total", at] <= end
        assert (found["cco_archive_failures_total", ""], found["cco_archive_merged_files_total", ""]) == (0, 0)
        assert get(f"{url}/readyz")[0] == get(f"{url}/healthz")[0] == 200

        folder.rename(tmp_path / "away")  # the place is gone, and something else is in its way
        folder.write_text("")
        write(settings, [message for message, _, _ in told[200:]])
        wait_for(lambda: get(f"{url}/readyz")[0] == 503, "the trouble to be told")
        assert "files cannot be written" in get(f"{url}/readyz")[1] and get(f"{url}/healthz")[0] == 200
        wait_for(lambda: lag(samples(url)) == 200, "the lag")
        assert samples(url)["cco_archive_failures_total", ""] >= 1
        folder.unlink()
        (tmp_path / "away").rename(folder)
        wait_for(lambda: lag(samples(url)) == 0, "it to go on")
        wait_for(lambda: get(f"{url}/readyz")[0] == 200, "it to be well")
        assert sum(value for (name, _), value in samples(url).items() if name == "cco_archive_records_total") == 400


def status(url: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(get(f"{url}/status")[1])["partitions"]
    return found


def lag(found: dict[tuple[str, str], float]) -> float:
    return sum(value for (name, _), value in found.items() if name == "cco_archive_lag_records")


def test_a_port_that_is_taken_is_said(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = ["archive", "run", str(tmp_path / "archive"), "--once", "--monitor-port", port]
        assert main([*command, "--config", str(config_file)]) == 2
    assert "the monitor cannot listen on 127.0.0.1:" + port in capsys.readouterr().err
