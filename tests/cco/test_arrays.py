"""Arrays that grow in place, and by copies where address space is limited."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from cco import arrays, lists

BIG = arrays.LARGE // 4  # uint32 in the smallest array that begins a region

LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
import numpy as np
from cco import arrays
old = arrays.zeros(arrays.LARGE // 4, np.uint32)
old[:] = 7
new = arrays.longer(old, 2 * old.size)
assert not np.shares_memory(old, new)
assert (new[: old.size] == 7).all() and not new[old.size :].any()
"""


def test_a_large_array_grows_in_place() -> None:
    old = arrays.zeros(BIG, np.uint32)
    assert not old.any()
    old[:] = 7
    new = arrays.longer(old, 3 * BIG)
    assert (new[:BIG] == 7).all()
    assert not new[BIG:].any()
    if arrays._region_bytes():
        assert np.shares_memory(old, new)
    again = arrays.longer(new, 5 * BIG)
    again[4 * BIG] = 1
    assert (old == 7).all()
    assert not again[3 * BIG : 4 * BIG].any()


def test_a_small_array_is_copied() -> None:
    old = arrays.zeros(10, np.uint32)
    new = arrays.longer(old, BIG)
    new[0] = 1
    assert old[0] == 0
    assert new.size == BIG


def test_where_address_space_is_limited_arrays_are_copied() -> None:
    subprocess.run([sys.executable, "-c", LIMITED], check=True)


def test_arrays_with_rows_grow_along_their_last_axis() -> None:
    old = np.arange(6, dtype=np.int32).reshape(2, 3)
    new = arrays.wider(old, 5)
    assert new.tolist() == [[0, 1, 2, 0, 0], [3, 4, 5, 0, 0]]


def test_lists_keep_their_entries_while_the_arena_passes_into_a_region() -> None:
    keys, entries = 40, 1 << 15
    arena = lists.empty(keys, 8, extras=True)
    for n in range(entries):
        for key in range(0, keys, 13):
            if not lists.has_room(arena, key):
                arena = lists.grown(arena, 2 * n + 1)
            lists.push(arena, key, np.uint32(n * keys + key), np.uint32(n))
    arena = lists.grown(arena, 4 * BIG)
    arena = lists.with_keys(arena, BIG)
    wanted = np.arange(entries, dtype=np.uint32)
    for key in range(0, keys, 13):
        start, n = arena.head[key].tolist()
        assert n == entries
        assert np.array_equal(arena.data[start : start + n], wanted * np.uint32(keys) + np.uint32(key))
        assert np.array_equal(arena.extra[start : start + n], wanted)
    assert not arena.head[keys:].any()
