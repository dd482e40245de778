"""`python -m benchmarks.embedded_server FOLDER CORE`: the embedded service with a generated catalogue in its index.

As `cco serve --embedded` runs it, but for the state directory: nothing is learned here. Logs are JSON lines on stderr.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import numpy as np

from agents.engine import Engine
from agents.log import set_up
from agents.serving.embedded import (
    SWITCH_SECONDS,
    Server,
    embedded_service,
    listen,
    stopped_by_signals,
    url_of,
    warm_up,
)
from agents.serving.learning import Learner
from benchmarks import catalogue
from benchmarks.measure import Bench
from cco.event_data import EventBatch

BEGIN = 1_735_689_600  # epoch seconds


def _engine(found: catalogue.Catalogue) -> Engine:
    """Rows and metadata as they were drawn; users' histories in the user stages, which tell the item stages nothing."""
    engine = Engine(found.config)
    engine.items.intern(found.items.names(range(len(found.items))))
    for patches in found.patches():
        engine.index.apply(patches)
    engine.put_items(found.properties())
    users, kinds, length = found.histories.shape
    order = found.histories[:, :, ::-1]  # the latest comes last
    batch = EventBatch(
        np.repeat(engine.users.intern(found.users), kinds * length),
        order.ravel(),
        np.tile(np.repeat(_types(found), length), users),
        np.tile(np.arange(BEGIN, BEGIN + length, dtype=np.uint32), users * kinds),
    )
    for _ in engine.user_stages[0].ingest(batch):
        pass
    return engine


def _types(found: catalogue.Catalogue) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """Per indicator the position of its event type, of the same name."""
    return np.array([found.config.event_types.index(name) for name in found.config.indicator_names], np.int16)


def main(folder: str, core: str) -> None:
    """Serve until SIGTERM."""
    os.sched_setaffinity(0, {int(core)})
    set_up("json")
    sys.setswitchinterval(SWITCH_SECONDS)
    listener = listen("127.0.0.1", 0)
    engine = _engine(catalogue.load(Bench(Path(folder), False, False)))
    warm_up(engine.config)
    learner = Learner(engine, None)
    app = embedded_service(engine, learner)
    gc.collect()
    gc.freeze()
    learner.start()
    try:
        with listener, stopped_by_signals():
            Server(app, lambda: print(f"serving a catalogue on {url_of(listener)}")).run(sockets=[listener])
    finally:
        learner.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
