"""The memory of a user stage: its arrays, their growth, and users packed into records and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cco import expiry, lists, priors
from cco.arrays import wider
from cco.config import Config
from cco.retention import NEVER, indicator_hash
from llr.jit import kernel

MEMBER, DIRTY, TO_SAVE, UNTOLD = 1, 2, 4, 8  # in U, changed since the last cut, owed to the present cut, see `untold`
WATERMARK, APPLIED, MEMBERS, EDITS, TOUCHED, SAVED, PRIORS_MOVED, SAVE_CURSOR = range(8)  # registers
STEPS = 1 << 16  # of a micro-batch that fit into the buffers if each makes an edit


class UserState(NamedTuple):
    """What the kernels change in place."""

    histories: lists.Lists  # key = user * indicators + indicator; extra = times, epoch seconds
    flags: npt.NDArray[np.uint8]  # (users,)
    counts: npt.NDArray[np.int32]  # (indicators, items): n_t(j) of this source
    marks: npt.NDArray[np.uint8]  # (indicators + 1, items): is in `touched`
    expiry: expiry.Expiry
    rings: priors.Rings  # interactions of members by bucket of time
    edits: npt.NDArray[np.uint32]  # (3, rows): op | indicator << 8 | partition << 16, user, item
    touched: npt.NDArray[np.uint32]  # (2, rows): indicator (or their number, for priors), item
    saved: npt.NDArray[np.uint32]  # words of packed users
    registers: npt.NDArray[np.int64]  # (8,)


class Rule(NamedTuple):
    """The configuration as the kernels read it."""

    caps: npt.NDArray[np.int64]  # (indicators,)
    hashes: npt.NDArray[np.uint64]  # (indicators,)
    add_mask: npt.NDArray[np.uint32]  # (event types,)
    remove_mask: npt.NDArray[np.uint32]  # (event types,)
    window: np.int64  # seconds, or retention.NEVER
    visitor_window: np.int64  # of users outside U: the shorter of both windows
    min_primary: np.int64
    recent: np.bool_
    widths: npt.NDArray[np.int64]  # (priors,) seconds of a bucket; 0: all time
    partitions: np.int64  # item partitions
    edits_a_step: np.int64  # the most that one step can write of each kind, or take from the arena
    touched_a_step: np.int64
    words_a_user: np.int64
    arena_a_step: np.int64


class Names(NamedTuple):
    """What the kernels need to know of ids."""

    user_hashes: npt.NDArray[np.uint64]
    item_hashes: npt.NDArray[np.uint64]
    item_partitions: npt.NDArray[np.uint16]


def make_rule(config: Config, item_partitions: int) -> Rule:
    """The rule of a configuration."""
    retention = config.retention
    names = config.indicator_names
    caps = np.array([config.indicators[name].user_cap for name in names], np.int64)
    per_user, kinds = int(caps.sum()), len(names)
    windows = [w for w in (retention.window, retention.visitor_window) if w is not None]
    return Rule(
        caps,
        np.array([indicator_hash(name, retention.seed) for name in names], np.uint64),
        config.add_mask,
        config.remove_mask,
        np.int64(retention.window or NEVER),
        np.int64(min(windows, default=NEVER)),
        np.int64(retention.min_primary),
        np.bool_(retention.sampling == "recent"),
        priors.widths(config),
        np.int64(item_partitions),
        # an event may remove all, enter everywhere and leave everywhere; each admission may replace
        np.int64(item_partitions * (4 * per_user + 4 * kinds + 8)),
        np.int64(4 * per_user + 4 * kinds + 8),
        np.int64(1 + kinds + 2 * per_user),
        np.int64(sum(4 * int(cap) + 4 for cap in caps)),
    )


def make_state(rule: Rule) -> UserState:
    """Nothing known yet."""
    kinds = rule.caps.size
    return UserState(
        lists.empty(0, max(1 << 12, int(rule.arena_a_step)), extras=True),
        np.zeros(0, np.uint8),
        np.zeros((kinds, 0), np.int32),
        np.zeros((kinds + 1, 0), np.uint8),
        expiry.empty(0),
        priors.no_rings(rule.widths),
        np.empty((3, STEPS + 2 * int(rule.edits_a_step)), np.uint32),
        np.empty((2, 2 * STEPS + 2 * int(rule.touched_a_step)), np.uint32),
        np.empty(max(STEPS, 2 * int(rule.words_a_user)), np.uint32),
        np.zeros(8, np.int64),
    )


def with_ids(state: UserState, users: int, items: int) -> UserState:
    """The same state with room for that many users and items."""
    kinds = state.counts.shape[0]
    if users > state.flags.size:
        size = max(users, state.flags.size * 3 // 2, 1024)
        state = state._replace(
            histories=lists.with_keys(state.histories, size * kinds),
            flags=wider(state.flags, size),
            expiry=expiry.with_users(state.expiry, size),
        )
    if items > state.counts.shape[1]:
        size = max(items, state.counts.shape[1] * 3 // 2, 1024)
        state = state._replace(
            counts=wider(state.counts, size),
            marks=wider(state.marks, size),
            rings=priors.with_items(state.rings, size),
        )
    return state


@kernel
def pack(state: Any, user: Any) -> Any:
    """Append a user's record to `saved`: user, then per indicator the length, the items, the times."""
    kinds = state.counts.shape[0]
    at = state.registers[SAVED]
    state.saved[at] = np.uint32(user)
    at += 1
    for t in range(kinds):
        start = np.int64(state.histories.head[user * kinds + t, 0])
        n = np.int64(state.histories.head[user * kinds + t, 1])
        state.saved[at] = np.uint32(n)
        at += 1
        for k in range(n):
            state.saved[at + k] = state.histories.data[start + k]
        at += n
        for k in range(n):
            state.saved[at + k] = state.histories.extra[start + k]
        at += n
    state.registers[SAVED] = at


