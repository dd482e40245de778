"""The reference: published values, edges, round-off, invalid counts."""

from __future__ import annotations

import json
from math import isclose

import mpmath
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llr.reference import epsilon, g2, root_llr, top_row, x_log_x
from tests.shared import shared

LARGEST = 2**31


@st.composite
def counts(draw: st.DrawFn, largest: int = LARGEST) -> tuple[int, int, int, int]:
    n = draw(st.one_of(st.integers(0, 50), st.integers(0, largest), st.integers(largest - 5, largest)))
    n_row, n_col = draw(st.integers(0, n)), draw(st.integers(0, n))
    k = draw(st.integers(max(0, n_row + n_col - n), min(n_row, n_col)))
    return k, n_row, n_col, n


@pytest.mark.parametrize(
    ("cells", "expected"),
    [  # Mahout's LogLikelihoodTest: k11, k12, k21, k22
        ((1, 0, 0, 1), 2.772589),
        ((10, 0, 0, 10), 27.72589),
        ((5, 1995, 0, 100000), 39.33052),
        ((1000, 1995, 1000, 100000), 4730.737),
        ((1000, 1000, 1000, 100000), 5734.343),
        ((1000, 1000, 1000, 99000), 5714.932),
    ],
)
def test_published_values(cells: tuple[int, int, int, int], expected: float) -> None:
    k11, k12, k21, _ = cells
    assert isclose(g2(k11, k11 + k12, k11 + k21, sum(cells)), expected, rel_tol=1e-6)


def test_universal_recommender_values() -> None:
    """Three users: both of two, one of one and two, all of all."""
    cases = json.loads(shared("conformance/ur_cases.json").read_text())
    found = {value for rows in cases["llr"].values() for row in rows.values() for value in row.values()}
    ours = {g2(2, 2, 2, 3), g2(1, 1, 2, 3), g2(2, 2, 3, 3)}
    assert cases["numUsers_N"] == 3
    assert sorted(found) == pytest.approx(sorted(ours), rel=1e-13, abs=1e-13)


def test_root_is_signed() -> None:
    assert root_llr(904, 904 + 21060, 904 + 1144, 904 + 21060 + 1144 + 283012) > 0
    assert root_llr(36, 36 + 21928, 36 + 60280, 36 + 21928 + 60280 + 623876) < 0
    assert root_llr(5, 2000, 5, 102000) == pytest.approx(39.33052**0.5, rel=1e-6)
    assert root_llr(0, 1, 1, 2) == -root_llr(1, 1, 1, 2)


@pytest.mark.parametrize("n", [0, 1, 2, 1000, LARGEST - 1, LARGEST])
def test_empty_and_full_rows_and_columns_tell_nothing(n: int) -> None:
    for other in {0, n // 2, n}:
        for k, n_row, n_col in [(0, 0, other), (0, other, 0), (other, n, other), (other, other, n)]:
            assert g2(k, n_row, n_col, n) <= epsilon(n)


def test_edges_at_the_largest_n() -> None:
    half = LARGEST // 2
    assert g2(half, half, half, LARGEST) == pytest.approx(2 * LARGEST * float(mpmath.log(2)), rel=1e-12)
    assert g2(0, half, half, LARGEST) == g2(half, half, half, LARGEST)
    assert g2(1, 1, 1, LARGEST) == pytest.approx(2 * (1 + 31 * float(mpmath.log(2))), abs=epsilon(LARGEST))
    assert root_llr(0, half, half, LARGEST) < 0


@settings(max_examples=300, deadline=None)
@given(counts())
def test_close_to_exact_arithmetic(of: tuple[int, int, int, int]) -> None:
    k, n_row, n_col, n = of
    with mpmath.workprec(200):

        def xl(x: int) -> mpmath.mpf:
            return x * mpmath.log(x) if x else mpmath.mpf(0)

        exact = 2 * (
            xl(k) + xl(n_row - k) + xl(n_col - k) + xl(n - n_row - n_col + k)
            - xl(n_col) - xl(n - n_col) - xl(n_row) - xl(n - n_row) + xl(n)
        )  # fmt: skip
        assert abs(g2(*of) - exact) <= 20 * 2.0**-52 * x_log_x(n)


@settings(max_examples=200, deadline=None)
@given(counts(largest=10**6), st.integers(1, 1000))
def test_falls_with_the_column_and_rises_with_k(of: tuple[int, int, int, int], step: int) -> None:
    """What the rejection table of the kernels stands on."""
    k, n_row, n_col, n = of
    slack = 64 * 2.0**-52 * x_log_x(n)
    wider = min(n_col + step, n - n_row + k)
    if k * n >= n_row * wider:
        assert g2(k, n_row, wider, n) <= g2(*of) + slack
    more = min(k + step, n_row, n_col)
    if k * n >= n_row * n_col:
        assert g2(more, n_row, n_col, n) >= g2(*of) - slack


@pytest.mark.parametrize(
    ("of", "words"),
    [
        ((-1, 1, 1, 2), ["k is -1", "0 to the smaller"]),
        ((3, 2, 5, 9), ["k is 3", "n_row = 2"]),
        ((0, 2, 2, 3), ["k is 0", "at least 1", "n = 3 users"]),
        ((0, 4, 0, 3), ["n_row is 4", "n = 3"]),
        ((0, 0, -1, 3), ["n_col is -1", "n = 3"]),
        ((0, 0, 0, -1), ["n is -1", "2^31"]),
        ((0, 0, 0, LARGEST + 1), ["n is 2147483649", "2^31"]),
    ],
)
def test_invalid_counts_say_which_and_why(of: tuple[int, int, int, int], words: list[str]) -> None:
    for function in (g2, root_llr):
        with pytest.raises(ValueError, match=r"is -?\d+") as error:
            function(*of)
        assert all(word in str(error.value) for word in words)


def test_x_log_x_refuses_what_is_out_of_range() -> None:
    for x in (-1, LARGEST + 1):
        with pytest.raises(ValueError, match="2\\^31"):
            x_log_x(x)


def test_top_row_leaves_out_and_orders() -> None:
    columns = {"b": (2, 2), "a": (2, 2), "own": (4, 4), "none": (0, 5), "against": (1, 9), "weak": (2, 3)}
    row = top_row(columns, 4, 12, top_k=10, own="own")
    assert [name for name, _ in row] == ["a", "b", "weak"]
    assert row[0][1] == row[1][1] == g2(2, 4, 2, 12)
    assert [name for name, _ in top_row(columns, 4, 12, top_k=1)] == ["own"]
    assert "against" in dict(top_row(columns, 4, 12, top_k=10, anti_correlations=True))
    assert [name for name, _ in top_row(columns, 4, 12, top_k=10, own="own", min_llr=row[0][1])] == ["a", "b"]
    assert top_row({"everyone": (4, 12)}, 4, 12, top_k=10) == []
