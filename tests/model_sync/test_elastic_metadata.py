"""Changes of items' metadata on a real node: in order, once, beside rows and other writers, and when it is away."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import Elasticsearch

from cco.event_data import ItemChange
from cco.vocabulary import Vocabulary
from model_sync import elastic_mapping, elastic_metadata
from model_sync.elastic_client import ElasticOptions, ElasticProblem, async_client, sync_client
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_metadata import MetadataWriter, PositionedChange, Read, Refusal, Steps, Wait, Write, write
from tests.model_sync.reference import patches
from tests.model_sync.samples import CONFIG
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch

PATIENCE = 30.0  # seconds


@pytest.fixture(scope="module")
def elastic(elasticsearch: ElasticsearchServer) -> Iterator[Elasticsearch]:
    with sync_client(ElasticOptions((elasticsearch.url,))) as client:
        yield client


@pytest.fixture
def name(elastic: Elasticsearch) -> Iterator[str]:
    """An index of the test's own."""
    name = f"t{uuid.uuid4().hex}"
    make(elastic, name)
    yield name
    elastic.indices.delete(index=f"{name}-000001")


def make(elastic: Elasticsearch, name: str) -> None:
    mappings, settings = elastic_mapping.mapping("items", CONFIG), elastic_mapping.settings()
    elastic.indices.create(index=f"{name}-000001", mappings=mappings, settings=settings, aliases={name: {}})


def changes(*given: tuple[int | None, str, str, dict[str, Any]]) -> list[PositionedChange]:
    """(position, kind, item, properties)"""
    return [PositionedChange(ItemChange(item, kind, of), at) for at, kind, item, of in given]  # type: ignore[arg-type]


def written(elasticsearch: ElasticsearchServer, name: str, given: Sequence[PositionedChange]) -> list[Refusal]:
    async def run() -> list[Refusal]:
        async with async_client(ElasticOptions((elasticsearch.url,))) as client:
            return await asyncio.wait_for(MetadataWriter(client, name, CONFIG).write(given), PATIENCE)

    return asyncio.run(run())


def document(elastic: Elasticsearch, name: str, item: str) -> dict[str, Any]:
    [found] = elastic.mget(index=name, ids=[item])["docs"]
    return found.get("_source", {}) | {"version": found.get("_version")}  # type: ignore[no-any-return]


def test_changes_of_an_item_are_made_in_order_and_at_once(
    elasticsearch: ElasticsearchServer, elastic: Elasticsearch, name: str
) -> None:
    given = changes(
        (1, "set", "i", {"color": "red", "price": 1}),
        (2, "set", "j", {"color": "blue"}),
        (3, "set", "i", {"price": 2, "rank": 5}),
        (4, "unset", "i", {"color": None}),
        (5, "delete", "j", {}),
        (6, "unset", "nobody", {"color": None}),
        (7, "delete", "k", {}),
        (8, "set", "k", {"size": 1}),
    )
    assert written(elasticsearch, name, given) == []
    found = document(elastic, name, "i")
    assert found["properties"] == [{"price": 2, "rank": 5}] and found["rank"] == 5 and found["metadata_position"] == 4
    assert (found["known"], found["deleted"], found["version"]) == (True, False, 1)
    assert document(elastic, name, "j") | {"shuffle": 0} == {
        "id": "j", "shuffle": 0, "known": False, "deleted": True, "properties": [], "returned": None, "tokens": [],
        "rank": None, "metadata_position": 5, "version": 1, "available": [], "expires": [],
    }  # fmt: skip
    assert document(elastic, name, "nobody") == {"version": None}
    assert document(elastic, name, "k")["deleted"] is False


def test_what_comes_again_is_skipped(elasticsearch: ElasticsearchServer, elastic: Elasticsearch, name: str) -> None:
    first = changes((1, "set", "i", {"a": 1}), (2, "unset", "i", {"a": None}), (3, "set", "i", {"b": 2}))
    written(elasticsearch, name, first)
    written(elasticsearch, name, changes((9, "set", "i", {"c": 3})))
    before = document(elastic, name, "i")
    for again in (first, first[:1], first[1:2]):
        written(elasticsearch, name, again)
    assert document(elastic, name, "i") == before
    assert before["properties"] == [{"b": 2, "c": 3}] and before["version"] == 2


