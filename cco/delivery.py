"""The protocol between user stages and item stages, over a log that crashes, zombies and repeats write into.

A user stage speaks of *ranges* of its source's log, (start, end], in parts: part 0, 1, ... and a last one,
and what it says is absolute: the state at `end` of every key touched in the range. An item stage keeps, for
each source, the position that it has applied, and decides with `Inbox.take` what to do with a message:

- a range that ends where it is, or before, is dropped whole;
- one that begins after it shows that something was lost: the item stage must begin anew;
- any other is applied whole, since states make that exact. Its first part sets the position back to where
  it begins: keys are told as they were on the way, too. Until its last part is there, and while keys may be
  ahead of the position because such a range was broken off, no row may be counted.

An item stage begins empty with a *claim*, a message of its own in the log; the claim's offset is its number
and grows for ever. It asks every source to *fill* it. A fill is made in parts too, between ranges, which go
on meanwhile; each part says how some users are now, and is good for exactly that position. A higher claim
ends the life of a lower one, and so does an answer to a higher claim: the log may have lost the claim itself
after it was acknowledged, and whoever made it publishes once it is filled. What belongs to a lower claim, to
another life of the user stage (*session*), or comes at another position, is not taken; what is taken breaks
off a range of another life that is not at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

from cco.edits import Edits
from cco.edits_message import Header, Kind, encode
from cco.vocabulary import Vocabulary

Encode: TypeAlias = Callable[[Header, Edits | None], list[bytes]]
"""One message, or several that are numbered on from `Header.part`; only the final one has `Header.last`."""

NO_CLAIM = -1


class Outbox:
    """What one life of a user stage says to all item partitions. Positions are of the source's log."""

    def __init__(self, encode: Encode, epoch: str, source: int, sources: int, partitions: int, session: int) -> None:
        self._encode = encode
        self._epoch, self._session = epoch, session
        self._source, self._sources, self._partitions = source, sources, partitions

    def _header(self, kind: Kind, partition: int, claim: int, start: int, end: int, part: int, last: bool) -> Header:
        return Header(
            kind=kind, source=self._source, sources=self._sources, partition=partition, partitions=self._partitions,
            epoch=self._epoch, session=self._session, claim=claim, start=start, end=end, part=part, last=last,
        )  # fmt: skip

    def range(self, start: int, end: int, told: Sequence[Sequence[Edits]]) -> list[tuple[int, bytes]]:
        """(item partition, message) for all that `UserStage.ingest` yielded for the events in (start, end]."""
        messages = []
        for partition in range(self._partitions):
            part = 0
            for k, edits in enumerate(told):
                header = self._header(Kind.RANGE, partition, NO_CLAIM, start, end, part, last=k == len(told) - 1)
                encoded = self._encode(header, edits[partition])
                messages += [(partition, message) for message in encoded]
                part += len(encoded)
        return messages

    def mark(self, position: int) -> list[tuple[int, bytes]]:
        """To every item partition: everything up to `position` was said. Shows where the end of it is lost."""
        found = []
        for p in range(self._partitions):
            header = self._header(Kind.MARK, p, NO_CLAIM, position, position, 0, last=True)
            found += [(p, message) for message in self._encode(header, None)]
        return found

    def fill(self, partition: int, claim: int, position: int, part: int, edits: Edits | None) -> list[bytes]:
        """Part number `part` (and on) of the answer to a claim, as of `position`; None ends it."""
        return self._encode(
            self._header(Kind.FILL, partition, claim, position, position, part, last=edits is None), edits
        )


def claim_message(epoch: str, sources: int, partition: int, partitions: int, session: int) -> bytes:
    """The message by which a new owner of an item partition begins."""
    header = Header(
        kind=Kind.CLAIM, source=0, sources=sources, partition=partition, partitions=partitions, epoch=epoch,
        session=session, claim=NO_CLAIM, start=0, end=0, part=0, last=True,
    )  # fmt: skip
    return encode(header, None, Vocabulary(), Vocabulary())[0]


