"""Shared copies: a partition goes on elsewhere as it was, and only a whole and good copy ever counts."""

from __future__ import annotations

import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.state.checkpoint import Checkpointer
from agents.state.errors import ShareError, StateDamaged, StateError
from agents.state.shared_copy import Copy, SharedCopy, open_newest
from agents.state.store import StateStore
from cco.config import Config
from tests.agents.states import LOG, ONE_SOURCE, Source, at, made_up_log, raw, until

NAME = "interactions-0"


def taken_up(path: Path, shared: SharedCopy | None, config: Config = ONE_SOURCE) -> tuple[Source, str, list[str]]:
    """The source as it was in the newest state, which was found where, and what was said about it."""
    source = Source(config)
    store, origin, notes = open_newest(path, config, shared, source=0)
    with store:
        source.restore(store)
    source.check(LOG)
    return source, origin, notes


def go_on(path: Path, shared: SharedCopy | None, more: int, share: bool = True) -> Copy | None:
    """Take up the newest state, apply so many more events, commit, and share perhaps."""
    store, _, _ = open_newest(path, ONE_SOURCE, shared, source=0)
    source = Source()
    source.restore(store)
    with Checkpointer(store, source, 0.0) as checkpoints:
        source.feed(LOG, more)
        checkpoints.step(source.position, 0.0)
        checkpoints.complete()
        if share and shared is not None:
            with store.export() as export:
                return shared.upload(export)
    return None


def newest_file(folder: Path) -> Path:
    return sorted((folder / NAME).glob("*.cco"))[-1]


@pytest.fixture
def shared(tmp_path: Path) -> SharedCopy:
    return SharedCopy(f"file://{tmp_path}/shared", NAME)


# -- what comes back --------------------------------------------------------------------------------


