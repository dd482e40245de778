"""Priors kept by the stream: per primary item, its interactions by bucket of time, and the value of each prior.

A duration is BUCKETS buckets, aligned to multiples of their width in epoch time; the newest is the one
of the watermark. A bucket's slot in the ring is its number modulo BUCKETS. A width of 0 stands for all
time, which the column counts of the primary know already: such a prior has no ring.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cco.config import Config
from llr.jit import inlined, kernel
from llr.prefetch import prefetch

_AHEAD = 8  # items for which memory is asked before they are looked at
BUCKETS = 12  # halves and thirds of a duration are whole numbers of them
_SHAPES = {
    "trending": [1] * 6 + [-1] * 6,  # the newer half minus the older
    "hot": [1] * 4 + [-2] * 4 + [1] * 4,  # second difference over thirds
}

Rings = npt.NDArray[np.int32]  # (priors with a width, items, BUCKETS)


def widths(config: Config) -> npt.NDArray[np.int64]:
    """(priors,) seconds of a bucket; 0 for all time."""
    spans = [getattr(config.priors, name) for name in config.prior_names]
    return np.array([0 if span == "all" else max(1, span // BUCKETS) for span in spans], np.int64)


def shapes(config: Config) -> npt.NDArray[np.int32]:
    """(priors, BUCKETS): what an interaction counts by its age in buckets."""
    return np.array([_SHAPES.get(name, [1] * BUCKETS) for name in config.prior_names], np.int32).reshape(-1, BUCKETS)


def no_rings(of_widths: npt.NDArray[np.int64]) -> Rings:
    """Rings for no items yet."""
    return np.zeros((int(np.count_nonzero(of_widths)), 0, BUCKETS), np.int32)


def with_items(rings: Rings, items: int) -> Rings:
    """The same rings with room for `items` items."""
    new = np.zeros((rings.shape[0], items, BUCKETS), np.int32)
    new[:, : rings.shape[1]] = rings
    return new


@inlined
def count_in(rings: Any, of_widths: Any, watermark: Any, item: Any, time: Any, sign: Any) -> None:
    """A member's interaction of that time comes (+1) or goes (-1)."""
    ring = 0
    for p in range(of_widths.size):
        if of_widths[p] > 0:
            bucket = np.int64(time) // of_widths[p]
            if watermark // of_widths[p] - bucket < BUCKETS:
                rings[ring, item, bucket % BUCKETS] += np.int32(sign)
            ring += 1


@kernel
def open_buckets(rings: Any, of_widths: Any, before: Any, watermark: Any) -> Any:
    """The watermark moves: slots that now stand for new buckets begin at zero. Returns whether there are any."""
    moved, ring = False, 0
    for p in range(of_widths.size):
        if of_widths[p] > 0:
            old, new = before // of_widths[p], watermark // of_widths[p]
            for bucket in range(max(old + 1, new - BUCKETS + 1), new + 1):
                rings[ring, :, bucket % BUCKETS] = 0
                moved = True
            ring += 1
    return moved


@kernel
def take_values(
    rings: Any, of_widths: Any, of_shapes: Any, watermark: Any, counts: Any, items: Any,
    of_prior: Any, of_item: Any, values: Any,
) -> None:  # fmt: skip
    """Fill the three last, (items * priors,) each, with prior, item and value, item by item.

    `counts` (items,) are those of all time.
    """
    n, flat, width = 0, rings.reshape(-1), np.uint64(rings.shape[1])
    for k in range(items.size):
        ahead = np.uint64(items[min(k + _AHEAD, items.size - 1)])
        for of_ring in range(np.uint64(rings.shape[0])):
            begin = (of_ring * width + ahead) * np.uint64(BUCKETS)
            prefetch(flat, begin)
            prefetch(flat, begin + np.uint64(BUCKETS - 1))
        item, ring = np.int64(items[k]), 0
        for p in range(of_widths.size):
            value = np.int64(counts[item])
            if of_widths[p] > 0:
                slot, value = watermark // of_widths[p] % BUCKETS, np.int64(0)
                for age in range(BUCKETS):
                    value += np.int64(of_shapes[p, age]) * rings[ring, item, slot]
                    slot = slot - 1 if slot > 0 else BUCKETS - 1
                ring += 1
            of_prior[n], of_item[n], values[n] = np.uint8(p), np.uint32(item), np.int32(value)
            n += 1


@kernel
def drop_silent(rings: Any, items: Any, aging: Any) -> None:
    """Items without any interaction in their rings do not age: `aging` (items,) becomes 0."""
    for k in range(items.size):
        item, any_left = np.int64(items[k]), False
        for ring in range(rings.shape[0]):
            for slot in range(BUCKETS):
                any_left |= rings[ring, item, slot] != 0
        if not any_left:
            aging[item] = 0
