"""The proofs catch what they are for: each named mutant of the program makes the named test fail.

A mutant is the program with one text replaced, in a copy. Its kernels run uncompiled (NUMBA_DISABLE_JIT),
which changes nothing in them and saves compiling each mutant. The same tests pass in the same way on the
unchanged copy (`control`), so a failure is the mutant's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from llr.xlogx import table

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("llr", "cco", "model_sync", "agents", "tests")

STATES = "tests/cco/test_user_stage.py::test_after_every_event_states_and_edits_equal_the_oracle"
CUTS = "tests/cco/test_user_stage.py::test_cuts_taken_while_events_go_on_restore_their_position"
ROWS = "tests/cco/test_pipeline.py::test_each_patch_each_row_and_the_end"
AGAIN = "tests/cco/test_pipeline.py::test_applying_messages_again_changes_nothing"
KERNEL = "tests/llr/test_kernels.py::test_equals_reference"
BATCH = "tests/cco/test_batch.py::test_equals_oracle"


@dataclass(frozen=True)
class Mutant:
    """`old` stands exactly once in `file`; with `new` in its place, `test` has to fail."""

    name: str
    test: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "cap off by one",
        STATES,
        "cco/retention.py",
        "if n < cap:\n        return INSERTED",
        "if n <= cap:\n        return INSERTED",
    ),
    Mutant(
        "wrong tie in time",
        STATES,
        "cco/retention.py",
        "time == at_time and h <= at_hash",
        "time == at_time and h >= at_hash",
    ),
    Mutant("expires one second early", STATES, "cco/retention.py", "< cutoff:", "<= cutoff:"),
    Mutant(
        "missed leave",
        STATES,
        "cco/user_machine.py",
        "            else:\n                emit(state, LEAVE, user, 0, 0, p)\n    return True",
        "    return True",
    ),
    Mutant(
        "watermark after the event",
        STATES,
        "cco/user_machine.py",
        "        _advance(state, rule, time)\n        while True:",
        "        while True:",
    ),
    Mutant(
        "visitors never expire", STATES, "cco/user_state.py", "np.int64(min(windows, default=NEVER))", "np.int64(NEVER)"
    ),
    Mutant("old buckets stay in a prior", ROWS, "cco/priors.py", "rings[ring, :, bucket % BUCKETS] = 0", "pass"),
    Mutant(
        "a cut without copy on write",
        CUTS,
        "cco/user_machine.py",
        "    if state.flags[user] & TO_SAVE:\n        pack(state, user)\n",
        "    if state.flags[user] & TO_SAVE:\n",
    ),
    Mutant(
        "a stale suppression",
        ROWS,
        "cco/item_stage.py",
        "rows.select(np.flatnonzero(before != fingerprints))",
        "rows.select(np.flatnonzero((before == 0) != (fingerprints == 0)))",
    ),
    Mutant(
        "no sweep: N drifts unseen",
        ROWS,
        "cco/item_stage.py",
        "changed |= self._take_counts(edits, due_before)",
        "self._take_counts(edits, due_before)",
    ),
    Mutant(
        "too old rows wait for room",
        ROWS,
        "cco/item_stage.py",
        "MUST_SHARE, MAY_SHARE = 0.8, 0.25",
        "MUST_SHARE, MAY_SHARE = 8.0, 5.0",
    ),
    Mutant(
        "a moved holder is not told",
        ROWS,
        "cco/item_machine.py",
        "state.primary.extra[begin + slot] = np.uint32(at)",
        "pass",
    ),
    Mutant(
        "a user whom the watermark changed is not saved",
        "tests/cco/test_user_stage.py::test_a_cut_owes_users_whom_the_watermark_alone_changed",
        "cco/user_machine.py",
        "            _mark(state, user)\n            _expire(",
        "            _expire(",
    ),
    Mutant(
        "one counted field makes all exact",
        "tests/cco/test_pipeline.py::test_a_row_that_was_counted_in_one_field_is_not_exact_in_all",
        "cco/item_stage.py",
        "whole = items[(fields & np.uint32(self._all >> 1)) == self._all >> 1]",
        "whole = items",
    ),
    Mutant(
        "the smallest change goes first",
        "tests/cco/test_pipeline.py::test_the_largest_relative_change_goes_first",
        "cco/item_stage.py",
        "np.argpartition(-relative",
        "np.argpartition(relative",
    ),
    Mutant(
        "removal gives no block back",
        "tests/cco/test_lists.py::test_an_arena_stays_within_what_its_lists_take",
        "cco/lists.py",
        "packed = live <= top // 2",
        "packed = False",
    ),
    Mutant(
        "an edit applied twice counts twice",
        AGAIN,
        "cco/item_machine.py",
        "    if find(state.primary.data, begin, n, item) >= 0:\n        return\n",
        "",
    ),
    Mutant(
        "ties of a row stay as they were found",
        KERNEL,
        "llr/selection.py",
        "sort_by_id(best_feature, x, y, id_keys, spare_keys, spare_features, id_bytes, id_offsets)",
        "pass",
    ),
    Mutant(
        "round-off counts as association", KERNEL, "llr/kernels.py", "epsilon = 16 * _ULP *", "epsilon = 0 * _ULP *"
    ),
    Mutant(
        "hits of one score go by position",
        "tests/model_sync/test_memory.py::TestMemoryIndex::test_ties_go_by_the_bytes_of_the_id",
        "model_sync/inverted.py",
        "    return id_before(a, b, arena, offsets)",
        "    return a < b",
    ),
    Mutant(
        "the batch does not expire what is too old at the end",
        BATCH,
        "cco/batch_fold.py",
        "        if windowed:\n            drop_expired(buffer, rule, watermarks[of_user[u]])\n",
        "",
    ),
]


class Runs:
    """Runs of tests, in forks of one process that has the libraries: importing them takes longer than most runs."""

    def __init__(self, table_file: Path) -> None:
        np.save(table_file, table())
        environment = {
            **os.environ,
            "NUMBA_DISABLE_JIT": "1",
            "HYPOTHESIS_PROFILE": "mutants",
            "OPENBLAS_NUM_THREADS": "1",  # it forks
            "PYTEST_ADDOPTS": "",  # those of this run may be of plugins, which take long to import
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONWARNINGS": "ignore::RuntimeWarning",  # numpy speaks of wrapping hashes when they are not compiled
        }
        command = [sys.executable, "-P", str(Path(__file__).with_name("forks.py")), str(table_file)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def __call__(self, folder: Path, tests: list[str], factor: float) -> tuple[int, str]:
        """The exit code of pytest, and what it said."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps({"folder": str(folder), "tests": tests, "factor": str(factor)}), file=self.process.stdin)
        self.process.stdin.flush()
        code = int(self.process.stdout.readline())
        return code, (folder / "output").read_text()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(tmp_path_factory.mktemp("table") / "table.npy")
    with runs.process:
        yield runs


def _copy(to: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, to / package, ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_the_proof_catches(mutant: Mutant, run: Runs, tmp_path: Path) -> None:
    _copy(tmp_path)
    source = tmp_path / mutant.file
    text = source.read_text()
    assert text.count(mutant.old) == 1, f"{mutant.file} holds the text to mutate {text.count(mutant.old)} times"
    source.write_text(text.replace(mutant.old, mutant.new))
    code, output = run(tmp_path, [mutant.test], 6)
    assert code == 1, f"{mutant.name} was not caught:\n{output[-5000:]}"
    assert "1 failed" in output, output[-3000:]


def test_control(run: Runs, tmp_path: Path) -> None:
    """Without a mutant all of them pass, run the same way."""
    _copy(tmp_path)
    code, output = run(tmp_path, sorted({mutant.test for mutant in MUTANTS}), 1)
    assert code == 0, output[-5000:]
