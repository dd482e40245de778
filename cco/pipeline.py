"""The two stages joined in one process: events in, patches out. No I/O, no clock: the caller passes the time.

The result does not depend on the number of item partitions, of threads, or on how the log is cut into
batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from cco.config import Config
from cco.edits import Edits
from cco.event_data import CLOCK, EventBatch
from cco.item_stage import ItemStage
from cco.row_counter import MapLike
from cco.rows import Patches, Rows, join_rows
from cco.user_stage import UserStage
from cco.vocabulary import Vocabulary

DRAIN_ITEMS = 4096  # counted at a time while draining
MAX_ITEM_PARTITIONS = 256
_DTYPES = [np.dtype(np.uint32), np.dtype(np.uint32), np.dtype(np.int16), np.dtype(np.uint32)]


class Pipeline:
    """User stages (one per source partition) and item stages (one per item partition).

    `map_chunks` runs the counting of rows: `map`, or the `map` of a thread pool. Not safe for two threads.
    Raises ValueError when `item_partitions` is not within 1 to 256.
    """

    def __init__(
        self,
        config: Config,
        users: Vocabulary,
        items: Vocabulary,
        item_partitions: int = 1,
        map_chunks: MapLike = map,
    ) -> None:
        if not 1 <= item_partitions <= MAX_ITEM_PARTITIONS:
            raise ValueError(f"item_partitions is {item_partitions}: it must be 1 to {MAX_ITEM_PARTITIONS}")
        self.config, self.users, self.items = config, users, items
        self._sources = config.retention.source_partitions
        self._item_partitions = item_partitions
        self.user_stages = [UserStage(config, users, items, s, item_partitions) for s in range(self._sources)]
        self.item_stages = [
            ItemStage(config, users, items, p, item_partitions, map_chunks) for p in range(item_partitions)
        ]

    # -- events -------------------------------------------------------------------------------------

    def ingest(self, batch: EventBatch, now: float) -> None:
        """Apply accepted events, in order. `now` is the caller's clock in seconds, never decreasing.

        Raises ValueError, with nothing applied, for columns that do not fit the vocabularies or each other.
        """
        self._check(batch)
        for source, part in self._by_source(batch):
            for messages in self.user_stages[source].ingest(part):
                self._apply(messages, now)

    def _check(self, batch: EventBatch) -> None:
        """The kernels trust their indices, so this is where they are looked at."""
        columns = (batch.users, batch.items, batch.types, batch.times)
        if [c.dtype for c in columns] != _DTYPES or {c.shape for c in columns} != {(len(batch),)}:
            raise ValueError("an EventBatch has uint32 users, items and times and int16 types, all of one length")
        if not len(batch):
            return
        plain, types = batch.types >= 0, len(self.config.event_types)
        if batch.types.max() >= types or batch.types.min() < CLOCK:
            raise ValueError(f"an event type is beyond the {types} of the configuration")
        if plain.any() and batch.items[plain].max() >= len(self.items):
            raise ValueError(f"an item is beyond the {len(self.items)} of this pipeline's vocabulary")
        if batch.users[batch.types != CLOCK].max(initial=0) >= max(1, len(self.users)):
            raise ValueError(f"a user is beyond the {len(self.users)} of this pipeline's vocabulary")

    def _by_source(self, batch: EventBatch) -> Iterator[tuple[int, EventBatch]]:
        """Each source's events. A clock event has no user: it moves every source's watermark."""
        if self._sources == 1:
            yield 0, batch
            return
        of_user = self.users.partitions(self._sources)
        clock = batch.types == CLOCK
        source_of = np.where(clock, 0, of_user[batch.users] if of_user.size else 0)
        for source in range(self._sources):
            at = np.flatnonzero((source_of == source) | clock)
            if at.size:
                yield source, EventBatch(batch.users[at], batch.items[at], batch.types[at], batch.times[at])

    def _apply(self, messages: list[Edits], now: float) -> None:
        for stage, edits in zip(self.item_stages, messages, strict=True):
            stage.apply(edits, now)

    def source_of(self, user: int) -> int:
        """The source partition of a user."""
        return int(self.users.partitions(self._sources)[user])

    # -- rows ---------------------------------------------------------------------------------------

    def publish(self, now: float, limit: int) -> list[Patches]:
        """Count up to `limit` items of each item partition, or more where `max_staleness` asks for it."""
        found = [stage.publish(now, limit) for stage in self.item_stages]
        return [patches for patches in found if patches is not None]

    def drain(self, now: float) -> Iterator[Patches]:
        """Count whatever is out of date; afterwards the published rows are exact at `position`."""
        for stage in self.item_stages:
            while (patches := stage.refresh(now, DRAIN_ITEMS)) is not None:
                yield patches

    def exact_rows(self) -> Rows:
        """Every row with entries as full doubles, counted from the state as it is, due or not."""
        return join_rows([stage.exact_rows() for stage in self.item_stages])

    def forget_sent(self, now: float) -> None:
        """Send every row again: for a new index."""
        for stage in self.item_stages:
            stage.forget_sent(now)

    def resync(self, now: float) -> None:
        """After restoring user stages: tell the (empty) item stages everything."""
        for stage in self.user_stages:
            for messages in stage.resync():
                self._apply(messages, now)

    # -- looking in ---------------------------------------------------------------------------------

    @property
    def position(self) -> tuple[int, ...]:
        """Per source, the events of its log that are applied."""
        return tuple(stage.applied for stage in self.user_stages)

    @property
    def rows_counted(self) -> int:
        """Rows counted so far."""
        return sum(stage.rows_counted for stage in self.item_stages)

    def due(self) -> int:
        """Items with a row that is due."""
        return sum(stage.due() for stage in self.item_stages)

    def stale(self) -> int:
        """Items with rows that are out of date: what `drain` would count."""
        return sum(stage.stale() for stage in self.item_stages)

    def staleness(self, now: float) -> float:
        """Seconds since the row that is longest out of date was exact."""
        return max(stage.staleness(now) for stage in self.item_stages)

    def members(self) -> int:
        """N, the users in U."""
        return sum(stage.members for stage in self.user_stages)

    def retained(self) -> dict[str, int]:
        """Retained interactions per indicator, of members and others."""
        total = np.sum([stage.retained() for stage in self.user_stages], axis=0)
        return dict(zip(self.config.indicator_names, (int(n) for n in total), strict=True))

    def history(self, user: int) -> dict[str, list[tuple[int, int]]]:
        """Per indicator the retained (item, time) of a user, latest first, those of one time by id."""
        found = self.user_stages[self.source_of(user)].history(user)
        return {
            name: list(zip(items.tolist(), times.tolist(), strict=True))
            for name, (items, times) in zip(self.config.indicator_names, found, strict=True)
        }

    def counts(self, item: int, indicator: str, feature: int) -> tuple[int, int, int, int]:
        """(k, n_A(item), n_t(feature), N) behind the LLR of `feature` in the row of `item`, now."""
        kind = self.config.indicator_names.index(indicator)
        if not (0 <= item < len(self.items) and 0 <= feature < len(self.items)):
            raise ValueError(f"an item is beyond the {len(self.items)} of this pipeline's vocabulary")
        return self._stage_of(item).counts(item, kind, feature)

    def _stage_of(self, item: int) -> ItemStage:
        return self.item_stages[int(self.items.partitions(self._item_partitions)[item])]

    def heaviest(self, number: int) -> list[tuple[int, int]]:
        """(item, users who have it) of the most popular primary items; of as many users, by id."""
        found = [entry for stage in self.item_stages for entry in stage.heaviest(number)]
        return sorted(found, key=lambda entry: (-entry[1], self.items.name(entry[0])))[:number]

    def nbytes(self) -> dict[str, int]:
        """Bytes in use by the state of each kind of stage."""
        return {
            "user stages": sum(stage.nbytes() for stage in self.user_stages),
            "item stages": sum(stage.nbytes() for stage in self.item_stages),
        }