@kernel
def pack_more(state: Any, words_a_user: Any, limit: Any) -> Any:
    """Pack users that the present cut still owes until `limit` words are there or none is left."""
    user = state.registers[SAVE_CURSOR]
    while user < state.flags.size:
        if state.flags[user] & TO_SAVE:
            if state.registers[SAVED] >= limit or state.registers[SAVED] + words_a_user > state.saved.size:
                break
            pack(state, user)
            state.flags[user] &= np.uint8(255 - TO_SAVE)
        user += 1
    state.registers[SAVE_CURSOR] = user


@kernel
def measure(words: Any, kinds: Any) -> Any:
    """(users, entries, largest user, largest item) of packed records; users = -1 if they do not parse."""
    at, users, entries = np.int64(0), 0, np.int64(0)
    last_user, last_item = np.int64(-1), np.int64(-1)
    while at < words.size:
        last_user = max(last_user, np.int64(words[at]))
        at += 1
        for _ in range(kinds):
            if at >= words.size:
                return -1, 0, 0, 0
            n = np.int64(words[at])
            at += 1
            if at + 2 * n > words.size:
                return -1, 0, 0, 0
            for k in range(n):
                last_item = max(last_item, np.int64(words[at + k]))
            at += 2 * n
            entries += n
        users += 1
    return users, entries, last_user, last_item


@kernel
def unpack(state: Any, words: Any, begin: Any, slack: Any) -> Any:
    """Load records from word `begin` on; returns where it stopped because the arena was full, or the end."""
    kinds = state.counts.shape[0]
    at = begin
    while at < words.size:
        if state.histories.top[0] + slack > state.histories.data.size:
            break
        user = np.int64(words[at])
        at += 1
        for t in range(kinds):
            key = user * kinds + t
            lists.clear(state.histories, key)
            n = np.int64(words[at])
            at += 1
            for k in range(n):
                lists.push(state.histories, key, words[at + k], words[at + n + k])
            at += 2 * n
    return at