def test_bad_changes_are_refused_and_harm_no_other(
    elasticsearch: ElasticsearchServer, elastic: Elasticsearch, name: str
) -> None:
    given = changes(
        (1, "set", "i", {"a": 1}),
        (2, "set", "i", {"a.b": 1}),
        (3, "set", "x" * 600, {}),
        (4, "set", "i", {"b": [1, "x"]}),
    )
    found = written(elasticsearch, name, given)
    assert [refusal.position for refusal in found] == [2, 3]
    assert "without a dot" in found[0].reason and "600 bytes" in found[1].reason
    assert document(elastic, name, "i")["properties"] == [{"a": 1, "b": [1, "x"]}]


def test_a_change_that_elasticsearch_refuses_is_told_and_harms_no_other(
    elasticsearch: ElasticsearchServer, elastic: Elasticsearch
) -> None:
    """Of the same item neither, however many come together."""
    name = f"t{uuid.uuid4().hex}"
    mappings = elastic_mapping.mapping("items", CONFIG)
    mappings["properties"]["properties"]["properties"]["size"] = {"type": "integer"}
    elastic.indices.create(index=f"{name}-000001", mappings=mappings, aliases={name: {}})
    told = [
        (1, "set", "i", {"color": "red"}), (2, "set", "j", {"size": 4}), (3, "set", "i", {"size": "large"}),
        (4, "set", "k", {"size": "small"}), (5, "set", "i", {"price": 5}),
    ]  # fmt: skip
    found = written(elasticsearch, name, changes(*told))
    assert sorted(refusal.position or 0 for refusal in found) == [3, 4] and "properties.size" in found[0].reason
    assert document(elastic, name, "j")["properties"] == [{"size": 4}]
    together = document(elastic, name, "i")
    assert together["properties"] == [{"color": "red", "price": 5}] and together["metadata_position"] == 5
    assert document(elastic, name, "k") == {"version": None}
    elastic.indices.delete(index=f"{name}-000001")


def test_rows_and_metadata_do_not_overwrite_each_other(
    elasticsearch: ElasticsearchServer, elastic: Elasticsearch, name: str
) -> None:
    items = Vocabulary()
    index = ElasticIndex(elastic, name, CONFIG, items)
    index.apply(patches(CONFIG, items, {"i": {"buy": {"x": 2.0}}}))
    written(elasticsearch, name, changes((1, "set", "i", {"color": "red"}), (1, "set", "j", {"color": "red"})))
    index.apply(patches(CONFIG, items, {"i": {"view": {"x": 1.0}}, "j": {"priors": {"popular": 1.0}}}))
    written(elasticsearch, name, changes((2, "delete", "j", {})))
    found, other = document(elastic, name, "i"), document(elastic, name, "j")
    assert found["rows"] == {"buy": [{"x": 2.0}], "view": [{"x": 1.0}]}
    assert found["filled"] == {"buy": True, "view": True}
    assert found["properties"] == [{"color": "red"}] and found["known"]
    assert other["priors"] == [{"popular": 1.0}] and other["deleted"] and other["properties"] == []


def carry(elastic: Elasticsearch, name: str, steps: Steps, answer: Any = None) -> tuple[Read | Write | Wait, Any]:
    """One step of a writer and the node's answer."""
    step = steps.send(answer)
    assert not isinstance(step, Wait)
    if isinstance(step, Read):
        return step, elastic.mget(index=name, ids=step.ids, source_includes=elastic_metadata.SOURCE)["docs"]
    return step, elastic.bulk(index=name, operations=step.lines, require_alias=True)["items"]


@pytest.mark.parametrize("there", [False, True])
def test_two_writers_at_once_lose_nothing(elastic: Elasticsearch, name: str, there: bool) -> None:
    if there:
        elastic.index(index=name, id="i", document={"known": True, "properties": [{"old": 1}]})
    writers = [write(CONFIG, changes((None, "set", "i", {f"of {k}": k}))) for k in range(4)]
    answers: dict[int, Any] = {k: None for k in range(4)}
    rounds = 0
    while answers:  # in turn: all read, all write, all but one read again
        rounds += 1
        for k, answer in list(answers.items()):
            try:
                _, answers[k] = carry(elastic, name, writers[k], answer)
            except StopIteration as done:
                assert done.value == []
                del answers[k]
    assert rounds > 4
    old = {"old": 1} if there else {}
    assert document(elastic, name, "i")["properties"] == [old | {f"of {k}": k for k in range(4)}]


def test_requests_are_limited(elasticsearch: ElasticsearchServer, elastic: Elasticsearch, name: str) -> None:
    text = "x" * 30_000
    given = changes(*((k, "set", f"i{k}", {"text": text}) for k in range(700)))
    steps = write(CONFIG, given)
    seen: list[Read | Write | Wait] = []
    answer = None
    with pytest.raises(StopIteration):
        while True:
            step, answer = carry(elastic, name, steps, answer)
            seen.append(step)
    assert [len(step.ids) for step in seen if isinstance(step, Read)] == [500, 200]
    sizes = [sum(map(len, step.lines)) for step in seen if isinstance(step, Write)]
    assert max(sizes) <= elastic_metadata.MOST_BYTES and len(sizes) > 4
    elastic.indices.refresh(index=name)
    assert elastic.count(index=name)["count"] == 700


