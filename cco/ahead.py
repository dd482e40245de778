"""What the kernels of both stages ask the processor for, some events before they need it.

Users and items come in any order, so nearly every line of memory that an event needs is far away. Without
this, the stages wait for memory most of their time; and a line that is forgotten here shows at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cco.priors import BUCKETS
from llr.jit import inlined
from llr.prefetch import prefetch

AHEAD = 8  # places: lists are asked for this far ahead, what leads to them twice as far
_LINE = np.uint64(16)  # uint32 in a cache line
_BUCKETS = np.uint64(BUCKETS)


@inlined
def ask_for_event(state: Any, rule: Any, names: Any, flat: Any, users: Any, items: Any, types: Any, e: Any) -> None:
    """What the user stage needs for the events some places after `e`: the head of a history, then its lines.

    `flat`: the heads, counts, marks and rings of the state as 1-D arrays.
    """
    kinds, last = np.uint64(rule.caps.size), np.int64(types.size - 1)
    far, near = min(e + 2 * AHEAD, last), min(e + AHEAD, last)
    head, counts, marks, rings = flat
    user, item = np.uint64(users[far]), np.uint64(items[far])
    prefetch(head, user * np.uint64(2) * kinds)
    prefetch(state.flags, user)
    prefetch(state.expiry.place, user)
    if types[far] >= 0:
        adds = np.uint64(rule.add_mask[types[far]])
        width = np.uint64(state.counts.shape[1])
        for kind in range(kinds):
            if (adds >> kind) & np.uint64(1):
                prefetch(counts, kind * width + item)
                prefetch(marks, kind * width + item)
        if adds & np.uint64(1):
            prefetch(marks, kinds * width + item)
            for ring in range(np.uint64(state.rings.shape[0])):
                slot = (ring * width + item) * _BUCKETS
                prefetch(rings, slot)
                prefetch(rings, slot + _BUCKETS - np.uint64(1))
    if types[near] >= 0:
        adds, first = np.uint64(rule.add_mask[types[near]]), np.uint64(0)
        while first < kinds - np.uint64(1) and (adds >> first) & np.uint64(1) == 0:
            first += np.uint64(1)
        at = np.uint64(2) * (np.uint64(users[near]) * kinds + first)
        start, n = np.uint64(head[at]), np.uint64(head[at + np.uint64(1)])
        prefetch(state.histories.data, start)
        prefetch(state.histories.data, start + _LINE)
        prefetch(state.histories.data, start + n)
        prefetch(state.histories.extra, start + n)
        if n + np.uint64(1) >= np.uint64(rule.caps[first]):
            prefetch(names.user_hashes, np.uint64(users[near]))


@inlined
def ask_for_edit(
    state: Any,
    partitions: Any,
    heads: Any,
    holders: Any,
    touched: Any,
    kinds: Any,
    users: Any,
    items: Any,
    e: Any,
) -> None:
    """What the item stage needs for the edits some places after `e`.

    `heads`, `holders`, `touched`: the heads of the users, those of the items, the touches of users as 1-D arrays.
    """
    last = np.int64(users.size - 1)
    far, near = min(e + 2 * AHEAD, last), min(e + AHEAD, last)
    user, item = np.uint64(users[far]), np.uint64(items[far])
    prefetch(heads, user * np.uint64(2))
    prefetch(touched, user * np.uint64(2))
    prefetch(holders, item * np.uint64(2))
    prefetch(state.due, item)
    prefetch(state.touches, item)
    prefetch(partitions, item)
    if kinds[near] == 0:
        user, item = np.uint64(2) * np.uint64(users[near]), np.uint64(2) * np.uint64(items[near])
        start, n = np.uint64(heads[user]), np.uint64(heads[user + np.uint64(1)])
        prefetch(state.primary.data, start)
        prefetch(state.primary.data, start + _LINE)
        prefetch(state.primary.data, start + n)
        prefetch(state.primary.extra, start + n)
        prefetch(state.holders.data, np.uint64(holders[item]) + np.uint64(holders[item + np.uint64(1)]))
