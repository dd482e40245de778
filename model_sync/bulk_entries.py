"""What `bulk_queue` keeps of documents that something is to be done with, and of those who wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from heapq import heappop, heappush

from model_sync.bulk_types import Operation, Owner, Payload, Version


class State(Enum):
    """Of a document."""

    IDLE = auto()
    UNREAD = auto()  # waits to be read: its version is not known
    READY = auto()  # waits to be written
    BACKING_OFF = auto()
    READING = auto()
    FLYING = auto()


@dataclass(slots=True)
class Load:
    """Something to write, and the tickets of those who wait for it."""

    payload: Payload
    tickets: list[int]
    order: int  # in which it came
    since: float


@dataclass(slots=True)
class Entry:
    """A document that something is to be done with."""

    key: str
    version: Version | None  # None: not known
    most: int  # documents of a request that it may be part of
    state: State = State.IDLE
    waiting: Load | None = None
    flying: Load | None = None
    attempts: int = 0

    @property
    def order(self) -> int:
        """Of what waits; -1: nothing."""
        return self.waiting.order if self.waiting is not None else -1

    def fly(self) -> Operation:
        """What waits goes on its way."""
        load = self.flying = self.waiting
        self.waiting, self.state = None, State.FLYING
        assert load is not None
        return Operation(self.key, load.payload, self.version)


@dataclass(slots=True)
class Line:
    """Documents of one state, in the order in which they came. One that left it by another way is passed over."""

    state: State
    heap: list[tuple[int, str]] = field(default_factory=list)

    def push(self, entry: Entry, order: int) -> None:
        """Line up."""
        entry.state = self.state
        heappush(self.heap, (order, entry.key))

    def head(self, entries: dict[str, Entry]) -> Entry | None:
        """The first, which stays."""
        while self.heap:
            order, key = self.heap[0]
            entry = entries.get(key)
            if entry is not None and entry.state is self.state and entry.order == order:
                return entry
            heappop(self.heap)
        return None

    def take(self, entries: dict[str, Entry], documents: int, size: float) -> list[Entry]:
        """The first ones leave for one request: at most so many, and of so many bytes, but one at least."""
        found: list[Entry] = []
        while (entry := self.head(entries)) is not None and entry.waiting is not None:
            documents = min(documents, entry.most)
            size -= entry.waiting.payload.size
            if found and (len(found) >= documents or size < 0):
                break
            heappop(self.heap)
            found.append(entry)
            entry.state = State.IDLE  # so that it is not found twice
        return found


@dataclass(slots=True)
class _Ticket:
    owner: Owner | None
    left: int  # documents


class Tickets:
    """Who waits for which number of documents."""

    def __init__(self) -> None:
        self.references = 0  # documents that are waited for, all tickets together
        self._tickets: dict[int, _Ticket] = {}

    def open(self, number: int, owner: Owner | None, documents: int) -> None:
        """A new one."""
        self._tickets[number] = _Ticket(owner, documents)
        self.references += documents

    def done(self, numbers: Sequence[int]) -> list[int]:
        """One document less for each of `numbers`; answers those that are finished. Unknown ones are none."""
        finished = []
        for number in numbers:
            ticket = self._tickets.get(number)
            if ticket is not None:
                ticket.left -= 1
                self.references -= 1
                if not ticket.left:
                    del self._tickets[number]
                    finished.append(number)
        return finished

    def fence(self, partition: int, owner: tuple[int, int]) -> dict[Owner, list[int]]:
        """Drop the tickets of lower owners of the partition, and answer them."""
        lost: dict[Owner, list[int]] = {}
        for number, ticket in list(self._tickets.items()):
            of = ticket.owner
            if of is not None and of.partition == partition and of.stamp < owner:
                lost.setdefault(of, []).append(number)
                self.references -= ticket.left
                del self._tickets[number]
        return lost
