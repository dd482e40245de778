"""Seeds: a stage that begins with one is, from there on, as if it had seen the whole log; states make room for them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.kafka.topics import PartitionFound
from agents.settings import Settings
from agents.state import records as state_records
from agents.state.checkpoint import Checkpointer, restore_stages
from agents.state.errors import StateError
from agents.state.seeds import Seed, _check, check_place
from agents.state.shared_copy import SharedCopy, open_newest
from agents.state.store import StateStore
from agents.workers.user_partition import SourceLog
from cco import batch_state
from cco.batch import Model, rebuild
from cco.config import Config, Indicator, Retention
from cco.user_stage import UserStage
from cco.vocabulary import Vocabulary
from tests.agents.states import LOG, ONE_SOURCE, Source, raw
from tests.agents.test_shared_copy import NAME, go_on, newest_file, taken_up
from tests.agents.test_shared_copy_crash import folders, place
from tests.cco.histories import Event, cases, to_batch
from tests.oracle import partition_of

OTHER = Config.model_validate({**ONE_SOURCE.model_dump(), "retention": {"seed": 3}})
IN_LOG = SourceLog("interactions", 0, 1, "one")


class Stage:
    """What a worker has of a source partition, without Kafka."""

    def __init__(self, config: Config, source: int) -> None:
        self.config, self.users, self.items = config, Vocabulary(), Vocabulary()
        self.stage = UserStage(config, self.users, self.items, source)
        self.user_stages = (self.stage,)

    def take_changed_items(self, everything: bool = False) -> tuple[int, ...]:
        return ()

    def properties(self, item: str) -> None:
        return None

    def feed(self, log: list[Event]) -> None:
        for _ in self.stage.ingest(to_batch(self.config, log, self.users, self.items)):
            pass

    def told(self) -> dict[str, Any]:
        """All that it knows, by names: histories with times, members, counts and priors, users to be told of."""
        histories = {}
        for user in range(len(self.users)):
            histories[self.users.name(user)] = [
                dict(zip(self.items.names(items), times.tolist(), strict=True))
                for items, times in self.stage.history(user)
            ]
        counts, priors, entered = {}, {}, set()
        for (edits,) in self.stage.resync():
            names = self.items.names(edits.count_item)
            counts |= dict(zip(zip(edits.count_indicator.tolist(), names, strict=True), edits.count, strict=True))
            names = self.items.names(edits.prior_item)
            priors |= dict(zip(zip(edits.prior.tolist(), names, strict=True), edits.prior_value, strict=True))
            entered |= set(self.users.names(edits.user))
        return {
            "histories": {user: found for user, found in histories.items() if any(found)},
            "users": set(histories),
            "members": self.stage.members,
            "watermark": self.stage.watermark,
            "counts": {key: int(count) for key, count in counts.items() if count},
            "priors": {key: int(value) for key, value in priors.items() if value},
            "entered": entered,
        }


def logs_of(config: Config, log: list[Event]) -> list[list[Event]]:
    """The log of each source partition; clock events are in all of them."""
    sources = config.retention.source_partitions
    of = {user: partition_of(user, sources) for user, *_ in log}
    return [[event for event in log if event[1] == "$clock" or of[event[0]] == s] for s in range(sources)]


def model_of(config: Config, logs: list[list[Event]]) -> Model:
    users, items = Vocabulary(), Vocabulary()
    batches = ((source, to_batch(config, log, users, items)) for source, log in enumerate(logs))
    return rebuild(config, batches, users, items)


def planted(folder: Path, model: Model, source: int, offset: int) -> Stage:
    """The stage of a worker that has nothing but the seed."""
    log = SourceLog("interactions", source, model.config.retention.source_partitions, "one")
    shared = SharedCopy(str(folder / "shared"), f"interactions-{source}")
    copy = shared.upload(Seed(model, log, offset), seed=True)
    assert copy is not None and copy.seed and copy.epoch == model.config.epoch
    store, origin, notes = open_newest(folder / f"state-{source}", model.config, shared, source=source)
    stage = Stage(model.config, source)
    with store:
        assert (origin, notes, store.commit.input) == ("seed", [], log.at(offset))
        restore_stages(store, stage)
    return stage


@settings(max_examples=25, deadline=None)
@given(cases(), st.data())
def test_a_stage_goes_on_from_a_seed_as_if_it_had_seen_the_log(
    case: tuple[Config, list[Event]], data: st.DataObject
) -> None:
    config, log = case
    logs = logs_of(config, log)
    ends = [data.draw(st.integers(0, len(log))) for log in logs]
    model = model_of(config, [log[:end] for log, end in zip(logs, ends, strict=True)])
    with tempfile.TemporaryDirectory() as folder:
        for source, (log, end) in enumerate(zip(logs, ends, strict=True)):
            stage, whole = planted(Path(folder), model, source, end + 1), Stage(config, source)
            whole.feed(log[:end])
            found, wanted = stage.told(), whole.told()
            assert found == wanted
            assert set(stage.items.names(range(len(stage.items)))) >= set(whole.items.names(range(len(whole.items))))
            for at in range(end, len(log), 5):
                stage.feed(log[at : at + 5])
                whole.feed(log[at : at + 5])
                assert stage.told() == whole.told()


@pytest.mark.parametrize("sampling", ["uniform", "recent"])
def test_a_seed_of_many_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampling: Any) -> None:
    """Segments are small here, so that names fill many of them, and a user's record is larger than one."""
    monkeypatch.setattr(state_records, "PIECE", 2_000)
    monkeypatch.setattr(batch_state, "WORDS", 700)
    many = Config(
        primary="buy",
        indicators={"buy": Indicator(user_cap=1_000), "view": Indicator(user_cap=30)},
        retention=Retention(sampling=sampling, source_partitions=2, window=None),
    )
    log: list[Event] = [(f"u{k % 200}-{'x' * 99}", "buy", f"i{k % 51}", 1000 + k) for k in range(600)]
    log += [(f"u{k % 90}", "view", f"i{k % 391}", 9000 + k) for k in range(4_000)]
    log += [("all", "buy", f"item-{k}-{'é' * 20}", 5000 + k % 3) for k in range(1_200)]
    logs = logs_of(many, log)
    model = model_of(many, logs)
    for source in range(2):
        seed = Seed(model, replace(IN_LOG, partition=source, partitions=2), 7)
        stored = list(seed.records())
        (generation,) = seed.commit.generations
        assert len(stored) == generation.users + generation.names and min(generation.users, generation.names) > 4
        assert sum(len(value) - 4 for _, value in stored) == generation.bytes
        stage, whole = planted(tmp_path, model, source, 7), Stage(many, source)
        whole.feed(logs[source])
        assert stage.told() == whole.told()
        more: list[Event] = [(user, "view", f"i{k}", 50_000 + k) for k in range(300) for user in ("u1", "u5", "all")]
        more = logs_of(many, more)[source]
        stage.feed(more)
        whole.feed(more)
        assert stage.told() == whole.told()


