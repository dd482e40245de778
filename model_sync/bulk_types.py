"""What `bulk_queue` speaks of: documents, requests, answers to them, effects, and how fast to go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

OVERHEAD = 200  # bytes of an operation that are neither its id nor its body, about

Stamp: TypeAlias = tuple[int, int]  # `at` and `claim` of an Owner
Version: TypeAlias = tuple[int, int]  # _seq_no and _primary_term
ABSENT: Version = (-1, 0)


class Owner(NamedTuple):
    """Who writes the rows of an item partition: when it claimed it (ms, the log's clock), and the claim's offset."""

    partition: int
    at: int
    claim: int

    @property
    def stamp(self) -> Stamp:
        """What grows with every new owner of a partition."""
        return self.at, self.claim


class FencedError(Exception):
    """Another owner has claimed the item partition since: `owner` must write no more of it. `by`: its stamp."""

    def __init__(self, owner: Owner, by: Stamp) -> None:
        super().__init__(
            f"item partition {owner.partition}: another owner was found in the index; claim {owner.claim} is over"
        )
        self.owner, self.by = owner, by


class WriterClosedError(Exception):
    """The writer was closed before the documents were stored."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a BulkQueue. Times are in seconds; documents and bytes are those that wait or are on their way."""

    documents: int = 20_000
    bytes: int = 64 << 20
    batch_documents: int = 500
    batch_bytes: int = 4 << 20
    requests: int = 8  # on their way at most
    latency: float = 2.0  # of an answer: above it there are too many requests
    linger: float = 0.02  # that documents wait for company, while requests are on their way
    backoff: float = 0.1  # the first one, at most
    slow_backoff: float = 1.0  # the same while the index is missing or must not be written
    longest_backoff: float = 10.0
    remembered: int = 200_000  # documents whose version is known


# -- documents --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rows:
    """Changed fields of an item: per name the JSON."""

    owner: Owner
    fields: Mapping[str, bytes]
    size: int

    @classmethod
    def of(cls, owner: Owner, fields: Mapping[str, bytes]) -> Rows:
        """With its size."""
        return cls(owner, fields, OVERHEAD + sum(map(len, fields)) + sum(map(len, fields.values())))

    def merged(self, later: Payload) -> Payload:
        """This, and then `later`."""
        if not isinstance(later, Rows) or later.owner.stamp > self.owner.stamp:
            return later
        return Rows.of(self.owner, {**self.fields, **later.fields})


@dataclass(frozen=True, slots=True)
class Whole:
    """A whole document, as JSON, and its version: of two, the higher counts."""

    version: int
    body: bytes

    @property
    def size(self) -> int:
        """Bytes in a request, about."""
        return OVERHEAD + len(self.body)

    def merged(self, later: Payload) -> Payload:
        """Whichever of the two counts."""
        return self if isinstance(later, Whole) and later.version < self.version else later


Payload: TypeAlias = Rows | Whole


# -- requests and answers ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operation:
    """One document of a Write. `version`: the condition of rows."""

    key: str
    payload: Payload
    version: Version | None


@dataclass(frozen=True, slots=True)
class Read:
    """Look up version and owner of documents."""

    number: int
    sent: float
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """One bulk request."""

    number: int
    sent: float
    operations: tuple[Operation, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Of its documents, in their order."""
        return tuple(operation.key for operation in self.operations)


Request: TypeAlias = Read | Write


class Outcome(Enum):
    """What came of an operation, or of a whole request."""

    STORED = auto()  # or found
    MISSING = auto()  # there is no such document
    CONFLICT = auto()  # the document is another version
    REJECTED = auto()  # too busy; nothing has happened
    UNKNOWN = auto()  # it may have happened, or happen yet
    REFUSED = auto()  # on account of the document; it would be refused again
    TOO_LARGE = auto()  # the request as a whole; nothing has happened
    TROUBLE = auto()  # on account of the index, for all alike; nothing has happened


class Answer(NamedTuple):
    """What came of it. `version`: of the document, now. `stamp`: its owner's, of a Read."""

    outcome: Outcome
    version: Version | None = None
    reason: str = ""
    stamp: Stamp | None = None


_ADVICE = {  # what is wrong with the index, for all documents alike
    "alias_not_found_exception": "`cco index create` makes what is missing",
    "cluster_block_exception": "free disk space, or lift the block; writing goes on by itself",
    "index_closed_exception": "open the index",
    "index_not_found_exception": "`cco index create` makes what is missing",
    "security_exception": "check the user or API key and what it may write",
}
_NO_WRITE_INDEX = "no write index is defined"


def advice(kind: str) -> str:
    """What to do about an error that concerns the index, by its type; empty for others."""
    return _ADVICE.get(kind, "")


def outcome_of(status: int, kind: str = "", reason: str = "") -> Outcome:
    """What an error of Elasticsearch means, by its HTTP status, type and reason."""
    if kind in _ADVICE or status in (401, 403) or _NO_WRITE_INDEX in reason:
        return Outcome.TROUBLE
    if status == 404:
        return Outcome.MISSING
    if status == 409:
        return Outcome.CONFLICT
    if status == 429:
        return Outcome.REJECTED
    if 400 <= status < 500 and status != 408:
        return Outcome.REFUSED
    return Outcome.UNKNOWN


# -- effects ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """A document that Elasticsearch will not take."""

    key: str
    reason: str
    payload: Payload


@dataclass(frozen=True, slots=True)
class Finished:
    """All documents of a ticket are stored, or refused, or what followed them is."""

    ticket: int


@dataclass(frozen=True, slots=True)
class Fenced:
    """`owner` is followed by another, which has the stamp `by`; the tickets have failed."""

    owner: Owner
    tickets: tuple[int, ...]
    by: Stamp


@dataclass(frozen=True, slots=True)
class Refused:
    """A document was refused."""

    refusal: Refusal


Effect: TypeAlias = Finished | Fenced | Refused


@dataclass(slots=True)
class Statistics:
    """Counts of documents since the beginning; `latency` of the last answer, in seconds."""

    stored: int = 0
    coalesced: int = 0  # were put over one that waited
    retries: int = 0
    conflicts: int = 0
    rejections: int = 0
    superseded: int = 0
    refused: int = 0
    fenced: int = 0
    reads: int = 0
    latency: float = 0.0


# -- how fast to go ---------------------------------------------------------------------------------


class Window:
    """How many requests may be on their way: one more per round that goes well, half as many where one does not."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._size = min(2.0, limits.requests)
        self._cut = float("-inf")

    @property
    def size(self) -> int:
        """At least 1."""
        return int(self._size)

    def took(self, sent: float, now: float, more: bool) -> None:
        """A request went well. `more`: others wait to be sent."""
        if now - sent > self._limits.latency:
            self._cut_to(min(2.0, self._size), sent, now)  # with one alone, Elasticsearch would wait for us
        elif more:
            self._size = min(self._limits.requests, self._size + 1 / self._size)

    def shrink(self, sent: float, now: float) -> None:
        """A request was not taken, or was lost."""
        self._cut_to(1.0, sent, now)

    def _cut_to(self, least: float, sent: float, now: float) -> None:
        if sent >= self._cut:  # once for all requests that were on their way together
            self._size, self._cut = max(least, self._size / 2), now


class Backoff:
    """Exponential, with full jitter: of single documents, and of everything while nothing at all works."""

    def __init__(self, limits: Limits, random: Callable[[], float]) -> None:
        self._limits, self._random = limits, random
        self._is_blocked = False
        self.failures = 0  # in a row, of everything
        self.until = float("-inf")  # nothing is to be sent
        self.trouble: str | None = None

    def delay(self, attempts: int, first: float | None = None) -> float:
        """Seconds after so many attempts that failed."""
        most = (self._limits.backoff if first is None else first) * 2.0 ** min(attempts, 30)
        return max(1e-3, self._random() * min(self._limits.longest_backoff, most))

    def failed(self, now: float, reason: str) -> None:
        """A request as a whole was not answered as it should be."""
        self._hold(now, reason, self._limits.backoff)

    def blocked(self, now: float, reason: str) -> None:
        """The index cannot be written; only a write that goes well shows that it can be again."""
        self._is_blocked = True
        self._hold(now, reason, self._limits.slow_backoff)

    def _hold(self, now: float, reason: str, first: float) -> None:
        self.trouble = reason
        self.until = now + self.delay(self.failures, first)
        self.failures += 1

    def works(self, write: bool) -> None:
        """A request was answered."""
        if write or not self._is_blocked:
            self.failures, self.until, self.trouble, self._is_blocked = 0, float("-inf"), None, False
