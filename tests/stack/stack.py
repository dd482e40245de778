"""The whole path on real servers: Kafka, workers, Elasticsearch; and the comparison that every test of it ends with.

`check` compares every document with what the log says: rows with the batch rebuild, byte for byte; histories of users
with those of an engine that has read the same log; metadata with the changes folded into dictionaries.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from elasticsearch import Elasticsearch, NotFoundError

from agents.elastic import elastic_options
from agents.engine import Engine
from agents.item_changes import ItemRecords
from agents.kafka_log import read_log, read_topic
from agents.producing import produce
from cco.event_data import EventBatch, ItemChange
from cco.model_file import encode
from cco.vocabulary import Vocabulary
from model_sync.elastic_admin import create
from model_sync.elastic_client import names, sync_client
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_users import user_history
from tests.kafka.world import World, wait_for

Histories = dict[str, dict[str, list[str]]]


class Stack(World):
    """A world whose patches go to Elasticsearch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.options = elastic_options(self.settings)
        self.names = names(self.options)
        self.create_index()

    @contextmanager
    def client(self) -> Iterator[Elasticsearch]:
        """A client of the node."""
        with sync_client(self.options) as client:
            yield client

    def create_index(self) -> None:
        """As `cco index create`."""
        with self.client() as client:
            assert create(client, self.config, self.names).problems == []

    def delete_index(self) -> None:
        """Items and users, as somebody may do by mistake."""
        with self.client() as client:
            for name in self.names:
                client.indices.delete(index=",".join(client.indices.get_alias(name=name)))

    def change_items(self, changes: Iterable[ItemChange]) -> None:
        """Changes of items into their topic."""
        work = [(EventBatch.join([]), list(changes))]
        asyncio.run(produce(self.settings, self.config, self.users, self.items, work))

    # -- what is published --------------------------------------------------------------------------

    def model(self) -> bytes:
        """The rows in the index, as a model file."""
        items = Vocabulary()
        with self.client() as client:
            client.indices.refresh(index=self.names.items)
            found = client.search(index=self.names.items, size=10_000, source=["rows"])["hits"]["hits"]
            features = {hit["_id"] for hit in found}
            for hit in found:
                for row in hit["_source"].get("rows", {}).values():
                    features |= {name.replace("%2E", ".").replace("%25", "%") for part in row for name in part}
            items.intern(sorted(features))
            rows = ElasticIndex(client, self.names.items, self.config, items).rows()
        return b"".join(encode(rows, items, self.config))

    def documents_of_users(self) -> Histories:
        """Histories in the users index; users without any left out."""
        with self.client() as client:
            client.indices.refresh(index=self.names.users)
            found = client.search(index=self.names.users, size=10_000)["hits"]["hits"]
        told = {hit["_id"]: user_history(hit["_source"]).items for hit in found}
        return {user: history for user, history in told.items() if history}

    def metadata(self) -> dict[str, dict[str, Any]]:
        """Properties of the items that have metadata."""
        with self.client() as client:
            client.indices.refresh(index=self.names.items)
            query = {"term": {"known": True}}
            found = client.search(index=self.names.items, size=10_000, query=query)["hits"]["hits"]
        return {hit["_id"]: hit["_source"]["properties"][0] for hit in found}

    # -- what should be -----------------------------------------------------------------------------

    def histories(self) -> Histories:
        """What the log says of users."""
        found: Histories = {}
        with Engine(self.config) as engine:
            for chunk in read_log(self.settings, engine.parser):
                list(engine.user_stages[chunk.file].ingest(chunk.batch))
            for user in range(len(engine.users)):
                told = {
                    name: [item for _, item in sorted((-time, engine.items.name(i)) for i, time in entries)]
                    for name, entries in engine.pipeline.history(user).items()
                    if entries
                }
                if told:
                    found[engine.users.name(user)] = told
        return found

    def folded(self) -> dict[str, dict[str, Any]]:
        """What the topic says of items."""
        found: dict[str, dict[str, Any]] = {}

        async def fold() -> None:
            records = ItemRecords(self.config)
            async for read in read_topic(self.settings, "items"):
                for key, value in zip(read.keys, read.values, strict=True):
                    change = records.decode(key, value)
                    if change.kind == "delete":
                        found.pop(change.item_id, None)
                    elif change.kind == "set":
                        found[change.item_id] = {**found.get(change.item_id, {}), **change.properties}
                    else:
                        for name in change.properties:
                            found.get(change.item_id, {}).pop(name, None)

        asyncio.run(fold())
        return found

    # -- the end ------------------------------------------------------------------------------------

    def check_all(self) -> None:
        """Settle, and compare everything."""
        self.settle()
        self.check()
        wanted = self.histories()
        assert wanted
        wait_for(lambda: _safely(self.documents_of_users) == wanted, "the documents of users")
        metadata = self.folded()
        wait_for(lambda: _safely(self.metadata) == metadata, "the metadata of items")

    def ask(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """A question to a service."""
        import httpx

        answer = httpx.post(f"{url}/recommendations", json=body, timeout=10)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = json.loads(answer.text)
        return told


def _safely(look: Any) -> Any:
    try:
        return look()
    except NotFoundError:  # made anew just now
        return None


def changes_of(items: Sequence[str], turn: int) -> list[ItemChange]:
    """Some changes of every kind."""
    found = []
    for k, item in enumerate(items):
        found.append(
            ItemChange(item, "set", {"category": f"c{(k + turn) % 5}", "price": k + turn, f"only{turn}": True})
        )
        if (k + turn) % 4 == 0:
            found.append(ItemChange(item, "unset", {"price": None}))
        if (k + turn) % 7 == 0:
            found.append(ItemChange(item, "delete"))
    return found
