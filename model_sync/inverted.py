"""Kernels of the index in memory: patching rows and their inverted lists, scoring, choosing the best.

Two sets of lists, each in one pool of slots; list (t, x) is the `length[t, x]` slots from `start[t, x]`,
with room for `room[t, x]`:

* forward: of field t and item x, per entry of its row in order: `feature`, and `at`: which slot of the
  feature's inverted list holds the item.
* inverted: of field t and feature x, in any order: `holder` (an item whose row has x) and `weight`.

So a weight is stored once, an entry costs 16 bytes, and an entry that leaves is found without a search.
Lists that outgrow their room move to the end of the pool; what they leave is reclaimed by `compact`.
"""

from __future__ import annotations

import numpy as np

from llr.jit import inlined, kernel

_NEW = np.uint32(0xFFFFFFFF)  # marks a feature that the old row does not have
_KEPT = np.uint32(0x80000000)  # bit on a slot of the old row whose feature the new one has too
_SLOT = np.uint32(0x7FFFFFFF)


@inlined
def roomy(length):  # type: ignore[no-untyped-def]
    """Room for a list that outgrew its place: half as much again, so that moving costs O(1) per entry."""
    return length + (length >> 1) + 2


@kernel
def compact(start, length, left, right, spare_shift, new_start, new_room, new_left, new_right):  # type: ignore[no-untyped-def]
    """Copy all lists into new pools one after the other, each with 1 / 2**spare_shift of spare room.

    Returns the slots used; the old arrays stay as they are, so readers may go on.
    """
    top = np.int64(0)
    for t in range(start.shape[0]):
        for x in range(start.shape[1]):
            n, s = np.int64(length[t, x]), start[t, x]
            for k in range(n):
                new_left[top + k] = left[s + k]
                new_right[top + k] = right[s + k]
            wide = n + (n >> spare_shift)
            new_start[t, x] = top
            new_room[t, x] = wide
            top += wide
    return top


@kernel
def first_bad_row(item, field, start, feature, weight, items, priors_field, priors, mark):  # type: ignore[no-untyped-def]
    """Position of the first row of a patch that is not possible, or -1. `mark` (all 0) has an element per item.

    `items`: how many items there are; `priors`: how many priors.
    """
    for r in range(item.size):
        known = items if field[r] < priors_field else priors
        good = item[r] < items and field[r] <= priors_field
        end = start[r]
        while good and end < start[r + 1]:
            x, w = feature[end], weight[end]
            good = x < known and w > 0 and w < np.inf and mark[x] == 0
            if good:
                mark[x] = 1
                end += 1
        for e in range(start[r], end):
            mark[feature[e]] = 0
        if not good:
            return r
    return -1


@kernel
def mark_row(t, begin, end, feature, mark, f_start, f_length, f_feature, v_length, v_room, item):  # type: ignore[no-untyped-def]
    """Mark which features of the old row stay and which of the patch are new; slots to find for the new ones."""
    s = f_start[t, item]
    for k in range(f_length[t, item]):
        mark[f_feature[s + k]] = k + 1
    needed = np.int64(0)
    for e in range(begin, end):
        x = feature[e]
        if mark[x]:
            mark[x] |= _KEPT
            continue
        mark[x] = _NEW
        n = np.int64(v_length[t, x])
        if n == v_room[t, x]:
            needed += roomy(n + 1)
    return needed


@kernel
def unmark_row(t, begin, end, feature, mark, f_start, f_length, f_feature, item):  # type: ignore[no-untyped-def]
    """Undo `mark_row`."""
    s = f_start[t, item]
    for k in range(f_length[t, item]):
        mark[f_feature[s + k]] = 0
    for e in range(begin, end):
        mark[feature[e]] = 0


@kernel
def remove(t, x, slot, f_start, f_length, f_feature, f_at, v_start, v_length, v_holder, v_weight):  # type: ignore[no-untyped-def]
    """Take the entry at `slot` out of the inverted list of x: the last one takes its place."""
    s = v_start[t, x]
    last = np.int64(v_length[t, x]) - 1
    v_length[t, x] = last
    if slot == last:
        return
    moved = v_holder[s + last]
    v_holder[s + slot] = moved
    v_weight[s + slot] = v_weight[s + last]
    m = f_start[t, moved]
    for k in range(f_length[t, moved]):
        if f_feature[m + k] == x:
            f_at[m + k] = slot
            return


