"""The durable state: what was committed comes back exactly, after every way of breaking off."""

from __future__ import annotations

import itertools
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.engine import Engine
from agents.engine_state import save
from agents.state.checkpoint import BUDGET, Checkpointer
from agents.state.records import PIECE
from agents.state.store import USERS, NamesPart, PackedPart, StateStore, Words
from cco.config import Config, Indicator
from cco.event_data import EventBatch
from cco.user_stage import SAVE_WORDS, UserStage
from cco.vocabulary import Vocabulary
from tests.agents.states import (
    CONFIG,
    LOG,
    Log,
    batch_model,
    check_against_oracle,
    feed,
    keys_of,
    made_up_log,
    model_of,
    opened,
)
from tests.cco.histories import Event, cases


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


# -- how long the stream waits for it ---------------------------------------------------------------------
# `python -m benchmarks durable` has the times. Here is what they follow from, whatever the size of the state: how much
# is packed between two micro-batches, and how much is put at a time, for a put holds the interpreter's lock.

CHANGED = 1_000  # users between two steps
TICK = 0.001


def steps_of_a_cut(users: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], list[int]]:
    """Words that each step of the first cut packs, and bytes of what is put; of users with three items each.

    Users whom the cut still owes change between the steps. The clock goes on by TICK when it is looked at.
    """
    config = Config(indicators={"purchase": Indicator(user_cap=4)})
    engine, ticks = Engine(config), itertools.count()
    packed, put = list[int](), list[int]()
    pack_some, put_segment = UserStage.pack_some, StateStore._put_segment

    def counted(stage: UserStage) -> Words | None:
        found = pack_some(stage)
        packed[-1] += 0 if found is None else found.size
        return found

    def measured(store: StateStore, kind: bytes, sequence: int, body: bytes) -> None:
        put.append(len(body))
        put_segment(store, kind, sequence, body)

    def bought(who: np.ndarray, what: int) -> EventBatch:
        nothing = np.zeros(who.size, np.int64)
        return EventBatch(*(part.astype(kind) for part, kind in (
            (who, np.uint32), (nothing + what, np.uint32), (nothing, np.int16), (nothing, np.uint32)
        )))  # fmt: skip

    engine.users.intern([f"user-{k}" for k in range(users)])
    engine.items.intern([f"item-{k}" for k in range(4)])
    for item in range(3):
        engine.pipeline.ingest(bought(np.arange(users), item), 0.0)
    with monkeypatch.context() as patched:
        clock = SimpleNamespace(perf_counter=lambda: TICK * next(ticks), monotonic=time.monotonic)
        patched.setattr("agents.state.checkpoint.time", clock)
        with Checkpointer(StateStore.open(path, config), engine) as checkpoints:
            patched.setattr(UserStage, "pack_some", counted)
            patched.setattr(StateStore, "_put_segment", measured)
            while not packed or packed[-1]:
                packed.append(0)
                checkpoints.step(lambda: {"at": 0}, 0.0)
                late = users - CHANGED * len(packed)
                engine.pipeline.ingest(bought(np.arange(late, late + CHANGED), 3), 0.0)
            checkpoints.complete()
    with StateStore.open(path, config, read_only=True) as store:
        assert store.commit.users == users and store.commit.sources[0][0] == 3 * users
    return packed, put


def test_a_larger_state_takes_more_steps_and_no_longer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_user, looks = 1 + 1 + 2 * 3, round(BUDGET / TICK)  # words of a user with three items; looks at the clock a step
    steps = []
    for users in (20_000, 400_000):
        packed, put = steps_of_a_cut(users, tmp_path / f"{users}", monkeypatch)
        assert sum(packed) == users * of_user
        assert max(packed) <= looks * (SAVE_WORDS + of_user) + CHANGED * of_user
        assert max(put) <= 1.25 * PIECE + 12  # names: lengths beside them
        steps.append(len(packed))
    assert steps[1] > 3 * steps[0]
