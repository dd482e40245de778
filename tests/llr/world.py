"""Worlds for the row kernel: histories laid out as `top_rows` takes them, and two ways to say what it must give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from llr.kernels import top_rows
from llr.reference import epsilon, top_row
from llr.xlogx import table

Array = npt.NDArray[Any]
Row = list[tuple[int, float]]


def lists(parts: Sequence[Sequence[int]], gap: int = 0) -> tuple[Array, Array]:
    """(head, data) of some lists, with `gap` slots of rubbish between them."""
    head = np.zeros((len(parts), 2), np.uint32)
    data: list[int] = []
    for n, part in enumerate(parts):
        data += [7] * gap
        head[n] = len(data), len(part)
        data += part
    return head, np.array([*data, 0], np.uint32)


@dataclass
class World:
    """Who has what under the primary, and under one more indicator that shares the item vocabulary."""

    ids: list[str]
    primary: list[list[int]]  # per user
    other: list[list[int]]
    more_users: int = 0  # of N, without any history here
    column_counts: Array = field(init=False)
    n: int = field(init=False)

    def __post_init__(self) -> None:
        self.n = len(self.primary) + self.more_users
        self.column_counts = np.zeros((2, len(self.ids)), np.int32)
        for t, histories in enumerate((self.primary, self.other)):
            for history in histories:
                self.column_counts[t, history] += 1
        holders: list[list[int]] = [[] for _ in self.ids]
        for user, history in enumerate(self.primary):
            for item in history:
                holders[item].append(user)
        self.users_head, self.users_data = lists(holders, gap=1)
        pairs = [h for both in zip(self.primary, self.other, strict=True) for h in both]
        self.head, self.data = lists(pairs, gap=2)
        encoded = [name.encode() for name in self.ids]
        self.id_bytes = np.frombuffer(b"".join(encoded), np.uint8).copy()
        self.id_offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
        self.cells = np.zeros(len(self.ids), np.uint32)
        self.touched = np.zeros(len(self.ids) + 1, np.uint32)

    def rows(self, kind: int, top_k: int, min_llr: float = 0.0, anti: bool = False, only: Any = None) -> list[Row]:
        """What the kernel gives for every item, or for `only` those; kind 0 is the primary."""
        feature, llr, length = self.arrays(kind, top_k, min_llr, anti, only)
        return [
            list(zip(feature[r, :n].tolist(), llr[r, :n].tolist(), strict=True)) for r, n in enumerate(length.tolist())
        ]

    def arrays(
        self, kind: int, top_k: int, min_llr: float = 0.0, anti: bool = False, only: Any = None
    ) -> tuple[Array, Array, Array]:
        """(feature, llr, length) as the kernel leaves them."""
        rows = np.arange(len(self.ids), dtype=np.uint32) if only is None else np.array(only, np.uint32)
        feature = np.full((rows.size, top_k), 0xFFFFFFFF, np.uint32)
        llr = np.full((rows.size, top_k), np.nan)
        length = np.full(rows.size, -7, np.int32)
        top_rows(
            rows, self.users_head, self.users_data, self.head, 2, kind, self.data, self.column_counts[kind],
            self.n, kind == 0, top_k, min_llr, anti, self.id_bytes, self.id_offsets, table(), self.cells,
            self.touched, feature, llr, length,
        )  # fmt: skip
        assert not self.cells.any(), "the kernel must leave all counters at zero"
        return feature, llr, length

    def expected(self, kind: int, item: int, top_k: int, min_llr: float = 0.0, anti: bool = False) -> Row:
        """The row by `llr.reference`, counted over sets."""
        columns: dict[str, tuple[int, int]] = {}
        index = {name: j for j, name in enumerate(self.ids)}
        histories = (self.primary, self.other)[kind]
        for j, name in enumerate(self.ids):
            k = sum(1 for a, h in zip(self.primary, histories, strict=True) if item in a and j in h)
            columns[name] = k, int(self.column_counts[kind, j])
        row = top_row(
            columns,
            int(self.column_counts[0, item]),
            self.n,
            top_k=top_k,
            min_llr=min_llr,
            anti_correlations=anti,
            own=self.ids[item] if kind == 0 else None,
        )
        return [(index[name], value) for name, value in row]


def dense_rows(world: World, kind: int, top_k: int, min_llr: float = 0.0, anti: bool = False) -> list[Row]:
    """All rows at once from dense matrices, nothing pruned: the same sums in the same order, in numpy."""
    items, n, xl = len(world.ids), world.n, table()
    a = np.zeros((len(world.primary), items), np.int64)
    b = np.zeros_like(a)
    for user, (left, right) in enumerate(zip(world.primary, (world.primary, world.other)[kind], strict=True)):
        a[user, left] = 1
        b[user, right] = 1
    k, n_row, n_col = a.T @ b, a.sum(axis=0)[:, None], world.column_counts[kind].astype(np.int64)[None, :]
    both, neither = xl[k] + xl[n_row - k], xl[n_col - k] + xl[n - n_row - n_col + k]
    value = 2.0 * (((both + neither) - (xl[n_col] + xl[n - n_col])) + (xl[n] - (xl[n_row] + xl[n - n_row])))
    kept = (k > 0) & (value > epsilon(n)) & (value >= min_llr) & (anti | (k * n >= n_row * n_col))
    if kind == 0:
        np.fill_diagonal(kept, False)
    rank = np.empty(items, np.int64)
    rank[sorted(range(items), key=lambda j: world.ids[j].encode())] = np.arange(items)
    found: list[Row] = []
    for item in range(items):
        j = np.flatnonzero(kept[item])
        order = j[np.lexsort((rank[j], -value[item, j]))][:top_k]
        found.append(list(zip(order.tolist(), value[item, order].tolist(), strict=True)))
    return found


def random_world(seed: int, users: int, items: int, mean: float, ids: Sequence[str] | None = None) -> World:
    """Items of a Zipf-like popularity, some bought together."""
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, items + 1) ** 0.8
    popularity /= popularity.sum()

    def histories() -> list[list[int]]:
        made = []
        for size in rng.poisson(mean, users):
            start = rng.integers(items)
            near = (start + rng.integers(0, 12, size // 3)) % items
            far = rng.choice(items, size - size // 3, p=popularity)
            made.append(list(dict.fromkeys(np.concatenate([near, far]).tolist())))
        return made

    return World(list(ids or (f"item-{n}" for n in range(items))), histories(), histories())
