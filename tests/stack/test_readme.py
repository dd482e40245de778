"""What README.md shows about Elasticsearch and the query service works as it is written."""

from __future__ import annotations

import gzip
import inspect
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from prometheus_client import CollectorRegistry

from agents.cli.main import main
from agents.health import system_mode
from agents.serving.embedded import BackgroundServer
from agents.serving.settings import load_serve_settings
from agents.serving.stack import stack_service
from agents.settings import load_settings
from agents.workers import elastic_publishing
from model_sync.service.metrics import ServiceMetrics
from tests.kafka.world import ROOT, WorkerProcess, World, wait_for
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## With Elasticsearch\n")[2].partition("\n## ")[0]
USERS = {"bob": ["tablet", "pen"], "cleo": ["tablet", "pen"], "dan": ["phone"], "eve": ["phone", "case"]}


def blocks(kind: str = "") -> list[str]:
    """The blocks of the section, of one language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language == kind]


def requests() -> list[tuple[str, Any]]:
    """(path, body) of what curl is to send."""
    (block,) = (text for text in blocks() if text.startswith("curl"))
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        options = shlex.split(line)
        assert options[:2] == ["curl", "-s"] and options[3:5] == ["-H", "Content-Type: application/json"]
        found.append((options[2].removeprefix("http://127.0.0.1:8000"), json.loads(options[options.index("-d") + 1])))
    return found


def test_the_commands_and_the_requests(
    kafka: KafkaServer,
    elasticsearch: ElasticsearchServer,
    index_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"BROKERS": kafka.bootstrap, "TOPIC_PREFIX": index_prefix, "GROUP": index_prefix,
              "ELASTICSEARCH_URLS": elasticsearch.url, "ELASTICSEARCH_INDEX_PREFIX": index_prefix}  # fmt: skip
    for name, value in places.items():
        monkeypatch.setenv(f"CCO_{name}", value)
    shutil.copy(ROOT / "deploy" / "cco.toml", "cco.toml")
    bought = "".join(f"{user},{item},purchase,1700000000\n" for user, items in USERS.items() for item in items)
    Path("events.csv.gz").write_bytes(gzip.compress(("user,item,event,timestamp\n" + bought).encode()))
    Path("items.csv").write_text("item,category,price\ntablet,office,300\npen,office,2.5\ncase,toys,9\nphone,toys,99\n")
    place = World.__new__(World)
    place.folder, place.config_file = tmp_path, tmp_path / "cco.toml"
    worker = WorkerProcess(place, "worker-1", ["--monitor-port", "0"])
    (block,) = (text for text in blocks() if text.startswith("cco topics"))
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    served = commands.pop()
    assert served == shlex.split("serve --config cco.toml --port 8000")
    try:
        for command in commands:
            if command[0] == "worker":
                worker.start()
            else:
                assert main(command) == 0, (command, capsys.readouterr())
        config, settings = load_settings(Path("cco.toml"), {})
        _, _, keys = load_serve_settings(Path("cco.toml"), {})
        service = stack_service(config, settings, keys)
        with BackgroundServer(service) as server, httpx.Client(base_url=server.url, timeout=10) as http:
            (told, event), (asked, question) = requests()
            assert (told, asked) == ("/events", "/recommendations")
            assert http.post(told, json=event).status_code == 200
            answer = wait_for(lambda: recommended(http, asked, question), "the recommendation")
    finally:
        worker.kill()
    (shown,) = map(json.loads, blocks("json"))
    assert shown.keys() == answer.keys()
    assert shown["items"][0].keys() == answer["items"][0].keys()
    for example, found in ((shown, answer), (shown["items"][0], answer["items"][0])):
        fields = ("history",) if "history" in example else ("item", "properties")
        assert [example[name] for name in fields] == [found[name] for name in fields]


def recommended(http: httpx.Client, path: str, question: dict[str, Any]) -> dict[str, Any] | None:
    """The answer, once it comes from the history and has the metadata."""
    answer = http.post(path, json=question)
    if answer.status_code != 200:
        return None
    found = cast("dict[str, Any]", answer.json())
    ready = found["history"] and found["items"] and found["items"][0]["score"] > 0 and found["items"][0]["properties"]
    return found if ready else None


def test_what_the_section_names_is_there() -> None:
    for path in re.findall(r"\]\((?!#)([^)]+)\)", SECTION) + re.findall(r"`(tests/[\w/.]+)`", SECTION):
        assert (ROOT / path).exists(), path
    registry = CollectorRegistry()
    ServiceMetrics(registry).follow_model_age(lambda: 1.0)
    known = {family.name for family in registry.collect()}
    for module in (elastic_publishing, system_mode):
        known |= set(re.findall(r'MetricFamily\(\s*"(cco_\w+)"', inspect.getsource(module)))
    names = set(re.findall(r"\bcco_(\w+?)(?:_total)?`", SECTION))
    assert len(names) >= 6
    assert {f"cco_{name}" for name in names} <= known
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`make ([\w-]+)", SECTION):
        assert re.search(rf"^{target}:", targets, re.MULTILINE), target
