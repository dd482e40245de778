"""Checkpoints of a running pipeline: opened between micro-batches, packed a little at a time, written by a thread.

A cut fixes the state and the input position at one moment; packing what it owes goes on over the next
micro-batches, a few milliseconds after each, and users who are about to change are packed as they were.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from agents.state_errors import StateError, damaged
from agents.state_store import ITEMS, USERS, NamesPart, StateStore, Words
from cco.user_stage import DamagedStateError
from cco.vocabulary import Vocabulary, VocabularyError
from model_sync.metadata import MAX_PROPERTIES

if TYPE_CHECKING:
    from agents.engine import Engine

Position = dict[str, Any] | None
INTERVAL = 1.0  # seconds between the beginnings of two cuts
BUDGET = 0.005  # seconds of packing in one step
QUEUED = 16  # pieces that the writer may have before it; while they are that many, little is packed
ITEMS_AT_ONCE = 1000  # restored
FULL_BYTES, FULL_FACTOR, FULL_GENERATIONS = 64 << 20, 2, 1000  # when the next cut is a full one


@dataclass(slots=True)
class CheckpointReport:
    """What the checkpoints of this process were."""

    commits: int = 0
    full_cuts: int = 0
    bytes_written: int = 0
    longest_pause: float = 0.0  # seconds that one step kept the stream waiting


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a commit says, fixed when the cut was opened."""

    full: bool
    sources: list[tuple[int, int]]
    users: int
    items: int
    input: Position


class Checkpointer:
    """Keeps the state of an engine durable in a store, which it closes at the end.

    Between two micro-batches call `step`; at the end `finish`, or leave the `with` block, which abandons
    what is not committed. The engine must be what the store's state was restored into, unchanged since;
    with a new store any will do, for the first cut is a full one. Every method raises StateError when writing
    has failed, from the next step on.
    """

    def __init__(
        self,
        store: StateStore,
        engine: Engine,
        interval: float = INTERVAL,
        *,
        budget: float = BUDGET,
        full_bytes: int = FULL_BYTES,
        full_generations: int = FULL_GENERATIONS,
    ) -> None:
        self.report = CheckpointReport()
        self._store, self._engine, self._pipeline = store, engine, engine.pipeline
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
        self._abandoned = self._closed = False
        for (
            stage
        ) in self._pipeline.user_stages:  # a cut of nothing compiles, or loads, the kernels: not a pause later on
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
        self._close(abandon=True)

    # -- the stream's side --------------------------------------------------------------------------

    def step(self, position: Callable[[], Position], now: float) -> None:
        """Open a cut if one is due, and pack some of the open one.

        `position` answers where the input is to be read on after what the pipeline has applied by now;
        `now` is a clock in seconds.
        """
        began = time.perf_counter()
        self._raise_failure()
        if self._cut is None and now - self._begun >= self._interval and self._committed.is_set():
            self._begun = now
            self._open(position())
        self._pack(began + self._budget, wait=False)
        self.report.longest_pause = max(self.report.longest_pause, time.perf_counter() - began)

    def finish(self, position: Callable[[], Position], everything: bool = False) -> None:
        """Commit the state as it is now, wait for it, and close the store. `everything` asks for a full cut."""
        try:
            self.complete()
            self._open(position(), everything)
            self.complete()
        finally:
            self._close(abandon=True)
        self._raise_failure()

    def complete(self) -> None:
        """Pack the rest of the open cut, if there is one, and wait until it is committed."""
        while self._cut is not None or self._waiting:
            self._pack(float("inf"), wait=True)
        self._committed.wait()
        self._raise_failure()

    def _open(self, position: Position, everything: bool = False) -> None:
        """Begin a cut, unless all of it is committed already."""
        users, items, stages = self._pipeline.users, self._pipeline.items, self._pipeline.user_stages
        commit = self._store.commit
        applied = [stage.applied for stage in stages]
        anew = everything or not commit.generations
        items_changed = self._engine.take_changed_items(anew)
        as_before = position == self._input and applied == [source[0] for source in commit.sources]
        if as_before and not everything and not items_changed:
            return
        full = everything or self._full_is_due()
        cut = _Cut(full, [stage.begin_cut(full) for stage in stages], len(users), len(items), position)
        self._committed.clear()
        self._cut, self._packing, self._input = cut, deque(range(len(stages))), position
        for kind, names, known in ((USERS, users, commit.users), (ITEMS, items, commit.items)):
            self._waiting.append(self._names_writer(kind, names, 0 if full else known))
        if items_changed or anew:
            self._waiting.append(self._items_writer(items_changed, anew))

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
        items, index = self._engine.items, self._engine.index
        return lambda: self._store.write_items(
            ((name, index.properties(name)) for name in map(items.name, positions)), anew
        )

    def _pack(self, deadline: float, wait: bool) -> None:
        """Pack users until the deadline, or until the writer has enough to do; then the commit.

        Some are packed even while the writer is busy: those that had to be packed before they changed wait
        in the stages, and taking them late, all at once, would be a long pause.
        """
        self._hand_over(wait)
        packed = False
        while self._cut is not None and time.perf_counter() < deadline and not (packed and self._waiting):
            if self._packing:
                source = self._packing.popleft()
                words = self._pipeline.user_stages[source].pack_some()
                if words is not None:
                    self._packing.append(source)
                    if words.size:
                        self._waiting.append(self._users_writer(source, words))
            else:
                self._waiting.append(self._commit_writer(self._cut))
                self._cut = None
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
            self._committed.set()

        return write

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _close(self, abandon: bool) -> None:
        if not self._closed:
            self._closed, self._abandoned = True, abandon
            if self._cut is not None:  # leave no cut open in the pipeline: the next one could not begin
                for source in self._packing:
                    while self._pipeline.user_stages[source].pack_some() is not None:
                        pass
            self._queue.put(None)
            self._writer.join()
            self._store.close()

    # -- the writer's side --------------------------------------------------------------------------

    def _write(self) -> None:
        """Write what is queued; after a failure take it and drop it, so that nobody waits for ever."""
        while (write := self._queue.get()) is not None:
            if self._failure is not None or self._abandoned:
                continue
            try:
                write()
            except StateError as error:
                self._failure = error
            except Exception as error:  # a defect: it must surface in the stream's thread, not vanish in this one
                self._failure = StateError(f"{self._store.path}: writing the state failed: {error!r}")
            if self._failure is not None:
                self._committed.set()


