"""Comparing the published documents, one by one, with what they should be, and writing them anew.

Nothing here decides what is right: the caller says what rows, metadata and histories should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal, cast

import msgspec
from elasticsearch import Elasticsearch

from cco.config import Config
from model_sync.contract import PRIORS
from model_sync.elastic_client import ElasticProblem
from model_sync.elastic_documents import fields_json, identity, metadata_fields, properties_of
from model_sync.elastic_names import encoded
from model_sync.elastic_query import row_entries

PAGE = 1_000  # documents of a scan
MOST_BYTES = 4 << 20  # of a request
MOST_ACTIONS = 500
KEEP = "2m"  # between two pages

Kind = Literal["rows", "metadata", "users", "state"]

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.decode


@dataclass(frozen=True, slots=True)
class Difference:
    """One document, and what in it is not as it should be."""

    kind: Kind
    key: str  # id of the item or user
    text: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.key!r}: {self.text}"


@dataclass(frozen=True, slots=True)
class Document:
    """A document as it was read; `version` is (_seq_no, _primary_term), None where there is none.

    `number`: of users, the log's position that it claims to be written at.
    """

    key: str
    source: Mapping[str, Any]
    version: tuple[int, int] | None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Metadata:
    """What an item's metadata should be: None for none. `position`: of the last change in the topic of items."""

    properties: Mapping[str, Any] | None
    deleted: bool
    position: int | None = None


@dataclass(slots=True)
class Found:
    """A document that differs."""

    document: Document
    differences: list[Difference]


NO_METADATA = Metadata(None, deleted=False)
NOTHING: Mapping[str, bytes] = {}


def scan(client: Elasticsearch, index: str) -> Iterator[Document]:
    """Every document, as of now. Raises what the client raises."""
    client.indices.refresh(index=index)
    pit = client.open_point_in_time(index=index, keep_alive=KEEP)["id"]
    after: dict[str, Any] = {}
    try:
        while True:
            answer = client.search(
                pit={"id": pit, "keep_alive": KEEP}, size=PAGE, sort=["_shard_doc"], track_total_hits=False,
                seq_no_primary_term=True, version=True, **after,
            )  # fmt: skip
            hits = answer["hits"]["hits"]
            pit = answer.get("pit_id", pit)
            for hit in hits:
                version = hit["_seq_no"], hit["_primary_term"]
                yield Document(hit["_id"], hit.get("_source", {}), version, hit["_version"])
            if len(hits) < PAGE:
                return
            after = {"search_after": hits[-1]["sort"]}
    finally:
        client.close_point_in_time(id=pit)


# -- items ------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ItemCheck:
    """Compares documents of items with `rows` (by item, fields as of `RowDocument`) and `metadata` (by item).

    `metadata` None: not compared.
    """

    config: Config
    rows: Mapping[str, Mapping[str, bytes]]
    metadata: Mapping[str, Metadata] | None
    compared: int = 0
    _seen: set[str] = field(default_factory=set)

    def check(self, document: Document) -> Found | None:
        """What is wrong with a document, if anything is."""
        self._seen.add(document.key)
        self.compared += 1
        return self._check(document)

    def missing(self) -> Iterator[Found]:
        """The documents that should be there, and were not given to `check`."""
        wanted = dict.fromkeys(self.rows)
        if self.metadata is not None:
            wanted |= dict.fromkeys(item for item, of in self.metadata.items() if of.properties is not None)
        for item in sorted(wanted.keys() - self._seen):
            found = self._check(Document(item, {}, None))
            if found is not None:
                yield found

    def _check(self, document: Document) -> Found | None:
        item, source = document.key, document.source
        rows = self.rows.get(item, NOTHING)
        texts: list[tuple[Kind, str]] = []
        if document.version is None:
            texts.append(("rows" if rows else "metadata", "there is no document"))
        else:
            texts += [("rows", text) for text in self._row_texts(source, rows)]
            if source.get("id") != item or source.get("shuffle") != identity(item)["shuffle"]:
                texts.append(("rows", "id or shuffle is not the item's"))
            if self.metadata is not None:
                wanted = self.metadata.get(item, NO_METADATA)
                texts += [("metadata", text) for text in self._metadata_texts(source, wanted)]
        if not texts:
            return None
        return Found(document, [Difference(kind, item, text) for kind, text in texts])

    def _row_texts(self, source: Mapping[str, Any], wanted: Mapping[str, bytes]) -> Iterator[str]:
        published, filled = source.get("rows") or {}, source.get("filled") or {}
        for name in (*self.config.indicator_names, PRIORS):
            at = name if name == PRIORS else encoded(name)
            value = source.get(PRIORS) if name == PRIORS else published.get(at)
            ours, right = _ordered(value), _ordered(_decode(wanted[at]) if at in wanted else [])
            for place, (has, should) in enumerate(zip_longest(ours, right), 1):
                if has != should:
                    yield f"{name}, entry {place} is {_entry(has)}, should be {_entry(should)}"
                    break
            else:
                if bool(filled.get(at)) != bool(ours):
                    yield f"filled.{name} is {filled.get(at)}"

    def _metadata_texts(self, source: Mapping[str, Any], wanted: Metadata) -> Iterator[str]:
        right = metadata_fields(self.config, wanted.properties, None, wanted.deleted)
        ours, known = properties_of(source), dict(wanted.properties or {})
        if ours != known:
            names = sorted(name for name in ours.keys() | known.keys() if ours.get(name) != known.get(name))
            yield f"{names[0]} is {ours.get(names[0])!r}, should be {known.get(names[0])!r}"
        for name in ("known", "deleted", "rank", "tokens", "available", "expires", "returned"):
            has, should = source.get(name) or None, right[name] or None
            if has != should:
                yield f"{name} is {_short(has)}, should be {_short(should)}"

    def lines(self, found: Found) -> list[bytes]:
        """The lines of a bulk request that write the document anew, unless somebody else does."""
        item, version = found.document.key, found.document.version
        rows = self.rows.get(item, NOTHING)
        names = (*map(encoded, self.config.indicator_names), PRIORS)
        body = _encode(identity(item))[1:-1] + b"," + fields_json({name: rows.get(name, b"[]") for name in names})
        wanted = None if self.metadata is None else self.metadata.get(item, NO_METADATA)
        if wanted is not None and (version is None or any(each.kind == "metadata" for each in found.differences)):
            told = metadata_fields(self.config, wanted.properties, wanted.position, wanted.deleted)
            body += b"," + _encode(told)[1:-1]
        if version is None:
            return [_encode({"create": {"_id": item}}), b"{%b}" % body]
        at = {"_id": item, "if_seq_no": version[0], "if_primary_term": version[1]}
        return [_encode({"update": at}), b'{"doc":{%b}}' % body]


