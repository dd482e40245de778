"""Events to histories, for the batch rebuild: a counting sort by user, then the retention rule user by user.

Nothing here is shared with the stream but `cco.retention`. A user expires when its next event comes and
once more at the end; that equals expiring everybody at every event, because a user outside U never keeps
what a member would lose (`UserRule.visitor_window` is never longer than `window`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cco.batch_user import Buffer, UserRule, clear, drop_expired, interact, load
from cco.config import Config
from cco.events import CLOCK, DELETE_USER, EventBatch
from cco.vocabulary import Vocabulary
from llr.jit import kernel

SourceBatch: TypeAlias = EventBatch | tuple[int, EventBatch]
"""A batch, perhaps with the source partition that all of it was read from."""

_EVERY = -1


@dataclass(frozen=True, slots=True)
class Histories:
    """What is retained: history of user u under indicator t is slots head[u * indicators + t] of items and times."""

    head: npt.NDArray[np.uint32]  # (users * indicators, 2): start, length
    items: npt.NDArray[np.uint32]  # (retained,) item indices, in no particular order within a history
    times: npt.NDArray[np.uint32]  # (retained,) epoch seconds of the last event
    watermarks: npt.NDArray[np.uint32]  # (partitions,) epoch seconds

    @staticmethod
    def none(partitions: int) -> Histories:
        nothing = np.zeros(0, np.uint32)
        return Histories(np.zeros((0, 2), np.uint32), nothing, nothing, np.zeros(partitions, np.uint32))


MOST_RETAINED = 2**32 - 1  # starts of histories are uint32


def fold(
    before: Histories, batches: Sequence[SourceBatch], config: Config, users: Vocabulary, items: Vocabulary
) -> Histories:
    """The histories after `batches`, in order, every one of them expired at its partition's watermark.

    The users of a batch that comes with a source partition must belong there.
    Raises OverflowError where more is retained than uint32 can address.
    """
    rule = UserRule.of(config)
    windowed = rule.visitor_window >= 0
    n_users, stride = len(users), len(config.indicator_names)
    of_user = source_partitions(config, users)
    cursor = np.zeros(n_users + 1, np.int64)
    logs = [batch if isinstance(batch, tuple) else (_EVERY, batch) for batch in batches]
    for _, batch in logs:
        _tally(batch.users, batch.types, cursor)
    np.cumsum(cursor, out=cursor)  # cursor[u + 1] counted user u, so now cursor[u] is where u begins
    total = int(cursor[-1])
    item, kind, time = np.empty(total, np.uint32), np.empty(total, np.int16), np.empty(total, np.uint32)
    mark = np.empty(total if windowed else 0, np.uint32)
    watermarks = before.watermarks.copy()
    for source, batch in logs:
        _deal(batch.users, batch.items, batch.types, batch.times, source, of_user, cursor, watermarks, windowed,
              item, kind, time, mark)  # fmt: skip
    old_head = np.zeros((n_users * stride, 2), np.uint32)
    old_head[: len(before.head)] = before.head
    head = np.zeros((n_users * stride, 2), np.uint32)
    widest = max((int(mask).bit_count() for mask in rule.add_mask), default=0)
    room = before.items.size + total * widest  # only pages that are written become resident
    new_items, new_times = np.empty(room, np.uint32), np.empty(room, np.uint32)
    used = _fold_users(
        (item, kind, time, mark, cursor), (old_head, before.items, before.times), (head, new_items, new_times),
        rule, Buffer.empty(config, len(items)), (users.hashes, items.hashes, of_user, watermarks),
    )  # fmt: skip
    if used > MOST_RETAINED:
        raise OverflowError(
            f"{used} interactions are retained; at most {MOST_RETAINED} fit one rebuild: lower user_cap or set a window"
        )
    return Histories(head, new_items[:used], new_times[:used], watermarks)


def source_partitions(config: Config, users: Vocabulary) -> npt.NDArray[np.uint16]:
    """(users,) source partition of each user."""
    count = config.retention.source_partitions
    return users.partitions(count) if count > 1 else np.zeros(len(users), np.uint16)


@kernel
def _tally(users, types, count):  # type: ignore[no-untyped-def]
    """Add the events of user u, clock events apart, to count[u + 1]."""
    for e in range(users.size):
        if types[e] != CLOCK:
            count[users[e] + 1] += 1


@kernel
def _deal(users, items, types, times, source, of_user, cursor, watermarks, windowed, item, kind, time, mark):  # type: ignore[no-untyped-def]
    """Move events to their user's place, in order; afterwards cursor[u] is where user u ends.

    A clock event belongs to no user, so time goes on in the partition `source`, or in every one.
    """
    for e in range(users.size):
        if types[e] == CLOCK:
            for p in range(watermarks.size):
                if source in (_EVERY, p):
                    watermarks[p] = max(watermarks[p], times[e])
            continue
        u = users[e]
        p = of_user[u]
        watermarks[p] = max(watermarks[p], times[e])
        at = cursor[u]
        cursor[u] = at + 1
        item[at] = items[e]
        kind[at] = types[e]
        time[at] = times[e]
        if windowed:
            mark[at] = watermarks[p]


@kernel
def _fold_users(events, before, after, rule, buffer, ids):  # type: ignore[no-untyped-def]
    """Run every user's events over the user's histories; returns the retained entries written to `after`."""
    event_item, event_kind, event_time, event_mark, ends = events
    head, new_items, new_times = after
    windowed = rule.visitor_window >= 0
    user_hashes, item_hashes, of_user, watermarks = ids
    stride = buffer.n.size
    used = 0
    e = np.int64(0)
    for u in range(of_user.size):
        load(buffer, u, before, rule, user_hashes[u], item_hashes)
        while e < ends[u]:
            mark = np.int64(event_mark[e]) if windowed else np.int64(0)  # without windows there are no marks
            if windowed:
                drop_expired(buffer, rule, mark)
            if event_kind[e] == DELETE_USER:
                clear(buffer)
            else:
                interact(
                    buffer,
                    rule,
                    event_kind[e],
                    event_item[e],
                    event_time[e],
                    mark,
                    user_hashes[u],
                    item_hashes,
                )
            e += 1
        if windowed:
            drop_expired(buffer, rule, watermarks[of_user[u]])
        for t in range(stride):
            head[u * stride + t, 0] = used
            head[u * stride + t, 1] = buffer.n[t]
            for slot in range(buffer.base[t], buffer.base[t] + buffer.n[t]):
                new_items[used] = buffer.items[slot]
                new_times[used] = buffer.times[slot]
                used += 1
        clear(buffer)
    return used
