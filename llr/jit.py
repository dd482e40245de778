"""The one decorator of every compiled kernel: it releases the GIL and compiles once to a cache.

numba keys a cached kernel by its own file alone, so a change in a kernel that it calls from another
file would go unseen and old arithmetic would live on. The cache folder is therefore named after a
digest of all kernel sources: any change compiles anew, an unchanged installation never does twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numba.experimental.function_type  # it registers types: see below

# numba looks types of arguments up in a table, and a lookup fails if another thread adds to that table meanwhile
# ("dictionary changed size during iteration"). That module is the one that numba would import, and so register, in
# whichever thread calls the first kernel.

F = TypeVar("F", bound=Callable[..., Any])

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("llr", "cco", "model_sync")


def source_digest() -> str:
    """16 hex digits over the sources of every package that holds kernels, and over numba's version."""
    digest = hashlib.sha256(numba.__version__.encode())
    for package in _PACKAGES:
        for path in sorted((_ROOT / package).glob("*.py")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Where compiled kernels are kept: NUMBA_CACHE_DIR if set, else the user's cache folder."""
    base = os.environ.get("NUMBA_CACHE_DIR")
    if base is None:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "cco-kernels")
    return Path(base) / source_digest()


COMPILED: bool = not numba.config.DISABLE_JIT  # type: ignore[attr-defined]  # NUMBA_DISABLE_JIT: plain Python

numba.config.CACHE_DIR = str(cache_folder())  # type: ignore[attr-defined]


_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}


def kernel(function: F) -> F:
    """Compile `function` without the GIL, IEEE arithmetic only (no fast math), cached on disk.

    A kernel changes arrays that it is given and allocates none: numba's reference counting is off, which
    alone makes kernels that pass tuples of arrays to each other three times faster. Allocation inside a
    kernel is a compile error.
    """
    return cast(F, numba.njit(**_OPTIONS)(function))


def inlined(function: F) -> F:
    """A kernel that becomes part of its callers: for the small ones on hot paths."""
    return cast(F, numba.njit(**_OPTIONS, inline="always")(function))
