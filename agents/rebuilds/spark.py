"""`cco rebuild --engine spark`: the driver. Spark divides the work and moves bytes; the rule and the kernel are ours.

    stretches of the input --deal--> by block of users --fold--> histories, totals of items, notes
    totals --add--> the catalogue, which comes to the driver and goes to all tasks
    histories --spread--> by block of items --count_rows--> rows, which come to the driver

`mapInArrow` over partitions that are chosen here and not `applyInPandas` over groups: pieces come in log order and one
after the other, so a task holds its histories and not its events, and nothing becomes an object of Python's on the way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.rebuilds import spark_tasks as tasks
from agents.rebuilds.spark_reading import Stretch
from cco.batch import EVENT_BYTES, FOLD_EVERY
from cco.batch_blocks import Catalogue, blocks_of_items
from cco.config import Config
from cco.event_data import Rejection
from cco.rows import Rows, join_rows
from cco.vocabulary import Vocabulary

BLOCK_ENTRIES = 100_000_000  # of histories that a task holds to count rows, about: 4 bytes each
ENTRY_BYTES = 8  # of such an entry while they are put together
_MEMORY_ROWS = "4"  # payloads that Spark hands to Python at a time; each may have some MB
_RAISED = re.compile(r"^(?:[\w.]+\.)?(\w+(?:Error|Exception)): (.+)$", re.MULTILINE)


class SparkProblem(Exception):
    """Spark cannot be started, or a task failed: one readable line."""


@dataclass(frozen=True, slots=True)
class Read:
    """What the input had."""

    accepted: int
    changes: int  # of items
    rejected: int
    rejections: Iterator[list[Rejection]]  # all of them, in the order of the input, if asked for at once
    seconds: float  # that reading, parsing and dealing took


@dataclass(frozen=True, slots=True)
class SparkModel:
    """A model whose rows are here, and whose histories have stayed on Spark."""

    users: range
    items: Vocabulary
    n_users: int  # N: users in U
    sealed: Rows
    count: Callable[[bool], Rows]  # exact or not
    pieces: int  # blocks of users and of items

    def rows(self) -> Rows:
        """Every field with entries, weights as the index keeps them."""
        return self.sealed

    def exact_rows(self) -> Rows:
        """Every field with entries, weights as full doubles, ordered by them; counted anew."""
        return self.count(True)


@contextmanager
def spark_session() -> Iterator[Any]:
    """The session that there is, or one as Spark's own configuration says, else on all cores of this machine.

    Only what was begun here is stopped. Raises SparkProblem, ModuleNotFoundError without pyspark.
    """
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    # what we use of it has no pandas in it
    warnings.filterwarnings("ignore", "PySpark does not yet fully support pandas", FutureWarning)
    running = SparkSession.getActiveSession()
    if running is None:
        begun_by_spark = "PYSPARK_GATEWAY_PORT" in os.environ  # by spark-submit
        if shutil.which("java") is None and not os.environ.get("JAVA_HOME") and not begun_by_spark:
            raise SparkProblem("--engine spark needs Java 17 or newer, and there is no `java` on the PATH: install one")
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("cco rebuild")
    try:
        session = builder.config("spark.ui.showConsoleProgress", "false").getOrCreate()
    except (PySparkException, OSError) as error:
        raise SparkProblem(f"Spark could not be started: {_first_line(error)}") from error
    try:
        ours = session.newSession()  # with settings of its own
        ours.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", _MEMORY_ROWS)
        yield ours
    finally:
        if running is None:
            session.stop()


@contextmanager
def rebuilding(
    session: Any,
    config: Config,
    stretches: Sequence[Stretch],
    on_read: Callable[[Read], None],
    tell: Callable[[str], None] = lambda words: None,
    memory: int | None = None,
) -> Iterator[SparkModel]:
    """The model of the events in `stretches`, which are in log order.

    `memory`: bytes that events or histories may take in a task, about; the blocks are so many that they do.
    Raises SparkProblem, and what `on_read` raises.
    """
    parallel = int(session.sparkContext.defaultParallelism)
    sources = config.retention.source_partitions
    size = sum(stretch.size for stretch in stretches)
    events, entries_at_once = FOLD_EVERY, BLOCK_ENTRIES
    if memory is not None:
        events, entries_at_once = memory // EVENT_BYTES, memory // ENTRY_BYTES
    blocks = max(1, -(-max(parallel, -(-size // events)) // sources))  # for each source
    tell("Spark: reading")
    began = time.perf_counter()
    with _kept(_numbers(session, len(stretches)), partial(tasks.deal, config, list(stretches), blocks)) as dealt:
        notes = _notes(dealt)
        accepted, changes, rejected = _sums(notes, "accepted", "changes", "rejected")
        seconds = time.perf_counter() - began
        on_read(Read(accepted, changes, rejected, _rejections(dealt) if rejected else iter(()), seconds))
        tell("Spark: folding histories")
        pieces = _by_block(dealt.where("block >= 0"), blocks * sources, "block", "task", "piece")
        with _kept(pieces, partial(tasks.fold, config, blocks, _times_before(notes, sources), parallel)) as folded:
            told = _notes(folded)
            dealt.unpersist()
            users, members, entries, primary = _sums(told, "users", "members", "entries", "primary")
            tell("Spark: adding up items")
            catalogue = Catalogue.of(config, members, _totals(folded, config, parallel))
            item_blocks = blocks_of_items(entries, primary, members, parallel, entries_at_once)
            broadcast = session.sparkContext.broadcast(catalogue)
            count = partial(_rows, broadcast, folded.where("block >= 0"), item_blocks)
            tell("Spark: computing the rows")
            pieces = blocks * sources + item_blocks
            yield SparkModel(range(users), catalogue.items, members, count(False), count, pieces)
            broadcast.destroy()


def _totals(folded: Any, config: Config, shards: int) -> list[bytes]:
    """The sums of all shards."""
    totals = _by_block(folded.where(f"block = {tasks.TOTALS}"), shards, "task")
    with _explained():
        return [bytes(row.payload) for row in totals.mapInArrow(partial(tasks.add, config), tasks.SCHEMA).collect()]


def _rows(catalogue: Any, histories: Any, blocks: int, exact: bool) -> Rows:
    """All rows, from folded histories and the catalogue, broadcast. `blocks`: of items."""
    found = histories.mapInArrow(partial(tasks.spread, catalogue, blocks), tasks.SCHEMA)
    work = partial(tasks.count_rows, catalogue, blocks, exact)
    with _explained():
        counted = _by_block(found, blocks, "block").mapInArrow(work, tasks.SCHEMA).collect()
    return join_rows([tasks.rows_unpacked(bytes(row.payload)) for row in counted])


# -- frames ---------------------------------------------------------------------------------------------


def _numbers(session: Any, count: int) -> Any:
    """0 to count - 1, each in a partition of its own."""
    return session.range(0, count, 1, max(1, count))


@contextmanager
def _kept(frame: Any, work: Callable[..., Any]) -> Iterator[Any]:
    """What becomes of the frame, computed once and kept on the disks of those who did."""
    from py4j.protocol import Py4JError
    from pyspark import StorageLevel

    found = frame.mapInArrow(work, tasks.SCHEMA).persist(StorageLevel.DISK_ONLY)
    try:
        yield found
    finally:
        with suppress(Py4JError, OSError):  # it has ended, or was interrupted
            found.unpersist()


def _by_block(frame: Any, partitions: int, by: str, *then: str) -> Any:
    """Rows by a column, which is the number of their partition, and sorted there by it and others."""
    return frame.repartitionById(partitions, by).sortWithinPartitions(by, *then)


def _notes(frame: Any) -> list[dict[str, Any]]:
    """The notes of all tasks, in order. Computes the frame."""
    with _explained():
        rows = frame.where(f"block = {tasks.NOTE}").select("task", "payload").collect()
    return [json.loads(bytes(row.payload)) for row in sorted(rows, key=lambda row: row.task)]


def _sums(notes: Sequence[dict[str, Any]], *names: str) -> tuple[int, ...]:
    return tuple(sum(note[name] for note in notes) for name in names)


def _rejections(frame: Any) -> Iterator[list[Rejection]]:
    with _explained():
        for row in frame.where(f"block = {tasks.REJECTED}").select("payload").toLocalIterator():
            yield tasks.rejections_of(bytes(row.payload))


def _times_before(notes: Sequence[dict[str, Any]], sources: int) -> npt.NDArray[np.uint32]:
    """(stretches + 1, sources): the largest time of each source partition before each stretch, and at the end."""
    latest = np.array([[0] * sources, *(note["latest"] for note in notes)], np.uint32)
    found: npt.NDArray[np.uint32] = np.maximum.accumulate(latest, axis=0)
    return found


# -- errors ---------------------------------------------------------------------------------------------


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what Spark tells of a failed task into what the task itself said."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException

    try:
        yield
    except (PySparkException, Py4JError) as error:
        raised = _RAISED.findall(str(error))
        raise SparkProblem(raised[-1][1] if raised else f"Spark failed: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:500]
