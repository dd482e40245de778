"""The user agent, the item agent and the reader of patches, without I/O: what the shells do around the protocol.

They live in a `Place` (the logs) and are driven from outside, a step at a time: what is sent waits in them
until `deliver` puts it into its log, and a snapshot is taken up by a later life only if it was committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
import numpy.typing as npt

from cco.config import Config
from cco.delivery import Encode, Inbox, Outbox, Verdict, claim_message
from cco.edits import Edits
from cco.edits_message import Header, Kind, decode, decode_header, encode
from cco.item_stage import ItemStage
from cco.rows import Patches
from cco.user_stage import UserStage
from cco.vocabulary import Vocabulary
from tests.cco.histories import Event, to_batch

Fields = dict[tuple[str, str], list[tuple[str, float]]]  # (item, field) -> entries, in order


@dataclass
class Place:
    """What outlives every agent. Logs have a None where a record is bad, or a message was lost."""

    config: Config
    partitions: int  # of items
    sources: list[list[Event | None]]
    edits: list[list[bytes | None]] = field(init=False)
    control: list[tuple[int, int, list[int]]] = field(default_factory=list)  # item partition, claim, sources

    def __post_init__(self) -> None:
        self.edits = [[] for _ in range(self.partitions)]


@dataclass
class Snapshot:
    """The state of a user stage at a position, with the ids that it names."""

    position: int = 0
    applied: int = 0
    watermark: int = 0
    users: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    words: list[npt.NDArray[np.uint32]] = field(default_factory=list)


def in_pieces(whole: Encode, most: int) -> Encode:
    """As `whole`, with at most `most` rows in a message, as if the limit of its size were small."""

    def split(header: Header, edits: Edits | None) -> list[bytes]:
        if edits is None:
            return whole(header, None)
        rows = edits.op.size + edits.count.size + edits.prior.size
        messages: list[bytes] = []
        for begin in range(0, max(1, rows), most):
            last = header.last and begin + most >= rows
            framed = msgspec.structs.replace(header, part=header.part + len(messages), last=last)
            messages += whole(framed, _piece(edits, begin, begin + most))
        return messages

    return split


def _piece(edits: Edits, begin: int, end: int) -> Edits:
    """Rows of edits, then of counts, then of priors."""
    changed = {}
    for names in (
        ("op", "indicator", "user", "item"),
        ("count_indicator", "count_item", "count"),
        ("prior", "prior_item", "prior_value"),
    ):
        size = getattr(edits, names[0]).size
        for name in names:
            changed[name] = getattr(edits, name)[max(0, begin) : max(0, end)]
        begin, end = begin - size, end - size
    return replace(edits, **changed)


def with_small_buffers(stage: UserStage, rows: int) -> UserStage:
    """The stage yields what it has to say after every `rows` edits or so, where it would after thousands."""
    state, rule = stage._state, stage._rule
    stage._state = state._replace(
        edits=np.empty((3, int(rule.edits_a_step) + rows), np.uint32),
        touched=np.empty((2, int(rule.touched_a_step) + rows), np.uint32),
    )
    return stage


@dataclass(frozen=True)
class Habits:
    """How a life of a user agent goes about its work."""

    buffer_rows: int  # edits after which the stage yields what it has to say
    message_rows: int  # at most in a message
    stride: int  # records at a time, when it does not look at one only
    swiftness: float  # probability that messages leave for an item partition in one move
    fills_in_turns: bool


@dataclass
class _Fill:
    """An answer to a claim, as far as it is."""

    partition: int
    claim: int
    slices: Iterator[list[Edits]]
    part: int = 0


class UserAgent:
    """One life of the owner of source partition `source`; it begins with a snapshot."""

    def __init__(self, place: Place, source: int, snapshot: Snapshot, session: int, habits: Habits) -> None:
        config = place.config
        self.place, self.source, self.habits = place, source, habits
        self.users, self.items = Vocabulary(), Vocabulary()
        self.users.intern(snapshot.users)
        self.items.intern(snapshot.items)
        self.stage = with_small_buffers(
            UserStage(config, self.users, self.items, source, place.partitions), habits.buffer_rows
        )
        for words in snapshot.words:
            self.stage.restore(words)
        self.stage.restored(snapshot.applied, snapshot.watermark)
        self.position = self.acknowledged = snapshot.position
        self.outbox = Outbox(
            in_pieces(lambda header, edits: encode(header, edits, self.users, self.items), habits.message_rows),
            config.epoch, source, len(place.sources), place.partitions, session,
        )  # fmt: skip
        self.unsent: list[deque[bytes]] = [deque() for _ in range(place.partitions)]
        self._sent, self._arrived = [0] * place.partitions, [0] * place.partitions
        self._on_the_way: deque[tuple[int, list[int]]] = deque()  # position, and what has to arrive before it is said
        self._heard = len(place.control)
        self._claims: dict[int, int] = {}
        self._fills: deque[_Fill] = deque()
        self._committed = snapshot
        self._cut: Snapshot | None = None
        self._packed = False
        self._send(self.outbox.mark(self.position))

    # -- sending ------------------------------------------------------------------------------------

    def _send(self, messages: list[tuple[int, bytes]]) -> None:
        for partition, message in messages:
            self.unsent[partition].append(message)
            self._sent[partition] += 1
        self._on_the_way.append((self.position, self._sent.copy()))

    def deliver(self, partition: int, most: int) -> None:
        """Messages reach the log of an item partition, in their order."""
        for _ in range(min(most, len(self.unsent[partition]))):
            self.place.edits[partition].append(self.unsent[partition].popleft())
            self._arrived[partition] += 1
        while self._on_the_way and all(a >= s for a, s in zip(self._arrived, self._on_the_way[0][1], strict=True)):
            self.acknowledged = max(self.acknowledged, self._on_the_way.popleft()[0])

    # -- events -------------------------------------------------------------------------------------

    @property
    def behind(self) -> int:
        """Records of the log that are not applied."""
        return len(self.place.sources[self.source]) - self.position

    def process(self, most: int) -> None:
        """Apply the next records of the log and say so."""
        records = self.place.sources[self.source][self.position : self.position + most]
        events = [record for record in records if record is not None]
        told = list(self.stage.ingest(to_batch(self.place.config, events, self.users, self.items)))
        end = self.position + len(records)
        messages = self.outbox.range(self.position, end, told)
        self.position = end
        self._send(messages)

    # -- snapshots ----------------------------------------------------------------------------------

    @property
    def cutting(self) -> bool:
        """Whether a snapshot is being taken."""
        return self._cut is not None

    def step_snapshot(self, everything: bool) -> Snapshot | None:
        """Begin to take a snapshot, or go on; answers it when it is complete and everything up to it is in the log."""
        cut = self._cut
        if cut is None:
            applied, watermark = self.stage.begin_cut(everything)
            self._packed = False
            self._cut = Snapshot(
                self.position, applied, watermark, self.users.names(range(len(self.users))),
                self.items.names(range(len(self.items))), [] if everything else self._committed.words.copy(),
            )  # fmt: skip
            self._send(self.outbox.mark(self.position))
        elif not self._packed:
            words = self.stage.pack_some()
            self._packed = words is None
            if words is not None:
                cut.words.append(words)
        elif self.acknowledged >= cut.position:
            self._committed, self._cut = cut, None
            return cut
        return None

    # -- fills --------------------------------------------------------------------------------------

    def hear(self) -> None:
        """What was asked for over `control` since the last time."""
        for partition, claim, sources in self.place.control[self._heard :]:
            if self.source in sources:
                self._ask(partition, claim)
        self._heard = len(self.place.control)

    def deaf(self) -> None:
        """What was asked for since the last time is lost."""
        self._heard = len(self.place.control)

    def _ask(self, partition: int, claim: int) -> None:
        if all((fill.partition, fill.claim) != (partition, claim) for fill in self._fills):
            self._claims[partition] = max(claim, self._claims.get(partition, claim))

    @property
    def filling(self) -> bool:
        """Whether an answer is owed."""
        return bool(self._fills or self._claims)

    def fill_some(self) -> None:
        """A slice of the answers that are owed, one after the other or in turns."""
        if self._claims and (self.habits.fills_in_turns or not self._fills):
            partition, claim = self._claims.popitem()
            self._fills.append(_Fill(partition, claim, self.stage.resync(partition)))
        if not self._fills:
            return
        fill = self._fills[0]
        told = next(fill.slices, None)
        messages = self.outbox.fill(fill.partition, fill.claim, self.position, fill.part, told[0] if told else None)
        fill.part += len(messages)
        if told is None:
            self._fills.popleft()
        elif self.habits.fills_in_turns:
            self._fills.rotate(-1)
        self._send([(fill.partition, message) for message in messages])


@dataclass(frozen=True)
class Published:
    """A patch on its way: who sent it, and what it says of some fields (an empty one is emptied)."""

    partition: int
    generation: int
    position: tuple[int, ...]
    fields: Fields


class ItemAgent:
    """One worker that serves item partition `partition`; each of its lives begins with a claim."""

    def __init__(self, place: Place, partition: int, session: int) -> None:
        self.place, self.partition, self._session = place, partition, session
        self.claiming: bytes | None = None  # on its way to the log
        self.fenced = False
        self.gaps = 0
        self.patches: deque[Published] = deque()  # on their way to the index
        self.inbox: Inbox | None = None
        self.position = len(place.edits[partition])
        self.claim()

    def claim(self) -> None:
        """Begin, or begin anew; goes on when the claim is in the log."""
        config, sources = self.place.config, len(self.place.sources)
        self.claiming = claim_message(config.epoch, sources, self.partition, self.place.partitions, self._session)

    def claimed(self) -> None:
        """The claim reaches the log: an empty stage, which asks all sources."""
        place, log = self.place, self.place.edits[self.partition]
        offset = len(log)
        log.append(self.claiming)
        self.claiming, self.fenced = None, False
        self.users, self.items = Vocabulary(), Vocabulary()
        self.stage = ItemStage(
            place.config, self.users, self.items, self.partition, place.partitions, index_is_empty=False
        )
        self.inbox = Inbox(place.config.epoch, len(place.sources), self.partition, place.partitions, offset)
        self.position, self.progress, self._seen = offset + 1, 0, -1
        self.ask()

    def ask(self) -> None:
        """Ask the sources that have not begun to answer; begin anew where an answer has stopped since the last time."""
        if self.inbox is None or self.inbox.filled or self.claiming is not None:
            return
        if self.inbox.waiting:
            self.place.control.append((self.partition, self.inbox.claim, self.inbox.waiting))
        elif self.progress == self._seen:
            self.claim()
        self._seen = self.progress

    @property
    def behind(self) -> int:
        """Messages of the log that are not applied."""
        return len(self.place.edits[self.partition]) - self.position

    def take(self, most: int, now: float) -> None:
        """Apply the next messages of the log."""
        log = self.place.edits[self.partition]
        while most > 0 and self.position < len(log) and self.claiming is None and not self.fenced:
            message, most = log[self.position], most - 1
            if message is not None:
                self._take(message, now)
            self.position += 1

    def _take(self, message: bytes, now: float) -> None:
        assert self.inbox is not None
        header, was_filled = decode_header(message), self.inbox.filled
        verdict = self.inbox.take(header, self.position)
        if verdict is Verdict.APPLY:
            self.progress += header.kind is Kind.FILL
            if header.kind is not Kind.FILL or not header.last:
                self.stage.apply(decode(message, self.users, self.items, self.place.config), now)
            if self.inbox.filled and not was_filled:
                self.stage.make_all_due(now)
        elif verdict is Verdict.BEGIN_ANEW:
            self.gaps += 1
            self.claim()
        elif verdict is Verdict.FENCED:
            self.fenced = True

    @property
    def countable(self) -> bool:
        """Whether rows may be counted."""
        return self.inbox is not None and self.inbox.countable and not self.fenced

    def publish(self, count: Callable[[ItemStage], Patches | None], read: Callable[[Patches], Fields]) -> bool:
        """Patches of the rows that `count` counts are on their way; answers whether there was anything to count."""
        patches = count(self.stage) if self.countable else None
        if patches is None:
            return False
        assert self.inbox is not None
        assert patches.position == self.inbox.position
        self.patches.append(Published(self.partition, self.inbox.claim, patches.position, read(patches)))
        return True


class PublishedIndex:
    """What the patches made of an index."""

    def __init__(self, partitions: int) -> None:
        self.fields: Fields = {}
        self._generations = [-1] * partitions

    def take(self, patch: Published) -> None:
        """Apply a patch, unless another owner has followed the one who sent it."""
        if patch.generation < self._generations[patch.partition]:
            return
        self._generations[patch.partition] = patch.generation
        for key, entries in patch.fields.items():
            self.fields.pop(key, None)
            if entries:
                self.fields[key] = entries
