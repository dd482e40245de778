"""Kernels let other threads run, and are compiled once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from threading import Thread

import numba
import numpy as np
import pytest

from llr.kernels import top_rows
from llr.xlogx import table
from tests.llr.world import World, random_world

UNTOUCHED = -7


def test_python_runs_while_a_kernel_counts() -> None:
    """This thread sees rows appear one after the other: under the GIL it would see none, or all."""
    world = random_world(8, 400, 300, 60.0)
    world.rows(0, 1)  # compiled
    for rows in (20_000, 100_000, 500_000):  # more if this thread was too slow to look
        out_length = np.full(rows, UNTOUCHED, np.int32)
        thread = Thread(target=_many_rows, args=(world, rows, out_length))
        thread.start()
        seen_between = False
        while thread.is_alive() and not seen_between:
            seen_between = bool(out_length[0] != UNTOUCHED) and bool(out_length[-1] == UNTOUCHED)
        thread.join()
        if seen_between:
            break
    assert seen_between


def _many_rows(world: World, rows: int, out_length: np.ndarray) -> None:
    """The same row again and again."""
    feature, llr = np.empty((rows, 1), np.uint32), np.empty((rows, 1))
    top_rows(
        np.zeros(rows, np.uint32), world.users_head, world.users_data, world.head, 2, 0, world.data,
        world.column_counts[0], world.n, True, 1, 0.0, False, world.id_bytes, world.id_offsets, table(),
        world.cells, world.touched, feature, llr, out_length,
    )  # fmt: skip


CHILD = """
from llr import jit, kernels
from tests.llr.world import World
World(["a", "b"], [[0], [0, 1]], [[], [1]]).rows(0, 3)
stats = kernels._top_rows.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), jit.cache_folder())
"""


def test_another_process_does_not_compile() -> None:
    World(["a", "b"], [[0], [0, 1]], [[], [1]]).rows(0, 3)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", CHILD], cwd=root, capture_output=True, text=True, check=True)
    hits, misses, folder = done.stdout.strip().split(maxsplit=2)
    if folder != numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        pytest.skip("sources of kernels were edited while the tests ran")
    assert (hits, misses) == ("1", "0")