def restore(store: StateStore, engine: Engine) -> None:
    """Load a store's state into a new engine: vocabularies, user stages, the item stages from them, metadata.

    Raises StateError if the state is damaged.
    """
    pipeline, commit = engine.pipeline, store.commit
    vocabularies = {USERS: engine.users, ITEMS: engine.items}
    try:
        for part in store.parts():
            if isinstance(part, NamesPart):
                names = vocabularies[part.kind]
                if part.start != len(names):
                    raise DamagedStateError(f"names from {part.start} on follow {len(names)} names")
                names.extend(part.data, part.offsets)
            else:
                pipeline.user_stages[part.source].restore(part.words)
        if (len(engine.users), len(engine.items)) != (commit.users, commit.items):
            raise DamagedStateError("the number of names is not the one of the commit record")
        for stage, (applied, watermark) in zip(pipeline.user_stages, commit.sources, strict=True):
            stage.restored(applied, watermark)
        _restore_items(engine, store.items())
    except (DamagedStateError, VocabularyError, LookupError, ValueError) as error:
        raise damaged(store.path, str(error)) from error
    engine.take_changed_items()  # these are in the store
    engine.resync()


def _restore_items(engine: Engine, found: Iterator[tuple[str, dict[str, Any] | None]]) -> None:
    while part := list(islice(found, ITEMS_AT_ONCE)):
        engine.delete_items(item for item, properties in part if properties is None)
        rest = {item: list(properties.items()) for item, properties in part if properties is not None}
        at = 0
        while rest:  # an item may have become more, one by one, than an index takes at once
            engine.index.update_items({item: dict(listed[at : at + MAX_PROPERTIES]) for item, listed in rest.items()})
            at += MAX_PROPERTIES
            rest = {item: listed for item, listed in rest.items() if len(listed) > at}


def load(engine: Engine, path: Path) -> None:
    """Load the state in a directory into a new engine. Raises StateError."""
    with StateStore.open(path, engine.config, read_only=True) as store:
        restore(store, engine)


def save(engine: Engine, path: Path) -> None:
    """Write an engine's whole state into a directory, in place of the state that is there. Raises StateError.

    Such a state has no input position: it can be loaded, but `cco replay` cannot go on from it.
    """
    Checkpointer(StateStore.open(path, engine.config), engine).finish(lambda: None, everything=True)
