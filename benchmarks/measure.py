"""Inside of a child process: time, memory, percentiles, warm-up."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.scenario import Result

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


class Rehearsed(Exception):
    """The warm-up is done and the process was started for nothing else."""


def status_bytes(key: str, process: int | str = "self") -> int:
    """A size from the kernel's account of a process: VmRSS (resident now) or VmHWM (at most)."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {key} in /proc/{process}/status: memory can be measured on Linux only")


def cpu_seconds(process: int | str = "self") -> float:
    """Of all threads of a process since its beginning, in the kernel too."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Bench:
    """What a task is given: where the inputs are, and how to account for its time and memory."""

    def __init__(self, folder: Path, quick: bool, rehearse: bool) -> None:
        self.folder = folder
        self.quick = quick
        self._rehearse = rehearse
        self._inputs = 0
        self._before = 0
        self._warm_up = 0.0

    @contextmanager
    def loading(self) -> Iterator[None]:
        """What becomes resident in here is input."""
        gc.collect()
        before = status_bytes("VmRSS")
        yield
        gc.collect()
        self._inputs += status_bytes("VmRSS") - before

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do something small with every kernel that will be timed: compiles it or loads it from its cache."""
        begin = time.perf_counter()
        work()
        self._warm_up = time.perf_counter() - begin
        if self._rehearse:
            raise Rehearsed

    def start(self) -> float:
        """Forget the peak so far; the time now."""
        gc.collect()
        with suppress(OSError):  # without it the peak includes the warm-up: higher than the truth, never lower
            Path("/proc/self/clear_refs").write_text("5")
        self._before = status_bytes("VmRSS")
        return time.perf_counter()

    def memory(self) -> Result:
        """`peak_bytes` since the start, of the whole process (Python and libraries) without its inputs.

        `growth_bytes` is how much more that was than at the start; `now_bytes` what is resident.
        """
        peak = status_bytes("VmHWM")
        return {
            "peak_bytes": peak - self._inputs,
            "growth_bytes": peak - self._before,
            "now_bytes": status_bytes("VmRSS") - self._inputs,
            "inputs_bytes": self._inputs,
            "warm_up_seconds": self._warm_up,
        }


def spread(samples: Sequence[float] | npt.NDArray[np.float64]) -> Result:
    """Percentiles of samples, by name, and all whole percentiles for whoever wants to draw them."""
    array = np.asarray(samples, np.float64)
    found: Result = {name: float(np.percentile(array, q)) for name, q in PERCENTILES.items()}
    return {**found, "samples": array.size, "mean": float(array.mean()),
            "percentiles": [float(f"{x:.4g}") for x in np.percentile(array, np.arange(101))]}  # fmt: skip


def pin(cores: int) -> list[int]:
    """Run on `cores` cores only, the last of those that are allowed; answers which."""
    allowed = sorted(os.sched_getaffinity(0))
    if len(allowed) < cores:
        raise RuntimeError(f"{cores} cores are needed and {len(allowed)} are there")
    os.sched_setaffinity(0, allowed[-cores:])
    return allowed[-cores:]