class Verdict(Enum):
    """What to do with a message."""

    APPLY = auto()
    DROP = auto()
    BEGIN_ANEW = auto()  # something was lost: claim again, with an empty item stage
    FENCED = auto()  # another owner has claimed the partition since
    FOREIGN = auto()  # of another configuration, or of another number of partitions


@dataclass(slots=True)
class _Source:
    """What is known of one source."""

    filling: tuple[int, int] | None = None  # session and next part of the fill
    ready: bool = False
    applied: int = -1
    ahead: int = -1  # some keys may be as of this position
    open_range: tuple[int, int, int, int] | None = None  # session, start, end, next part

    @property
    def waiting(self) -> bool:
        return not self.ready and self.filling is None


class Inbox:
    """One life of an item partition: what is applied of each source, and the verdict on each message."""

    def __init__(self, epoch: str, sources: int, partition: int, partitions: int, claim: int) -> None:
        self._expected = (epoch, sources, partition, partitions)
        self._claim = claim
        self._sources = [_Source() for _ in range(sources)]

    @property
    def claim(self) -> int:
        """The offset of the claim that this life began with."""
        return self._claim

    @property
    def waiting(self) -> list[int]:
        """Sources that have not begun to answer the claim."""
        return [s for s, source in enumerate(self._sources) if source.waiting]

    @property
    def filled(self) -> bool:
        """Whether every source has told everything."""
        return all(source.ready for source in self._sources)

    @property
    def countable(self) -> bool:
        """Whether the item stage is the model at `position`: rows may be counted."""
        return all(source.ready and source.ahead <= source.applied for source in self._sources)

    @property
    def position(self) -> tuple[int, ...]:
        """Per source, the position that is applied; -1 where nothing is."""
        return tuple(source.applied for source in self._sources)

    def take(self, header: Header, offset: int) -> Verdict:
        """The verdict on the message at `offset` of the log of edits. On APPLY the caller applies its edits."""
        if (header.epoch, header.sources, header.partition, header.partitions) != self._expected:
            return Verdict.FOREIGN
        if header.kind == Kind.CLAIM:
            return Verdict.FENCED if offset > self._claim else Verdict.DROP
        source = self._sources[header.source]
        if header.kind == Kind.FILL:
            return self._take_fill(source, header)
        if source.waiting or header.end <= source.applied:
            return Verdict.DROP
        if header.start > source.applied:
            return Verdict.BEGIN_ANEW
        return self._take_range(source, header)

    def _take_range(self, source: _Source, header: Header) -> Verdict:
        whole = (header.session, header.start, header.end)
        if header.part and source.open_range != (*whole, header.part):
            return Verdict.DROP  # a part of it is missing; if no other message covers it, that will show as a gap
        source.open_range = (*whole, header.part + 1)
        if not header.part:  # a range that is said again tells its keys as they were on the way, too
            source.ahead = max(source.ahead, source.applied, header.end)
            source.applied = header.start
        if header.last:
            source.open_range, source.applied = None, header.end
        return Verdict.APPLY

    def _take_fill(self, source: _Source, header: Header) -> Verdict:
        if header.claim > self._claim:  # a claim that the log has lost, but not before it was answered
            return Verdict.FENCED
        if header.claim != self._claim or source.ready:
            return Verdict.DROP
        if source.filling is None:
            if header.part:
                return Verdict.DROP
            source.applied = source.ahead = header.end
        elif source.filling[0] != header.session:
            return Verdict.DROP
        elif source.filling[1] != header.part or source.applied != header.end:
            return Verdict.BEGIN_ANEW
        source.filling = (header.session, header.part + 1)
        source.open_range = None  # of another life: what it has told is older again, so its last part may not count
        if header.last:
            source.filling, source.ready = None, True
        return Verdict.APPLY
