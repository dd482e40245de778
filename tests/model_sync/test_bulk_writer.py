"""Writers against a real Elasticsearch that is killed, blocked, and loses its index; and a zombie's late bulk."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from elasticsearch import AsyncElasticsearch

from cco.config import make_config
from model_sync.bulk_writer import (
    ROW_LIMITS,
    USER_LIMITS,
    FencedError,
    Owner,
    Refusal,
    RowDocument,
    RowWriter,
    UserDocument,
    UserWriter,
    WriterClosedError,
)
from model_sync.elastic_client import ElasticOptions, IndexNames, async_client, names
from model_sync.elastic_mapping import Kind, mapping, settings
from tests.model_sync.holding_proxy import HoldingProxy
from tests.servers.elasticsearch import ElasticsearchServer, fetch_elasticsearch

CONFIG = make_config({"primary": "buy", "indicators": {"buy": {}, "view": {}}})
OWNER, NEXT = Owner(0, 1_000, 5), Owner(0, 1_000, 6)
QUICK = replace(ROW_LIMITS, backoff=0.02, slow_backoff=0.05, longest_backoff=0.3)
SECONDS = 60.0  # for anything to happen


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ElasticsearchServer]:
    """One that may be killed."""
    with ElasticsearchServer(tmp_path_factory.mktemp("elasticsearch"), fetch_elasticsearch()) as server:
        yield server


class World:
    """Two indices, and what was asked of them."""

    def __init__(self, client: AsyncElasticsearch, aliases: IndexNames) -> None:
        self.client, self.aliases = client, aliases
        self.refused: dict[str, Refusal] = {}
        self.troubles: list[str | None] = []
        self.troubled = asyncio.Event()

    async def create(self, kind: Kind) -> None:
        alias = getattr(self.aliases, kind)
        await self.client.indices.create(
            index=f"{alias}-000001", aliases={alias: {}}, mappings=mapping(kind, CONFIG), settings=settings()
        )

    async def delete(self, kind: Kind) -> None:
        await self.client.indices.delete(index=f"{getattr(self.aliases, kind)}-000001")

    def tell(self, trouble: str | None) -> None:
        self.troubles.append(trouble)
        if trouble is not None:
            self.troubled.set()

    def refuse(self, refusal: Refusal) -> None:
        self.refused[refusal.key] = refusal

    @asynccontextmanager
    async def rows(self, client: AsyncElasticsearch | None = None, **limits: float) -> AsyncIterator[RowWriter]:
        writer = RowWriter(
            client or self.client, self.aliases.items, refused=self.refuse, troubled=self.tell,
            limits=replace(QUICK, **limits),
        )  # fmt: skip
        try:
            yield writer
        finally:
            await writer.close(0)

    async def sources(self, kind: Kind = "items") -> dict[str, dict[str, Any]]:
        """All documents, as they are."""
        alias = getattr(self.aliases, kind)
        await self.client.indices.refresh(index=alias)
        found = await self.client.search(index=alias, size=10_000, query={"match_all": {}})
        assert found["hits"]["total"]["value"] < 10_000
        return {hit["_id"]: hit["_source"] for hit in found["hits"]["hits"]}


Test = Callable[[World], Coroutine[Any, Any, None]]


def play(server: ElasticsearchServer, prefix: str, test: Test) -> None:
    async def all_of_it() -> None:
        options = ElasticOptions((server.url,), prefix=prefix)
        async with async_client(options) as client, asyncio.timeout(SECONDS):
            world = World(client, names(options))
            await world.create("items")
            await world.create("users")
            await test(world)

    asyncio.run(all_of_it())


def row(weight: float, feature: str = "i1") -> bytes:
    return json.dumps([{feature: weight}]).encode()


def some_rows(numbers: range, weight: float, field: str = "buy") -> list[RowDocument]:
    return [RowDocument(f"item {n}/\u00e9", {field: row(weight)}) for n in numbers]


async def stored(futures: list[asyncio.Future[None]]) -> None:
    await asyncio.gather(*futures)


def test_fields_are_merged_into_documents_that_are_made_when_first_needed(
    elasticsearch: ElasticsearchServer, index_prefix: str
) -> None:
    async def test(world: World) -> None:
        async with world.rows() as writer:
            await (await writer.put(OWNER, [RowDocument('a"\u2028b', {"buy": row(1.5), "priors": row(2.0, "hot")})]))
            await (await writer.put(OWNER, [RowDocument('a"\u2028b', {"view": row(3.0), "buy": b"[]"})]))
            assert await world.sources() == {
                'a"\u2028b': {
                    "id": 'a"\u2028b',
                    "shuffle": (await world.sources())['a"\u2028b']["shuffle"],
                    "filled": {"buy": False, "view": True, "priors": True},
                    "rows": {"buy": [], "view": [{"i1": 3.0}]},
                    "priors": [{"hot": 2.0}],
                    "owner": {"at": 1_000, "claim": 5},
                }
            }
            counts = writer.stats.counts
            assert (counts.stored, counts.reads, counts.conflicts, writer.stats.documents) == (2, 1, 0, 0)
            with pytest.raises(UnicodeError):
                await writer.put(OWNER, [RowDocument("\ud800", {})])

    play(elasticsearch, index_prefix, test)


def test_many_documents_put_again_and_again_are_as_they_were_put_last(
    elasticsearch: ElasticsearchServer, index_prefix: str
) -> None:
    async def test(world: World) -> None:
        async with world.rows(documents=1_000, batch_documents=200) as writer:
            futures = []
            for weight in (1.0, 2.0, 3.0, 4.0):
                for first in range(0, 1_500, 100):
                    futures.append(await writer.put(OWNER, some_rows(range(first, first + 100), weight)))
                    assert writer.stats.documents < 1_100
            await stored(futures)
            found = await world.sources()
            assert len(found) == 1_500
            assert all(source["rows"] == {"buy": [{"i1": 4.0}]} for source in found.values())
            counts = writer.stats.counts
            assert counts.coalesced + counts.stored == 6_000 and not counts.refused and world.troubles == []

    play(elasticsearch, index_prefix, test)


def test_nothing_is_lost_when_the_node_is_killed(node: ElasticsearchServer, index_prefix: str) -> None:
    async def test(world: World) -> None:
        async with world.rows(documents=1_500) as writer:

            async def put_all() -> list[asyncio.Future[None]]:
                return [
                    await writer.put(OWNER, some_rows(range(first, first + 100), weight))
                    for weight in (1.0, 2.0, 3.0)
                    for first in range(0, 2_000, 100)
                ]

            first = await writer.put(OWNER, some_rows(range(50), 0.5))
            putting = asyncio.create_task(put_all())
            await first
            await asyncio.to_thread(node.kill)
            await world.troubled.wait()
            await asyncio.to_thread(node.start)
            await stored(await putting)
            found = await world.sources()
            assert len(found) == 2_000
            assert all(source["rows"] == {"buy": [{"i1": 3.0}]} for source in found.values())
            assert "cannot be reached" in str(world.troubles[0]) and world.troubles[-1] is None

    play(node, index_prefix, test)


def test_requests_to_a_node_that_stands_still_are_given_up_and_done_over(
    node: ElasticsearchServer, index_prefix: str
) -> None:
    async def test(world: World) -> None:
        async with world.rows(world.client.options(request_timeout=0.3)) as writer:
            await (await writer.put(OWNER, some_rows(range(20), 1.0)))
            node.pause()
            try:
                early = await writer.put(OWNER, some_rows(range(20), 2.0))
                await world.troubled.wait()
                late = await writer.put(OWNER, some_rows(range(10), 3.0, "view"))
            finally:
                node.resume()
            await stored([early, late])
            found = await world.sources()
            assert all(source["rows"]["buy"] == [{"i1": 2.0}] for source in found.values())
            assert sum("view" in source["rows"] for source in found.values()) == 10
            assert "did not answer" in str(world.troubles[0]) and world.troubles[-1] is None

    play(node, index_prefix, test)


@pytest.mark.parametrize("block", ["read_only", "write"])
def test_writing_waits_while_the_index_is_read_only(
    elasticsearch: ElasticsearchServer, index_prefix: str, block: str
) -> None:
    async def test(world: World) -> None:
        alias = world.aliases.items
        async with world.rows() as writer:
            await (await writer.put(OWNER, some_rows(range(100), 1.0)))
            await world.client.indices.put_settings(index=alias, settings={f"index.blocks.{block}": True})
            futures = [await writer.put(OWNER, some_rows(range(first, first + 50), 2.0)) for first in (0, 50, 100)]
            await world.troubled.wait()
            assert not any(future.done() for future in futures)
            await world.client.indices.put_settings(index=alias, settings={f"index.blocks.{block}": None})
            await stored(futures)
            found = await world.sources()
            assert len(found) == 150
            assert all(source["rows"] == {"buy": [{"i1": 2.0}]} for source in found.values())
            assert len(world.troubles) == 2 and world.troubles[1] is None
            assert "free disk space" in str(world.troubles[0])

    play(elasticsearch, index_prefix, test)


def test_an_index_that_is_gone_is_told_of_and_never_made_by_the_writer(
    elasticsearch: ElasticsearchServer, index_prefix: str
) -> None:
    async def test(world: World) -> None:
        async with world.rows() as writer:
            await (await writer.put(OWNER, some_rows(range(100), 1.0)))
            await world.delete("items")
            known = await writer.put(OWNER, some_rows(range(100), 2.0))  # of versions that are known
            await world.troubled.wait()
            writer.forget()
            others = await writer.put(OWNER, some_rows(range(100, 150), 2.0))  # has to read first
            assert not await world.client.indices.exists(index=world.aliases.items)
            assert "`cco index create`" in str(world.troubles[0])
            await world.create("items")
            await stored([known, others])
            found = await world.sources()
            assert len(found) == 150 and all(source["rows"] == {"buy": [{"i1": 2.0}]} for source in found.values())
            assert world.troubles[-1] is None
            await world.delete("items")
            await world.create("items")  # unseen: the documents are missing when they are written
            await (await writer.put(OWNER, some_rows(range(150), 3.0)))
            assert len(await world.sources()) == 150

    play(elasticsearch, index_prefix, test)


def test_documents_that_will_never_fit_are_refused_and_their_neighbours_stored(
    elasticsearch: ElasticsearchServer, index_prefix: str
) -> None:
    async def test(world: World) -> None:
        bad = {
            "unknown field": RowDocument("unknown field", {"unheard": row(1.0)}),
            "no JSON": RowDocument("no JSON", {"buy": b"[{"}),
            "negative": RowDocument("negative", {"buy": row(-1.0)}),
            "x" * 513: RowDocument("x" * 513, {"buy": row(1.0)}),
            "": RowDocument("", {"buy": row(1.0)}),
        }
        documents = some_rows(range(400), 1.0)
        for k, document in enumerate(bad.values()):
            documents.insert(37 * k, document)
        async with world.rows() as writer:
            await (await writer.put(OWNER, documents))
            assert set(await world.sources()) == {document.item for document in some_rows(range(400), 1.0)}
            assert set(world.refused) == set(bad) and writer.stats.counts.refused == len(bad)
            assert "unheard" in world.refused["unknown field"].reason
            assert "Validation Failed" in world.refused["x" * 513].reason
            await (await writer.put(OWNER, [RowDocument("negative", {"buy": row(1.0)})]))
            assert "negative" in await world.sources()

    play(elasticsearch, index_prefix, test)


def test_a_node_that_takes_small_requests_alone_is_sent_small_ones(index_prefix: str, tmp_path: Path) -> None:
    """As a proxy before it may do, too."""

    def large(numbers: range, weight: float) -> list[RowDocument]:
        features = {f"feature {k}": weight for k in range(150)}
        return [RowDocument(f"item {n}", {"buy": json.dumps([features]).encode()}) for n in numbers]

    sent: list[int] = []  # sizes of what was refused

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "status:413" in record.getMessage():
                sent.append(1)

    async def test(world: World) -> None:
        async with world.rows(requests=1) as writer:
            await (await writer.put(OWNER, large(range(300), 1.0)))
            refusals = len(sent)
            assert refusals >= 2  # 100 documents have 250 kB and more
            await (await writer.put(OWNER, large(range(300), 2.0)))
            assert len(sent) == refusals
            found = await world.sources()
            assert len(found) == 300
            assert all(source["rows"]["buy"][0]["feature 7"] == 2.0 for source in found.values())
            assert not world.refused and world.troubles == []
            whole = RowDocument("huge", {"buy": json.dumps([{f"feature {k}": 1.0 for k in range(9_000)}]).encode()})
            await (await writer.put(OWNER, [whole, *large(range(3), 3.0)]))
            assert list(world.refused) == ["huge"] and "413" in world.refused["huge"].reason
            assert len(await world.sources()) == 300

    handler, log = Counting(), logging.getLogger("elastic_transport.transport")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with ElasticsearchServer(tmp_path, fetch_elasticsearch(), settings={"http.max_content_length": "100kb"}) as one:
            play(one, index_prefix, test)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def test_the_queue_is_bounded_and_coalesces_what_waits(elasticsearch: ElasticsearchServer, index_prefix: str) -> None:
    async def test(world: World) -> None:
        async with world.rows(documents=50, requests=1) as writer:
            block = {"index.blocks.write": True}
            await world.client.indices.put_settings(index=world.aliases.items, settings=block)
            first = await writer.put(OWNER, some_rows(range(40), 1.0))
            second = await writer.put(OWNER, some_rows(range(40), 2.0))  # over the first
            third = await writer.put(OWNER, some_rows(range(40, 50), 1.0))
            waiting = asyncio.create_task(writer.put(OWNER, some_rows(range(10), 3.0)))
            await world.troubled.wait()
            assert not waiting.done() and writer.stats.documents == 50
            await world.client.indices.put_settings(index=world.aliases.items, settings={"index.blocks.write": None})
            await stored([first, second, third, await waiting])
            found = await world.sources()
            got = [found[document.item]["rows"]["buy"][0]["i1"] for document in some_rows(range(50), 0)]
            assert got == [3.0] * 10 + [2.0] * 30 + [1.0] * 10
            assert writer.stats.counts.coalesced == 40 and writer.stats.counts.stored == 60

    play(elasticsearch, index_prefix, test)


def test_closing_finishes_what_was_accepted_and_tells_what_was_not(
    elasticsearch: ElasticsearchServer, index_prefix: str
) -> None:
    async def test(world: World) -> None:
        async with world.rows() as writer:
            future = await writer.put(OWNER, some_rows(range(500), 1.0))
            assert await writer.close(SECONDS) == 0 and future.done() and future.exception() is None
            assert len(await world.sources()) == 500
            with pytest.raises(WriterClosedError, match="closed"):
                await writer.put(OWNER, some_rows(range(1), 1.0))
        with socket.socket() as nobody:  # bound, and does not listen
            nobody.bind(("127.0.0.1", 0))
            options = ElasticOptions((f"http://127.0.0.1:{nobody.getsockname()[1]}",))
            async with async_client(options) as client, world.rows(client) as writer:
                future = await writer.put(OWNER, some_rows(range(7), 1.0))
                await world.troubled.wait()
                assert await writer.close(0.0) == 7
                with pytest.raises(WriterClosedError, match=r"7 documents not stored .*cannot be reached"):
                    await future

    play(elasticsearch, index_prefix, test)


# -- owners -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_there", [True, False])
def test_a_bulk_of_a_zombie_that_comes_late_changes_nothing(
    elasticsearch: ElasticsearchServer, index_prefix: str, is_there: bool
) -> None:
    async def test(world: World) -> None:
        proxy = HoldingProxy(elasticsearch.address)
        if is_there:
            async with world.rows() as writer:
                await (await writer.put(OWNER, some_rows(range(30), 1.0)))
        async with proxy as url, async_client(ElasticOptions((url,))) as client, world.rows(client) as zombie:
            lost = await zombie.put(OWNER, some_rows(range(30), 2.0))
            await proxy.has_one.wait()
            async with world.rows() as owner:
                await (await owner.put(NEXT, some_rows(range(30), 3.0)))
                assert await proxy.deliver() == [409] * 30
                found = await world.sources()
                assert len(found) == 30
                for source in found.values():
                    assert source["rows"] == {"buy": [{"i1": 3.0}]} and source["owner"]["claim"] == NEXT.claim
            await zombie.close(0)
            with pytest.raises(WriterClosedError):
                await lost

    play(elasticsearch, index_prefix, test)


def test_a_bulk_of_a_zombie_that_comes_first_is_overwritten(
    elasticsearch: ElasticsearchServer, index_prefix: str
) -> None:
    async def test(world: World) -> None:
        proxy = HoldingProxy(elasticsearch.address)
        async with (
            proxy as url,
            async_client(ElasticOptions((url,))) as client,
            world.rows(client) as zombie,
            world.rows() as owner,
        ):
            lost = await zombie.put(OWNER, some_rows(range(30), 2.0))
            await proxy.has_one.wait()
            await (await owner.put(NEXT, some_rows(range(10), 3.0)))  # it has read and written some of them
            assert await proxy.deliver() == [409] * 10 + [201] * 20
            await (await owner.put(NEXT, some_rows(range(30), 4.0)))
            found = await world.sources()
            assert all(source["rows"] == {"buy": [{"i1": 4.0}]} for source in found.values())
            await zombie.close(0)
            with pytest.raises(WriterClosedError):
                await lost

    play(elasticsearch, index_prefix, test)


def test_who_finds_a_higher_owner_is_fenced(elasticsearch: ElasticsearchServer, index_prefix: str) -> None:
    async def test(world: World) -> None:
        async with world.rows() as former, world.rows() as owner:
            await (await former.put(OWNER, some_rows(range(30), 1.0)))
            await (await owner.put(NEXT, some_rows(range(30), 2.0)))
            with pytest.raises(FencedError, match="item partition 0"):
                await (await former.put(OWNER, some_rows(range(30), 3.0)))
            with pytest.raises(FencedError):
                await (await former.put(OWNER, some_rows(range(30, 40), 3.0)))
            other = Owner(1, 1, 1)
            await (await former.put(other, some_rows(range(50, 60), 3.0)))
            found = await world.sources()
            assert len(found) == 40
            assert all(source["rows"]["buy"] == [{"i1": 2.0}] for source in found.values() if source["owner"]["at"] > 1)

    play(elasticsearch, index_prefix, test)


# -- users ------------------------------------------------------------------------------------------


def user(name: str, position: int) -> UserDocument:
    body = {"history": {"buy": [f"i{position}"]}, "counts": {"buy": 1}, "source": 0, "position": position}
    return UserDocument(name, position + 1, json.dumps(body).encode())


def test_of_users_the_document_of_the_highest_position_stays(
    elasticsearch: ElasticsearchServer, index_prefix: str
) -> None:
    async def test(world: World) -> None:
        writers = [UserWriter(world.client, world.aliases.users, limits=USER_LIMITS) for _ in range(2)]
        users = [f"user {n}" for n in range(200)]
        await stored([await writers[0].put([user(name, 10) for name in users])])
        await stored([await writers[1].put([user(name, 7 + n % 5) for n, name in enumerate(users)])])
        found = await world.sources("users")
        assert [found[name]["position"] for name in users] == [max(10, 7 + n % 5) for n in range(200)]
        assert writers[1].stats.counts.superseded == 120 and writers[1].stats.counts.stored == 80
        assert [await writer.close() for writer in writers] == [0, 0]

    play(elasticsearch, index_prefix, test)


def test_users_survive_a_kill_too(node: ElasticsearchServer, index_prefix: str, tmp_path: Path) -> None:
    async def test(world: World) -> None:
        limits = replace(USER_LIMITS, backoff=0.02, longest_backoff=0.3)
        writer = UserWriter(world.client, world.aliases.users, troubled=world.tell, limits=limits)
        futures = [await writer.put([user(f"u{n}", 1) for n in range(500)])]
        await stored(futures)
        futures = [await writer.put([user(f"u{n}", 2) for n in range(1_000)])]
        await asyncio.to_thread(node.kill)
        futures.append(await writer.put([user(f"u{n}", 3) for n in range(700)]))
        await world.troubled.wait()
        await asyncio.to_thread(node.start)
        await stored(futures)
        found = await world.sources("users")
        assert [found[f"u{n}"]["position"] for n in range(1_000)] == [3] * 700 + [2] * 300
        assert await writer.close() == 0

    play(node, index_prefix, test)
