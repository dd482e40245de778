"""Streaming files of events through an engine, with or without a durable state: the loop of `cco replay`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agents.engine import Engine
from agents.engine_state import restore
from agents.files.reading import Chunk, read_events
from agents.files.streams import STANDARD_INPUT, InputError, open_input, size_of
from agents.state.checkpoint import INTERVAL, Checkpointer, CheckpointReport
from agents.state.errors import StateError
from agents.state.input_position import InputPosition
from agents.state.owner import is_served, owner_of
from agents.state.store import StateStore
from cco.event_data import Parsed

CHUNK = 65_536  # records between two looks at the rows that are due
CHUNK_WITH_STATE = 16_384  # and between two steps of a checkpoint

OnChunk = Callable[[Chunk], None]
OnDrain = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """What a replay did. Totals are of all the replays into the same state."""

    accepted: int
    rejected: int
    item_changes: int
    records: int
    resumed: int  # of the records, those that the state had applied before
    applied: tuple[int, ...]  # per source partition, the events of its log (a clock event is in every one)
    checkpoints: CheckpointReport | None  # None without a state


def replay(
    engine: Engine,
    paths: Sequence[str],
    *,
    state: Path | None = None,
    every: float = INTERVAL,
    on_chunk: OnChunk | None = None,
    on_drain: OnDrain | None = None,
    chunk: int | None = None,
) -> ReplaySummary:
    """Apply all events of the inputs to a new engine, then publish every row that is due.

    With `state`, the engine first takes up what that directory holds and reads on from there; state and
    input position are committed together every `every` seconds or so, and at the end. `on_chunk` is told of
    each chunk, counted over the whole input, after it was applied; the ones that the state had applied
    before do not come again. `on_drain` is told, while what is left is published at the end, of how many items that is
    done, and of how many in all. When an input fails, what came before is committed and the error raised.
    Raises InputError, StateError.
    """
    tell = on_chunk or (lambda chunk: None)
    of_drain = on_drain or (lambda done, total: None)
    if state is not None:
        return _with_state(engine, paths, state, every, tell, of_drain, chunk or CHUNK_WITH_STATE)
    accepted = rejected = item_changes = records = 0
    for part in read_events(paths, engine.parser, chunk or CHUNK):
        engine.apply_parsed(Parsed(part.batch, part.rejections, part.item_changes))
        accepted += len(part.batch)
        rejected += len(part.rejections)
        item_changes += len(part.item_changes)
        records = part.records
        tell(part)
    _drain(engine, of_drain)
    return ReplaySummary(accepted, rejected, item_changes, records, 0, engine.pipeline.position, None)


def _with_state(
    engine: Engine, paths: Sequence[str], state: Path, every: float, tell: OnChunk, of_drain: OnDrain, chunk: int
) -> ReplaySummary:
    sizes = [_rewindable(path) for path in paths]
    store = StateStore.open(state, engine.config)
    try:
        position = _take_up(engine, store)
        resumed = position.records
        rest = position.rest(paths, state)
    except BaseException:
        store.close()
        raise
    with Checkpointer(store, engine, every) as checkpoints:
        reading = _with_positions(engine, position, rest, chunk)
        while True:
            try:
                read = next(reading, None)
            except InputError:  # of the reader: what came before was applied whole, and has its position
                checkpoints.finish(position.to_json)
                raise
            if read is None:
                break
            part, after = read
            engine.apply_parsed(Parsed(part.batch, part.rejections, part.item_changes))
            position = after
            bytes_read = sum(sizes[: part.file]) + part.bytes_read
            # Before a state may have it: what was refused is told again after a kill, rather than never.
            tell(replace(part, records=position.records, bytes_read=bytes_read, bytes_total=sum(sizes)))
            checkpoints.step(position.to_json, time.monotonic())
        checkpoints.finish(position.to_json)
    _drain(engine, of_drain)
    return ReplaySummary(
        position.accepted,
        position.rejected,
        position.item_changes,
        position.records,
        resumed,
        engine.pipeline.position,
        checkpoints.report,
    )


def _drain(engine: Engine, tell: OnDrain) -> None:
    total = engine.pipeline.stale()
    engine.drain(lambda left: tell(total - left, total))


def _with_positions(
    engine: Engine, position: InputPosition, rest: Sequence[tuple[int, str, int]], chunk: int
) -> Iterator[tuple[Chunk, InputPosition]]:
    """Each chunk, and where the input stands after it: known before it is applied. Raises InputError."""
    for number, path, skip in rest:
        with open_input(path) as stored:  # positions are of the file that is read, whatever its name becomes
            going_on = number < len(position.files)
            position = position.gone_on(path, stored) if going_on else position.begun(path, stored)
            chunks = read_events([path], engine.parser, chunk, skip=skip, opened=stored)
            for part, at_end in _knowing_the_last(chunks):
                after = position.advanced(stored, part.record, part.bytes_read, at_end)
                position = replace(
                    after,
                    accepted=after.accepted + len(part.batch),
                    rejected=after.rejected + len(part.rejections),
                    item_changes=after.item_changes + len(part.item_changes),
                )
                yield replace(part, file=number), position


def _rewindable(path: str) -> int:
    """Bytes of a regular file. Raises StateError for anything else."""
    size = size_of(path)
    if size is None:
        what = "standard input" if path == STANDARD_INPUT else f"{path}: is a pipe or a device, and it"
        raise StateError(f"{what} cannot be read again from the middle, as a state needs it: write it to a file first")
    return size


def _take_up(engine: Engine, store: StateStore) -> InputPosition:
    """Restore what a store holds, and where it stands in its input."""
    if store.commit.generation == 0:
        return InputPosition()
    if is_served(store.commit.input):
        raise StateError(
            f"{store.path}: the state {owner_of(store.commit)}, which takes events by HTTP: send them there, or replay"
            " into a new directory"
        )
    if store.commit.input is None:
        raise StateError(
            f"{store.path}: the state was saved by Engine.save, not by a replay, so there is no input to go on from:"
            " replay into a new directory"
        )
    restore(store, engine)
    return InputPosition.from_json(store.commit.input)


def _knowing_the_last(chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, bool]]:
    """Each chunk, and whether its input ends with it. What came before an error comes before the error."""
    held: Chunk | None = None
    try:
        for chunk in chunks:
            if held is not None:
                yield held, False
            held = chunk
    except InputError:
        if held is not None:
            yield held, False
        raise
    if held is not None:
        yield held, True
