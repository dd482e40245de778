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
from elasticsearch.helpers import scan

from agents.elastic import elastic_options
from agents.engine import Engine
from agents.health import status
from agents.kafka.item_changes import ItemRecords
from agents.kafka.producing import produce
from agents.kafka.reading import read_log, read_topic
from cco.event_data import EventBatch, ItemChange
from cco.model_file import encode
from cco.vocabulary import Vocabulary
from model_sync.elastic_admin import create
from model_sync.elastic_client import names, sync_client
from model_sync.elastic_documents import metadata_fields
from model_sync.elastic_index import ElasticIndex
from model_sync.elastic_names import decoded
from tests.kafka.world import PATIENCE, World, wait_for

PAGE = 1_000  # documents read at once


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

    def delete_aliases(self) -> None:
        """Of both indices, which stay."""
        with self.client() as client:
            for name in self.names:
                client.indices.delete_alias(index=list(client.indices.get_alias(name=name)), name=name)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Both indices, as Elasticsearch makes them when a disk is full."""
        block = "index.blocks.read_only_allow_delete"
        with self.client() as client:
            client.indices.put_settings(index=list(self.names), settings={block: True})
            yield
            client.indices.put_settings(index=list(self.names), settings={block: None})

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
            features: set[str] = set()
            for hit in scan(client, index=self.names.items, source=["rows"], size=PAGE):
                features.add(hit["_id"])
                for row in hit["_source"].get("rows", {}).values():
                    features |= {decoded(name) for part in row for name in part}
            items.intern(sorted(features))
            rows = ElasticIndex(client, self.names.items, self.config, items).rows()
        return b"".join(encode(rows, items, self.config))

    def documents_of_users(self) -> dict[str, Any]:
        """The users index, every field that says something of a user; users without any history left out."""
        with self.client() as client:
            client.indices.refresh(index=self.names.users)
            found = {hit["_id"]: hit["_source"] for hit in scan(client, index=self.names.users, size=PAGE)}
        for document in found.values():
            del document["position"]  # of its own: it grows with others' events
        return {user: document for user, document in found.items() if document["history"]}

    def metadata(self) -> dict[str, dict[str, Any]]:
        """Of the items index what comes from metadata and decides rules, of items that have some or are deleted."""
        with self.client() as client:
            client.indices.refresh(index=self.names.items)
            nothing = metadata_fields(self.config, None, None)
            found = scan(client, index=self.names.items, source=[*nothing], size=PAGE)
            told = {hit["_id"]: _comparable({**nothing, **hit["_source"]}) for hit in found}
        return {item: fields for item, fields in told.items() if fields != _comparable(nothing)}

    # -- what should be -----------------------------------------------------------------------------

    def histories(self) -> dict[str, Any]:
        """The documents that the log asks for, of users with a history."""
        found: dict[str, Any] = {}
        with Engine(self.config) as engine:
            for chunk in read_log(self.settings, engine.parser):
                list(engine.user_stages[chunk.file].ingest(chunk.batch))
            for user in range(len(engine.users)):
                history = {
                    name: sorted((-time, engine.items.name(i)) for i, time in entries)
                    for name, entries in engine.pipeline.history(user).items()
                    if entries
                }
                source = engine.pipeline.source_of(user)
                if history:
                    found[engine.users.name(user)] = {
                        "history": {name: [item for _, item in entries] for name, entries in history.items()},
                        "counts": {name: len(entries) for name, entries in history.items()},
                        "last": -min(entries[0][0] for entries in history.values()),
                        "member": engine.user_stages[source].is_member(user),
                        "source": source,
                    }
        return found

    def folded(self) -> dict[str, dict[str, Any]]:
        """The fields that the topic asks for, of every item that it names."""
        found: dict[str, dict[str, Any]] = {}
        deleted: set[str] = set()

        async def fold() -> None:
            records = ItemRecords(self.config)
            async for read in read_topic(self.settings, "items"):
                for key, value in zip(read.keys, read.values, strict=True):
                    change = records.decode(key, value)
                    if change.kind == "delete":
                        found.pop(change.item_id, None)
                        deleted.add(change.item_id)
                    elif change.kind == "set":
                        found[change.item_id] = {**found.get(change.item_id, {}), **change.properties}
                        deleted.discard(change.item_id)
                    else:
                        for name in change.properties:
                            found.get(change.item_id, {}).pop(name, None)

        asyncio.run(fold())
        wanted = {item: metadata_fields(self.config, properties, None) for item, properties in found.items()}
        wanted |= {item: metadata_fields(self.config, None, None, deleted=True) for item in deleted}
        return {item: _comparable(fields) for item, fields in wanted.items()}

    # -- the end ------------------------------------------------------------------------------------

    def settle(self, seconds: float = PATIENCE) -> None:
        """Also until searches see it: what is stored is seen from the next refresh on."""
        super().settle(seconds)
        with self.client() as client:
            client.indices.refresh(index=",".join(self.names))

    def check_all(self) -> None:
        """Settle, and compare everything."""
        self.settle()
        self.check()
        wanted = self.histories()
        assert wanted
        wait_for(lambda: _safely(self.documents_of_users) == wanted, "the documents of users")
        metadata = self.folded()
        wait_for(lambda: _safely(self.metadata) == metadata, "the metadata of items")

    def mode(self) -> str:
        """What `cco status` says."""
        return status.look(self.config, self.settings).mode

    def wait_until_answered(self, url: str) -> None:
        """Until a service can answer questions."""
        import httpx

        def is_ready() -> bool:
            try:
                return httpx.get(f"{url}/ready", timeout=10).status_code == 200
            except httpx.TransportError:  # it is still busy
                return False

        wait_for(is_ready, "the service to be ready")

    def ask(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """A question to a service."""
        import httpx

        answer = httpx.post(f"{url}/recommendations", json=body, timeout=10)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = json.loads(answer.text)
        return told


def _comparable(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "tokens": sorted(fields["tokens"])}


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
