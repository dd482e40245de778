"""What a worker says of partitions that are behind their log, look after look."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from agents.workers import condition, pulse
from agents.workers.condition import WorkerCondition
from agents.workers.pulse import HUNG_SECONDS, SILENT_SECONDS, Pulse

LOGGED = 1_700_000_000.0  # epoch seconds


class World:
    """A worker with one partition of interactions, and the time; nobody waits."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock, self.end = 0.0, 0
        self.source: Any = SimpleNamespace(position=0, log_time=None)
        users = SimpleNamespace(
            topic="interactions", problems={}, checkpoints=dict, owned=lambda: {0: self.source},
            log_end=lambda source: self.end,
        )  # fmt: skip
        told = SimpleNamespace(monotonic=lambda: self.clock, time=lambda: LOGGED + self.clock)
        monkeypatch.setattr(condition, "time", told)
        monkeypatch.setattr(pulse, "time", told)
        self.pulse = Pulse()
        worker: Any = SimpleNamespace(
            failure=None, pulse=self.pulse, elastic=None, assignment={TP("interactions", 0)}, users=users,
            settings=SimpleNamespace(topic_prefix=""), config=SimpleNamespace(max_staleness=60.0),
            items=SimpleNamespace(topic="edits", fenced=set(), owned=dict),
        )  # fmt: skip
        self.condition = WorkerCondition(worker)

    def look(self, seconds: float, position: int, end: int, ago: float | None = None) -> str:
        """The mode so many seconds later; `ago`: when what was applied last was logged."""
        self.clock += seconds
        self.pulse.answer()
        self.end, self.source.position = end, position
        self.source.log_time = None if ago is None else LOGGED + self.clock - ago
        return str(self.condition.mode())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_a_worker_that_returns_is_behind_from_its_first_look_on(world: World) -> None:
    assert world.look(0, 100, 1_000_100) == "catching_up"
    assert world.look(1, 5_000, 1_000_100, ago=600) == "catching_up"
    assert world.look(1, 999_000, 1_000_100, ago=30) == "catching_up"
    assert world.look(1, 1_000_100, 1_000_100, ago=4) == "kappa"


def test_one_that_follows_a_log_which_never_ceases_is_not_behind(world: World) -> None:
    modes = {world.look(5, 1_000 * k, 1_000 * k + 40, ago=0.3) for k in range(20)}
    assert modes == {"kappa"}


def test_one_that_falls_behind_such_a_log_is(world: World) -> None:
    modes = [world.look(5, 1_000 * k, 1_300 * k + 1, ago=1.5 * k) for k in range(10)]
    assert modes == ["kappa"] * 4 + ["catching_up"] * 6


def test_a_moments_lag_between_looks_that_are_far_apart_is_none(world: World) -> None:
    for k in range(1, 10):
        assert world.look(0.2, 100 * k, 100 * k + 1, ago=0.1) == "kappa" or k == 1
        world.end = world.source.position
        world.clock += 4.9
        world.condition.note()


@pytest.mark.parametrize("ago", [1.0, -3_600.0])
def test_one_that_stands_still_is_behind_whatever_the_clocks_say(world: World, ago: float) -> None:
    assert world.look(5, 100, 100, ago) == "kappa"
    assert world.look(3, 100, 200, ago) == "kappa"  # a moment's lag
    assert [world.look(5, 100, 200, ago) for _ in range(3)] == ["catching_up"] * 3
    assert world.look(60, 100, 200, ago) == "lambda"
    assert world.look(5, 200, 200, ago) == "kappa"


def test_a_worker_that_hears_nothing_of_kafka_does_not_say_that_all_is_well(world: World) -> None:
    assert world.look(0, 100, 100) == "kappa"
    world.clock += SILENT_SECONDS
    assert world.condition.mode() == "kappa"
    world.clock += 1
    assert world.condition.mode() == "catching_up"
    said = f"Kafka has not answered for {SILENT_SECONDS + 1:.0f} s"
    assert [text for text in world.condition.readiness() if text.startswith(said)]
    assert world.condition.health() == []  # it is not the worker that is to be started again
    assert world.look(0, 100, 100) == "kappa"


def test_a_worker_whose_rounds_have_ceased_is_to_be_started_again(world: World) -> None:
    assert world.look(10 * HUNG_SECONDS, 100, 100) == "kappa"
    assert world.condition.health() == []  # its kernels are still being compiled
    world.pulse.tick()  # with nothing to compute
    assert world.look(10 * HUNG_SECONDS, 100, 100) == "kappa"
    world.pulse.warm()
    assert world.look(HUNG_SECONDS, 100, 100) == "kappa"
    assert world.look(1, 100, 100) == "lambda"
    assert world.condition.health() == [f"the worker hangs: nothing was computed for {HUNG_SECONDS + 1:.0f} s"]
    world.pulse.tick()
    assert world.condition.health() == []
