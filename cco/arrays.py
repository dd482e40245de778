"""Arrays that grow: large ones in place, without a copy and on huge pages.

A copy of a gigabyte stops the stream for a second, and random access over gigabytes in pages of 4 KB
spends its time on address translation. So an array of LARGE bytes or more begins a region of address
space that is far larger than it: memory is committed as it is first written, and growing is a longer
view of the same region. Where address space is limited or counted, arrays are copied as they grow.
"""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T", bound=np.generic)

LARGE = 1 << 22  # bytes
# Regions begin at multiples of 2 MB. Were their arrays to begin there too, entry k of all of them would compete for
# the same few places of each cache, and ingest, which uses several by the same index, would take 1.5 times as long.
_begins = cycle(range(0, 1 << 16, 37 * 64))  # bytes, whole cache lines
_MOST = 1 << 34  # bytes: no array of 32-bit indices is larger
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
_COUNTED = "2"  # the kernel counts what is reserved as if it were used


@cache
def _region_bytes() -> int:
    """Address space for one array, at most all memory; 0 where arrays are to be copied as they grow."""
    if sys.platform != "linux":
        return 0
    import resource  # is not there on every platform

    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return 0
    with suppress(OSError):
        if _OVERCOMMIT.read_text().strip() == _COUNTED:
            return 0
    return min(_MOST, os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE)


def _region(size: int, dtype: np.dtype[T]) -> npt.NDArray[T] | None:
    """A region for at least `size` entries: zeros, none of them committed. None where there cannot be one."""
    room = _region_bytes()
    if room < LARGE or sys.platform != "linux":
        return None
    try:
        memory = mmap.mmap(-1, room, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError:
        return None
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    begin = next(_begins)
    entries = (room - begin) // dtype.itemsize
    return np.frombuffer(memory, dtype, entries, begin) if entries >= size else None


def zeros(size: int, dtype: type[T]) -> npt.NDArray[T]:
    """`np.zeros(size, dtype)` that `longer` may lengthen in place."""
    kind = np.dtype(dtype)
    whole = _region(size, kind) if size * kind.itemsize >= LARGE else None
    return np.zeros(size, kind) if whole is None else whole[:size]


def longer(old: npt.NDArray[T], size: int) -> npt.NDArray[T]:
    """`old` (1-D) with zeros behind it up to `size`: the same memory where that was reserved, else a copy.

    `old` is as it came from `zeros` or `longer`, and nothing has been written behind its end.
    """
    whole: Any = old.base
    if isinstance(getattr(whole, "base", None), memoryview) and whole.size >= size:
        lengthened: npt.NDArray[T] = whole[:size]
        return lengthened
    new = zeros(size, old.dtype.type)
    new[: old.size] = old
    return new


def wider(old: npt.NDArray[T], size: int) -> npt.NDArray[T]:
    """`old` with a last axis of `size`, zeros in the new part: a copy, but for large 1-D arrays."""
    if old.ndim == 1:
        return longer(old, size)
    new = np.zeros((*old.shape[:-1], size), old.dtype)
    new[..., : old.shape[-1]] = old
    return new
