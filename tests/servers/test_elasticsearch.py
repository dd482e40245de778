"""The node of the tests: what it acknowledged survives its death, its address stays, and it dies with its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from elasticsearch import ConnectionError as NotReached
from elasticsearch import ConnectionTimeout, Elasticsearch

from tests.kafka.world import wait_for
from tests.servers.common import ROOT
from tests.servers.elasticsearch import LAUNCHER, POM, ElasticsearchError, ElasticsearchServer, fetch_elasticsearch

PATIENCE = 30.0  # seconds


def client(server: ElasticsearchServer) -> Elasticsearch:
    return Elasticsearch(server.url, request_timeout=10, max_retries=0)


def test_what_was_acknowledged_survives_a_kill_and_a_pause(tmp_path: Path) -> None:
    with ElasticsearchServer(tmp_path / "node", fetch_elasticsearch()) as server, client(server) as elastic:
        elastic.indices.create(index="numbers", mappings={"properties": {"row": {"type": "sparse_vector"}}})
        for k in range(20):
            elastic.index(index="numbers", id=str(k), document={"row": [{f"i{k}": 1.5}]})
        first, url = server.pid, server.url
        server.kill()
        with pytest.raises(ElasticsearchError, match="does not run"):
            server.pause()
        with pytest.raises(NotReached):
            elastic.count(index="numbers")
        server.start()
        assert (server.url, server.pid == first) == (url, False)
        elastic.indices.refresh(index="numbers")  # no waiting: its shards are there when `start` returns
        assert elastic.count(index="numbers")["count"] == 20
        assert elastic.search(index="numbers", query={"term": {"row": "i7"}})["hits"]["hits"][0]["_id"] == "7"
        server.pause()
        with pytest.raises(ConnectionTimeout):
            elastic.options(request_timeout=0.3).index(index="numbers", id="20", document={})
        server.resume()
        elastic.index(index="numbers", id="21", document={})
        wait_for(lambda: elastic.exists(index="numbers", id="20"), "what it was told while it stood still")
        with pytest.raises(ElasticsearchError, match="runs already"):
            server.start()
        server.pause()  # a paused one is stopped all the same
    assert b"node closed" in server.log.read_bytes(), "it was not stopped gracefully"
    with socket.socket() as trial:
        host, port = server.address.split(":")
        assert trial.connect_ex((host, int(port))) != 0


def test_a_node_dies_with_its_parent(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch\n"
        "server = ElasticsearchServer(pathlib.Path(sys.argv[1]), fetch_elasticsearch()); server.start()\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        node = Path(f"/proc/{int(parent.stdout.readline())}")
        assert b"ElasticsearchLauncher" in (node / "cmdline").read_bytes()
        os.kill(parent.pid, signal.SIGKILL)
    deadline = time.monotonic() + PATIENCE
    while node.exists():
        assert time.monotonic() < deadline, "the node lives on"
        time.sleep(0.01)


def test_the_jars_may_be_reached_by_another_path(tmp_path: Path) -> None:
    libs = fetch_elasticsearch()
    (tmp_path / "link").symlink_to(libs)
    (tmp_path / "copy").mkdir()
    for part in libs.iterdir():  # as a copy of the repository has it: the jars elsewhere, and the archive not of them
        (tmp_path / "copy" / part.name).symlink_to(part)
    for name in ("link", "copy"):
        server = ElasticsearchServer(tmp_path / f"{name}-node", tmp_path / name)
        with server, client(server) as elastic:
            elastic.indices.create(index="numbers")


def test_a_node_that_does_not_start_shows_why(tmp_path: Path) -> None:
    with socket.socket() as owner:
        owner.bind(("127.0.0.1", 0))
        owner.listen()
        taken = ElasticsearchServer(tmp_path / "taken", fetch_elasticsearch(), port=owner.getsockname()[1])
        with pytest.raises(ElasticsearchError, match=r"ended with code 1; the tail of .*[\s\S]*Address already in use"):
            taken.start()
    wrong = ElasticsearchServer(tmp_path / "wrong", fetch_elasticsearch(), settings={"no.such.setting": "1"})
    with pytest.raises(ElasticsearchError, match=r"unknown setting \[no\.such\.setting\]"):
        wrong.start()


def test_missing_programs_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ElasticsearchError, match=r"`java` is not installed.*a real Elasticsearch.*apt-get install"):
        fetch_elasticsearch(tmp_path / "servers")


def test_a_complete_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    folder = tmp_path / "elasticsearch-8.19.9"
    folder.mkdir()
    (folder / "pom.xml").write_bytes(POM.read_bytes())
    with pytest.raises(ElasticsearchError, match="not installed"):
        fetch_elasticsearch(tmp_path)  # of another launcher
    folder.mkdir(exist_ok=True)
    (folder / "pom.xml").write_bytes(POM.read_bytes())
    (folder / LAUNCHER.name).write_bytes(LAUNCHER.read_bytes())
    assert fetch_elasticsearch(tmp_path) == folder
