"""The state machine of the user stage: retention of one source partition, from events to edits.

A user is in U (a member) while at least `min_primary` primary items are retained. Each event goes
through the same steps: the watermark moves and whoever is due expires; what the event adds is admitted,
what it removes goes; the user joins or leaves U; what is now outside the window expires. Every change
of a member's history is counted and told to the item partitions that hold the user, i.e. those with a
primary item of the user.

The kernels stop before a step for which a buffer might be too small and resume where they stopped.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cco import lists
from cco.ahead import ask_for_event
from cco.edits import ADD, LEAVE, REMOVE
from cco.event_data import CLOCK, DELETE_USER
from cco.expiry import cancel, next_due, schedule
from cco.priors import count_in, open_buckets
from cco.retention import INSERTED, KEPT, NEVER, REPLACED, admit, expired, find, settle
from cco.user_edits import count, count_prior, emit, emit_enter, present, tell, touch
from cco.user_state import (
    APPLIED,
    DIRTY,
    EDITS,
    MEMBER,
    MEMBERS,
    PRIORS_MOVED,
    SAVED,
    TO_SAVE,
    TOUCHED,
    UNTOLD,
    WATERMARK,
    pack,
)
from llr.jit import inlined, kernel

DONE, EDITS_FULL, SAVED_FULL, ARENA_FULL = 0, 1, 2, 3


@inlined
def _insert(state: Any, rule: Any, names: Any, user: Any, kind: Any, item: Any, time: Any) -> None:
    lists.push(state.histories, user * state.counts.shape[0] + kind, np.uint32(item), np.uint32(time))
    if state.flags[user] & MEMBER:
        count(state, rule, kind, item, time, 1)
        tell(state, rule, names, ADD, user, kind, item)


@kernel
def _remove(state: Any, rule: Any, names: Any, user: Any, kind: Any, slot: Any) -> None:
    key = user * state.counts.shape[0] + kind
    at = np.int64(state.histories.head[key, 0]) + slot
    item, time = np.int64(state.histories.data[at]), np.int64(state.histories.extra[at])
    lists.drop(state.histories, key, slot)
    if state.flags[user] & MEMBER:
        count(state, rule, kind, item, time, -1)
        tell(state, rule, names, REMOVE, user, kind, item)


@inlined
def _to_join_or_leave(state: Any, rule: Any, user: Any) -> Any:
    """Whether the user's membership is not what the history says."""
    enough = np.int64(state.histories.head[user * state.counts.shape[0], 1]) >= rule.min_primary
    return enough != ((state.flags[user] & MEMBER) != 0)


@kernel
def _join_or_leave(state: Any, rule: Any, names: Any, user: Any) -> Any:
    """Make the user's membership what the history says; returns whether it changed."""
    if not _to_join_or_leave(state, rule, user):
        return False
    kinds = state.counts.shape[0]
    enough = np.int64(state.histories.head[user * kinds, 1]) >= rule.min_primary
    sign = 1 if enough else -1
    state.flags[user] ^= np.uint8(MEMBER)
    state.registers[MEMBERS] += sign
    for t in range(kinds):
        start = np.int64(state.histories.head[user * kinds + t, 0])
        for k in range(np.int64(state.histories.head[user * kinds + t, 1])):
            item = np.int64(state.histories.data[start + k])
            count(state, rule, t, item, np.int64(state.histories.extra[start + k]), sign)
    for p in range(rule.partitions):
        if present(state, rule, names, user, p) > 0:
            if enough:
                emit_enter(state, user, p)
            else:
                emit(state, LEAVE, user, 0, 0, p)
    return True


@inlined
def _window(state: Any, rule: Any, user: Any) -> Any:
    return rule.window if state.flags[user] & MEMBER else rule.visitor_window


@kernel
def _expire(state: Any, rule: Any, names: Any, user: Any) -> None:
    """What lies outside the user's window goes; leaving U may make the window another."""
    kinds = state.counts.shape[0]
    while True:
        window = _window(state, rule, user)
        if window == NEVER:
            return
        cutoff = state.registers[WATERMARK] - window
        for t in range(kinds):
            key = user * kinds + t
            while True:
                slot = expired(
                    state.histories.extra,
                    np.int64(state.histories.head[key, 0]),
                    np.int64(state.histories.head[key, 1]),
                    cutoff,
                )
                if slot < 0:
                    break
                _remove(state, rule, names, user, t, slot)
        if not _join_or_leave(state, rule, names, user):
            return


