"""What a bulk writer does next, without doing it: documents that wait, batches on their way, what to do with answers.

A pure state machine: no input or output, no clock (`now`, in seconds, is an argument) and no chance but `random`, so
that a seed replays everything. `put` accepts documents, `due` answers the requests to send now, `wake` when to ask
again; each request ends with `answered` or `failed`, and these answer what came of it for whoever put the documents.

At most one operation per document is on its way. What arrives for it meanwhile waits, and coalesces: nothing is ever
written in another order than it was put. Why no write is lost, and none comes back that was overtaken:

- *Rows* are written under the condition that the document is still the version that was seen last, which is the
  answer to our own last write, or was read. An operation whose answer was lost may be carried out at any later time;
  then either it comes before the read that follows, or its condition fails, as every write of ours makes a new
  version. (That is why writes never ask Elasticsearch to leave out what changes nothing.)
- The document names its owner. Who reads a higher one than itself was followed by another, and is *fenced*: all of its
  documents are dropped. A lower one is overwritten, and so gets a new version, which ends that one's late writes.
- *Users' documents* are written whole, with a version from outside of which Elasticsearch keeps the highest.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from heapq import heappop, heappush

from model_sync.bulk_entries import Entry, Line, Load, State, Tickets
from model_sync.bulk_types import (
    ABSENT,
    Answer,
    Backoff,
    Effect,
    Fenced,
    FencedError,
    Finished,
    Limits,
    Outcome,
    Owner,
    Payload,
    Read,
    Refusal,
    Refused,
    Request,
    Rows,
    Stamp,
    Statistics,
    Version,
    Window,
    Write,
)

_FOR_GOOD = (Outcome.REFUSED, Outcome.TOO_LARGE)  # what would fail again


class BulkQueue:
    """Documents of one index on their way. `conditional`: rows; otherwise users' documents.

    `random` answers floats in [0, 1), for backing off.
    """

    def __init__(self, conditional: bool, limits: Limits, random: Callable[[], float]) -> None:
        self.statistics = Statistics()
        self._conditional, self._limits = conditional, limits
        self._window = Window(limits)
        self._backoff = Backoff(limits, random)
        self._entries: dict[str, Entry] = {}
        self._unread, self._ready = Line(State.UNREAD), Line(State.READY)
        self._later: list[tuple[float, int, str]] = []  # when to go on, order, key
        self._known: OrderedDict[str, Version] = OrderedDict()  # of documents without work, latest used last
        self._owners: dict[int, Stamp] = {}  # by partition, the highest that was seen
        self._tickets = Tickets()
        self._requests: dict[int, Request] = {}
        self._orders = self._numbers = self._forgotten = self._bytes = 0
        self._batch_bytes = limits.batch_bytes  # less, once a request was too large

    # -- what is there ------------------------------------------------------------------------------

    @property
    def room(self) -> bool:
        """Whether `put` is welcome. It accepts whatever comes, so one call's documents may be above the limits."""
        limits = self._limits
        return (
            len(self._entries) < limits.documents
            and self._bytes < limits.bytes
            and self._tickets.references < 4 * limits.documents  # of those who wait for documents that coalesced
        )

    @property
    def documents(self) -> int:
        """Documents that something is to be done with."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Of what waits or is on its way."""
        return self._bytes

    @property
    def requests(self) -> int:
        """On their way."""
        return len(self._requests)

    @property
    def window(self) -> int:
        """How many requests may be on their way."""
        return 1 if self._backoff.failures else self._window.size

    @property
    def remembered(self) -> int:
        """Documents without work whose version is known."""
        return len(self._known)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written now, in words; None where nothing is known to be wrong."""
        return self._backoff.trouble

    # -- what to write ------------------------------------------------------------------------------

    def put(
        self, documents: Sequence[tuple[str, Payload]], owner: Owner | None, now: float
    ) -> tuple[int, list[Effect]]:
        """Accept documents, of one owner. The ticket that `Finished` or `Fenced` will name, and what follows at once.

        Raises FencedError if a higher owner of the partition has been seen.
        """
        effects: list[Effect] = []
        if owner is not None:
            if self._is_fenced(owner):
                raise FencedError(owner, self._owners[owner.partition])
            if self._owners.get(owner.partition) != owner.stamp:
                effects = self._fence(owner.partition, owner.stamp)
        self._numbers += 1
        ticket = self._numbers
        if not documents:
            return ticket, [*effects, Finished(ticket)]
        self._tickets.open(ticket, owner, len(documents))
        for key, payload in documents:
            self._accept(key, payload, ticket, now)
        return ticket, effects

    def _accept(self, key: str, payload: Payload, ticket: int, now: float) -> None:
        entry = self._entries.get(key)
        if entry is None:
            entry = Entry(key, self._known.pop(key, None), self._limits.batch_documents)
            self._entries[key] = entry
        waiting = entry.waiting
        self._bytes += payload.size
        if waiting is not None:
            self.statistics.coalesced += 1
            waiting.tickets.append(ticket)
            self._replace(waiting, payload)
            return
        self._orders += 1
        entry.waiting = Load(payload, [ticket], self._orders, now)
        if entry.state is State.IDLE:
            self._line_up(entry, self._orders)

    def _replace(self, earlier: Load, later: Payload) -> None:
        """Let `earlier` be written with what `later` says."""
        merged = earlier.payload.merged(later)
        self._bytes += merged.size - earlier.payload.size - later.size
        earlier.payload = merged

    def _line_up(self, entry: Entry, order: int) -> None:
        known = entry.version is not None or not self._conditional
        (self._ready if known else self._unread).push(entry, order)

    def forget(self) -> None:
        """No version is known any more: the index is another one than before."""
        self._forgotten = self._numbers
        self._known.clear()
        for entry in self._entries.values():
            entry.version = None
            if self._conditional and entry.state is State.READY and entry.waiting is not None:
                self._line_up(entry, entry.waiting.order)

    # -- what to send -------------------------------------------------------------------------------

    def due(self, now: float) -> list[Request]:
        """The requests to send now."""
        while self._later and self._later[0][0] <= now:
            _, order, key = heappop(self._later)
            entry = self._entries.get(key)
            if entry is not None and entry.state is State.BACKING_OFF:
                self._line_up(entry, order)
        found: list[Request] = []
        while now >= self._backoff.until and len(self._requests) < self.window and (request := self._next(now)):
            self._requests[request.number] = request
            found.append(request)
        return found

    def wake(self, now: float) -> float | None:
        """When to ask `due` again, if nothing else happens before; None: not at all."""
        times = [self._later[0][0]] if self._later else []
        if len(self._requests) < self.window:
            heads = [self._ready.head(self._entries), self._unread.head(self._entries)]
            lingering = [entry.waiting.since + self._limits.linger for entry in heads if entry and entry.waiting]
            if lingering:
                times.append(max(min(lingering), self._backoff.until))
        return min(times, default=None)

    def _next(self, now: float) -> Request | None:
        ready, unread = self._ready.head(self._entries), self._unread.head(self._entries)
        line = self._ready
        if unread is not None and (ready is None or unread.order < ready.order):
            ready, line = unread, self._unread
        if ready is None or ready.waiting is None:
            return None
        few = len(line.heap) < self._limits.batch_documents
        if self._requests and few and now < ready.waiting.since + self._limits.linger:
            return None  # more will come, and the others are on their way
        most_bytes = math.inf if line is self._unread else self._batch_bytes
        entries = line.take(self._entries, self._limits.batch_documents, most_bytes)
        self._numbers += 1
        if line is self._unread:
            self.statistics.reads += len(entries)
            for entry in entries:
                entry.state = State.READING
            return Read(self._numbers, now, tuple(entry.key for entry in entries))
        return Write(self._numbers, now, tuple(map(Entry.fly, entries)))

    # -- what came of it ----------------------------------------------------------------------------

    def answered(self, number: int, answers: Sequence[Answer], now: float) -> list[Effect]:
        """Request `number` was answered, for each of its documents, in their order."""
        request = self._requests.pop(number)
        outcomes = {answer.outcome for answer in answers}
        write = isinstance(request, Write)
        if Outcome.TROUBLE in outcomes:
            self._backoff.blocked(now, next(a.reason for a in answers if a.outcome is Outcome.TROUBLE))
        elif outcomes == {Outcome.UNKNOWN}:  # no shard is there, say
            self._backoff.failed(now, answers[0].reason)
        else:
            self._backoff.works(write)
        if Outcome.REJECTED in outcomes or Outcome.UNKNOWN in outcomes:
            self._window.shrink(request.sent, now)
        else:
            self._window.took(request.sent, now, bool(self._ready.heap or self._unread.heap))
        self.statistics.latency = now - request.sent
        effects: list[Effect] = []
        for key, answer in zip(request.keys, answers, strict=True):
            entry = self._entries[key]
            version = None if number <= self._forgotten else answer.version
            if write:
                self._was_written(entry, answer, version, now, effects)
            else:
                self._was_read(entry, answer, version, now, effects)
        return effects

    def failed(self, number: int, answer: Answer, now: float) -> list[Effect]:
        """Request `number` failed as a whole, for the reason given."""
        request = self._requests.pop(number)
        keys = request.keys
        effects: list[Effect] = []
        if answer.outcome in _FOR_GOOD:  # on account of one of them: halves will tell of which
            most = len(keys) // 2
            if answer.outcome is Outcome.TOO_LARGE and isinstance(request, Write):
                half = sum(operation.payload.size for operation in request.operations) // 2
                self._batch_bytes = min(self._batch_bytes, half)
        else:
            most = 0
            self._window.shrink(request.sent, now)
            if answer.outcome is Outcome.TROUBLE:
                self._backoff.blocked(now, answer.reason)
            else:
                self._backoff.failed(now, answer.reason)
        for key in keys:
            entry = self._entries[key]
            if answer.outcome in _FOR_GOOD and not most:
                self._refuse(entry, answer, effects)
                continue
            entry.most = most or entry.most
            if answer.outcome is Outcome.UNKNOWN:
                entry.version = None
            self._again(entry, now, 0.0)
        return effects

    def _was_read(
        self, entry: Entry, answer: Answer, version: Version | None, now: float, effects: list[Effect]
    ) -> None:
        load = entry.waiting
        outcome = answer.outcome
        if outcome is Outcome.REFUSED:
            self._refuse(entry, answer, effects)
            return
        if outcome is Outcome.STORED and load is not None and isinstance(load.payload, Rows):
            owner = load.payload.owner
            if answer.stamp is not None and answer.stamp > owner.stamp:
                effects += self._fence(owner.partition, answer.stamp)
        elif outcome is Outcome.MISSING:
            version = None if version is None else ABSENT
        entry.version = version
        delay = 0.0
        if outcome in (Outcome.REJECTED, Outcome.UNKNOWN):
            delay = self._backoff.delay(entry.attempts)
            entry.attempts += 1
        self._again(entry, now, delay)

    def _was_written(
        self, entry: Entry, answer: Answer, version: Version | None, now: float, effects: list[Effect]
    ) -> None:
        outcome, statistics = answer.outcome, self.statistics
        delay = 0.0
        if outcome is Outcome.STORED:
            statistics.stored += 1
            self._finish(entry, version, effects)
            return
        if outcome is Outcome.REFUSED:
            self._refuse(entry, answer, effects)
            return
        if outcome is Outcome.CONFLICT and not self._conditional:
            statistics.superseded += 1
            self._finish(entry, None, effects)
            return
        statistics.retries += 1
        if outcome is Outcome.CONFLICT:
            statistics.conflicts += 1
            entry.version = None
            delay = self._backoff.delay(entry.attempts) if entry.attempts else 0.0
        elif outcome is Outcome.MISSING:
            entry.version = None if version is None else ABSENT
        elif outcome is Outcome.REJECTED:  # nothing has happened: its version is still known
            statistics.rejections += 1
            delay = self._backoff.delay(entry.attempts)
        elif outcome is Outcome.UNKNOWN:
            entry.version = None
            delay = self._backoff.delay(entry.attempts)
        entry.attempts += 1
        self._again(entry, now, delay)

    def _finish(self, entry: Entry, version: Version | None, effects: list[Effect]) -> None:
        """What was on its way has an end."""
        load, entry.flying = entry.flying, None
        if load is not None:
            self._bytes -= load.payload.size
            effects += map(Finished, self._tickets.done(load.tickets))
        entry.version, entry.attempts, entry.most = version, 0, self._limits.batch_documents
        self._settle(entry)

    def _refuse(self, entry: Entry, answer: Answer, effects: list[Effect]) -> None:
        if entry.flying is None:  # it was to be read
            entry.flying, entry.waiting = entry.waiting, None
        if entry.flying is not None:
            self.statistics.refused += 1
            effects.append(Refused(Refusal(entry.key, answer.reason, entry.flying.payload)))
        self._finish(entry, entry.version, effects)

    def _again(self, entry: Entry, now: float, delay: float) -> None:
        """What was on its way is still to be done, below what has come since; nothing, if its owner is fenced."""
        load, waiting = entry.flying, entry.waiting
        entry.flying = None
        if load is not None and isinstance(load.payload, Rows) and self._is_fenced(load.payload.owner):
            self._bytes -= load.payload.size
            load = None
        if load is not None:
            if waiting is not None:
                load.tickets += waiting.tickets
                self._replace(load, waiting.payload)
            entry.waiting = load
        if delay <= 0 or entry.waiting is None:
            self._settle(entry)
            return
        entry.state = State.BACKING_OFF
        heappush(self._later, (now + delay, entry.waiting.order, entry.key))

    def _settle(self, entry: Entry) -> None:
        """Neither on its way nor backing off: it lines up again, or there is nothing left to do."""
        if entry.waiting is not None:
            self._line_up(entry, entry.waiting.order)
            return
        del self._entries[entry.key]
        if not self._entries:
            self._backoff.trouble = None
        if entry.version is not None:
            self._known[entry.key] = entry.version
            if len(self._known) > self._limits.remembered:
                self._known.popitem(last=False)

    # -- owners -------------------------------------------------------------------------------------

    def _is_fenced(self, owner: Owner) -> bool:
        return self._owners.get(owner.partition, owner.stamp) > owner.stamp

    def _fence(self, partition: int, stamp: Stamp) -> list[Effect]:
        """`stamp` owns the partition: what waits of lower owners is dropped, and those who wait for it learn why."""
        is_first = partition not in self._owners
        self._owners[partition] = stamp
        if is_first:
            return []
        for entry in list(self._entries.values()):
            load = entry.waiting
            if load is not None and isinstance(load.payload, Rows) and self._is_fenced(load.payload.owner):
                self.statistics.fenced += 1
                self._bytes -= load.payload.size
                entry.waiting = None
                if entry.state not in (State.READING, State.FLYING, State.IDLE):
                    self._settle(entry)
        lost = self._tickets.fence(partition, stamp)
        return [Fenced(owner, tuple(numbers), stamp) for owner, numbers in lost.items()]
