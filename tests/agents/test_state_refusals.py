"""States that cannot be trusted or used (foreign, other, damaged, in use, full disk) are refused in one clear line."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from rocksdict import Options, Rdict

from agents.engine import Engine
from agents.replay import replay
from agents.state import directory, store
from agents.state.checkpoint import Checkpointer
from agents.state.errors import StateError
from agents.state.store import StateStore
from cco.config import Config
from tests.agents.states import (
    CONFIG,
    LOG,
    check_against_oracle,
    child,
    feed,
    keys_of,
    model_of,
    opened,
    raw,
    refusal,
)

# -- refusals: other directories, other configurations --------------------------------------------------


def test_directories_that_hold_something_else_are_refused_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("do not touch")
    assert "holds something else" in refusal(other)
    assert [file.name for file in other.iterdir()] == ["thesis.txt"]
    database = tmp_path / "database"
    with Rdict(str(database), Options(raw_mode=True)) as foreign:
        foreign[b"meta"] = b"of somebody else"
    before = sorted(file.name for file in database.iterdir())
    assert "holds something else" in refusal(database)
    assert sorted(file.name for file in database.iterdir()) == before
    with raw(tmp_path / "half"):
        pass
    assert "holds something else" in refusal(tmp_path / "half")  # a database without a state.json beside it
    file = tmp_path / "file"
    file.write_text("")
    assert "is not a directory" in refusal(file)
    assert "is not a directory" in refusal(file / "below")
    for text in ("{}", "[]", '{"magic": "another program"}'):
        (other / "state.json").write_text(text)
        assert "holds something else" in refusal(other)
    for text in ("", "\x00", '{"magic"'):
        (other / "state.json").write_text(text)
        assert "is damaged" in refusal(other)


def test_reading_where_no_state_is_says_so(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="there is no state"):
        Engine.load(tmp_path / "nothing")
    with pytest.raises(StateError, match="is empty"):
        Engine.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_another_format_is_refused(state: Path) -> None:
    meta = json.loads((state / "state.json").read_text())
    (state / "state.json").write_text(json.dumps({**meta, "format": 1}))
    assert "the state has format 1, this version reads 2" in refusal(state)


def test_another_configuration_is_refused_with_what_differs(state: Path) -> None:
    def changed(**update: Any) -> str:
        return refusal(state, Config.model_validate({**CONFIG.model_dump(), **update}))

    caps = {"buy": {"user_cap": 50}, "view": {"events": ["look", "view"]}}
    assert "(indicators.buy.user_cap: 20 in the state, 50 in the configuration)" in changed(indicators=caps)
    more = {**CONFIG.model_dump()["indicators"], "like": {}}
    assert 'indicators.like.events: absent in the state, ["like"] in the configuration' in changed(indicators=more)
    found = changed(retention={"sampling": "recent", "window": 7200, "source_partitions": 2})
    assert "retention.sampling: uniform in the state, recent in the configuration" in found
    assert "retention.window: none in the state, 7200 in the configuration" in found
    assert "priors.popular: all in the state, none in the configuration" in changed(priors={"popular": None})
    for same in ({"max_staleness": 5.0}, {"anti_correlations": True}):  # they do not decide what is retained
        config = Config.model_validate({**CONFIG.model_dump(), **same})
        check_against_oracle(opened(state, config)[0], LOG)


def test_creation_that_was_broken_off_begins_again(state: Path) -> None:
    (state / "state.json").rename(state / "state.json.new")  # the last step was not reached
    engine, position = opened(state, CONFIG)
    assert position is None and len(engine.users) == 0
    (state / "state.json").rename(state / "state.json.new")
    (state / "rocksdb" / "CURRENT").write_text("")
    assert opened(state, CONFIG)[1] is None
    for half in ({"state.json.new": ""}, {}):
        for entry in state.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        for name, text in half.items():
            (state / name).write_text(text)
        assert opened(state, CONFIG)[1] is None


# -- refusals: damage -------------------------------------------------------------------------------


def test_any_flipped_byte_and_any_missing_record_is_noticed(made: Path, tmp_path: Path) -> None:
    chance, keys = random.Random(7), keys_of(made)
    for number, key in enumerate(keys):
        for what in ("flipped", "missing", "swapped"):
            path = Path(shutil.copytree(made, tmp_path / f"{number}-{what}"))
            with raw(path) as database:
                value = bytearray(database[key])
                if what == "flipped":
                    value[chance.randrange(len(value))] ^= 1 << chance.randrange(8)
                    database[key] = bytes(value)
                elif what == "missing":
                    del database[key]
                else:  # a good record in the wrong place
                    database[key] = database[chance.choice([other for other in keys if other not in (key, b"commit")])]
            assert "is damaged" in refusal(path), (key, what)
            shutil.rmtree(path)


def test_damaged_files_are_refused_or_do_no_harm(made: Path, tmp_path: Path) -> None:
    """RocksDB's own files cut off, emptied, removed, or with a flipped byte."""
    chance = random.Random(11)
    files = [file for file in sorted((made / "rocksdb").iterdir()) if file.name.startswith(("CURRENT", "MANIFEST"))]
    tables = sorted((made / "rocksdb").glob("*.sst"))
    assert files and tables
    refused = 0
    for number, file in enumerate((*files, *tables)):
        data = file.read_bytes()
        flips = [chance.randrange(len(data)) for _ in range(12)] if file in tables else []
        spoilt: list[bytes | None] = [None, b"", data[: len(data) // 2], data[:-1]]
        spoilt += [data[:k] + bytes([data[k] ^ 16]) + data[k + 1 :] for k in flips]
        for variant, bad in enumerate(spoilt):
            path = Path(shutil.copytree(made, tmp_path / f"{number}-{variant}"))
            target = path / "rocksdb" / file.name
            target.unlink() if bad is None else target.write_bytes(bad)
            try:
                engine, position = opened(path, CONFIG)
            except StateError as error:
                assert "is damaged" in str(error), error
                refused += 1
            else:  # bytes that nothing depends on
                assert position is not None
                check_against_oracle(engine, LOG[: position["at"]])
            shutil.rmtree(path)
    assert refused > 20


def test_whatever_part_of_the_last_writes_a_crash_leaves_is_a_commit(tmp_path: Path) -> None:
    """RocksDB's log cut off anywhere, as a loss of power does: the state is one of those committed before."""
    path, copy = tmp_path / "state", tmp_path / "copy"
    engine = Engine(CONFIG)
    with Checkpointer(StateStore.open(path, CONFIG), engine, 0.0) as checkpoints:
        for at in range(100, 600, 100):
            feed(engine, LOG[at - 100 : at])
            checkpoints.step(lambda at=at: {"at": at}, 0.0)  # type: ignore[misc]
            checkpoints.complete()
        shutil.copytree(path, copy)
    (written,) = (file for file in (copy / "rocksdb").glob("*.log") if file.stat().st_size)
    data, seen = written.read_bytes(), set()
    chance = random.Random(3)
    for end in sorted({len(data), *(chance.randrange(len(data)) for _ in range(25))}):
        cut = Path(shutil.copytree(copy, tmp_path / f"cut-{end}"))
        (cut / "rocksdb" / written.name).write_bytes(data[:end])
        engine, position = opened(cut, CONFIG)
        at = (position or {"at": 0})["at"]
        seen.add(at)
        check_against_oracle(engine, LOG[:at])
    assert seen >= {100, 200, 300, 400, 500}


# -- refusals: the system -----------------------------------------------------------------------------


OPEN = """
import sys
from pathlib import Path
from agents.state.store import StateStore
from agents.state.errors import StateError
from cco.config import Config
try:
    StateStore.open(Path(sys.argv[1]), Config())
except StateError as error:
    print(error)
"""


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "state"
    with StateStore.open(path, Config()):
        assert "is in use by another process" in child(OPEN, path).stdout
        for read_only in (True, False):
            with pytest.raises(StateError, match="in use by another process"):
                StateStore.open(path, Config(), read_only=read_only)
    assert child(OPEN, path).stdout == ""


def test_directories_without_permission_are_refused() -> None:
    as_nobody = OPEN.replace("try:", "import os\nif os.geteuid() == 0:\n    os.seteuid(65534)\ntry:", 1)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o555)
        for path in (Path(folder), Path(folder) / "below"):
            said = child(as_nobody, path)
            assert folder in said.stdout and "ermi" in said.stdout and not said.stderr, said


REPLAY = """
import resource, sys
from pathlib import Path
from agents.engine import Engine
from agents.files.reading import read_events
from agents.replay import replay
from agents.state.errors import StateError
def limited(chunk):
    if sys.argv[3] != "0":
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    done = replay(Engine(), [sys.argv[1]], state=Path(sys.argv[2]), every=0.0, on_chunk=limited, chunk=1000)
    print("applied", sum(done.applied))
except StateError as error:
    print(error)
"""


def purchases(path: Path, n: int) -> str:
    chance = random.Random(5)
    with path.open("w") as file:
        file.write("user,item,event,timestamp\n")
        for k in range(n):
            file.write(f"user-{chance.randrange(5000)},item-{int(300 * chance.random() ** 2)},purchase,{1000 + k}\n")
    return str(path)


def test_a_folder_that_is_taken_away_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an operator does who was told to, while a worker looks again every second."""
    path = tmp_path / "state"

    def locked(of: Path, read_only: bool) -> int:
        handle = directory.lock(of, read_only)
        of.rmdir()
        return handle

    monkeypatch.setattr(store, "lock", locked)
    with pytest.raises(StateError, match="was taken away while it was being opened"):
        StateStore.open(path, Config())
    monkeypatch.undo()
    StateStore.open(path, Config()).close()


def check_goes_on(events: str, path: Path) -> None:
    """The state is at a commit in the middle of the input, and going on from there gives the batch's model."""
    with StateStore.open(path, Config(), read_only=True) as store:
        assert store.commit.input is not None
        applied = store.commit.sources[0][0]
    assert 0 < applied < 40_000
    engine, plain = Engine(), Engine()
    done = replay(engine, [events], state=path)
    assert done.applied == (40_000,) and done.resumed == applied
    replay(plain, [events])
    assert model_of(engine) == model_of(plain)


def test_a_full_disk_stops_the_replay_and_leaves_the_last_commit(tmp_path: Path) -> None:
    events, path = purchases(tmp_path / "events.csv", 40_000), tmp_path / "state"
    said = child(REPLAY, events, path, 400_000)
    assert "is full: the state stays at its last commit" in said.stdout, said
    assert not said.stderr
    check_goes_on(events, path)


def test_a_small_disk_stops_the_replay_and_leaves_the_last_commit(small_disk: Path, tmp_path: Path) -> None:
    events, path = purchases(tmp_path / "events.csv", 40_000), small_disk / "state"
    subprocess.run(["mount", "-o", "remount,size=448k", str(small_disk)], check=True)  # two commits fill it
    said = child(REPLAY, events, path, 0)
    assert "is full: the state stays at its last commit" in said.stdout, said
    assert not said.stderr
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    check_goes_on(events, path)
