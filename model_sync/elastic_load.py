"""Loading a model into an index that nobody else writes yet: rows as computed, metadata as it is in the index served.

Documents are only created, never changed: what a lost answer makes come twice is found to be there. Metadata comes with
the position in the topic of items that it stands for, so that agents, which apply all changes of the topic to an index
that they see for the first time, go on after it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import msgspec
import numpy as np
from elasticsearch import Elasticsearch

from cco.config import Config
from cco.rows import Patches, Rows
from cco.vocabulary import Vocabulary
from model_sync.elastic_client import ElasticProblem, NotNow
from model_sync.elastic_documents import (
    RowDocument,
    fields_json,
    identity_json,
    metadata_fields,
    properties_of,
    row_documents,
)
from model_sync.elastic_metadata import SOURCE
from model_sync.elastic_patience import Patience

MOST_DOCUMENTS = 500  # of one request
MOST_BYTES = 2 << 20
REST = 0.5  # of the time that a request took, until the next: queries have the node for themselves meanwhile
SAMPLES = 200  # documents that are looked at again
TELL_SECONDS = 5.0

_encode = msgspec.json.Encoder().encode
_TOLD_ALREADY = 409  # it is there: the answer to an earlier try was lost


@dataclass(slots=True)
class Loaded:
    """What was written. Samples: item and JSON of its row fields; item and its source of metadata."""

    rows: int = 0  # documents with rows
    metadata: int = 0  # documents with metadata, with or without rows
    documents: int = 0
    row_samples: list[RowDocument] = field(default_factory=list)
    metadata_samples: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)


class Loader:
    """Loads `target`, an alias of one index. `served`: the alias whose metadata is taken over; None: there is none."""

    def __init__(
        self,
        client: Elasticsearch,
        target: str,
        served: str | None,
        config: Config,
        patience: Patience,
        chance: random.Random,
    ) -> None:
        self._client, self._target, self._served, self._config = client, target, served, config
        self._patience, self._chance = patience, chance
        self._seen_rows = self._seen_metadata = 0
        self.loaded = Loaded()

    def load(self, rows: Rows, items: Vocabulary) -> Iterator[int]:
        """Write everything; answers documents written from time to time. Raises ElasticProblem."""
        with_rows = np.zeros(len(items), np.bool_)
        with_rows[rows.item] = True
        told = time.monotonic()
        for part in _parts(self._with_rows(rows, items), self._without_rows(with_rows, items)):
            began = time.monotonic()
            self._create(part)
            self.loaded.documents += len(part)
            now = time.monotonic()
            if now - told > TELL_SECONDS:
                told = now
                yield self.loaded.documents
            time.sleep(REST * (now - began))
        yield self.loaded.documents

    # -- documents ----------------------------------------------------------------------------------

    def _with_rows(self, rows: Rows, items: Vocabulary) -> Iterator[tuple[str, bytes]]:
        starts = np.flatnonzero(np.diff(rows.item.astype(np.int64), prepend=-1))
        bounds = [*starts[::MOST_DOCUMENTS].tolist(), len(rows)]
        for begin, end in pairwise(bounds):
            found = row_documents(self._config, items, Patches((), rows.select(np.arange(begin, end))))
            metadata = self._metadata([document.item for document in found])
            for document in found:
                self.loaded.rows += 1
                self._seen_rows += 1
                _sample(self.loaded.row_samples, document, self._seen_rows, self._chance)
                yield document.item, self._body(document.item, document.fields, metadata.get(document.item))

    def _without_rows(self, with_rows: Any, items: Vocabulary) -> Iterator[tuple[str, bytes]]:
        """Items that have metadata, or are deleted, and no rows."""
        for item, source in self._scan():
            index = items.index(item)
            if index is None or not with_rows[index]:
                yield item, self._body(item, {}, source)

    def _body(self, item: str, fields: Mapping[str, bytes], source: Mapping[str, Any] | None) -> bytes:
        parts = [identity_json(item)]
        if fields:
            parts.append(fields_json(fields))
        if source is not None:
            self.loaded.metadata += 1
            self._seen_metadata += 1
            _sample(self.loaded.metadata_samples, (item, source), self._seen_metadata, self._chance)
            properties = properties_of(source) if source.get("known") else None
            position, deleted = source.get("metadata_position"), bool(source.get("deleted"))
            parts.append(_encode(metadata_fields(self._config, properties, position, deleted))[1:-1])
        return b"{%b}" % b",".join(parts)

    # -- metadata of the index that is served -------------------------------------------------------

    def _metadata(self, ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        served = self._served
        if served is None:
            return {}

        def read() -> list[Mapping[str, Any]]:
            found: list[Mapping[str, Any]] = self._client.mget(
                index=served, ids=list(ids), source_includes=SOURCE
            ).body["docs"]
            for document in found:
                if "error" in document:
                    raise NotNow(f"metadata of items cannot be read: {document['error'].get('reason')}")
            return found

        found = {}
        for document in self._patience("reading metadata", read):
            source = document.get("_source") or {}
            if "known" in source or "metadata_position" in source:
                found[str(document["_id"])] = source
        return found

    def _scan(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Page by page in the order of ids, without anything that ends when a node does.

        What changes meanwhile may be missed, and comes from the topic.
        """
        if self._served is None:
            return
        either = [{"term": {"known": True}}, {"term": {"deleted": True}}]
        body: dict[str, Any] = {
            "index": self._served,
            "size": 1_000,
            "query": {"bool": {"filter": [{"bool": {"should": either}}]}},
            "sort": [{"id": "asc"}],
            "source_includes": SOURCE,
            "track_total_hits": False,
        }
        while True:
            hits = self._patience("reading metadata", lambda: self._client.search(**body).body["hits"]["hits"])
            for hit in hits:
                yield str(hit["_id"]), hit.get("_source", {})
            if not hits:
                return
            body["search_after"] = hits[-1]["sort"]

    # -- writing ------------------------------------------------------------------------------------

    def _create(self, part: Sequence[tuple[str, bytes]]) -> None:
        left = list(part)

        def write() -> None:
            lines = [line for item, body in left for line in (b'{"create":{"_id":%b}}' % _encode(item), body)]
            answer = self._client.bulk(index=self._target, operations=cast(Any, lines), require_alias=True)
            again, reason = [], ""
            for document, result in zip(list(left), answer["items"], strict=True):
                [of] = result.values()
                status, error = of["status"], of.get("error") or {}
                if status < 300 or status == _TOLD_ALREADY:
                    continue
                again.append(document)
                reason = str(error.get("reason"))
                if status not in (429, 500, 503):
                    name = document[0][:40]
                    raise ElasticProblem(f"the document of {name!r} cannot be loaded into {self._target}: {reason}")
            left[:] = again
            if again:
                raise _BusyError(f"Elasticsearch does not take all documents of {self._target}: {reason}")

        while left:
            try:
                self._patience("loading", write)
            except _BusyError:
                time.sleep(0.2 + self._chance.random())


class _BusyError(Exception):
    """Some documents are to be sent again."""


def _parts(*documents: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    part: list[tuple[str, bytes]] = []
    size = 0
    for each in documents:
        for item, body in each:
            if part and (len(part) >= MOST_DOCUMENTS or size + len(body) > MOST_BYTES):
                yield part
                part, size = [], 0
            part.append((item, body))
            size += len(body)
    if part:
        yield part


def _sample(samples: list[Any], found: Any, seen: int, chance: random.Random) -> None:
    """Keep SAMPLES of all that were seen, each as likely as any other."""
    if len(samples) < SAMPLES:
        samples.append(found)
    else:
        at = chance.randrange(seen)
        if at < SAMPLES:
            samples[at] = found
