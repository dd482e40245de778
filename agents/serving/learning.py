"""An engine behind the query service: one thread learns, any number of questions are asked meanwhile.

Records are acknowledged once they are parsed, written to the journal and synced (where there is a state
directory), and applied: the very next question of that user counts them. Rows follow as fast as they are counted,
and none is older than `max_staleness`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.engine import Engine
from agents.engine_state import restore
from agents.state.checkpoint import INTERVAL, Checkpointer
from agents.state.errors import StateError
from agents.state.journal import Journal
from agents.state.owner import is_served
from agents.state.store import StateStore
from model_sync.contract import Hit, Query
from model_sync.metadata import Properties
from model_sync.service.store import StoreProblem

JOURNAL = "journal"  # the folder in the state directory
GROUP_RECORDS = 4_096  # applied together
MOST_WAITING = 50_000  # records; more are refused for now
SLICE = 0.03  # seconds spent on rows before newly come records are looked at
BUSY_TICK, IDLE_TICK = 0.01, 0.1  # seconds between two looks at rows: while some are due, and else

_log = logging.getLogger("cco.serve")


class Durable:
    """A state directory behind an engine: checkpoints, and the journal of what came after them.

    Taking it up restores the engine (which must be new), applies the journal again and publishes every row. A state
    that `cco replay` or `Engine.save` made is taken up too; from then on it is the service's, and only its journal
    goes on. Raises StateError.
    """

    def __init__(self, engine: Engine, path: Path, every: float = INTERVAL) -> None:
        self._engine = engine
        store = StateStore.open(path, engine.config)
        try:
            found = store.commit.input
            start = int(found["journal"]) if is_served(found) else 0
            self.journal = Journal(path / JOURNAL, start)
            if store.commit.generation:
                restore(store, engine)
        except BaseException:
            store.close()
            raise
        self._checkpoints = Checkpointer(store, engine, every)
        try:
            self.replayed = self._replay()
        except BaseException:
            self._checkpoints.close()
            raise
        engine.drain()

    def _replay(self) -> int:
        """Apply what the journal has after the state; answers how many records that were."""
        count = refused = 0
        for entries in self.journal.read():
            at = np.array([entry.at for entry in entries], np.int64)
            parsed = self._engine.parser.records([entry.record for entry in entries], 1, at)
            self._engine.apply_parsed(parsed)
            count += len(entries)
            refused += len(parsed.rejections)
            self.step()
        if refused:
            _log.warning("%d records of the journal are not possible any more: the configuration has changed", refused)
        return count

    def step(self) -> None:
        """Checkpoint if that is due."""
        self._checkpoints.step(self._position, time.monotonic())
        self.journal.committed(self._committed())

    def finish(self) -> None:
        """Commit everything and close."""
        self._checkpoints.finish(self._position)
        self.journal.close(self.journal.position)

    def abandon(self) -> None:
        """Close as it is; the journal has what the checkpoints lack."""
        self._checkpoints.close()
        self.journal.close(self._committed())

    def _position(self) -> dict[str, Any]:
        return {"journal": self.journal.position}

    def _committed(self) -> int:
        found = self._checkpoints.committed
        return int(found["journal"]) if is_served(found) else 0


@dataclass(slots=True)
class _Waiting:
    """What one request sent, and where its answer goes: per record None or why it was refused."""

    records: Sequence[Mapping[str, Any]]
    answer: Callable[[list[str | None] | StoreProblem], None]


class Learner:
    """The one thread that changes an engine: an `EventSink`. Without `durable` nothing outlives the process.

    `clock` gives epoch seconds: the time at which records are accepted.
    """

    def __init__(self, engine: Engine, durable: Durable | None, clock: Callable[[], float] = time.time) -> None:
        self._engine, self._durable, self._clock = engine, durable, clock
        self._changed = threading.Condition()
        self._waiting: deque[_Waiting] = deque()
        self._records = 0  # waiting
        self._stopping = False
        self._failure: str | None = None
        self._due = 0
        self._staleness = 0.0
        self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="learner")

    def start(self) -> None:
        """Begin. Nobody else may change the engine from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Apply what was taken, commit the state, and end. Raises StateError if learning had failed."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()
        if self._failure is not None:
            raise StateError(self._failure)

    # -- the service's side -------------------------------------------------------------------------

    async def accept(self, records: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """See `EventSink`: returns once the accepted records are durable and applied."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[str | None]] = loop.create_future()

        def resolve(answer: list[str | None] | StoreProblem) -> None:
            if future.done():
                return
            if isinstance(answer, StoreProblem):
                future.set_exception(answer)
            else:
                future.set_result(answer)

        def answer(verdicts: list[str | None] | StoreProblem) -> None:
            with suppress(RuntimeError):  # the loop has ended, and nobody waits
                loop.call_soon_threadsafe(resolve, verdicts)

        with self._changed:
            if self._failure is not None:
                raise StoreProblem(f"learning has stopped: {self._failure}")
            if self._stopping:
                raise StoreProblem("the service is stopping; send these events again")
            if self._records + len(records) > MOST_WAITING:
                raise StoreProblem(f"{self._records} events are waiting to be applied; send these again later")
            self._waiting.append(_Waiting(records, answer))
            self._records += len(records)
            self._changed.notify()
        return await future

    def problems(self) -> list[str]:
        """What has failed and will not mend itself."""
        return [] if self._failure is None else [f"learning has stopped: {self._failure}"]

    @property
    def due(self) -> int:
        """Items with a row that is to be counted, after the last acknowledged event and what was done since."""
        return self._due

    @property
    def staleness(self) -> float:
        """Seconds since the row that is longest out of date was exact; 0 once every row is."""
        return self._staleness

    def model_age(self) -> float:
        """The same, and the time since that was seen: it grows when learning has stopped."""
        return self._staleness + time.monotonic() - self._looked

    # -- the thread's side --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (group := self._take()) is not None:
                if group:
                    try:
                        self._learn(group)
                    except BaseException as error:
                        self._answer(group, StoreProblem(f"learning has stopped: {error}"))
                        raise
                self._engine.publish_due(SLICE)
                self._look()
                if self._durable is not None:
                    with self._engine.guard:
                        self._durable.step()
            if self._durable is not None:
                self._durable.finish()
        except BaseException as error:
            self._fail(error)

    def _take(self) -> list[_Waiting] | None:
        """What waits, as much as is applied together; [] if nothing came in a while, None at the end."""
        with self._changed:
            if not self._waiting and not self._stopping:
                self._changed.wait(BUSY_TICK if self._due else IDLE_TICK)
            if not self._waiting:
                return None if self._stopping else []
            group: list[_Waiting] = []
            count = 0
            while self._waiting and (not group or count + len(self._waiting[0].records) <= GROUP_RECORDS):
                group.append(self._waiting.popleft())
                count += len(group[-1].records)
            self._records -= count
            return group

    def _learn(self, group: Sequence[_Waiting]) -> None:
        """Parse, keep, apply, and answer."""
        records = [record for one in group for record in one.records]
        at = int(self._clock())
        clocks = {k for k, record in enumerate(records) if "$clock" in (record.get("event_type"), record.get("event"))}
        with self._engine.guard:
            parsed = self._engine.parser.records([{} if k in clocks else r for k, r in enumerate(records)], 1, at)
        refused = {rejection.line - 1: rejection.reason for rejection in parsed.rejections}
        refused.update(dict.fromkeys(clocks, "$clock is for whoever writes a log itself"))
        kept = [record for k, record in enumerate(records) if k not in refused]
        if self._durable is not None and kept:
            try:
                self._durable.journal.append(at, kept)
            except StateError as error:
                if self._durable.journal.failed:
                    raise
                _log.error("events are refused: %s", error)  # a full disk, say: the next ones may find room
                self._answer(group, StoreProblem(str(error)))
                return
        self._engine.apply_parsed(parsed, publish=False)
        self._look()
        first = 0
        for one in group:
            one.answer([refused.get(first + k) for k in range(len(one.records))])
            first += len(one.records)

    def _look(self) -> None:
        self._due = self._engine.pipeline.due()
        self._looked = time.monotonic()
        self._staleness = self._engine.pipeline.staleness(self._looked)

    @staticmethod
    def _answer(group: Sequence[_Waiting], problem: StoreProblem) -> None:
        for one in group:
            one.answer(problem)

    def _fail(self, error: BaseException) -> None:
        """Learning ends; questions go on."""
        known = isinstance(error, StateError)
        _log.error("learning has stopped: %s", error, exc_info=None if known else error)
        with self._changed:
            self._failure = str(error) if known else f"{type(error).__name__}: {error}"
            waiting, self._waiting = list(self._waiting), deque()
        self._answer(waiting, StoreProblem(f"learning has stopped: {self._failure}"))
        if self._durable is not None:
            with suppress(StateError):
                self._durable.abandon()


class EmbeddedStore:
    """A `Store` over an engine: its index in memory, and the histories of its user stages."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def search(self, query: Query) -> list[Hit]:
        return self._engine.index.search(query)

    async def history(self, user: str) -> Mapping[str, list[str]]:
        return self._engine.whole_history(user)

    async def properties(self, item: str) -> Properties | None:
        return self._engine.index.properties(item)

    async def problem(self) -> str | None:
        return None
