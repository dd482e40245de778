"""The user stage of one source partition: feeds the state machine, grows its memory, collects its edits.

It also cuts its state for durable storage without stopping: `begin_cut` fixes a position, `pack_some`
copies what changed since the last cut piece by piece while events go on, and a user who is about to
change before being copied is packed as he was (copy on write).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from cco import lists
from cco.arrays import wider
from cco.config import Config
from cco.edits import Edits
from cco.event_data import EventBatch
from cco.priors import BUCKETS, drop_silent, shapes, take_values
from cco.user_machine import ARENA_FULL, DONE, SAVED_FULL, consume, count_members, tell_counts, tell_members
from cco.user_state import (
    APPLIED,
    DIRTY,
    EDITS,
    MEMBER,
    MEMBERS,
    PRIORS_MOVED,
    SAVE_CURSOR,
    SAVED,
    TO_SAVE,
    TOUCHED,
    UNTOLD,
    WATERMARK,
    Names,
    UserState,
    make_rule,
    make_state,
    measure,
    pack_more,
    unpack,
    with_ids,
)
from cco.vocabulary import Vocabulary

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Indices = npt.NDArray[np.int64]

SAVE_WORDS = 1 << 16  # of packed users handed out at a time: 256 KB


class DamagedStateError(ValueError):
    """Packed users do not parse: the state they came from is damaged and cannot be used."""


class UserStage:
    """Retention of the users of source partition `source`. Not safe for two threads."""

    def __init__(
        self, config: Config, users: Vocabulary, items: Vocabulary, source: int = 0, item_partitions: int = 1
    ) -> None:
        self._config, self._users, self._items, self._source = config, users, items, source
        self._rule = make_rule(config, item_partitions)
        self._shapes = shapes(config)
        self._state: UserState = make_state(self._rule)
        self._aging = np.zeros(0, np.uint8)  # (items,): a prior may change as time goes on, or has just become 0
        self._packed: list[Words] = []
        self._cut_open = False
        self._told_to = 0  # where `untold` goes on

    @property
    def applied(self) -> int:
        """Events of this source's log that are applied."""
        return int(self._state.registers[APPLIED])

    @property
    def watermark(self) -> int:
        """The largest event time so far, epoch seconds."""
        return int(self._state.registers[WATERMARK])

    @property
    def members(self) -> int:
        """Users of this source in U."""
        return int(self._state.registers[MEMBERS])

    def is_member(self, user: int) -> bool:
        """Whether the user is in U."""
        return user < self._state.flags.size and bool(self._state.flags[user] & MEMBER)

    def history(self, user: int) -> list[tuple[Words, Words]]:
        """(items, times) retained for the user, one pair per indicator, latest first, those of one time by id.

        Not by index: that depends on which ids came first in the run that is asked.
        """
        kinds = self._rule.caps.size
        found = []
        for t in range(kinds):
            start, n = (0, 0)
            if user < self._state.flags.size:
                start, n = (int(x) for x in self._state.histories.head[user * kinds + t])
            items = self._state.histories.data[start : start + n].copy()
            times = self._state.histories.extra[start : start + n].copy()
            by_id = np.array(sorted(range(n), key=self._items.names(items).__getitem__), np.int64)
            order = by_id[np.argsort(-times[by_id].astype(np.int64), kind="stable")]
            found.append((items[order], times[order]))
        return found

    def untold(self, most: int, first: Indices) -> Indices:
        """Up to `most` users whose history or membership may be another than when this last named them.

        Those among `first` come first. Users who were never told, or restored, count from `tell_all` on.
        """
        flags = self._state.flags
        known = first[first < flags.size]
        found: Indices = known[(flags[known] & UNTOLD) != 0][:most]
        flags[found] &= np.uint8(255 - UNTOLD)
        if found.size < most:
            waiting = np.flatnonzero(flags & UNTOLD)
            begin = int(np.searchsorted(waiting, self._told_to))  # round and round: nobody waits for ever
            others = np.concatenate((waiting[begin:], waiting[:begin]))[: most - found.size]
            flags[others] &= np.uint8(255 - UNTOLD)
            if others.size:
                self._told_to = int(others[-1]) + 1
            found = np.concatenate((found, others))
        return found

    def tell_all(self) -> None:
        """Let `untold` name every user once, also those of whom nothing is left: nobody knows who was told of that."""
        self._fit()
        self._state.flags[: len(self._users)] |= UNTOLD

    def retained(self) -> npt.NDArray[np.int64]:
        """(indicators,) retained interactions, of members and others."""
        kinds = self._rule.caps.size
        lengths = self._state.histories.head[: self._state.flags.size * kinds, 1].reshape(-1, kinds)
        total: npt.NDArray[np.int64] = lengths.sum(axis=0, dtype=np.int64)
        return total

    def nbytes(self) -> int:
        """Bytes that are in use, the unused ends of growing arrays apart."""
        state, users = self._state, len(self._users)
        per_user = 8 * int(self._rule.caps.size) + 1 + 16
        per_item = int(state.counts.shape[0]) * 5 + 1 + state.rings.shape[0] * BUCKETS * 4
        buffers = state.edits.nbytes + state.touched.nbytes + state.saved.nbytes
        total: int = int(state.histories.top[0]) * 8 + users * per_user + len(self._items) * per_item + buffers
        return total

    def ingest(self, batch: EventBatch) -> Iterator[list[Edits]]:
        """Apply events of this source; yields messages (one per item partition) as the buffers fill.

        The consumer applies each message before taking the next.
        """
        self._fit()
        names, begin = self._names(), 0
        while True:
            begin, full = consume(
                self._state, self._rule, names, batch.users, batch.items, batch.types, batch.times, begin
            )
            if full == ARENA_FULL:
                self._state = self._state._replace(
                    histories=lists.grown(self._state.histories, int(self._rule.arena_a_step))
                )
            elif full == SAVED_FULL:
                self._take_packed()
            else:
                yield self._take_edits()
                if full == DONE:
                    return

    def _names(self) -> Names:
        return Names(self._users.hashes, self._items.hashes, self._items.partitions(int(self._rule.partitions)))

    def _fit(self) -> None:
        self._state = with_ids(self._state, len(self._users), len(self._items))
        if self._state.counts.shape[1] > self._aging.size:
            self._aging = wider(self._aging, self._state.counts.shape[1])

    def _take_edits(self, only: int | None = None) -> list[Edits]:
        """The edits since the last time, by item partition. Counts go to all of them, priors to their item's own.

        `only` is for filling one item partition: the list has the message to it alone.
        """
        state = self._state
        what, users, items = state.edits[:, : int(state.registers[EDITS])].copy()
        touched, names = state.touched[:, : int(state.registers[TOUCHED])].copy()
        state.marks[touched, names] = 0
        state.registers[EDITS] = state.registers[TOUCHED] = 0
        kinds = self._rule.caps.size
        counted = np.flatnonzero(touched < kinds)
        indicators, counted_items = touched[counted], names[counted]
        counts = state.counts[indicators, counted_items]
        priors = self._touched_priors(names[touched == kinds], to_all=only is None)
        partitions, messages = int(self._rule.partitions), []
        of_partition = what >> np.uint32(16)
        of_prior = self._items.partitions(partitions)[priors[1]]
        for p in range(partitions) if only is None else (only,):
            mine = slice(None) if partitions == 1 else of_partition == p
            own = slice(None) if partitions == 1 else of_prior == p
            messages.append(
                Edits(
                    self._source,
                    self.applied,
                    what[mine].astype(np.uint8),
                    (what[mine] >> np.uint32(8)).astype(np.uint8),
                    users[mine],
                    items[mine],
                    self.members,
                    indicators.astype(np.uint8),
                    counted_items,
                    counts,
                    priors[0][own],
                    priors[1][own],
                    priors[2][own],
                )
            )
        return messages

    def _touched_priors(self, items: Words, to_all: bool) -> tuple[Bytes, Words, npt.NDArray[np.int32]]:
        """(n,) each: prior, item and this source's part of its value (negative ones too).

        Those of `items`, and of all that age when a bucket has passed: also where the value is what it was,
        since an item stage may have been told another one by a run that crashed. An item stops aging when it
        has said so to all.
        """
        state = self._state
        self._aging[items] = 1
        moved = bool(state.registers[PRIORS_MOVED])
        if moved:
            state.registers[PRIORS_MOVED] = 0
            items = np.flatnonzero(self._aging[: len(self._items)]).astype(np.uint32)
        n = items.size * len(self._shapes)
        found = np.empty(n, np.uint8), np.empty(n, np.uint32), np.empty(n, np.int32)
        take_values(state.rings, self._rule.widths, self._shapes, self.watermark, state.counts[0], items, *found)
        if moved and to_all:
            drop_silent(state.rings, items, self._aging)
        return found

    # -- durable state ------------------------------------------------------------------------------

    def begin_cut(self, everything: bool = False) -> tuple[int, int]:
        """Fix (applied, watermark): the users who changed since the last cut are owed as they are now.

        With `everything`, all users who have a history are owed, and nobody else: a cut that needs no other
        before it. Raises RuntimeError while a cut is open.
        """
        if self._cut_open:
            raise RuntimeError("a cut is open: take pack_some until it answers None")
        flags = self._state.flags
        owed = self._have_history() if everything else (flags & DIRTY) != 0
        flags &= np.uint8(MEMBER | UNTOLD)
        flags |= owed.astype(np.uint8) * np.uint8(TO_SAVE)
        self._state.registers[SAVE_CURSOR] = 0
        self._cut_open = True
        return self.applied, self.watermark

    def _have_history(self) -> npt.NDArray[np.bool_]:
        """(users,): who has any item under any indicator."""
        kinds = self._rule.caps.size
        lengths = self._state.histories.head[: self._state.flags.size * kinds, 1]
        found: npt.NDArray[np.bool_] = lengths[::kinds] != 0
        for t in range(1, kinds):
            found |= lengths[t::kinds] != 0
        return found

    def pack_some(self) -> Words | None:
        """The next records of the open cut, about SAVE_WORDS words; None when it is complete."""
        if not self._cut_open:
            raise RuntimeError("no cut is open")
        pack_more(self._state, self._rule.words_a_user, SAVE_WORDS)
        self._take_packed()
        if self._packed:
            words = self._packed[0] if len(self._packed) == 1 else np.concatenate(self._packed)
            self._packed.clear()
            return words
        if int(self._state.registers[SAVE_CURSOR]) < self._state.flags.size:
            return np.empty(0, np.uint32)
        self._cut_open = False
        return None

    def _take_packed(self) -> None:
        used = int(self._state.registers[SAVED])
        if used:
            self._packed.append(self._state.saved[:used].copy())
            self._state.registers[SAVED] = 0

    def restore(self, words: Words) -> None:
        """Load packed users. Raises DamagedStateError if they do not parse or name unknown ids."""
        kinds = self._rule.caps.size
        users, _, last_user, last_item = measure(words, kinds)
        if users < 0 or last_user >= len(self._users) or last_item >= len(self._items):
            raise DamagedStateError("a packed record of users does not parse or names ids that are not there")
        self._fit()
        begin = 0
        while begin < words.size:
            histories = lists.grown(self._state.histories, 2 * int(self._rule.arena_a_step))
            self._state = self._state._replace(histories=histories)
            begin = unpack(self._state, words, begin, self._rule.arena_a_step)

    def restored(self, applied: int, watermark: int) -> None:
        """After the last `restore`: the position and what follows from the histories."""
        self._fit()
        self._state.registers[APPLIED] = applied
        self._state.registers[WATERMARK] = watermark
        self._aging[:] = 1
        count_members(self._state, self._rule, self._names(), len(self._users))

    def resync(self, partition: int | None = None) -> Iterator[list[Edits]]:
        """Messages that tell empty item partitions everything; with `partition`, that one alone.

        Events may be ingested between two of them: what was told is kept up to date by the edits of those
        events, what was not yet told will be told as it is by then. Counts and priors of all of a partition's
        own items are told, zeros too: it then knows them all.
        """
        self._fit()
        only, users = -1 if partition is None else partition, len(self._users)
        user = item = 0
        while user < users:
            user = tell_members(self._state, self._rule, self._names(), user, users, only)
            yield self._take_edits(partition)
            self._fit()
        while item < len(self._items):  # also those that came meanwhile
            item = tell_counts(self._state, self._rule, self._names(), item, len(self._items), only)
            yield self._take_edits(partition)
            self._fit()
        self._aging[:] = 1
        self._state.registers[PRIORS_MOVED] = 1
        yield self._take_edits(partition)
