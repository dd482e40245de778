"""The index in Elasticsearch behind the same synchronous contract as the one in memory: for tests, tools and loading.

Workers write rows by `bulk_writer.RowWriter`, which is conditional on the owner and much quicker; what it writes
are the same documents.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import msgspec
import numpy as np
from elasticsearch import Elasticsearch

from cco.config import Config
from cco.event_data import ItemChange
from cco.rows import Patches, Rows
from cco.vocabulary import Vocabulary, id_problem
from model_sync.contract import PRIORS, Hit, Query
from model_sync.elastic_client import ElasticProblem, elastic_errors
from model_sync.elastic_documents import fields_json, identity_json, properties_of, row_documents
from model_sync.elastic_metadata import SOURCE, PositionedChange, Read, Refusal, Wait, write
from model_sync.elastic_names import decoded, encoded
from model_sync.elastic_query import SearchFailed, of_part, plan, row_entries
from model_sync.metadata import Properties, checked_id, checked_properties
from model_sync.row_store import check_patch

MOST_ACTIONS = 500
MOST_BYTES = 4 << 20
PAGE = 1_000  # documents of a scan

_encode = msgspec.json.Encoder().encode


class ElasticIndex:
    """An `Index` (see `contract`) behind an alias of Elasticsearch: it has the mapping of `elastic_mapping`.

    Every call returns when Elasticsearch has answered. Raises ElasticProblem where it is not there or refuses.
    """

    def __init__(self, client: Elasticsearch, index: str, config: Config, items: Vocabulary) -> None:
        """`items`: the vocabulary that the patches' positions refer to."""
        self._client, self._index, self._config, self._items = client, index, config, items

    def apply(self, patches: Patches) -> None:
        items, priors = len(self._items), len(self._config.prior_names)
        mark = np.zeros(max(items, priors), np.uint32)
        check_patch(patches.rows, items, len(self._config.indicator_names), priors, mark)
        lines: list[bytes] = []
        size = 0
        for document in row_documents(self._config, self._items, patches):
            head = b'{"update":{"_id":%b,"retry_on_conflict":10}}' % _encode(document.item)
            parts = (identity_json(document.item), fields_json(document.fields))
            body = b'{"doc":{%b,%b},"doc_as_upsert":true}' % parts
            if lines and (len(lines) >= 2 * MOST_ACTIONS or size + len(body) > MOST_BYTES):
                self._write_rows(lines)
                lines, size = [], 0
            lines += (head, body)
            size += len(body)
        if lines:
            self._write_rows(lines)

    def _bulk(self, lines: Sequence[bytes]) -> list[Mapping[str, Any]]:
        with elastic_errors():
            answer = self._client.bulk(index=self._index, operations=cast(Any, lines), require_alias=True)
        return cast(list[Mapping[str, Any]], answer["items"])

    def _write_rows(self, lines: Sequence[bytes]) -> None:
        for result in self._bulk(lines):
            [of] = result.values()
            if of["status"] >= 300:
                raise ElasticProblem(f"rows of {of['_id'][:40]!r} cannot be written: {of['error'].get('reason')}")

    def put_items(self, items: Mapping[str, Mapping[str, object]]) -> None:
        changes = [
            (ItemChange(item, "delete"), ItemChange(item, "set", dict(given))) for item, given in _checked(items)
        ]
        self._write([change for pair in changes for change in pair])

    def update_items(self, items: Mapping[str, Mapping[str, object]]) -> None:
        self._write([ItemChange(item, "set", dict(given)) for item, given in _checked(items)])

    def unset(self, items: Mapping[str, Iterable[str]]) -> None:
        possible = {item: names for item, names in items.items() if id_problem(item) is None}
        self._write([ItemChange(item, "unset", dict.fromkeys(names)) for item, names in possible.items()])

    def delete_items(self, ids: Iterable[str]) -> None:
        self._write([ItemChange(checked_id(item), "delete") for item in ids])

    def _write(self, changes: Iterable[ItemChange]) -> None:
        steps = write(self._config, map(PositionedChange, changes))
        answer: Any = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration as done:
                for refusal in cast(list[Refusal], done.value):
                    raise ElasticProblem(refusal.reason) from None
                return
            with elastic_errors():
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    answer = None
                elif isinstance(step, Read):
                    answer = self._client.mget(index=self._index, ids=step.ids, source_includes=SOURCE)["docs"]
                else:
                    answer = self._bulk(step.lines)

    def flush(self) -> None:
        with elastic_errors():
            self._client.indices.refresh(index=self._index)

    def search(self, query: Query) -> list[Hit]:
        steps = plan(query, self._config)
        answers: Any = None
        while True:
            try:
                bodies = steps.send(answers)
            except StopIteration as done:
                return cast(list[Hit], done.value)
            except SearchFailed as error:
                raise ElasticProblem(str(error)) from None
            searches = [part for body in bodies for part in ({}, body)]
            with elastic_errors():
                answers = self._client.msearch(index=self._index, searches=searches)["responses"]

    def rows(self) -> Rows:
        """Items that the vocabulary does not know are added to it."""
        names = (*self._config.indicator_names, PRIORS)
        priors = {name: p for p, name in enumerate(self._config.prior_names)}
        found: list[tuple[int, int, list[tuple[int, float]]]] = []
        for item, source in self._scan(names):
            rows = {decoded(name): row for name, row in source.get("rows", {}).items()}
            rows[PRIORS] = source.get(PRIORS, [])
            [position] = self._items.intern([item]).tolist()
            for field, name in enumerate(names):
                entries = sorted(row_entries(rows.get(name, [])).items(), key=lambda e: (-e[1], e[0].encode()))
                if entries:
                    features = [x for x, _ in entries]
                    known = [priors[x] for x in features] if name == PRIORS else self._items.intern(features).tolist()
                    found.append((position, field, list(zip(known, (w for _, w in entries), strict=True))))
        return _columns(sorted(found))

    def _scan(self, names: Iterable[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """(id, source) of every item with a field that is not empty."""
        filled = {"bool": {"should": [{"term": {f"filled.{encoded(name)}": True}} for name in names]}}
        body: dict[str, Any] = {
            "size": PAGE,
            "query": {"bool": {"filter": [filled]}},
            "sort": ["_shard_doc"],
            "track_total_hits": False,
            "source": ["rows", PRIORS],
        }
        with elastic_errors():
            pit = self._client.open_point_in_time(index=self._index, keep_alive="2m")["id"]
            try:
                while True:
                    answer = self._client.search(pit={"id": pit, "keep_alive": "2m"}, **body)
                    hits = answer["hits"]["hits"]
                    pit = answer.get("pit_id", pit)
                    for hit in hits:
                        yield hit["_id"], hit.get("_source", {})
                    if len(hits) < PAGE:
                        return
                    body["search_after"] = hits[-1]["sort"]
            finally:
                self._client.close_point_in_time(id=pit)

    def properties(self, item: str) -> Properties | None:
        if id_problem(item) is not None:
            return None
        with elastic_errors():
            [found] = self._client.mget(index=self._index, ids=[item], source_includes=["known", "properties"])["docs"]
        return known_properties(found)

    def __len__(self) -> int:
        filled = [f"filled.{encoded(name)}" for name in (*self._config.indicator_names, PRIORS)]
        there = [{"term": {name: True}} for name in ("known", *filled)]
        query = {"bool": {"filter": [{"bool": {"should": there}}], "must_not": [{"term": {"deleted": True}}]}}
        with elastic_errors():
            return int(self._client.count(index=self._index, query=query)["count"])

    def sizes(self) -> dict[str, int]:
        """Bytes on disk, of the primary shards."""
        with elastic_errors():
            answer = self._client.indices.stats(index=self._index, metric=["store"])
        return {"store": int(answer["_all"]["primaries"]["store"]["size_in_bytes"])}


def _checked(items: Mapping[str, Mapping[str, object]]) -> list[tuple[str, Mapping[str, object]]]:
    """Items and their properties. Raises MetadataError at the first that is not possible."""
    return [(checked_id(item), checked_properties(item, given)) for item, given in items.items()]


def known_properties(document: Mapping[str, Any]) -> Properties | None:
    """Metadata in an answer of `mget`; None where the item has none or is deleted. Raises ElasticProblem."""
    if "error" in document:
        raise ElasticProblem(f"properties cannot be read: {of_part(document['error'])}")
    source = document.get("_source") or {}
    return properties_of(source) if source.get("known") else None


def _columns(found: Sequence[tuple[int, int, list[tuple[int, float]]]]) -> Rows:
    start = np.zeros(len(found) + 1, np.int64)
    np.cumsum([len(entries) for _, _, entries in found], out=start[1:])
    return Rows(
        np.array([item for item, _, _ in found], np.uint32),
        np.array([field for _, field, _ in found], np.uint8),
        start,
        np.array([x for _, _, entries in found for x, _ in entries], np.uint32),
        np.array([w for _, _, entries in found for _, w in entries], np.float32),
    )
