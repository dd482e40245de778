"""What orders the second tier of hits where no prior does: a rank that the shop gives, or chance."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cco.hashing import fnv_hashes

RANK = "rank"
RANDOM = "random"
BACKFILLS = (RANK, RANDOM)  # besides the priors
MAX_RANK = 1e18

_SHIFT = np.uint64(40)  # leaves 24 bits, as many as a float32 tells apart between 0 and 1


def rank_value(value: object) -> float:
    """The float32 that a rank counts as: 0 where it is no number or negative; at most MAX_RANK."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        return 0.0
    return float(np.float32(min(value, MAX_RANK)))


def shuffle_values(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.float32]:
    """Numbers from 0 to below 1, exact in float32, of hashes of ids (`cco.hashing.fnv_hashes`)."""
    return (hashes >> _SHIFT).astype(np.float32) * np.float32(2.0**-24)


def shuffled_from(values: npt.NDArray[np.float32], begin: float) -> npt.NDArray[np.float32]:
    """The same numbers for an order that begins at `begin` (0 to 1): those below it are one more (float32)."""
    return values + (values < np.float32(begin))


def shuffle_of(item: str) -> float:
    """The number from 0 to below 1 that belongs to an id for ever."""
    data = np.frombuffer(item.encode(), np.uint8)
    found = np.empty(1, np.uint64)
    fnv_hashes(data, np.array([0, data.size], np.int64), 0, found)
    return float(shuffle_values(found)[0])
