"""The state machine of the item stage: edits into the adjacency, and which rows they make due.

For its own primary items an item partition keeps the users who have them, and for those users the whole
histories: the two sides of the adjacency. There is no table of pairs; a row is counted from here when
it is to be published. Every edit states a fact, so applying one again changes nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cco import lists
from cco.ahead import AHEAD, ask_for_edit
from cco.arrays import longer, wider
from cco.edits import ADD, ENTER, LEAVE
from cco.retention import find
from llr.jit import inlined, kernel
from llr.prefetch import prefetch

DONE, PRIMARY_FULL, OTHERS_FULL, HOLDERS_FULL = 0, 1, 2, 3
DUE_ITEMS, TOUCHED_USERS, CHANGES = range(3)  # registers


class ItemState(NamedTuple):
    """What the kernels change in place. Field t of a row is indicator t."""

    primary: lists.Lists  # key = user; extra = position of the user among the item's holders (own items)
    others: lists.Lists  # key = user * (indicators - 1) + indicator - 1
    holders: lists.Lists  # key = item: the users who have the primary item (own items)
    due: npt.NDArray[np.uint32]  # (items,): bit t: field t is due
    touches: npt.NDArray[np.float32]  # (items,): changes since the item's row was last counted
    due_items: npt.NDArray[np.uint32]  # (items,): those with a due field, in order
    user_touches: npt.NDArray[np.uint32]  # (users, 2): fields changed for the user's items, how many changes
    touched_users: npt.NDArray[np.uint32]  # (users,): those with touches that are not spread yet
    registers: npt.NDArray[np.int64]  # (3,)


def make_state(indicators: int) -> ItemState:
    """Nothing known yet."""
    return ItemState(
        lists.empty(0, 1 << 12, extras=True),
        lists.empty(0, 1 << 12 if indicators > 1 else 1, extras=False),
        lists.empty(0, 1 << 12, extras=False),
        np.zeros(0, np.uint32),
        np.zeros(0, np.float32),
        np.zeros(0, np.uint32),
        np.zeros((0, 2), np.uint32),
        np.zeros(0, np.uint32),
        np.zeros(3, np.int64),
    )


def with_ids(state: ItemState, users: int, items: int, indicators: int) -> ItemState:
    """The same state with room for that many users and items."""
    if users > state.touched_users.size:
        size = max(users, state.touched_users.size * 3 // 2, 1024)
        state = state._replace(
            primary=lists.with_keys(state.primary, size),
            others=lists.with_keys(state.others, max(size * (indicators - 1), 1)),
            user_touches=longer(state.user_touches.reshape(-1), 2 * size).reshape(-1, 2),
            touched_users=wider(state.touched_users, size),
        )
    if items > state.due.size:
        size = max(items, state.due.size * 3 // 2, 1024)
        state = state._replace(
            holders=lists.with_keys(state.holders, size),
            due=wider(state.due, size),
            touches=wider(state.touches, size),
            due_items=wider(state.due_items, size),
        )
    return state


@inlined
def make_due(state: Any, item: Any, fields: Any, changes: Any) -> None:
    """Fields of an item are to be counted again."""
    if state.due[item] == 0:
        state.due_items[state.registers[DUE_ITEMS]] = np.uint32(item)
        state.registers[DUE_ITEMS] += 1
    state.due[item] |= np.uint32(fields)
    state.touches[item] += np.float32(changes)


@inlined
def _touch_user(state: Any, user: Any, fields: Any) -> None:
    if state.user_touches[user, 0] == 0:
        state.touched_users[state.registers[TOUCHED_USERS]] = np.uint32(user)
        state.registers[TOUCHED_USERS] += 1
    state.user_touches[user, 0] |= np.uint32(fields)
    state.user_touches[user, 1] += np.uint32(1)
    state.registers[CHANGES] += 1


@kernel
def _release(state: Any, item: Any, at: Any) -> None:
    """Remove the holder at position `at`; whoever moves there is told the new position."""
    lists.drop(state.holders, item, at)
    start, n = np.int64(state.holders.head[item, 0]), np.int64(state.holders.head[item, 1])
    if at < n:
        mover = np.int64(state.holders.data[start + at])
        begin, length = np.int64(state.primary.head[mover, 0]), np.int64(state.primary.head[mover, 1])
        slot = find(state.primary.data, begin, length, item)
        state.primary.extra[begin + slot] = np.uint32(at)


@kernel
def _forget(state: Any, partitions: Any, own: Any, indicators: Any, user: Any) -> None:
    """The user has nothing here any more; the rows of the items change."""
    begin, n = np.int64(state.primary.head[user, 0]), np.int64(state.primary.head[user, 1])
    for slot in range(n):
        item = np.int64(state.primary.data[begin + slot])
        if partitions[item] == own:
            _release(state, item, np.int64(state.primary.extra[begin + slot]))
            make_due(state, item, (1 << indicators) - 1, 1)
    lists.clear(state.primary, user)
    for t in range(indicators - 1):
        lists.clear(state.others, user * (indicators - 1) + t)
    state.registers[CHANGES] += 1


@inlined
def _add_primary(state: Any, partitions: Any, own: Any, indicators: Any, user: Any, item: Any) -> None:
    begin, n = np.int64(state.primary.head[user, 0]), np.int64(state.primary.head[user, 1])
    if find(state.primary.data, begin, n, item) >= 0:
        return
    at = 0
    if partitions[item] == own:
        at = lists.push(state.holders, item, np.uint32(user), np.uint32(0))
        make_due(state, item, (1 << indicators) - 1, 1)
    lists.push(state.primary, user, np.uint32(item), np.uint32(at))
    _touch_user(state, user, 1)


@inlined
def _remove_primary(state: Any, partitions: Any, own: Any, indicators: Any, user: Any, item: Any) -> None:
    begin, n = np.int64(state.primary.head[user, 0]), np.int64(state.primary.head[user, 1])
    slot = find(state.primary.data, begin, n, item)
    if slot < 0:
        return
    if partitions[item] == own:
        _release(state, item, np.int64(state.primary.extra[begin + slot]))
        make_due(state, item, (1 << indicators) - 1, 1)
    lists.drop(state.primary, user, slot)
    _touch_user(state, user, 1)


@inlined
def _change_other(state: Any, indicators: Any, op: Any, user: Any, kind: Any, item: Any) -> None:
    key = user * (indicators - 1) + kind - 1
    begin, n = np.int64(state.others.head[key, 0]), np.int64(state.others.head[key, 1])
    slot = find(state.others.data, begin, n, item)
    if op == ADD and slot < 0:
        lists.push(state.others, key, np.uint32(item), np.uint32(0))
    elif op != ADD and slot >= 0:
        lists.drop(state.others, key, slot)
    else:
        return
    _touch_user(state, user, 1 << kind)


@kernel
def apply_edits(
    state: Any, partitions: Any, own: Any, indicators: Any, ops: Any, kinds: Any, users: Any, items: Any, begin: Any
) -> Any:
    """Apply edits from `begin` on. Returns (the next edit, DONE or the arena that is full).

    `partitions` (items,) uint16 is the item partition of each item and `own` the one of this stage.
    """
    heads, holders = state.primary.head.reshape(-1), state.holders.head.reshape(-1)
    touched = state.user_touches.reshape(-1)
    for e in range(begin, ops.size):
        ask_for_edit(state, partitions, heads, holders, touched, kinds, users, items, e)
        op, kind, user, item = ops[e], np.int64(kinds[e]), np.int64(users[e]), np.int64(items[e])
        if op == ADD:
            if kind > 0:
                if not lists.has_room(state.others, user * (indicators - 1) + kind - 1):
                    return e, OTHERS_FULL
                _change_other(state, indicators, op, user, kind, item)
            else:
                if not lists.has_room(state.primary, user):
                    return e, PRIMARY_FULL
                if not lists.has_room(state.holders, item):
                    return e, HOLDERS_FULL
                _add_primary(state, partitions, own, indicators, user, item)
        elif op in (ENTER, LEAVE):
            _forget(state, partitions, own, indicators, user)
        elif kind > 0:
            _change_other(state, indicators, op, user, kind, item)
        else:
            _remove_primary(state, partitions, own, indicators, user, item)
    return ops.size, DONE


@kernel
def take_counts(known: Any, indicators: Any, items: Any, counts: Any) -> None:
    """Column counts of a source: `known` (indicators, items) becomes what it says."""
    for k in range(items.size):
        known[indicators[k], items[k]] = counts[k]


@kernel
def take_priors(
    state: Any, partitions: Any, own: Any, fields: Any, known: Any, priors: Any, items: Any, values: Any
) -> Any:
    """A source's parts of priors: `known` (priors, items) becomes what it says; returns whether that is any news.

    Own items of which it is are due in `fields`.
    """
    changed = False
    for k in range(items.size):
        item = np.int64(items[k])
        if known[priors[k], item] != values[k]:
            known[priors[k], item] = values[k]
            changed = True
            if partitions[item] == own:
                make_due(state, item, fields, 0)
    return changed


@kernel
def spread_touches(state: Any, partitions: Any, own: Any) -> None:
    """The rows of every item that a touched user has are due in the fields that changed.

    Asked for when due rows are looked at and not after every message: an event touches as many rows as its user
    has items, so this would be half of the item stage's work. Nothing is lost by waiting: an item that
    the user has lost meanwhile became due in all fields when it went.
    """
    for k in range(state.registers[TOUCHED_USERS]):
        ahead = np.int64(state.touched_users[min(k + AHEAD, state.registers[TOUCHED_USERS] - 1)])
        prefetch(state.primary.data, np.uint64(state.primary.head[ahead, 0]))
        user = np.int64(state.touched_users[k])
        fields, changes = np.int64(state.user_touches[user, 0]), state.user_touches[user, 1]
        state.user_touches[user, 0] = 0
        state.user_touches[user, 1] = 0
        begin = np.int64(state.primary.head[user, 0])
        for slot in range(np.int64(state.primary.head[user, 1])):
            item = np.int64(state.primary.data[begin + slot])
            if partitions[item] == own:
                make_due(state, item, fields, changes)
    state.registers[TOUCHED_USERS] = 0
