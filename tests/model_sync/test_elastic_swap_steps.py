"""A rebuild that dies, or whose node dies, at each of its requests: what is served is one model or the other, whole."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from elastic_transport import ConnectionError as NotReached
from elasticsearch import Elasticsearch

from model_sync import elastic_load, elastic_patience, elastic_swap
from model_sync.contract import Query
from model_sync.elastic_client import ElasticOptions, ElasticProblem, names, sync_client
from model_sync.elastic_index import ElasticIndex
from tests.model_sync.samples import CONFIG
from tests.model_sync.swap_world import Asking, made_up, model, publish, roles, served, vocabulary
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch

READS = ("_search", "_msearch", "_mget", "_count")
# What a rebuild asks for that changes something, in this order; `_bulk` as often as it takes.
STEPS = [
    "PUT items-N", "PUT _mapping", "PUT _bulk", "PUT _settings", "POST _refresh", "PUT _mapping", "POST _aliases",
    "POST _aliases", "PUT _mapping", "PUT _mapping", "DELETE items-N",
]  # fmt: skip

Request = Callable[[], Any]
Interfere = Callable[[str, Request], Any]


class DiedError(BaseException):
    """The process is gone, and asks for nothing more."""


def step_of(method: str, target: str) -> str | None:
    """A request in two words; None if it changes nothing."""
    last = target.partition("?")[0].rsplit("/", 1)[-1]
    if method in ("GET", "HEAD") or last in READS:
        return None
    return f"{method} {last if last.startswith('_') else 'items-N'}"


@pytest.fixture(autouse=True)
def nobody_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are no agents here; and where a node comes back, it is seen soon."""
    monkeypatch.setattr(elastic_swap, "NOBODY_SECONDS", 0.0)
    monkeypatch.setattr(elastic_swap, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(elastic_swap, "HEARTBEAT_SECONDS", 600.0)  # one more request
    monkeypatch.setattr(elastic_patience, "LONGEST_WAIT", 0.2)


@pytest.fixture
def interfered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Interfere], None]:
    """Let somebody come between rebuilds and the node from now on: called with each step and what performs it."""

    def interfered_by(interfere: Interfere) -> None:
        @contextmanager
        def client_of(options: ElasticOptions) -> Iterator[Elasticsearch]:
            with sync_client(options) as client:
                perform = client.transport.perform_request

                def between(method: str, target: str, **given: Any) -> Any:
                    request = partial(perform, method, target, **given)
                    return interfere(step_of(method, target) or "", request)

                monkeypatch.setattr(client.transport, "perform_request", between)
                yield client

        monkeypatch.setattr(elastic_swap, "sync_client", client_of)

    return interfered_by


class Dying:
    """A process that dies before the step of a number, so after the one before it; nothing comes from it any more."""

    def __init__(self, number: int) -> None:
        self._left, self._dead = number, False
        self.steps: list[str] = []

    def __call__(self, step: str, request: Request) -> Any:
        if self._dead:
            raise DiedError
        if step:
            self.steps.append(step)
            self._left -= 1
            if self._left < 0:
                self._dead = True
                raise DiedError
        return request()


def in_words(steps: list[str]) -> list[str]:
    """The same with one `_bulk` for all that follow each other."""
    return [step for before, step in zip(["", *steps], steps, strict=False) if step != before or "_bulk" not in step]


def test_it_dies_at_any_step(
    elasticsearch: ElasticsearchServer, index_prefix: str, monkeypatch: pytest.MonkeyPatch,
    interfered: Callable[[Interfere], None],
) -> None:  # fmt: skip
    monkeypatch.setattr(elastic_load, "MOST_DOCUMENTS", 25)  # three requests for the rows
    options = ElasticOptions((elasticsearch.url,), prefix=index_prefix)
    aliases, models = names(options), [made_up(1), made_up(2)]
    with sync_client(options) as client:
        publish(options, models[1])
        publish(options, models[0])  # so that there is one to go back to, and one too many afterwards
        known = vocabulary([*models[0][1], *models[1][1]])
        index = ElasticIndex(client, aliases.items, CONFIG, known)
        query = Query(history={"buy": models[0][1][:30]}, num=10)
        died: list[bool] = []
        with Asking(lambda: len(index.search(query)) == 10) as asking:
            for number in count():
                dying = Dying(number)
                interfered(dying)
                before, after = models[number % 2], models[1 - number % 2]
                try:
                    publish(options, after)
                    break
                except DiedError:
                    died.append(served(client, aliases, after[1]) == model(after))
                    assert died[-1] or served(client, aliases, before[1]) == model(before)
                interfered(lambda step, request: request())
                if "loading" in roles(client, aliases).values():
                    with pytest.raises(ElasticProblem, match="no second rebuild"):
                        publish(options, after)
                publish(options, after, take_over=True)
                assert served(client, aliases, after[1]) == model(after)
                assert sorted(roles(client, aliases).values()) == ["live", "previous"]
    assert asking.failures == [] and asking.asked > 20
    assert in_words(dying.steps) == STEPS and dying.steps.count("PUT _bulk") == 3
    swap = STEPS.index("POST _aliases") + 1 + 2  # the place of the second one among all requests
    assert died == [False] * (swap + 1) + [True] * (len(died) - swap - 1)  # the first death after it sees it


def test_the_node_dies_in_the_swap_itself(tmp_path: Path, interfered: Callable[[Interfere], None]) -> None:
    """Before the request that moves the alias, and after it, when the answer is lost."""
    starts: list[threading.Thread] = []
    with ElasticsearchServer(tmp_path / "node", fetch_elasticsearch(), heap="512m") as node:
        options = ElasticOptions((node.url,))
        aliases, made = names(options), made_up(3)
        publish(options, made_up(4))

        def outage() -> None:
            node.kill()
            starts.append(threading.Thread(target=node.start))
            starts[-1].start()

        for answer_is_lost in (False, True):
            seen = []

            def interfere(step: str, request: Request, seen: list[str] = seen, lost: bool = answer_is_lost) -> Any:
                seen += [step] if step == "POST _aliases" else []
                if step != "POST _aliases" or len(seen) != 2:
                    return request()
                if lost:
                    request()
                outage()
                raise NotReached("gone")

            interfered(interfere)
            done = publish(options, made)
            starts[-1].join()
            assert len(seen) == 2 + (not answer_is_lost), seen
            with sync_client(options) as client:
                assert served(client, aliases, made[1]) == model(made)
                assert roles(client, aliases) == {done.index[-6:]: "live", (done.previous or "")[-6:]: "previous"}
            made = made_up(5)
    assert len(starts) == 2