@kernel
def append(t, x, item, weight, v_start, v_length, v_room, v_holder, v_weight, v_top):  # type: ignore[no-untyped-def]
    """Put an entry at the end of the inverted list of x, which moves if it is full; its slot."""
    n = np.int64(v_length[t, x])
    if n == v_room[t, x]:
        wide = roomy(n + 1)
        s, d = v_start[t, x], v_top[0]
        for k in range(n):
            v_holder[d + k] = v_holder[s + k]
            v_weight[d + k] = v_weight[s + k]
        v_start[t, x] = d
        v_room[t, x] = wide
        v_top[0] = d + wide
    s = v_start[t, x]
    v_holder[s + n] = item
    v_weight[s + n] = weight
    v_length[t, x] = n + 1
    return n


@kernel
def replace_rows(  # type: ignore[no-untyped-def]
    first, last, item, field, start, feature, weight, longest, mark,
    f_start, f_length, f_room, f_feature, f_at, f_top,
    v_start, v_length, v_room, v_holder, v_weight, v_top, slots,
):  # fmt: skip
    """Replace the rows `first` to `last - 1` of a patch, those of the priors apart.

    Returns (row to go on with, slots to find in the forward pool before, and in the inverted pool): `last`
    and zeros when all is done. `mark` (all 0 before and after) has an element per feature, `slots` one per
    entry of the longest row of the patch; `longest` (fields,): a row of the field usually grows no longer.
    """
    for r in range(first, last):
        t = np.int64(field[r])
        if t == longest.size:
            continue
        i, begin, end = np.int64(item[r]), start[r], start[r + 1]
        size = end - begin
        v_need = mark_row(t, begin, end, feature, mark, f_start, f_length, f_feature, v_length, v_room, i)
        f_need = np.int64(0)
        if size > f_room[t, i]:
            f_need = max(size, min(longest[t], size + (size >> 2) + 1))
        if f_top[0] + f_need > f_feature.size or v_top[0] + v_need > v_holder.size:
            unmark_row(t, begin, end, feature, mark, f_start, f_length, f_feature, i)
            return np.int64(r), f_need, v_need
        old = f_start[t, i]
        for e in range(begin, end):
            x = np.int64(feature[e])
            if mark[x] == _NEW:
                slots[e - begin] = append(t, x, i, weight[e], v_start, v_length, v_room, v_holder, v_weight, v_top)
            else:
                slot = f_at[old + np.int64(mark[x] & _SLOT) - 1]
                slots[e - begin] = slot
                v_weight[v_start[t, x] + np.int64(slot)] = weight[e]
        for k in range(f_length[t, i]):
            x = np.int64(f_feature[old + k])
            if not mark[x] & _KEPT:
                remove(
                    t, x, np.int64(f_at[old + k]),
                    f_start, f_length, f_feature, f_at, v_start, v_length, v_holder, v_weight,
                )  # fmt: skip
        unmark_row(t, begin, end, feature, mark, f_start, f_length, f_feature, i)
        if f_need:
            f_start[t, i] = f_top[0]
            f_room[t, i] = f_need
            f_top[0] += f_need
        to = f_start[t, i]
        for k in range(size):
            f_feature[to + k] = feature[begin + k]
            f_at[to + k] = slots[k]
        f_length[t, i] = size
    return np.int64(last), np.int64(0), np.int64(0)


@kernel
def accumulate(field, feature, boost, start, length, holder, weight, total, touched):  # type: ignore[no-untyped-def]
    """Add every term's float32(boost x weight) to the double totals, all 0 before, of the items that have it.

    `touched` receives the items whose total is not 0; returns their number. It has one slot more than
    there are items.
    """
    count = np.uint64(0)
    for q in range(feature.size):
        t, b = field[q], boost[q]
        s = np.uint64(start[t, feature[q]])
        for e in range(s, s + np.uint64(length[t, feature[q]])):
            i = holder[e]
            before = total[i]
            touched[count] = i  # without a branch: it stays only if the count moves on
            count += np.uint64(before == 0.0)
            total[i] = before + np.float64(b * weight[e])
    return count


