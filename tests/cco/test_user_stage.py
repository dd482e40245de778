"""The user stage against the oracle, after every event, and its edits against a plain reader of edits."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cco.config import Config, Indicator, Retention
from cco.edits import ADD, ENTER, LEAVE, Edits
from cco.event_data import CLOCK
from cco.user_stage import DamagedStateError, UserStage
from cco.vocabulary import Vocabulary
from tests.cco.histories import Event, cases, to_batch
from tests.examples import examples
from tests.oracle import Oracle, partition_of

Case = tuple[Config, list[Event]]


class Reader:
    """What an item partition must hold, read off the edits with dicts and sets."""

    def __init__(self) -> None:
        self.users: dict[int, set[tuple[int, int]]] = {}
        self.counts: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        self.priors: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
        self.members: dict[int, int] = {}

    def apply(self, edits: Edits) -> None:
        columns = (edits.op.tolist(), edits.indicator.tolist(), edits.user.tolist(), edits.item.tolist())
        for op, kind, user, item in zip(*columns, strict=True):
            if op == ENTER:
                self.users[user] = set()
            elif op == LEAVE:
                self.users.pop(user, None)
            elif op == ADD:
                self.users[user].add((kind, item))
            else:
                self.users[user].discard((kind, item))
        for kind, item, n in zip(edits.count_indicator, edits.count_item, edits.count, strict=True):
            self.counts[edits.source][int(kind), int(item)] = int(n)
        for prior, item, value in zip(edits.prior, edits.prior_item, edits.prior_value, strict=True):
            self.priors[edits.source][int(prior), int(item)] = int(value)
        self.members[edits.source] = edits.members


class World:
    """User stages for all sources, readers for all item partitions, and the oracle."""

    def __init__(self, config: Config, item_partitions: int) -> None:
        self.config, self.partitions = config, item_partitions
        self.users, self.items = Vocabulary(), Vocabulary()
        sources = config.retention.source_partitions
        self.stages = [UserStage(config, self.users, self.items, s, item_partitions) for s in range(sources)]
        self.readers = [Reader() for _ in range(item_partitions)]
        self.oracle = Oracle(config)

    def feed(self, log: list[Event]) -> None:
        batch = to_batch(self.config, log, self.users, self.items)
        for source, stage in enumerate(self.stages):
            sources = np.array([partition_of(event[0], len(self.stages)) for event in log], np.int64)
            mine = (sources == source) | (batch.types == CLOCK)
            part = type(batch)(batch.users[mine], batch.items[mine], batch.types[mine], batch.times[mine])
            for messages in stage.ingest(part):
                for reader, edits in zip(self.readers, messages, strict=True):
                    reader.apply(edits)
        for event in log:
            self.oracle.apply(*event)

    def check(self) -> None:
        self.check_states()
        self.check_readers()

    def check_states(self) -> None:
        names = self.config.indicator_names
        for user, histories in self.oracle.users.items():
            u = self.users.index(user)
            assert u is not None
            stage = self.stages[self.oracle.partition[user]]
            assert stage.is_member(u) == self.oracle.in_u(user)
            for name, (items, times) in zip(names, stage.history(u), strict=True):
                got = dict(zip(self.items.names(items), times.tolist(), strict=True))
                assert got == histories[name]

    def check_readers(self) -> None:
        config, oracle = self.config, self.oracle
        members = {user: h for user, h in oracle.users.items() if oracle.in_u(user)}
        of_item = self.items.partitions(self.partitions)
        for p, reader in enumerate(self.readers):
            wanted = {}
            for user, histories in members.items():
                if any(of_item[self.items.index(i)] == p for i in histories[config.primary]):
                    wanted[self.users.index(user)] = {
                        (t, self.items.index(i))
                        for t, name in enumerate(config.indicator_names)
                        for i in histories[name]
                    }
            assert reader.users == wanted
            assert sum(reader.members.values()) == len(members)
            for t, name in enumerate(config.indicator_names):
                wanted_counts = oracle.counts(name)[1]
                got: dict[str, int] = defaultdict(int)
                for counts in reader.counts.values():
                    for (kind, item), n in counts.items():
                        if kind == t and n:
                            got[self.items.name(item)] += n
                assert got == wanted_counts


@examples(150)
@given(cases(), st.integers(1, 3))
def test_after_every_event_states_and_edits_equal_the_oracle(case: Case, item_partitions: int) -> None:
    config, log = case
    world = World(config, item_partitions)
    for event in log:
        world.feed([event])
        world.check()


@examples(80)
@given(cases(), st.integers(1, 2), st.integers(1, 25))
def test_any_split_into_batches_gives_the_same(case: Case, item_partitions: int, size: int) -> None:
    config, log = case
    world = World(config, item_partitions)
    for at in range(0, len(log), size):
        world.feed(log[at : at + size])
        world.check()


@examples(80)
@given(cases(), st.data())
def test_cuts_taken_while_events_go_on_restore_their_position(case: Case, data: st.DataObject) -> None:
    config, log = case
    config = config.model_copy(update={"retention": config.retention.model_copy(update={"source_partitions": 1})})
    world = World(config, 1)
    stage = world.stages[0]
    saved: dict[int, list[int]] = {}
    applied = watermark = 0
    at = 0
    for _ in range(data.draw(st.integers(1, 3))):
        middle = data.draw(st.integers(at, len(log)))
        world.feed(log[at:middle])
        everything = data.draw(st.booleans())
        applied, watermark = stage.begin_cut(everything)
        if everything:  # needs no cut before it
            saved.clear()
        frozen = Oracle(config)
        for event in log[:middle]:
            frozen.apply(*event)
        at = data.draw(st.integers(middle, len(log)))
        world.feed(log[middle:at])  # goes on while the cut is open
        while (words := stage.pack_some()) is not None:
            saved.update(_records(words.tolist(), len(config.indicator_names)))
        restored = World(config, 1)
        restored.users, restored.items = world.users, world.items
        restored.stages = [UserStage(config, world.users, world.items)]
        restored.stages[0].restore(np.array([w for r in saved.values() for w in r], np.uint32))
        restored.stages[0].restored(applied, watermark)
        for messages in restored.stages[0].resync():
            restored.readers[0].apply(messages[0])
        restored.oracle = frozen
        restored.check()
        assert restored.stages[0].applied == middle
        restored.feed(log[middle:])  # and goes on as if nothing had happened
        restored.check()


def _records(words: list[int], kinds: int) -> dict[int, list[int]]:
    """Packed users by user."""
    found, at = {}, 0
    while at < len(words):
        begin, user = at, words[at]
        at += 1
        for _ in range(kinds):
            at += 1 + 2 * words[at]
        found[user] = words[begin:at]
    return found


def test_damaged_records_are_refused() -> None:
    config, users, items = Config(), Vocabulary(), Vocabulary()
    users.intern(["u"])
    items.intern(["i"])
    for words in ([0], [0, 1], [0, 1, 0], [0, 2**31, 0, 0], [7, 0], [0, 1, 3, 0]):
        with pytest.raises(DamagedStateError):
            UserStage(config, users, items).restore(np.array(words, np.uint32))
    stage = UserStage(config, users, items)
    stage.restore(np.array([0, 1, 0, 5], np.uint32))
    stage.restored(1, 5)
    assert stage.members == 1
    assert [x.tolist() for x in stage.history(0)[0]] == [[0], [5]]


def test_a_cut_owes_users_whom_the_watermark_alone_changed() -> None:
    """Someone else's event moves the watermark, and what expires by it is part of the next cut."""
    config = Config(retention=Retention(sampling="recent", window=10, visitor_window=None))
    world = World(config, 1)
    stage = world.stages[0]
    saved: list[int] = []
    position = (0, 0)
    for event in (("v", "purchase", "x", 10), ("w", "purchase", "y", 100)):
        world.feed([event])
        position = stage.begin_cut()
        while (words := stage.pack_some()) is not None:
            saved += words.tolist()
    restored = UserStage(config, world.users, world.items)
    restored.restore(np.array(saved, np.uint32))
    restored.restored(*position)
    assert restored.members == stage.members == 1


