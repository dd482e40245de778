"""The row kernel against the reference: every cell, tie and boundary; nothing that pruning changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llr.kernels import count_cell, top_rows
from llr.reference import epsilon, g2
from llr.selection import CHUNK, COUNTS
from llr.xlogx import TABLE_LIMIT, table
from tests.examples import examples
from tests.llr.world import World, dense_rows, random_world

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    items = draw(st.integers(1, 9))
    prefix = draw(st.sampled_from(["", "", "item-0000000", "é"]))
    ids = [prefix + name for name in draw(st.lists(NAMES, min_size=items, max_size=items, unique=True))]
    histories = st.lists(st.lists(st.integers(0, items - 1), unique=True), min_size=1, max_size=12)
    primary = draw(histories)
    other = [draw(st.lists(st.integers(0, items - 1), unique=True)) for _ in primary]
    return World(ids, primary, other, draw(st.sampled_from([0, 1, 5, 1000, TABLE_LIMIT, 2**31 - 12])))


@examples(400)
@given(worlds(), st.integers(0, 1), st.integers(1, 5), st.sampled_from([0.0, 0.5, 4.0]), st.booleans())
def test_equals_reference(world: World, kind: int, top_k: int, min_llr: float, anti: bool) -> None:
    expected = [world.expected(kind, item, top_k, min_llr, anti) for item in range(len(world.ids))]
    assert world.rows(kind, top_k, min_llr, anti) == expected


@pytest.mark.parametrize(
    ("seed", "users", "items", "mean"), [(1, 150, 900, 60.0), (2, 700, 300, 25.0), (3, 60, 1200, 150.0)]
)
def test_pruning_changes_nothing(seed: int, users: int, items: int, mean: float) -> None:
    """Thousands of rows, bit for bit those of a selection that scores every cell."""
    world = random_world(seed, users, items, mean)
    for kind, top_k, min_llr, anti in [(0, 1, 0.0, False), (1, 7, 2.5, False), (0, 50, 0.0, False), (1, 50, 0.0, True)]:
        expected = dense_rows(world, kind, top_k, min_llr, anti)
        assert world.rows(kind, top_k, min_llr, anti) == expected
        assert sum(map(len, expected)) > items / 2


@pytest.mark.parametrize("kind", [0, 1])
def test_long_lists(kind: int) -> None:
    world = random_world(4, 200, 1300, 80.0)
    assert world.rows(kind, 1000) == dense_rows(world, kind, 1000)


@pytest.mark.parametrize(
    "form",
    ["{:04d}", "product-line-a/{:04d}", "{}", "éà-{}", "🛒{:03d}", "https://shop.example/p/{:05d}/item"],
)
@pytest.mark.parametrize("top_k", [1, 50, 400])
def test_many_ties_are_in_the_order_of_ids(form: str, top_k: int) -> None:
    """Whole crowds of equal scores: more of them than a chunk, and than the list carries along."""
    items = 3 * CHUNK
    names = [form.format(n) for n in np.random.default_rng(0).permutation(items).tolist()]
    histories: list[list[int]] = [list(range(items)), [0], [1], [0, 1]]
    world = World(names, histories, histories, more_users=40)
    value = g2(1, 1, 1, world.n)
    in_order = sorted(range(2, items), key=lambda j: names[j].encode())
    for item in (2, items - 1):
        expected = [j for j in in_order if j != item][:top_k]
        assert world.rows(0, top_k, only=[item]) == [[(j, value) for j in expected]]


def test_ids_that_are_prefixes_of_each_other() -> None:
    names = [
        "aaaaaaaa",
        "aaaaaaaaa",
        "aaaaaaa",
        "aaaaaaaaaaaaaaaaaaaaaaaaaa",
        "aaaaaaaab",
        "a" * 512,
        "a",
        "ab",
        "\x01",
    ]
    everyone = list(range(len(names)))
    world = World(names, [everyone], [everyone], more_users=3)
    (row,) = world.rows(1, 20, only=[0])
    assert [names[j] for j, _ in row] == sorted(names, key=str.encode)


WIDTHS = [255, 256, 257, 65535, 65536, 65537, COUNTS - 2, COUNTS - 1, COUNTS, COUNTS + 1]


@pytest.mark.parametrize(
    ("holders", "items"), [*((holders, 6) for holders in WIDTHS), (2 * 65535 + 1, 6), (65537, 524_297)]
)
def test_rows_around_the_width_of_counters(holders: int, items: int) -> None:
    """Counts that no longer fit a byte, two bytes, and the rejection table; and more items than are all looked at."""
    ids = [f"i{n}" for n in range(items)]
    primary = [[0, 1] for _ in range(holders)] + [[2], [1, 2]]
    other = [[3] if u % 2 else [3, 4] for u in range(holders)] + [[4, 5], [5]]
    world = World(ids, primary, other, more_users=holders // 2)
    k = (holders + 1) // 2
    expected = [(3, g2(holders, holders, holders, world.n))]
    if k * world.n >= holders * (k + 1):
        expected.append((4, g2(k, holders, k + 1, world.n)))
    assert world.rows(1, 5, only=[0]) == [expected]
    assert world.rows(0, 5, only=[0]) == [[(1, g2(holders, holders, holders + 1, world.n))]]


@pytest.mark.parametrize("n", [2**20 - 1, 2**20, 2**20 + 1, 2**31 - 2, 2**31 - 1, 2**31])
def test_largest_populations(n: int) -> None:
    """N and column counts up to the limits of their types; k N and n_row n_col go to 2^62."""
    world = World([f"i{n}" for n in range(8)], [[0], [0, 1]], [[0, 1, 2, 3, 4, 5, 6], [1, 2, 4]])
    world.n = n
    limit = min(n, 2**31 - 1)
    world.column_counts[1] = [1, 2, limit, limit - 1, n // 2, n // 2 + 1, 1000, 0]
    for anti in (False, True):
        columns = {0: 1, 1: 2, 2: 2, 3: 1, 4: 2, 5: 1, 6: 1}
        for item, n_row in [(0, 2), (1, 1)]:
            expected = []
            for j, both in columns.items():
                k = both if item == 0 else (1 if j in (1, 2, 4) else 0)
                n_col = int(world.column_counts[1, j])
                if n_row + n_col - k > n:  # what these invented counts do not allow
                    world.column_counts[1, j] = n_col = n - n_row + k
                value = g2(k, n_row, n_col, n)
                if k and value > epsilon(n) and (anti or k * n >= n_row * n_col):
                    expected.append((j, value))
            expected.sort(key=lambda entry: (-entry[1], entry[0]))
            assert world.rows(1, 10, anti=anti, only=[item]) == [expected]


def test_same_bits_as_the_reference_at_any_size() -> None:
    """Counts of all magnitudes, where sums cross powers of two, so that another order of additions would show."""
    rng = np.random.default_rng(9)
    world = random_world(9, 90, 150, 30.0)
    item = 0
    n_row = int(world.column_counts[0, item])
    both = [sum(1 for a, b in zip(world.primary, world.other, strict=True) if item in a and j in b) for j in range(150)]
    for n in np.exp(rng.uniform(np.log(200), np.log(2**31), 80)).astype(np.int64).tolist():
        world.n = n
        spread = np.exp(rng.uniform(0.0, np.log(n - n_row), 150)).astype(np.int64)
        world.column_counts[1] = np.minimum(np.array(both) + spread, 2**31 - 1)
        counts = world.column_counts[1].tolist()
        values = {j: g2(k, n_row, counts[j], n) for j, k in enumerate(both) if k}
        kept = {j: value for j, value in values.items() if value > epsilon(n)}
        assert dict(world.rows(1, 150, anti=True, only=[item])[0]) == kept


def test_starts_beyond_two_to_the_31(tmp_path: Path) -> None:
    """Lists that begin in the upper half of uint32: sparse files of 16 GB stand for the arrays."""
    top = 2**32 - 16
    data = np.asarray(np.memmap(tmp_path / "data", np.uint32, "w+", shape=(2**32,)))
    users_data = np.asarray(np.memmap(tmp_path / "users", np.uint32, "w+", shape=(2**32,)))
    head = np.asarray(np.memmap(tmp_path / "head", np.uint32, "w+", shape=(2**31 + 8, 2)))
    user, stride, offset = 2**30, 2, 1  # key 2^31 + 1
    data[top : top + 3] = [0, 1, 2]
    users_data[top + 5] = user
    head[user * stride + offset] = top, 3
    users_head = np.zeros((3, 2), np.uint32)
    users_head[0] = top + 5, 1
    column_counts = np.array([1, 1, 2], np.int32)
    feature, llr, length = np.zeros((1, 4), np.uint32), np.zeros((1, 4)), np.zeros(1, np.int32)
    ids, offsets = np.frombuffer(b"abc", np.uint8).copy(), np.arange(4, dtype=np.int64)
    top_rows(
        np.zeros(1, np.uint32), users_head, users_data, head, stride, offset, data, column_counts, 5, False, 4,
        0.0, False, ids, offsets, table(), np.zeros(3, np.uint32), np.zeros(4, np.uint32), feature, llr, length,
    )  # fmt: skip
    assert feature[0, : length[0]].tolist() == [0, 1, 2]
    assert llr[0, :3].tolist() == [g2(1, 1, 1, 5), g2(1, 1, 1, 5), g2(1, 1, 2, 5)]
    assert count_cell(0, 2, users_head, users_data, head, stride, offset, data) == 1


def test_no_rows_and_empty_rows() -> None:
    world = World(["a", "b"], [[0], [0]], [[], [1]])
    assert world.rows(0, 3, only=[]) == []
    assert world.rows(0, 3) == [[], []]  # nobody has another primary item
    assert world.rows(1, 3, only=[1]) == [[]]  # nobody has "b" as primary item


def test_nothing_is_written_after_the_end_of_a_row() -> None:
    feature, llr, length = World(["a", "b"], [[0], []], [[1], []]).arrays(1, 3)
    assert length.tolist() == [1, 0]
    assert np.isnan(llr[0, 1:]).all()
    assert (feature[0, 1:] == 0xFFFFFFFF).all()


def test_contradicting_counts_are_refused_and_harm_nothing() -> None:
    world = random_world(5, 40, 30, 6.0)
    whole = world.rows(1, 5)
    true_counts, n = world.column_counts.copy(), world.n
    world.column_counts[1] = 0
    with pytest.raises(ValueError, match="contradict"):
        world.rows(1, 5)
    assert not world.cells.any()
    world.column_counts[:] = true_counts
    world.n = int(true_counts[0].max()) - 1
    with pytest.raises(ValueError, match=rf"of {world.n} users"):
        world.rows(1, 5)
    world.n = n
    assert world.rows(1, 5) == whole


def test_count_cell_equals_sets() -> None:
    world = random_world(6, 50, 20, 5.0)
    for kind, histories in enumerate((world.primary, world.other)):
        for i in range(20):
            for j in range(20):
                k = sum(1 for a, h in zip(world.primary, histories, strict=True) if i in a and j in h)
                assert count_cell(i, j, world.users_head, world.users_data, world.head, 2, kind, world.data) == k
