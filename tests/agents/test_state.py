"""The durable state: what was committed comes back exactly, and whatever cannot be trusted is refused."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rocksdict import Options, Rdict

from agents.checkpoint import Checkpointer, restore, save
from agents.engine import Engine
from agents.replay import replay
from agents.state_errors import StateError
from agents.state_store import USERS, NamesPart, PackedPart, StateStore
from agents.streams import InputError
from cco.batch import rebuild
from cco.config import Config, Indicator, Retention
from cco.model_file import encode
from cco.vocabulary import Vocabulary
from tests.cco.histories import Event, cases, oracle_of, to_batch

ROOT = Path(__file__).resolve().parents[2]


def model_of(engine: Engine) -> bytes:
    return b"".join(encode(engine.rows(), engine.items, engine.config))


def batch_model(config: Config, log: list[Event]) -> bytes:
    users, items = Vocabulary(), Vocabulary()
    model = rebuild(config, [to_batch(config, log, users, items)], users, items)
    return b"".join(encode(model.rows(), items, config))


def feed(engine: Engine, log: list[Event]) -> None:
    engine.ingest(to_batch(engine.config, log, engine.users, engine.items))


def check_against_oracle(engine: Engine, log: list[Event]) -> None:
    """The histories, the memberships and the positions are those after exactly this log."""
    oracle = oracle_of(engine.config, log)
    for user, histories in oracle.users.items():
        index = engine.users.index(user)
        assert index is not None
        found = {
            name: {engine.items.name(item): time for item, time in entries}
            for name, entries in engine.pipeline.history(index).items()
        }
        assert found == histories
    assert engine.pipeline.members() == len(oracle.members())
    assert [stage.watermark for stage in engine.pipeline.user_stages] == oracle.watermarks


def opened(path: Path, config: Config) -> tuple[Engine, dict[str, Any] | None]:
    """A new engine with the state in `path`, and the position that was committed with it."""
    engine = Engine(config)
    with StateStore.open(path, config) as store:
        restore(store, engine)
        return engine, store.commit.input


# -- round trips ------------------------------------------------------------------------------------


class Log:
    """A log that is streamed into engines, and how much of it the last completed commit stands for."""

    def __init__(self, config: Config, log: list[Event], path: Path) -> None:
        self.config, self.log, self.path = config, log, path
        self.at = self.cut = self.committed = 0

    def run(self, steps: list[tuple[int, bool]], **options: Any) -> None:
        """Take up the state, then per step so many more events; True waits for the commit. Ends by a crash."""
        engine = Engine(self.config)
        store = StateStore.open(self.path, self.config)
        restore(store, engine)
        self.at = self.committed
        check_against_oracle(engine, self.log[: self.at])
        with Checkpointer(store, engine.pipeline, 0.0, **options) as checkpoints:
            for more, wait in steps:
                feed(engine, self.log[self.at : self.at + more])
                self.at = min(self.at + more, len(self.log))
                checkpoints.step(self._position, 0.0)
                if wait:
                    checkpoints.complete()
                    self.committed = self.cut

    def _position(self) -> dict[str, Any]:
        """Asked for when a cut is opened."""
        self.cut = self.at
        return {"at": self.at}


@settings(max_examples=60)
@given(cases(), st.data())
def test_a_stream_that_is_broken_off_goes_on_from_its_last_commit_and_ends_like_the_batch(
    case: tuple[Config, list[Event]], data: st.DataObject
) -> None:
    config, events = case
    with tempfile.TemporaryDirectory() as folder:
        log = Log(config, events, Path(folder) / "state")
        for _ in range(data.draw(st.integers(1, 3))):
            steps = data.draw(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=5))
            log.run(steps, budget=0.0, full_generations=2)  # without budget all packing waits: events come between
        engine, position = opened(log.path, config)
        assert (position or {"at": 0})["at"] == log.committed
        check_against_oracle(engine, events[: log.committed])
        feed(engine, events[log.committed :])
        engine.drain()
        assert model_of(engine) == batch_model(config, events)


@settings(max_examples=25)
@given(cases())
def test_a_saved_engine_loads_as_it_was(case: tuple[Config, list[Event]]) -> None:
    config, log = case
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        engine = Engine(config)
        for at in range(0, len(log), 30):  # saved again over what was saved before
            feed(engine, log[at : at + 30])
            save(engine, path)
        if not log:
            save(engine, path)
        engine.drain()
        loaded = Engine.load(path, config)
        assert model_of(loaded) == model_of(engine) == batch_model(config, log)


# -- a state with several of everything, for what follows ---------------------------------------------

CONFIG = Config(
    primary="buy",
    indicators={"buy": Indicator(user_cap=20), "view": Indicator(events=("view", "look"))},
    retention=Retention(source_partitions=2),
)


def made_up_log(n: int, seed: int = 1) -> list[Event]:
    chance = random.Random(seed)
    kinds = ("buy", "view", "look", "$delete", "$clock")
    return [
        (
            f"user-{int(200 * chance.random() ** 2)}",
            chance.choices(kinds, (50, 30, 18, 1, 1))[0],
            f"item-{int(90 * chance.random() ** 2)}",
            1000 + k // 3,
        )
        for k in range(n)
    ]


LOG = made_up_log(1500)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state of three commits, at 500, 1000 and 1500 events of LOG."""
    path = tmp_path_factory.mktemp("made") / "state"
    Log(CONFIG, LOG, path).run([(500, True)] * 3)
    return path


