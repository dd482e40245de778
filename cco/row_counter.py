"""Rows counted from an item stage's adjacency with the kernels of `llr`, in one thread or in several."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cco.config import Config
from cco.item_machine import ItemState
from cco.lists import Lists
from cco.rows import Rows, join_rows
from cco.vocabulary import Vocabulary
from llr.kernels import count_cell, seal_rows, top_rows
from llr.weights import truncate
from llr.xlogx import table

EMPTY_FIELD = np.uint64(0)  # fingerprint of a field without entries
UNKNOWN_FIELD = np.uint64(2**64 - 1)  # stands for a fingerprint of what is not known
Indices = npt.NDArray[np.int64]

CHUNK = 64  # the fewest rows that are worth handing to another thread


class MapLike(Protocol):
    """What runs a function over chunks, in one thread or in several: `map`, or an executor's."""

    def __call__(self, function: Callable[[Any], Any], chunks: Iterable[Any], /) -> Iterable[Any]:
        """As the built-in map."""
        ...


@dataclass(frozen=True, slots=True)
class Counted:
    """Fields as the index would keep them (float32 weights), and a fingerprint of each."""

    rows: Rows
    fingerprints: npt.NDArray[np.uint64]  # (m,)


class RowCounter:
    """Counts rows. Scratch memory is 8 bytes per item of the vocabulary and thread."""

    def __init__(self, config: Config, items: Vocabulary, map_chunks: MapLike) -> None:
        indicators = [config.indicators[name] for name in config.indicator_names]
        self._top_k = [indicator.top_k for indicator in indicators]
        self._min_llr = [indicator.min_llr for indicator in indicators]
        self._anti = config.anti_correlations
        self._items, self._map = items, map_chunks
        self._scratch: deque[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]] = deque()

    def count(
        self, state: ItemState, kind: int, items: Indices, column_counts: npt.NDArray[np.int32], members: int
    ) -> Counted:
        """Field `kind` of `items` (sorted): counted, scored, cut to the top k, weights as the index keeps them."""
        id_bytes, id_offsets = self._items.bytes_, self._items.offsets

        def run(chunk: npt.NDArray[np.uint32]) -> Counted:
            feature, llr, length = self._top(state, kind, chunk, column_counts, members, id_bytes, id_offsets)
            weight = np.empty(llr.shape, np.float32)
            fingerprints = seal_rows(feature, llr, length, id_bytes, id_offsets, weight)
            return Counted(_as_rows(chunk, kind, feature, weight, length), fingerprints)

        parts: list[Counted] = list(self._map(run, _chunks(items)))
        if len(parts) == 1:
            return parts[0]
        return Counted(join_rows([part.rows for part in parts]), np.concatenate([part.fingerprints for part in parts]))

    def exact(
        self, state: ItemState, kind: int, items: Indices, column_counts: npt.NDArray[np.int32], members: int
    ) -> Rows:
        """The same with full doubles, ordered by them."""
        id_bytes, id_offsets = self._items.bytes_, self._items.offsets

        def run(chunk: npt.NDArray[np.uint32]) -> Rows:
            feature, llr, length = self._top(state, kind, chunk, column_counts, members, id_bytes, id_offsets)
            return _as_rows(chunk, kind, feature, llr, length)

        return join_rows(list(self._map(run, _chunks(items))))

    def _top(
        self,
        state: ItemState,
        kind: int,
        chunk: npt.NDArray[np.uint32],
        column_counts: npt.NDArray[np.int32],
        members: int,
        id_bytes: npt.NDArray[np.uint8],
        id_offsets: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        """(feature, LLR, length) of a chunk of rows, in exact order; runs in any thread."""
        histories, stride, offset = self._histories(state, kind)
        top_k = self._top_k[kind]
        feature = np.empty((chunk.size, top_k), np.uint32)
        llr = np.empty((chunk.size, top_k), np.float64)
        length = np.empty(chunk.size, np.int32)
        cells, touched = self._take_scratch()
        top_rows(
            chunk, state.holders.head, state.holders.data, histories.head, stride, offset, histories.data,
            column_counts, members, kind == 0, top_k, self._min_llr[kind], self._anti,
            id_bytes, id_offsets, table(), cells, touched, feature, llr, length,
        )  # fmt: skip
        self._scratch.append((cells, touched))
        return feature, llr, length

    def counts(
        self,
        state: ItemState,
        kind: int,
        item: int,
        feature: int,
        column_counts: npt.NDArray[np.int32],
        members: int,
    ) -> tuple[int, int, int, int]:
        """(k, n_A(item), n_t(feature), N) behind the LLR of one entry."""
        histories, stride, offset = self._histories(state, kind)
        k = count_cell(
            item, feature, state.holders.head, state.holders.data, histories.head, stride, offset, histories.data
        )
        return int(k), int(state.holders.head[item, 1]), int(column_counts[feature]), members

    def _histories(self, state: ItemState, kind: int) -> tuple[Lists, int, int]:
        """Where the histories under an indicator are: the lists, and stride and offset of a user's key."""
        if kind == 0:
            return state.primary, 1, 0
        return state.others, len(self._top_k) - 1, kind - 1

    def _take_scratch(self) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        try:
            cells, touched = self._scratch.pop()
        except IndexError:  # another thread has it, or there is none yet
            cells = touched = np.empty(0, np.uint32)
        if cells.size < len(self._items):
            size = max(1024, len(self._items) * 5 // 4)
            return np.zeros(size, np.uint32), np.empty(size + 1, np.uint32)
        return cells, touched


def _chunks(items: Indices) -> list[npt.NDArray[np.uint32]]:
    size = max(CHUNK, -(-items.size // 16))
    return [items[at : at + size].astype(np.uint32) for at in range(0, items.size, size)]


def _as_rows(
    items: npt.NDArray[np.uint32],
    kind: int,
    feature: npt.NDArray[np.uint32],
    weight: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    length: npt.NDArray[np.int32],
) -> Rows:
    filled = np.arange(feature.shape[1]) < length[:, None]
    start = np.concatenate([[0], np.cumsum(length, dtype=np.int64)])
    return Rows(items, np.full(items.size, kind, np.uint8), start, feature[filled], weight[filled])


def prior_fields(items: Indices, source_priors: npt.NDArray[np.int32], field: int, exact: bool = False) -> Counted:
    """The priors of `items`: sums over the sources, those above zero, largest first; truncated unless `exact`."""
    total = source_priors[:, :, items].sum(axis=0, dtype=np.int64).T  # (n, priors)
    value = np.maximum(total, 0).astype(np.float64)
    weight = value if exact else truncate(value)
    order = np.argsort(-weight, axis=1, kind="stable")
    by_weight = np.take_along_axis(weight, order, axis=1)
    filled = by_weight > 0
    start = np.concatenate([[0], np.cumsum(filled.sum(axis=1), dtype=np.int64)])
    rows = Rows(
        items.astype(np.uint32),
        np.full(items.size, field, np.uint8),
        start,
        order.astype(np.uint32)[filled],
        by_weight[filled],
    )
    # priors are few and small: 16 bits of each weight, mixed in their fixed order, identify the field
    codes = (truncate(value).view(np.uint32) >> np.uint32(15)).astype(np.uint64)
    fingerprints = np.zeros(items.size, np.uint64)
    for prior in range(codes.shape[1]):
        fingerprints = fingerprints << np.uint64(16) | codes[:, prior]
    return Counted(rows, fingerprints)
