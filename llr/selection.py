"""Selection of one row: scoring of candidate cells, the rejection table, the best K with their total order.

A row has `n_row` users of N; a cell is a column j with a count k >= 1 and `n_col` users. Only counts enter
G2, so for one row G2 is a function of (k, n_col), and where the association is positive (k N > n_row n_col)
    dG2/dn_col = 2 ln((n_col - k) (N - n_col) / ((N - n_row - n_col + k) n_col)) < 0,
    dG2/dk = 2 ln(k (N - n_row - n_col + k) / ((n_row - k) (n_col - k))) > 0,
since both fractions cross 1 exactly where k N = n_row n_col. So what is too rare or too common for the list
stays so: `rejected[k]` is the smallest n_col known to be hopeless for count k, and one comparison skips a
cell. Computed values may disagree with this by round-off, at most 20 * 2^-52 * N ln N each (x log x within
1.5 ulp, sums of at most N ln N); cells are rejected only below the bar by `slack` = 64 * 2^-52 * N ln N,
so the result is the same, bit for bit, as without the table.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from llr.jit import inlined, kernel
from llr.xlogx import x_log_x

CHUNK = 1024  # cells that are filtered and scored at a time, at most
FIRST_CHUNK = 128  # the first ones, which set a bar to begin with; then they double
COUNTS = 4096  # counts from COUNTS - 1 on share the last slot of the table, which rejects nothing
_ALL = np.uint32(0xFFFFFFFF)
_SHORT_RUN = 8


@inlined
def _entry(x: Any, table: Any, tabled: Any) -> Any:
    """x ln x; `tabled` says that every x of this row is within the table, which spares a comparison."""
    if tabled:
        return table[np.uint64(x)]
    return x_log_x(x, table)


@inlined
def cell_g2(k: Any, n_row: Any, n_col: Any, n: Any, row_term: Any, table: Any, tabled: Any) -> Any:
    """G2 as `llr.reference.g2` computes it, bit for bit, but for negative round-off, which stays."""
    both = _entry(k, table, tabled) + _entry(n_row - k, table, tabled)
    neither = _entry(n_col - k, table, tabled) + _entry(n - n_row - n_col + k, table, tabled)
    column = _entry(n_col, table, tabled) + _entry(n - n_col, table, tabled)
    return 2.0 * (((both + neither) - column) + row_term)


@kernel
def reset(rejected: Any, n_row: Any, n: Any, anti: Any) -> Any:
    """Start of a row: empty cells go; without `anti` also n_col > k N / n_row, which is negative association."""
    rejected[0] = 0
    rejected[COUNTS - 1] = _ALL
    for k in range(1, min(n_row + 1, COUNTS - 1)):
        rejected[k] = _ALL if anti else np.uint32(k * n // n_row + 1)


@kernel
def learn(rejected: Any, lowest: Any, bar: Any, slack: Any, n_row: Any, n: Any, row_term: Any, table: Any) -> Any:
    """After the bar rose: the lowest count that can still pass, those below rejected whatever their column.

    n_col = k is the best that a count can do. What is hopeless for a count is so for smaller ones.
    """
    while lowest <= n_row and lowest < COUNTS - 1:
        best = cell_g2(lowest, n_row, lowest, n, row_term, table, False)
        if best >= bar - slack:
            break
        rejected[lowest] = 0
        lowest += 1
    for k in range(min(n_row, COUNTS - 2), lowest, -1):
        rejected[k - 1] = min(rejected[k - 1], rejected[k])
    return lowest


@kernel
def survivors(
    touched: Any, first: Any, last: Any, cells: Any, column_counts: Any, rejected: Any, features: Any, counts: Any
) -> Any:
    """Take touched[first:last] out of `cells`, leaving zeros; those not rejected go to `features`, `counts`.

    No branches: whether a cell survives is a coin flip for the processor.
    """
    n = np.uint64(0)
    zero = cells.dtype.type(0)
    shared_slot = np.uint64(COUNTS - 1)
    for t in range(np.uint64(first), np.uint64(last)):
        j = touched[t]
        k = np.uint64(cells[j])
        cells[j] = zero
        features[n] = j
        counts[n] = k
        n += np.uint64(column_counts[j] < rejected[min(k, shared_slot)])
    return np.int64(n)


@kernel
def score(
    features: Any,
    counts: Any,
    n_features: Any,
    column_counts: Any,
    n_row: Any,
    n: Any,
    row_term: Any,
    bar: Any,
    slack: Any,
    epsilon: Any,
    anti: Any,
    rejected: Any,
    table: Any,
    best: Any,
    best_feature: Any,
    n_best: Any,
) -> Any:
    """Append the cells that reach `bar` to `best`; learn from the others. New length, or -1.

    -1: the counts of a cell contradict each other (k > n_col, or n_row + n_col - k > N), so that there is
    no G2; reading the table there would be out of bounds.
    """
    tabled = n < table.size
    place = np.uint64(n_best)
    hopeless = bar - slack
    for t in range(np.uint64(n_features)):
        j = features[t]
        k = np.int64(counts[t])
        n_col = np.int64(column_counts[j])
        if ((n_col - k) | (n - n_row - n_col + k)) < 0:
            return np.int64(-1)
        value = cell_g2(k, n_row, n_col, n, row_term, table, tabled)
        best[place] = value
        best_feature[place] = j
        place += np.uint64((value >= bar) & (value > epsilon) & (anti | (k * n >= n_row * n_col)))
        slot = min(k, COUNTS - 1)
        known = rejected[slot]
        new = (value < hopeless) & (n_col < known) & (k < COUNTS - 1) & (not anti)
        rejected[slot] = np.uint32(n_col) if new else known
    return np.int64(place)


@kernel
def kth_largest(values: Any, n: Any, k: Any, scratch: Any) -> Any:
    """The k-th largest of values[:n], 1 <= k <= n: quickselect with branch-free partitions."""
    for x in range(n):
        scratch[x] = values[x]
    low, high = 0, n
    while high - low > 1:
        a, b, c = scratch[low], scratch[(low + high) >> 1], scratch[high - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        above = low
        for x in range(low, high):
            value = scratch[x]
            scratch[x] = scratch[above]
            scratch[above] = value
            above += value > pivot
        if k <= above:
            high = above
            continue
        equal = above
        for x in range(above, high):
            value = scratch[x]
            scratch[x] = scratch[equal]
            scratch[equal] = value
            equal += value == pivot
        if k <= equal:
            return pivot
        low = equal
    return scratch[low]


@kernel
def _sort_by_key(keys: Any, features: Any, n: Any, spare_keys: Any, spare_features: Any) -> Any:
    """Merge sort of keys[:n] ascending with their features, from short runs sorted by insertion."""
    for start in range(0, n, _SHORT_RUN):
        for x in range(start + 1, min(n, start + _SHORT_RUN)):
            key, feature, y = keys[x], features[x], x
            while y > start and key < keys[y - 1]:
                keys[y], features[y] = keys[y - 1], features[y - 1]
                y -= 1
            keys[y], features[y] = key, feature
    width = _SHORT_RUN
    while width < n:
        for start in range(0, n, 2 * width):
            middle, end = min(n, start + width), min(n, start + 2 * width)
            a, b = start, middle
            for place in range(start, end):
                if b >= end or (a < middle and keys[a] <= keys[b]):
                    spare_keys[place], spare_features[place] = keys[a], features[a]
                    a += 1
                else:
                    spare_keys[place], spare_features[place] = keys[b], features[b]
                    b += 1
        for x in range(n):
            keys[x], features[x] = spare_keys[x], spare_features[x]
        width *= 2


@kernel
def id_before(a: Any, b: Any, id_bytes: Any, id_offsets: Any) -> Any:
    """True if the id of item `a` comes before that of `b`, bytewise."""
    start_a, start_b = id_offsets[a], id_offsets[b]
    length_a, length_b = id_offsets[a + 1] - start_a, id_offsets[b + 1] - start_b
    for x in range(min(length_a, length_b)):
        if id_bytes[start_a + x] != id_bytes[start_b + x]:
            return id_bytes[start_a + x] < id_bytes[start_b + x]
    return length_a < length_b


@kernel
def _eight_bytes(item: Any, skip: Any, id_bytes: Any, id_offsets: Any) -> Any:
    """8 bytes of an id from `skip` on as a big-endian number, with zeros after its end: ids have no NUL."""
    start = id_offsets[item] + skip
    length = id_offsets[item + 1] - start
    key = np.uint64(0)
    if length >= 8:
        for x in range(8):
            key = (key << np.uint64(8)) | np.uint64(id_bytes[start + x])
        return key
    for x in range(8):
        key <<= np.uint64(8)
        if x < length:
            key |= np.uint64(id_bytes[start + x])
    return key


@kernel
def _common_prefix(features: Any, first: Any, last: Any, id_bytes: Any, id_offsets: Any) -> Any:
    """Length of the longest prefix that the ids of features[first:last] share."""
    start = id_offsets[features[first]]
    shared = id_offsets[features[first] + 1] - start
    for x in range(first + 1, last):
        other = id_offsets[features[x]]
        shared = min(shared, id_offsets[features[x] + 1] - other)
        y = 0
        while y < shared and id_bytes[start + y] == id_bytes[other + y]:
            y += 1
        shared = y
    return shared


@kernel
def _sort_equals_by_id(
    features: Any,
    first: Any,
    last: Any,
    keys: Any,
    spare_keys: Any,
    spare_features: Any,
    id_bytes: Any,
    id_offsets: Any,
) -> Any:
    """Sort features[first:last] by what follows the prefix that their ids share: 8 bytes, then the rest."""
    n = last - first
    part = features[first:last]
    skip = _common_prefix(features, first, last, id_bytes, id_offsets)
    for x in range(n):
        keys[x] = _eight_bytes(part[x], skip, id_bytes, id_offsets)
    _sort_by_key(keys, part, n, spare_keys, spare_features)
    start = 0
    for x in range(1, n):
        if keys[x] != keys[start]:
            start = x
            continue
        feature, y = part[x], x
        while y > start and id_before(feature, part[y - 1], id_bytes, id_offsets):
            part[y] = part[y - 1]
            y -= 1
        part[y] = feature


@kernel
def sort_by_id(
    features: Any,
    first: Any,
    last: Any,
    keys: Any,
    spare_keys: Any,
    spare_features: Any,
    id_bytes: Any,
    id_offsets: Any,
) -> Any:
    """Sort features[first:last] by id. `keys`, `spare_keys`, `spare_features`: scratch of that length."""
    n = last - first
    part = features[first:last]
    for x in range(n):
        keys[x] = _eight_bytes(part[x], 0, id_bytes, id_offsets)
    _sort_by_key(keys, part, n, spare_keys, spare_features)
    x = 0
    while x < n:
        y = x + 1
        while y < n and keys[y] == keys[x]:
            y += 1
        if y > x + 1:  # the keys of this run are not needed any more: its part of them is scratch
            _sort_equals_by_id(part, x, y, keys[x:y], spare_keys, spare_features, id_bytes, id_offsets)
        x = y


@kernel
def sort_best(
    best: Any,
    best_feature: Any,
    n: Any,
    keys: Any,
    id_keys: Any,
    spare_keys: Any,
    spare_features: Any,
    id_bytes: Any,
    id_offsets: Any,
) -> Any:
    """Sort best[:n] (positive) descending, ties by id ascending."""
    bits = best.view(np.uint64)  # of positive doubles: they order as the doubles do
    for x in range(n):
        keys[x] = ~bits[x]
    _sort_by_key(keys, best_feature, n, spare_keys, spare_features)
    x = 0
    while x < n:
        y = x + 1
        while y < n and keys[y] == keys[x]:
            y += 1
        if y > x + 1:
            sort_by_id(best_feature, x, y, id_keys, spare_keys, spare_features, id_bytes, id_offsets)
        for place in range(x, y):
            bits[place] = ~keys[place]
        x = y


@kernel
def keep_best(best: Any, best_feature: Any, n: Any, top_k: Any, scratch: Any) -> Any:
    """(how many remain, new bar): drop what is below the top_k-th best of n >= top_k; its ties all stay."""
    bar = kth_largest(best, n, top_k, scratch)
    kept = 0
    for x in range(n):
        value = best[x]
        best[kept] = value
        best_feature[kept] = best_feature[x]
        kept += value >= bar
    return kept, bar