@pytest.fixture
def state(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "state"))


def raw(path: Path) -> Rdict:
    return Rdict(str(path / "rocksdb"), Options(raw_mode=True))


def keys_of(path: Path) -> list[bytes]:
    with raw(path) as database:
        return [key for key, _ in database.items()]


def refusal(path: Path, config: Config = CONFIG) -> str:
    """What opening and loading says, by which the directory is not changed for the worse."""
    said = []
    for read_only in (True, False):
        with pytest.raises(StateError) as caught, StateStore.open(path, config, read_only=read_only) as store:
            restore(store, Engine(config))
        said.append(str(caught.value))
    assert "\n" not in said[1] and str(path) in said[1]
    return said[1]


def test_the_state_for_the_following_tests_is_a_good_one(state: Path) -> None:
    engine, position = opened(state, CONFIG)
    assert position == {"at": 1500}
    check_against_oracle(engine, LOG)
    assert len(keys_of(state)) > 8


def test_reading_needs_no_lock_of_its_own_and_changes_nothing(state: Path) -> None:
    before = {file: file.read_bytes() for file in state.rglob("*") if file.is_file() and "LOG" not in file.name}
    first = StateStore.open(state, CONFIG, read_only=True)
    with first, StateStore.open(state, CONFIG, read_only=True) as second:
        assert list(map(str, first.parts())) == list(map(str, second.parts()))
    after = {file: file.read_bytes() for file in state.rglob("*") if file.is_file() and "LOG" not in file.name}
    assert before == after


# -- generations ------------------------------------------------------------------------------------


def test_full_cuts_replace_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "state"
    log = Log(CONFIG, made_up_log(1200), path)
    log.run([(100, True)] * 12, full_generations=3)
    with StateStore.open(path, CONFIG, read_only=True) as store:
        numbers = [generation.number for generation in store.commit.generations]
    assert numbers == [9, 10, 11, 12]  # 1, 5 and 9 are full
    stored = {int.from_bytes(key[1:9], "big") for key in keys_of(path) if key != b"commit"}
    assert stored == set(numbers)
    check_against_oracle(opened(path, CONFIG)[0], log.log)


def test_full_cuts_come_when_the_bytes_since_the_last_one_ask_for_it(tmp_path: Path) -> None:
    path = tmp_path / "state"
    log = Log(CONFIG, made_up_log(6000), path)
    log.run([(500, True)] * 12, full_bytes=1)
    with StateStore.open(path, CONFIG, read_only=True) as store:
        first, *since = store.commit.generations
    assert first.number > 1
    assert sum(generation.bytes for generation in since[:-1]) <= 2 * first.bytes
    check_against_oracle(opened(path, CONFIG)[0], log.log)


def test_what_was_not_committed_is_dropped_and_its_place_used_again(state: Path) -> None:
    kept = keys_of(state)
    with StateStore.open(state, CONFIG) as store:
        store.write_users(0, np.arange(200_000, dtype=np.uint32))
        store.write_names(USERS, 0, np.frombuffer(b"ab", np.uint8), np.array([0, 1, 2]))
    assert len(keys_of(state)) > len(kept)
    with StateStore.open(state, CONFIG):
        pass
    assert keys_of(state) == kept
    log = Log(CONFIG, LOG + made_up_log(500, seed=2), state)
    log.committed = 1500
    log.run([(500, True)])
    check_against_oracle(opened(state, CONFIG)[0], log.log)


def test_large_records_and_many_names_are_cut_into_pieces(tmp_path: Path) -> None:
    words = np.random.default_rng(1).integers(0, 2**32, 300_001, dtype=np.uint32)
    names = Vocabulary()
    names.intern([f"{k}" * (1 + k % 3) for k in range(100_000)] + ["ü" * 256, "x"])
    path = tmp_path / "state"
    with StateStore.open(path, CONFIG) as store:
        store.write_users(1, words)
        store.write_users(0, words[:1])
        store.write_names(USERS, 17, names.bytes_, names.offsets)
        store.write_commit(True, [(1, 2), (3, 4)], 5, 6, {"seven": 8})
    with StateStore.open(path, CONFIG) as store:
        parts = list(store.parts())
        assert store.commit.sources == [(1, 2), (3, 4)] and store.commit.input == {"seven": 8}
        generation = store.commit.generations[0]
    assert generation.users == 6 and generation.names > 2
    packed = [part for part in parts if isinstance(part, PackedPart)]
    assert [part.source for part in packed] == [1, 0]
    assert (packed[0].words == words).all() and (packed[1].words == words[:1]).all()
    got, at = Vocabulary(), 17
    for part in parts:
        if isinstance(part, NamesPart):
            assert part.kind == USERS and part.start == at
            got.extend(part.data, part.offsets)
            at += len(part.offsets) - 1
    assert got.names(range(len(got))) == names.names(range(17, len(names)))


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
    (state / "state.json").write_text(json.dumps({**meta, "format": 2}))
    assert "the state has format 2, this version reads 1" in refusal(state)


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
    with Checkpointer(StateStore.open(path, CONFIG), engine.pipeline, 0.0) as checkpoints:
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


