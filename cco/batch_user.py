"""One user at a time, for the batch fold: histories in a buffer, with what makes `cco.retention` quick there.

The rule is `cco.retention`'s. Around it stand a map from item to slot instead of a search, and in a full
uniform history a binary heap by hash, so that what goes first is in slot 0 without another search.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cco.config import Config
from cco.retention import REPLACED, admit, expired, indicator_hash, rank_hash, worst
from llr.jit import inlined, kernel

_NEVER = 2**62  # a time after all times


class UserRule(NamedTuple):
    """The retention settings as kernels take them; indicators by their position, the primary first."""

    hashes: npt.NDArray[np.uint64]  # (indicators,)
    add_mask: npt.NDArray[np.uint32]  # (event types,)
    remove_mask: npt.NDArray[np.uint32]  # (event types,)
    recent: bool
    min_primary: int
    window: int  # seconds, -1: none
    visitor_window: int  # seconds, -1: none; never longer than window

    @staticmethod
    def of(config: Config) -> UserRule:
        """What `config` says."""
        retention = config.retention
        windows = [seconds for seconds in (retention.window, retention.visitor_window) if seconds is not None]
        return UserRule(
            hashes=np.array([indicator_hash(name, retention.seed) for name in config.indicator_names], np.uint64),
            add_mask=config.add_mask,
            remove_mask=config.remove_mask,
            recent=retention.sampling == "recent",
            min_primary=retention.min_primary,
            window=-1 if retention.window is None else retention.window,
            visitor_window=min(windows, default=-1),
        )


class Buffer(NamedTuple):
    """The histories of the user at hand: indicator t in slots base[t] to base[t] + n[t] - 1, unordered."""

    base: npt.NDArray[np.int64]  # (indicators + 1,)
    n: npt.NDArray[np.int64]  # (indicators,)
    items: npt.NDArray[np.uint32]  # (base[-1],)
    times: npt.NDArray[np.uint32]  # (base[-1],)
    ranks: npt.NDArray[np.uint64]  # (base[-1],) hashes, in full uniform histories only
    slot_of: npt.NDArray[np.uint16]  # (indicators, items) 1 + the item's slot in its history, 0 where it is not
    oldest: npt.NDArray[np.int64]  # (1,) no time is before this

    @staticmethod
    def empty(config: Config, n_items: int) -> Buffer:
        """Room for a user's histories."""
        caps = [config.indicators[name].user_cap for name in config.indicator_names]
        base = np.concatenate(([0], np.cumsum(caps))).astype(np.int64)
        room = int(base[-1])
        return Buffer(
            base, np.zeros(len(caps), np.int64), np.empty(room, np.uint32), np.empty(room, np.uint32),
            np.empty(room, np.uint64), np.zeros((len(caps), n_items), np.uint16), np.full(1, _NEVER, np.int64),
        )  # fmt: skip


@kernel
def clear(buffer):  # type: ignore[no-untyped-def]
    """Nothing is retained."""
    for t in range(buffer.n.size):
        for slot in range(buffer.base[t], buffer.base[t] + buffer.n[t]):
            buffer.slot_of[t, buffer.items[slot]] = 0
        buffer.n[t] = 0
    buffer.oldest[0] = _NEVER


@inlined
def _put(buffer, t, slot, item, time):  # type: ignore[no-untyped-def]
    buffer.items[buffer.base[t] + slot] = item
    buffer.times[buffer.base[t] + slot] = time
    buffer.slot_of[t, item] = slot + 1


@kernel
def _take(buffer, t, slot):  # type: ignore[no-untyped-def]
    """Free a slot; the last item moves into it."""
    start = buffer.base[t]
    buffer.slot_of[t, buffer.items[start + slot]] = 0
    buffer.n[t] -= 1
    last = buffer.n[t]
    if slot < last:
        _put(buffer, t, slot, buffer.items[start + last], buffer.times[start + last])


@kernel
def _sift(buffer, t, slot):  # type: ignore[no-untyped-def]
    """Move the item in `slot` down the heap until no item below has a larger hash."""
    start, n = buffer.base[t], buffer.n[t]
    item, time, rank = buffer.items[start + slot], buffer.times[start + slot], buffer.ranks[start + slot]
    while True:
        below = 2 * slot + 1
        if below >= n:
            break
        if below + 1 < n and buffer.ranks[start + below + 1] > buffer.ranks[start + below]:
            below += 1
        if buffer.ranks[start + below] <= rank:
            break
        _put(buffer, t, slot, buffer.items[start + below], buffer.times[start + below])
        buffer.ranks[start + slot] = buffer.ranks[start + below]
        slot = below
    _put(buffer, t, slot, item, time)
    buffer.ranks[start + slot] = rank


