"""Rows and users' documents into Elasticsearch, many at a time: the shell around `bulk_queue`.

A writer accepts documents, makes their lines of a bulk request from bytes that are never decoded, and ends the futures
of those who put them. What fails is tried again for ever; only documents that Elasticsearch would refuse again are
given up, and told with the reason.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any
from urllib.parse import quote

from elasticsearch import ApiError, AsyncElasticsearch, TransportError

from model_sync.bulk_queue import BulkQueue
from model_sync.bulk_types import (
    ABSENT,
    Answer,
    Effect,
    Fenced,
    FencedError,
    Finished,
    Limits,
    Operation,
    Outcome,
    Owner,
    Payload,
    Read,
    Refusal,
    Refused,
    Request,
    Rows,
    Statistics,
    Whole,
    WriterClosedError,
    advice,
    outcome_of,
)
from model_sync.elastic_client import ElasticProblem, elastic_errors
from model_sync.elastic_documents import RowDocument, fields_json, identity_json
from model_sync.elastic_users import UserDocument

__all__ = [
    "FencedError",
    "Limits",
    "Owner",
    "Refusal",
    "RowDocument",
    "RowWriter",
    "UserDocument",
    "UserWriter",
    "WriterClosedError",
    "WriterStats",
]

# Rows wait so that others need not: a node works on few requests at a time, and documents of users, who wait for them,
# queue behind all that it has. So requests are small, and few where they take long.
ROW_LIMITS = Limits(batch_documents=100, latency=0.2)
USER_LIMITS = Limits(batch_documents=1_000)
SERVER_TIMEOUT = "5s"  # that Elasticsearch itself waits for a shard: less than the client waits for it
_ITEM = "items.*.status,items.*._seq_no,items.*._primary_term,items.*.error.type,items.*.error.reason"
_CAUSE = "items.*.error.caused_by.reason"
_BULK = {"filter_path": f"{_ITEM},{_CAUSE}", "require_alias": "true", "timeout": SERVER_TIMEOUT}
_DOCUMENT = "docs.found,docs._seq_no,docs._primary_term,docs._source.owner,docs.error.type,docs.error.reason"
_GET = {"filter_path": _DOCUMENT, "_source_includes": "owner", "realtime": "true"}
_ACCEPT = {"accept": "application/json"}
_JSON = {**_ACCEPT, "content-type": "application/json"}
_NDJSON = {**_ACCEPT, "content-type": "application/x-ndjson"}
_LONGEST_REASON = 500  # characters


@dataclass(frozen=True, slots=True)
class WriterStats:
    """How a writer does: documents and requests now, counts since the beginning, seconds of the last answer."""

    documents: int  # that wait or are on their way
    bytes: int
    requests: int
    window: int
    trouble: str | None
    counts: Statistics


class _Writer:
    """What both writers are."""

    def __init__(
        self,
        client: AsyncElasticsearch,
        index: str,
        conditional: bool,
        limits: Limits,
        refused: Callable[[Refusal], None],
        troubled: Callable[[str | None], None],
        chance: Callable[[], float],
    ) -> None:
        # The queue itself tries again, so that it knows what may have happened twice.
        self._client = client.options(max_retries=0, retry_on_timeout=False, retry_on_status=())
        self._index, self._path = index, quote(index, safe="")
        self._refused, self._troubled = refused, troubled
        self._told: str | None = None
        self._queue = BulkQueue(conditional, limits, chance)
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._sending: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._door = asyncio.Lock()  # whoever came first gets in first
        self._changed = asyncio.Event()
        self._is_closing = False
        self._end: BaseException | None = None

    @property
    def stats(self) -> WriterStats:
        """For metrics."""
        queue = self._queue
        return WriterStats(
            queue.documents, queue.bytes, queue.requests, queue.window, queue.trouble, replace(queue.statistics)
        )

    async def _put(self, documents: Sequence[tuple[str, Payload]], owner: Owner | None) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        async with self._door:
            while not self._is_closing and not self._queue.room:
                self._changed.clear()
                await self._changed.wait()
        if self._is_closing:
            raise WriterClosedError(f"{self._index}: the writer is closed") from self._end
        try:
            ticket, effects = self._queue.put(documents, owner, monotonic())
        except FencedError as error:
            future.set_exception(error)
            return future
        self._futures[ticket] = future
        self._follow(effects)
        self._send()
        return future

    def forget(self) -> None:
        """The index is another one than before: no document's version is known any more."""
        self._queue.forget()

    async def close(self, seconds: float = 10.0) -> int:
        """Finish what was accepted within so many seconds; answers how many documents were not stored.

        Who still waits for them gets a WriterClosedError, and who puts any more.
        """
        self._is_closing = True
        self._changed.set()
        end = asyncio.get_running_loop().time() + seconds
        while self._end is None and self._queue.documents:
            self._changed.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._changed.wait()
            except TimeoutError:
                break
        left = self._queue.documents
        trouble = f" ({self._queue.trouble})" if self._queue.trouble else ""
        self._stop(WriterClosedError(f"{self._index}: closed with {left} documents not stored{trouble}"))
        await asyncio.gather(*self._sending, return_exceptions=True)
        return left

    def _stop(self, reason: BaseException) -> None:
        self._is_closing, self._end = True, self._end or reason
        if self._timer is not None:
            self._timer.cancel()
        for task in self._sending:
            if task is not asyncio.current_task():
                task.cancel()
        for future in self._futures.values():
            if not future.done():
                future.set_exception(self._end)
        self._futures.clear()
        self._changed.set()

    # -- requests -----------------------------------------------------------------------------------

    def _send(self) -> None:
        """Send what is due, and come again when more is."""
        if self._end is not None:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = monotonic()
        for request in self._queue.due(now):
            task = asyncio.create_task(self._exchange(request))
            self._sending.add(task)
            task.add_done_callback(self._sent)
        at = self._queue.wake(now)
        if at is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, at - now), self._send)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._stop(error)  # a defect of ours: nobody may wait for ever

    async def _exchange(self, request: Request) -> None:
        answers: list[Answer] | None = None
        try:
            answers = await (self._read(request) if isinstance(request, Read) else self._write(request.operations))
            expected = len(request.keys)
            failure = Answer(Outcome.UNKNOWN, None, f"{len(answers)} answers to {expected} operations")
            answers = answers if len(answers) == expected else None
        except (ApiError, TransportError) as error:
            failure = _failure(error, self._index)
        now = monotonic()
        if answers is None:
            self._follow(self._queue.failed(request.number, failure, now))
        else:
            self._follow(self._queue.answered(request.number, answers, now))
        self._send()

    async def _read(self, request: Read) -> list[Answer]:
        body = json.dumps({"ids": request.keys}).encode()
        found = await self._client.perform_request(
            "POST", f"/{self._path}/_mget", params=_GET, headers=_JSON, body=body
        )
        return [_found(document) for document in found.body["docs"]]

    async def _write(self, operations: Iterable[Operation]) -> list[Answer]:
        body = b"".join(map(lines, operations))
        found = await self._client.perform_request(
            "POST", f"/{self._path}/_bulk", params=_BULK, headers=_NDJSON, body=body
        )
        return [_stored(next(iter(item.values()))) for item in found.body["items"]]

    def _follow(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Finished):
                self._resolve(effect.ticket, None)
            elif isinstance(effect, Fenced):
                for ticket in effect.tickets:
                    self._resolve(ticket, FencedError(effect.owner, effect.by))
            elif isinstance(effect, Refused):
                self._refused(effect.refusal)
        if self._queue.trouble != self._told and (self._told is None or self._queue.trouble is None):
            self._told = self._queue.trouble
            self._troubled(self._told)
        self._changed.set()

    def _resolve(self, ticket: int, error: BaseException | None) -> None:
        future = self._futures.pop(ticket, None)
        if future is None or future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _ignore(_: object) -> None:
    """Nobody wants to know."""


