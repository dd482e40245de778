"""One item partition in a worker: messages of edits in, patches out. No I/O.

Everything here runs on the worker's compute thread, one call at a time.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

import numpy as np

from agents.kafka.dead_letters import DeadLetter
from cco.config import Config
from cco.delivery import Inbox, Verdict
from cco.edits_message import Kind, MessageError, decode, decode_header
from cco.item_stage import ItemStage
from cco.row_counter import MapLike
from cco.rows import Patches
from cco.vocabulary import Vocabulary, VocabularyError

STEP_SECONDS = 0.02  # that counting and encoding rows takes at a time, while events and documents of users wait
LEAST_ITEMS, MOST_ITEMS = 16, 128  # counted in such a step
TOO_OLD = 1_024  # the same where rows are too old, at most: of a large index that is filled, all may be
HANDED_ITEMS = 100  # sent once more in one step, to an index that is not yet served
FACTS_SECONDS, FACTS_SIZED = 0.1, 5.0  # between two looks at how things are, and at how large
MAX_WAITING = 100_000  # ranges whose latency is still to be told; of more, the latest
EVENT_TIME = "event-time"  # header of an edits message: milliseconds, of the oldest record in its range

Timed = tuple[float, int]  # of a range of records: epoch seconds of the oldest, and how many they are, as offsets count


@dataclass(frozen=True, slots=True)
class Claim:
    """Of an item partition, in the log of edits: its offset, and the log's time of it in milliseconds.

    Both grow with every claim. The time does so too where the log itself begins anew; where the broker's clock has gone
    back, it is later than the log's, see `ItemAgent.claim`.
    """

    offset: int
    at: int = 0


@dataclass(slots=True)
class Pace:
    """How many items a step counts: as many as take `STEP_SECONDS`, by what earlier steps took for that many or more.

    Choosing them does not count: it takes the same time for few and for many.
    """

    items: int = MOST_ITEMS

    def took(self, items: int, seconds: float) -> None:
        """A step counted and encoded so many items in that time."""
        if items >= self.items:
            wanted = int(items * STEP_SECONDS / max(seconds, 1e-9))
            self.items = min(max(wanted, LEAST_ITEMS), MOST_ITEMS, 2 * self.items)


class Fate(Enum):
    """What becomes of the partition after some messages."""

    GOES_ON = auto()
    BEGINS_ANEW = auto()
    FENCED = auto()


@dataclass(slots=True)
class Taken:
    """What some messages did."""

    fate: Fate = Fate.GOES_ON
    edits: int = 0
    dropped: int = 0
    letters: list[DeadLetter] = field(default_factory=list)
    filled: bool = False  # every source has just told everything


@dataclass(slots=True)
class Facts:
    """What the compute thread lets others see of an item partition."""

    due: int = 0
    stale_since: float | None = None  # clock time since which the row that is longest out of date is so
    members: int = 0
    nbytes: dict[str, int] = field(default_factory=dict)  # by structure
    sized: float = -FACTS_SIZED  # clock time of `nbytes`

    def staleness(self, now: float) -> float:
        """Seconds since the row that is longest out of date was exact."""
        return 0.0 if self.stale_since is None else max(0.0, now - self.stale_since)


class ItemPartition:
    """One life of the item stage of `partition` of `partitions`: it begins with a claim, empty.

    A defect in a message is no defect of the log: a message that cannot be read is a dead letter, and the gap
    that it leaves is healed like any other.
    """

    def __init__(
        self, config: Config, partition: int, partitions: int, claim: int, topic: str, map_chunks: MapLike = map
    ) -> None:
        self.partition, self.topic = partition, topic
        self.users, self.items = Vocabulary(), Vocabulary()
        self.stage = ItemStage(config, self.users, self.items, partition, partitions, map_chunks, index_is_empty=False)
        self.inbox = Inbox(config.epoch, config.retention.source_partitions, partition, partitions, claim)
        self.position = claim + 1  # offset of the next message to apply
        self.log_time: float | None = None  # epoch seconds at which the message before `position` was logged
        self.progress = 0  # parts of fills that were taken: ranges go on also where a fill has stopped
        # ranges with rows that may not be out yet, and the clock time at which the last of each was applied
        self.waiting: deque[tuple[float, Timed]] = deque(maxlen=MAX_WAITING)
        # The index is a new one, or there is another one to which every row is handed over, by and by, while what is
        # served goes on: asked for by the event loop, done here.
        self.send_all = self.hand_over = False
        self._hands_over = False
        self._to_hand = self._handed = np.empty(0, np.int64)  # items: those still to come, and those of this step
        self.exact = False  # every row in the index is as the model at `inbox.position`
        self.facts, self.pace = Facts(), Pace()
        self.counting = 0, 0.0  # items of the latest step, and the seconds that counting them took
        self._looked = -FACTS_SECONDS
        self._config = config

    def take(self, records: Sequence[Any], end: int, now: float) -> Taken:
        """Apply messages (aiokafka's records) from `position` on; `end` is the offset after the last of them."""
        taken = Taken()
        self.exact = False
        for record in records:
            verdict = self._take_one(record, now, taken)
            if verdict is Verdict.BEGIN_ANEW:
                taken.fate = Fate.BEGINS_ANEW
                return taken
            if verdict is Verdict.FENCED:
                taken.fate = Fate.FENCED
                return taken
            taken.dropped += verdict is Verdict.DROP
        self.position = end
        if records:
            self.log_time = records[-1].timestamp / 1000
        self._look(now)
        return taken

    def _take_one(self, record: Any, now: float, taken: Taken) -> Verdict:
        try:
            header = decode_header(record.value)
            was_filled = self.inbox.filled
            verdict = self.inbox.take(header, record.offset)
            if verdict is Verdict.APPLY:
                self.progress += header.kind is Kind.FILL
                if header.kind is not Kind.FILL or not header.last:
                    edits = decode(record.value, self.users, self.items, self._config)
                    self.stage.apply(edits, now)
                    taken.edits += edits.op.size
                if self.inbox.filled:
                    if header.last:
                        self._note_time(record, header.end - header.start, now)
                    if not was_filled:
                        self.stage.make_all_due(now)
                        taken.filled = True
        except (MessageError, VocabularyError) as error:
            taken.letters.append(self._letter(record, f"this edits message cannot be read: {error}"))
            return Verdict.BEGIN_ANEW
        if verdict is Verdict.FOREIGN:
            taken.letters.append(
                self._letter(
                    record,
                    f"edits of another configuration (epoch {header.epoch}, {header.sources} source and"
                    f" {header.partitions} item partitions): do all workers have the same cco.toml?",
                )
            )
        return verdict

    def _letter(self, record: Any, reason: str) -> DeadLetter:
        return DeadLetter(
            "message", reason, self.topic, self.partition, record.offset, record.timestamp, record.key, record.value,
            tuple(record.headers),
        )  # fmt: skip

    def _note_time(self, record: Any, number: int, now: float) -> None:
        self.waiting += [(now, (int(value) / 1000, number)) for name, value in record.headers if name == EVENT_TIME]

    # -- rows ---------------------------------------------------------------------------------------

    def publish(self, now: float) -> tuple[Patches | None, list[Timed]]:
        """Count some due rows. Answers patches, and the ranges of events that by now have all rows in patches."""
        self.counting = 0, 0.0
        if not self.inbox.countable:
            return None, []
        if self.send_all:
            self.exact = self.send_all = False
            self.stage.forget_sent(now)
            self.stage.make_all_due(now)
            self._to_hand = self._to_hand[:0]
        if self.hand_over:
            self.exact, self._hands_over, self._to_hand = False, True, self.stage.known_items()
            self.hand_over = False
        if self._hands_over and not self.stage.is_due(self._handed):
            self._hand_over()
        items = self.stage.choose(now, self.pace.items, TOO_OLD)
        begin = time.perf_counter()
        patches = self.stage.count(items, now)
        self.counting = items.size, time.perf_counter() - begin
        done: list[Timed] = []
        exact = self.stage.stale_since() if self.stage.due() else math.inf  # before this, all rows are
        while self.waiting and self.waiting[0][0] < exact:
            done.append(self.waiting.popleft()[1])
        self._look(now, at_once=not self.stage.due())
        return patches, done

    @property
    def handing_over(self) -> bool:
        """Whether rows are still to be handed over; False once the last of them have been sent."""
        return self.hand_over or self._hands_over

    def _hand_over(self) -> None:
        """The next rows; what was handed over before is counted, and has been sent."""
        self._hands_over = self._to_hand.size > 0
        self._handed, self._to_hand = self._to_hand[:HANDED_ITEMS], self._to_hand[HANDED_ITEMS:]
        self.stage.send_again(self._handed)

    def refresh(self, now: float) -> Patches | None:
        """For idle times: count some rows that are out of date, due or not; None when every row is exact."""
        if not self.inbox.countable:
            return None
        patches = self.stage.refresh(now, self.pace.items)
        self.exact = patches is None and not self.handing_over
        self._look(now, at_once=self.exact)
        return patches

    def _look(self, now: float, at_once: bool = False) -> None:
        if now - self._looked < FACTS_SECONDS and not at_once:
            return
        self._looked = now
        staleness = self.stage.staleness(now)
        facts = self.facts
        facts.due, facts.members = self.stage.due(), self.stage.members
        facts.stale_since = now - staleness if staleness else None
        if now - facts.sized >= FACTS_SIZED:
            ids = self.users.nbytes() + self.items.nbytes()
            facts.nbytes, facts.sized = {"item stages": self.stage.nbytes(), "ids of item stages": ids}, now
