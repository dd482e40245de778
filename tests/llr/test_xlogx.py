"""x ln x: accuracy, and the same bits from the table and without it."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest

from llr.xlogx import LARGEST, TABLE_LIMIT, compute, natural_log, table, x_log_x


def test_natural_log_is_within_one_ulp() -> None:
    rng = np.random.default_rng(0)
    some = [2**e + d for e in range(1, 32) for d in (-1, 0, 1)] + rng.integers(2, LARGEST, 4000).tolist()
    worst = 0.0
    with mpmath.workprec(160):
        for x in [*range(2, 3000), *some, 2**53]:
            if x > 1:
                exact = mpmath.log(x)
                worst = max(worst, abs(float((mpmath.mpf(natural_log(x)) - exact) / math.ulp(float(exact)))))
    assert natural_log(1) == 0.0
    assert worst < 0.7  # ulp; the algorithm promises 1


@pytest.mark.parametrize(
    ("x", "bits"), [(2, "0x1.62e42fefa39efp-1"), (3, "0x1.193ea7aad030ap+0"), (10, "0x1.26bb1bbb55516p+1")]
)
def test_bits_are_the_algorithms_own(x: int, bits: str) -> None:
    """The same on every machine; not the C library's, whose ln 3 ends in b."""
    assert natural_log(x).hex() == bits


def test_table_equals_computing() -> None:
    values = table()
    assert values.shape == (TABLE_LIMIT + 1,)
    assert not values.flags.writeable
    assert table() is values
    short = np.zeros(1)
    for x in [0, 1, 2, 3, 12345, TABLE_LIMIT - 1, TABLE_LIMIT, TABLE_LIMIT + 1, 2**31 - 1, LARGEST]:
        assert x_log_x(x, values) == x_log_x(x, short) == compute(x)
    assert values[0] == 0.0
    assert values[1] == 0.0


def test_x_log_x_rises_up_to_the_largest() -> None:
    xs = [TABLE_LIMIT - 1, TABLE_LIMIT, TABLE_LIMIT + 1, 2**30, 2**31 - 1, 2**31]
    values = [x_log_x(x, table()) for x in xs]
    assert values == sorted(set(values))
    assert values[-1] == pytest.approx(2**31 * 31 * math.log(2), rel=1e-15)
