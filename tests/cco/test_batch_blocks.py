"""The batch rebuild in blocks: whatever the stretches, pieces and blocks, the model of one machine, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cco import batch_blocks
from cco.batch import rebuild
from cco.batch_blocks import Catalogue, add_totals, blocks_of_items, count_block, fold_block, scatter
from cco.batch_fold import Histories, SourceBatch
from cco.batch_pieces import Dealer, pack, unpack
from cco.config import Config, Indicator, Retention
from cco.events import EventBatch
from cco.model_file import encode
from cco.rows import Rows, join_rows
from cco.vocabulary import Vocabulary
from tests.cco.histories import Event, cases, to_batch
from tests.oracle import partition_of

Stretch = tuple[int | None, list[Event]]  # of the log of a source partition, or of a file
Pieces = dict[int, list[bytes]]


Kept = dict[tuple[str, int], dict[str, int]]  # by user and indicator, items and times
Outcome = tuple[bytes, int, int, int, Kept]


def kept(histories: Histories, stride: int, users: Vocabulary, items: Vocabulary) -> Kept:
    """What is retained, by names."""
    found: Kept = {}
    for row, (start, length) in enumerate(histories.head.tolist()):
        if length:
            at = slice(start, start + length)
            pairs = zip(items.names(histories.items[at]), histories.times[at].tolist(), strict=True)
            found[users.name(row // stride), row % stride] = dict(pairs)
    return found


def whole(config: Config, stretches: Sequence[Stretch], exact: bool) -> Outcome:
    """The model file, N, users, items and histories by the rebuild of one machine."""
    users, items = Vocabulary(), Vocabulary()
    batches: list[SourceBatch] = []
    for source, log in stretches:
        batch = to_batch(config, log, users, items)
        batches.append(batch if source is None else (source, batch))
    model = rebuild(config, batches, users, items)
    rows = model.exact_rows() if exact else model.rows()
    histories = kept(model.histories, len(config.indicator_names), users, items)
    return b"".join(encode(rows, items, config)), model.n_users, len(users), len(items), histories


def dealt(
    config: Config, stretches: Sequence[Stretch], blocks: int, size: int
) -> tuple[dict[int, list[tuple[int, bytes]]], list[list[int]]]:
    """Pieces by block, each with the number of its stretch; the latest times of each stretch."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    latest = []
    for number, (source, log) in enumerate(stretches):
        dealer = Dealer(config, blocks, source)
        for at in range(0, len(log), size):
            dealer.add(to_batch(config, log[at : at + size], dealer.users, dealer.items))
            if at % (2 * size):
                for block, piece in dealer.dealt():
                    found.setdefault(block, []).append((number, piece))
        for block, piece in dealer.dealt():
            found.setdefault(block, []).append((number, piece))
        assert dealer.held == 0
        latest.append(dealer.latest.tolist())
    return found, latest


def in_blocks(
    config: Config, stretches: Sequence[Stretch], blocks: int, item_blocks: int, size: int, exact: bool
) -> Outcome:
    """The same in blocks, as many processes would do it."""
    pieces, latest = dealt(config, stretches, blocks, size)
    times = np.maximum.accumulate([[0] * config.retention.source_partitions, *latest], axis=0)
    users = members = entries = primary = 0
    histories: list[bytes] = []
    retained: Kept = {}
    totals: Pieces = {}
    for block, listed in pieces.items():
        source = block // blocks
        found = fold_block(config, source, ((times[k][source], piece) for k, piece in listed), times[-1][source])
        users, members = users + len(found.users), members + found.members
        entries, primary = entries + found.entries[0], primary + found.entries[1]
        histories += found.pieces()
        retained |= kept(found.histories, len(config.indicator_names), found.users, found.items)
        for shard, piece in found.totals(3):
            totals.setdefault(shard, []).append(piece)
    catalogue = Catalogue.of(config, members, [add_totals(config, listed) for listed in totals.values()])
    spread: Pieces = {}
    for piece in histories:
        for block, part in scatter(catalogue, item_blocks, piece):
            spread.setdefault(block, []).append(part)
    assert sum(unpack(piece)[1].size for listed in spread.values() for piece in listed) <= item_blocks * entries
    parts: list[Rows] = []
    for block, listed in spread.items():
        parts += count_block(catalogue, item_blocks, block, listed, exact)
    file = b"".join(encode(join_rows(parts), catalogue.items, config))
    assert primary == catalogue.counts[0].sum()
    return file, members, users, len(catalogue.items), retained


@settings(max_examples=250, deadline=None)
@given(cases(), st.integers(1, 5), st.integers(1, 5), st.integers(1, 30), st.integers(1, 30), st.booleans())
def test_files_in_blocks_are_files_on_one_machine(
    case: tuple[Config, list[Event]], blocks: int, item_blocks: int, size: int, stretch: int, exact: bool
) -> None:
    config, log = case
    stretches: list[Stretch] = [(None, log[at : at + stretch]) for at in range(0, len(log), stretch)]
    assert in_blocks(config, stretches, blocks, item_blocks, size, exact) == whole(config, stretches, exact)


