"""The index in Elasticsearch: the contract on a real node, and the same ranking as in memory."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import pytest
from elasticsearch import AsyncElasticsearch, Elasticsearch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents.engine import Engine
from cco.config import Config, make_config
from cco.event_data import ItemChange
from cco.rows import Patches
from cco.vocabulary import Vocabulary
from model_sync import elastic_mapping
from model_sync.bulk_writer import Owner, RowWriter
from model_sync.contract import Hit, Query, Range, Rule, rules
from model_sync.elastic_client import ElasticOptions, ElasticProblem, IndexNames, async_client, sync_client
from model_sync.elastic_documents import row_documents
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_metadata import MetadataWriter, PositionedChange
from model_sync.elastic_reader import AsyncElasticReader
from model_sync.metadata import Properties
from model_sync.row_store import check_patch
from tests.model_sync.index_contract import IndexContract, MakeIndex, Shop, equals_the_reference, names
from tests.model_sync.ranking import differing, random_queries
from tests.model_sync.samples import CONFIG, IDS, operations, queries
from tests.servers.elasticsearch import ElasticsearchServer

T = TypeVar("T")


@pytest.fixture(scope="module")
def elastic(elasticsearch: ElasticsearchServer) -> Iterator[Elasticsearch]:
    with sync_client(ElasticOptions((elasticsearch.url,))) as client:
        yield client


@contextmanager
def aliases(elastic: Elasticsearch) -> Iterator[Callable[[Config], str]]:
    """Of empty indices. Those of one configuration are the same, emptied in between, refreshed by `flush` alone."""
    made: dict[str, str] = {}

    def alias(config: Config) -> str:
        wanted = elastic_mapping.mapping("items", config)
        name = made.setdefault(json.dumps(wanted), f"t{uuid.uuid4().hex}")
        if elastic.indices.exists_alias(name=name):
            empty(elastic, name)
        else:
            tuned = {**elastic_mapping.settings(), "refresh_interval": "-1"}
            elastic.indices.create(index=f"{name}-000001", mappings=wanted, settings=tuned, aliases={name: {}})
        return name

    yield alias
    for name in made.values():
        elastic.indices.delete(index=f"{name}-000001")


@pytest.fixture(scope="module")
def make_index(elastic: Elasticsearch) -> Iterator[MakeIndex]:
    with aliases(elastic) as alias:
        yield lambda config, items: ElasticIndex(elastic, alias(config), config, items)


def empty(elastic: Elasticsearch, name: str) -> None:
    elastic.indices.refresh(index=name)
    hits = elastic.search(index=name, size=11_000, source=False)["hits"]["hits"]
    if hits:
        elastic.bulk(index=name, operations=[{"delete": {"_id": hit["_id"]}} for hit in hits], refresh=True)
        assert elastic.count(index=name)["count"] == 0


class TestElasticIndex(IndexContract):
    """ElasticIndex passes the suite."""

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=st.lists(operations, min_size=1, max_size=14), last=queries)
    def test_equals_the_reference(self, make_index: MakeIndex, steps: list[tuple[str, Any]], last: Query) -> None:
        equals_the_reference(make_index, steps, last)


class Stack(ElasticIndex):
    """Written as workers do it, and read as the query service does."""

    def __init__(
        self, client: Elasticsearch, own: AsyncElasticsearch, loop: asyncio.Runner, index: str, config: Config,
        items: Vocabulary,
    ) -> None:  # fmt: skip
        super().__init__(client, index, config, items)
        self._loop = loop
        self._row_writer, self._metadata_writer = RowWriter(own, index), MetadataWriter(own, index, config)
        self._reader = AsyncElasticReader(own, IndexNames(index, index), config)

    def apply(self, patches: Patches) -> None:
        items, priors = len(self._items), len(self._config.prior_names)
        check_patch(patches.rows, items, len(self._config.indicator_names), priors, np.zeros(items + priors, np.uint32))

        async def put() -> None:
            documents = row_documents(self._config, self._items, patches)
            await (await self._row_writer.put(Owner(0, 1, 1), documents))

        self._run(put())

    def _write(self, changes: Iterable[ItemChange]) -> None:
        assert self._run(self._metadata_writer.write(map(PositionedChange, changes))) == []

    def search(self, query: Query) -> list[Hit]:
        return self._run(self._reader.search(query))

    def properties(self, item: str) -> Properties | None:
        return self._run(self._reader.properties(item))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(work)


class TestStack(IndexContract):
    """The writers and the reader pass the suite."""

    @pytest.fixture(scope="class")
    @classmethod
    def make_index(cls, elastic: Elasticsearch, elasticsearch: ElasticsearchServer) -> Iterator[MakeIndex]:
        own = async_client(ElasticOptions((elasticsearch.url,)))
        with aliases(elastic) as alias, asyncio.Runner() as loop:
            yield lambda config, items: Stack(elastic, own, loop, alias(config), config, items)
            loop.run(own.close())

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=st.lists(operations, min_size=1, max_size=14), last=queries)
    def test_equals_the_reference(self, make_index: MakeIndex, steps: list[tuple[str, Any]], last: Query) -> None:
        equals_the_reference(make_index, steps, last)

    test_whatever_is_an_id_is_an_item_and_a_feature = None  # type: ignore[assignment]  # ids are read in one place


def test_any_id_is_an_item_and_a_feature(make_index: MakeIndex) -> None:
    shop = Shop(make_index)
    shop.apply({item: {"buy": {item: 2.0}, "view": {"feature": 1.0}} for item in IDS})
    shop.index.put_items({item: {"name": item} for item in IDS})
    for item in IDS:
        assert shop.ask(history={"buy": [item]}, backfill=None) == [Hit(item, 2.0, {"name": item})]
        assert names(shop.ask(include=rules({"name": item}))) == [item]
        assert names(shop.ask(history={"view": ["feature"]}, candidates=[item])) == [item]
        assert item not in names(shop.ask(exclude_items=[item], num=100))
        assert shop.index.properties(item) == {"name": item}
    assert len(shop.index) == len(IDS)


def test_what_can_be_no_id_matches_nothing(make_index: MakeIndex) -> None:
    shop = Shop(make_index)
    shop.apply({"i": {"buy": {"x": 2.0}}})
    odd = ["", "\ud800", "x" * 40_000, "a\0b"]
    hits = shop.ask(history={"buy": ["x", *odd]}, exclude_items=odd, candidates=["i", *odd], fields=(*odd, "*", "a.b"))
    assert hits == [Hit("i", 2.0, {})]
    assert shop.ask(candidates=odd) == []
    for name in ["\ud800", "a.b", "x" * 1_000]:
        assert shop.ask(history={"buy": ["x"]}, include=(Rule(name, ("v",)),)) == []
        assert names(shop.ask(history={"buy": ["x"]}, exclude=(Rule(name, ("v",)),))) == ["i"]
        assert names(shop.ask(history={"buy": ["x"]}, ranges=(Range(name, 1, missing=True),))) == ["i"]
        assert shop.ask(history={"buy": ["x"]}, ranges=(Range(name, 1),)) == []
    assert shop.index.properties("") is None and shop.index.properties("\ud800") is None


@pytest.mark.parametrize("name", ["a b", "*", "a*", "\0", "\1", "ü", "_id", "id", '"', "a\n", "\\", "x" * 256])
def test_any_name_of_a_property(make_index: MakeIndex, name: str) -> None:
    shop = Shop(make_index)
    shop.index.put_items({"i": {name: "red", "other": 1}, "j": {"other": 2}})
    assert shop.ask(include=(Rule(name, ("red",)),), fields=(name,)) == [Hit("i", 0.0, {name: "red"})]
    assert shop.ask(ranges=(Range(name, 1, missing=True),), fields=("other",)) == [Hit("j", 0.0, {"other": 2})]


def test_values_of_other_kinds_than_declared_are_kept_and_found(make_index: MakeIndex) -> None:
    kinds = ("keyword", "float", "date", "boolean", "text")
    shop = Shop(make_index, make_config({"items": {"types": {kind: kind for kind in kinds}}}))
    values = ["x" * 32_766, "é" * 100, 1.5, True, "2024-01-01", "soon", [1, "two", False], -0.0, 2**53, 1e308, 5e-324]
    shop.index.put_items({f"i{k:02}": dict.fromkeys(kinds, value) for k, value in enumerate(values)})
    for k, value in enumerate(values):
        item = f"i{k:02}"
        assert shop.index.properties(item) == dict.fromkeys(kinds, value)
        for kind in kinds:
            scalars = tuple(value) if isinstance(value, list) else (value,)
            assert names(shop.ask(include=(Rule(kind, scalars, "all"),))) == [item]


def test_a_page_may_begin_far_behind(make_index: MakeIndex) -> None:
    shop = Shop(make_index)
    shop.index.put_items({f"i{k:05}": {} for k in range(10_990)})
    assert names(shop.ask(offset=10_000, num=1_000)) == [f"i{k:05}" for k in range(10_000, 10_990)]


def test_many_terms(make_index: MakeIndex) -> None:
    shop = Shop(make_index)
    ids = [f"item {k}" for k in range(10_000)]
    shop.apply({"i": {"buy": dict.fromkeys(ids[:50], 1.0)}, "j": {"priors": {"popular": 1.0}}})
    hits = shop.ask(
        history={"buy": ids}, exclude_items=[f"other {k}" for k in range(20_000)], candidates=["i", *ids[1:]]
    )
    assert [(hit.item, hit.score) for hit in hits] == [("i", 50.0)]
    assert names(shop.ask(history={"buy": ids})) == ["i", "j"]


def test_an_index_that_is_missing_is_told(elastic: Elasticsearch) -> None:
    items = Vocabulary()
    index = ElasticIndex(elastic, f"t{uuid.uuid4().hex}", CONFIG, items)
    for ask in (
        lambda: index.search(Query()),
        lambda: index.put_items({"i": {}}),
        lambda: index.properties("i"),
        index.flush,
        index.rows,
        lambda: len(index),
        index.sizes,
    ):
        with pytest.raises(ElasticProblem, match=r"no such index|index_not_found"):
            ask()


# -- the same ranking -------------------------------------------------------------------------------

MODEL = make_config(
    {
        "primary": "buy",
        "indicators": {"buy": {"weight": 1.0}, "view": {"weight": 0.3}, "like": {"weight": 1.7}},
        "priors": {"popular": "all", "recent": "30d", "hot": "9d"},
    }
)
COLORS = ["red", "green", "blue", "black"]


def learned() -> tuple[Engine, dict[str, dict[str, Any]]]:
    """A model of 400 items from 30,000 events, and metadata of most of them."""
    random = np.random.default_rng(5)
    count = 30_000
    user, taste = random.integers(0, 1_500, count), random.integers(0, 20, 1_500)
    item = np.where(random.random(count) < 0.6, 20 * taste[user] + random.geometric(0.15, count) % 20, 0)
    item = np.where(item == 0, random.zipf(1.4, count) % 400, item)
    kind = random.choice(["buy", "view", "like"], count, p=[0.25, 0.6, 0.15])
    when = 1_700_000_000 + 120 * np.arange(count)
    engine = Engine(MODEL)
    columns = zip(user.tolist(), item.tolist(), kind.tolist(), when.tolist(), strict=True)
    engine.ingest(
        {"user_id": f"u{u}", "item_id": f"item {i}.é", "event_type": k, "timestamp": t} for u, i, k, t in columns
    )
    engine.drain()
    metadata: dict[str, dict[str, Any]] = {}
    for k in range(420):
        if k % 7:
            metadata[f"item {k}.é"] = {
                "color": random.choice(COLORS, int(random.integers(1, 3))).tolist(),
                "price": round(float(random.exponential(30)), 2),
                "rank": int(random.integers(-2, 50)),
                "new": bool(random.integers(2)),
            }
    return engine, metadata


def test_ranks_as_the_index_in_memory_does(make_index: MakeIndex) -> None:
    engine, metadata = learned()
    index = make_index(MODEL, engine.items)
    index.apply(Patches((0,), engine.rows()))
    for target in (engine, index):
        target.put_items(metadata)
    gone = list(metadata)[:5]
    engine.delete_items(gone)
    index.delete_items(gone)
    index.flush()
    prices = sorted(properties["price"] for properties in metadata.values())
    asked = {"color": COLORS, "price": prices, "rank": list(range(50)), "new": [True, False]}
    ids = engine.items.names(range(len(engine.items)))
    wanted = list(random_queries(MODEL, ids, asked, 300))
    found = differing(engine.index, index, wanted)
    assert not found, f"{len(found)} of {len(wanted)} differ; the first: {found[0]}"
    answers = [engine.index.search(query) for query in wanted]
    assert sum(bool(hits) for hits in answers) > 200  # they do ask for something
    assert sum(hit.score > 0 for hits in answers for hit in hits) > 1_000
    assert sum(hit.score == 0 for hits in answers for hit in hits) > 300
    mine, theirs = engine.rows(), index.rows()
    for column in ("item", "field", "start", "feature", "weight"):
        assert np.array_equal(getattr(mine, column), getattr(theirs, column)), column
    assert len(index) == len(engine.index)
