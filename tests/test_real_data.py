"""Stream equals batch, byte for byte, on real data: at several points of the log, with several configurations."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.engine import Engine
from agents.files.reading import read_events
from cco.batch import rebuild
from cco.config import Config, make_config, parse_config
from cco.event_data import EventBatch
from cco.events import EventParser
from cco.model_file import encode
from cco.vocabulary import Vocabulary
from tests.shared import shared

Load = Callable[[EventParser], EventBatch]

RETAIL = {
    "uniform, returns": '[indicators.purchase]\nremoved_by = ["return"]\nuser_cap = 60\n',
    "recent, windows": (
        '[indicators.purchase]\nremoved_by = ["return"]\nuser_cap = 80\n[indicators.return]\n'
        '[retention]\nsampling = "recent"\nwindow = "60d"\nvisitor_window = "20d"\nmin_primary = 3\n'
        '[priors]\nrecent = "7d"\ntrending = "30d"\nhot = "30d"\n'
    ),
    "partitions, anti": 'anti_correlations = true\n[indicators.purchase]\ntop_k = 7\nmin_llr = 2.5\n'
    '[indicators.return]\n[retention]\nsource_partitions = 3\nseed = 11\n',
}  # fmt: skip
MOVIES = {
    "three indicators": 'primary = "like"\n[indicators.like]\nremoved_by = ["dislike"]\n[indicators.neutral]\n'
    '[indicators.dislike]\n',
    "recent, window": 'primary = "like"\n[indicators.like]\nevents = ["like", "neutral"]\nuser_cap = 20\n'
    '[indicators.dislike]\n[retention]\nsampling = "recent"\nwindow = "45d"\nmin_primary = 2\nsource_partitions = 2\n',
}  # fmt: skip
HANDMADE = {"as the Universal Recommender": 'anti_correlations = true\n[indicators.purchase]\n[indicators.view]\n'
            '[indicators.category-pref]\n[retention]\nmin_primary = 3\n'}  # fmt: skip
CASES = [
    (data, name, text)
    for data, configs in (("online-retail", RETAIL), ("movietweetings-100k", MOVIES), ("ur-handmade", HANDMADE))
    for name, text in configs.items()
]


def load(path: Path, parser: EventParser) -> EventBatch:
    """All events of a file."""
    chunks = list(read_events([path], parser))
    assert not [r for chunk in chunks for r in chunk.rejections]
    return EventBatch.join([chunk.batch for chunk in chunks])


def batch_lines(config: Config, events: EventBatch, users: Vocabulary, items: Vocabulary, exact: bool) -> bytes:
    model = rebuild(config, [events], users, items, threads=2)
    return b"".join(encode(model.exact_rows() if exact else model.rows(), items, config))


def check(config: Config, engine: Engine, events: EventBatch, points: int) -> None:
    """Stream in uneven batches; at each point drain and compare what the patches made of the index."""
    sizes = np.random.default_rng(7)
    at = 0
    for point in range(1, points + 1):
        stop = len(events) * point // points
        while at < stop:
            size = int(sizes.integers(1, 40_000))
            engine.ingest(events.part(at, min(at + size, stop)))
            at = min(at + size, stop)
        engine.drain()
        streamed = b"".join(encode(engine.rows(), engine.items, config))
        assert streamed == batch_lines(config, events.part(0, stop), engine.users, engine.items, exact=False)
    assert streamed
    exact = b"".join(encode(engine.exact_rows(), engine.items, config))
    assert exact == batch_lines(config, events, engine.users, engine.items, exact=True)


@pytest.mark.parametrize(("data", "name", "text"), CASES, ids=[f"{data}: {name}" for data, name, _ in CASES])
def test_stream_equals_batch(data: str, name: str, text: str) -> None:
    config = parse_config(text, name)
    partitions = {"partitions, anti": 4}.get(name, 1)
    with Engine(config, item_partitions=partitions, threads=2) as engine:
        events = load(shared(f"data/{data}/events.csv.gz"), engine.parser)
        check(config, engine, events, points=3)


DEMO: dict[str, tuple[int | None, dict[str, Any]]] = {  # the first so many purchases, and what differs from the demo
    "as it is": (150_000, {}),
    "windows, partitions": (
        300_000,
        {
            "cap": {"user_cap": 150, "top_k": 10},
            "retention": {"sampling": "recent", "window": "30d", "visitor_window": "9d", "min_primary": 5,
                          "source_partitions": 3},
            "priors": {"recent": "7d", "hot": "30d"},
            "anti_correlations": True,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEMO)
def test_stream_equals_batch_on_the_demo_set(name: str) -> None:
    """With the demo's three indicators."""
    from agents.demo.data import DEMO_CONFIG, load_purchases

    limit, changes = DEMO[name]
    tables: dict[str, Any] = {**DEMO_CONFIG, **changes}
    cap = tables.pop("cap", {})
    tables["indicators"] = {of: {**table, **cap} for of, table in tables["indicators"].items()}
    config = make_config(tables, name)
    with Engine(config, item_partitions=2, threads=2) as engine:
        purchases = load_purchases().first(limit)
        events = EventBatch.join(list(purchases.batches(config, engine.users, engine.items, 50_000)))
        check(config, engine, events, points=2)