@settings(max_examples=150, deadline=None)
@given(cases(), st.lists(st.integers(0, 100), min_size=3, max_size=3), st.integers(1, 4), st.integers(1, 30))
def test_logs_in_blocks_are_logs_on_one_machine(
    case: tuple[Config, list[Event]], ahead: list[int], blocks: int, stretch: int
) -> None:
    """A clock event is in the log of one source partition alone, and each goes ahead of the others."""
    config, log = case
    sources = config.retention.source_partitions
    stretches: list[Stretch] = []
    for source in range(sources):
        mine: list[Event] = []
        for k, (user, kind, item, time) in enumerate(log):
            if kind == "$clock" and k % sources == source:
                mine.append((user, kind, item, time + ahead[source]))
            elif kind != "$clock" and partition_of(user, sources) == source:
                mine.append((user, kind, item, time))
        stretches += [(source, mine[at : at + stretch]) for at in range(0, len(mine), stretch)]
    assert in_blocks(config, stretches, blocks, 2, 7, False) == whole(config, stretches, False)


@pytest.mark.parametrize("cut", [3, 1, 2], ids=["one stretch", "others in a later one", "others in an earlier one"])
@pytest.mark.parametrize("kind", ["buy", "$clock"])
def test_the_time_that_others_moved_on_counts(kind: str, cut: int) -> None:
    """A visitor's view has expired when the visitor's late purchase comes: the time is of users in other blocks."""
    config = Config(
        primary="buy", indicators={"buy": Indicator(), "view": Indicator()}, retention=Retention(visitor_window=20)
    )
    log = [("ann", "view", "i1", 1), ("bob", kind, "i2", 100), ("ann", "buy", "i2", 15)]
    stretches: list[Stretch] = [(None, part) for part in (log[:cut], log[cut:]) if part]
    assert kind == "$clock" or len(dealt(config, stretches, 64, 10)[0]) == 2
    found = in_blocks(config, stretches, 64, 2, 10, False)
    assert found == whole(config, stretches, False)
    assert ("ann", 1) not in found[-1] and ("ann", 0) in found[-1]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_pieces_may_be_of_any_size(case: tuple[Config, list[Event]]) -> None:
    config, log = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_blocks, "PIECE", 3)
        patch.setattr(batch_blocks, "ROWS_TOGETHER", 2)
        assert in_blocks(config, [(None, log)], 2, 2, 10, False) == whole(config, [(None, log)], False)


def test_arrays_come_back_as_they_were_and_writeable() -> None:
    arrays = [np.arange(5, dtype=np.uint32), np.zeros(0, np.float64), np.arange(4, dtype=np.int16)[::2]]
    found = unpack(memoryview(pack(*arrays)))
    assert [array.dtype for array in found] == [array.dtype for array in arrays]
    assert [array.tolist() for array in found] == [array.tolist() for array in arrays]
    assert all(array.flags.writeable for array in found)


def made() -> tuple[Config, Catalogue, list[bytes]]:
    """Two users with two items, and their histories."""
    config = Config()
    log = [(f"u{user}", "purchase", f"i{item}", 5) for user in range(2) for item in range(2)]
    pieces, _ = dealt(config, [(None, log)], 1, 10)
    found = fold_block(config, 0, [(0, piece) for _, piece in pieces[0]], 5)
    totals = [piece for _, piece in found.totals(1)]
    return config, Catalogue.of(config, found.members, totals), list(found.pieces())


def test_histories_that_have_not_come_are_noticed() -> None:
    _, catalogue, pieces = made()
    parts = [part for piece in pieces for block, part in scatter(catalogue, 1, piece)]
    assert sum(map(len, count_block(catalogue, 1, 0, parts, False))) > 0
    with pytest.raises(ValueError, match="block 0 of items: the histories of some users have not come here"):
        list(count_block(catalogue, 1, 0, [], False))
    with pytest.raises(ValueError, match="block 0 of items: there are more users of an item than were counted"):
        list(count_block(catalogue, 1, 0, parts * 2, False))


def test_items_that_nobody_has_counted_are_noticed() -> None:
    config, _, pieces = made()
    nothing = Catalogue.of(config, 0, [])
    with pytest.raises(ValueError, match="2 items of a piece of histories are not in the catalogue"):
        list(scatter(nothing, 1, pieces[0]))


def test_no_events_are_no_model() -> None:
    config = Config()
    assert in_blocks(config, [], 2, 2, 10, False) == (b"", 0, 0, 0, {})
    dealer = Dealer(config, 2, None)
    dealer.add(EventBatch.join([]))
    assert list(dealer.dealt()) == []


@pytest.mark.parametrize(
    ("entries", "primary", "members", "least", "most", "blocks"),
    [
        (0, 0, 0, 2, 100, 2),
        (100, 100, 10, 2, 100, 2),
        (1000, 1000, 20, 1, 100, 512),  # with 50 items each a user is in nearly as many blocks
        (1000, 1000, 1000, 1, 100, 16),  # with one item each the blocks are a division
        (1000, 1000, 1000, 3, 100, 12),
    ],
)
def test_blocks_are_as_many_as_memory_wants(
    entries: int, primary: int, members: int, least: int, most: int, blocks: int
) -> None:
    assert blocks_of_items(entries, primary, members, least, most) == blocks
