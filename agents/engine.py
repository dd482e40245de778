"""The embedded engine: the two stages and an index in memory in one process, with nothing else installed.

engine = Engine()
engine.ingest([{"user_id": "u1", "item_id": "i9", "event_type": "purchase", "timestamp": 1476884080}])
engine.recommend(user="u1")
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from agents.engine_report import REJECTIONS_KEPT, Counters, IngestReport, stats_of
from agents.questions import (
    Contribution,
    Recommendation,
    Values,
    asked_history,
    at_most_one,
    ids_of,
    latest,
    list_of,
    random_begin,
    rules_of,
    table_of,
    text_of,
)
from cco.config import Config
from cco.event_data import EventBatch, ItemChange, Parsed, Rejection
from cco.events import EventParser
from cco.pipeline import Pipeline
from cco.rows import Patches, Rows
from cco.vocabulary import Vocabulary
from model_sync.availability import available
from model_sync.backfill import RANDOM
from model_sync.contract import MAX_IDS, Boost, Query, Range
from model_sync.memory import MemoryIndex
from model_sync.metadata import change_problem

__all__ = ["Contribution", "Counters", "Engine", "IngestReport", "Recommendation"]

MICRO_BATCH = 65_536  # events applied between two looks at the rows that are due
RECORDS_AT_ONCE = 8_192  # records parsed at a time
LEAST_PUBLISH_SECONDS = 0.05  # spent on due rows after each micro-batch, however small that was
PUBLISH_ITEMS = 256  # items counted between two looks at the clock
IDLE_SECONDS = 1.0  # without publishing, after which a question looks for rows that are too old
REFRESH_SECONDS = 0.02  # that a question spends on them


class Engine:
    """Learns from events and recommends, in this process and in memory. Not safe for two threads.

    `item_partitions` and `threads` change how rows are counted, never what they are. `clock` gives seconds
    that never decrease. Raises ValueError for numbers that are not possible.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        item_partitions: int = 1,
        threads: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 1 <= threads <= 256:
            raise ValueError(f"threads is {threads}: it must be 1 to 256")
        self.config = config or Config()
        self.users, self.items = Vocabulary(), Vocabulary()
        self.parser = EventParser(self.config, self.users, self.items, change_problem)
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        map_chunks = self._pool.map if self._pool else map
        self.pipeline = Pipeline(self.config, self.users, self.items, item_partitions, map_chunks)
        self.user_stages = self.pipeline.user_stages
        self.index = MemoryIndex(self.config, self.items)
        self.guard = threading.RLock()  # held while the stages change: others may ask for histories meanwhile
        self.counters = Counters()
        self._changed_items: set[int] = set()  # positions; those that no checkpoint has taken yet
        self._deleted_items: set[int] = set()
        self._clock = clock
        self._published = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. The engine is of no use afterwards."""
        if self._pool:
            self._pool.shutdown()

    # -- learning -----------------------------------------------------------------------------------

    def ingest(self, events: Iterable[Mapping[str, Any]] | EventBatch) -> IngestReport:
        """Apply events (records as in the README, or parsed columns), then publish for a bounded time.

        What changed most is published first, and the rest by later calls, by `publish_due` or by `drain`.
        Records that cannot be used are in the report, with their number from 1, and harm no other.
        """
        if isinstance(events, EventBatch):
            self._learn(events)
            return IngestReport(len(events), [], 0)
        accepted = refused = 0
        first = 1
        rejected: list[Rejection] = []
        records = iter(events)
        while chunk := list(islice(records, RECORDS_AT_ONCE)):
            parsed = self.apply_parsed(self.parser.records(chunk, first))
            accepted, first = accepted + len(parsed.batch), first + len(chunk)
            refused += len(parsed.rejections)
            rejected += parsed.rejections[: REJECTIONS_KEPT - len(rejected)]
        return IngestReport(accepted, rejected, refused)

    def apply_parsed(self, parsed: Parsed, publish: bool = True) -> Parsed:
        """Apply what a parser over this engine's vocabularies found; answers the same.

        Without `publish` no row is counted yet: the caller sees to `publish_due`.
        """
        self._learn(parsed.batch, publish)
        self.counters.rejected += len(parsed.rejections)
        for change in parsed.item_changes:
            self._change_item(change)
        return parsed

    def _learn(self, batch: EventBatch, publish: bool = True) -> None:
        for at in range(0, len(batch), MICRO_BATCH):
            began = self._clock()
            part = batch.part(at, at + MICRO_BATCH)
            with self.guard:
                self.pipeline.ingest(part, began)
            self.counters.accepted += len(part)
            if publish:
                self.publish_due(max(LEAST_PUBLISH_SECONDS, 0.5 * (self._clock() - began)))

    def _change_item(self, change: ItemChange) -> None:
        if change.kind == "delete":
            self.delete_items([change.item_id])
        elif change.kind == "unset":
            self.index.unset({change.item_id: change.properties})
            if self.index.properties(change.item_id) is not None:
                self._items_changed([change.item_id], deleted=False)
        else:
            self.index.update_items({change.item_id: change.properties})
            self._items_changed([change.item_id], deleted=False)

    def publish_due(self, seconds: float) -> None:
        """Count and publish rows for about that long: too old ones first (all of them), then the most changed.

        `ingest` does it for every micro-batch. Where events may stop coming, let a timer call it, at least
        every fifth of `max_staleness`: no row is then out of date for longer.
        """
        began = now = self._clock()
        while now - began < seconds:
            found = self.pipeline.publish(now, PUBLISH_ITEMS)
            self._apply(found)
            if not self.pipeline.due():
                break
            now = self._clock()
        self._published = self._clock()
        self.counters.worst_staleness = max(self.counters.worst_staleness, self.pipeline.staleness(self._published))

    def _refresh_if_idle(self) -> None:
        """For who asks when events have stopped coming: some of the rows that are older than `max_staleness`.

        By few at a time, so that a question never waits for all of them.
        """
        began = now = self._clock()
        if began - self._published < IDLE_SECONDS:
            return
        if self.pipeline.staleness(began) > self.config.max_staleness:
            for stage in self.pipeline.item_stages:
                while now - began < REFRESH_SECONDS and (patches := stage.refresh(now, PUBLISH_ITEMS)) is not None:
                    self._apply([patches])
                    now = self._clock()
        self._published = now

    def drain(self, tell: Callable[[int], None] = lambda left: None) -> None:
        """Publish every row that is out of date: the index then equals a batch rebuild.

        `tell` hears now and then for how many items that is left to do.
        """
        for patches in self.pipeline.drain(self._clock()):
            self._apply([patches])
            tell(self.pipeline.stale())

    def _apply(self, found: Iterable[Patches]) -> None:
        for patches in found:
            if len(patches.rows):
                self.index.apply(patches)
                self.counters.patches += 1
                self.counters.fields_published += len(patches.rows)

    def resync(self) -> None:
        """After user stages were restored: fill the item stages from them."""
        self.pipeline.resync(self._clock())

    # -- items --------------------------------------------------------------------------------------

    def put_items(self, items: Mapping[str, Mapping[str, object]]) -> None:
        """Set the properties of items, in place of those they had. Raises MetadataError on impossible ones."""
        self.index.put_items(items)
        self._items_changed(items, deleted=False)

    def delete_items(self, ids: Iterable[str]) -> None:
        """Never recommend these again until they are put again."""
        gone = list(ids)
        self.index.delete_items(gone)
        self._items_changed(gone, deleted=True)

    def _items_changed(self, ids: Iterable[str], deleted: bool) -> None:
        positions = {i for i in map(self.items.index, ids) if i is not None}
        self._changed_items |= positions
        if deleted:
            self._deleted_items |= positions
        else:
            self._deleted_items -= positions

    def take_changed_items(self, everything: bool = False) -> Collection[int]:
        """Positions of the items whose metadata has changed since the last call, or of all that have some or are
        deleted: one of them without properties is deleted.
        """
        taken, self._changed_items = self._changed_items, set()
        if not everything:
            return taken
        names = self.items.names(range(len(self.items)))
        return [
            i for i, name in enumerate(names) if i in self._deleted_items or self.index.properties(name) is not None
        ]

    def properties(self, item: str) -> dict[str, Any] | None:
        """The properties of an item; None if it has none, or is deleted."""
        return self.index.properties(item)

    # -- asking -------------------------------------------------------------------------------------

    def recommend(
        self,
        user: str | None = None,
        item: str | None = None,
        items: Sequence[str] | None = None,
        history: Mapping[str, Sequence[str]] | None = None,
        num: int = 10,
        *,
        include: Mapping[str, Values] | None = None,
        exclude: Mapping[str, Values] | None = None,
        boost: Sequence[Boost] = (),
        ranges: Sequence[Range] = (),
        exclude_items: Collection[str] = (),
        exclude_seen: bool = True,
        weights: Mapping[str, float] | None = None,
        priors: Mapping[str, float] | None = None,
        backfill: str | None = "auto",
        now: str | None = None,
    ) -> list[Recommendation]:
        """The best items for a user, for who looks at an item, for a basket, for a given history, or for anyone.

        At most one of `user`, `item`, `items` and `history` (item ids per indicator). Items of the primary
        history are left out while `exclude_seen`; they do not count against the limit of `exclude_items`. Items
        that are not recommendable, not yet available or expired (properties: `config.items`) at `now` (ISO 8601;
        default: the machine's clock) are left out too. The rest is as in `model_sync.contract.Query`; raises
        QueryError with the offending part. When events have stopped coming, up to 20 ms a second are spent here on
        rows that are older than `max_staleness`.
        """
        whole = self._whole_history(user, item, items, history)
        seen = set(whole.get(self.config.primary, ())) if exclude_seen else set()
        in_time, barred = available(self.config, now)
        query = Query(
            history=whole if user is None else latest(whole),
            weights=table_of("weights", weights),
            include=rules_of("include", include),
            exclude=(*rules_of("exclude", exclude), *barred),
            boost=tuple(list_of("boost", boost, Boost)),
            ranges=(*list_of("ranges", ranges, Range), *in_time),
            exclude_items=seen.union(ids_of("exclude_items", exclude_items, MAX_IDS)),
            num=num,
            priors=table_of("priors", priors),
            backfill=backfill,
            shuffle=random_begin(now, user, whole) if backfill == RANDOM else 0.0,
        )
        self._refresh_if_idle()
        return [Recommendation(hit.item, hit.score, hit.properties) for hit in self.index.search(query)]

    def history_of(
        self,
        user: str | None = None,
        item: str | None = None,
        items: Sequence[str] | None = None,
        history: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, list[str]]:
        """The item ids per indicator that a question is about; none for an unknown user.

        Of a user's own history the latest of each indicator, as `questions.latest` cuts it. Raises QueryError.
        """
        whole = self._whole_history(user, item, items, history)
        return whole if user is None else latest(whole)

    def _whole_history(
        self,
        user: str | None,
        item: str | None,
        items: Sequence[str] | None,
        history: Mapping[str, Sequence[str]] | None,
    ) -> dict[str, list[str]]:
        at_most_one({"user": user, "item": item, "items": items, "history": history})
        own = {} if user is None else self.whole_history(text_of("user", user))
        return asked_history(self.config.primary, item, items, history, own)

    def whole_history(self, user: str) -> dict[str, list[str]]:
        """All that is retained of a user, per indicator latest first, then by id; nothing for an unknown one.

        Any thread may ask, also while another one learns.
        """
        with self.guard:
            index = self.users.index(user)
            if index is None:
                return {}
            found = self.pipeline.history(index)
            return {name: self.items.names(i for i, _ in entries) for name, entries in found.items()}

    def explain(
        self,
        item: str,
        user: str | None = None,
        items: Sequence[str] | None = None,
        history: Mapping[str, Sequence[str]] | None = None,
        now: str | None = None,
    ) -> list[Contribution]:
        """Why `item` scores as it does for a user, a basket or a history: largest contribution first.

        Weights are those of the published row, counts are of now: what came after the last `drain` lies between them.
        None where it is not recommended at all, at `now` (ISO 8601; default: the machine's clock), say.
        """
        asked = self.history_of(user, None, items, history)
        in_time, barred = available(self.config, now)
        only = Query(history=asked, candidates=[text_of("item", item)], ranges=in_time, exclude=barred)
        hits = self.index.search(replace(only, num=1, explain=True, backfill=None))
        found = []
        for part in hits[0].contributions if hits else ():
            row, column = self.items.index(item), self.items.index(part.feature)
            if row is not None and column is not None:
                counts = self.pipeline.counts(row, part.indicator, column)
                found.append(Contribution(part.indicator, part.feature, part.score, part.weight, *counts))
        return found

    # -- the model ----------------------------------------------------------------------------------

    def rows(self) -> Rows:
        """What the patches made of the index."""
        return self.index.rows()

    def exact_rows(self) -> Rows:
        """Full doubles, counted from the state as it is now."""
        return self.pipeline.exact_rows()

    def stats(self) -> dict[str, Any]:
        """Sizes, counts and totals, for people and for machines."""
        return stats_of(self, self._clock())

    # -- durable state ------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write the whole state into a directory (see `agents.state.store`); raises StateError."""
        from agents.engine_state import save

        save(self, Path(directory))

    @classmethod
    def load(cls, directory: str | Path, config: Config | None = None, **options: Any) -> Engine:
        """An engine with the state of a directory, every row published. Raises StateError.

        Without a configuration it has the one that the state was last written with; one that is given must
        agree with that in all that decides what is retained, and counts in everything else.
        """
        from agents.engine_state import load
        from agents.state.directory import stored_config

        engine = cls(config or stored_config(Path(directory)), **options)
        load(engine, Path(directory))
        engine.drain()
        return engine
