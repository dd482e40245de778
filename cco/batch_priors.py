"""Priors of the batch rebuild: integer counts of retained primary interactions by age."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cco.batch_fold import Histories, source_partitions
from cco.config import Config
from cco.vocabulary import Vocabulary
from llr.jit import kernel

BUCKETS = 12  # a duration is this many buckets, aligned to multiples of their width in epoch time
_SHAPES = {
    "popular": (1,) * 12,
    "recent": (1,) * 12,
    "trending": (1,) * 6 + (-1,) * 6,
    "hot": (1,) * 4 + (-2,) * 4 + (1,) * 4,
}


def count_priors(config: Config, users: Vocabulary, histories: Histories, n_items: int) -> npt.NDArray[np.int64]:
    """(priors, items) in the order of `Config.prior_names`; negative where interest fell."""
    retention = config.retention
    of_user = source_partitions(config, users)
    counts = np.zeros((len(config.prior_names), n_items), np.int64)
    for row, name in zip(counts, config.prior_names, strict=True):
        duration = getattr(config.priors, name)
        ever = duration == "all"
        _count(histories.head, histories.items, histories.times, len(config.indicator_names), retention.min_primary,
               histories.watermarks, of_user, 0 if ever else max(1, duration // BUCKETS),
               np.array(_SHAPES[name], np.int64), row)  # fmt: skip
    return counts


@kernel
def _count(head, items, times, stride, min_primary, watermarks, of_user, width, shape, out):  # type: ignore[no-untyped-def]
    """out[i] += the shape's value at the age, in buckets, of each member's interaction with i; width 0: always 1."""
    for u in range(of_user.size):
        if head[u * stride, 1] < min_primary:
            continue
        start = np.int64(head[u * stride, 0])
        for k in range(start, start + head[u * stride, 1]):
            if width == 0:
                out[items[k]] += 1
                continue
            age = watermarks[of_user[u]] // width - times[k] // width
            if age < shape.size:
                out[items[k]] += shape[age]
