"""The published rows in memory: each row as it was patched, and per feature the items whose rows have it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cco.rows import Rows
from model_sync import inverted

_CHUNK = 128  # rows patched at a time, well below a millisecond: as long as a search may have to wait
_MOST_SLOTS = 2**40


@dataclass(slots=True)
class _Lists:
    """Lists in a pool: see `inverted`. `left` and `right` are the two halves of an entry."""

    start: npt.NDArray[np.int64]  # (fields, capacity)
    length: npt.NDArray[np.uint32]
    room: npt.NDArray[np.uint32]
    left: npt.NDArray[np.uint32]  # (slots,) item or feature
    right: npt.NDArray[Any]  # uint32 or float32
    top: npt.NDArray[np.int64]  # (1,) slots in use from the beginning of the pool
    spare_shift: int

    @classmethod
    def empty(cls, fields: int, right: npt.DTypeLike, spare_shift: int) -> _Lists:
        shape = (fields, 0)
        return cls(
            np.zeros(shape, np.int64), np.zeros(shape, np.uint32), np.zeros(shape, np.uint32),
            np.empty(0, np.uint32), np.empty(0, right), np.zeros(1, np.int64), spare_shift,
        )  # fmt: skip

    def widened(self, capacity: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """start, length and room with `capacity` lists per field."""
        more = ((0, 0), (0, capacity - self.start.shape[1]))
        return np.pad(self.start, more), np.pad(self.length, more), np.pad(self.room, more)

    def compacted(self, needed: int) -> _Lists:
        """The same lists in new pools without gaps, with an eighth and `needed` slots to spare."""
        n = self.length.astype(np.int64)
        slots = int((n + (n >> self.spare_shift)).sum())
        slots += slots // 8 + needed + 16
        if slots > _MOST_SLOTS:
            raise MemoryError(f"the index would need {slots} entries; fewer items or a smaller top_k need less")
        left, right = np.empty(slots, np.uint32), np.empty(slots, self.right.dtype)
        start, room = np.empty_like(self.start), np.empty_like(self.room)
        top = inverted.compact(
            self.start, self.length, self.left, self.right, self.spare_shift, start, room, left, right
        )
        return _Lists(start, self.length, room, left, right, np.array([top], np.int64), self.spare_shift)

    def size(self) -> int:
        return sum(a.nbytes for a in (self.start, self.length, self.room, self.left, self.right))


def check_patch(rows: Rows, items: int, indicators: int, priors: int, mark: npt.NDArray[np.uint32]) -> None:
    """Raises ValueError at the first row of a patch that is not possible.

    `items`, `indicators`, `priors`: how many there are. `mark` (all 0) has an element per item and per prior.
    """
    bad = inverted.first_bad_row(
        rows.item, rows.field, rows.start, rows.feature, rows.weight, items, indicators, priors, mark
    )
    if bad >= 0:
        raise ValueError(
            f"row {bad} of the patch (item {rows.item[bad]}, field {rows.field[bad]}) is not possible: items and"
            f" features must be in the vocabulary ({items} items), fields at most {indicators},"
            " weights positive and finite, and no feature there twice"
        )


class RowStore:
    """Rows of several indicators. `capacity` is the number of items (and features) that there is room for.

    What readers look at changes only under `lock`, which the writer gives away every few rows.
    """

    def __init__(self, longest: tuple[int, ...], lock: Callable[[], AbstractContextManager[None]]) -> None:
        """`longest`: top_k per field."""
        self._longest = np.array(longest, np.int64)
        self._lock = lock
        self.capacity = 0
        self._forward = _Lists.empty(len(longest), np.uint32, 63)  # rows do not grow in place: see replace_rows
        self._inverted = _Lists.empty(len(longest), np.float32, 3)
        self._mark = np.zeros(0, np.uint32)

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` items. The caller holds the lock."""
        if capacity <= self.capacity:
            return
        for lists in (self._forward, self._inverted):
            lists.start, lists.length, lists.room = lists.widened(capacity)
        self._mark = np.zeros(capacity, np.uint32)
        self.capacity = capacity

    def check(self, rows: Rows, items: int, priors: int) -> None:
        """Raises ValueError if a row is not possible. The capacity covers `items` and `priors`."""
        check_patch(rows, items, self._longest.size, priors, self._mark)

    def replace(self, rows: Rows) -> None:
        """Replace these rows (fields beyond the indicators' are left alone). The caller does not hold the lock."""
        slots = np.empty(int(np.diff(rows.start).max(initial=0)), np.uint32)
        row, last = 0, len(rows)
        while row < last:
            with self._lock():
                to = min(last, row + _CHUNK)
                f, v = self._forward, self._inverted
                row, f_need, v_need = inverted.replace_rows(
                    row, to, rows.item, rows.field, rows.start, rows.feature, rows.weight, self._longest, self._mark,
                    f.start, f.length, f.room, f.left, f.right, f.top,
                    v.start, v.length, v.room, v.left, v.right, v.top, slots,
                )  # fmt: skip
            if f.top[0] + f_need > f.left.size:
                self._forward = self._forward.compacted(f_need)
            if v.top[0] + v_need > v.left.size:
                self._inverted = self._inverted.compacted(v_need)

    def accumulate(
        self,
        field: npt.NDArray[np.int64],
        feature: npt.NDArray[np.uint32],
        boost: npt.NDArray[np.float32],
        total: npt.NDArray[np.float64],
        touched: npt.NDArray[np.uint32],
    ) -> int:
        """Add the terms (field, feature, boost) to `total`; how many items were `touched`. See `inverted`."""
        v = self._inverted
        entries = int(v.length[field, feature].sum())
        add: Any = inverted.accumulate_many if entries > self.capacity else inverted.accumulate
        return int(add(field, feature, boost, v.start, v.length, v.left, v.right, total, touched))

    def lengths(self) -> npt.NDArray[np.uint32]:
        """(fields, capacity): entries of each row."""
        return self._forward.length

    def rows(self, item: npt.NDArray[np.uint32], field: npt.NDArray[np.uint8]) -> Rows:
        """The rows (field[r], item[r]), as they were patched."""
        f, v = self._forward, self._inverted
        start = np.zeros(item.size + 1, np.int64)
        np.cumsum(f.length[field, item], out=start[1:])
        feature, weight = np.empty(start[-1], np.uint32), np.empty(start[-1], np.float32)
        inverted.gather(item, field, f.start, f.length, f.left, f.right, v.start, v.right, start, feature, weight)
        return Rows(item, field, start, feature, weight)

    def sizes(self) -> dict[str, int]:
        """Bytes by part."""
        return {"rows": self._forward.size(), "inverted": self._inverted.size() + self._mark.nbytes}
