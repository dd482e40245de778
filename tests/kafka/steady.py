"""Half of the highest rate, for long: is memory flat, does the lag stay small, and is the model exact at the end?"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.kafka.board import Board
from tests.kafka.events import CONFIG
from tests.kafka.flow import Flow
from tests.kafka.world import World, wait_for

USERS, ITEMS = 20_000, 5_000
WARM, MEASURED = 50_000, 3_000_000  # events before the highest rate is measured, and while it is
HELD = 1_000_000  # events in the window meanwhile: most of what comes makes something else leave, as in the steady flow
WINDOW_DAYS, TURNOVER = 60, 60.0  # of the configuration; seconds in which so much event time passes
SAMPLE = 5.0  # seconds between two looks
SETTLING = 1 / 3  # of the time, before figures count: caches, arenas and write buffers grow to their size
LEAST = 600.0  # seconds after SETTLING, for a verdict on memory: write buffers fill and empty in minutes
MOST_GROWTH = 0.05  # of the most resident memory, from the first half of the time that counts to the second
MOST_LAG = 5.0  # seconds' worth of events


@dataclass(frozen=True, slots=True)
class Sample:
    """The worker at a moment."""

    seconds: float  # since the flow began
    memory: int  # bytes resident
    structures: int  # bytes in structures that it knows of
    lag: int  # records in the log that are not applied
    due: int
    staleness: float  # seconds
    applied: int


def run(broker: str, folder: Path, minutes: float, rate: float | None, seed: int, say: Callable[[str], None]) -> Any:
    """One worker under a steady flow. `rate` (events a second): default, half of the highest."""
    world = World(broker, folder, "steady-", CONFIG)
    try:
        worker = world.worker("steady")
        board = Board([worker])
        wait_for(worker.is_ready, "the worker")
        highest = None
        if rate is None:
            highest = _highest(world, Flow(world, seed, USERS, ITEMS, pace=WINDOW_DAYS * 86_400 / HELD))
            rate = highest / 2
            say(f"highest rate {highest:,.0f} events/s; half of it for {minutes:g} minutes")
        flow = Flow(world, seed + 1, USERS, ITEMS, pace=WINDOW_DAYS * 86_400 / (TURNOVER * rate))
        samples: list[Sample] = []
        begin = time.perf_counter()
        with flow.flowing(rate):
            while (passed := time.perf_counter() - begin) < 60 * minutes:
                samples.append(_sample(world, board, passed))
                s = samples[-1]
                say(
                    f"{s.seconds:6.0f} s  memory {s.memory / 1e6:7.1f} MB  in structures {s.structures / 1e6:6.1f} MB "
                    f" lag {s.lag:7,}  due {s.due:6,}  stale {s.staleness:4.1f} s  applied {s.applied:,}"
                )
                time.sleep(max(0.1, SAMPLE - (time.perf_counter() - begin - passed)))
        world.settle()
        world.check()
        assert worker.stop() == 0, "the worker did not stop in order"
    finally:
        world.close()
    return {
        "minutes": minutes,
        "highest_events_per_second": None if highest is None else round(highest),
        "events_per_second": round(rate),
        "events": flow.sent.events,
        "equal": True,
        **verdict(samples, rate),
        "samples": [asdict(sample) for sample in samples],
    }


def _highest(world: World, flow: Flow) -> float:
    """Events a second through both stages, of events that come as fast as they can be sent."""
    flow.send(WARM)
    world.settle()
    begin = time.perf_counter()
    flow.send(MEASURED)
    ends = world.log_ends()
    wait_for(lambda: _heard(world) == ends, "both stages to apply all events")
    return MEASURED / (time.perf_counter() - begin)


def _heard(world: World) -> list[int]:
    status = world.workers["steady"].status()
    return [] if status is None else list(status["edits"]["0"]["sources"])


def _sample(world: World, board: Board, seconds: float) -> Sample:
    ends = sum(world.log_ends())
    (f,) = board.look()
    applied = sum(f.positions.values())
    return Sample(round(seconds, 1), f.memory, f.structures, max(0, ends - applied), f.due, f.staleness, applied)


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The least squares slope of values over times."""
    x, y = np.asarray(times, np.float64), np.asarray(values, np.float64)
    x = x - x.mean()
    spread = float((x * x).sum())
    return float((x * (y - y.mean())).sum() / spread) if spread else 0.0


def verdict(samples: Sequence[Sample], rate: float) -> dict[str, Any]:
    """Slopes and extremes after the first third. `flat`: both verdicts; None if it was too short to tell."""
    counted = [s for s in samples if s.seconds >= SETTLING * samples[-1].seconds]
    times = [s.seconds for s in counted]
    span = times[-1] - times[0]
    middle = len(counted) // 2
    before, after = (max(s.memory for s in half) for half in (counted[: middle + 1], counted[middle:]))
    memory_is_flat = after <= (1 + MOST_GROWTH) * before if span >= LEAST else None
    lag_is_flat = max(s.lag for s in counted) <= MOST_LAG * rate
    return {
        "counted_seconds": round(span, 1),
        "memory_mb": [round(min(s.memory for s in counted) / 1e6, 1), round(max(s.memory for s in counted) / 1e6, 1)],
        "memory_slope_mb_per_minute": round(60 * slope(times, [s.memory for s in counted]) / 1e6, 3),
        "memory_growth": round(after / before - 1, 4),
        "lag_most": max(s.lag for s in counted),
        "lag_slope_per_minute": round(60 * slope(times, [s.lag for s in counted]), 1),
        "staleness_most_seconds": round(max(s.staleness for s in counted), 2),
        "memory_is_flat": memory_is_flat,
        "lag_is_flat": lag_is_flat,
        "flat": None if memory_is_flat is None and lag_is_flat else bool(memory_is_flat and lag_is_flat),
    }
