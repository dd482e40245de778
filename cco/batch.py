"""The model in batch: fold every user's log, build compressed sparse matrices, run the row kernel.

Written on its own, to compare the stream with: it shares with the stream only `cco.retention`, the row
kernel of `llr` and the columns of `cco.rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from cco.batch_fold import Histories, SourceBatch, fold
from cco.batch_pieces import Ids
from cco.batch_priors import count_priors
from cco.config import Config
from cco.rows import Rows
from cco.vocabulary import Vocabulary
from llr import kernels, xlogx
from llr.jit import kernel
from llr.weights import truncate

Weights: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]
_Fields: TypeAlias = tuple[npt.NDArray[np.uint32], Weights, npt.NDArray[np.int32]]  # feature, weight, length; padded

FOLD_EVERY = 1 << 21  # events held before they are folded: about 64 MB while that happens
EVENT_BYTES, RETAINED_BYTES = 32, 16  # of an event that is folded; of a retained entry meanwhile, before and after
LEAST_PIECE = 1 << 14  # events: for fewer at a time, going through all histories is not worth it
_CHUNK_ROWS = 4096
_CHUNK_STEPS = 1 << 22  # increments of the row kernel in a chunk, so that threads end together


@dataclass(frozen=True, slots=True)
class Matrices:
    """Users in U by primary item, and the counts; histories are read where the fold put them."""

    n_users: int  # N = |U|
    counts: npt.NDArray[np.int32]  # (indicators, items): users in U with the item
    users_head: npt.NDArray[np.uint32]  # (items, 2): start and length in users_data
    users_data: npt.NDArray[np.uint32]  # users in U who have the primary item


@dataclass(frozen=True, slots=True)
class Model:
    """A model and all that it was counted from."""

    config: Config
    users: Vocabulary
    items: Vocabulary
    histories: Histories
    matrices: Matrices
    sealed: Rows
    threads: int

    @property
    def n_users(self) -> int:
        """N: users in U."""
        return self.matrices.n_users

    def rows(self) -> Rows:
        """Every field with entries, weights as the index keeps them."""
        return self.sealed

    def exact_rows(self) -> Rows:
        """Every field with entries, weights as full doubles, ordered by them; counted anew."""
        return _rows(self.config, self.items, self.histories, self.matrices, self.users, self.threads, exact=True)

    def history(self, user: int) -> dict[str, list[tuple[int, int]]]:
        """(item index, time of its last event) by indicator for a user index, ascending by item index."""
        names = self.config.indicator_names
        found = {}
        for t, name in enumerate(names):
            row = user * len(names) + t
            start, length = self.histories.head[row].tolist() if row < len(self.histories.head) else (0, 0)
            entries = slice(start, start + length)
            pairs = zip(self.histories.items[entries].tolist(), self.histories.times[entries].tolist(), strict=True)
            found[name] = sorted(pairs)
        return found

    def counts(self, item: int, indicator: str, feature: int) -> tuple[int, int, int, int]:
        """(k, n_row, n_col, n): the four counts behind a correlator. Raises ValueError for an unknown indicator."""
        names = self.config.indicator_names
        t = names.index(indicator)
        matrices, histories = self.matrices, self.histories
        k = kernels.count_cell(
            item, feature, matrices.users_head, matrices.users_data, histories.head, len(names), t, histories.items
        )
        counts = matrices.counts
        return int(k), int(counts[0, item]), int(counts[t, feature]), self.n_users


def rebuild(
    config: Config,
    batches: Iterable[SourceBatch],
    users: Vocabulary,
    items: Vocabulary,
    threads: int = 1,
    fold_every: int = FOLD_EVERY,
    *,
    start: Histories | None = None,
    folded: Callable[[Histories], None] = lambda histories: None,
    memory: int | None = None,
) -> Model:
    """The model of the events in `batches`, whose users and items are positions in the vocabularies.

    A batch that comes with its source partition was read from that one's log, where a clock event moves the time
    of this partition alone; in others a clock event stands for one in every partition.
    A rebuild can go on where another one was: each time that all batches taken so far are in histories, `folded` is
    called with these, and they are a later rebuild's `start`, with vocabularies that begin with what these had.
    The vocabularies may grow while `batches` is being consumed. Memory: what is retained (8 bytes an
    entry), twice while folding, and about 32 bytes for each of `fold_every` events, or of half as many as
    are retained if that is more; `memory`, in bytes, is what that may come to: fewer events are folded at a time.
    Raises OverflowError where what is retained alone is more. The result depends on neither `fold_every`, `memory`,
    `threads` nor the batches.
    """
    histories = fold_all(config, batches, users, items, fold_every, start=start, folded=folded, memory=memory)
    matrices = _matrices(config, histories, len(users), len(items))
    sealed = _rows(config, items, histories, matrices, users, threads, exact=False)
    return Model(config, users, items, histories, matrices, sealed, threads)


def fold_all(
    config: Config,
    batches: Iterable[SourceBatch],
    users: Vocabulary,
    items: Vocabulary,
    fold_every: int = FOLD_EVERY,
    *,
    start: Histories | None = None,
    folded: Callable[[Histories], None] = lambda histories: None,
    memory: int | None = None,
) -> Histories:
    """The histories after all of `batches`; arguments as of `rebuild`."""
    histories = start or Histories.none(config.retention.source_partitions)
    held: list[SourceBatch] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += len(batch[1] if isinstance(batch, tuple) else batch)
        if size >= _piece(fold_every, histories.items.size, memory):
            histories = fold(histories, held, config, users, items)
            held, size = [], 0
            folded(histories)
    return fold(histories, held, config, users, items)


def _piece(fold_every: int, retained: int, memory: int | None) -> int:
    """Events to hold before they are folded into histories of `retained` entries. Raises OverflowError."""
    wanted = max(fold_every, retained // 2)
    if memory is None:
        return wanted
    room = (memory - RETAINED_BYTES * retained) // EVENT_BYTES
    if room < LEAST_PIECE:
        need = RETAINED_BYTES * retained + EVENT_BYTES * LEAST_PIECE
        raise OverflowError(
            f"{retained} interactions are retained so far, and to go on takes {need / 1e6:.0f} MB of the"
            f" {memory / 1e6:.0f} MB that are allowed: allow more, lower user_cap, or set a window"
        )
    return min(wanted, room)


def count_columns(
    config: Config, histories: Histories, n_users: int, n_items: int
) -> tuple[int, npt.NDArray[np.int32]]:
    """N, the users in U; and (indicators, items) those of them who have the item."""
    counts = np.zeros((len(config.indicator_names), n_items), np.int32)
    members = _count_columns(histories.head, histories.items, n_users, config.retention.min_primary, counts)
    return int(members), counts


def _matrices(config: Config, histories: Histories, n_users: int, n_items: int) -> Matrices:
    stride, min_primary = len(config.indicator_names), config.retention.min_primary
    members, counts = count_columns(config, histories, n_users, n_items)
    head = np.zeros((n_items, 2), np.uint32)
    head[:, 1] = counts[0]
    head[1:, 0] = np.cumsum(counts[0, :-1])
    data = np.empty(int(counts[0].sum()), np.uint32)
    _fill_users(histories.head, histories.items, n_users, min_primary, stride, head[:, 0].copy(), data)
    return Matrices(members, counts, head, data)


def _chunks(
    rows: npt.NDArray[np.uint32], matrices: Matrices, histories: Histories, stride: int
) -> Iterator[npt.NDArray[np.uint32]]:
    """`rows` in runs of about equal work."""
    if rows.size == 0:
        return
    steps = np.zeros(rows.size, np.int64)
    _steps(rows, matrices.users_head, matrices.users_data, histories.head, stride, steps)
    np.cumsum(steps, out=steps)
    by_work = np.searchsorted(steps, np.arange(_CHUNK_STEPS, int(steps[-1]) + 1, _CHUNK_STEPS))
    bounds = np.unique(np.concatenate((np.arange(0, rows.size, _CHUNK_ROWS), by_work, [rows.size])))
    for start, stop in pairwise(bounds.tolist()):
        yield rows[start:stop]


def _rows(
    config: Config,
    items: Vocabulary,
    histories: Histories,
    matrices: Matrices,
    users: Vocabulary,
    threads: int,
    exact: bool,
) -> Rows:
    priors = count_priors(config, users, histories, matrices.counts.shape[1])
    ids = items.bytes_, items.offsets  # before the threads: the vocabulary brings its arrays up to date here
    rows = np.flatnonzero(matrices.counts[0]).astype(np.uint32)
    return count_rows(config, ids, histories, matrices, priors, rows, threads, exact)


def count_rows(
    config: Config,
    ids: Ids,
    histories: Histories,
    matrices: Matrices,
    priors: npt.NDArray[np.int64],
    rows: npt.NDArray[np.uint32],
    threads: int,
    exact: bool,
) -> Rows:
    """The fields of the primary items `rows`, ascending; `priors`: (priors, items) counts.

    `matrices` and `histories` need have only what these rows are counted from, and the counts of all.
    """
    chunks = list(_chunks(rows, matrices, histories, len(config.indicator_names)))
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        parts = list(pool.map(lambda rows: _count(config, ids, histories, matrices, priors, rows, exact), chunks))
    return _concatenate(parts, np.zeros(0, np.float64) if exact else np.zeros(0, np.float32))


def _count(
    config: Config,
    ids: Ids,
    histories: Histories,
    matrices: Matrices,
    priors: npt.NDArray[np.int64],
    rows: npt.NDArray[np.uint32],
    exact: bool,
) -> Rows:
    """The fields of some primary items."""
    names = config.indicator_names
    n_items = matrices.counts.shape[1]
    cells, touched = np.zeros(n_items, np.uint32), np.empty(n_items + 1, np.uint32)
    fields: list[_Fields] = []
    for t, name in enumerate(names):
        indicator = config.indicators[name]
        feature = np.empty((rows.size, indicator.top_k), np.uint32)
        llr = np.empty((rows.size, indicator.top_k), np.float64)
        length = np.empty(rows.size, np.int32)
        kernels.top_rows(
            rows, matrices.users_head, matrices.users_data, histories.head, len(names), t, histories.items,
            matrices.counts[t], matrices.n_users, t == 0, indicator.top_k, indicator.min_llr,
            config.anti_correlations, *ids, xlogx.table(), cells, touched,
            feature, llr, length,
        )  # fmt: skip
        if exact:
            fields.append((feature, llr, length))
            continue
        sealed = np.empty(llr.shape, np.float32)
        kernels.seal_rows(feature, llr, length, *ids, sealed)
        fields.append((feature, sealed, length))
    fields.append(_prior_fields(priors[:, rows], exact))
    lengths = np.stack([length for _, _, length in fields], axis=1)
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends.reshape(lengths.shape) - lengths
    total = int(ends[-1])
    out_feature = np.empty(total, np.uint32)
    out_weight: Weights = np.empty(total, np.float64) if exact else np.empty(total, np.float32)
    for f, (feature, weight, length) in enumerate(fields):
        _pack(feature, weight, length, starts[:, f], out_feature, out_weight)
    at_row, at_field = np.nonzero(lengths)
    start = np.append(starts[at_row, at_field], total)
    return Rows(rows[at_row], at_field.astype(np.uint8), start, out_feature, out_weight)


def _prior_fields(counts: npt.NDArray[np.int64], exact: bool) -> _Fields:
    """(priors, m) counts as m fields: positive ones by weight, then name."""
    values = np.maximum(counts, 0).T.astype(np.float64)
    weights: Weights = values if exact else truncate(values)
    order = np.argsort(-weights, axis=1, kind="stable")
    length = np.asarray(np.count_nonzero(values, axis=1), np.int32)
    ordered: Weights = np.take_along_axis(weights, order, axis=1)  # type: ignore[assignment]
    return order.astype(np.uint32), ordered, length


def _concatenate(parts: list[Rows], no_weight: Weights) -> Rows:
    none = np.zeros(0, np.uint32)
    sizes = np.cumsum([0, *(part.feature.size for part in parts)], dtype=np.int64)
    starts = [part.start[:-1] + size for part, size in zip(parts, sizes[:-1], strict=True)]
    return Rows(
        item=np.concatenate([none, *(part.item for part in parts)]),
        field=np.concatenate([none.astype(np.uint8), *(part.field for part in parts)]),
        start=np.concatenate([*starts, sizes[-1:]]),
        feature=np.concatenate([none, *(part.feature for part in parts)]),
        weight=np.concatenate([no_weight, *(part.weight for part in parts)]),
    )


@kernel
def _count_columns(head, items, n_users, min_primary, counts):  # type: ignore[no-untyped-def]
    """counts[t, j] += users in U with item j under t; returns how many users are in U."""
    stride = counts.shape[0]
    members = 0
    for u in range(n_users):
        if head[u * stride, 1] < min_primary:
            continue
        members += 1
        for t in range(stride):
            start = np.int64(head[u * stride + t, 0])
            for k in range(start, start + head[u * stride + t, 1]):
                counts[t, items[k]] += 1
    return members


@kernel
def _fill_users(head, items, n_users, min_primary, stride, cursor, data):  # type: ignore[no-untyped-def]
    """The transpose of the primary matrix: users in U, ascending, at their items' places (cursor: the starts)."""
    for u in range(n_users):
        if head[u * stride, 1] < min_primary:
            continue
        start = np.int64(head[u * stride, 0])
        for k in range(start, start + head[u * stride, 1]):
            j = items[k]
            data[cursor[j]] = u
            cursor[j] += 1


@kernel
def _steps(rows, users_head, users_data, head, stride, out):  # type: ignore[no-untyped-def]
    """out[r] += entries that counting row r walks over, all indicators together."""
    for r in range(rows.size):
        start = np.int64(users_head[rows[r], 0])
        for p in range(start, start + users_head[rows[r], 1]):
            u = np.int64(users_data[p])
            for t in range(stride):
                out[r] += head[u * stride + t, 1]


@kernel
def _pack(feature, weight, length, starts, out_feature, out_weight):  # type: ignore[no-untyped-def]
    """Move the entries of padded rows to where `starts` says."""
    for r in range(length.size):
        for k in range(length[r]):
            out_feature[starts[r] + k] = feature[r, k]
            out_weight[starts[r] + k] = weight[r, k]
