"""Growing arrays."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)


def wider(old: npt.NDArray[T], size: int) -> npt.NDArray[T]:
    """A copy with a last axis of `size`, zeros in the new part."""
    new = np.zeros((*old.shape[:-1], size), old.dtype)
    new[..., : old.shape[-1]] = old
    return new
