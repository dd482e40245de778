"""When a source partition tells the index of all its users: at once, and once where an earlier life had come to."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from agents.workers import user_partition
from agents.workers.user_partition import UserPartition
from tests.agents.test_item_partition import CONFIG, event_record, source_of

USERS = [f"user-{k}" for k in range(6)]


def buy(source: UserPartition, *users: str) -> None:
    """An event of each, in one fetch."""
    begin = source.position
    source.apply([event_record(begin + k, user, "tea") for k, user in enumerate(users)], begin + len(users))


def told(source: UserPartition) -> list[str]:
    """Whose documents are made, until there is nobody left."""
    found: list[str] = []
    while documents := source.user_documents():
        found += [document.user for document in documents]
    return sorted(found)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the time is; nobody waits."""
    now = [1000.0]
    monkeypatch.setattr(user_partition, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def restored(at: int | None) -> UserPartition:
    """A life that begins with a state of three events, of which nobody knows who was told; `at` is the log's end."""
    source = source_of(CONFIG)
    source.tell_all_at = None
    buy(source, *USERS[:3])
    assert told(source) == USERS[:3]
    source.tell_all_at = at
    return source


def test_where_nothing_is_behind_all_are_told_at_once_and_once(clock: list[float]) -> None:
    source = restored(3)
    assert (told(source), source.tell_all_at) == (USERS[:3], None)
    assert told(source) == []
    buy(source, USERS[1], USERS[4])
    assert told(source) == [USERS[1], USERS[4]]  # and then who has changed
    clock[0] += 2 * user_partition.QUIET_SECONDS
    assert told(source) == []


def test_all_are_told_where_an_earlier_life_may_have_come_to(clock: list[float]) -> None:
    """Documents of later positions are there already: what is told before is refused as superseded."""
    source = restored(5)
    assert told(source) == []
    buy(source, USERS[3])
    assert told(source) == [USERS[3]]
    buy(source, USERS[3])
    assert (source.position, told(source)) == (5, USERS[:4])
    assert source.tell_all_at is None and told(source) == []


def test_a_log_that_ends_with_what_is_no_record_is_not_waited_for(clock: list[float]) -> None:
    source = restored(5)
    clock[0] += user_partition.QUIET_SECONDS
    assert told(source) == []
    clock[0] += 0.1
    assert told(source) == USERS[:3]
    assert source.tell_all_at == 5 and told(source) == []  # once, however long it is quiet
    clock[0] += 2 * user_partition.QUIET_SECONDS
    assert told(source) == []
    buy(source, USERS[3], USERS[4])  # there were records to come, and again all of them are told
    assert (told(source), source.tell_all_at) == (USERS[:5], None)


def test_records_keep_it_from_being_quiet(clock: list[float]) -> None:
    source = restored(9)
    for user in USERS[3:5]:
        clock[0] += user_partition.QUIET_SECONDS
        buy(source, user)
        assert told(source) == [user]
    clock[0] += user_partition.QUIET_SECONDS + 0.1
    assert told(source) == USERS[:5]


def test_another_index_is_told_all_whatever_came_before(clock: list[float]) -> None:
    source = restored(9)
    source.tell_all_users = True
    assert (told(source), source.tell_all_users, source.tell_all_at) == (USERS[:3], False, 9)
    clock[0] += user_partition.QUIET_SECONDS + 0.1
    source.tell_all_users = True
    assert told(source) == USERS[:3]
    buy(source, *USERS[:6])
    assert told(source) == USERS
    assert np.array_equal(source.stage.untold(10, np.empty(0, np.int64)), [])
