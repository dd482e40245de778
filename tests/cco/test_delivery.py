"""The protocol between the stages: schedules of a simulated world, and what the simulation found, said plainly.

`SIMULATION_SCHEDULES` says how many schedules are tried; which ones follows from the seeds 0, 1, 2, ...
"""

from __future__ import annotations

import os

import pytest

from cco.delivery import Inbox, Verdict
from cco.edits_message import Header, Kind
from tests.cco import simulation

SCHEDULES = int(os.environ.get("SIMULATION_SCHEDULES", "2000"))
SHARES = 20  # tests that they are spread over

RANGE, FILL, MARK, CLAIM = Kind.RANGE, Kind.FILL, Kind.MARK, Kind.CLAIM
APPLY, DROP, ANEW = Verdict.APPLY, Verdict.DROP, Verdict.BEGIN_ANEW
CLAIMED = 100  # offset of the claim
OLD, NEW = 1, 2  # sessions


@pytest.mark.parametrize("share", range(SHARES))
def test_every_row_is_the_oracles_and_the_index_ends_as_the_batch_rebuild(share: int) -> None:
    """At its position, each row that a patch carries; byte for byte, the model of the index."""
    checked = 0
    for seed in range(share, SCHEDULES, SHARES):
        checked += simulation.run(seed).checked
    assert checked > SCHEDULES // SHARES  # the schedules come to something


class Partition:
    """The only item partition, of one source, that has claimed."""

    def __init__(self) -> None:
        self.inbox = Inbox("0" * 16, 1, 0, 1, CLAIMED)
        self.offset = CLAIMED

    def take(
        self, kind: Kind, session: int, start: int, end: int, part: int = 0, last: bool = True, claim: int = CLAIMED
    ) -> Verdict:
        """The verdict on the next message of the log."""
        self.offset += 1
        header = Header(kind, 0, 1, 0, 1, "0" * 16, session, claim if kind == FILL else -1, start, end, part, last)
        return self.inbox.take(header, self.offset)

    def exact_at(self) -> int | None:
        """The position that rows may be counted at."""
        return self.inbox.position[0] if self.inbox.countable else None

    def fill(self, position: int) -> None:
        """The old life of the user stage tells everything."""
        assert self.take(FILL, OLD, position, position) is APPLY
        assert self.exact_at() == position


def test_a_range_that_is_said_again_and_broken_off_leaves_keys_behind_the_position() -> None:
    """Found by the simulation: its first part tells keys as they were on the way, older than what was applied.

    The owner that was thought dead goes on: its next range does not touch these keys, and nothing would mend them.
    """
    partition = Partition()
    partition.fill(0)
    assert partition.take(RANGE, OLD, 0, 4) is APPLY
    assert partition.take(RANGE, OLD, 4, 8) is APPLY
    assert partition.take(RANGE, NEW, 0, 10, 0, last=False) is APPLY
    assert partition.exact_at() is None
    assert partition.take(RANGE, OLD, 8, 12) is ANEW


def test_a_range_that_is_said_again_in_parts_to_its_end_is_exact() -> None:
    partition = Partition()
    partition.fill(4)
    assert partition.take(RANGE, NEW, 2, 10, 0, last=False) is APPLY
    assert partition.exact_at() is None
    assert partition.take(RANGE, NEW, 2, 10, 1) is APPLY
    assert partition.exact_at() == 10


def test_a_longer_range_that_was_broken_off_keeps_rows_from_being_counted_until_it_is_passed() -> None:
    partition = Partition()
    partition.fill(4)
    assert partition.take(RANGE, OLD, 4, 20, 0, last=False) is APPLY
    assert partition.take(RANGE, NEW, 3, 9) is APPLY
    assert partition.exact_at() is None
    assert partition.take(RANGE, NEW, 9, 19) is APPLY
    assert partition.exact_at() is None
    assert partition.take(RANGE, NEW, 19, 20) is APPLY
    assert partition.exact_at() == 20


