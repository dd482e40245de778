"""What the query service reads with: the answers of the index, users as of their last write, clear failures."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from elasticsearch import BadRequestError

from cco.vocabulary import Vocabulary
from model_sync.contract import Hit, Query, QueryError, Rule
from model_sync.elastic_admin import create
from model_sync.elastic_client import ElasticOptions, ElasticProblem, async_client, names, sync_client
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_mapping import mapping
from model_sync.elastic_query import too_large
from model_sync.elastic_reader import AsyncElasticReader
from model_sync.elastic_users import UserHistory, user_document
from tests.model_sync.reference import patches
from tests.model_sync.samples import CONFIG
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch

T = TypeVar("T")


def read(options: ElasticOptions, what: Callable[[AsyncElasticReader], Awaitable[T]]) -> T:
    async def run() -> T:
        async with async_client(options) as client:
            return await what(AsyncElasticReader(client, names(options), CONFIG))

    return asyncio.run(run())


def test_reads_what_was_written(elasticsearch: ElasticsearchServer, index_prefix: str) -> None:
    options, items = ElasticOptions((elasticsearch.url,), prefix=index_prefix), Vocabulary()
    users = ["u1", "..", "a/b", "\U0001f600", "x" * 512]
    most = [f"i{k}" for k in range(10_000)]  # of the largest user_cap
    with sync_client(options) as client:
        create(client, CONFIG, names(options))
        index = ElasticIndex(client, names(options).items, CONFIG, items)
        index.apply(patches(CONFIG, items, {"i": {"buy": {"x": 2.0}}, "j": {"priors": {"popular": 1.0}}}))
        index.put_items({"i": {"color": "red"}})
        index.flush()
        for user in users:
            body = user_document({"buy": (["x", "a.b"], 2), "view": ([], 0)}, 1_700_000_000, True, 0, 41)
            lines: Any = [b'{"index":{"_id":"%b"}}' % user.encode(), body]
            client.bulk(index=names(options).users, operations=lines)
        query = Query(history={"buy": ["x"]}, priors={"popular": 0.5}, explain=True)
        expected = index.search(query)
        assert [hit.item for hit in expected] == ["i", "j"]
        assert read(options, lambda reader: reader.search(query)) == expected
        for user in users:  # nothing was refreshed
            assert read(options, lambda reader, of=user: reader.history(of)) == UserHistory({"buy": ["x", "a.b"]}, 41)  # type: ignore[misc]
        body = user_document({"buy": (most, len(most))}, 1_700_000_000, True, 0, 42)
        client.bulk(index=names(options).users, operations=[b'{"index":{"_id":"heavy"}}', body])  # type: ignore[list-item]
        assert read(options, lambda reader: reader.history("heavy")).items == {"buy": most}  # all that was done
        assert read(options, lambda reader: reader.history("nobody")) == UserHistory()
        assert read(options, lambda reader: reader.history("\ud800")) == UserHistory()
        index.put_items({"k": {"size": [1, 2]}})
        assert read(options, lambda reader: reader.properties("k")) == {"size": [1, 2]}
        assert read(options, lambda reader: reader.properties("j")) is None
        with pytest.raises(QueryError, match="num"):
            read(options, lambda reader: reader.search(Query(num=0)))


def test_documents_that_are_not_as_ours_are(elasticsearch: ElasticsearchServer, index_prefix: str) -> None:
    options, items = ElasticOptions((elasticsearch.url,), prefix=index_prefix), Vocabulary()
    alias = names(options).items
    with sync_client(options) as client:
        create(client, CONFIG, names(options))
        index = ElasticIndex(client, alias, CONFIG, items)
        index.apply(
            patches(CONFIG, items, {"i": {"buy": {"x": 2.0}}, "j": {"buy": {"x": 1.0}}, "k": {"buy": {"x": 3.0}}})
        )
        index.put_items({"i": {"color": "red"}, "j": {"color": "blue"}})
        client.update(index=alias, id="i", doc={"returned": "bm9uZQ=="})
        client.update(index=alias, id="k", doc={"id": None})
        index.flush()
        hits = read(options, lambda reader: reader.search(Query(history={"buy": ["x"]}, num=3)))
        assert [(hit.item, hit.properties) for hit in hits] == [("i", {}), ("j", {"color": "blue"})]
        read(options, lambda reader: reader.check_formats())
        meta = mapping("items", CONFIG)["_meta"]
        client.indices.put_mapping(index=alias, meta={"cco": {**meta["cco"], "format": 1}})
        with pytest.raises(ElasticProblem, match=f"{alias}-000001 has documents of format 1, and this version reads 2"):
            read(options, lambda reader: reader.check_formats())


def test_what_is_too_much_for_the_node_says_what_to_make_smaller(
    elasticsearch: ElasticsearchServer, index_prefix: str
) -> None:
    """All of it is within our own limits; how much a node looks up goes by its heap and threads."""
    options, items = ElasticOptions((elasticsearch.url,), prefix=index_prefix), Vocabulary()
    wide = tuple(Rule("color", tuple(range(1_000 * k, 1_000 * (k + 1))), "all") for k in range(64))
    asked = [
        (Query(include=wide), "include"),
        (Query(include=wide[:2], exclude=wide[2:], history={"buy": ["x"]}, priors={"popular": 0.5}), "exclude"),
        (Query(include=wide[:32], exclude=wide[32:41], history={"view": [f"i{k}" for k in range(10_000)]}), "include"),
    ]

    def through_reader(query: Query) -> list[Hit]:
        return read(options, lambda reader: reader.search(query))

    with sync_client(options) as client:
        create(client, CONFIG, names(options))
        index = ElasticIndex(client, names(options).items, CONFIG, items)
        index.put_items({"i": {"color": 1}})
        index.flush()
        for query, path in asked:
            for search in (index.search, through_reader):
                with pytest.raises(QueryError, match=r"takes at most \d+ in one question; give fewer") as caught:
                    search(query)
                assert caught.value.path == path
        with pytest.raises(BadRequestError) as refused:  # as it says it where one list alone is too long
            many = [{"term": {"tokens": str(k)}} for k in range(100_000)]
            client.search(index=names(options).items, query={"bool": {"filter": many}})
        found = too_large(Query(history={"buy": ["x"], "view": ["x", "y"]}), refused.value.body)
    assert found is not None and found.path == "history.view"


def test_failures_are_told_in_a_line(elasticsearch: ElasticsearchServer, index_prefix: str, tmp_path: Path) -> None:
    options = ElasticOptions((elasticsearch.url,), prefix=index_prefix)
    for ask in (
        lambda reader: reader.search(Query()),
        lambda reader: reader.history("u"),
        lambda reader: reader.properties("i"),
    ):
        with pytest.raises(ElasticProblem, match="no such index"):
            read(options, ask)
    with ElasticsearchServer(tmp_path, fetch_elasticsearch()) as server:
        away = ElasticOptions((server.url,))
        server.kill()
        with pytest.raises(ElasticProblem, match="cannot be reached"):
            read(away, lambda reader: reader.search(Query()))