def test_nothing_is_a_seed_too(tmp_path: Path) -> None:
    """Of a log of records that are all refused."""
    stage = planted(tmp_path, model_of(ONE_SOURCE, [[]]), 0, 5)
    stage.feed(LOG)
    whole = Stage(ONE_SOURCE, 0)
    whole.feed(LOG)
    assert stage.told() == whole.told()


# -- a state that is in the way ---------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path: Path) -> SharedCopy:
    return SharedCopy(f"file://{tmp_path}/shared", NAME)


def plant(shared: SharedCopy, config: Config, offset: int) -> None:
    model = model_of(config, [LOG[:offset]])
    assert shared.upload(Seed(model, replace(IN_LOG, partition=0), offset), seed=True) is not None


def refusal(path: Path, config: Config, shared: SharedCopy | None) -> str:
    before = sorted(path.parent.iterdir())
    with pytest.raises(StateError) as caught:
        open_newest(path, config, shared, source=0)
    assert "\n" not in str(caught.value)
    assert sorted(path.parent.iterdir()) == before
    return str(caught.value)


def test_a_state_of_another_configuration_makes_room_for_a_seed_and_is_kept(tmp_path: Path, shared: SharedCopy) -> None:
    path = tmp_path / "state"
    for _ in range(3):
        go_on(path, shared, 200)  # of ONE_SOURCE, and copies of it
    for where in (None, shared):
        said = refusal(path, OTHER, where)
        assert "(retention.seed: 0 in the state, 3 in the configuration)" in said and "cco rebuild --seed" in said
    plant(shared, OTHER, 100)  # older than all of these copies
    assert [copy.offset for copy in shared.copies()] == [600, 400, 100]
    store, origin, (note,) = open_newest(path, OTHER, shared, source=0)
    stage = Stage(OTHER, 0)
    with store:
        restore_stages(store, stage)
    aside = tmp_path / "state.outdated-1"
    assert origin == "seed" and f"it was renamed to {aside}, and a seed taken" in note
    whole = Stage(OTHER, 0)
    whole.feed(LOG[:100])
    assert stage.told() == whole.told()
    store, *found = open_newest(path, OTHER, shared, source=0)
    store.close()
    assert found == ["local", []]
    assert taken_up(aside, None)[0].offset == 600  # nothing of it is lost

    # and back: with the newest copy of that time
    source, origin, (note,) = taken_up(path, shared)
    assert (source.offset, origin) == (600, "shared") and "retention.seed: 3 in the state" in note
    assert sorted(entry.name for entry in tmp_path.glob("state.*")) == ["state.outdated-1", "state.outdated-2"]


