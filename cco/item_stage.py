"""The item stage of one item partition: keeps the adjacency, counts rows when they are due, returns patches.

Which rows are counted when: first those of items that would become older than `max_staleness`, then due
ones by relative change (changes since the last count, over the users who have the item), then, as far as
there is room, the oldest of the untouched ones, since N and the column counts drift under every row. A
patch leaves only where the fingerprint of a field differs from the last that was sent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cco import lists
from cco.arrays import wider
from cco.config import Config
from cco.edits import Edits
from cco.item_machine import (
    CHANGES,
    DONE,
    DUE_ITEMS,
    HOLDERS_FULL,
    OTHERS_FULL,
    ItemState,
    apply_edits,
    make_due,
    make_state,
    spread_touches,
    take_counts,
    take_priors,
    with_ids,
)
from cco.row_counter import EMPTY_FIELD, UNKNOWN_FIELD, MapLike, RowCounter, prior_fields
from cco.rows import Patches, Rows, join_rows
from cco.vocabulary import Vocabulary
from llr.jit import kernel

Indices = npt.NDArray[np.int64]

# of max_staleness: rows older than this are counted at any price, or if there is room
MUST_SHARE, MAY_SHARE = 0.8, 0.25
NEVER_COUNTED = -1


@kernel
def _make_all_due(state: Any, items: Any, fields: Any) -> None:
    for k in range(items.size):
        make_due(state, np.int64(items[k]), fields, 0)


class ItemStage:
    """Rows of the primary items of item partition `partition`. Not safe for two threads.

    Unless `index_is_empty`, nothing is known of what the index holds: every field is then sent once, empty or not.
    """

    def __init__(
        self,
        config: Config,
        users: Vocabulary,
        items: Vocabulary,
        partition: int = 0,
        item_partitions: int = 1,
        map_chunks: MapLike = map,
        index_is_empty: bool = True,
    ) -> None:
        self._config, self._users, self._items = config, users, items
        self._unsent = EMPTY_FIELD if index_is_empty else UNKNOWN_FIELD
        self._partition, self._item_partitions = partition, item_partitions
        self._kinds = len(config.indicator_names)
        self._priors_bit = 1 << self._kinds
        self._all = 2 * self._priors_bit - 1
        self._sources = config.retention.source_partitions
        self._state: ItemState = make_state(self._kinds)
        self._counter = RowCounter(config, items, map_chunks)
        self._source_counts = np.zeros((self._sources, self._kinds, 0), np.int32)
        self._source_priors = np.zeros((self._sources, len(config.prior_names), 0), np.int32)
        self._source_members = np.zeros(self._sources, np.int64)
        self._applied = np.zeros(self._sources, np.int64)
        self._fingerprints = np.zeros((self._kinds + 1, 0), np.uint64)
        self._counted_at = np.zeros(0, np.float64)  # clock time up to which all fields of the item were exact
        self._counted_version = np.zeros(0, np.int64)
        self._version = 0
        self._counted_at_version = False
        self._again = np.empty(0, np.int64)  # items (sorted) that are sent once more,
        self._held = np.empty((self._kinds + 1, 0), np.uint64)  # and the fingerprints of what was sent of them before
        self.rows_counted = 0
        self.ages = np.zeros(0)  # (items,) seconds for which those counted last had been out of date

    # -- edits --------------------------------------------------------------------------------------

    def apply(self, edits: Edits, now: float) -> None:
        """Apply a message. `now` is the caller's clock, seconds; a row that is new ages from here."""
        self._fit(now)
        partitions, begin = self._items.partitions(self._item_partitions), 0
        before, due_before = int(self._state.registers[CHANGES]), int(self._state.registers[DUE_ITEMS])
        while True:
            begin, full = apply_edits(
                self._state, partitions, self._partition, self._kinds,
                edits.op, edits.indicator, edits.user, edits.item, begin,
            )  # fmt: skip
            if full == DONE:
                break
            self._grow(full, edits, begin)
        changed = int(self._state.registers[CHANGES]) != before
        changed |= self._take_counts(edits, due_before)
        self._applied[edits.source] = edits.position
        if changed:
            if self._counted_at_version:  # rows counted since the last change were exact until now
                self._counted_at[self._counted_version == self._version] = now
                self._counted_at_version = False
            self._version += 1

    def _fit(self, now: float) -> None:
        users, items = len(self._users), len(self._items)
        self._state = with_ids(self._state, users, items, self._kinds)
        have, size = self._counted_at.size, self._state.due.size
        if size > have:
            self._source_counts = wider(self._source_counts, size)
            self._source_priors = wider(self._source_priors, size)
            self._fingerprints = wider(self._fingerprints, size)
            self._fingerprints[:, have:] = self._unsent
            self._counted_at = np.concatenate([self._counted_at, np.full(size - have, np.inf)])
            self._counted_version = np.concatenate(
                [self._counted_version, np.full(size - have, NEVER_COUNTED, np.int64)]
            )
        self._now = now

    def _grow(self, full: int, edits: Edits, at: int) -> None:
        state = self._state
        user, item, kind = int(edits.user[at]), int(edits.item[at]), int(edits.indicator[at])
        if full == HOLDERS_FULL:
            need = 2 * int(state.holders.head[item, 1]) + 1
            self._state = state._replace(holders=lists.grown(state.holders, need))
        elif full == OTHERS_FULL:
            need = 2 * int(state.others.head[user * (self._kinds - 1) + kind - 1, 1]) + 1
            self._state = state._replace(others=lists.grown(state.others, need))
        else:
            need = 2 * int(state.primary.head[user, 1]) + 1
            self._state = state._replace(primary=lists.grown(state.primary, need))

    def _take_counts(self, edits: Edits, due_before: int) -> bool:
        """The source's own counts and priors replace what it said before; answers whether any differs.

        Items that became due for the first time since there were `due_before` of them age from now on.
        """
        source, state = edits.source, self._state
        changed = bool(self._source_members[source] != edits.members)
        self._source_members[source] = edits.members
        if edits.count.size:
            take_counts(self._source_counts[source], edits.count_indicator, edits.count_item, edits.count)
            changed = True
        changed |= take_priors(
            state, self._items.partitions(self._item_partitions), self._partition, self._priors_bit,
            self._source_priors[source], edits.prior, edits.prior_item, edits.prior_value,
        )  # fmt: skip
        new = state.due_items[due_before : int(state.registers[DUE_ITEMS])]
        born = new[np.isinf(self._counted_at[new])]
        self._counted_at[born] = self._now
        return bool(changed)

    # -- rows ---------------------------------------------------------------------------------------

    @property
    def position(self) -> tuple[int, ...]:
        """Per source, the events of its log that are applied."""
        return tuple(self._applied.tolist())

    @property
    def members(self) -> int:
        """N, the users in U over all sources."""
        return int(self._source_members.sum())

    def due(self) -> int:
        """Items with a field that is due."""
        self._spread()
        return int(self._state.registers[DUE_ITEMS])

    def staleness(self, now: float) -> float:
        """Seconds since the row that is longest out of date was exact; 0 if none is out of date."""
        oldest = self.stale_since()
        return max(0.0, now - oldest) if np.isfinite(oldest) else 0.0

    def stale_since(self) -> float:
        """The clock time until which every row is exact: of what made the first of them stale; inf if none is."""
        return float(self._counted_at[self._counted_version < self._version].min(initial=np.inf))

    def stale(self) -> int:
        """Items that are out of date."""
        return int(np.count_nonzero(self._stale()))

    def _stale(self) -> npt.NDArray[np.bool_]:
        found: npt.NDArray[np.bool_] = (self._counted_version < self._version) & np.isfinite(self._counted_at)
        return found

    def _spread(self) -> None:
        spread_touches(self._state, self._items.partitions(self._item_partitions), self._partition)

    def publish(self, now: float, limit: int, most: int | None = None) -> Patches | None:
        """Count up to `limit` items, more only where max_staleness demands it; None if nothing changed.

        `most`, not below `limit`, is how many these may be: the oldest come first, and the caller comes again for the
        rest.
        """
        return self.count(self.choose(now, limit, most), now)

    def refresh(self, now: float, limit: int) -> Patches | None:
        """As `publish`, for draining: any `limit` items that are out of date, and never more.

        Answers None only when every row is exact at `position`; patches may be empty.
        """
        stale = np.flatnonzero(self._stale())[:limit]
        if not stale.size:
            return None
        self._spread()
        self._state.due[stale] |= np.uint32(self._all)
        return self.count(stale, now) or Patches(self.position, join_rows([]))

    def choose(self, now: float, limit: int, most_items: int | None = None) -> Indices:
        """The items that `publish` counts, sorted."""
        self._spread()
        state, most = self._state, self._config.max_staleness
        age = now - self._counted_at  # minus infinity for what was never due
        stale = (self._counted_version < self._version) & (age > MAY_SHARE * most)
        old = np.flatnonzero(stale)
        must = old[age[old] > MUST_SHARE * most]
        if most_items is not None and must.size > most_items:
            must = must[np.argsort(self._counted_at[must], kind="stable")[:most_items]]
        due = state.due_items[: int(state.registers[DUE_ITEMS])].astype(np.int64)
        room = max(0, limit - must.size)
        if due.size > room:
            holders = np.maximum(state.holders.head[due, 1], 1)
            relative = state.touches[due] / holders
            due = due[np.argpartition(-relative, room - 1)[:room]] if room else due[:0]
        room -= due.size
        if old.size - must.size > 0 and room > 0:
            may = old[np.argsort(self._counted_at[old], kind="stable")][: must.size + room]
        else:
            may = must
        state.due[may] |= np.uint32(self._all)
        return np.union1d(due, may)

    def count(self, items: Indices, now: float) -> Patches | None:
        """Count the due fields of `items` (sorted), and return those that changed; None if there are none."""
        if not items.size:
            return None
        state = self._state
        fields = state.due[items].copy()
        state.due[items] = 0
        state.touches[items] = 0
        waiting = state.due_items[: int(state.registers[DUE_ITEMS])]
        waiting = waiting[state.due[waiting] != 0]
        state.due_items[: waiting.size] = waiting
        state.registers[DUE_ITEMS] = waiting.size
        self.ages = np.where(self._counted_version[items] < self._version, now - self._counted_at[items], 0.0)
        whole = items[(fields & np.uint32(self._all >> 1)) == self._all >> 1]
        self._counted_at[whole] = now
        self._counted_version[whole] = self._version
        self._counted_at_version |= whole.size > 0
        parts = []
        for t in range(self._kinds):
            mine = items[(fields >> np.uint32(t)) & np.uint32(1) == 1]
            if mine.size:
                parts.append(self._counter.count(state, t, mine, self._column_counts(t), self.members))
                self.rows_counted += mine.size
        parts.append(prior_fields(items, self._source_priors, self._kinds))
        changed = [self._changed(part.rows, part.fingerprints) for part in parts]
        rows = join_rows(changed)
        return Patches(self.position, rows, self._sent_before(rows)) if len(rows) else None

    def _sent_before(self, rows: Rows) -> npt.NDArray[np.bool_] | None:
        """Which of these rows, all about to be sent, were sent before as they are; see `send_again`."""
        at = np.searchsorted(self._again, rows.item)
        known = np.flatnonzero(at < self._again.size)
        known = known[self._again[at[known]] == rows.item[known]]
        if not known.size:
            return None
        field, item, place = rows.field[known], rows.item[known], at[known]
        sent = self._fingerprints[field, item]
        found = np.zeros(len(rows), np.bool_)
        found[known] = self._held[field, place] == sent
        self._held[field, place] = sent  # whoever has the ones has the others from now on
        return found

    def _column_counts(self, kind: int) -> npt.NDArray[np.int32]:
        if self._sources == 1:
            only: npt.NDArray[np.int32] = self._source_counts[0, kind]
            return only
        total: npt.NDArray[np.int32] = self._source_counts[:, kind].sum(axis=0, dtype=np.int32)
        return total

    def _changed(self, rows: Rows, fingerprints: npt.NDArray[np.uint64]) -> Rows:
        before = self._fingerprints[rows.field, rows.item]
        self._fingerprints[rows.field, rows.item] = fingerprints
        return rows.select(np.flatnonzero(before != fingerprints))

    def make_all_due(self, now: float) -> None:
        """All own items that the vocabulary knows are to be counted, with or without users."""
        self._fit(now)
        own = np.arange(len(self._items))
        if self._item_partitions > 1:
            own = own[self._items.partitions(self._item_partitions) == self._partition]
        _make_all_due(self._state, own, self._all)
        self._counted_at[own[np.isinf(self._counted_at[own])]] = now

    def forget_sent(self, now: float) -> None:
        """Another index: every row is to be sent once more, if it is not empty or the index is not known to be.

        Rows that were exact until now age from here on, however long ago they were counted: else all of them would be
        too old at once. Those that were out of date before are as old as they were.
        """
        self._fingerprints[:] = self._unsent
        self._again = self._again[:0]
        self._counted_at[self._counted_version == self._version] = now
        known = np.flatnonzero(np.isfinite(self._counted_at))
        self._counted_version[known] = NEVER_COUNTED

    def known_items(self) -> Indices:
        """Items that have rows here, empty or not, sorted."""
        return np.flatnonzero(np.isfinite(self._counted_at))

    def send_again(self, items: Indices) -> None:
        """One more index: send every field of `items` (sorted, known) once more.

        Patches tell which of them were sent before as they are (`again`): other indices hold these. What was asked for
        before must have been counted (`is_due`).
        """
        self._again, self._held = items, self._fingerprints[:, items]
        self._fingerprints[:, items] = UNKNOWN_FIELD
        _make_all_due(self._state, items, self._all)

    def is_due(self, items: Indices) -> bool:
        """Whether a field of one of `items` is due."""
        return bool(self._state.due[items].any())

    def exact_rows(self) -> Rows:
        """All rows with entries, float64, counted from the state as it is; publishes nothing."""
        items = np.flatnonzero(self._state.holders.head[: len(self._items), 1])
        if not items.size:
            return join_rows([])
        parts = [
            self._counter.exact(self._state, t, items, self._column_counts(t), self.members) for t in range(self._kinds)
        ]
        parts.append(prior_fields(items, self._source_priors, self._kinds, exact=True).rows)
        rows = join_rows(parts)
        return rows.select(np.flatnonzero(np.diff(rows.start)))

    # -- looking in ---------------------------------------------------------------------------------

    def counts(self, item: int, kind: int, feature: int) -> tuple[int, int, int, int]:
        """(k, n_A(item), n_t(feature), N) for row (item, kind) as of `position`."""
        return self._counter.counts(self._state, kind, item, feature, self._column_counts(kind), self.members)

    def heaviest(self, number: int) -> list[tuple[int, int]]:
        """(item, users who have it) of the `number` items with most users, and of all that tie with the last."""
        users = self._state.holders.head[: len(self._items), 1].astype(np.int64)
        least = int(np.partition(users, -number)[-number]) if 0 < number < users.size else 0
        found = np.flatnonzero(users >= max(least, 1)) if number else users[:0]
        return list(zip(found.tolist(), users[found].tolist(), strict=True))

    def nbytes(self) -> int:
        """Bytes in use, the unused ends of growing arrays apart."""
        state = self._state
        arenas = int(state.primary.top[0]) * 8 + int(state.others.top[0]) * 4 + int(state.holders.top[0]) * 4
        per_user = 8 * self._kinds + 12
        per_item = 8 + 12 + 16 + 8 * (self._kinds + 1) + 4 * self._sources * (self._kinds + 4)
        return arenas + len(self._users) * per_user + len(self._items) * per_item
