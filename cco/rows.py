"""Rows of the model as columns: what a patch, the published index and a model file have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Rows:
    """Fields of items, sorted by item, then field; one field's entries sorted by weight descending, then id.

    `field` is the position in `Config.indicator_names`; the number of indicators stands for the priors,
    whose features are positions in `Config.prior_names` instead of items. An empty field (no entries)
    in a patch empties the published one.
    """

    item: npt.NDArray[np.uint32]  # (m,) item index in the vocabulary
    field: npt.NDArray[np.uint8]  # (m,)
    start: npt.NDArray[np.int64]  # (m + 1,) entries of field r: start[r] to start[r + 1] - 1
    feature: npt.NDArray[np.uint32]  # (e,) item index in the vocabulary, or prior
    weight: npt.NDArray[np.float32] | npt.NDArray[np.float64]  # (e,) float32: as the index keeps it; float64: exact

    def __len__(self) -> int:
        return int(self.item.size)

    def select(self, at: npt.NDArray[np.int64]) -> Rows:
        """The fields at positions `at`, in that order."""
        lengths = np.diff(self.start)[at]
        start = np.concatenate([[0], np.cumsum(lengths)])
        entries = np.repeat(self.start[at] - start[:-1], lengths) + np.arange(start[-1])
        return Rows(self.item[at], self.field[at], start, self.feature[entries], self.weight[entries])


def join_rows(parts: Sequence[Rows]) -> Rows:
    """All fields of `parts`, which have none in common, sorted by item, then field."""
    if not parts:
        none = np.empty(0, np.uint32)
        return Rows(none, np.empty(0, np.uint8), np.zeros(1, np.int64), none, np.empty(0, np.float32))
    item = np.concatenate([part.item for part in parts])
    field = np.concatenate([part.field for part in parts])
    lengths = np.concatenate([np.diff(part.start) for part in parts])
    joined = Rows(
        item,
        field,
        np.concatenate([[0], np.cumsum(lengths)]),
        np.concatenate([part.feature for part in parts]),
        np.concatenate([part.weight for part in parts]),
    )
    return joined.select(np.lexsort((field, item)))


@dataclass(frozen=True, slots=True)
class Patches:
    """Fields that changed, and the log position that they stand for."""

    position: tuple[int, ...]  # per source partition: events of its log that are applied
    rows: Rows  # float32 weights
    again: npt.NDArray[np.bool_] | None = None  # (m,) rows that were sent before as they are; None: none was
