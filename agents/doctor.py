"""What `cco doctor` looks at: would the engine run well here, and if not, what to do about it.

Nothing heavy is imported at the top: a broken numba must be reported, not be in the way of the report.
"""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import socket
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warning", "failure"]

OWN_PACKAGES = ("agents", "cco", "llr", "model_sync")
ROOT = Path(__file__).resolve().parent.parent
MIN_PYTHON = (3, 11)
MIN_DISK = 1 << 30  # bytes free, below which a warning is due
MIN_FILES = 1024  # open files: RocksDB keeps its tables open
# Ports of the servers that the stream meets when it leaves the one process.
PORTS = {9092: "Kafka", 9200: "Elasticsearch", 6066: "Faust's web server"}


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str  # what is there
    advice: str = ""  # what to do about it, where something should be done


def python_check(version: tuple[int, ...] = sys.version_info[:3], bits: int = 8 * struct.calcsize("P")) -> Check:
    """Version and word size of the interpreter."""
    found = f"{'.'.join(map(str, version))}, {platform.python_implementation()}, {bits} bits, {sys.executable}"
    if version[:2] < MIN_PYTHON:
        return Check("python", "failure", found, "install Python 3.11 or newer and make a virtual environment with it")
    if bits != 64 or platform.python_implementation() != "CPython":
        return Check("python", "failure", found, "use 64-bit CPython: numba has nothing for others")
    return Check("python", "ok", found)