def test_a_missing_part_is_a_gap_at_the_next_range_at_the_latest() -> None:
    for missing in range(3):
        partition = Partition()
        partition.fill(4)
        verdicts = [partition.take(RANGE, OLD, 4, 8, part, last=part == 2) for part in range(3) if part != missing]
        assert DROP in verdicts or missing == 2
        assert partition.exact_at() is None or verdicts == [DROP, DROP]
        assert partition.take(MARK, OLD, 8, 8) is ANEW


def test_what_was_applied_is_dropped_and_what_begins_later_is_a_gap() -> None:
    partition = Partition()
    assert partition.take(RANGE, OLD, 0, 4) is DROP  # nobody has told it anything yet
    partition.fill(4)
    assert partition.take(RANGE, NEW, 0, 3) is DROP
    assert partition.take(RANGE, NEW, 3, 4) is DROP
    assert partition.take(MARK, NEW, 4, 4) is DROP
    assert partition.inbox.position == (4,)
    assert partition.take(RANGE, OLD, 5, 6) is ANEW
    assert partition.take(MARK, OLD, 5, 5) is ANEW


def test_a_fill_is_of_one_life_one_claim_and_one_position_after_the_other() -> None:
    partition = Partition()
    assert partition.take(FILL, OLD, 3, 3, 1, last=False) is DROP  # it has begun before the claim was made
    assert partition.take(FILL, OLD, 3, 3, 0, last=False, claim=50) is DROP
    assert partition.inbox.waiting == [0]
    assert partition.take(FILL, OLD, 3, 3, 0, last=False) is APPLY
    assert partition.inbox.waiting == [] and not partition.inbox.filled
    assert partition.take(FILL, NEW, 3, 3, 1, last=False) is DROP
    assert partition.take(FILL, OLD, 3, 3, 1, last=False, claim=50) is DROP
    assert partition.take(RANGE, OLD, 3, 5) is APPLY
    assert partition.take(FILL, OLD, 5, 5, 1) is APPLY
    assert partition.exact_at() == 5
    assert partition.take(FILL, OLD, 5, 5, 0) is DROP  # asked for twice


def test_a_fill_breaks_off_a_range_of_another_life() -> None:
    """Found by the simulation: the fill tells keys as they were before the range, whose first part had told them."""
    partition = Partition()
    assert partition.take(FILL, NEW, 9, 9, 0, last=False) is APPLY
    assert partition.take(RANGE, OLD, 9, 17, 0, last=False) is APPLY
    assert partition.take(FILL, NEW, 9, 9, 1) is APPLY
    assert partition.take(RANGE, OLD, 9, 17, 1) is DROP
    assert partition.exact_at() is None
    assert partition.take(RANGE, NEW, 9, 16) is APPLY
    assert partition.exact_at() is None
    assert partition.take(RANGE, NEW, 16, 18) is APPLY
    assert partition.exact_at() == 18


@pytest.mark.parametrize(("part", "position"), [(2, 3), (0, 3), (1, 2), (1, 4)])
def test_a_fill_that_does_not_go_on_where_it_was_is_begun_anew(part: int, position: int) -> None:
    partition = Partition()
    assert partition.take(FILL, OLD, 3, 3, 0, last=False) is APPLY
    assert partition.take(FILL, OLD, position, position, part) is ANEW


def test_a_later_claim_fences_and_an_earlier_one_does_not() -> None:
    partition = Partition()
    assert partition.take(CLAIM, NEW, 0, 0) is Verdict.FENCED
    partition.offset = CLAIMED - 10
    assert partition.take(CLAIM, NEW, 0, 0) is DROP


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("filled", [False, True])
def test_the_answer_to_a_later_claim_fences_since_the_claim_may_be_lost(part: int, filled: bool) -> None:
    """Its owner publishes as soon as it is filled, with a higher number: what we send then is taken by nobody."""
    partition = Partition()
    if filled:
        partition.fill(4)
    assert partition.take(FILL, OLD, 4, 4, part, last=False, claim=CLAIMED - 1) is DROP
    assert partition.take(FILL, OLD, 4, 4, part, last=False, claim=CLAIMED + 1) is Verdict.FENCED
