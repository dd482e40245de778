"""Weights as the index keeps them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_KEPT_BITS = np.uint32(0xFFFF8000)


def truncate(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """float32 of the same shape: rounded to float32, then cut to 9 significant bits.

    Lucene's FeatureField stores the bits of a positive float >>> 15 as a term frequency, so sign, exponent
    and 8 bits of fraction survive; cutting beforehand makes what is sent equal to what is kept.
    """
    weights = np.array(values, np.float32, ndmin=1)
    bits = weights.view(np.uint32)
    bits &= _KEPT_BITS
    return weights.reshape(np.shape(values))
