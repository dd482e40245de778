"""Changes of items' metadata in Elasticsearch: read, changed and written only if nobody wrote in between.

`write` is the whole of it without I/O; `MetadataWriter` carries it out with an asynchronous client, and the
index in `elastic_index` with a synchronous one. A change that comes again does no harm:
with a position it is skipped, and without one a list of changes that is repeated ends as it ended before.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

import msgspec
from elasticsearch import ApiError, AsyncElasticsearch

from cco.config import Config
from cco.event_data import ItemChange
from model_sync.bulk_types import WriterClosedError
from model_sync.elastic_client import ElasticProblem, elastic_errors
from model_sync.elastic_documents import identity, metadata_fields, properties_of
from model_sync.metadata import change_problem

MOST_DOCUMENTS = 500  # of one request
MOST_BYTES = 4 << 20
SOURCE = ("known", "deleted", "properties", "metadata_position")
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0  # seconds until what was too much is tried again
_NOT_NOW = (429, 500, 502, 503, 504)
_TOO_LARGE = 413
_BLOCKED = "cluster_block_exception"
_ANOTHER = (404, 409)  # somebody deleted, created or changed the document: read it again

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class PositionedChange:
    """A change of an item's metadata, and its offset in the topic of items where it comes from one.

    Of "unset", only the names of the properties count.
    """

    change: ItemChange
    position: int | None = None


class Refusal(NamedTuple):
    """A change that cannot be made: its position, and why, in a sentence."""

    position: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Read:
    """Ask for these documents (`mget`, realtime, fields SOURCE); wants the list "docs" of the answer."""

    ids: list[str]


@dataclass(frozen=True, slots=True)
class Write:
    """Send these lines (`bulk`); wants the list "items" of the answer, or None: they are too large for one request."""

    lines: list[bytes]


@dataclass(frozen=True, slots=True)
class Wait:
    """Seconds until more is welcome; wants nothing."""

    seconds: float


Steps = Generator[Read | Write | Wait, Any, list[Refusal]]


class _Waiting:
    """The changes that are not made yet, by item: all of one go together, or one by one once that was refused."""

    def __init__(self) -> None:
        self.refused: list[Refusal] = []
        self._changes: dict[str, list[PositionedChange]] = {}
        self._alone: set[str] = set()  # items, one of whose changes is refused

    def __bool__(self) -> bool:
        return bool(self._changes)

    def add(self, given: PositionedChange) -> None:
        """Or refuse it, if it cannot be made anywhere."""
        problem = change_problem(given.change)
        if problem is None:
            self._changes.setdefault(given.change.item_id, []).append(given)
        else:
            self.refused.append(Refusal(given.position, problem))

    def items(self) -> list[str]:
        """As many as one request takes."""
        return list(self._changes)[:MOST_DOCUMENTS]

    def next(self, item: str) -> list[PositionedChange]:
        """Those of an item that go together now."""
        return self._changes[item][: 1 if item in self._alone else None]

    def done(self, item: str) -> None:
        """They are made."""
        left = self._changes[item][len(self.next(item)) :]
        if left:
            self._changes[item] = left
        else:
            del self._changes[item]

    def refuse(self, item: str, reason: str) -> None:
        """They cannot be made; which of them is found out first, for what is together is chance."""
        together = self.next(item)
        if len(together) > 1:
            self._alone.add(item)
        else:
            self.refused.append(Refusal(together[0].position, reason))
            self.done(item)


def write(config: Config, changes: Iterable[PositionedChange], chance: Callable[[], float] = random.random) -> Steps:
    """Make changes, those of an item in their order and in one go, and return those that are refused.

    `chance` gives numbers from 0 to 1, which spread the writers that were told to wait. Raises ElasticProblem if
    there is no index.
    """
    waiting = _Waiting()
    for given in changes:
        waiting.add(given)
    wait, most_bytes = FIRST_WAIT, MOST_BYTES
    while waiting:
        ids = waiting.items()
        documents = yield Read(ids)
        actions = []
        for item, document in zip(ids, documents, strict=True):
            lines = _action(config, item, document, waiting.next(item))
            if lines is None:
                waiting.done(item)
            else:
                actions.append((item, lines))
        slow = False
        for part in _parts(actions, most_bytes):
            answers = yield Write([line for _, lines in part for line in lines])
            if answers is None and len(part) == 1:
                waiting.refuse(part[0][0], f"{_what(part[0][0])}: too large")
                continue
            if answers is None:
                most_bytes = min(most_bytes, _size(part) // 2)
                continue  # what is left is read once more
            for (item, _), answer in zip(part, answers, strict=True):
                [result] = answer.values()
                status = result["status"]
                if status < 300:
                    waiting.done(item)
                elif status in _NOT_NOW or result["error"]["type"] == _BLOCKED:
                    slow = True
                elif result["error"]["type"] == "index_not_found_exception":
                    raise ElasticProblem(f"metadata of items cannot be written: {result['error'].get('reason')}")
                elif status not in _ANOTHER:
                    waiting.refuse(item, _reason(item, result["error"]))
        if slow:
            yield Wait(wait * (0.5 + chance() / 2))
        wait = min(2 * wait, LONGEST_WAIT) if slow else FIRST_WAIT
    return waiting.refused


def _action(
    config: Config, item: str, document: Mapping[str, Any], changes: Sequence[PositionedChange]
) -> tuple[bytes, bytes] | None:
    """The lines of the bulk request that make these changes; None where there is nothing to change."""
    if "error" in document:
        raise ElasticProblem(f"metadata of items cannot be read: {document['error'].get('reason')}")
    source = document.get("_source") or {}
    position: int | None = source.get("metadata_position")
    properties = properties_of(source) if source.get("known") else None
    deleted = changed = False
    for given in changes:
        change = given.change
        if given.position is not None:
            if position is not None and given.position <= position:
                continue
            position = given.position
        if change.kind == "unset" and properties is None:
            continue
        changed, deleted = True, change.kind == "delete"
        properties = _changed(properties, change)
    if not changed:
        return None
    fields = metadata_fields(config, properties, position, deleted)
    if document["found"]:
        at = {"_id": item, "if_seq_no": document["_seq_no"], "if_primary_term": document["_primary_term"]}
        return _encode({"update": at}), _encode({"doc": fields})
    return _encode({"create": {"_id": item}}), _encode({**identity(item), **fields})


def _changed(properties: Mapping[str, Any] | None, change: ItemChange) -> dict[str, Any] | None:
    """The properties after a change; None: no metadata."""
    if change.kind == "delete":
        return None
    before = properties or {}
    if change.kind == "unset":
        return {name: value for name, value in before.items() if name not in change.properties}
    after = {**before, **change.properties}
    return {name: value for name, value in after.items() if value is not None}


_Action: TypeAlias = tuple[str, tuple[bytes, bytes]]


def _size(actions: Iterable[_Action]) -> int:
    """Bytes in a request."""
    return sum(sum(map(len, lines)) + len(lines) for _, lines in actions)


def _parts(actions: Sequence[_Action], most_bytes: int) -> Iterable[list[_Action]]:
    """Actions in requests of at most so many bytes, or of one action."""
    part: list[_Action] = []
    size = 0
    for action in actions:
        length = _size([action])
        if part and size + length > most_bytes:
            yield part
            part, size = [], 0
        part.append(action)
        size += length
    if part:
        yield part


def _reason(item: str, error: Mapping[str, Any]) -> str:
    cause = error.get("caused_by") or {}
    text = f"{_what(item)}: {error.get('reason')}"
    return f"{text} ({cause['reason']})" if "reason" in cause else text


def _what(item: str) -> str:
    return f"item {item[:40]!r}: Elasticsearch refuses the document"


class MetadataWriter:
    """Writes changes of metadata to an alias of items. Any number of tasks and writers may."""

    def __init__(self, client: AsyncElasticsearch, index: str, config: Config) -> None:
        """`index`: the alias; written to a name that is none, Elasticsearch would make an index of that name."""
        self._client, self._index, self._config = client, index, config
        self._closed = asyncio.Event()
        self.trouble: str | None = None  # why nothing can be written just now

    def close(self) -> None:
        """The index is written no more: whoever waits, or begins to write, gets a WriterClosedError."""
        self._closed.set()

    async def write(self, changes: Iterable[PositionedChange]) -> list[Refusal]:
        """Make changes, those of an item in their order; returns those that are refused, which harm no other.

        Waits as long as Elasticsearch, or the index, is not there or overloaded; `trouble` says so meanwhile.
        Raises WriterClosedError.
        """
        given = list(changes)
        wait = FIRST_WAIT
        while True:
            self._check()
            try:
                refused = await self._write(given)
                self.trouble = None
                return refused
            except ElasticProblem as error:
                self.trouble = str(error)
            await self._sleep(wait * (0.5 + random.random() / 2))
            wait = min(2 * wait, LONGEST_WAIT)

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._closed.wait(), seconds)
        self._check()

    def _check(self) -> None:
        if self._closed.is_set():
            raise WriterClosedError(f"{self._index}: the writer is closed")

    async def _write(self, changes: Sequence[PositionedChange]) -> list[Refusal]:
        steps = write(self._config, changes)
        answer: Any = None
        with elastic_errors(doing="writing metadata of items"):
            while True:
                try:
                    step = steps.send(answer)
                except StopIteration as done:
                    return cast(list[Refusal], done.value)
                if isinstance(step, Wait):
                    await self._sleep(step.seconds)
                    answer = None
                elif isinstance(step, Read):
                    found = await self._client.mget(index=self._index, ids=step.ids, source_includes=SOURCE)
                    answer = found["docs"]
                else:
                    answer = await self._bulk(step)

    async def _bulk(self, step: Write) -> Any:
        try:
            written = await self._client.bulk(index=self._index, operations=cast(Any, step.lines), require_alias=True)
        except ApiError as error:
            if error.status_code != _TOO_LARGE:
                raise
            return None
        return written["items"]
