"""Compiled kernels of the row: count it from the adjacency, score it, select its top k; seal it for the index.

Arrays are C-contiguous. numba compiles anew for each combination of writeable and read-only arguments, so
callers pass `table` read-only, as `llr.xlogx.table()` is, and all else writeable. Histories are sets: a user
counts once for a cell. Starts and indices are uint32 and are widened to 64 bits before any arithmetic.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llr.jit import inlined, kernel
from llr.prefetch import prefetch
from llr.selection import CHUNK, COUNTS, FIRST_CHUNK, keep_best, learn, reset, score, sort_best, sort_by_id, survivors
from llr.xlogx import x_log_x

EMPTY = np.uint64(0)  # fingerprint of a row without entries; no other row has it
_AHEAD = np.uint64(8)  # histories are asked for this many users ahead, their heads twice as many
_LINE = np.uint64(16)  # uint32 in a cache line
_BYTES, _HALVES = 256, 65536  # counts are below: most rows fit counters that stay in the fastest cache
_MANY = 8  # all cells are looked at where a row has at least one user for so many items
_ULP = 2.0**-52
_KEPT_BITS = np.uint32(0xFFFF8000)  # as `llr.weights.truncate`
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@inlined
def _ask_ahead(p: Any, final: Any, users_data: Any, heads: Any, stride: Any, offset: Any, data: Any) -> None:
    """Ask for the histories of the users some places on, up to place `final`: first the head, then every line."""
    two = np.uint64(2)
    far = np.uint64(users_data[min(p + _AHEAD + _AHEAD, final)]) * stride + offset
    prefetch(heads, far * two)
    near = np.uint64(users_data[min(p + _AHEAD, final)]) * stride + offset
    start = np.uint64(heads[near * two])
    for line in range(start, start + np.uint64(heads[near * two + np.uint64(1)]), _LINE):
        prefetch(data, line)


@kernel
def _count(
    first: Any, last: Any, users_data: Any, head: Any, stride: Any, offset: Any, data: Any, cells: Any, touched: Any
) -> Any:
    """Add the histories of users_data[first:last] to `cells`; the cells that became non-zero, in order.

    A first touch is a coin flip, which a branch would lose: the slot is written every time and kept if
    the cell was zero (2.5 times faster).
    """
    heads = head.reshape(-1)
    one = cells.dtype.type(1)
    two = np.uint64(2)
    final = last - np.uint64(1)
    n = np.uint64(0)
    for p in range(first, last):
        _ask_ahead(p, final, users_data, heads, stride, offset, data)
        at = (np.uint64(users_data[p]) * stride + offset) * two
        start = np.uint64(heads[at])
        for q in range(start, start + np.uint64(heads[at + np.uint64(1)])):
            j = data[q]
            k = cells[j]
            touched[n] = j
            n += np.uint64(k == 0)
            cells[j] = k + one
    return np.int64(n)


@kernel
def _count_many(
    first: Any, last: Any, users_data: Any, head: Any, stride: Any, offset: Any, data: Any, items: Any, cells: Any,
    touched: Any,
) -> Any:  # fmt: skip
    """As `_count`, for a row with so many users that looking at all `items` cells costs little beside them.

    No step asks whether it is the first for its cell, and within a block of 65,535 users counts of 2 bytes do,
    which fit a faster cache than 4: a sixth less time. They are kept in `touched`, which is not needed yet.
    """
    heads = head.reshape(-1)
    halves = touched.view(np.uint16)
    one, none = np.uint16(1), np.uint16(0)
    two = np.uint64(2)
    final = last - np.uint64(1)
    every = np.uint64(items)
    for j in range(every):
        halves[j] = none
    for begin in range(first, last, np.uint64(_HALVES - 1)):
        for p in range(begin, min(last, begin + np.uint64(_HALVES - 1))):
            _ask_ahead(p, final, users_data, heads, stride, offset, data)
            at = (np.uint64(users_data[p]) * stride + offset) * two
            start = np.uint64(heads[at])
            for q in range(start, start + np.uint64(heads[at + np.uint64(1)])):
                halves[data[q]] += one
        for j in range(every):
            cells[j] += np.uint32(halves[j])
            halves[j] = none
    n = np.uint64(0)
    for j in range(every):
        touched[n] = np.uint32(j)
        n += np.uint64(cells[j] != 0)
    return np.int64(n)


def _scratch_words(top_k: int) -> int:
    """uint64 words that `_carve` divides; kernels do not allocate."""
    return 5 * (2 * top_k + 2 * CHUNK) + COUNTS // 2 + CHUNK + 2


@inlined
def _carve(scratch: Any, top_k: Any) -> Any:
    """Scratch arrays of one row: best, spare (float64), their features (uint32), keys, id_keys (uint64), of the
    capacity of the list of the best; rejected (uint32[COUNTS]); features, counts (uint32[CHUNK + 2])."""
    size = 2 * top_k + 2 * CHUNK
    best = scratch[:size].view(np.float64)
    spare = scratch[size : 2 * size].view(np.float64)
    keys = scratch[2 * size : 3 * size]
    id_keys = scratch[3 * size : 4 * size]
    words = scratch[4 * size :].view(np.uint32)
    rejected = words[2 * size : 2 * size + COUNTS]
    rest = words[2 * size + COUNTS :]
    return (best, spare, words[:size], words[size : 2 * size], keys, id_keys,
            rejected, rest[: CHUNK + 2], rest[CHUNK + 2 : 2 * CHUNK + 4])  # fmt: skip


@kernel
def _top_row(
    cells: Any,
    touched: Any,
    n_touched: Any,
    n_row: Any,
    n: Any,
    column_counts: Any,
    top_k: Any,
    min_llr: Any,
    anti: Any,
    id_bytes: Any,
    id_offsets: Any,
    table: Any,
    scratch: Any,
    out_feature: Any,
    out_llr: Any,
) -> Any:
    """Select from the counted cells of one row, zero them all, write the row; its length, or -1 (see `score`)."""
    best, spare, best_feature, spare_feature, keys, id_keys, rejected, features, counts = _carve(scratch, top_k)
    spare_keys = spare.view(np.uint64)
    bytes_, halves = cells.view(np.uint8), cells.view(np.uint16)
    epsilon = 16 * _ULP * x_log_x(n, table)
    slack = 64 * _ULP * x_log_x(n, table)
    row_term = x_log_x(n, table) - (x_log_x(n_row, table) + x_log_x(n - n_row, table))
    bar = max(min_llr, epsilon)
    lowest = 1
    reset(rejected, n_row, n, anti)
    if not anti:
        lowest = learn(rejected, lowest, bar, slack, n_row, n, row_term, table)
    n_best, first, step = 0, 0, FIRST_CHUNK
    full = top_k + (top_k >> 1)
    while first < n_touched:
        last = min(n_touched, first + step)
        if n_row < _BYTES:
            n_features = survivors(touched, first, last, bytes_, column_counts, rejected, features, counts)
        elif n_row < _HALVES:
            n_features = survivors(touched, first, last, halves, column_counts, rejected, features, counts)
        else:
            n_features = survivors(touched, first, last, cells, column_counts, rejected, features, counts)
        if n_best >= 0:  # else the rest is only zeroed
            n_best = score(features, counts, n_features, column_counts, n_row, n, row_term, bar, slack, epsilon, anti,
                           rejected, table, best, best_feature, n_best)  # fmt: skip
        if n_best > full:
            n_best, bar = keep_best(best, best_feature, n_best, top_k, spare)
            if n_best > top_k + CHUNK // 2:  # too many ties to carry along
                sort_best(best, best_feature, n_best, keys, id_keys, spare_keys, spare_feature, id_bytes, id_offsets)
                n_best = top_k
            full = n_best + (top_k >> 1)
            if not anti:
                lowest = learn(rejected, lowest, bar, slack, n_row, n, row_term, table)
        first = last
        step = min(2 * step, CHUNK)
    if n_best > top_k:
        n_best, bar = keep_best(best, best_feature, n_best, top_k, spare)
    sort_best(best, best_feature, n_best, keys, id_keys, spare_keys, spare_feature, id_bytes, id_offsets)
    length = min(n_best, top_k)
    for x in range(length):
        out_feature[x] = best_feature[x]
        out_llr[x] = best[x]
    return length


@kernel
def _top_rows(
    rows: Any,
    users_head: Any,
    users_data: Any,
    head: Any,
    stride: Any,
    offset: Any,
    data: Any,
    column_counts: Any,
    n: Any,
    own: Any,
    top_k: Any,
    min_llr: Any,
    anti: Any,
    id_bytes: Any,
    id_offsets: Any,
    table: Any,
    cells: Any,
    touched: Any,
    scratch: Any,
    out_feature: Any,
    out_llr: Any,
    out_length: Any,
) -> Any:
    bytes_, halves = cells.view(np.uint8), cells.view(np.uint16)
    skip, at = np.uint64(stride), np.uint64(offset)
    items = id_offsets.size - 1
    for r in range(rows.size):
        i = rows[r]
        first, n_row = np.uint64(users_head[i, 0]), np.int64(users_head[i, 1])
        last = first + np.uint64(n_row)
        if n_row > n:
            out_length[r] = -1
            continue
        if n_row < _BYTES:
            n_touched = _count(first, last, users_data, head, skip, at, data, bytes_, touched)
            if own:
                bytes_[i] = 0
        elif n_row < _HALVES:
            n_touched = _count(first, last, users_data, head, skip, at, data, halves, touched)
            if own:
                halves[i] = 0
        else:
            if items <= _MANY * n_row:
                n_touched = _count_many(first, last, users_data, head, skip, at, data, items, cells, touched)
            else:
                n_touched = _count(first, last, users_data, head, skip, at, data, cells, touched)
            if own:
                cells[i] = 0
        out_length[r] = _top_row(cells, touched, n_touched, n_row, n, column_counts, top_k, min_llr, anti,
                                 id_bytes, id_offsets, table, scratch, out_feature[r], out_llr[r])  # fmt: skip


Array = npt.NDArray[Any]


def top_rows(
    rows: Array, users_head: Array, users_data: Array, head: Array, stride: int, offset: int, data: Array,
    column_counts: Array, n_users: int, own: bool, top_k: int, min_llr: float, anti: bool, id_bytes: Array,
    id_offsets: Array, table: Array, cells: Array, touched: Array, out_feature: Array, out_llr: Array,
    out_length: Array,
) -> None:  # fmt: skip
    """Count, score and select rows of one indicator, without the GIL.

    rows: uint32[m], item indices. users_head: uint32[items, 2], (start, length) in users_data uint32[] of the
    users who have the row's item; length is its count n_row. head: uint32[*, 2]: head[u * stride + offset] is
    (start, length) in data uint32[] of the indicator's history of user u, distinct item indices.
    column_counts: int32[items]. n_users: N, at most 2^31. own: the indicator is the primary, so a row leaves
    its own item out. top_k: 1 or more. min_llr: finite, 0 or more. anti: keep negative association.
    id_bytes uint8[], id_offsets int64[items + 1]: ids in UTF-8, read on ties. table: `llr.xlogx.table()`.
    cells: uint32[items] or longer, zeros on entry and on return. touched: uint32[items + 1] or longer, scratch.
    Out: out_feature uint32[m, top_k] and out_llr float64[m, top_k], by G2 descending, then id ascending;
    out_length int32[m], the entries of each row.
    ValueError where the counts of a row contradict each other, which no consistent adjacency has; the other
    rows are right then, and the length of such a row is -1.
    """
    scratch = np.empty(_scratch_words(top_k), np.uint64)
    _top_rows(rows, users_head, users_data, head, stride, offset, data, column_counts, n_users, own, top_k,
              float(min_llr), anti, id_bytes, id_offsets, table, cells, touched, scratch,
              out_feature, out_llr, out_length)  # fmt: skip
    if out_length.size and out_length.min() < 0:
        item = int(rows[int(out_length.argmin())])
        raise ValueError(
            f"row of item {item}: counts contradict each other: it has {int(users_head[item, 1])} of {n_users} users, "
            "and a history of theirs has an item with fewer users in column_counts than in the row, or with more "
            "than N leaves room for; column_counts and n_users must be those of the histories"
        )


@kernel
def _mix(x: np.uint64) -> np.uint64:
    """Finaliser of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@kernel