def flip_a_byte(path: Path) -> None:
    """Damage the last segment of users."""
    with raw(path) as database:
        key = [key for key, _ in database.items() if key.startswith(b"s")][-1]
        value = bytearray(database[key])
        value[len(value) // 2] ^= 1
        database[key] = bytes(value)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_whatever_is_lost_the_newest_that_is_left_is_taken_up_exactly(data: st.DataObject) -> None:
    """Two machines, one place for copies: lives end, disks are lost or damaged, copies are made or not."""
    with tempfile.TemporaryDirectory() as folder:
        shared = SharedCopy(data.draw(st.sampled_from((f"file://{folder}/s", f"memory://{folder}/s"))), NAME)
        committed = {"a": 0, "b": 0}
        copies: list[int] = []
        for _ in range(data.draw(st.integers(1, 6))):
            machine = data.draw(st.sampled_from("ab"))
            path = Path(folder) / machine
            fate = data.draw(st.sampled_from(("kept", "kept", "kept", "lost", "damaged")))
            if fate == "lost":
                shutil.rmtree(path, ignore_errors=True)
                committed[machine] = 0
            elif fate == "damaged" and copies and committed[machine]:
                flip_a_byte(path)
                committed[machine] = 0
            best = max([committed[machine], *copies])
            _, origin, notes = taken_up(path, shared)
            assert (best == 0) == (origin == "new") and (best > committed[machine]) == (origin == "shared")
            assert (fate == "damaged") >= bool(notes)
            more, share = data.draw(st.integers(1, 60)), data.draw(st.booleans())
            made = go_on(path, shared, more, share)
            committed[machine] = best + more
            if share:
                assert made is not None and made.offset == best + more
                copies = [*copies, best + more][-2:]
            assert [copy.offset for copy in shared.copies()] == copies[::-1]


def test_only_what_is_newer_is_uploaded_and_the_newest_two_are_kept(tmp_path: Path, shared: SharedCopy) -> None:
    assert shared.newest() is None
    folder = tmp_path / "shared" / NAME
    folder.mkdir(parents=True)
    for name in (f"{200:020}-0123abcd.part", f"{900:020}-0123abcd.part", "README.txt", f"{5:020}-x.cco"):
        (folder / name).write_text("")
    for offset in (100, 200, 300):
        copy = go_on(tmp_path / "state", shared, 100)
        assert copy == shared.newest() and copy is not None and copy.offset == offset
        assert copy.size == (folder / copy.name).stat().st_size > 1000
    with StateStore.open(tmp_path / "state", ONE_SOURCE, sources=1) as store, store.export() as export:
        assert shared.upload(export) is None
    assert [copy.offset for copy in shared.copies()] == [300, 200]
    left = {file.name for file in folder.iterdir()} - {copy.name for copy in shared.copies()}
    assert left == {f"{900:020}-0123abcd.part", "README.txt", f"{5:020}-x.cco"}  # the first may be in the making


def test_a_copy_is_of_the_commit_that_it_was_begun_at(tmp_path: Path, shared: SharedCopy) -> None:
    """Full cuts that replace all of it come while it is read."""
    source, store = Source(), StateStore.open(tmp_path / "state", ONE_SOURCE, sources=1)
    with Checkpointer(store, source, 0.0, full_generations=0) as checkpoints:

        def commit() -> None:
            source.feed(LOG, 200)
            checkpoints.step(source.position, 0.0)
            checkpoints.complete()

        commit()
        with store.export() as export:
            records = export.records()
            first = next(records)
            for _ in range(4):
                commit()
            assert checkpoints.report.full_cuts == 5
            assert shared.upload(export) is not None
            assert first == next(export.records())
    assert taken_up(tmp_path / "other", shared)[0].offset == 200


def test_a_state_with_many_segments_is_copied(tmp_path: Path, shared: SharedCopy) -> None:
    log, source = made_up_log(20_000, seed=3), Source()
    with Checkpointer(StateStore.open(tmp_path / "state", ONE_SOURCE, sources=1), source, 0.0) as checkpoints:
        source.users.intern([f"{k}-{'x' * 100}" for k in range(20_000)])
        for _ in range(20):
            source.feed(log, 1000)
            checkpoints.step(source.position, 0.0)
            checkpoints.complete()
    with StateStore.open(tmp_path / "state", ONE_SOURCE, sources=1) as store, store.export() as export:
        assert len(list(export.records())) > 25
        assert shared.upload(export) is not None
    again = Source()
    with open_newest(tmp_path / "other", ONE_SOURCE, shared, source=0)[0] as store:
        again.restore(store)
    assert again.offset == 20_000
    again.check(log)


# -- damage -----------------------------------------------------------------------------------------


def test_any_flipped_byte_and_any_cut_of_a_copy_is_noticed(tmp_path: Path, shared: SharedCopy) -> None:
    go_on(tmp_path / "state", shared, 150)
    copy, chance = shared.newest(), random.Random(5)
    assert copy is not None
    file, target = newest_file(tmp_path / "shared"), tmp_path / "other"
    data = file.read_bytes()
    flips = {*range(40), *(len(data) - 1 - k for k in range(40)), *(chance.randrange(len(data)) for _ in range(150))}
    spoilt = [data[:k] + bytes([data[k] ^ 1 << chance.randrange(8)]) + data[k + 1 :] for k in sorted(flips)]
    spoilt += [data[: chance.randrange(len(data))] for _ in range(50)] + [b"", data[:-1], data + b"x", data + data]
    for number, bad in enumerate(spoilt):
        file.write_bytes(bad)
        with pytest.raises(StateDamaged, match="is damaged"):
            shared.download(copy, target, ONE_SOURCE)
        assert {entry.name for entry in target.iterdir()} <= {"state.json.new"}, number
    file.write_bytes(data)
    shared.download(copy, target, ONE_SOURCE)
    assert taken_up(target, None)[:2][1] == "local"


def test_a_damaged_copy_is_passed_over(tmp_path: Path, shared: SharedCopy) -> None:
    for _ in range(2):
        go_on(tmp_path / "state", shared, 100)
    file = newest_file(tmp_path / "shared")
    file.write_bytes(file.read_bytes()[:-9])
    source, origin, notes = taken_up(tmp_path / "other", shared)
    assert (source.offset, origin) == (100, "shared")
    (note,) = notes
    assert f"{file.name}: the state is damaged: it is cut off; remove this copy" in note
    source, origin, notes = taken_up(tmp_path / "state", shared)
    assert (source.offset, origin, notes) == (200, "local", [])
    shutil.copy(file, file.with_name(f"{999:020}-00000000.cco"))
    source, origin, notes = taken_up(tmp_path / "state", shared)
    assert (source.offset, origin, len(notes)) == (200, "local", 1)
    for copy in file.parent.iterdir():
        copy.write_bytes(b"")
    with pytest.raises(StateError, match=r"there is no state here, and no shared copy can be used \(.*cut off"):
        open_newest(tmp_path / "third", ONE_SOURCE, shared, source=0)
    with pytest.raises(StateError, match="there is no state here"):  # again: nothing was left that counts
        open_newest(tmp_path / "third", ONE_SOURCE, shared, source=0)


@pytest.mark.parametrize("how", ["segment", "database", "meta"])
def test_a_damaged_state_makes_room_for_a_copy(tmp_path: Path, shared: SharedCopy, how: str) -> None:
    path = tmp_path / "state"
    go_on(path, shared, 100)
    go_on(path, shared, 100, share=False)
    if how == "segment":
        flip_a_byte(path)
    elif how == "database":
        (path / "rocksdb" / "CURRENT").write_text("")
    else:
        (path / "state.json").write_text('{"magic"')
    source, origin, notes = taken_up(path, shared)
    assert (source.offset, origin) == (100, "shared")
    assert f"it was renamed to {path}.damaged-1, and a shared copy taken" in notes[0]
    assert (tmp_path / "state.damaged-1" / "state.json").exists()
    flip_a_byte(path)
    newest_file(tmp_path / "shared").write_bytes(b"")
    with pytest.raises(StateError, match=r"another checksum\), and nothing can take its place \(.*cut off"):
        open_newest(path, ONE_SOURCE, shared, source=0)
    assert sorted(entry.name for entry in tmp_path.glob("state*")) == ["state", "state.damaged-1"]
    assert (path / "rocksdb" / "CURRENT").exists()


# -- copies that are not to be used -----------------------------------------------------------------


def test_copies_of_another_log_are_refused_and_of_another_configuration_passed_over(
    tmp_path: Path, shared: SharedCopy
) -> None:
    def put(offset: int, config: Config = ONE_SOURCE, **changed: Any) -> None:
        shutil.rmtree(tmp_path / "shared", ignore_errors=True)
        source, path = Source(config), tmp_path / "theirs"
        shutil.rmtree(path, ignore_errors=True)
        with Checkpointer(StateStore.open(path, config, sources=1), source, 0.0) as checkpoints:
            source.feed(LOG, offset)
            checkpoints.step(lambda: at(offset, **changed), 0.0)
            checkpoints.complete()
        with StateStore.open(path, config, sources=1) as store, store.export() as export:
            assert shared.upload(export) is not None

    def refusal(path: Path) -> str:
        with pytest.raises(StateError) as caught:
            open_newest(path, ONE_SOURCE, shared, source=0)
        assert "\n" not in str(caught.value) and shared.where in str(caught.value)
        return str(caught.value)

    mine, new = tmp_path / "mine", tmp_path / "new"
    go_on(mine, None, 300)
    put(400, Config.model_validate({**ONE_SOURCE.model_dump(), "retention": {"seed": 3}}))
    assert taken_up(mine, shared)[1:] == ("local", []) and taken_up(new, shared)[1:] == ("new", [])
    (file,) = (tmp_path / "shared" / NAME).iterdir()
    file.rename(file.with_name(f"{400:020}-00000000.cco"))  # a name that does not tell
    for path in (mine, new):
        assert "(retention.seed: 3 in the state, 0 in the configuration): use that one, or another place" in refusal(
            path
        )
    put(400, Config.model_validate({**ONE_SOURCE.model_dump(), "retention": {"source_partitions": 4}}))
    assert taken_up(mine, shared)[1:] == ("local", [])
    put(400, partition=2)
    assert "from partition 2 of the topic interactions, and not from partition 0" in refusal(mine)
    put(400, cluster="two")
    assert "is of another log than" in refusal(mine) and "(cluster two, not one)" in refusal(mine)
    put(400, item_partitions=8)
    assert "(item_partitions 8, not 4)" in refusal(mine)
    assert taken_up(mine, None)[0].offset == 300
    put(200, cluster="two")  # older than what is here: nobody asks for it
    assert taken_up(mine, shared)[:2][1] == "local"


def test_a_place_that_cannot_be_reached(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    shared = SharedCopy(f"file://{tmp_path}/file/below", NAME)
    go_on(tmp_path / "state", None, 100)
    source, origin, notes = taken_up(tmp_path / "state", shared)
    assert (source.offset, origin) == (100, "local")
    assert "listing the shared copies failed: " in notes[0] and "Not a directory" in notes[0]
    with pytest.raises(StateError, match=r"there is no state here.*listing the shared copies failed.*start again when"):
        open_newest(tmp_path / "new", ONE_SOURCE, shared, source=0)
    flip_a_byte(tmp_path / "state")
    with pytest.raises(ShareError, match="listing the shared copies failed"):
        open_newest(tmp_path / "state", ONE_SOURCE, shared, source=0)
    with pytest.raises(StateError, match=r"nowhere://x: cannot be used for shared copies: .*nowhere"):
        SharedCopy("nowhere://x", NAME)


# -- while the stream runs --------------------------------------------------------------------------


class Running:
    """A source whose state is checkpointed and shared; its log begins again and again."""

    def __init__(self, path: Path, shared: SharedCopy) -> None:
        self.source = Source()
        self.store = StateStore.open(path, ONE_SOURCE, sources=1)
        self.checkpoints = Checkpointer(self.store, self.source, 0.0, share=shared, share_every=0.0)

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Let events come until it holds."""

        def some_more() -> object:
            begin = self.source.offset % len(LOG)
            before, self.source.offset = self.source.offset, begin
            self.source.feed(LOG, 50)
            self.source.offset += before - begin
            self.checkpoints.step(self.source.position, 0.0)
            return condition()

        until(some_more, what)


def test_copies_are_made_while_events_come_and_when_they_stop(tmp_path: Path, shared: SharedCopy) -> None:
    running = Running(tmp_path / "state", shared)
    with running.checkpoints as checkpoints:
        running.until(lambda: checkpoints.shared.copies >= 5, "five copies")
        checkpoints.complete()
        checkpoints.step(running.source.position, 0.0)  # the last events may have come while a commit was on its way
        checkpoints.complete()
        last = running.source.offset
        until(lambda: (checkpoints.shared.newest or Copy(0, "", 0)).offset == last, "a copy of the last commit")
        assert checkpoints.shared.failures == 0 and checkpoints.shared.newest == shared.newest()
    assert len(shared.copies()) == 2
    store, origin, _ = open_newest(tmp_path / "other", ONE_SOURCE, shared, source=0)
    again = Source()
    with store:
        again.restore(store)
    assert (again.offset, origin) == (running.source.offset, "shared")


def test_a_place_that_fails_stops_nothing_and_is_tried_again(tmp_path: Path, shared: SharedCopy) -> None:
    (tmp_path / "shared").write_text("in the way")
    running = Running(tmp_path / "state", shared)
    with running.checkpoints as checkpoints:
        running.until(lambda: checkpoints.shared.failures >= 3 and checkpoints.report.commits > 5, "failures")
        assert checkpoints.shared.copies == 0
        assert f"{shared.where}: " in str(checkpoints.shared.reason)
        (tmp_path / "shared").unlink()
        running.until(lambda: checkpoints.shared.copies >= 2, "copies")
        until(lambda: checkpoints.shared.reason is None, "the end of the trouble")
    assert shared.newest() is not None


def test_a_full_disk_of_copies_stops_nothing(tmp_path: Path, small_disk: Path) -> None:
    shared = SharedCopy(str(small_disk), NAME)
    (small_disk / "ballast").write_bytes(bytes(900_000))
    running = Running(tmp_path / "state", shared)
    running.source.users.intern([f"{k}-{'x' * 200}" for k in range(2000)])
    with running.checkpoints as checkpoints:
        running.until(lambda: checkpoints.shared.failures >= 3 and checkpoints.report.commits > 5, "failures")
        assert "writing a shared copy failed: there is no room: " in str(checkpoints.shared.reason)
        until(lambda: not list((small_disk / NAME).glob("*.cco")), "an empty folder", 5)
        (small_disk / "ballast").unlink()
        running.until(lambda: checkpoints.shared.copies >= 1, "a copy")


class StuckFileSystem(LocalFileSystem):
    """A place that does not answer once it was asked to write, as long as it is held."""

    protocol = "stuck"
    held, asked = threading.Event(), threading.Event()

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode:
            StuckFileSystem.asked.set()
            assert StuckFileSystem.held.wait(60)
        return super()._open(path, mode, **options)


@pytest.fixture
def stuck() -> Iterator[type[StuckFileSystem]]:
    fsspec.register_implementation("stuck", StuckFileSystem, clobber=True)
    yield StuckFileSystem
    StuckFileSystem.held.set()


def test_a_place_that_does_not_answer_delays_no_commit_and_no_end(tmp_path: Path, stuck: type[StuckFileSystem]) -> None:
    shared = SharedCopy(f"stuck://{tmp_path}/shared", NAME)
    running = Running(tmp_path / "state", shared)
    with running.checkpoints as checkpoints:
        running.until(stuck.asked.is_set, "a copy that is stuck")
        done = checkpoints.report.commits
        running.until(lambda: checkpoints.report.commits > done + 10, "commits")
        began = time.monotonic()
        checkpoints.finish(running.source.position)
        assert time.monotonic() - began < 20.0
    again, waiting = Source(), checkpoints._sharing
    with StateStore.open(tmp_path / "state", ONE_SOURCE, sources=1) as store:  # nothing holds it any more
        again.restore(store)
    assert again.offset == running.source.offset
    stuck.held.set()
    assert waiting is not None and waiting._thread is not None
    waiting._thread.join(30)
    assert not waiting._thread.is_alive() and checkpoints.shared.failures == 0
    assert list((tmp_path / "shared" / NAME).iterdir()) == []  # given up, not cut off
