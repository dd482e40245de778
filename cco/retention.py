"""The retention rule of one user and one indicator: what is admitted, what goes, what has expired.

The functions here decide and change nothing (`settle` apart), on slices of parallel arrays
`items` (uint32 item indices) and `times` (uint32 epoch seconds): a history is the `n` slots from
`start`, as a set; its order means nothing. They are the one thing that the user stage and the batch
rebuild share, besides the row kernel.

`uniform` keeps the `cap` smallest hashes (bottom-k sampling, Cohen and Kaplan 2007): a function of
the set of items alone. `recent` keeps the latest by time, ties by the smaller hash.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from llr.jit import inlined, kernel

KEPT, INSERTED, REPLACED, REFUSED = 0, 1, 2, 3

_BLOCK = np.uint64(32)

NEVER = np.int64(-1)  # a window of "none"


def indicator_hash(name: str, seed: int) -> np.uint64:
    """The part of the sampling hash that an indicator and the configured seed contribute."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


@kernel
def rank_hash(user_hash: np.uint64, item_hash: np.uint64, of_indicator: np.uint64) -> np.uint64:
    """Stable 64-bit hash of (user, item, indicator, seed); finaliser of SplitMix64 (Steele et al. 2014)."""
    x = (user_hash ^ of_indicator) + item_hash * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inlined
def find(items: Any, start: Any, n: Any, item: Any) -> Any:
    """Slot (0 to n - 1) of `item`, or -1."""
    # blocks without an early end, and indices that cannot be negative, are compared many at a time
    wanted, first, end, at = np.uint32(item), np.uint64(start), np.uint64(n), np.uint64(0)
    while at + _BLOCK <= end:
        found = np.uint32(0)
        for k in range(32):
            found |= np.uint32(items[first + at + np.uint64(k)] == wanted)
        if found != 0:
            break
        at += _BLOCK
    while at < end:
        if items[first + at] == wanted:
            return np.int64(at)
        at += np.uint64(1)
    return np.int64(-1)


@kernel
def worst(
    items: Any, times: Any, start: Any, n: Any, user_hash: Any, item_hashes: Any, of_indicator: Any, recent: Any
) -> Any:
    """Slot of the item that goes first: the largest hash, or with `recent` the oldest, then the largest hash."""
    at = 0
    at_time = times[start]
    at_hash = rank_hash(user_hash, item_hashes[items[start]], of_indicator)
    for k in range(1, n):
        time = times[start + k]
        if recent:
            if time > at_time:
                continue
            h = rank_hash(user_hash, item_hashes[items[start + k]], of_indicator)
            if time == at_time and h <= at_hash:
                continue
        else:
            h = rank_hash(user_hash, item_hashes[items[start + k]], of_indicator)
            if h <= at_hash:
                continue
        at, at_time, at_hash = k, time, h
    return at


@inlined
def admit(
    items: Any,
    times: Any,
    start: Any,
    n: Any,
    cap: Any,
    item: Any,
    time: Any,
    user_hash: Any,
    item_hashes: Any,
    of_indicator: Any,
    recent: Any,
) -> Any:
    """(outcome, slot) of an interaction with `item` at `time`; the caller carries it out.

    KEPT: it is there, at `slot`; its time becomes the later of the two. INSERTED: it takes the free
    slot `n`. REPLACED: it takes `slot`, whose item goes. REFUSED: it is sampled out.
    The caller runs `settle` after INSERTED and REPLACED.
    """
    slot = find(items, start, n, item)
    if slot >= 0:
        return KEPT, slot
    if n < cap:
        return INSERTED, n
    slot = 0  # `settle` keeps the worst of a full uniform history there
    if recent:
        slot = worst(items, times, start, n, user_hash, item_hashes, of_indicator, recent)
        if time < times[start + slot]:
            return REFUSED, slot
        if time > times[start + slot]:
            return REPLACED, slot
    h = rank_hash(user_hash, item_hashes[item], of_indicator)
    if h < rank_hash(user_hash, item_hashes[items[start + slot]], of_indicator):
        return REPLACED, slot
    return REFUSED, slot


@inlined
def settle(
    items: Any,
    times: Any,
    start: Any,
    n: Any,
    cap: Any,
    user_hash: Any,
    item_hashes: Any,
    of_indicator: Any,
    recent: Any,
) -> Any:
    """After a change: in a full uniform history the item that goes first moves to slot 0."""
    if recent or n < cap:
        return
    slot = worst(items, times, start, n, user_hash, item_hashes, of_indicator, recent)
    items[start], items[start + slot] = items[start + slot], items[start]
    times[start], times[start + slot] = times[start + slot], times[start]


@kernel
def expired(times: Any, start: Any, n: Any, cutoff: Any) -> Any:
    """The last slot whose time is before `cutoff` (watermark minus window, int64 seconds), or -1."""
    for k in range(n - 1, -1, -1):
        if np.int64(times[start + k]) < cutoff:
            return k
    return -1