def test_dying_while_a_seed_takes_the_place_of_another_configuration(tmp_path: Path) -> None:
    begin, source = tmp_path / "begin", Source(OTHER)
    with Checkpointer(StateStore.open(begin / "state", OTHER, sources=1), source, 0.0) as checkpoints:
        source.feed(LOG, 150)
        checkpoints.step(source.position, 0.0)
        checkpoints.complete()
    plant(place(begin), ONE_SOURCE, 100)
    for folder in folders(tmp_path, "download"):
        assert taken_up(folder / "state", place(folder))[0].offset == 100
        (aside,) = folder.glob("state.outdated-*")
        assert taken_up(aside, None, OTHER)[0].offset == 150


def test_a_damaged_seed_leaves_the_state_where_it_is(tmp_path: Path, shared: SharedCopy) -> None:
    path = tmp_path / "state"
    go_on(path, shared, 200)
    plant(shared, OTHER, 300)
    file = newest_file(tmp_path / "shared")
    file.write_bytes(file.read_bytes()[:-3])
    said = refusal(path, OTHER, shared)
    assert "no shared copy can be used: " in said and "it is cut off" in said
    assert taken_up(path, shared)[0].offset == 200


def test_each_configuration_has_copies_of_its_own(tmp_path: Path, shared: SharedCopy) -> None:
    """Those of others are neither taken, nor removed, nor in the way of an upload."""
    for _ in range(3):
        go_on(tmp_path / "state", shared, 100)
    for offset in (50, 80, 90):
        plant(shared, OTHER, offset)
    assert [(copy.offset, copy.seed) for copy in shared.copies()] == [
        (300, False), (200, False), (90, True), (80, True),
    ]  # fmt: skip
    assert shared.newest(OTHER.epoch) == shared.copies()[2] and shared.newest() == shared.copies()[0]
    assert [copy.offset for copy in shared.copies(ONE_SOURCE.epoch)] == [300, 200]
    assert shared.upload(Seed(model_of(OTHER, [LOG[:90]]), IN_LOG, 90), seed=True) is None
    store, origin, notes = open_newest(tmp_path / "new", OTHER, shared, source=0)
    with store:
        assert (origin, notes) == ("seed", []) and store.commit.input is not None
        assert store.commit.input["offset"] == 90
    third = Config.model_validate({**ONE_SOURCE.model_dump(), "retention": {"seed": 4}})
    with open_newest(tmp_path / "third", third, shared, source=0)[0] as store:
        assert store.commit.input is None  # the log begins at 0, or else a worker says what is missing
    plant(shared, ONE_SOURCE, 400)
    source, origin, _ = taken_up(tmp_path / "another", shared)
    assert (source.offset, origin) == (400, "seed")
    go_on(tmp_path / "another", shared, 10)
    assert [copy.offset for copy in shared.copies(ONE_SOURCE.epoch)] == [410, 400]


def test_a_damaged_state_makes_room_for_a_seed(tmp_path: Path, shared: SharedCopy) -> None:
    path = tmp_path / "state"
    go_on(path, None, 200)
    with raw(path) as database:
        database[b"commit"] = b"nothing"
    assert "cco rebuild --seed" in refusal(path, ONE_SOURCE, shared)
    plant(shared, ONE_SOURCE, 120)
    source, origin, _ = taken_up(path, shared)
    assert (source.offset, origin) == (120, "seed")


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "begin", "end", "says"),
    [
        (5, 0, 5, None),
        (5, 5, 9, None),
        (5, 6, 9, "ends at offset 5, and the log begins at 6: 1 records are gone that were not counted"),
        (5, 0, 4, "ends at offset 5, and the log at 4: the topic was made anew"),
    ],
)
def test_a_seed_that_nobody_could_go_on_from(offset: int, begin: int, end: int, says: str | None) -> None:
    found = PartitionFound(0, 1, 1, begin, end)
    if says is None:
        _check(IN_LOG, offset, found)
    else:
        with pytest.raises(StateError, match=f"^interactions-0: no seed can be written: .*{says}"):
            _check(IN_LOG, offset, found)


def test_there_must_be_a_place(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"^worker.share: is not set"):
        check_place(ONE_SOURCE, Settings())
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="listing the shared copies failed"):
        check_place(ONE_SOURCE, Settings(share=str(tmp_path / "file")))