@kernel
def _reschedule(state: Any, rule: Any, user: Any) -> None:
    """Expiry is due when the watermark passes the oldest retained time plus the window."""
    kinds = state.counts.shape[0]
    window = _window(state, rule, user)
    oldest = np.int64(1) << 62
    if window != NEVER:
        for t in range(kinds):
            start = np.int64(state.histories.head[user * kinds + t, 0])
            for k in range(np.int64(state.histories.head[user * kinds + t, 1])):
                oldest = min(oldest, np.int64(state.histories.extra[start + k]))
    if oldest == np.int64(1) << 62:
        cancel(state.expiry, user)
    else:
        schedule(state.expiry, user, oldest + window)


@inlined
def _keep_scheduled(state: Any, rule: Any, user: Any, time: Any, changed: Any) -> None:
    """The cheap case first: a user in the heap who is looked at early enough stays where he is."""
    window = _window(state, rule, user)
    if window == NEVER and state.expiry.place[user] == 0:
        return
    if changed or state.expiry.place[user] == 0 or state.expiry.due[user] > time + window:
        _reschedule(state, rule, user)


@inlined
def _admit(state: Any, rule: Any, names: Any, user: Any, kind: Any, item: Any, time: Any) -> None:
    key = user * state.counts.shape[0] + kind
    start, n = np.int64(state.histories.head[key, 0]), np.int64(state.histories.head[key, 1])
    data, times = state.histories.data, state.histories.extra
    of_indicator, cap = rule.hashes[kind], rule.caps[kind]
    user_hash = names.user_hashes[user] if n + 1 >= cap else np.uint64(0)  # nobody is ranked before that
    outcome, slot = admit(
        data, times, start, n, cap, item, time, user_hash, names.item_hashes, of_indicator, rule.recent
    )
    if outcome == KEPT:
        before = np.int64(times[start + slot])
        if time > before:
            if kind == 0 and state.flags[user] & MEMBER:
                count_prior(state, rule, item, before, -1)
                count_prior(state, rule, item, time, 1)
            times[start + slot] = np.uint32(time)
        return
    if outcome == REPLACED:
        _remove(state, rule, names, user, kind, slot)
    if outcome in (INSERTED, REPLACED):
        _insert(state, rule, names, user, kind, item, time)
        start, n = np.int64(state.histories.head[key, 0]), np.int64(state.histories.head[key, 1])
        settle(data, times, start, n, cap, user_hash, names.item_hashes, of_indicator, rule.recent)


@kernel
def _delete(state: Any, rule: Any, names: Any, user: Any) -> None:
    kinds = state.counts.shape[0]
    for t in range(kinds):
        for slot in range(np.int64(state.histories.head[user * kinds + t, 1]) - 1, -1, -1):
            _remove(state, rule, names, user, t, slot)


@inlined
def _mark(state: Any, user: Any) -> None:
    """Before a user changes: what the present cut still owes is packed as it was."""
    if state.flags[user] & TO_SAVE:
        pack(state, user)
        state.flags[user] &= np.uint8(255 - TO_SAVE)
    state.flags[user] |= np.uint8(DIRTY | UNTOLD)


@inlined
def _advance(state: Any, rule: Any, time: Any) -> None:
    """Move the watermark; ring slots that now stand for new buckets begin at zero."""
    before = state.registers[WATERMARK]
    if time <= before:
        return
    state.registers[WATERMARK] = time
    if open_buckets(state.rings, rule.widths, before, time):
        state.registers[PRIORS_MOVED] = 1


@inlined
def _full(state: Any, rule: Any) -> Any:
    """Which buffer might be too small for one more step, or DONE."""
    if state.registers[EDITS] + rule.edits_a_step > state.edits.shape[1]:
        return EDITS_FULL
    if state.registers[TOUCHED] + rule.touched_a_step > state.touched.shape[1]:
        return EDITS_FULL
    if state.registers[SAVED] + rule.words_a_user > state.saved.size:
        return SAVED_FULL
    if state.histories.top[0] + rule.arena_a_step > state.histories.data.size:
        return ARENA_FULL
    return DONE


@inlined
def _too_old(state: Any, rule: Any, user: Any, time: Any) -> Any:
    """Whether an event is outside a visitor's window: it does not enter, and takes nobody's place.

    Asked after the primary was admitted, which may have made the visitor a member. A member's own window
    needs no question: with `recent`, what is older than the window is also older than all that is kept.
    """
    if np.int64(state.histories.head[user * rule.caps.size, 1]) >= rule.min_primary:
        return False
    return rule.visitor_window != NEVER and time < state.registers[WATERMARK] - rule.visitor_window