def _valid(key: str) -> str:
    key.encode()  # what is no Unicode may not come as far as a request, which it would spoil for others
    return key


class RowWriter(_Writer):
    """Rows of items into `index`, an alias. At most `limits.documents` of them wait, and those of one call more.

    `refused` is called with each document that Elasticsearch will not take; `troubled` with a sentence when nothing
    can be written (no node answers, the index is missing or read-only), and with None when it can be again.
    """

    def __init__(
        self,
        client: AsyncElasticsearch,
        index: str,
        *,
        refused: Callable[[Refusal], None] = _ignore,
        troubled: Callable[[str | None], None] = _ignore,
        limits: Limits = ROW_LIMITS,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(client, index, True, limits, refused, troubled, chance)

    async def put(self, owner: Owner, documents: Sequence[RowDocument]) -> asyncio.Future[None]:
        """Accept documents; waits while the queue is full.

        The future ends when all of them, or what was put over them, are stored or refused. It raises FencedError if
        the partition has a higher owner. Raises WriterClosedError, also through the future; UnicodeError
        for an id that is no Unicode.
        """
        return await self._put([(_valid(item), Rows.of(owner, fields)) for item, fields in documents], owner)


class UserWriter(_Writer):
    """Users' documents into `index`, an alias; the rest as in RowWriter. Documents of a lower version are dropped."""

    def __init__(
        self,
        client: AsyncElasticsearch,
        index: str,
        *,
        refused: Callable[[Refusal], None] = _ignore,
        troubled: Callable[[str | None], None] = _ignore,
        limits: Limits = USER_LIMITS,
        chance: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(client, index, False, limits, refused, troubled, chance)

    async def put(self, documents: Sequence[UserDocument]) -> asyncio.Future[None]:
        """Accept documents; waits while the queue is full.

        The future ends when all of them, or later ones of the same users, are stored or refused. Raises
        WriterClosedError, also through the future.
        """
        return await self._put([(_valid(user), Whole(version, body)) for user, version, body in documents], None)


# -- what is sent and answered ----------------------------------------------------------------------


def lines(operation: Operation) -> bytes:
    """An operation as the two lines of a bulk request."""
    key, payload = json.dumps(operation.key).encode(), operation.payload
    if isinstance(payload, Whole):
        action = b'{"index":{"_id":%b,"version":%d,"version_type":"external_gte"}}\n' % (key, payload.version)
        return action + payload.body + b"\n"
    _, at, claim = payload.owner
    fields = b'%b,"owner":{"at":%d,"claim":%d}' % (fields_json(payload.fields), at, claim)
    assert operation.version is not None
    if operation.version == ABSENT:
        return b'{"create":{"_id":%b}}\n{%b,%b}\n' % (key, identity_json(operation.key), fields)
    # Every write makes a new version, also one that changes nothing: that ends whatever is still on its way.
    return b'{"update":{"_id":%b,"if_seq_no":%d,"if_primary_term":%d}}\n{"detect_noop":false,"doc":{%b}}\n' % (
        key, *operation.version, fields,
    )  # fmt: skip


def _found(document: Mapping[str, Any]) -> Answer:
    if "error" in document:
        error = document["error"]  # without a status
        return _problem(400 if error.get("type") == "illegal_argument_exception" else 503, error)
    if not document.get("found"):
        return Answer(Outcome.MISSING, ABSENT)
    owner = document.get("_source", {}).get("owner")
    stamp = None if not owner else (int(owner["at"]), int(owner["claim"]))
    return Answer(Outcome.STORED, (document["_seq_no"], document["_primary_term"]), "", stamp)


def _stored(item: Mapping[str, Any]) -> Answer:
    status = item["status"]
    if status < 300:
        return Answer(Outcome.STORED, (item["_seq_no"], item["_primary_term"]))
    return _problem(status, item.get("error") or {})


def _problem(status: int, error: Mapping[str, Any]) -> Answer:
    kind, reason = str(error.get("type", "")), str(error.get("reason", ""))
    outcome = outcome_of(status, kind, reason)
    if outcome is Outcome.MISSING:
        return Answer(outcome, ABSENT)
    cause = error.get("caused_by", {}).get("reason")
    return Answer(outcome, None, _sentence(kind, f"{kind}: {reason}{f': {cause}' if cause else ''}"))


def _sentence(kind: str, reason: str) -> str:
    todo = advice(kind)
    return f"{reason[:_LONGEST_REASON]}; {todo}" if todo else reason[:_LONGEST_REASON]


def _failure(error: ApiError | TransportError, index: str) -> Answer:
    """What a request that failed as a whole means."""
    try:
        with elastic_errors(doing=f"writing {index}"):
            raise error
    except ElasticProblem as problem:
        reason = str(problem)
    if not isinstance(error, ApiError):
        return Answer(Outcome.UNKNOWN, None, reason)
    outcome = outcome_of(error.status_code, str(error.error) if isinstance(error.body, Mapping) else "")
    if error.status_code == 413:
        return Answer(Outcome.TOO_LARGE, None, reason)
    taken = (Outcome.TROUBLE, Outcome.REJECTED)
    if error.status_code == 400:
        taken = (Outcome.TROUBLE, Outcome.REFUSED)
    return Answer(outcome if outcome in taken else Outcome.UNKNOWN, None, reason)
