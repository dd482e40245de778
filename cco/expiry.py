"""Which user expires next: a binary heap of users by the watermark at which they are to be looked at.

`due[u]` is a lower bound of the watermark at which something of user u expires; a user stands in the
heap at most once. `place[u]` is 1 + the position in the heap, 0 when absent.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cco.arrays import wider
from llr.jit import kernel


class Expiry(NamedTuple):
    """The heap's arrays; kernels change them in place."""

    due: npt.NDArray[np.int64]  # (users,)
    place: npt.NDArray[np.uint32]  # (users,)
    heap: npt.NDArray[np.uint32]  # (users,)
    size: npt.NDArray[np.int64]  # (1,)


def empty(users: int) -> Expiry:
    """Nobody is due."""
    return Expiry(
        np.zeros(users, np.int64), np.zeros(users, np.uint32), np.zeros(users, np.uint32), np.zeros(1, np.int64)
    )


def with_users(expiry: Expiry, users: int) -> Expiry:
    """The same heap with room for `users` users."""
    if users <= expiry.due.size:
        return expiry
    return Expiry(wider(expiry.due, users), wider(expiry.place, users), wider(expiry.heap, users), expiry.size)


@kernel
def _put(expiry: Any, at: Any, user: Any) -> Any:
    expiry.heap[at] = user
    expiry.place[user] = np.uint32(at + 1)


@kernel
def _up(expiry: Any, at: Any, user: Any) -> Any:
    due = expiry.due[user]
    while at > 0:
        above = (at - 1) >> 1
        other = expiry.heap[above]
        if expiry.due[other] <= due:
            break
        _put(expiry, at, other)
        at = above
    _put(expiry, at, user)


@kernel
def _down(expiry: Any, at: Any, user: Any) -> Any:
    due = expiry.due[user]
    size = expiry.size[0]
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        if below + 1 < size and expiry.due[expiry.heap[below + 1]] < expiry.due[expiry.heap[below]]:
            below += 1
        other = expiry.heap[below]
        if expiry.due[other] >= due:
            break
        _put(expiry, at, other)
        at = below
    _put(expiry, at, user)


@kernel
def schedule(expiry: Any, user: Any, due: Any) -> Any:
    """Look at `user` when the watermark has passed `due`, in place of what was said before."""
    expiry.due[user] = due
    at = np.int64(expiry.place[user]) - 1
    if at < 0:
        at = expiry.size[0]
        expiry.size[0] = at + 1
        expiry.heap[at] = user
    _up(expiry, at, user)
    _down(expiry, np.int64(expiry.place[user]) - 1, user)


@kernel
def cancel(expiry: Any, user: Any) -> Any:
    """Never look at `user`."""
    at = np.int64(expiry.place[user]) - 1
    if at < 0:
        return
    expiry.place[user] = np.uint32(0)
    last = expiry.size[0] - 1
    expiry.size[0] = last
    if at < last:
        mover = expiry.heap[last]
        _up(expiry, at, mover)
        _down(expiry, np.int64(expiry.place[mover]) - 1, mover)


@kernel
def next_due(expiry: Any, watermark: Any) -> Any:
    """The user who is due at `watermark` (the due time is before it), or -1."""
    if expiry.size[0] == 0:
        return -1
    user = np.int64(expiry.heap[0])
    return user if expiry.due[user] < watermark else -1
