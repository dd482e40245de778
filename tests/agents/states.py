"""States to be tested: logs streamed into engines, broken off, taken up again, compared with the oracle."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rocksdict import Options, Rdict

from agents.engine import Engine
from agents.engine_state import restore
from agents.state.checkpoint import Checkpointer, restore_stages
from agents.state.errors import StateError
from agents.state.store import StateStore
from cco.batch import rebuild
from cco.config import Config, Indicator, Retention
from cco.model_file import encode
from cco.user_stage import UserStage
from cco.vocabulary import Vocabulary
from tests.cco.histories import Event, oracle_of, to_batch

ROOT = Path(__file__).resolve().parents[2]


def model_of(engine: Engine) -> bytes:
    return b"".join(encode(engine.rows(), engine.items, engine.config))


def batch_model(config: Config, log: list[Event]) -> bytes:
    users, items = Vocabulary(), Vocabulary()
    model = rebuild(config, [to_batch(config, log, users, items)], users, items)
    return b"".join(encode(model.rows(), items, config))


def feed(engine: Engine, log: list[Event]) -> None:
    engine.ingest(to_batch(engine.config, log, engine.users, engine.items))


def check_against_oracle(engine: Engine, log: list[Event]) -> None:
    """The histories, the memberships and the positions are those after exactly this log."""
    oracle = oracle_of(engine.config, log)
    for user, histories in oracle.users.items():
        index = engine.users.index(user)
        assert index is not None
        found = {
            name: {engine.items.name(item): time for item, time in entries}
            for name, entries in engine.pipeline.history(index).items()
        }
        assert found == histories
    assert engine.pipeline.members() == len(oracle.members())
    assert [stage.watermark for stage in engine.pipeline.user_stages] == oracle.watermarks


def opened(path: Path, config: Config) -> tuple[Engine, dict[str, Any] | None]:
    """A new engine with the state in `path`, and the position that was committed with it."""
    engine = Engine(config)
    with StateStore.open(path, config) as store:
        restore(store, engine)
        return engine, store.commit.input


class Log:
    """A log that is streamed into engines, and how much of it the last completed commit stands for."""

    def __init__(self, config: Config, log: list[Event], path: Path) -> None:
        self.config, self.log, self.path = config, log, path
        self.at = self.cut = self.committed = 0

    def run(self, steps: list[tuple[int, bool]], **options: Any) -> None:
        """Take up the state, then per step so many more events; True waits for the commit. Ends by a crash."""
        engine = Engine(self.config)
        store = StateStore.open(self.path, self.config)
        restore(store, engine)
        self.at = self.committed
        check_against_oracle(engine, self.log[: self.at])
        with Checkpointer(store, engine, 0.0, **options) as checkpoints:
            for more, wait in steps:
                feed(engine, self.log[self.at : self.at + more])
                self.at = min(self.at + more, len(self.log))
                checkpoints.step(self._position, 0.0)
                if wait:
                    checkpoints.complete()
                    self.committed = self.cut

    def _position(self) -> dict[str, Any]:
        """Asked for when a cut is opened."""
        self.cut = self.at
        return {"at": self.at}


CONFIG = Config(
    primary="buy",
    indicators={"buy": Indicator(user_cap=20), "view": Indicator(events=("view", "look"))},
    retention=Retention(source_partitions=2),
)


def made_up_log(n: int, seed: int = 1) -> list[Event]:
    chance = random.Random(seed)
    kinds = ("buy", "view", "look", "$delete", "$clock")
    return [
        (
            f"user-{int(200 * chance.random() ** 2)}",
            chance.choices(kinds, (50, 30, 18, 1, 1))[0],
            f"item-{int(90 * chance.random() ** 2)}",
            1000 + k // 3,
        )
        for k in range(n)
    ]


LOG = made_up_log(1500)


def make_state(path: Path) -> Path:
    """A state of three commits, at 500, 1000 and 1500 events of LOG."""
    Log(CONFIG, LOG, path).run([(500, True)] * 3)
    return path


def raw(path: Path) -> Rdict:
    return Rdict(str(path / "rocksdb"), Options(raw_mode=True))


def keys_of(path: Path) -> list[bytes]:
    with raw(path) as database:
        return [key for key, _ in database.items()]


def refusal(path: Path, config: Config = CONFIG) -> str:
    """What opening and loading says, by which the directory is not changed for the worse."""
    said = []
    for read_only in (True, False):
        with pytest.raises(StateError) as caught, StateStore.open(path, config, read_only=read_only) as store:
            restore(store, Engine(config))
        said.append(str(caught.value))
    assert "\n" not in said[1] and str(path) in said[1]
    return said[1]


def child(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False, **options)


LOG_OF = {"topic": "interactions", "partitions": 1, "item_partitions": 4, "cluster": "one"}
ONE_SOURCE = CONFIG.model_copy(update={"retention": Retention()})


def at(offset: int, partition: int = 0, **changed: Any) -> dict[str, Any]:
    """What a worker commits beside its state."""
    return {**LOG_OF, **changed, "partition": partition, "offset": offset}


class Source:
    """A source partition as a worker keeps it, which knows how far in its log it is."""

    def __init__(self, config: Config = ONE_SOURCE) -> None:
        self.config, self.offset = config, 0
        self.users, self.items = Vocabulary(), Vocabulary()
        self.stage = UserStage(config, self.users, self.items)
        self.user_stages = (self.stage,)

    def take_changed_items(self, everything: bool = False) -> tuple[int, ...]:
        return ()

    def properties(self, item: str) -> None:
        return None

    def restore(self, store: StateStore) -> None:
        restore_stages(store, self)
        self.offset = (store.commit.input or {"offset": 0})["offset"]

    def feed(self, log: list[Event], more: int) -> None:
        """Apply so many more events of the log."""
        part = log[self.offset : self.offset + more]
        for _ in self.stage.ingest(to_batch(self.config, part, self.users, self.items)):
            pass
        self.offset += len(part)

    def position(self) -> dict[str, Any]:
        return at(self.offset)

    def check(self, log: list[Event]) -> None:
        """Histories, memberships and watermark are those after the log up to here."""
        oracle = oracle_of(self.config, log[: self.offset])
        names = self.config.indicator_names
        for user, histories in oracle.users.items():
            index = self.users.index(user)
            assert index is not None
            found = {}
            for name, (items, times) in zip(names, self.stage.history(index), strict=True):
                found[name] = dict(zip(self.items.names(items), times.tolist(), strict=True))
            assert found == histories
        assert self.stage.members == len(oracle.members())
        assert [self.stage.watermark] == oracle.watermarks


def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait until it holds; an AssertionError says `what` did not come."""
    deadline, nothing = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come in {seconds} s"
        nothing.wait(0.002)
