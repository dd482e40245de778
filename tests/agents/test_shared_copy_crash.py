"""A process that dies between any two steps of making or of taking a shared copy leaves nothing that is half."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from agents.state.errors import StateError
from agents.state.shared_copy import SharedCopy, open_newest
from tests.agents.states import ONE_SOURCE, child
from tests.agents.test_shared_copy import NAME, flip_a_byte, go_on, taken_up

DYING = """
import os, shutil, sys
from pathlib import Path
from agents.state.shared_copy import SharedCopy, open_newest
from agents.state.store import StateStore
from tests.agents.states import ONE_SOURCE
from tests.agents.test_shared_copy import NAME
import fsspec.implementations.local

STEPS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.move", "shutil.rmtree"}
RECORDS = {"_write", "_check"}

def dies(work, folder, steps):
    child = os.fork()  # of a process in which RocksDB has no threads yet
    if child == 0:
        def step(counts):
            nonlocal steps
            steps -= counts
            if steps < 0:
                os._exit(9)
        def audit(event, arguments):
            step(event in STEPS and (event != "open" or str(arguments[0]).startswith(str(folder))))
        def profile(frame, event, argument):  # each record that is written, or read
            code = frame.f_code
            step(event == "call" and code.co_filename.endswith("copy_format.py") and code.co_name in RECORDS)
        sys.addaudithook(audit)
        sys.setprofile(profile)
        work(folder, SharedCopy(str(folder / "shared"), NAME))
        os._exit(0)
    return os.waitpid(child, 0)[1] != 0

def download(folder, shared):
    open_newest(folder / "state", ONE_SOURCE, shared, source=0)

def upload(folder, shared):
    with StateStore.open(folder / "state", ONE_SOURCE, sources=1) as store, store.export() as export:
        shared.upload(export)

root, steps, going_on = Path(sys.argv[1]), 0, True
while going_on:
    folder = root / str(steps)
    shutil.copytree(root / "begin", folder)
    going_on = dies({"download": download, "upload": upload}[sys.argv[2]], folder, steps)
    steps += 1
print(steps)
"""


def folders(root: Path, what: str) -> list[Path]:
    """Copies of `root`/begin, each after one more step than the one before; the last one came to its end."""
    done = child(DYING, root, what)
    assert not done.stderr, done.stderr
    assert int(done.stdout) > 14
    return [root / str(steps) for steps in range(int(done.stdout))]


def place(folder: Path) -> SharedCopy:
    return SharedCopy(str(folder / "shared"), NAME)


def prepared(root: Path, mine: int) -> None:
    """A copy of the state at 200, and one at 100; the local state is at `mine`."""
    for _ in range(2):
        go_on(root / "theirs", place(root / "begin"), 100)
    if mine:
        go_on(root / "begin" / "state", None, mine)


@pytest.mark.parametrize("mine", [0, 150])
def test_dying_while_a_copy_is_taken(tmp_path: Path, mine: int) -> None:
    prepared(tmp_path, mine)
    alone = set()
    for folder in folders(tmp_path, "download"):
        if (folder / "state").exists():
            shutil.copytree(folder / "state", folder / "alone")
        alone.add(taken_up(folder / "alone", None)[0].offset)
        source, _, notes = taken_up(folder / "state", place(folder))
        assert (source.offset, notes) == (200, [])
        assert {entry.name for entry in (folder / "state").iterdir()} == {"state.json", "rocksdb"}
    assert alone == {0, mine, 200}


def test_dying_while_a_copy_is_taken_in_place_of_a_damaged_state(tmp_path: Path) -> None:
    prepared(tmp_path, 150)
    flip_a_byte(tmp_path / "begin" / "state")
    for folder in folders(tmp_path, "download"):
        assert taken_up(folder / "state", place(folder))[0].offset == 200
        (aside,) = folder.glob("state.damaged-*")
        with pytest.raises(StateError, match="is damaged"):
            open_newest(aside, ONE_SOURCE, None, source=0)


def test_dying_while_a_copy_is_made(tmp_path: Path) -> None:
    begin = tmp_path / "begin"
    for _ in range(2):
        go_on(begin / "state", place(begin), 100)
    go_on(begin / "state", None, 100)
    newest = set()
    for folder in folders(tmp_path, "upload"):
        shared = place(folder)
        copies = shared.copies()
        newest.add(copies[0].offset)
        assert len(copies) in (2, 3)
        for copy in copies:
            shared.download(copy, folder / copy.name, ONE_SOURCE)
            assert taken_up(folder / copy.name, None)[0].offset == copy.offset
        assert taken_up(folder / "state", shared)[:2][1] == "local"
        go_on(folder / "state", shared, 1)
        left = [file.name for file in (folder / "shared" / NAME).iterdir()]
        assert sorted(left) == sorted(copy.name for copy in shared.copies()) and len(left) == 2
    assert newest == {200, 300}
