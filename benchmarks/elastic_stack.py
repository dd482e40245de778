"""The whole path on real servers: from an event to its user's next answer, and to what others find.

Events of online-retail flow meanwhile. For others, an event is chosen of which the batch rebuild says that it changes a
row: a user who has item A takes an item B that nobody had together with A, and B comes into A's row. A search for
"A, given B" is asked again and again until it finds A.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.kafka.producing import produce
from benchmarks import data
from benchmarks.clients import Connection, Serving, milliseconds, serving
from benchmarks.elastic import client_of, node, peak
from benchmarks.kafka import HEAP, Place, buckets, ingest, purchases, quantile, settled, until
from benchmarks.measure import Bench, spread, status_bytes
from benchmarks.scenario import Result
from cco.batch import rebuild
from cco.config import Config
from cco.event_data import EventBatch
from model_sync.contract import Query
from model_sync.elastic_admin import create
from model_sync.elastic_client import ElasticOptions, names, sync_client
from model_sync.elastic_reader import AsyncElasticReader
from tests.servers.elasticsearch import ElasticsearchServer
from tests.servers.kafka import KafkaServer, fetch_kafka

WARM = 100_000  # events before
OWN, QUICK_OWN = 60, 5  # events whose users ask
OWN_PAUSE = 0.2  # seconds between them
OTHERS, QUICK_OTHERS = 60, 4  # events that change a row which is known
OTHERS_PAUSE = 1.0
SLACK = 60.0  # seconds that this may take longer
CANDIDATES = 1_000  # of which those are chosen
LOOK = 0.02  # seconds between two looks
GIVE_UP = 30.0  # seconds: what is not found by then took that long

Ids = npt.NDArray[np.uint32]
Pairs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Probes:
    """`users` have `own` already, and take `new`: the row of `own` gets an entry `new`."""

    users: Ids
    own: Ids
    new: Ids

    def __len__(self) -> int:
        return int(self.users.size)

    def some(self, at: npt.NDArray[Any]) -> Probes:
        """Those at some positions."""
        return Probes(self.users[at], self.own[at], self.new[at])

    def events(self, items: Ids, when: int) -> EventBatch:
        """Each user takes its own one of `items`."""
        count = len(self)
        return EventBatch(self.users, items, np.zeros(count, np.int16), np.full(count, when, np.uint32))


@dataclass(frozen=True)
class Story:
    """What is sent: a log before, events that flow, and probes."""

    log: data.Log
    warm: int
    flowing: int
    when: int  # the log's time: the clock's would make the log long past
    probes: Probes

    def part(self, begin: int, end: int) -> EventBatch:
        """Events of the log."""
        return self.log.batch().part(begin, end)


# -- which events change which rows -----------------------------------------------------------------------


def make_story(bench: Bench, config: Config, rate: float) -> Story:
    """Choose the probes: pairs that come into the model with them, whether the other events come or not."""
    log = data.load(bench, "online-retail")
    own, others = (QUICK_OWN, QUICK_OTHERS) if bench.quick else (OWN, OTHERS)
    seconds = own * (OWN_PAUSE + 0.5) + others * OTHERS_PAUSE + SLACK
    warm = min(len(log) // 2, WARM)
    flowing = min(len(log) - warm, int(rate * seconds))
    when = int(log.times[warm - 1])
    rng = np.random.default_rng(11)
    items = np.unique(log.items[:warm])
    most = min(CANDIDATES, items.size // 2)
    chosen = rng.permutation(items)
    users = log.user_ids.intern([f"somebody-{k}" for k in range(most)])
    found = Probes(users, chosen[:most], chosen[most : 2 * most])
    for wanted in (2 * others, others):
        found = found.some(_visible(config, Story(log, warm, flowing, when, found)))
        if len(found) < others:
            raise RuntimeError(f"{len(found)} events that change a row for sure; {others} are needed")
        found = found.some(np.sort(rng.permutation(len(found))[:wanted]))
    return Story(log, warm, flowing, when, found)


def _visible(config: Config, story: Story) -> npt.NDArray[np.intp]:
    """Positions of the probes whose entry comes with them, and not without."""
    log, probes = story.log, story.probes
    begin = [story.part(0, story.warm), probes.events(probes.own, story.when)]
    flow, probed = story.part(story.warm, story.warm + story.flowing), probes.events(probes.new, story.when)
    wanted = probes.own.astype(np.int64) * len(log.item_ids) + probes.new

    def among(batches: Sequence[EventBatch]) -> npt.NDArray[np.bool_]:
        rows = rebuild(config, batches, log.user_ids, log.item_ids).rows()
        item = np.repeat(rows.item, np.diff(rows.start)).astype(np.int64)
        of_items = np.repeat(rows.field, np.diff(rows.start)) == 0
        return np.isin(wanted, (item * len(log.item_ids) + rows.feature)[of_items])

    without, alone = among([*begin, flow]), among([*begin, probed])
    return np.flatnonzero(alone & among([*begin, flow, probed]) & ~without)


# -- the servers ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stack:
    """What runs."""

    place: Place
    node: ElasticsearchServer
    broker: KafkaServer
    service: Serving
    options: ElasticOptions

    def memory(self) -> Result:
        """Bytes resident at most."""
        return {
            "worker_bytes": self.place.peak("w"), "service_bytes": status_bytes("VmHWM", self.service.pid),
            "node_bytes": peak(self.node), "broker_bytes": status_bytes("VmHWM", self.broker.pid),
        }  # fmt: skip


@contextmanager
def stack(bench: Bench, config: Config, toml: str, story: Story) -> Iterator[Stack]:
    """Servers, a worker that has published everything before, and a service."""
    with (
        tempfile.TemporaryDirectory(dir=bench.folder, prefix="stack-") as name,
        node(Path(name) / "node") as server,
        KafkaServer(Path(name) / "broker", fetch_kafka(), heap=HEAP, flags=()) as broker,
        sync_client(ElasticOptions((server.url,))) as client,
    ):
        at, options = Path(name).resolve(), ElasticOptions((server.url,))
        if create(client, config, names(options)).problems:
            raise RuntimeError("the index cannot be made")
        place = Place(config, toml, at, broker.bootstrap, elasticsearch=server.url)
        try:
            before = EventBatch.join([story.part(0, story.warm), story.probes.events(story.probes.own, story.when)])
            log = story.log
            ingest(place, data.Log(before.users, before.items, before.types, before.times, log.user_ids, log.item_ids))
            place.worker("w")
            until(lambda: settled(place, "w", len(before)), "the worker to catch up")
            command = ["agents", "serve", "--config", str(place.file), "--port", "0", "--log-format", "json"]
            with serving(command, at / "serve.log") as service:
                yield Stack(place, server, broker, service, options)
        finally:
            place.close()


def visible(bench: Bench, rate: float, staleness: float) -> Result:
    """Milliseconds from the sending of an event until its user's answer counts it, and until others find the row."""
    config, toml = purchases(staleness=staleness)
    bench.warm_up(lambda: None)
    story = make_story(bench, config, rate)
    with stack(bench, config, toml, story) as found:
        before = buckets(found.place.metrics("w"))
        times, stalest = asyncio.run(_watch(bench, found, story, rate))
        stored = {bound: count - before.get(bound, 0.0) for bound, count in buckets(found.place.metrics("w")).items()}
        holders = np.bincount(story.log.items[: story.warm], minlength=len(story.log.item_ids))[story.probes.own]
        result = {
            kind: spread(of) | {"not_found": sum(one >= 1000 * GIVE_UP for one in of)} for kind, of in times.items()
        }
        return {
            **result, **{f"{kind}_{key}": result[kind][key] for kind in times for key in ("p50", "p99", "not_found")},
            "stored_p50": 1000 * quantile(stored, 0.5), "stored_p99": 1000 * quantile(stored, 0.99),
            "stalest_seconds": stalest, "median_holders": float(np.median(holders)), **found.memory(),
        }  # fmt: skip


