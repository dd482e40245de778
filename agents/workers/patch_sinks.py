"""Where patches go: records of changed fields, to a topic or a file of JSON Lines, or nowhere.

A record is one item's changed fields: {"item", "partition", "generation", "position", "indicators", "priors"};
an empty list empties a field. `generation` is the owner's claim, which grows with each new owner of the item
partition: whoever reads patches drops those of an owner that was followed by another.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import numpy as np
from aiokafka import AIOKafkaProducer

from agents.log import get_logger
from agents.workers.item_partition import Claim
from cco.config import Config
from cco.rows import Patches
from cco.vocabulary import Vocabulary

T = TypeVar("T")
_encode = msgspec.json.Encoder().encode
MOST_RECORDS = 20_000  # on the way to a topic
CLOSE_SECONDS = 1.0


class SinkError(Exception):
    """Patches cannot be written: one readable line with where and what to do."""


@dataclass(frozen=True, slots=True)
class Encoded(Generic[T]):
    """Patches of an item partition as a sink wants them: a record for each item, with so many fields in all.

    `changed`: the same without rows that were sent before as they are; None: there are none.
    """

    partition: int
    claim: Claim
    records: Sequence[T]
    fields: int
    changed: Sequence[T] | None = None


JsonRecord = tuple[str, bytes]  # item id, JSON


def encode_json(
    config: Config, items: Vocabulary, patches: Patches, partition: int, claim: Claim
) -> Encoded[JsonRecord]:
    """One record for each item that `patches` has fields of."""
    rows = patches.rows
    weights = rows.weight.tolist()
    starts, fields, of_item = rows.start.tolist(), rows.field.tolist(), rows.item.tolist()
    kinds = len(config.indicator_names)
    found: list[tuple[str, bytes]] = []
    at = 0
    while at < len(of_item):
        item = of_item[at]
        record: dict[str, object] = {
            "item": items.name(item),
            "partition": partition,
            "generation": claim.offset,
            "position": patches.position,
        }
        indicators: dict[str, list[tuple[str, float]]] = {}
        while at < len(of_item) and of_item[at] == item:
            entries = slice(starts[at], starts[at + 1])
            if fields[at] < kinds:
                indicators[config.indicator_names[fields[at]]] = list(
                    zip(items.names(rows.feature[entries]), weights[entries], strict=True)
                )
            else:
                priors = [config.prior_names[k] for k in rows.feature[entries].tolist()]
                record["priors"] = list(zip(priors, weights[entries], strict=True))
            at += 1
        if indicators:
            record["indicators"] = indicators
        found.append((items.name(item), _encode(record)))
    return Encoded(partition, claim, found, len(fields))


class Sink(Protocol):
    """Takes patches. `send` waits while too much is on its way, and answers what waits for the rest."""

    def encode(self, items: Vocabulary, patches: Patches, partition: int, claim: Claim) -> Encoded[Any]:
        """What `send` wants of patches. Runs on the compute thread."""
        ...

    async def send(self, encoded: Encoded[Any]) -> asyncio.Future[Any]:
        """Hand over; the future ends when the patches are where they belong. Raises what makes the sink unusable."""
        ...

    async def close(self) -> None:
        """Wait for what is on its way."""
        ...


class NoSink:
    """Nobody wants the patches."""

    def encode(self, items: Vocabulary, patches: Patches, partition: int, claim: Claim) -> Encoded[int]:
        """Only how many there are."""
        of_items = np.unique(patches.rows.item).tolist()
        return Encoded(partition, claim, of_items, len(patches.rows))

    async def send(self, encoded: Encoded[int]) -> asyncio.Future[Any]:
        """Nothing to wait for."""
        return _done()

    async def close(self) -> None:
        """Nothing is on its way."""


class _JsonSink:
    """Takes JSON records."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def encode(self, items: Vocabulary, patches: Patches, partition: int, claim: Claim) -> Encoded[JsonRecord]:
        """One record for each item."""
        return encode_json(self._config, items, patches, partition, claim)


class TopicSink(_JsonSink):
    """Records to a topic, keyed by item id."""

    def __init__(self, config: Config, producer: AIOKafkaProducer, topic: str) -> None:
        super().__init__(config)
        self._producer, self._topic = producer, topic
        self._on_the_way = 0
        self._room = asyncio.Event()
        self._room.set()

    async def send(self, encoded: Encoded[JsonRecord]) -> asyncio.Future[Any]:
        """Waits while MOST_RECORDS are not acknowledged."""
        await self._room.wait()
        futures = [
            await self._producer.send(self._topic, value=value, key=item.encode()) for item, value in encoded.records
        ]
        self._on_the_way += len(futures)
        if self._on_the_way >= MOST_RECORDS:
            self._room.clear()
        together = asyncio.ensure_future(_all(futures))
        together.add_done_callback(lambda _: self._done(len(futures)))
        return together

    def _done(self, number: int) -> None:
        self._on_the_way -= number
        if self._on_the_way < MOST_RECORDS:
            self._room.set()

    async def close(self) -> None:
        """The producer is flushed by whom it belongs to."""


async def _all(futures: Sequence[asyncio.Future[Any]]) -> None:
    await asyncio.gather(*futures)


class FileSink(_JsonSink):
    """Records to a file of JSON Lines, appended. What a crash left of a last line is cut off first.

    A named pipe will do: `send` waits while nobody reads it. Raises SinkError.
    """

    def __init__(self, config: Config, path: Path) -> None:
        super().__init__(config)
        self._path = path
        self._descriptor: int | None = None
        self._writer = ThreadPoolExecutor(1, "patches")  # its own: it may stand still as long as the reader does
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not (path.is_fifo() or path.is_char_device()):
                _cut_last_line(path)

    async def send(self, encoded: Encoded[JsonRecord]) -> asyncio.Future[Any]:
        """Written when it answers."""
        data = b"".join(value + b"\n" for _, value in encoded.records)
        await asyncio.get_running_loop().run_in_executor(self._writer, self._write, data)
        return _done()

    def _write(self, data: bytes) -> None:
        with _explained(self._path):
            if self._descriptor is None:  # not sooner: a pipe cannot be opened before somebody reads it
                self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            left = memoryview(data)
            while left:
                left = left[os.write(self._descriptor, left) :]

    async def close(self) -> None:
        """To the disk. Waits no longer than CLOSE_SECONDS for whoever reads a pipe."""
        closing = asyncio.get_running_loop().run_in_executor(self._writer, self._close)
        self._writer.shutdown(wait=False)
        try:
            await asyncio.wait_for(closing, CLOSE_SECONDS)
        except TimeoutError:
            pass
        except SinkError as error:
            get_logger().error("the last patches may be lost", reason=str(error))

    def _close(self) -> None:
        if self._descriptor is not None:
            with _explained(self._path):
                if self._path.is_file():
                    os.fsync(self._descriptor)
                os.close(self._descriptor)


def _done() -> asyncio.Future[Any]:
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    done.set_result(None)
    return done


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SinkError(
            f"{path}: patches cannot be written: {error.strerror}; mend that or name another place (--patches), and"
            " start again"
        ) from error


def _cut_last_line(path: Path) -> None:
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        for begin in _back(size):
            file.seek(begin)
            found = file.read(_STEP).rfind(b"\n")
            if found >= 0:
                file.truncate(begin + found + 1)
                return
        file.truncate(0)


_STEP = 1 << 16


def _back(size: int) -> Iterator[int]:
    begin = size
    while begin > 0:
        begin = max(0, begin - _STEP)
        yield begin