def test_a_history_does_not_depend_on_which_ids_came_first() -> None:
    """Not even for what is of one time: a run that starts again may meet the ids in another order."""
    found = []
    for first in (["b", "é", "a"], ["a", "b", "é"], ["é", "c", "b", "a"]):
        world = World(Config(), 1)
        world.items.intern(first)
        world.feed([("u", "purchase", "b", 7), ("u", "purchase", "é", 7), ("u", "purchase", "c", 9)])
        world.feed([("u", "purchase", "a", 7)])
        items, times = world.stages[0].history(0)[0]
        found.append(list(zip(world.items.names(items), times.tolist(), strict=True)))
    assert found == [[("c", 9), ("a", 7), ("b", 7), ("é", 7)]] * 3


def test_what_is_too_old_for_a_visitor_takes_nobodys_place() -> None:
    """A late event of a visitor neither stays nor evicts what is there, whatever its hash."""
    indicators = {"purchase": Indicator(), "view": Indicator(user_cap=1)}
    for old in ("b", "c", "d", "e", "f"):
        config = Config(indicators=indicators, retention=Retention(visitor_window=90))
        world = World(config, 1)
        world.feed([("v", "view", "a", 1000), ("v", "view", old, 800)])
        world.check()
        items, _ = world.stages[0].history(0)[1]
        assert world.items.names(items) == ["a"]


def test_resync_tells_priors_and_position_again() -> None:
    """An item partition that lost everything gets everything, from a stage that goes on running."""
    world = World(Config(), 1)
    world.feed([(f"u{k}", "purchase", f"i{k % 3}", k) for k in range(20)])
    again = Reader()
    for messages in world.stages[0].resync():
        again.apply(messages[0])
    assert again.users == world.readers[0].users
    assert again.priors == world.readers[0].priors
    assert sum(again.priors[0].values()) > 0
    only_clock = World(Config(), 1)
    only_clock.feed([("u", "$clock", "i", 5)])
    assert [messages[0].position for messages in only_clock.stages[0].resync()] == [1]
