"""What the user stage tells the item partitions: edits of its members, and which counts and priors they touch.

An item partition is told of the users that it holds, i.e. those with a primary item of its own: their whole
history when it comes to hold them, each change from then on, and when it holds them no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cco.edits import ADD, ENTER, LEAVE, REMOVE
from cco.priors import count_in
from cco.user_state import EDITS, TOUCHED, WATERMARK
from llr.jit import inlined, kernel


@inlined
def touch(state: Any, kind: Any, item: Any) -> None:
    """A count of the item under indicator `kind`, or with their number its priors, is to be told."""
    if state.marks[kind, item] == 0:
        state.marks[kind, item] = 1
        at = state.registers[TOUCHED]
        state.touched[0, at] = np.uint32(kind)
        state.touched[1, at] = np.uint32(item)
        state.registers[TOUCHED] = at + 1


@inlined
def emit(state: Any, op: Any, user: Any, kind: Any, item: Any, partition: Any) -> None:
    """One edit for one item partition."""
    at = state.registers[EDITS]
    state.edits[0, at] = np.uint32(op | (kind << 8) | (partition << 16))
    state.edits[1, at] = np.uint32(user)
    state.edits[2, at] = np.uint32(item)
    state.registers[EDITS] = at + 1


@kernel
def _primaries(state: Any, names: Any, user: Any, partition: Any) -> Any:
    """How many primary items of the user lie in the item partition."""
    key = user * state.counts.shape[0]
    start, n, found = np.int64(state.histories.head[key, 0]), np.int64(state.histories.head[key, 1]), 0
    for k in range(n):
        if names.item_partitions[state.histories.data[start + k]] == partition:
            found += 1
    return found


@inlined
def present(state: Any, rule: Any, names: Any, user: Any, partition: Any) -> Any:
    """How many primary items of the user lie in the item partition: it holds the user while there is one."""
    if rule.partitions == 1:
        return np.int64(state.histories.head[user * state.counts.shape[0], 1])
    return np.int64(_primaries(state, names, user, partition))


@kernel
def emit_enter(state: Any, user: Any, partition: Any) -> None:
    """The whole history, for an item partition that comes to hold the user."""
    kinds = state.counts.shape[0]
    emit(state, ENTER, user, 0, 0, partition)
    for t in range(kinds):
        start = np.int64(state.histories.head[user * kinds + t, 0])
        for k in range(np.int64(state.histories.head[user * kinds + t, 1])):
            emit(state, ADD, user, t, np.int64(state.histories.data[start + k]), partition)


@kernel
def count_prior(state: Any, rule: Any, item: Any, time: Any, sign: Any) -> None:
    """A member's primary interaction of that time comes (+1) or goes (-1)."""
    count_in(state.rings, rule.widths, state.registers[WATERMARK], item, time, sign)
    if rule.widths.size > 0:
        touch(state, rule.caps.size, item)


@inlined
def count(state: Any, rule: Any, kind: Any, item: Any, time: Any, sign: Any) -> None:
    """An interaction of a member comes (+1) or goes (-1)."""
    state.counts[kind, item] += np.int32(sign)
    touch(state, kind, item)
    if kind == 0:
        count_prior(state, rule, item, time, sign)


@inlined
def tell(state: Any, rule: Any, names: Any, op: Any, user: Any, kind: Any, item: Any) -> None:
    """Tell every item partition that holds the member, after the history has changed."""
    own = np.int64(names.item_partitions[item]) if kind == 0 else -1
    for p in range(rule.partitions):
        held = present(state, rule, names, user, p)
        if p == own and op == ADD and held == 1:
            emit_enter(state, user, p)
        elif p == own and op == REMOVE and held == 0:
            emit(state, LEAVE, user, 0, 0, p)
        elif held > 0:
            emit(state, op, user, kind, item, p)
