"""Clients of Elasticsearch: what they are given, and what each failure says to a person."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from model_sync.elastic_client import ElasticOptions, ElasticProblem, async_client, elastic_errors, names, sync_client
from tests.servers.elasticsearch import ElasticsearchServer


def test_names_begin_with_the_prefix() -> None:
    assert names(ElasticOptions(urls=("http://a:1",), prefix="shop-")) == ("shop-items", "shop-users")


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(ElasticOptions(urls=("http://a:1",), password="hidden", api_key="hidden"))


def test_both_clients_work(elasticsearch: ElasticsearchServer) -> None:
    options = ElasticOptions(urls=(elasticsearch.url,))

    async def health() -> Any:
        async with async_client(options) as client:
            return (await client.cluster.health())["status"]

    with sync_client(options) as client:
        assert client.cluster.health()["cluster_name"] == "cco-tests"
    assert asyncio.run(health()) in ("green", "yellow")


def said(options: ElasticOptions, ask: Callable[[Elasticsearch], Any]) -> str:
    with pytest.raises(ElasticProblem) as caught, elastic_errors(options, "testing"), sync_client(options) as client:
        ask(client)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"Elasticsearch at {', '.join(options.urls)}")
    return text


def test_what_a_node_refuses_is_said(elasticsearch: ElasticsearchServer, index_prefix: str) -> None:
    options = ElasticOptions(urls=(elasticsearch.url,))
    missing = said(options, lambda client: client.search(index=index_prefix + "items"))
    assert f"has no such index or alias while testing: no such index [{index_prefix}items]" in missing
    assert missing.endswith("`cco index create` makes it")
    with sync_client(options) as client:
        client.indices.create(index=index_prefix + "x", mappings={"properties": {"n": {"type": "long"}}})
    wrong = said(options, lambda client: client.index(index=index_prefix + "x", document={"n": "one"}))
    assert "answered 400 while testing: " in wrong
    assert "failed to parse field [n] of type [long]" in wrong and 'For input string: "one"' in wrong
    with sync_client(options) as client:
        client.indices.add_block(index=index_prefix + "x", block="write")
    blocked = said(options, lambda client: client.index(index=index_prefix + "x", document={"n": 1}))
    assert "blocks it while testing: " in blocked and "is its disk full?" in blocked


def test_who_does_not_answer_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert "cannot be reached while testing: is it running" in said(ElasticOptions(urls=(url,)), ask_health)
        taken.listen()  # listens, and does not answer
        slow = said(ElasticOptions(urls=(url,)), lambda client: client.options(request_timeout=0.1).cluster.health())
        assert "did not answer in time while testing" in slow


def ask_health(client: Elasticsearch) -> Any:
    return client.cluster.health()


@contextmanager
def answering(status: int, body: bytes, kind: str) -> Iterator[str]:
    """A server that is no Elasticsearch, or one that stands behind a gate."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    serving = threading.Thread(target=server.serve_forever, args=(0.01,))
    serving.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        serving.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "part"),
    [
        (200, b"{}", "is this address one of Elasticsearch?"),
        (401, b'{"error": {"type": "security_exception", "reason": "no"}}', "refused the login while testing: check"),
        (403, b'{"error": {"type": "security_exception", "reason": "not you"}}', "does not permit it while testing: n"),
        (429, b'{"error": {"type": "circuit_breaking_exception", "reason": "full"}}', "is overloaded while testing: f"),
        (503, b"no upstream", "is not ready while testing"),
        (200, b"not JSON", "is this address one of Elasticsearch?"),
    ],
)
def test_what_gates_and_others_answer_is_said(status: int, body: bytes, part: str) -> None:
    kind = "application/json" if body != b"no upstream" else "text/plain"
    with answering(status, body, kind) as url:
        assert part in said(ElasticOptions(urls=(url,)), ask_health)


def test_certificates_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "absent.pem"):
        with pytest.raises(ElasticProblem, match=rf"ca_file: .*{name} cannot be used as certificates \(PEM\): "):
            sync_client(ElasticOptions(urls=("https://a:1",), ca_file=tmp_path / name))


def test_tls_that_fails_is_said(elasticsearch: ElasticsearchServer) -> None:
    url = elasticsearch.url.replace("http", "https")
    assert "TLS failed while testing" in said(ElasticOptions(urls=(url,)), ask_health)
