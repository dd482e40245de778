"""The broker of the tests: what it acknowledged survives its death, its address stays, and it dies with its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.servers.kafka import POM, ROOT, KafkaError, KafkaServer, fetch_kafka

MESSAGES = [b"%d" % k for k in range(1000)]
TOPIC = "numbers"
PATIENCE = 30.0  # seconds


async def produce(address: str, messages: list[bytes]) -> None:
    """Returns when all are acknowledged."""
    async with AIOKafkaProducer(bootstrap_servers=address, acks="all") as producer:
        await asyncio.gather(*[await producer.send(TOPIC, message) for message in messages])


async def create(address: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        response = await admin.create_topics([NewTopic(TOPIC, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()
    assert [error for _, error, *_ in response.topic_errors] == [0]


async def consume(address: str, count: int) -> list[bytes]:
    found: list[bytes] = []
    async with AIOKafkaConsumer(bootstrap_servers=address, auto_offset_reset="earliest") as consumer:
        consumer.assign([TopicPartition(TOPIC, 0)])
        async with asyncio.timeout(PATIENCE):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    found += [record.value for record in records]
    return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_what_was_acknowledged_survives_a_kill_and_a_pause(tmp_path: Path) -> None:
    with KafkaServer(tmp_path / "broker", fetch_kafka()) as server:
        address = server.bootstrap
        asyncio.run(create(address))
        asyncio.run(produce(address, MESSAGES))
        first = server.pid
        server.kill()
        with pytest.raises(KafkaError, match="does not run"):
            server.pause()
        # From a thread that ends at once: the broker must not end with it.
        starting = threading.Thread(target=server.start)
        starting.start()
        starting.join()
        assert server.bootstrap == address
        assert server.pid != first
        server.pause()
        producing = threading.Thread(target=lambda: asyncio.run(produce(address, [b"after"])))
        producing.start()
        producing.join(0.5)
        assert producing.is_alive(), "a paused broker acknowledged something"
        server.resume()
        producing.join()
        assert asyncio.run(consume(address, len(MESSAGES) + 1)) == [*MESSAGES, b"after"]
        with pytest.raises(KafkaError, match="runs already"):
            server.start()
    assert (tmp_path / "broker" / "data" / ".kafka_cleanshutdown").exists(), "it was not stopped gracefully"
    with socket.socket() as trial:
        host, port = address.split(":")
        assert trial.connect_ex((host, int(port))) != 0


def test_a_broker_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from tests.servers.kafka import KafkaServer, fetch_kafka\n"
        "server = KafkaServer(pathlib.Path(sys.argv[1]), fetch_kafka()); server.start()\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        broker = Path(f"/proc/{int(parent.stdout.readline())}")
        assert b"kafka.Kafka" in (broker / "cmdline").read_bytes()
        os.kill(parent.pid, signal.SIGKILL)
    wait_for(lambda: not broker.exists(), "the broker lives on")


def test_a_taken_port_is_left_to_its_owner(tmp_path: Path) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        server = KafkaServer(tmp_path / "chosen", fetch_kafka(), port=owner.getsockname()[1])
        with pytest.raises(KafkaError, match=r"ended with code 1; the tail of .*[\s\S]*Address already in use"):
            server.start()
        # One that may choose: make its choice a clash, as another process would between the look and the start.
        free = KafkaServer(tmp_path / "free", fetch_kafka())
        free._ports = (owner.getsockname()[1], free._ports[1])
        with free:
            assert free.bootstrap != f"127.0.0.1:{owner.getsockname()[1]}"


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaError, match=r"`java` is not installed.*apt-get install"):
        fetch_kafka(tmp_path / "servers")
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    with pytest.raises(KafkaError, match="needs Java 17 or newer, and `java` is 11"):
        fetch_kafka(tmp_path / "servers")
    old.write_text("#!/bin/sh\necho 'openjdk version \"21\" 2023-09-19' >&2\n")
    with pytest.raises(KafkaError, match="`mvn` is not installed"):
        fetch_kafka(tmp_path / "servers")
    maven = tmp_path / "mvn"
    maven.write_text("#!/bin/sh\necho 'no network'\nexit 1\n")
    maven.chmod(0o755)
    with pytest.raises(KafkaError, match="fetching Kafka's jars failed: mvn ended with code 1:\nno network"):
        fetch_kafka(tmp_path / "servers")


def test_a_complete_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "kafka-4.4.0"
    folder.mkdir()
    (folder / "pom.xml").write_bytes(POM.read_bytes())
    assert fetch_kafka(tmp_path) == folder
