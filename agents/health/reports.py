"""What workers tell of themselves in the status index, and what follows from it for the age of the published model.

`as_of` is the epoch second up to which everything that was in the log is in what is published, of a partition. What it
says of `interactions` is about the user stage, of `edits` about the rows: the model is as old as the oldest of them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from elasticsearch import ApiError, TransportError

from agents.elastic import elastic_options
from agents.kafka.topics import EDITS, INTERACTIONS
from agents.log import get_logger
from model_sync.elastic_client import async_client
from model_sync.elastic_status import Told, status_index, tell

if TYPE_CHECKING:
    from agents.workers.worker import Worker

EVERY = 2.0  # seconds between two reports: well below FOLLOWING_SECONDS, so that one that is late shows
FRESH = 15.0  # seconds that a report counts: whoever has not told for longer is gone
WORKER = "worker"
TO_THE_END = ("log", "archive and log")  # sources of rebuilds that had all that there was when they began

Reports = Mapping[str, Told]


def partition_key(topic: str, partition: int) -> str:
    """The id of what is told of a partition; `topic` without its prefix."""
    return f"{topic}/{partition}"


def worker_key(name: str) -> str:
    """The id of what is told of a worker."""
    return f"{WORKER}/{name}"


def stream_as_of(reports: Reports, sources: int, item_partitions: int) -> float | None:
    """Up to when the stream has everything published; None as long as a partition was never told of."""
    keys = [partition_key(INTERACTIONS, source) for source in range(sources)]
    keys += [partition_key(EDITS, partition) for partition in range(item_partitions)]
    found = [reports.get(key, {}).get("as_of") for key in keys]
    return None if None in found else min(float(as_of) for as_of in found if as_of is not None)


def model_as_of(stream: float | None, rebuilds: Iterable[float | None]) -> float | None:
    """Up to when everything is in the published model, by the stream or by a rebuild that is published."""
    known = [as_of for as_of in (stream, *rebuilds) if as_of is not None]
    return max(known, default=None)


def rows_are_written(reports: Reports, epoch: str, now: float) -> bool:
    """Whether a worker of the configuration `epoch` has rows, and has told of it lately; `now` in epoch seconds."""
    fresh = {key: told for key, told in reports.items() if now - float(told["at"]) <= FRESH}
    ours = {key for key, told in fresh.items() if told.get("epoch") == epoch}
    of_rows = (told for key, told in fresh.items() if key.startswith(f"{EDITS}/"))
    return any(told["filled"] and worker_key(told["worker"]) in ours for told in of_rows)


def rebuilt_as_of(rebuild: Mapping[str, Any] | None) -> float | None:
    """Up to when everything is in a rebuild, by what its index says of it (`_meta.cco.rebuild`); None: not known."""
    told = rebuild or {}
    if "started" not in told or told.get("source") not in TO_THE_END:
        return None  # files, archives and what ends at given offsets end earlier, and do not say when
    return float(told["started"])


class Reporter:
    """Tells of a worker every few seconds. That Elasticsearch is away harms nothing: readers see the reports age."""

    def __init__(self, worker: Worker) -> None:
        options = elastic_options(worker.settings)
        self._worker = worker
        self._client, self._index = async_client(options), status_index(options.prefix)
        self._trouble: str | None = None

    async def report_forever(self) -> None:
        """Until it is cancelled."""
        try:
            while True:
                await self._report()
                await asyncio.sleep(EVERY)
        finally:
            await self._client.close()

    async def _report(self) -> None:
        now = time.time()
        trouble = None
        try:
            await tell(self._client, self._index, now, self.documents(now))
        except (ApiError, TransportError) as error:
            trouble = str(error)[:300]
        if trouble != self._trouble and trouble is not None:
            get_logger().warning("the status cannot be written; trying again", index=self._index, reason=trouble)
        self._trouble = trouble

    def documents(self, now: float) -> dict[str, dict[str, Any]]:
        """What there is to tell at `now`, epoch seconds."""
        worker = self._worker
        name, condition = worker.settings.name, worker.condition
        reasons = [asdict(reason) for reason in condition.reasons()]
        found: dict[str, dict[str, Any]] = {
            worker_key(name): {
                "worker": name, "host": socket.gethostname(), "process": os.getpid(), "monitor": worker.monitor.url,
                "group": worker.settings.group, "epoch": worker.config.epoch, "mode": condition.mode(),
                "reasons": reasons,
            }
        }  # fmt: skip
        for topic, told in condition.partitions(now).items():
            for partition, facts in told.items():
                found[partition_key(topic, partition)] = {"worker": name, **facts}
        return found
