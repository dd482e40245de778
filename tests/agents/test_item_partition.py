"""One life of an item partition: what its messages do to it, and which events it says are out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec
import numpy as np
import pytest
from aiokafka.structs import ConsumerRecord

from agents.workers import item_partition
from agents.workers.item_partition import (
    EVENT_TIME,
    LEAST_ITEMS,
    MOST_ITEMS,
    STEP_SECONDS,
    Fate,
    ItemPartition,
    Pace,
    Taken,
)
from agents.workers.user_partition import SourceLog, UserPartition
from cco.config import Config, Indicator
from cco.delivery import claim_message
from cco.edits_message import Kind, decode_header

STALENESS = 10.0
CONFIG = Config(primary="buy", indicators={"buy": Indicator(events=("buy",))}, max_staleness=STALENESS)
OTHER_CONFIG = Config(primary="view", indicators={"view": Indicator(events=("view", "buy"))})
CLAIM = 100  # its offset in the log of edits


def edits_record(offset: int, value: bytes, event_time: float | None = None) -> ConsumerRecord:
    headers = () if event_time is None else ((EVENT_TIME, str(int(event_time * 1000)).encode()),)
    return ConsumerRecord("edits", 0, offset, offset, 0, None, value, None, -1, len(value), headers)


def event_record(offset: int, user: str, item: str) -> ConsumerRecord:
    event = {"user_id": user, "item_id": item, "event_type": "buy", "timestamp": "1970-01-01T00:20:00Z"}
    value = msgspec.json.encode(event)
    return ConsumerRecord("interactions", 0, offset, offset, 0, user.encode(), value, None, len(user), len(value), ())


def source_of(config: Config, item_partitions: int = 1) -> UserPartition:
    return UserPartition(config, SourceLog("interactions", 0, 1, "cluster"), item_partitions)


@dataclass
class World:
    """A source partition, and the item partition that reads what it says; the log of edits is between them."""

    source: UserPartition = field(init=False)
    items: ItemPartition = field(init=False)
    end: int = CLAIM + 1  # of the log of edits
    baskets: dict[str, set[str]] = field(default_factory=dict)  # by user

    def __post_init__(self) -> None:
        self.source = source_of(CONFIG)
        self.items = ItemPartition(CONFIG, 0, 1, CLAIM, "edits")

    def say(self, *values: bytes, event_time: float | None = None) -> list[ConsumerRecord]:
        """The messages are in the log of edits."""
        said = [edits_record(self.end + k, value, event_time) for k, value in enumerate(values)]
        self.end += len(said)
        return said

    def buy(self, user: str, *items: str, event_time: float | None = None) -> list[ConsumerRecord]:
        """Said are the events of one fetch."""
        self.baskets.setdefault(user, set()).update(items)
        begin = self.source.position
        fetched = [event_record(begin + k, user, item) for k, item in enumerate(items)]
        told = self.source.apply(fetched, begin + len(fetched))
        assert told.events == len(items), told.letters
        return self.say(*(value for _, value in told.messages), event_time=event_time)

    def fill(self) -> list[ConsumerRecord]:
        """Said is the whole answer to the claim."""
        self.source.ask(0, CLAIM)
        said = []
        while self.source.filling:
            said += self.say(*(value for _, value in self.source.fill_some().messages))
        return said

    def take(self, records: Sequence[ConsumerRecord], now: float = 0.0) -> Taken:
        return self.items.take(records, records[-1].offset + 1, now)

    def filled(self) -> World:
        """The item partition knows what the source does, and every row is out."""
        assert self.take(self.fill()).filled
        while self.items.refresh(0.0) is not None:
            pass
        return self

    def due(self) -> set[str]:
        """Items with a row that is to be counted."""
        self.items.stage.due()
        known = range(len(self.items.items))
        return {self.items.items.name(item) for item in known if self.items.stage._state.due[item]}


# -- which events are out ---------------------------------------------------------------------------


def test_an_event_whose_row_is_left_due_is_not_out() -> None:
    """Neither where the row was exact until that event, nor where the event has made it."""
    for items in (("a", "b"), ("new", "newer"), ("a", "new")):
        world = World()
        world.buy("u1", "a", "b")
        world.filled()
        world.take(world.buy("u2", *items, event_time=70.5), now=1.0)
        world.items.pace.items = 1
        assert world.items.publish(2.0)[1] == []
        assert len(world.due()) == 1
        assert world.items.publish(3.0)[1] == [(70.5, 2)]
        assert world.items.publish(4.0)[1] == []


def test_an_event_with_all_its_rows_out_is_out_while_later_ones_wait() -> None:
    world = World()
    world.buy("u1", "a", "b", "c")
    world.filled()
    world.take(world.buy("u2", "a", "b", "c", event_time=70.5), now=1.0)
    assert world.items.stage.publish(2.0, 100) is not None  # all rows are counted, and nobody has asked yet
    world.take(world.buy("u3", "a", "b", event_time=80.5), now=3.0)
    world.items.pace.items = 1
    assert world.items.publish(4.0)[1] == [(70.5, 3)]
    assert len(world.due()) == 1
    assert world.items.publish(5.0)[1] == [(80.5, 2)]


@pytest.mark.parametrize("seed", range(20))
def test_times_are_of_events_with_all_rows_in_patches(seed: int) -> None:
    """Never earlier; at once where no row is due; and within max_staleness where there are always some.

    An event is named by its time. It touches the rows of all that its user has.
    """
    rng, world, open_rows = Random(seed), World(), dict[float, set[str]]()
    world.items.pace.items = 1
    names = [f"i{k}" for k in range(12)]
    for k in range(4):
        world.buy(f"old{k}", *rng.sample(names, 3))
    world.filled()
    early = 0
    for step in range(400):
        now = 1.0 + step / 4
        if rng.random() < (0.5 if step < 300 else 0.0):
            user, bought = f"u{rng.randrange(40)}", rng.sample(names, rng.randint(1, 2))
            if set(bought) - world.baskets.get(user, set()):
                world.take(world.buy(user, *bought, event_time=now), now)
                open_rows[now] = set(world.baskets[user])
        due = world.due()
        assert all(rows <= due for rows in open_rows.values())
        _, times = world.items.publish(now)
        left = world.due()
        for rows in open_rows.values():
            rows.difference_update(due - left)
        for time, _ in times:
            assert not open_rows.pop(time), f"at {now} it says that the event of {time} is out"
        early += bool(times and left)
        assert left or not open_rows
        assert all(now - time < STALENESS for time in open_rows)
    assert not open_rows
    assert early  # also while rows of later events were due


def test_another_index_after_an_idle_hour_is_told_in_portions() -> None:
    """`max_staleness` is over for no row: each was exact until now."""
    world = World()
    world.buy("u1", "a", "b", "c", "d", "e")
    world.buy("u2", "a", "b", "c", "d", "e")
    world.buy("u3", "f")
    world.filled()
    world.items.pace.items = 2
    world.items.send_all = True
    patches, _ = world.items.publish(3600.0)
    assert patches is not None and len(set(patches.rows.item.tolist())) == 2
    assert len(world.due()) == 4 and world.items.stage.staleness(3601.0) == 1.0


def test_another_index_beside_the_first_is_handed_every_row_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is exact until then; what the first has is marked, what has changed meanwhile is not."""
    monkeypatch.setattr(item_partition, "HANDED_ITEMS", 2)
    world = World()
    world.buy("u1", "a", "b", "c", "d", "e")
    world.buy("u2", "a", "b", "c")
    world.buy("u3", "f")
    world.filled()
    while world.items.publish(1.0)[0] is not None:
        pass
    assert world.items.refresh(1.0) is None and world.items.exact
    world.items.hand_over = True
    handed = []
    while True:
        patches, _ = world.items.publish(2.0)
        if not world.items.handing_over:
            break
        assert patches is not None and patches.again is not None and patches.again.all()
        assert not world.items.exact
        handed.append(world.items.items.names(np.unique(patches.rows.item).tolist()))
    assert handed == [["a", "b"], ["c", "d"], ["e", "f"]] and patches is None
    assert world.items.refresh(2.0) is None and world.items.exact
    world.items.hand_over = True
    world.take(world.buy("u4", "a", "f"), now=3.0)
    patches, _ = world.items.publish(4.0)
    assert patches is not None and patches.again is not None
    again = set(world.items.items.names(np.unique(patches.rows.item[patches.again]).tolist()))
    changed = set(world.items.items.names(np.unique(patches.rows.item[~patches.again]).tolist()))
    assert "b" in again and changed >= {"a", "f"}