def _seal_rows(
    feature: Any,
    llr: Any,
    length: Any,
    id_bytes: Any,
    id_offsets: Any,
    weight: Any,
    keys: Any,
    spare_keys: Any,
    spare_feature: Any,
    fingerprints: Any,
) -> Any:
    rows, top_k = feature.shape
    bits = weight.view(np.uint32)
    for r in range(rows):
        n = np.int64(length[r])
        for x in range(top_k):
            weight[r, x] = np.float32(llr[r, x]) if x < n else np.float32(0.0)
            bits[r, x] &= _KEPT_BITS
        start = 0
        for x in range(1, n + 1):
            if x < n and bits[r, x] == bits[r, start]:
                continue
            if x > start + 1:
                sort_by_id(feature[r], start, x, keys, spare_keys, spare_feature, id_bytes, id_offsets)
            start = x
        h = EMPTY
        for x in range(n):
            entry = (np.uint64(feature[r, x]) << np.uint64(32)) | np.uint64(bits[r, x])
            h = _mix((h + _GOLDEN) ^ entry)
        fingerprints[r] = max(h, np.uint64(1)) if n > 0 else EMPTY


def seal_rows(
    feature: Array, llr: Array, length: Array, id_bytes: Array, id_offsets: Array, weight: Array
) -> npt.NDArray[np.uint64]:
    """Turn rows as `top_rows` leaves them into rows as the index keeps them; uint64[m] of fingerprints.

    feature: uint32[m, top_k], reordered in place by truncated weight descending, then id ascending.
    llr: float64[m, top_k], length: int32[m], both left alone (llr keeps the exact order).
    weight: float32[m, top_k], out: `llr.weights.truncate` of the llr, 0 after the end of a row.
    Fingerprint: a 64-bit hash of the features and weights in order, for seeing that a row changed;
    EMPTY (0) for a row without entries, and for no other.
    """
    rows, top_k = feature.shape
    fingerprints = np.empty(rows, np.uint64)
    keys, spare_keys = np.empty(top_k, np.uint64), np.empty(top_k, np.uint64)
    _seal_rows(feature, llr, length, id_bytes, id_offsets, weight, keys, spare_keys, np.empty(top_k, np.uint32),
               fingerprints)  # fmt: skip
    return fingerprints


@kernel
def count_cell(i: Any, j: Any, users_head: Any, users_data: Any, head: Any, stride: Any, offset: Any, data: Any) -> Any:
    """k of one cell: users who have primary item `i` and whose history of the indicator has `j`.

    Arrays as in `top_rows`; walks the histories of i's users, for explanations.
    """
    first = np.uint64(users_head[i, 0])
    k = 0
    for p in range(first, first + np.uint64(users_head[i, 1])):
        at = np.uint64(users_data[p]) * np.uint64(stride) + np.uint64(offset)
        start = np.uint64(head[at, 0])
        for q in range(start, start + np.uint64(head[at, 1])):
            if data[q] == j:
                k += 1
                break
    return k
