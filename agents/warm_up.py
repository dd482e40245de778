"""Kernels compiled before they are needed: a few events go through everything that a worker does, without Kafka.

The first run on a machine takes a minute or two, and a worker that compiled in mid-stream would stand still for so
long. Later runs load what was compiled in seconds. `python -m agents.warm_up` is what `make` runs.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.state.store import StateStore
from agents.workers.item_partition import Claim, ItemPartition
from agents.workers.patch_sinks import encode_json
from agents.workers.user_partition import SourceLog, UserPartition
from cco.config import Config, make_config

_INDICATORS = {"purchase": {"removed_by": ["return"], "user_cap": 6}, "view": {"user_cap": 6}}
_CONFIGS = (
    {"indicators": _INDICATORS, "retention": {"sampling": "uniform"}},
    {
        "indicators": _INDICATORS,
        "retention": {"sampling": "recent", "window": "30d", "visitor_window": "10d", "min_primary": 2},
        "priors": {"recent": "10d", "trending": "20d", "hot": "30d"},
    },
)
_USERS, _ITEMS, _EVENTS = 2_000, 300, 16_000
_HALF, _PART = 8_000, 1_000  # events of the first life, and those at a time of the second
_BEGIN, _STEP = 1_700_000_000, 300  # epoch seconds of the first event, and from one to the next
_TOPIC, _CLAIM = "interactions", 0


@dataclass(frozen=True, slots=True)
class _Record:
    """As much of aiokafka's record as the partitions look at."""

    value: bytes
    offset: int
    key: bytes | None = None
    timestamp: int = 1000 * (_BEGIN + _EVENTS * _STEP)
    headers: Sequence[tuple[str, bytes]] = ()


def _interactions() -> list[_Record]:
    records = []
    for k in range(_EVENTS):
        user, item = f"u{k * 7919 % _USERS}", f"i{k * k % 331 % _ITEMS}"
        kind = "return" if k % 31 == 0 else "view" if k % 3 else "purchase"
        event = f'{{"user_id":"{user}","item_id":"{item}","event_type":"{kind}","timestamp":{_BEGIN + k * _STEP}}}'
        if k % 97 == 96:
            event = f'{{"user_id":"{user}","event_type":"$delete","timestamp":{_BEGIN + k * _STEP}}}'
        records.append(_Record(event.encode(), k, user.encode()))
    return records


def warm_up() -> float:
    """Compile what is not compiled yet, and load the rest; answers the seconds that it took."""
    begin, records = time.perf_counter(), _interactions()
    for values in _CONFIGS:
        with tempfile.TemporaryDirectory(prefix="cco-warm-up-") as folder:
            _run(make_config(values, "the warm-up"), Path(folder) / "state", records)
    return time.perf_counter() - begin


def _run(config: Config, folder: Path, records: Sequence[_Record]) -> None:
    """Two lives of a source partition, and an item partition that is filled by the second and follows it."""
    first = _opened(config, folder)
    first.apply(records[:_HALF], _HALF)
    first.acknowledged = first.position
    first.finish()
    second = _opened(config, folder)
    items = ItemPartition(config, 0, 1, _CLAIM, "edits")
    second.ask(0, _CLAIM)
    while second.filling:
        _tell(config, items, second.fill_some().messages)
    for start in range(_HALF, _EVENTS, _PART):
        _tell(config, items, second.apply(records[start : start + _PART], start + _PART).messages)
        second.acknowledged = second.position
        _tell(config, items, second.step())
    second.finish()


def _opened(config: Config, folder: Path) -> UserPartition:
    partition = UserPartition(config, SourceLog(_TOPIC, 0, 1, "none"), 1)
    partition.open(StateStore.open(folder, config, sources=1), interval=0.0)
    return partition


def _tell(config: Config, items: ItemPartition, messages: Sequence[tuple[int, bytes]]) -> None:
    """Messages to the item partition, and every row that they make due to the index."""
    position = items.position
    records = [_Record(message, position + k) for k, (_, message) in enumerate(messages)]
    items.take(records, position + len(records), time.monotonic())
    while items.inbox.countable:
        patches = items.publish(time.monotonic())[0] or items.refresh(time.monotonic())
        if patches is None:
            return
        encode_json(config, items.items, patches, 0, Claim(_CLAIM))


if __name__ == "__main__":
    print(f"compiled or loaded in {warm_up():.1f} s")
