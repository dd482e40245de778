"""A child process: pins itself, runs one task, and prints its result as one line of JSON.

python -m benchmarks.child '{"function": "models.stream", "arguments": {}, "cores": 1, ...}'
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

from benchmarks.measure import Bench, Rehearsed, pin


def main(order: str) -> None:
    """Run what the order (JSON) says."""
    given = json.loads(order)
    cores = pin(given["cores"])  # before the task's module: thread pools count the cores when they are loaded
    module, function = given["function"].split(".")
    bench = Bench(Path(given["folder"]), given["quick"], given["rehearse"])
    work = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    try:
        result = {**bench_result(work(bench, **given["arguments"])), "cores": cores}
    except Rehearsed:
        result = {"rehearsed": True}
    print("\n" + json.dumps(result), flush=True)


def bench_result(found: object) -> dict[str, object]:
    """The result of a task. Raises TypeError unless it is a mapping."""
    if not isinstance(found, dict):
        raise TypeError(f"a task answers a dict, not {type(found).__name__}")
    return found


if __name__ == "__main__":
    main(sys.argv[1])
