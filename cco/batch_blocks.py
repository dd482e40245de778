"""The batch rebuild in blocks, for interactions beyond one machine: what one process of many does with its share.

    stretches of the log --deal--> pieces of events, by block of users --fold--> histories
    histories --totals, add_totals--> the catalogue: all items, with their counts
    histories, catalogue --scatter--> pieces of histories, by block of items --count_block--> rows

A user is in one block, and so all blocks of users count for themselves, in integers, which are added up. A member's
histories go to each block that has one of his primary items: a row is counted where its item is, from whole histories,
by the kernel and with the counts that one machine would take. Pieces are bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from cco.batch import Matrices, count_columns, count_rows, fold_all
from cco.batch_fold import MOST_RETAINED, Histories, SourceBatch
from cco.batch_pieces import PIECE, Piece, chosen_ids, events_of, interned, pack, unpack
from cco.batch_priors import count_priors
from cco.config import Config
from cco.events import CLOCK, EventBatch
from cco.rows import Rows
from cco.vocabulary import Vocabulary
from llr.jit import kernel

ROWS_TOGETHER = 1 << 14  # items whose rows are one part of what `count_block` answers


# -- blocks of users ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UserBlock:
    """What is retained of some users, all of one source partition."""

    config: Config
    users: Vocabulary
    items: Vocabulary
    histories: Histories
    members: int  # of them, users in U
    counts: npt.NDArray[np.int32]  # (indicators, items): those who have the item

    @property
    def entries(self) -> tuple[int, int]:
        """Interactions of members, and among them those with primary items."""
        return int(self.counts.sum(dtype=np.int64)), int(self.counts[0].sum(dtype=np.int64))

    def totals(self, shards: int) -> Iterator[tuple[int, bytes]]:
        """(shard, piece): its items, with what it counts of them, by a hash of their ids."""
        priors = count_priors(self.config, self.users, self.histories, len(self.items))
        of_item = self.items.hashes % np.uint64(shards)
        for shard in range(shards):
            at = np.flatnonzero(of_item == shard)
            if at.size:
                counts = self.counts[:, at].astype(np.int64)
                yield shard, pack(*chosen_ids(self.items, at), counts.ravel(), priors[:, at].ravel())

    def pieces(self) -> Iterator[bytes]:
        """The histories of its members: ids of items, (users * indicators) lengths, items by position among the ids."""
        stride = self.counts.shape[0]
        lengths = np.array(self.histories.head[:, 1].reshape(-1, stride))
        lengths[lengths[:, 0] < self.config.retention.min_primary] = 0
        chosen = np.flatnonzero(lengths[:, 0])
        ends = np.cumsum(lengths[chosen].sum(axis=1, dtype=np.int64))
        cuts = np.searchsorted(ends, np.arange(PIECE, int(ends[-1]) if ends.size else 0, PIECE)) + 1
        for begin, end in pairwise(np.unique([0, *cuts.tolist(), chosen.size]).tolist()):
            of_piece = chosen[begin:end]
            entries = np.empty(int(ends[end - 1] - (ends[begin - 1] if begin else 0)), np.uint32)
            _gather(self.histories.head, self.histories.items, of_piece, stride, entries)
            items, codes = np.unique(entries, return_inverse=True)
            yield pack(*chosen_ids(self.items, items), lengths[of_piece].ravel(), codes.astype(np.uint32))


def fold_block(config: Config, source: int, pieces: Iterable[tuple[int, Piece]], watermark: int) -> UserBlock:
    """The block of the pieces, which come in log order, each with the time of its source partition before its stretch.

    `watermark`: that at the end of the log. Times are in epoch seconds.
    """
    users, items = Vocabulary(), Vocabulary()

    def batches() -> Iterator[SourceBatch]:
        for before, piece in pieces:
            yield source, events_of(piece, users, items, before)
        none = np.zeros(1, np.uint32)
        yield source, EventBatch(none, none, np.full(1, CLOCK, np.int16), np.full(1, watermark, np.uint32))

    histories = fold_all(config, batches(), users, items)
    members, counts = count_columns(config, histories, len(users), len(items))
    return UserBlock(config, users, items, histories, members, counts)


# -- the catalogue --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Catalogue:
    """All items, and the counts of all users."""

    config: Config
    n_users: int  # N
    names: tuple[bytes, npt.NDArray[np.int64]]  # as `Vocabulary.export` gives them
    counts: npt.NDArray[np.int32]  # (indicators, items)
    priors: npt.NDArray[np.int64]  # (priors, items)

    @cached_property
    def items(self) -> Vocabulary:
        """The items by their positions."""
        return Vocabulary.restore(*self.names)

    @staticmethod
    def of(config: Config, n_users: int, totals: Sequence[bytes]) -> Catalogue:
        """From the sums of every shard."""
        items, counts, priors = _added(config, totals)
        return Catalogue(config, n_users, items.export(), counts.astype(np.int32), priors)


def add_totals(config: Config, pieces: Iterable[Piece]) -> bytes:
    """The sums of totals of one shard, as a piece of the same kind."""
    items, counts, priors = _added(config, pieces)
    return pack(items.bytes_, items.offsets, counts.ravel(), priors.ravel())


def _added(config: Config, pieces: Iterable[Piece]) -> tuple[Vocabulary, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Items, (indicators, items) counts and (priors, items) counts."""
    items = Vocabulary()
    parts = []
    for piece in pieces:
        text, bounds, counts, priors = unpack(piece)
        parts.append((interned(items, (text, bounds)), counts, priors))
    kinds, prior_kinds = len(config.indicator_names), len(config.prior_names)
    counts_sum, priors_sum = (np.zeros((rows, len(items)), np.int64) for rows in (kinds, prior_kinds))
    for at, counts, priors in parts:  # no item is twice in a piece
        counts_sum[:, at] += counts.reshape(kinds, at.size)
        priors_sum[:, at] += priors.reshape(prior_kinds, at.size)
    return items, counts_sum, priors_sum


