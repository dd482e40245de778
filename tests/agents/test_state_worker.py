"""The state of a worker's source partition: commits wait for acknowledgements, and nobody else takes it up."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.engine import Engine
from agents.engine_state import save
from agents.replay import replay
from agents.state.checkpoint import Checkpointer, Position
from agents.state.errors import StateError
from agents.state.shared_copy import open_newest
from agents.state.store import StateStore
from cco.config import Config
from tests.agents.states import LOG, ONE_SOURCE, Source, at, feed
from tests.cco.histories import Event, cases


def one_source(config: Config) -> Config:
    values = config.model_dump()
    return Config.model_validate({**values, "retention": {**values["retention"], "source_partitions": 1}})


@settings(max_examples=60, deadline=None)
@given(cases(), st.data())
def test_nothing_is_durable_before_it_is_acknowledged(case: tuple[Config, list[Event]], data: st.DataObject) -> None:
    config, log = one_source(case[0]), case[1]
    with tempfile.TemporaryDirectory() as folder:
        path, committed = Path(folder) / "state", 0
        for _ in range(data.draw(st.integers(1, 3))):
            source, acknowledged = Source(config), committed
            store = StateStore.open(path, config, sources=1)
            source.restore(store)
            assert source.offset == committed
            source.check(log)

            def allowed(position: Position) -> bool:
                assert position is not None
                return bool(position["offset"] <= acknowledged)  # noqa: B023 (asked while it is what it is)

            with Checkpointer(store, source, 0.0, may_commit=allowed, budget=0.0, full_generations=2) as checkpoints:
                cut: int | None = None
                for more, acked in data.draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 20)), max_size=8)):
                    source.feed(log, more)
                    acknowledged = min(source.offset, acknowledged + acked)
                    if checkpoints.step(source.position, 0.0):
                        cut = source.offset
                    if cut is not None and cut <= acknowledged:
                        checkpoints.complete()
                        committed, cut = cut, None
                    assert (checkpoints.committed or {"offset": 0})["offset"] == committed <= acknowledged
                if cut is not None:
                    with pytest.raises(StateError, match="not acknowledged"):
                        checkpoints.complete()
        again = Source(config)
        with StateStore.open(path, config, sources=1) as store:
            again.restore(store)
        assert again.offset == committed
        again.feed(log, len(log))
        again.check(log)


def test_a_cut_waits_for_acknowledgement_while_the_stream_goes_on(tmp_path: Path) -> None:
    source, allowed, asked = Source(), False, []

    def may_commit(position: Position) -> bool:
        asked.append(position)
        return allowed

    store = StateStore.open(tmp_path, ONE_SOURCE, sources=1)
    with Checkpointer(store, source, 0.0, may_commit=may_commit) as checkpoints:
        begun = []
        for _ in range(10):
            source.feed(LOG, 100)
            begun.append(checkpoints.step(source.position, 0.0))
        assert begun == [True] + [False] * 9
        assert set(map(str, asked)) == {str(at(100))} and len(asked) > 5
        assert checkpoints.committed is None and checkpoints.report.commits == 0
        allowed = True
        assert not checkpoints.step(source.position, 0.0)
        checkpoints.complete()
        assert checkpoints.committed == at(100)
        assert checkpoints.step(source.position, 0.0)
        checkpoints.complete()
        assert checkpoints.committed == at(1000)
        assert not checkpoints.step(source.position, 0.0)  # nothing has changed
        source.feed(LOG, 10)
        allowed = False
        with pytest.raises(StateError, match="'offset': 1010} may not be committed yet"):
            checkpoints.finish(source.position)
    again = Source()
    with StateStore.open(tmp_path, ONE_SOURCE, sources=1) as store:
        again.restore(store)
    assert again.offset == 1000
    again.check(LOG)


def test_the_end_of_a_worker_commits_what_is_acknowledged(tmp_path: Path) -> None:
    source = Source()
    checkpoints = Checkpointer(StateStore.open(tmp_path, ONE_SOURCE, sources=1), source, may_commit=lambda _: True)
    source.feed(LOG, 700)
    checkpoints.finish(source.position)
    checkpoints.close()
    assert checkpoints.committed == at(700)
    store, origin, notes = open_newest(tmp_path, ONE_SOURCE, None, source=0)
    with store:
        assert (store.commit.input, origin, notes) == (at(700), "local", [])


# -- whose state it is ------------------------------------------------------------------------------


@pytest.fixture
def workers(tmp_path: Path) -> Path:
    """A state that a worker keeps for partition 0."""
    source, path = Source(), tmp_path / "interactions-0"
    source.feed(LOG, 300)
    Checkpointer(StateStore.open(path, ONE_SOURCE, sources=1), source).finish(source.position)
    return path


def test_a_workers_state_is_for_no_one_else(workers: Path, tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text("user,item,event,timestamp\nu,i,buy,1\n")
    made = "was made by a worker from partition 0 of the topic interactions, and is only for a worker"
    for use in (
        lambda: replay(Engine(ONE_SOURCE), [str(events)], state=workers),
        lambda: Engine.load(workers),
        lambda: save(Engine(ONE_SOURCE), workers),
    ):
        with pytest.raises(StateError, match=made):
            use()
    two = Config.model_validate({**ONE_SOURCE.model_dump(), "retention": {"source_partitions": 2}})
    path = tmp_path / "of-two"
    Checkpointer(StateStore.open(path, two, sources=1), Source(two)).finish(lambda: at(0))
    with pytest.raises(StateError, match=r"with 1 source partition\(s\) in it where 2 are expected"):
        Engine.load(path)


def test_a_worker_takes_up_no_other_state(workers: Path, tmp_path: Path) -> None:
    def said(path: Path, source: int = 0, config: Config = ONE_SOURCE) -> str:
        before = sorted(str(file) for file in path.iterdir())
        with pytest.raises(StateError) as caught:
            open_newest(path, config, None, source=source)
        assert "\n" not in str(caught.value) and sorted(str(file) for file in path.iterdir()) == before
        return str(caught.value)

    assert "from partition 0 of the topic interactions, and not from partition 1: was it renamed" in said(workers, 1)
    events = tmp_path / "events.csv"
    events.write_text("user,item,event,timestamp\nu,i,buy,1\n")
    replay(Engine(ONE_SOURCE), [str(events)], state=tmp_path / "replayed")
    assert "was made by a replay, not by a worker" in said(tmp_path / "replayed")
    engine = Engine(ONE_SOURCE)
    feed(engine, LOG[:10])
    engine.save(tmp_path / "saved")
    assert "was saved by Engine.save, not by a worker" in said(tmp_path / "saved")
    other = Config.model_validate({**ONE_SOURCE.model_dump(), "retention": {"seed": 7}})
    assert "retention.seed: 0 in the state, 7 in the configuration" in said(workers, config=other)
    more = Config.model_validate({**ONE_SOURCE.model_dump(), "retention": {"source_partitions": 8}})
    assert "retention.source_partitions: 1 in the state, 8 in the configuration" in said(workers, config=more)


def test_a_damaged_state_without_a_copy_says_what_to_do(workers: Path) -> None:
    shutil.rmtree(workers / "rocksdb")
    with pytest.raises(StateError, match=r"is damaged .*there are no shared copies.*remove the directory to begin"):
        open_newest(workers, ONE_SOURCE, None, source=0)
    assert (workers / "state.json").exists()
