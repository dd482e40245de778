"""One source partition in a worker: records of the log in, messages of edits and dead letters out.

No I/O but that of its state. Everything here runs on the worker's compute thread, one call at a time.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.kafka.dead_letters import DeadLetter
from agents.state.checkpoint import Checkpointer, Position, restore_stages
from agents.state.errors import StateError
from agents.state.store import StateStore
from cco.config import Config
from cco.delivery import Outbox
from cco.edits import Edits
from cco.edits_message import Header, encode
from cco.events import EventParser
from cco.user_stage import UserStage
from cco.vocabulary import Vocabulary
from model_sync.elastic_users import MOST_ITEMS, UserDocument, user_document

FILL_SECONDS = 0.02  # spent on filling item partitions between two fetches
QUIET_SECONDS = 5.0  # without records, after which a log is taken to be read to its end, for the time being
SIZED_SECONDS = 1.0  # between two looks at how much memory is in use
FILL_MESSAGES = 64  # made before they are sent
DOCUMENTS = 200  # of users, made at a time
MOST_FRESH = 65_536  # users of the latest events, whose documents come before all others


@dataclass(frozen=True, slots=True)
class SourceLog:
    """One partition of the topic of interactions: what a state must be of, to go on with it."""

    topic: str
    partition: int
    partitions: int  # of the topic
    cluster: str  # Kafka's id of it
    topic_id: str | None = None  # Kafka's; None where the broker tells none

    def at(self, offset: int) -> dict[str, Any]:
        """The input of a commit that stands for all records before `offset`."""
        return {**asdict(self), "offset": offset}


@dataclass(slots=True)
class Told:
    """What is to be sent after some records, and what to count."""

    messages: list[tuple[int, bytes]]  # (item partition, message)
    letters: list[DeadLetter] = field(default_factory=list)
    events: int = 0
    edits: int = 0
    fills_done: int = 0
    replayed: int = 0  # of the records, those that an earlier life had applied too


class UserPartition:
    """The user stage of source partition `source` of `sources`, with its ids, its state and its fills."""

    def __init__(self, config: Config, log: SourceLog, item_partitions: int) -> None:
        self.config, self.log = config, log
        self.source, self.sources = log.partition, log.partitions
        self.users, self.items = Vocabulary(), Vocabulary()
        self.stage = UserStage(config, self.users, self.items, log.partition, item_partitions)
        self.user_stages = (self.stage,)  # what a checkpoint is of
        self.position = 0  # offset of the next record to apply
        self.acknowledged = 0  # everything said up to here is in the log of edits
        self.restored_to = 0  # where this life began
        self.log_time: float | None = None  # epoch seconds at which the record before `position` was logged
        self._seen = 0  # where the life before it had come to, as far as it told
        self._seen_file: Path | None = None
        self._parser = EventParser(config, self.users, self.items)
        self._outbox = Outbox(
            self._encode, config.epoch, log.partition, log.partitions, item_partitions, secrets.randbits(64)
        )
        self._claims: dict[int, int] = {}  # by item partition: the claim to answer, the latest
        self._fill: Iterator[list[Edits]] | None = None
        self._filling = (0, 0, 0)  # item partition, claim, next part
        self._fresh: npt.NDArray[np.int64] | None = None  # users of the latest events, once documents are asked for
        self.tell_all_users = False  # the index is another one: set by the event loop, done here
        # Up to this position an earlier life may have told of users as they are later: all are told once it is reached.
        self.tell_all_at: int | None = 0
        self._told_early = False
        self._heard = time.monotonic()  # of records, the last time
        self.checkpoints: Checkpointer | None = None
        self.nbytes: dict[str, int] = {}  # by structure, as of the last look at it
        self._sized = -SIZED_SECONDS

    def _encode(self, header: Header, edits: Edits | None) -> list[bytes]:
        return encode(header, edits, self.users, self.items)

    # -- state --------------------------------------------------------------------------------------

    def open(self, store: StateStore, **options: Any) -> None:
        """Take up what the store holds, and keep it durable from now on. Raises StateError."""
        found = store.commit.input
        if found is not None:
            restore_stages(store, self)
            self.position = self.acknowledged = self.restored_to = int(found["offset"])
        self._seen_file = store.path.with_suffix(".seen")
        with suppress(OSError, ValueError):
            self._seen = int(self._seen_file.read_text())
        self.checkpoints = Checkpointer(store, self, may_commit=self._is_acknowledged, **options)

    def take_changed_items(self, everything: bool = False) -> tuple[int, ...]:
        """A source partition keeps no metadata of items."""
        return ()

    def properties(self, item: str) -> None:
        """As `take_changed_items`."""
        return

    def _is_acknowledged(self, position: Position) -> bool:
        return position is not None and self.acknowledged >= int(position["offset"])

    def marks(self) -> list[tuple[int, bytes]]:
        """To every item partition: all up to here was said."""
        return self._outbox.mark(self.position)

    def step(self) -> list[tuple[int, bytes]]:
        """A step of the checkpoint. Answers marks for all item partitions where a cut was begun. Raises StateError."""
        now = time.monotonic()
        if now - self._sized >= SIZED_SECONDS:
            ids = self.users.nbytes() + self.items.nbytes()
            self.nbytes, self._sized = {"user stages": self.stage.nbytes(), "ids of user stages": ids}, now
            self._note_seen()
        begun = self.checkpoints is not None and self.checkpoints.step(self._stored, now)
        return self.marks() if begun else []

    def _note_seen(self) -> None:
        """For whoever comes after a crash to say how much he repeats; nothing depends on it."""
        if self._seen_file is not None:
            with suppress(OSError):
                self._seen_file.write_text(str(self.position))

    def finish(self) -> None:
        """Commit the state as it is, and close it. Raises StateError, also if not all that was said is acknowledged."""
        checkpoints, self.checkpoints = self.checkpoints, None
        if checkpoints is None:
            return
        if self.acknowledged >= self.position:
            checkpoints.finish(self._stored)
            return
        checkpoints.close()
        raise StateError(
            f"{self.log.topic}-{self.source}: Kafka has not acknowledged what offsets {self.acknowledged} to"
            f" {self.position - 1} said: the state stays at its last commit, and they are read again"
        )

    def _stored(self) -> Position:
        return self.log.at(self.position)

    # -- records ------------------------------------------------------------------------------------

    def apply(self, records: Sequence[Any], end: int) -> Told:
        """Apply records (aiokafka's) from `position` on; `end` is the offset after the last of them."""
        self._heard = time.monotonic()
        parsed = self._parser.messages(
            [record.value for record in records],
            [record.key for record in records],
            np.fromiter([record.timestamp for record in records], np.int64, len(records)) // 1000,
            self.source,
            self.sources,
        )
        told = list(self.stage.ingest(parsed.batch))
        if self._fresh is not None:
            self._fresh = np.concatenate((np.unique(parsed.batch.users).astype(np.int64), self._fresh))[:MOST_FRESH]
        letters = []
        for rejection in parsed.rejections:
            record = records[rejection.line - 1]
            letters.append(
                DeadLetter(
                    rejection.code, rejection.reason, self.log.topic, self.source, record.offset, record.timestamp,
                    record.key, record.value, tuple(record.headers),
                )
            )  # fmt: skip
        messages = self._outbox.range(self.position, end, told)
        edits = sum(part.op.size for parts in told for part in parts)
        replayed = sum(record.offset < self._seen for record in records) if self._seen > self.position else 0
        self.position = end
        if records:
            self.log_time = records[-1].timestamp / 1000
        return Told(messages, letters, len(parsed.batch), edits, replayed=replayed)

    # -- documents of users -------------------------------------------------------------------------

    def user_documents(self) -> list[UserDocument]:
        """Documents of some users who have changed, or whom the index is not known to have; none when all are told."""
        if self._all_are_to_be_told():
            self.stage.tell_all()
        first = np.empty(0, np.int64) if self._fresh is None else self._fresh
        users, self._fresh = self.stage.untold(DOCUMENTS, first), first[:0]
        return [self._document(user) for user in users.tolist()]

    def _all_are_to_be_told(self) -> bool:
        wanted, self.tell_all_users = self.tell_all_users, False
        if self.tell_all_at is not None and self.position >= self.tell_all_at:
            wanted, self.tell_all_at = True, None
        elif self.tell_all_at is not None and time.monotonic() - self._heard > QUIET_SECONDS:
            wanted, self._told_early = wanted or not self._told_early, True  # the log may end with what is no record
        return wanted

    def _document(self, user: int) -> UserDocument:
        history: dict[str, tuple[list[str], int]] = {}
        last: int | None = None
        for name, (items, times) in zip(self.config.indicator_names, self.stage.history(user), strict=True):
            history[name] = self.items.names(items[:MOST_ITEMS]), items.size
            last = max([last or 0, int(times[0])]) if times.size else last
        body = user_document(history, last, self.stage.is_member(user), self.source, self.position)
        return UserDocument(self.users.name(user), self.position, body)

    # -- fills --------------------------------------------------------------------------------------

    def ask(self, partition: int, claim: int) -> None:
        """An item partition began with this claim and wants to be told everything."""
        if self._fill is not None and self._filling[:2] == (partition, claim):
            return  # asked again while it is being answered
        self._claims[partition] = max(claim, self._claims.get(partition, claim))

    @property
    def filling(self) -> bool:
        """Whether there is something left to tell."""
        return self._fill is not None or bool(self._claims)

    def fill_some(self) -> Told:
        """Some of the answers that are owed."""
        messages: list[tuple[int, bytes]] = []
        edits = done = 0
        until = time.monotonic() + FILL_SECONDS
        while self.filling and len(messages) < FILL_MESSAGES and time.monotonic() < until:
            if self._fill is None:
                partition, claim = self._claims.popitem()
                self._fill, self._filling = self.stage.resync(partition), (partition, claim, 0)
            partition, claim, part = self._filling
            told = next(self._fill, None)
            made = self._outbox.fill(partition, claim, self.position, part, told[0] if told else None)
            self._filling = (partition, claim, part + len(made))
            messages += [(partition, message) for message in made]
            if told is None:
                self._fill = None
                done += 1
            else:
                edits += told[0].op.size
        return Told(messages, edits=edits, fills_done=done)