def packages_check(requires: Sequence[str] | None = None) -> Check:
    """Whether what the project depends on is installed; `requires` as in its metadata."""
    if requires is None:
        try:
            requires = importlib.metadata.requires("streaming-cco") or ()
        except importlib.metadata.PackageNotFoundError:
            advice = "install it (pip install -e .), so that its dependencies are checked too"
            return Check(
                "packages", "warning", "streaming-cco itself is not installed; it runs from its folder", advice
            )
    needed = [r for r in requires if "extra ==" not in r]
    names = [re.split(r"[^A-Za-z0-9._-]", r, maxsplit=1)[0] for r in needed]
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check("packages", "failure", f"missing: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Check("packages", "ok", ", ".join(found))


def _providers(name: str, path: Iterable[str]) -> list[Path]:
    """Folders and files on the import path that `import name` could mean, first come first."""
    found: list[Path] = []
    for entry in path:
        base = Path(entry or ".")
        package, module = base / name, base / f"{name}.py"
        there = [package] if package.is_dir() and any(package.glob("*.py")) else []
        there += [module] if module.is_file() else []
        found += [place.resolve() for place in there if place.resolve() not in found]
    return found


def _winner(name: str, path: Sequence[str] | None) -> Path | None:
    """The folder or file that `import name` takes: from `path`, or as this very process does."""
    spec = importlib.util.find_spec(name) if path is None else importlib.machinery.PathFinder.find_spec(name, path)
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    return Path(places[0] if places else spec.origin or ".").resolve()


def clashes_check(path: Sequence[str] | None = None, root: Path = ROOT) -> Check:
    """Whether another distribution has a package of one of our names (some agent frameworks install `agents`)."""
    taken, hidden = [], []
    for name in OWN_PACKAGES:
        winner = _winner(name, path)
        if winner != root / name:
            taken.append(f"`import {name}` finds {winner or 'nothing'}")
        others = [p for p in _providers(name, sys.path if path is None else path) if p.parent != root and p != winner]
        hidden += [f"{other} is hidden by {winner}" for other in others]
    advice = "give streaming-cco a virtual environment of its own, or uninstall the other package"
    if taken:
        return Check("package clashes", "failure", "; ".join(taken), advice)
    if hidden:
        return Check("package clashes", "warning", "; ".join(hidden), f"harmless here, not for the other: {advice}")
    return Check("package clashes", "ok", f"{', '.join(OWN_PACKAGES)} come from {root}")


def cpu_check() -> Check:
    """Cores that this process may use, and what the compiled kernels are compiled for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        from llvmlite import binding

        target = binding.get_host_cpu_name()
        features = binding.get_host_cpu_features()
    except Exception as error:  # whatever is wrong with it, numba's own check says so
        return Check("cpu", "warning", f"{cores} to use, {platform.machine()}; features unknown ({error})")
    present = [name for name in ("sse4.2", "avx2", "avx512f", "neon", "sve") if features.get(name)]
    found = f"{cores} to use, {platform.machine()}, {target}, {' '.join(present) or 'no vector units known'}"
    if platform.machine() == "x86_64" and "avx2" not in present:
        return Check("cpu", "warning", found, "works, slower than measured: the kernels profit from AVX2")
    return Check("cpu", "ok", found)


def openblas_check(environment: Mapping[str, str] = os.environ) -> Check:
    """Whether OpenBLAS is held to an older processor than this one."""
    names = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
    forced = [f"{name}={environment[name]}" for name in names if name in environment]
    if forced:
        advice = "slows matrix products of numpy and scipy (benchmarks against them), not the kernels of this project"
        return Check("openblas", "warning", " ".join(forced), advice)
    return Check("openblas", "ok", "chooses its kernels for this processor by itself")


def kernel_check() -> Check:
    """Whether numba compiles, with the arithmetic that the kernels rely on."""
    try:
        import numba

        add = numba.njit(lambda a, b: a + b)
        if add(2**40, 1) != 2**40 + 1:
            return Check("jit compiler", "failure", "2**40 + 1 came out wrong", "reinstall numba and llvmlite")
    except Exception as error:
        return Check(
            "jit compiler", "failure", f"{type(error).__name__}: {error}", "reinstall numba, llvmlite and numpy"
        )
    return Check("jit compiler", "ok", f"numba {numba.__version__} compiles")


def cache_check(folder: Path | None = None) -> Check:
    """Whether compiled kernels can be kept; without it every start compiles them anew."""
    if folder is None:
        try:
            from llr.jit import cache_folder
        except Exception as error:
            return Check("jit cache", "failure", f"{type(error).__name__}: {error}", "mend the jit compiler first")
        folder = cache_folder()
    advice = (
        "make it writable, or set NUMBA_CACHE_DIR to a folder that is; until then every start compiles for a minute"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check("jit cache", "failure", f"{folder}: {error.strerror or error}", advice)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return Check("jit cache", "ok", f"{folder}, writable, {size / 1e6:.1f} MB of compiled kernels")


def disk_check(folder: Path | None = None, least: int = MIN_DISK) -> Check:
    """Free space where state and temporary files go."""
    places = [folder] if folder is not None else [Path.cwd(), Path(tempfile.gettempdir())]
    found, short = [], False
    for place in places:
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            return Check("disk", "failure", f"{place}: {error.strerror or error}", "name a folder that exists")
        short = short or free < least
        found.append(f"{free / 1e9:.1f} GB free in {place}")
    advice = "free some: a snapshot needs about 30 bytes per retained interaction" if short else ""
    return Check("disk", "warning" if short else "ok", "; ".join(found), advice)


def memory_check(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Memory that can be had."""
    try:
        fields = dict(re.findall(r"^(\w+):\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE))
        total, available = int(fields["MemTotal"]) * 1024, int(fields["MemAvailable"]) * 1024
    except (OSError, KeyError):
        return Check("memory", "ok", "not known on this system")
    found = f"{available / 1e9:.1f} of {total / 1e9:.1f} GB available"
    if available < 1e9:
        return Check("memory", "warning", found, "close something: 1 GB is enough for some ten million interactions")
    return Check("memory", "ok", f"{found}: room for some {available / 40e6:,.0f} million retained interactions")


def files_check() -> Check:
    """How many files may be open at once."""
    try:
        import resource
    except ImportError:
        return Check("open files", "ok", "not limited on this system")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < MIN_FILES:
        return Check("open files", "warning", f"limit {soft}", f"raise it: ulimit -n {MIN_FILES} or more")
    return Check("open files", "ok", f"limit {soft}")


def ports_check(ports: Mapping[int, str] = PORTS) -> Check:
    """Who answers on the ports of the usual servers here. Nothing in one process needs them."""
    parts = []
    for port, owner in ports.items():
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.settimeout(0.5)
            state = "something answers" if probe.connect_ex(("127.0.0.1", port)) == 0 else "free"
        parts.append(f"{port} ({owner}) {state}")
    return Check("ports", "ok", "; ".join(parts))


CHECKS: tuple[Callable[[], Check], ...] = (
    python_check,
    packages_check,
    clashes_check,
    cpu_check,
    openblas_check,
    kernel_check,
    cache_check,
    memory_check,
    disk_check,
    files_check,
    ports_check,
)


def examine() -> list[Check]:
    """All checks, in the order in which they are shown. None of them raises."""
    return [check() for check in CHECKS]