def child(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False, **options)


OPEN = """
import sys
from pathlib import Path
from agents.state_store import StateStore
from agents.state_errors import StateError
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
from agents.replay import replay
from agents.state_errors import StateError
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be mounted by root only; the limit on files was tested")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_small_disk_stops_the_replay_and_leaves_the_last_commit(small_disk: Path, tmp_path: Path) -> None:
    events, path = purchases(tmp_path / "events.csv", 40_000), small_disk / "state"
    said = child(REPLAY, events, path, 0)
    assert "is full: the state stays at its last commit" in said.stdout, said
    assert not said.stderr
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    check_goes_on(events, path)


# -- the input that a state goes on with ------------------------------------------------------------------


def lines(first: int, last: int) -> str:
    return "".join(f"u{k % 17},i{k % 11},purchase,{1000 + k}\n" for k in range(first, last))


HEADER = "user,item,event,timestamp\n"


def run(paths: list[Path], state: Path, chunk: int = 10) -> int:
    """Replay; the model must be what a replay without a state gives. Returns how many records were read before."""
    engine, plain = Engine(), Engine()
    done = replay(engine, [str(path) for path in paths], state=state, chunk=chunk)
    whole = replay(plain, [str(path) for path in paths])
    assert (done.applied, done.records, done.accepted) == (whole.applied, whole.records, whole.accepted)
    assert model_of(engine) == model_of(plain)
    return done.resumed


def test_logs_grow_and_new_ones_follow(tmp_path: Path) -> None:
    a, b, state = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "state"
    a.write_text("")
    assert run([a], state) == 0
    a.write_text(HEADER + lines(0, 55) + "bad line\n")
    assert run([a], state) == 0
    assert run([a], state) == 56
    a.write_text(a.read_text() + lines(55, 90))
    assert run([a], state) == 56
    b.write_text(HEADER + lines(90, 100).removesuffix("\n"))  # complete, for it does not grow
    assert run([a, b], state) == 91
    assert run([a, b], state) == 101


def spoil(state: Path, paths: list[Path], change: Callable[[], object]) -> str:
    """What a replay says after the inputs were changed."""
    change()
    with pytest.raises(StateError) as caught:
        replay(Engine(), [str(path) for path in paths], state=state)
    return str(caught.value)


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    a, b, c, state = tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "c.csv.gz", tmp_path / "state"
    a.write_text(HEADER + lines(0, 50))
    b.write_text(HEADER + lines(50, 60))
    run([a, b], state)
    text = a.read_text()
    assert "2 inputs, and 1 are given" in spoil(state, [a], lambda: None)
    assert "is not the file that was read before" in spoil(state, [b, a], lambda: None)
    assert "is not the file" in spoil(state, [a, b], lambda: a.write_text(text.replace("u3", "u4")))
    assert "is not the file" in spoil(state, [a, b], lambda: a.write_text(text[:-1]))
    assert "has grown since it was read to its end" in spoil(state, [a, b], lambda: a.write_text(text + "x\n"))
    a.write_text(text)
    assert run([a, b], state) == 60
    b.write_text(b.read_text() + "u1,i1,purchase,12")
    assert run([a, b], state) == 60
    assert "in the middle of a line" in spoil(state, [a, b], lambda: b.write_text(b.read_text() + "34\n"))
    c.write_bytes(gzip.compress((HEADER + lines(0, 9)).encode()))
    run([c], tmp_path / "other")
    longer = c.read_bytes() + gzip.compress(lines(9, 12).encode())
    assert "compressed files" in spoil(tmp_path / "other", [c], lambda: c.write_bytes(longer))


def test_what_cannot_be_read_again_is_refused(tmp_path: Path) -> None:
    for path in ("-", "/dev/null"):
        with pytest.raises(StateError, match="cannot be read again from the middle"):
            replay(Engine(), [path], state=tmp_path / "state")
    assert not (tmp_path / "state").exists()
    save(Engine(), tmp_path / "saved")
    (tmp_path / "a.csv").write_text(HEADER)
    with pytest.raises(StateError, match=r"saved by Engine\.save"):
        replay(Engine(), [str(tmp_path / "a.csv")], state=tmp_path / "saved")


def test_an_input_that_breaks_off_is_committed_as_far_as_it_goes(tmp_path: Path) -> None:
    path, state = tmp_path / "a.csv.gz", tmp_path / "state"
    whole = gzip.compress((HEADER + lines(0, 500_000)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is cut off"):
        replay(Engine(), [str(path)], state=state)
    with StateStore.open(state, Config(), read_only=True) as store:
        assert store.commit.sources[0][0] > 100_000