# -- histories to blocks of items, and their rows -------------------------------------------------------


def scatter(catalogue: Catalogue, blocks: int, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """(block of items, piece): a piece of histories, for each block of those users who have a primary item there.

    Item i is in block i % blocks.
    """
    text, bounds, lengths, codes = unpack(piece)
    known = len(catalogue.items)
    at = interned(catalogue.items, (text, bounds))
    if len(catalogue.items) > known:
        raise ValueError(f"{len(catalogue.items) - known} items of a piece of histories are not in the catalogue")
    entries = at[codes]
    stride = catalogue.counts.shape[0]
    users, sizes = np.zeros(blocks + 1, np.int64), np.zeros(blocks + 1, np.int64)
    seen = np.zeros(blocks, np.int64)
    _reach(lengths, entries, stride, blocks, seen, users, sizes)
    np.cumsum(users, out=users)
    np.cumsum(sizes, out=sizes)
    out_lengths, out_entries = np.empty(int(users[-1]) * stride, np.uint32), np.empty(int(sizes[-1]), np.uint32)
    seen[:] = 0
    _spread(lengths, entries, stride, blocks, seen, users.copy(), sizes.copy(), out_lengths, out_entries)
    for block in range(blocks):
        if users[block + 1] > users[block]:
            yield (
                block,
                pack(
                    out_lengths[users[block] * stride : users[block + 1] * stride],
                    out_entries[sizes[block] : sizes[block + 1]],
                ),
            )


def blocks_of_items(entries: int, primary: int, members: int, least: int, most_entries: int) -> int:
    """How many blocks, at least `least`, so that one holds about `most_entries` of the histories at most.

    `entries`, of which `primary` have primary items, are those of the `members`. A user with h primary items is in
    the share 1 - (1 - 1 / blocks) ** h of the blocks.
    """
    blocks = max(1, least)
    each = primary / max(1, members)
    while entries * (1 - (1 - 1 / blocks) ** each) > most_entries and blocks < max(least, primary):
        blocks *= 2
    return blocks


def count_block(catalogue: Catalogue, blocks: int, block: int, pieces: Iterable[Piece], exact: bool) -> Iterator[Rows]:
    """The rows of the items of a block, ascending, some at a time, from all that was scattered to it.

    Raises OverflowError where that is more than uint32 can address, ValueError if it is not all.
    """
    parts = [unpack(piece) for piece in pieces]
    none = np.zeros(0, np.uint32)
    lengths, entries = (np.concatenate([none, *(part[which] for part in parts)]) for which in (0, 1))
    del parts
    if entries.size > MOST_RETAINED:
        raise OverflowError(f"{entries.size} entries of histories in a block of items; at most {MOST_RETAINED} fit one")
    head = np.empty((lengths.size, 2), np.uint32)
    head[:, 1] = lengths
    head[:, 0] = np.cumsum(lengths, dtype=np.int64) - lengths
    del lengths
    histories = Histories(head, entries, none, none)
    mine = np.arange(block, catalogue.counts.shape[1], blocks)
    matrices = _matrices(catalogue, histories, mine, blocks, block)
    rows = mine[catalogue.counts[0, mine] > 0].astype(np.uint32)
    ids = catalogue.items.bytes_, catalogue.items.offsets
    for at in range(0, rows.size, ROWS_TOGETHER):
        some = rows[at : at + ROWS_TOGETHER]
        yield count_rows(catalogue.config, ids, histories, matrices, catalogue.priors, some, 1, exact)


def _matrices(
    catalogue: Catalogue, histories: Histories, mine: npt.NDArray[np.int64], blocks: int, block: int
) -> Matrices:
    """The counts of all, and the users of the items `mine`."""
    stride, n_items = catalogue.counts.shape
    head = np.zeros((n_items, 2), np.uint32)
    head[mine, 1] = catalogue.counts[0, mine]
    ends = np.cumsum(head[:, 1], dtype=np.int64)
    head[:, 0] = ends - head[:, 1]
    data = np.empty(int(ends[-1]) if n_items else 0, np.uint32)
    cursor = head[:, 0].astype(np.int64)
    if not _fill_holders(histories.head, histories.items, stride, blocks, block, ends, cursor, data):
        raise ValueError(f"block {block} of items: there are more users of an item than were counted")
    if (cursor != ends).any():
        raise ValueError(f"block {block} of items: the histories of some users have not come here")
    return Matrices(catalogue.n_users, catalogue.counts, head, data)


# -- kernels ------------------------------------------------------------------------------------------


@kernel
def _gather(head: Any, items: Any, chosen: Any, stride: Any, out: Any) -> None:
    """All entries of the histories of the chosen users, one after the other."""
    at = 0
    for k in range(chosen.size):
        for row in range(chosen[k] * stride, (chosen[k] + 1) * stride):
            start = np.int64(head[row, 0])
            for e in range(start, start + head[row, 1]):
                out[at] = items[e]
                at += 1


@kernel
def _reach(lengths: Any, entries: Any, stride: Any, blocks: Any, seen: Any, users: Any, sizes: Any) -> None:
    """users[b + 1] and sizes[b + 1]: users with a primary item in block b, and all their entries. `seen`: zeros."""
    start = np.int64(0)
    for u in range(lengths.size // stride):
        total = np.int64(0)
        for t in range(stride):
            total += np.int64(lengths[u * stride + t])
        for e in range(start, start + np.int64(lengths[u * stride])):
            b = np.int64(entries[e]) % blocks
            if seen[b] != u + 1:
                seen[b] = u + 1
                users[b + 1] += 1
                sizes[b + 1] += total
        start += total


@kernel
def _spread(
    lengths: Any, entries: Any, stride: Any, blocks: Any, seen: Any, users: Any, sizes: Any, out_lengths: Any, out: Any
) -> None:
    """Copy each user to the blocks that `_reach` counts him in; `users` and `sizes`: where the blocks go on."""
    start = np.int64(0)
    for u in range(lengths.size // stride):
        total = np.int64(0)
        for t in range(stride):
            total += np.int64(lengths[u * stride + t])
        for e in range(start, start + np.int64(lengths[u * stride])):
            b = np.int64(entries[e]) % blocks
            if seen[b] != u + 1:
                seen[b] = u + 1
                for t in range(stride):
                    out_lengths[users[b] * stride + t] = lengths[u * stride + t]
                users[b] += 1
                for k in range(total):
                    out[sizes[b] + k] = entries[start + k]
                sizes[b] += total
        start += total


@kernel
def _fill_holders(
    head: Any, items: Any, stride: Any, blocks: Any, block: Any, ends: Any, cursor: Any, data: Any
) -> Any:
    """The users of each primary item of the block at its place; False where there is no room for one."""
    for u in range(head.shape[0] // stride):
        start = np.int64(head[u * stride, 0])
        for k in range(start, start + head[u * stride, 1]):
            j = np.int64(items[k])
            if j % blocks == block:
                if cursor[j] == ends[j]:
                    return False
                data[cursor[j]] = u
                cursor[j] += 1
    return True