@pytest.mark.parametrize("seconds_of_a_row", [0.00001, 0.0002, 0.0005, 0.002])
def test_events_wait_for_a_step_no_longer_than_they_should(seconds_of_a_row: float) -> None:
    """Where the least number of rows takes less than that, at all; and steps are not shorter than they need be."""
    pace = Pace()
    for _ in range(10):
        pace.took(pace.items, pace.items * seconds_of_a_row)
    seconds = pace.items * seconds_of_a_row
    assert seconds <= STEP_SECONDS or pace.items == LEAST_ITEMS
    assert seconds > STEP_SECONDS / 2 or pace.items == MOST_ITEMS
    pace.took(pace.items - 1, 1.0)  # fewer were due than it would have counted: that says little
    assert pace.items * seconds_of_a_row == seconds


# -- messages ---------------------------------------------------------------------------------------


def test_progress_is_of_fills_alone() -> None:
    """`ItemAgent.tick` asks anew for a fill that has stopped by it; ranges go on all the while."""
    world = World()
    world.buy("u1", "a", "b")
    *first, last = world.fill()
    assert first
    assert world.take(first).fate is Fate.GOES_ON
    progress = world.items.progress
    assert progress == len(first)
    assert not world.items.inbox.waiting
    for k in range(3):
        ranges = world.buy(f"v{k}", "a", "c")
        assert decode_header(ranges[0].value).kind is Kind.RANGE
        taken = world.take(ranges)
        assert taken.edits and not taken.dropped
        world.take(world.say(*(value for _, value in world.source.marks())))
    assert world.items.progress == progress
    assert not world.items.inbox.filled
    assert decode_header(last.value).last


