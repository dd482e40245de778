"""Reading a file of events in a test: what came of it, as plain values."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet

from agents.files.reading import Chunk, read_events
from cco.config import parse_config
from cco.events import CLOCK, EventParser, Rejection
from cco.vocabulary import Vocabulary

CONFIG = parse_config("[indicators.purchase]\n[indicators.view]", "test")
NOW = 1_476_884_080
HEADER = "user,item,event,timestamp\n"
GOOD = f"u,i,view,{NOW}"


class Read(NamedTuple):
    events: list[tuple[str, str, str, int]]
    rejections: list[Rejection]
    chunks: list[Chunk]


def read(*paths: str | Path, chunk: int = 65_536, skip: int = 0, stdin: bytes | None = None) -> Read:
    users, items = Vocabulary(), Vocabulary()
    parser = EventParser(CONFIG, users, items)
    source = None if stdin is None else io.BytesIO(stdin)
    chunks = list(read_events([str(path) for path in paths], parser, chunk, skip=skip, stdin=source))
    events = []
    for part in chunks:
        batch = part.batch
        for user, item, kind, time in zip(batch.users, batch.items, batch.types, batch.times, strict=True):
            name = CONFIG.event_types[kind] if kind >= 0 else str(kind)
            found = (users.name(user) if kind != CLOCK else "", items.name(item) if kind >= 0 else "", name, int(time))
            events.append(found)
    # what is refused is not interned
    assert len(users) == len({e[0] for e in events if e[2] != str(CLOCK)})
    assert len(items) == len({e[1] for e in events if not e[2].startswith("-")})
    return Read(events, [rejection for part in chunks for rejection in part.rejections], chunks)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def reasons(found: Read) -> list[tuple[int, str]]:
    return [(rejection.line, rejection.reason) for rejection in found.rejections]


EVENTS = [("u1", "i,1", "view", NOW), ("ü\n2", 'i"2', "purchase", 0), ("u1", "i3", "view", 5)] * 3


def as_csv(rows: Sequence[Sequence[object]], header: Sequence[str] = ("user", "item", "event", "timestamp")) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def as_lines(rows: Sequence[tuple[str, str, str, int]]) -> bytes:
    keys = ("user_id", "item_id", "event_type", "timestamp")
    return b"".join(json.dumps(dict(zip(keys, row, strict=True))).encode() + b"\n" for row in rows)


def table(rows: Sequence[tuple[str, str, str, int]]) -> pa.Table:
    names = ("user", "item", "event", "timestamp")
    return pa.table({name: [row[k] for row in rows] for k, name in enumerate(names)})
