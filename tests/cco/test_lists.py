"""Lists in one arena against Python's lists, and the arena against what the lists take."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cco import lists

KEYS = 5
STEPS = st.lists(st.tuples(st.sampled_from(("push", "push", "drop", "clear")), st.integers(0, KEYS - 1)), max_size=300)


def contents(arena: lists.Lists, key: int) -> list[tuple[int, int]]:
    start, n = (int(x) for x in arena.head[key])
    return list(zip(arena.data[start : start + n].tolist(), arena.extra[start : start + n].tolist(), strict=True))


def pushed(arena: lists.Lists, key: int, value: int, extra: int) -> lists.Lists:
    if not lists.has_room(arena, key):
        arena = lists.grown(arena, 2 * int(arena.head[key, 1]) + 1)
    lists.push(arena, key, np.uint32(value), np.uint32(extra))
    return arena


@settings(max_examples=60)
@given(STEPS)
def test_any_steps(steps: list[tuple[str, int]]) -> None:
    arena = lists.empty(KEYS, 4, extras=True)
    wanted: list[list[tuple[int, int]]] = [[] for _ in range(KEYS)]
    for number, (step, key) in enumerate(steps):
        mine = wanted[key]
        if step == "push":
            entry = (number * 2654435761 % 2**32, number)
            arena = pushed(arena, key, *entry)
            mine.append(entry)
        elif step == "drop" and mine:
            slot = number % len(mine)
            lists.drop(arena, key, slot)
            mine[slot] = mine[-1]
            mine.pop()
        elif step == "clear":
            lists.clear(arena, key)
            mine.clear()
        assert [contents(arena, k) for k in range(KEYS)] == wanted


@pytest.mark.parametrize("length", [64, 65, 100])
def test_an_arena_stays_within_what_its_lists_take(length: int) -> None:
    """A list that shrinks and grows across a power of two, for ever, beside others that stay."""
    arena = lists.empty(KEYS, 8, extras=False)
    for key in range(KEYS):
        for value in range(length):
            if not lists.has_room(arena, key):
                arena = lists.grown(arena, 2 * length)
            lists.push(arena, key, np.uint32(value), np.uint32(0))
    for cycle in range(2000):
        for _ in range(1 + cycle % 40):
            lists.drop(arena, 0, 0)
        while arena.head[0, 1] < length:
            if not lists.has_room(arena, 0):
                arena = lists.grown(arena, 2 * length)
            lists.push(arena, 0, np.uint32(cycle), np.uint32(0))
    taken = KEYS * lists.capacity(length)
    assert arena.data.size <= 4 * taken
    assert sorted(arena.data[int(arena.head[1, 0]) :][:length].tolist()) == list(range(length))


def test_a_full_arena_says_what_to_do() -> None:
    arena = lists.empty(1, 4, extras=False)
    arena.head[0, 1] = 2**31  # a list that takes half of all there is, as far as anyone can tell
    arena.top[0] = 2**31
    with pytest.raises(lists.LimitError, match="partitions"):
        lists.grown(arena._replace(data=np.empty(0, np.uint32)), 2**32)