def _ordered(value: Any) -> list[tuple[str, float]]:
    """The entries of a field of a document, in the order of the model."""
    entries = row_entries(value or [])
    return sorted(entries.items(), key=lambda entry: (-entry[1], entry[0].encode()))


def _entry(entry: tuple[str, float] | None) -> str:
    return "nothing" if entry is None else f"{entry[0]!r} {entry[1]}"


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


# -- users ------------------------------------------------------------------------------------------

EMPTY: Mapping[str, Any] = {"history": {}, "counts": {}}
_OF_USERS = ("history", "counts", "last", "member", "source")


def user_difference(document: Document, wanted: Mapping[str, Any], end: int) -> Difference | None:
    """What is wrong with a user's document where `wanted` is right, and the log ends at offset `end`."""
    source = document.source
    if document.version is None:
        return Difference("users", document.key, "there is no document") if wanted["history"] else None
    if int(source.get("position", 0)) > end:
        text = f"it stands for the log up to offset {source['position']}, which ends at {end}"
        return Difference("users", document.key, text)
    for name in _OF_USERS:
        has, should = source.get(name), wanted.get(name)
        if has != should and (name != "source" or wanted["history"]):
            return Difference("users", document.key, _user_text(name, has, should))
    return None


def _user_text(name: str, has: Any, should: Any) -> str:
    if not (isinstance(has, Mapping) and isinstance(should, Mapping)):
        return f"{name} is {_short(has)}, should be {_short(should)}"
    for indicator in sorted(has.keys() | should.keys()):
        ours, right = has.get(indicator), should.get(indicator)
        if ours == right:
            continue
        if not (isinstance(ours, list) and isinstance(right, list)):
            return f"{name}.{indicator} is {_short(ours)}, should be {_short(right)}"
        for place, (a, b) in enumerate(zip_longest(ours, right), 1):
            if a != b:
                return f"{name}.{indicator}, entry {place} is {a!r}, should be {b!r}"
    return f"{name} differs"


def user_lines(document: Document, body: Mapping[str, Any], end: int) -> list[bytes]:
    """The lines of a bulk request that write a user's document as of offset `end`, unless a later one is there.

    The version is one more: so it goes over what was deleted at `end`, and the next event still goes over it.
    """
    at = {"_id": document.key, "version": max(end + 1, document.number), "version_type": "external_gte"}
    return [_encode({"index": at}), _encode(body)]


# -- writing ----------------------------------------------------------------------------------------


def write(client: Elasticsearch, alias: str, actions: Iterable[Sequence[bytes]]) -> tuple[int, int]:
    """Send actions of `lines`; answers how many were done, and how many left alone as somebody else wrote meanwhile.

    Raises ElasticProblem if one is refused, and what the client raises.
    """
    done = left = 0
    part: list[bytes] = []
    size = 0

    def send() -> None:
        nonlocal done, left
        if not part:
            return
        answer = client.bulk(index=alias, operations=cast(Any, part), require_alias=True, refresh=True)
        for item in answer["items"]:
            [of] = item.values()
            if of["status"] < 300:
                done += 1
            elif of["status"] in (404, 409):
                left += 1
            else:
                raise ElasticProblem(f"{of['_id'][:40]!r} cannot be written: {of['error'].get('reason')}")

    for lines in actions:
        length = sum(map(len, lines))
        if part and (len(part) >= 2 * MOST_ACTIONS or size + length > MOST_BYTES):
            send()
            part, size = [], 0
        part += lines
        size += length
    send()
    return done, left
