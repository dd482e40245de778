"""The one x log x of every path: counts are integers, so it is a table, and beyond it the same bits computed.

The logarithms of numpy, of the C library and of the JVM differ in their last bits, and last bits decide
ties. This one consists of IEEE 754 additions, multiplications and one division in a fixed order, so it has
the same bits on every machine. Algorithm: `__ieee754_log` of fdlibm 5.3 (Sun Microsystems, 1993, e_log.c):
x = 2^k (1 + f) with sqrt(2)/2 < 1 + f < sqrt(2); log(1 + f) = f - s (f - R) with s = f / (2 + f) and R a
Remez polynomial in s^2; error below 1 ulp. Of the two forms of the last step that e_log.c chooses between, the
one with f^2 / 2 is always taken.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from llr.jit import kernel

TABLE_LIMIT = 2**20  # the largest x in the table: 8 MB of doubles
LARGEST = 2**31  # the largest x that the paths may ask for

_MANTISSA = np.int64(0x000FFFFFFFFFFFFF)
_ONE = np.int64(0x3FF0000000000000)
_HALF = np.int64(0x3FE0000000000000)
_SQRT2_FRACTION = np.int64(0x0006A09C00000000)  # where e_log.c splits: just below the fraction bits of sqrt(2)

_LN2_HI = 6.93147180369123816490e-01  # 33 bits of ln 2: k * _LN2_HI is exact
_LN2_LO = 1.90821492927058770002e-10
_R1 = 6.666666666666735130e-01
_R2 = 3.999999999940941908e-01
_R3 = 2.857142874366239149e-01
_R4 = 2.222219843214978396e-01
_R5 = 1.818357216161805012e-01
_R6 = 1.531383769920937332e-01
_R7 = 1.479819860511658591e-01


@kernel
def natural_log(x: int) -> float:
    """Natural logarithm of an integer 1 <= x <= 2^53, within 1 ulp, the same bits everywhere."""
    bits = np.float64(x).view(np.int64)
    exponent = (bits >> 52) - 1023
    fraction = bits & _MANTISSA
    if fraction >= _SQRT2_FRACTION:
        exponent += 1
        f = np.int64(fraction | _HALF).view(np.float64) - 1.0
    else:
        f = np.int64(fraction | _ONE).view(np.float64) - 1.0
    k = np.float64(exponent)
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    even = w * (_R2 + w * (_R4 + w * _R6))
    odd = z * (_R1 + w * (_R3 + w * (_R5 + w * _R7)))
    half_square = 0.5 * f * f
    series = s * (half_square + (odd + even))
    return k * _LN2_HI - ((half_square - (series + k * _LN2_LO)) - f)


@kernel
def compute(x: int) -> float:
    """x ln x of an integer 0 <= x <= 2^31 without a table; 0 at 0."""
    if x == 0:
        return 0.0
    return np.float64(x) * natural_log(x)


@kernel
def _fill(out: Any) -> Any:
    for x in range(out.size):
        out[x] = compute(x)


@lru_cache(maxsize=1)
def table() -> npt.NDArray[np.float64]:
    """Read-only float64[2**20 + 1] of x ln x, built once in a process."""
    values = np.empty(TABLE_LIMIT + 1, np.float64)
    _fill(values)
    values.setflags(write=False)
    return values


@kernel
def x_log_x(x: Any, values: Any) -> Any:
    """x ln x of an integer 0 <= x <= 2^31: from `values`, which is `table()`, or computed: the same bits."""
    if x < values.size:
        return values[x]
    return compute(x)
