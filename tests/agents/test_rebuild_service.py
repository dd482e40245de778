"""When rebuilds of a service come after one that failed."""

from __future__ import annotations

import time
from typing import Any

import pytest

from agents.rebuilds import service as rebuild_service
from agents.rebuilds.service import Terminated, keep


@pytest.mark.parametrize(
    ("every", "took", "again"), [(3_600.0, 0.0, 60), (10.0, 0.0, 10), (3_600.0, 600.0, 600), (3_600.0, 2_000.0, 1_600)]
)
def test_after_a_failure_the_next_turn_comes_early(
    every: float, took: float, again: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a minute; later if the attempt took longer, so that not all of the time is spent on them; in its turn else."""
    told: list[tuple[str, dict[str, Any]]] = []
    clock = time.monotonic

    def fail() -> None:
        monkeypatch.setattr(time, "monotonic", lambda: clock() + took)
        raise OSError("the lock\nis another's")

    def tell(what: str, fields: dict[str, Any]) -> None:
        told.append((what, fields))
        if what == "the rebuild failed":
            raise Terminated

    keep(every, fail, lambda: None, (OSError,), tell)
    assert told == [
        ("the rebuild failed", {"reason": "the lock is another's", "again_seconds": again}),
        ("stopped", {}),
    ]


def test_it_goes_on_after_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuild_service, "AGAIN_SECONDS", 0.0)
    told: list[str] = []
    turns = iter((OSError("one"), OSError("two"), Terminated()))

    def work() -> None:
        raise next(turns)

    began = time.monotonic()
    keep(10.0, work, lambda: None, (OSError,), lambda what, _: told.append(what))
    assert told == ["the rebuild failed"] * 2 + ["stopped"] and time.monotonic() - began < 10
