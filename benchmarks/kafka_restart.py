"""A worker whose state holds ten million interactions: killed, stopped, and its item partition filled anew."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.kafka.logs import look_at_logs
from agents.state.store import StateStore
from agents.workers.user_partition import SourceLog, UserPartition
from benchmarks import data
from benchmarks.kafka import SESSION, Place, applied, place, until
from benchmarks.measure import Bench
from benchmarks.scenario import Result
from cco.config import parse_config
from cco.event_data import EventBatch

RECORDS = 2_000  # in the log before the state's offset
RATE = 500.0  # events a second meanwhile
TOML = 'primary = "purchase"\nmax_staleness = "60s"\n'


def restarts(bench: Bench, events: int) -> Result:
    """Seconds to the first processed event after SIGKILL and after SIGTERM, and of the resync."""
    config = parse_config(TOML, "benchmark")
    source = data.Zipf(events // (100 if bench.quick else 1), 1_000_000, 100_000, 50.0)
    bench.warm_up(lambda: None)
    with place(bench, config, TOML) as found:
        batch = _few(found)
        found_state = _write_state(found, source)
        found.worker("w")
        until(lambda: _filled(found), "the worker to begin")
        seconds = until(lambda: _resync(found), "its log to say so")
        result: Result = {"interactions": found_state, "resync_seconds": seconds}
        asyncio.run(_feeding(found, batch, result))
        return {**result, "session_seconds": SESSION, "peak_bytes": found.peak("w")}


def _few(found: Place) -> EventBatch:
    """Send RECORDS events, and answer as many to send later."""
    from agents.kafka.producing import produce
    from cco.vocabulary import Vocabulary

    users, items = Vocabulary(), Vocabulary()
    source = data.Zipf(2 * RECORDS, 1000, 1000, 50.0)
    users.intern([f"user-{n}" for n in range(1000)])
    items.intern([f"item-{n}" for n in range(1000)])
    batch = EventBatch.join(list(source.chunks()))
    asyncio.run(produce(found.settings, found.config, users, items, [batch.part(0, RECORDS)]))
    found.vocabularies = (users, items)
    return batch.part(RECORDS, 2 * RECORDS)


def _write_state(found: Place, source: data.Zipf) -> int:
    """A state as a worker would have it at offset RECORDS, had its events been those of `source`."""
    topic = asyncio.run(look_at_logs(found.settings))["interactions"]
    log = SourceLog(topic.topic, 0, 1, topic.cluster, topic.id)
    partition = UserPartition(found.config, log, 1)
    partition.users.intern([f"user-{n}" for n in range(source.users)])
    partition.items.intern([f"item-{n}" for n in range(source.items)])
    for chunk in source.chunks():
        for _ in partition.stage.ingest(chunk):
            pass
    path = found.folder / "w" / "interactions-0"
    path.parent.mkdir()
    partition.open(StateStore.open(path, found.config, sources=1))
    partition.position = partition.acknowledged = RECORDS
    partition.finish()
    return int(partition.stage.retained().sum())


def _filled(found: Place) -> bool:
    status = found.status("w")
    return bool(status and status["edits"] and all(e["filled"] for e in status["edits"].values()))


def _resync(found: Place) -> float | None:
    """Seconds from the claim to the last message of the fill, by the worker's log; None if that is not told yet."""
    times: dict[str, datetime] = {}
    for line in Path(found.folder / "w.log").read_text().splitlines():
        if line.startswith("{"):
            entry: dict[str, Any] = json.loads(line)
            times[entry["message"]] = datetime.fromisoformat(entry["timestamp"])
    if "filled" not in times:
        return None
    began = max(times["claimed"], times["the partition is served"])
    return (times["filled"] - began).total_seconds()


async def _feeding(found: Place, batch: EventBatch, result: Result) -> None:
    """Kill and stop the worker while events come."""
    from agents.kafka.producing import produce

    users, items = found.vocabularies
    feeding = asyncio.create_task(produce(found.settings, found.config, users, items, [batch], rate=RATE / 4))
    for how in ("killed", "stopped"):
        await asyncio.to_thread(_restart, found, how, result)
    feeding.cancel()
    await asyncio.gather(feeding, return_exceptions=True)


def _restart(found: Place, how: str, result: Result) -> None:
    before = applied(found.status("w"))
    until(lambda: applied(found.status("w")) > before, "events")
    process = found.workers["w"]
    begin = time.perf_counter()
    if how == "killed":
        process.kill()
    else:
        process.terminate()
    process.wait()
    result[f"{how}_end_seconds"] = time.perf_counter() - begin
    stood = RECORDS
    begin = time.perf_counter()
    found.worker("w")
    until(lambda: _moved(found, stood), "the first event")
    result[f"{how}_seconds"] = time.perf_counter() - begin


def _moved(found: Place, stood: int) -> bool:
    """Whether this life has applied an event."""
    status = found.status("w")
    sources = status["interactions"] if status else {}
    return any(source["position"] > max(stood, source["began_at"]) for source in sources.values())
