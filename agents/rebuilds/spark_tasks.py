"""What the tasks of a rebuild on Spark do: `cco.batch_pieces` and `cco.batch_blocks`, from batches of Arrow to batches.

Spark moves rows of (block, task, piece, payload): whose they are, whence and in which order, and bytes that nothing but
these functions looks into. So it does not touch single events, and no arithmetic of the JVM's is in the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import count, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cco.batch_blocks import Catalogue, UserBlock, add_totals, count_block, fold_block, scatter
from cco.batch_pieces import PIECE, Dealer, pack, unpack
from cco.event_data import Rejection
from cco.events import EventParser
from cco.rows import Rows
from model_sync.metadata import change_problem

if TYPE_CHECKING:
    from agents.rebuilds.spark_reading import Stretch
    from cco.config import Config

SCHEMA = "block int, task int, piece int, payload binary"
NOTE, REJECTED, TOTALS = -1, -2, -3  # instead of a block: what the driver is told; and counts of items, by `task`

Row: TypeAlias = tuple[int, int, int, bytes]  # block, task, number of the piece within the task, payload
Batches: TypeAlias = Iterable[pa.RecordBatch]

_DEAL_EVERY = 1 << 20  # events, at most
_TOGETHER = 8 << 20  # bytes of payload in a batch of Arrow's, about
_ARROW = pa.schema(
    [
        pa.field("block", pa.int32()),
        pa.field("task", pa.int32()),
        pa.field("piece", pa.int32()),
        pa.field("payload", pa.binary()),
    ]
)


# -- tasks ----------------------------------------------------------------------------------------------


def deal(config: Config, stretches: Sequence[Stretch], blocks: int, batches: Batches) -> Iterator[pa.RecordBatch]:
    """Of numbers of stretches: their events, dealt to `blocks` blocks for each source partition, notes, rejections."""
    for batch in batches:
        for number in batch.column(0).to_pylist():
            yield from _to_arrow(_dealt(config, stretches[number], number, blocks))


def fold(
    config: Config, blocks: int, before: npt.NDArray[np.uint32], shards: int, batches: Batches
) -> Iterator[pa.RecordBatch]:
    """Of dealt pieces, sorted: histories of members, totals of items by shard, and a note for each block.

    `before` (tasks + 1, sources): the time of each source partition before each stretch, and at the end; seconds.
    """
    for block, rows in groupby(_from_arrow(batches), key=itemgetter(0)):
        source = block // blocks
        times = before[:, source].tolist()
        found = fold_block(config, source, ((times[task], payload) for _, task, _, payload in rows), times[-1])
        yield from _to_arrow(_folded(found, block, shards))


def add(config: Config, batches: Batches) -> Iterator[pa.RecordBatch]:
    """Of totals, sorted by shard: the sum of each shard."""
    for shard, rows in groupby(_from_arrow(batches), key=itemgetter(1)):
        yield from _to_arrow([(TOTALS, shard, 0, add_totals(config, (row[3] for row in rows)))])


def spread(catalogue: Any, blocks: int, batches: Batches) -> Iterator[pa.RecordBatch]:
    """Of histories: what each block of items needs of them. `catalogue`: broadcast."""
    for _, task, number, payload in _from_arrow(batches):
        found = scatter(catalogue.value, blocks, payload)
        yield from _to_arrow((block, task, number, piece) for block, piece in found)


def count_rows(catalogue: Any, blocks: int, exact: bool, batches: Batches) -> Iterator[pa.RecordBatch]:
    """Of what was spread, one block of items in a partition: their rows. `catalogue`: broadcast."""
    found: Catalogue = catalogue.value
    for block, rows in groupby(_from_arrow(batches), key=itemgetter(0)):
        parts = count_block(found, blocks, block, (row[3] for row in rows), exact)
        yield from _to_arrow((block, 0, k, rows_packed(part)) for k, part in enumerate(parts))


def _dealt(config: Config, stretch: Stretch, number: int, blocks: int) -> Iterator[Row]:
    dealer, pieces = Dealer(config, blocks, stretch.source), count()
    parser = EventParser(config, dealer.users, dealer.items, change_problem)
    every = min(_DEAL_EVERY, PIECE * blocks * config.retention.source_partitions)
    accepted = rejected = changes = 0

    def dealt() -> Iterator[Row]:
        for block, piece in dealer.dealt():
            yield block, number, next(pieces), piece
        parser.users, parser.items = dealer.users, dealer.items

    for found in stretch.read(parser):
        accepted += len(found.batch)
        rejected += len(found.rejections)
        changes += len(found.item_changes)
        dealer.add(found.batch)
        if found.rejections:
            told = json.dumps([asdict(rejection) for rejection in found.rejections])
            yield REJECTED, number, next(pieces), told.encode()
        if dealer.held >= every:
            yield from dealt()
    yield from dealt()
    note = {"accepted": accepted, "rejected": rejected, "changes": changes, "latest": dealer.latest.tolist()}
    yield NOTE, number, next(pieces), json.dumps(note).encode()


def _folded(found: UserBlock, block: int, shards: int) -> Iterator[Row]:
    for number, piece in enumerate(found.pieces()):
        yield block, block, number, piece
    for shard, piece in found.totals(shards):
        yield TOTALS, shard, block, piece
    entries, primary = found.entries
    note = {"users": len(found.users), "members": found.members, "entries": entries, "primary": primary}
    yield NOTE, block, 0, json.dumps(note).encode()


# -- payloads -------------------------------------------------------------------------------------------


def rejections_of(payload: bytes) -> list[Rejection]:
    """Of a row of REJECTED."""
    return [Rejection(**told) for told in json.loads(payload)]


def rows_packed(rows: Rows) -> bytes:
    """Rows as bytes."""
    return pack(rows.item, rows.field, rows.start, rows.feature, rows.weight)


def rows_unpacked(payload: bytes) -> Rows:
    """What `rows_packed` packed."""
    return Rows(*unpack(payload))


def _to_arrow(rows: Iterable[Row]) -> Iterator[pa.RecordBatch]:
    held: list[Row] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row[3])
        if size >= _TOGETHER:
            yield _batch(held)
            held, size = [], 0
    if held:
        yield _batch(held)


def _batch(rows: list[Row]) -> pa.RecordBatch:
    return pa.record_batch([list(column) for column in zip(*rows, strict=True)], schema=_ARROW)


def _from_arrow(batches: Batches) -> Iterator[tuple[int, int, int, memoryview]]:
    for batch in batches:
        blocks, tasks, pieces = (batch.column(k).to_pylist() for k in range(3))
        for row in zip(blocks, tasks, pieces, batch.column(3), strict=True):
            yield *row[:3], memoryview(row[3].as_buffer())
