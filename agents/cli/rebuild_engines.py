"""What computes a model for `cco rebuild`: this machine, or Spark."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from agents.cli.common import Bar, UsageProblem
from agents.cli.inputs import Intake

if TYPE_CHECKING:
    from agents.rebuilds.sources import Computed, LogSource, Progress
    from agents.rebuilds.spark import Read
    from cco.batch import Model
    from cco.batch_fold import SourceBatch
    from cco.config import Config
    from cco.events import EventParser


def by_this_machine(
    config: Config,
    what: LogSource | Sequence[str],
    resume: Path | None,
    intake: Intake,
    bar: Bar,
    threads: int,
    memory: int | None = None,
) -> tuple[Model, Progress, float]:
    """The model of a log or of files, what of the log is in it, and the seconds that reading took.

    `memory`: bytes; see `cco.batch.rebuild`. Raises UsageProblem where that is too little.
    """
    from agents.rebuilds.sources import LogSource, Progress
    from cco.batch import rebuild
    from cco.events import EventParser
    from model_sync.metadata import change_problem

    log, topic = "", None
    if resume and isinstance(what, LogSource):
        log, topic = what.name(), None if what.archive is None else what.archive.topic_id()
    counted = Progress.begin(config, log, resume, topic)
    parser = EventParser(config, counted.users, counted.items, change_problem)
    found: Iterator[SourceBatch] = (
        _of_log(what, parser, counted, intake, bar) if isinstance(what, LogSource) else intake.read(what, parser, bar)
    )
    clock = _Clock()
    try:
        computed = rebuild(
            config, _with_words(clock.timed(found), bar), counted.users, counted.items, threads=threads,
            start=counted.histories, folded=counted.folded, memory=memory,
        )  # fmt: skip
    except OverflowError as error:
        raise UsageProblem(f"--memory: {error}" if memory else str(error)) from error
    counted.pieces += 1  # the rest
    counted.save(computed.histories)
    return computed, counted, clock.seconds


def by_spark(
    config: Config,
    what: LogSource | Sequence[str],
    intake: Intake,
    bar: Bar,
    opened: ExitStack,
    memory: int | None = None,
) -> tuple[Computed, Progress, float]:
    """The same of an archive or of files; Spark stays with the model until `opened` is closed. `memory`: of a task."""
    from agents.files.reading import Chunk
    from agents.rebuilds.sources import LogSource, Progress
    from agents.rebuilds.spark import rebuilding, spark_session
    from agents.rebuilds.spark_reading import stretches_of_archive, stretches_of_files
    from cco.event_data import EventBatch

    seconds = 0.0

    def on_read(read: Read) -> None:
        nonlocal seconds
        seconds = read.seconds
        intake.accepted += read.accepted
        intake.item_changes += read.changes
        with intake.taking(bar) as take:
            for rejections in read.rejections:
                take(Chunk(EventBatch.join([]), rejections, [], 0, 0, 0, 0, None))

    counted = Progress(config, what.archive.url if isinstance(what, LogSource) and what.archive else "")
    if isinstance(what, LogSource):
        assert what.archive is not None
        counted.offsets = what.within(what.archive.ends(config.retention.source_partitions))
        stretches = stretches_of_archive(what.archive.url, counted.offsets)
    else:
        stretches = stretches_of_files(what)
    session = opened.enter_context(spark_session())
    computed = opened.enter_context(
        rebuilding(session, config, stretches, on_read, lambda words: bar(1, None, words), memory),
    )
    counted.pieces = computed.pieces
    return computed, counted, seconds


def _of_log(
    source: LogSource, parser: EventParser, counted: Progress, intake: Intake, bar: Bar
) -> Iterator[SourceBatch]:
    """What the log says, from where it was counted up to; `counted` learns how far each partition was read."""
    intake.appending = bool(counted.offsets)
    with intake.taking(bar) as take:
        for chunk in source.chunks(parser, dict(counted.offsets)):
            take(chunk)
            counted.rejected += len(chunk.rejections)
            counted.offsets[chunk.file] = chunk.record
            yield chunk.file, chunk.batch


def _with_words(batches: Iterator[SourceBatch], bar: Bar) -> Iterator[SourceBatch]:
    yield from batches
    bar(1, None, "computing the rows")


class _Clock:
    """The time that an iterator takes, without what is done with what it yields."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, batches: Iterator[SourceBatch]) -> Iterator[SourceBatch]:
        """The same, timed."""
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.seconds += time.perf_counter() - began
            if batch is None:
                return
            yield batch
