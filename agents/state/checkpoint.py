"""Checkpoints of a running pipeline: opened between micro-batches, packed a little at a time, written by a thread.

A cut fixes the state and the input position at one moment; packing what it owes goes on over the next
micro-batches, a few milliseconds after each, and users who are about to change are packed as they were.
What was packed is committed when the caller allows it: where the edits of the stages go to a log, that is
when the log has them all.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from agents.state.errors import StateError, damaged
from agents.state.shared_copy import SharedCopy, ShareReport, Sharing
from agents.state.store import ITEMS, USERS, NamesPart, StateStore, Words
from cco.user_stage import DamagedStateError, UserStage
from cco.vocabulary import Vocabulary, VocabularyError

Position = dict[str, Any] | None
INTERVAL = 1.0  # seconds between the beginnings of two cuts
BUDGET = 0.005  # seconds of packing in one step
QUEUED = 16  # pieces that the writer may have before it; while they are that many, little is packed
IDLE = 1.0  # seconds without writing, after which the writer looks whether a shared copy is due
SHARE_EVERY = 60.0  # seconds between the beginnings of two shared copies
FULL_BYTES, FULL_FACTOR, FULL_GENERATIONS = 64 << 20, 2, 1000  # when the next cut is a full one


class Checkpointed(Protocol):
    """What has a durable state: the user stages over two vocabularies, and perhaps metadata of items."""

    @property
    def users(self) -> Vocabulary:
        """Of all the stages."""

    @property
    def items(self) -> Vocabulary:
        """Of all the stages."""

    @property
    def user_stages(self) -> Sequence[UserStage]:
        """One per source of the state."""

    def take_changed_items(self, everything: bool = False) -> Collection[int]:
        """Positions of items whose metadata changed since the last call, or of all that have some or are deleted."""

    def properties(self, item: str) -> Mapping[str, object] | None:
        """The properties of one of these items; None if it is deleted."""


@dataclass(slots=True)
class CheckpointReport:
    """What the checkpoints of this process were."""

    commits: int = 0
    full_cuts: int = 0
    bytes_written: int = 0
    longest_pause: float = 0.0  # seconds that one step kept the stream waiting
    committed_at: float = field(default_factory=time.monotonic)  # of the last commit; at first, of the beginning
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=1000))  # from each cut to its commit


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a commit says, fixed when the cut was opened."""

    full: bool
    sources: list[tuple[int, int]]
    users: int
    items: int
    input: Position
    opened: float  # clock time