@kernel
def accumulate_many(field, feature, boost, start, length, holder, weight, total, touched):  # type: ignore[no-untyped-def]
    """As `accumulate`, faster where there are more entries than items: who was touched is found afterwards."""
    for q in range(feature.size):
        t, b = field[q], boost[q]
        s = np.uint64(start[t, feature[q]])
        for e in range(s, s + np.uint64(length[t, feature[q]])):
            total[holder[e]] += np.float64(b * weight[e])
    count = np.uint64(0)
    for i in range(total.size):
        touched[count] = i
        count += np.uint64(total[i] != 0.0)
    return count


@kernel
def add_prior(value, boost, mask, total, touched, count):  # type: ignore[no-untyped-def]
    """Add a prior's float32(boost x value) to the totals of the masked items; `count` are touched already."""
    for i in range(value.size):
        if mask[i] and value[i] > 0:
            touched[count] = i
            count += total[i] == 0.0
            total[i] += np.float64(boost * value[i])
    return count


@kernel
def largest(touched, count, mask, total):  # type: ignore[no-untyped-def]
    """The largest float32 total of a masked item; 0 if there is none."""
    best = np.float32(0)
    for c in range(count):
        i = touched[c]
        if mask[i] and np.float32(total[i]) > best:
            best = np.float32(total[i])
    return best


@kernel
def id_before(a, b, arena, offsets):  # type: ignore[no-untyped-def]
    """Does the id of item a come before that of item b, by bytes?"""
    sa, sb = offsets[a], offsets[b]
    na, nb = offsets[a + 1] - sa, offsets[b + 1] - sb
    for k in range(min(na, nb)):
        if arena[sa + k] != arena[sb + k]:
            return arena[sa + k] < arena[sb + k]
    return na < nb


@inlined
def before(value_a, a, value_b, b, arena, offsets):  # type: ignore[no-untyped-def]
    """The order of hits: value descending, then id ascending."""
    if value_a != value_b:
        return value_a > value_b
    return id_before(a, b, arena, offsets)


@kernel
def sift_down(values, items, at, size, arena, offsets):  # type: ignore[no-untyped-def]
    """Restore the heap (the last in order on top) below `at`."""
    value, item = values[at], items[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and before(
            values[child], items[child], values[child + 1], items[child + 1], arena, offsets
        ):
            child += 1
        if not before(value, item, values[child], items[child], arena, offsets):
            break
        values[at], items[at] = values[child], items[child]
        at = child
    values[at], items[at] = value, item


@kernel
def best(candidates, count, mask, total, factor, arena, offsets, items, values):  # type: ignore[no-untyped-def]
    """The first masked candidates by float32(float32(total) x factor) descending, then id ascending.

    They fill `items` and `values`. `factor` is empty where nothing is boosted. Returns how many masked
    candidates there are, which may be more or less than there is room for.
    """
    limit, size, eligible = items.size, 0, 0
    for c in range(count):
        i = candidates[c]
        if not mask[i]:
            continue
        eligible += 1
        value = np.float32(total[i])
        if factor.size:
            value = np.float32(np.float64(value) * factor[i])
        if size < limit:
            values[size], items[size] = value, i
            size += 1
            if size == limit:
                for at in range(limit // 2 - 1, -1, -1):
                    sift_down(values, items, at, size, arena, offsets)
        elif before(value, i, values[0], items[0], arena, offsets):
            values[0], items[0] = value, i
            sift_down(values, items, 0, size, arena, offsets)
    if size < limit:
        for at in range(size // 2 - 1, -1, -1):
            sift_down(values, items, at, size, arena, offsets)
    for end in range(size - 1, 0, -1):
        values[0], values[end] = values[end], values[0]
        items[0], items[end] = items[end], items[0]
        sift_down(values, items, 0, end, arena, offsets)
    return eligible


@kernel
def forget(touched, count, total):  # type: ignore[no-untyped-def]
    """Totals back to 0."""
    for c in range(count):
        total[touched[c]] = 0.0


@kernel
def gather(item, field, f_start, f_length, f_feature, f_at, v_start, v_weight, start, feature, weight):  # type: ignore[no-untyped-def]
    """Copy the rows (field[r], item[r]) to `feature` and `weight` at start[r]."""
    for r in range(item.size):
        t, i = field[r], item[r]
        s = f_start[t, i]
        for k in range(f_length[t, i]):
            x = f_feature[s + k]
            feature[start[r] + k] = x
            weight[start[r] + k] = v_weight[v_start[t, x] + np.int64(f_at[s + k])]
