"""Runs pytest again and again, each time in a fork of a process that has imported the libraries, none of the program.

`python -P forks.py TABLE`: for each request, a line of JSON on standard input, the exit code of pytest on standard
output. TABLE is a file with `llr.xlogx.table()`: uncompiled it takes longer than most runs, and no mutant is about it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import elasticsearch  # noqa: F401  # what takes long to import, and is the same for all mutants
import hypothesis.strategies  # noqa: F401
import numba  # noqa: F401
import numpy as np
import pyarrow  # noqa: F401
import pydantic  # noqa: F401
import pytest

LONGEST = 300  # seconds of a run
OUTPUT = "output"  # in the folder of a run, what pytest says


def run(folder: str, tests: list[str], factor: str, table: Any) -> int:
    """The tests of the program in `folder`, which become those of this process."""
    signal.alarm(LONGEST)
    output = os.open(Path(folder, OUTPUT), os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ["EXAMPLES_FACTOR"] = factor
    from llr import xlogx

    assert xlogx.__file__.startswith(folder)
    xlogx.table = lambda: table  # type: ignore[assignment]
    try:
        return pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *tests])
    finally:
        sys.stdout.flush()


def serve(table: Any) -> None:
    """Until standard input ends."""
    for request in sys.stdin:
        child = os.fork()
        if child == 0:
            code = -1
            try:
                code = run(**json.loads(request), table=table)
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    of_x = np.load(sys.argv[1])
    of_x.setflags(write=False)
    serve(of_x)