class Checkpointer:
    """Keeps the state of `target` durable in a store, which it closes at the end.

    Between two micro-batches call `step`; at the end `finish`, or leave the `with` block, which abandons
    what is not committed. The target must be what the store's state was restored into, unchanged since;
    with a new store any will do, for the first cut is a full one. Every method raises StateError when writing
    has failed, from the next step on.

    `may_commit(position)`, asked by `step`, says whether the state as of this position may become durable by
    now; while it may not, the cut waits, and the stream does not. With `share` a copy of the state goes there
    every `share_every` seconds, if it has changed; `shared` tells what became of them.
    """

    def __init__(
        self,
        store: StateStore,
        target: Checkpointed,
        interval: float = INTERVAL,
        *,
        may_commit: Callable[[Position], bool] = lambda position: True,
        share: SharedCopy | None = None,
        share_every: float = SHARE_EVERY,
        budget: float = BUDGET,
        full_bytes: int = FULL_BYTES,
        full_generations: int = FULL_GENERATIONS,
    ) -> None:
        self.report = CheckpointReport()
        self._store, self._target, self._stages = store, target, list(target.user_stages)
        self._may_commit = may_commit
        self._sharing = None if share is None else Sharing(share, share_every)
        self._interval, self._budget = interval, budget
        self._full_bytes, self._full_generations = full_bytes, full_generations
        self._cut: _Cut | None = None
        self._packing: deque[int] = deque()  # sources that still owe users to the cut; they take turns
        self._begun = -float("inf")
        self._input = store.commit.input
        self._waiting: deque[Callable[[], None]] = deque()  # for the queue to have room
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(QUEUED)
        self._committed = threading.Event()
        self._committed.set()
        self._failure: StateError | None = None
        self._closed = False
        for stage in self._stages:  # a cut of nothing compiles, or loads, the kernels: not a pause later on
            stage.begin_cut()
            while stage.pack_some() is not None:
                pass
        self._writer = threading.Thread(target=self._write, name="checkpoint writer", daemon=True)
        self._writer.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abandon what is not committed, and close the store."""
        if not self._closed:
            self._closed = True
            if self._cut is not None:  # leave no cut open in the stages: the next one could not begin
                for source in self._packing:
                    while self._stages[source].pack_some() is not None:
                        pass
            self._queue.put(None)
            self._writer.join()
            self._store.close()

    @property
    def committed(self) -> Position:
        """The position of the state that is durable by now."""
        return self._store.commit.input

    @property
    def shared(self) -> ShareReport:
        """What became of the shared copies."""
        return self._sharing.report if self._sharing else ShareReport()

    # -- the stream's side --------------------------------------------------------------------------

    def step(self, position: Callable[[], Position], now: float) -> bool:
        """Open a cut if one is due, and pack some of the open one; answers whether one was opened.

        `position` answers where the input is to be read on after what the stages have applied by now;
        `now` is a clock in seconds.
        """
        began, opened = time.perf_counter(), False
        self._raise_failure()
        if self._cut is None and now - self._begun >= self._interval and self._committed.is_set():
            self._begun = now
            opened = self._open(position())
        self._pack(began + self._budget, wait=False)
        self.report.longest_pause = max(self.report.longest_pause, time.perf_counter() - began)
        return opened

    def finish(self, position: Callable[[], Position], everything: bool = False) -> None:
        """Commit the state as it is now, wait for it, and close the store. `everything` asks for a full cut.

        See to it before that `may_commit` is true of the position.
        """
        try:
            self.complete()
            self._open(position(), everything)
            self.complete()
        finally:
            self.close()
        self._raise_failure()

    def complete(self) -> None:
        """Pack the rest of the open cut, if there is one, and wait until it is committed.

        See to it before that `may_commit` is true of its position; StateError is raised if it is not.
        """
        while self._cut is not None or self._waiting:
            self._pack(float("inf"), wait=True)
        self._committed.wait()
        self._raise_failure()

    def _open(self, position: Position, everything: bool = False) -> bool:
        """Begin a cut, unless all of it is committed already; answers whether it did."""
        users, items, stages = self._target.users, self._target.items, self._stages
        commit = self._store.commit
        applied = [stage.applied for stage in stages]
        anew = everything or not commit.generations
        items_changed = self._target.take_changed_items(anew)
        as_before = position == self._input and applied == [source[0] for source in commit.sources]
        if as_before and not everything and not items_changed:
            return False
        full = everything or self._full_is_due()
        began = time.monotonic()
        cut = _Cut(full, [stage.begin_cut(full) for stage in stages], len(users), len(items), position, began)
        self._committed.clear()
        self._cut, self._packing, self._input = cut, deque(range(len(stages))), position
        for kind, names, known in ((USERS, users, commit.users), (ITEMS, items, commit.items)):
            self._waiting.append(self._names_writer(kind, names, 0 if full else known))
        if items_changed or anew:
            self._waiting.append(self._items_writer(items_changed, anew))
        return True

    def _full_is_due(self) -> bool:
        generations = self._store.commit.generations
        since = sum(generation.bytes for generation in generations[1:])
        most = max(self._full_bytes, FULL_FACTOR * generations[0].bytes) if generations else 0
        return not generations or since > most or len(generations) > self._full_generations

    def _names_writer(self, kind: int, names: Vocabulary, start: int) -> Callable[[], None]:
        data, offsets = names.bytes_, names.offsets  # views that stay as they are when more ids come
        return lambda: self._store.write_names(kind, start, data, offsets)

    def _items_writer(self, positions: Collection[int], anew: bool) -> Callable[[], None]:
        """Takes the metadata as it is when it is written, which may be later than the cut: see the store for why."""
        name, properties = self._target.items.name, self._target.properties
        return lambda: self._store.write_items(((item, properties(item)) for item in map(name, positions)), anew)

    def _pack(self, deadline: float, wait: bool) -> None:
        """Pack users until the deadline, or until the writer has enough to do; then the commit, if it may be.

        Some are packed even while the writer is busy: those that had to be packed before they changed wait
        in the stages, and taking them late, all at once, would be a long pause.
        """
        self._hand_over(wait)
        packed = False
        while self._cut is not None and time.perf_counter() < deadline and not (packed and self._waiting):
            if self._packing:
                source = self._packing.popleft()
                words = self._stages[source].pack_some()
                if words is not None:
                    self._packing.append(source)
                    if words.size:
                        self._waiting.append(self._users_writer(source, words))
            elif self._may_commit(self._cut.input):
                self._waiting.append(self._commit_writer(self._cut))
                self._cut = None
            elif wait:
                raise StateError(
                    f"{self._store.path}: the state at {self._cut.input} may not be committed yet: messages before"
                    " it are not acknowledged; the state stays at its last commit"
                )
            else:
                return
            packed = True
            self._hand_over(wait)

    def _hand_over(self, wait: bool) -> None:
        """Give the writer what waits for it, as much as it takes now, or all of it."""
        self._raise_failure()
        while self._waiting and (wait or not self._queue.full()):
            self._queue.put(self._waiting.popleft())

    def _users_writer(self, source: int, words: Words) -> Callable[[], None]:
        return lambda: self._store.write_users(source, words)

    def _commit_writer(self, cut: _Cut) -> Callable[[], None]:
        def write() -> None:
            self._store.write_commit(cut.full, cut.sources, cut.users, cut.items, cut.input)
            self.report.commits += 1
            self.report.full_cuts += cut.full
            self.report.bytes_written += self._store.commit.generations[-1].bytes
            self.report.committed_at = time.monotonic()
            self.report.seconds.append(self.report.committed_at - cut.opened)
            self._committed.set()
            self._offer()

        return write

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    # -- the writer's side --------------------------------------------------------------------------

    def _write(self) -> None:
        """Write what is queued; after a failure take it and drop it, so that nobody waits for ever."""
        while True:
            try:
                write = self._queue.get(timeout=IDLE if self._sharing else None)
            except queue.Empty:
                write = self._offer
            if write is None:
                return
            if self._failure is not None or self._closed:
                continue
            try:
                write()
            except StateError as error:
                self._failure = error
            except Exception as error:  # a defect: it must surface in the stream's thread, not vanish in this one
                self._failure = StateError(f"{self._store.path}: writing the state failed: {error!r}")
            if self._failure is not None:
                self._committed.set()

    def _offer(self) -> None:
        """A copy is due, perhaps; also while there is nothing to write."""
        if self._sharing is not None:
            self._sharing.share(self._store)


def restore_stages(store: StateStore, target: Checkpointed) -> None:
    """Load a store's state into a new target: its vocabularies and its user stages.

    Raises StateDamaged if the state is damaged.
    """
    commit, vocabularies = store.commit, {USERS: target.users, ITEMS: target.items}
    with trusting(store):
        for part in store.parts():
            if isinstance(part, NamesPart):
                names = vocabularies[part.kind]
                if part.start != len(names):
                    raise DamagedStateError(f"names from {part.start} on follow {len(names)} names")
                names.extend(part.data, part.offsets)
            else:
                target.user_stages[part.source].restore(part.words)
        if (len(target.users), len(target.items)) != (commit.users, commit.items):
            raise DamagedStateError("the number of names is not the one of the commit record")
        for stage, (applied, watermark) in zip(target.user_stages, commit.sources, strict=True):
            stage.restored(applied, watermark)


@contextmanager
def trusting(store: StateStore) -> Iterator[None]:
    """For loading what has good checksums: whatever does not fit together then is a damage of the state."""
    try:
        yield
    except (DamagedStateError, VocabularyError, LookupError, ValueError) as error:
        raise damaged(store.path, str(error)) from error