@inlined
def _apply(state: Any, rule: Any, names: Any, user: Any, item: Any, kind: Any, time: Any) -> None:
    _mark(state, user)
    if kind == DELETE_USER:
        _delete(state, rule, names, user)
    else:
        adds, removes = np.int64(rule.add_mask[kind]), np.int64(rule.remove_mask[kind])
        for t in range(rule.caps.size):
            if t > 0 and _too_old(state, rule, user, time):
                break
            if (adds >> t) & 1:
                _admit(state, rule, names, user, t, item, time)
        for t in range(rule.caps.size):
            if (removes >> t) & 1:
                key = user * rule.caps.size + t
                start, n = np.int64(state.histories.head[key, 0]), np.int64(state.histories.head[key, 1])
                slot = find(state.histories.data, start, n, item)
                if slot >= 0:
                    _remove(state, rule, names, user, t, slot)
    changed = False
    if _to_join_or_leave(state, rule, user):  # asked here because the call alone takes a tenth of an event's time
        changed = _join_or_leave(state, rule, names, user)
    window = _window(state, rule, user)
    if window != NEVER and (changed or state.registers[WATERMARK] - window > time):
        _expire(state, rule, names, user)
        changed = True
    _keep_scheduled(state, rule, user, time, changed)


@kernel
def consume(state: Any, rule: Any, names: Any, users: Any, items: Any, types: Any, times: Any, begin: Any) -> Any:
    """Apply events from `begin` on. Returns (the next event, DONE or the buffer that is full)."""
    flat = state.histories.head.reshape(-1), state.counts.reshape(-1), state.marks.reshape(-1), state.rings.reshape(-1)
    for e in range(begin, types.size):
        ask_for_event(state, rule, names, flat, users, items, types, e)
        time = np.int64(times[e])
        _advance(state, rule, time)
        while True:
            full = _full(state, rule)
            if full != DONE:
                return e, full
            user = next_due(state.expiry, state.registers[WATERMARK])
            if user < 0:
                break
            _mark(state, user)
            _expire(state, rule, names, user)
            _reschedule(state, rule, user)
        if types[e] != CLOCK:
            _apply(state, rule, names, np.int64(users[e]), np.int64(items[e]), np.int64(types[e]), time)
        state.registers[APPLIED] += 1
    return types.size, DONE


@kernel
def count_members(state: Any, rule: Any, names: Any, users: Any) -> None:
    """After loading histories: membership, counts, priors and what is due follow from them. Tells nobody."""
    kinds = state.counts.shape[0]
    for user in range(users):
        if np.int64(state.histories.head[user * kinds, 1]) >= rule.min_primary:
            state.flags[user] |= np.uint8(MEMBER)
            state.registers[MEMBERS] += 1
            for t in range(kinds):
                start = np.int64(state.histories.head[user * kinds + t, 0])
                for k in range(np.int64(state.histories.head[user * kinds + t, 1])):
                    item = np.int64(state.histories.data[start + k])
                    state.counts[t, item] += np.int32(1)
                    if t == 0:
                        time = np.int64(state.histories.extra[start + k])
                        count_in(state.rings, rule.widths, state.registers[WATERMARK], item, time, 1)
        _reschedule(state, rule, user)
    state.registers[PRIORS_MOVED] = 1


@kernel
def tell_members(state: Any, rule: Any, names: Any, begin: Any, end: Any, only: Any) -> Any:
    """ENTER every member from `begin` on wherever he belongs; returns the next user when buffers are full.

    `only` is one item partition, and then its users alone are told; -1 stands for all.
    """
    first, stop = (0, rule.partitions) if only < 0 else (only, only + 1)
    for user in range(begin, end):
        if _full(state, rule) == EDITS_FULL:
            return user
        if state.flags[user] & MEMBER:
            for p in range(first, stop):
                if present(state, rule, names, user, p) > 0:
                    emit_enter(state, user, p)
    return end


@kernel
def tell_counts(state: Any, rule: Any, names: Any, begin: Any, end: Any, only: Any) -> Any:
    """Touch every column count above zero, and all of the items of partition `only`; the next item when full."""
    kinds = state.counts.shape[0]
    for item in range(begin, end):
        if state.registers[TOUCHED] + kinds > state.touched.shape[1]:
            return item
        own = np.int64(names.item_partitions[item]) == only
        for t in range(kinds):
            if own or state.counts[t, item] != 0:
                touch(state, t, item)
    return end
