"""The statistic in plain Python: what the kernels are checked against, and the place to read it.

G2, the log-likelihood ratio of a 2x2 table: T. Dunning, "Accurate Methods for the Statistics of Surprise and
Coincidence", Computational Linguistics 19(1), 1993; written with x ln x of the counts as in Mahout's
`LogLikelihood`. Counts are of distinct users: `n` in all, `n_row` with the row's item, `n_col` with the
column's, `k` with both. Doubles are added in one fixed order, here and in the kernels: last bits decide ties.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

from llr.xlogx import LARGEST, table
from llr.xlogx import x_log_x as _x_log_x


def x_log_x(x: int) -> float:
    """x ln x of an integer 0 <= x <= 2^31; 0 at 0. ValueError otherwise."""
    if not 0 <= x <= LARGEST:
        raise ValueError(f"x is {x}; x ln x is kept for integers from 0 to 2^31")
    return float(_x_log_x(x, table()))


def check_counts(k: int, n_row: int, n_col: int, n: int) -> None:
    """ValueError that says which of the counts cannot be, and why."""
    if not 0 <= n <= LARGEST:
        raise ValueError(f"n is {n}; it must be from 0 to 2^31 users")
    for name, count in (("n_row", n_row), ("n_col", n_col)):
        if not 0 <= count <= n:
            raise ValueError(f"{name} is {count}; it must be from 0 to n = {n}, the number of users")
    if not 0 <= k <= min(n_row, n_col):
        raise ValueError(f"k is {k}; it must be from 0 to the smaller of n_row = {n_row} and n_col = {n_col}")
    if n_row + n_col - k > n:
        raise ValueError(
            f"k is {k}; with n_row = {n_row} and n_col = {n_col} it must be at least {n_row + n_col - n}, "
            f"for there are only n = {n} users"
        )


def g2(k: int, n_row: int, n_col: int, n: int) -> float:
    """Log-likelihood ratio, 0 or more; 0 where a row or column is empty or has everyone. Invalid: ValueError."""
    check_counts(k, n_row, n_col, n)
    both = x_log_x(k) + x_log_x(n_row - k)
    neither = x_log_x(n_col - k) + x_log_x(n - n_row - n_col + k)
    column = x_log_x(n_col) + x_log_x(n - n_col)
    row = x_log_x(n) - (x_log_x(n_row) + x_log_x(n - n_row))
    value = 2.0 * (((both + neither) - column) + row)
    return max(value, 0.0)  # round-off at independence may fall below


def root_llr(k: int, n_row: int, n_col: int, n: int) -> float:
    """Signed square root of `g2`: negative where fewer users than expected have both. Invalid: ValueError."""
    root = sqrt(g2(k, n_row, n_col, n))
    return -root if is_negative(k, n_row, n_col, n) else root


def is_negative(k: int, n_row: int, n_col: int, n: int) -> bool:
    """Whether the association is negative: fewer users have both than independence would give."""
    return k * n < n_row * n_col


def epsilon(n: int) -> float:
    """The G2 among `n` users that round-off alone may give to independent columns; such cells are left out."""
    return 16 * 2.0**-52 * x_log_x(n)


def top_row(
    columns: Mapping[str, tuple[int, int]],
    n_row: int,
    n: int,
    *,
    top_k: int,
    min_llr: float = 0.0,
    anti_correlations: bool = False,
    own: str | None = None,
) -> list[tuple[str, float]]:
    """A row: (id, G2) by G2 descending, then UTF-8 bytes of the id ascending, at most `top_k` of them.

    columns: id -> (k, n_col). own: the row's own id where the indicator is the primary; it is left out.
    """
    scored = []
    for column, (k, n_col) in columns.items():
        if k == 0 or column == own or (is_negative(k, n_row, n_col, n) and not anti_correlations):
            continue
        value = g2(k, n_row, n_col, n)
        if value > epsilon(n) and value >= min_llr:
            scored.append((column, value))
    scored.sort(key=lambda entry: (-entry[1], entry[0].encode()))
    return scored[:top_k]
