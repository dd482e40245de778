"""What compiled kernels need of numba, in a process of their own."""

from __future__ import annotations

import subprocess
import sys

CALL = """
from llr.xlogx import table
from numba.core.typing.typeof import typeof_impl

before = set(typeof_impl.registry)
assert table().size  # filled by a kernel
print(set(typeof_impl.registry) - before)
"""


def test_the_first_call_of_a_kernel_registers_nothing() -> None:
    """What it did would break the lookups that other threads are at."""
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