@kernel
def _heapify(buffer, t, rule, user_hash, item_hashes):  # type: ignore[no-untyped-def]
    """Make a heap of a history that has become full."""
    start, n = buffer.base[t], buffer.n[t]
    for slot in range(start, start + n):
        buffer.ranks[slot] = rank_hash(user_hash, item_hashes[buffer.items[slot]], rule.hashes[t])
    for slot in range(n // 2 - 1, -1, -1):
        _sift(buffer, t, slot)


@kernel
def load(buffer, u, before, rule, user_hash, item_hashes):  # type: ignore[no-untyped-def]
    """Put user u's histories, of (head, items, times), into the empty buffer."""
    head, items, times = before
    stride = buffer.n.size
    for t in range(stride):
        start = np.int64(head[u * stride + t, 0])
        n = np.int64(head[u * stride + t, 1])
        for slot in range(n):
            _put(buffer, t, slot, items[start + slot], times[start + slot])
            buffer.oldest[0] = min(buffer.oldest[0], np.int64(times[start + slot]))
        buffer.n[t] = n
        if n == buffer.base[t + 1] - buffer.base[t] and not rule.recent:
            _heapify(buffer, t, rule, user_hash, item_hashes)


@inlined
def _add(buffer, t, rule, item, time, user_hash, item_hashes):  # type: ignore[no-untyped-def]
    """An interaction with `item` under indicator t."""
    start, n = buffer.base[t], buffer.n[t]
    cap = buffer.base[t + 1] - start
    slot = np.int64(buffer.slot_of[t, item]) - 1
    if slot >= 0:
        buffer.times[start + slot] = max(buffer.times[start + slot], time)
        return
    if n < cap:
        _put(buffer, t, n, item, time)
        buffer.n[t] = n + 1
        if n + 1 == cap and not rule.recent:
            _heapify(buffer, t, rule, user_hash, item_hashes)
        return
    # Only the item that goes first can be replaced, so the rule need not see the others.
    slot = np.int64(0)
    if rule.recent:
        slot = worst(buffer.items, buffer.times, start, n, user_hash, item_hashes, rule.hashes[t], True)
    outcome, _ = admit(buffer.items, buffer.times, start + slot, 1, 1, item, time,
                       user_hash, item_hashes, rule.hashes[t], rule.recent)  # fmt: skip
    if outcome == REPLACED:
        buffer.slot_of[t, buffer.items[start + slot]] = 0
        _put(buffer, t, slot, item, time)
        if not rule.recent:
            buffer.ranks[start] = rank_hash(user_hash, item_hashes[item], rule.hashes[t])
            _sift(buffer, t, 0)


@inlined
def interact(buffer, rule, kind, item, time, watermark, user_hash, item_hashes):  # type: ignore[no-untyped-def]
    """One event of type `kind`: additions by ascending indicator, then removals.

    The primary comes first, since it may make a visitor a member; what is too old for a visitor does not enter.
    """
    for t in range(buffer.n.size):
        outside = buffer.n[0] < rule.min_primary and rule.visitor_window >= 0
        if t > 0 and outside and np.int64(time) < watermark - rule.visitor_window:
            break
        if (rule.add_mask[kind] >> t) & 1:
            _add(buffer, t, rule, item, time, user_hash, item_hashes)
    for t in range(buffer.n.size):
        if (rule.remove_mask[kind] >> t) & 1:
            slot = np.int64(buffer.slot_of[t, item]) - 1
            if slot >= 0:
                _take(buffer, t, slot)
    buffer.oldest[0] = min(buffer.oldest[0], np.int64(time))


@inlined
def _cutoff(buffer, rule, watermark):  # type: ignore[no-untyped-def]
    """Times before this have expired; the span depends on whether the user is in U."""
    span = rule.visitor_window if buffer.n[0] < rule.min_primary else rule.window
    return np.int64(watermark) - span if span >= 0 else np.int64(-1)


@inlined
def drop_expired(buffer, rule, watermark):  # type: ignore[no-untyped-def]
    """Drop what has expired at `watermark`, and once more if that made the user leave U."""
    cutoff = _cutoff(buffer, rule, watermark)
    while buffer.oldest[0] < cutoff:
        buffer.oldest[0] = _NEVER
        for t in range(buffer.n.size):
            start = buffer.base[t]
            slot = expired(buffer.times, start, buffer.n[t], cutoff)
            while slot >= 0:
                _take(buffer, t, slot)
                slot = expired(buffer.times, start, slot, cutoff)
            for slot in range(start, start + buffer.n[t]):
                buffer.oldest[0] = min(buffer.oldest[0], np.int64(buffer.times[slot]))
        cutoff = _cutoff(buffer, rule, watermark)