async def _watch(bench: Bench, found: Stack, story: Story, rate: float) -> tuple[dict[str, list[float]], float]:
    """Both kinds of probes, one after the other, while events flow."""
    log, place = story.log, found.place
    flow = story.part(story.warm, len(log))  # more than is planned: probes may be slow
    feeding = asyncio.create_task(produce(place.settings, place.config, log.user_ids, log.item_ids, [flow], rate=rate))
    ages: list[float] = []
    looking = asyncio.create_task(_stalest(place, ages))
    try:
        own = await _own(bench, found, story)
        others = await _others(found, story)
        if feeding.done():
            raise RuntimeError("the events that flow ended too early")
    finally:
        for task in (feeding, looking):
            task.cancel()
        await asyncio.gather(feeding, looking, return_exceptions=True)
    return {"own": own, "others": others}, max(ages, default=0.0)


async def _stalest(place: Place, ages: list[float]) -> None:
    """Adds the age of the oldest row, second by second."""
    while True:
        status = await asyncio.to_thread(place.status, "w")
        ages.extend(edits["staleness"] for edits in (status["edits"].values() if status else ()))
        await asyncio.sleep(1)


async def _own(bench: Bench, found: Stack, story: Story) -> list[float]:
    """New users take some items each, and ask after each of them until the answer is made of all."""
    connection = await Connection.to(found.service.url)
    items = story.log.item_ids.names(story.log.items[: story.warm][:: max(1, story.warm // 500)].tolist())
    times = []
    for k in range(QUICK_OWN if bench.quick else OWN):
        user, taken = f"new-{k // 3}", k % 3 + 1
        event = {"user_id": user, "item_id": list(dict.fromkeys(items))[k], "event_type": "purchase"}
        begin = time.perf_counter()
        await connection.post("/events", event | {"timestamp": story.when})
        while (await connection.post("/recommendations", {"user": user}))["history"] != taken:
            if milliseconds(begin) > 1000 * GIVE_UP:
                break
            await asyncio.sleep(LOOK)
        times.append(min(milliseconds(begin), 1000 * GIVE_UP))
        await asyncio.sleep(OWN_PAUSE)
    connection.close()
    return times


async def _others(found: Stack, story: Story) -> list[float]:
    """One event after the other, at even intervals, whether those before are found yet or not.

    A row may have the entry for a while before its event, of events that later ones outweigh: such a probe is left out.
    """
    connection = await Connection.to(found.service.url)
    users, ids = story.log.user_ids, story.log.item_ids
    async with client_of(found.options) as client:
        reader = AsyncElasticReader(client, names(found.options), found.place.config)
        waiting = []
        start = time.perf_counter()
        for k, (user, own, new) in enumerate(
            zip(story.probes.users.tolist(), story.probes.own.tolist(), story.probes.new.tolist(), strict=True)
        ):
            pair = Query(history={"purchase": [ids.name(new)]}, candidates=[ids.name(own)], backfill=None, num=1)
            if await reader.search(pair):
                continue
            event = {"user_id": users.name(user), "item_id": ids.name(new), "event_type": "purchase"}
            begin = time.perf_counter()
            await connection.post("/events", event | {"timestamp": story.when})
            waiting.append(asyncio.create_task(_until_found(reader, pair, begin)))
            await asyncio.sleep(start + (k + 1) * OTHERS_PAUSE - time.perf_counter())
        if 2 * len(waiting) < len(story.probes):
            raise RuntimeError(f"{len(story.probes) - len(waiting)} of {len(story.probes)} rows have it already")
        times = await asyncio.gather(*waiting)
    connection.close()
    return list(times)


async def _until_found(reader: AsyncElasticReader, pair: Query, begin: float) -> float:
    while not await reader.search(pair):
        if milliseconds(begin) > 1000 * GIVE_UP:
            return 1000 * GIVE_UP
        await asyncio.sleep(LOOK)
    return milliseconds(begin)