def test_a_whole_fill_is_progress_part_by_part() -> None:
    world = World()
    world.buy("u1", "a", "b")
    for k, part in enumerate(world.fill()):
        assert world.items.progress == k
        world.take([part])
    assert world.items.inbox.filled and world.items.progress == k + 1


def test_a_damaged_message_is_a_letter_and_begins_anew() -> None:
    world = World().filled()
    position = world.items.position
    [good] = world.buy("u1", "a")
    [bad] = world.say(good.value[:-1] + bytes([good.value[-1] ^ 1]), event_time=7.0)
    after = world.buy("u2", "a")
    taken = world.take([good, bad, *after])
    assert taken.fate is Fate.BEGINS_ANEW
    [letter] = taken.letters
    assert (letter.topic, letter.partition, letter.offset, letter.value) == ("edits", 0, bad.offset, bad.value)
    assert letter.headers == bad.headers
    assert "cannot be read: a damaged edits message" in letter.reason
    assert world.items.inbox.position == (1,)  # nothing behind it was applied
    assert world.items.position == position


@pytest.mark.parametrize(("config", "partitions"), [(OTHER_CONFIG, 1), (CONFIG, 2)])
def test_a_message_of_another_configuration_is_a_letter_and_goes_on(config: Config, partitions: int) -> None:
    world = World().filled()
    marks = source_of(config, partitions).marks()
    [foreign] = world.say(*(value for partition, value in marks if partition == 0))
    taken = world.take([foreign, *world.buy("u1", "a")])
    assert taken.fate is Fate.GOES_ON
    assert world.items.position == world.end
    assert world.items.inbox.position == (1,)
    [letter] = taken.letters
    assert (letter.offset, letter.value) == (foreign.offset, foreign.value)
    assert f"epoch {config.epoch}, 1 source and {partitions} item partitions" in letter.reason


def test_a_higher_claim_fences_and_so_does_the_answer_to_one() -> None:
    world = World()
    world.buy("u1", "a")
    answers = []
    for claim in (CLAIM - 1, CLAIM + 50):
        world.source.ask(0, claim)
        answers.append(world.say(*(value for _, value in world.source.fill_some().messages)))
    world.filled()
    claims = world.say(claim_message(CONFIG.epoch, 1, 0, 1, session=5))
    old = edits_record(CLAIM - 1, claims[0].value)
    for dropped in ([old], answers[0]):
        taken = world.take(dropped)
        assert (taken.fate, taken.dropped, taken.letters) == (Fate.GOES_ON, len(dropped), [])
    for fencing in (claims, answers[1]):
        position = world.items.inbox.position
        taken = world.take([*fencing, *world.buy("u1", "b")])
        assert (taken.fate, taken.letters) == (Fate.FENCED, [])
        assert world.items.inbox.position == position
