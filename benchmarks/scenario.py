"""What a scenario is: tasks that run in child processes, and what their results say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Result = dict[str, Any]
Raw = Mapping[str, Sequence[Result]]  # by task, one result per run

MB = 1e6


@dataclass(frozen=True)
class Task:
    """One measurement: a function of this package ("models.stream") that runs in a process of its own."""

    name: str
    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    cores: int = 1
    most_runs: int | None = None  # fewer than asked for where one run takes minutes


@dataclass(frozen=True)
class Line:
    """One line of the report: ours and its peer's, one value per run.

    The measure is the value itself ("value") or how many times better than the peer it is ("ratio"; the
    median over pairs of runs). `target` bounds the measure: a ratio from below, a value by `better`.
    """

    what: str
    unit: str
    ours: list[float]
    better: Literal["lower", "higher"] = "lower"
    peer: str = ""
    theirs: list[float] = field(default_factory=list)
    measure: Literal["value", "ratio"] = "value"
    target: float | None = None
    memory: list[float] = field(default_factory=list)  # MB at the peak, inputs apart
    peer_memory: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer, median over the pairs; None without a peer's figures."""
        lower = self.better == "lower"
        pairs = zip(self.ours, self.theirs, strict=False)  # a peer that takes minutes has fewer runs
        ratios = [(b / a if lower else a / b) for a, b in pairs if a > 0 and b > 0]
        return statistics.median(ratios) if ratios else None

    @property
    def measured(self) -> float | None:
        """What the target bounds; None where there is nothing to show."""
        if self.measure == "ratio":
            return self.ratio
        return statistics.median(self.ours) if self.ours else None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without one, or without a figure."""
        value = self.measured
        if self.target is None or value is None:
            return None
        return value >= self.target if self.measure == "ratio" or self.better == "higher" else value <= self.target

    def as_json(self) -> Result:
        """All of it, what follows from it included."""
        return {
            "what": self.what, "unit": self.unit, "better": self.better, "ours": self.ours, "peer": self.peer,
            "theirs": self.theirs, "ratio": self.ratio, "measure": self.measure, "target": self.target,
            "reached": self.reached, "memory_mb": self.memory, "peer_memory_mb": self.peer_memory, "note": self.note,
        }  # fmt: skip

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Line:
        """The line that `as_json` described."""
        return cls(
            found["what"], found["unit"], found["ours"], found["better"], found["peer"], found["theirs"],
            found["measure"], found["target"], found["memory_mb"], found["peer_memory_mb"], found["note"],
        )  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """`prepare` runs once and writes inputs; then every run does each of `tasks` once, in turn (A B A B)."""

    name: str
    about: str
    prepare: tuple[Task, ...]
    tasks: tuple[Task, ...]
    lines: Callable[[Raw], list[Line]]


def values(raw: Raw, task: str, key: str, scale: float = 1.0) -> list[float]:
    """What a task measured under `key`, run by run; runs without it (a peer that is not there) left out."""
    return [float(result[key]) * scale for result in raw.get(task, ()) if key in result]


def memory(raw: Raw, task: str) -> list[float]:
    """MB at the peak, inputs apart, run by run."""
    return values(raw, task, "peak_bytes", 1 / MB)


def absences(raw: Raw, *tasks: str) -> str:
    """Why peers have no figures, as a note; empty if they have."""
    reasons = {str(result["absent"]) for task in tasks for result in raw.get(task, ()) if "absent" in result}
    return "; ".join(sorted(reasons))