@pytest.mark.parametrize("block", ["read_only", "write", "read_only_allow_delete"])
def test_who_is_told_to_wait_waits_longer_each_time_and_goes_on(elastic: Elasticsearch, name: str, block: str) -> None:
    elastic.indices.put_settings(index=name, settings={f"index.blocks.{block}": True})
    steps = write(CONFIG, changes((1, "set", "i", {"a": 1})), chance=lambda: 1.0)
    answer, waited = None, []
    while True:
        step = steps.send(answer)
        if isinstance(step, Wait):
            waited.append(step.seconds)
            answer = None
            if len(waited) == 9:
                elastic.indices.put_settings(index=name, settings={f"index.blocks.{block}": None})
                break
        elif isinstance(step, Read):
            answer = elastic.mget(index=name, ids=step.ids, source_includes=elastic_metadata.SOURCE)["docs"]
        else:
            answer = elastic.bulk(index=name, operations=step.lines, require_alias=True)["items"]
    assert waited == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    with pytest.raises(StopIteration):
        while True:
            step, answer = carry(elastic, name, steps, answer)
    assert document(elastic, name, "i")["properties"] == [{"a": 1}]


def test_no_index_is_made_where_the_alias_is_gone(elastic: Elasticsearch, name: str) -> None:
    steps = write(CONFIG, changes((1, "set", "i", {"a": 1})))
    _, answer = carry(elastic, name, steps)
    elastic.indices.delete_alias(index=f"{name}-000001", name=name)
    _, answer = carry(elastic, name, steps, answer)
    with pytest.raises(ElasticProblem, match="is not an alias"):
        steps.send(answer)
    assert not elastic.indices.exists(index=name)


def test_a_node_that_takes_small_requests_alone(tmp_path: Path) -> None:
    """What is too large by itself is refused, its neighbours are stored."""
    small = [(k, "set", f"i{k}", {"text": "x" * 4_000}) for k in range(60)]
    huge = [(60, "set", "huge", {f"p{k}": "x" * 8_000 for k in range(20)})]

    async def run(server: ElasticsearchServer) -> None:
        options = ElasticOptions((server.url,))
        with sync_client(options) as elastic:
            make(elastic, "items")
            async with async_client(options) as client:
                writer = MetadataWriter(client, "items", CONFIG)
                refused = await asyncio.wait_for(writer.write(changes(*small[:30], *huge, *small[30:])), PATIENCE)
            [refusal] = refused
            assert refusal.position == 60 and "'huge'" in refusal.reason and "too large" in refusal.reason
            elastic.indices.refresh(index="items")
            assert elastic.count(index="items")["count"] == 60

    limit = {"http.max_content_length": "100kb"}
    with ElasticsearchServer(tmp_path, fetch_elasticsearch(), settings=limit) as server:
        asyncio.run(run(server))


def test_waits_while_the_index_or_the_node_is_away(tmp_path: Path) -> None:
    async def run(server: ElasticsearchServer) -> None:
        options = ElasticOptions((server.url,))
        async with async_client(options) as client:
            writer = MetadataWriter(client, "items", CONFIG)
            writing = asyncio.create_task(writer.write(changes((1, "set", "i", {"a": 1}))))
            await until(lambda: writer.trouble is not None)
            assert writer.trouble is not None and "no such index" in writer.trouble and not writing.done()
            with sync_client(options) as elastic:
                make(elastic, "items")
            assert await asyncio.wait_for(writing, PATIENCE) == [] and writer.trouble is None
            server.kill()
            writing = asyncio.create_task(writer.write(changes((2, "set", "i", {"b": 2}))))
            await until(lambda: writer.trouble is not None)
            assert "cannot be reached" in (writer.trouble or "")
            await asyncio.to_thread(server.start)
            assert await asyncio.wait_for(writing, PATIENCE) == [] and writer.trouble is None
            with sync_client(options) as elastic:
                assert document(elastic, "items", "i")["properties"] == [{"a": 1, "b": 2}]

    with ElasticsearchServer(tmp_path, fetch_elasticsearch()) as server:
        asyncio.run(run(server))


async def until(true: Any) -> None:
    async with asyncio.timeout(PATIENCE):
        while not true():
            await asyncio.sleep(0.01)
