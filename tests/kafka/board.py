"""What workers tell of themselves at a moment, from their /status and /metrics, and a screen that shows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.live import Live
from rich.table import Table

from agents.cli.common import size_text
from tests.kafka.world import WorkerProcess

RATE_SECONDS = 3.0  # over which a rate is taken
LINE_SECONDS = 3.0  # between two lines where the output is no terminal
DOWN = "down"  # the mode of a worker that does not answer
COUNTERS = {
    "rows": "cco_rows_counted_total",
    "patches": "cco_patches_sent_total",
    "resyncs": "cco_resyncs_answered_total",
    "gaps": "cco_gaps_total",
    "dead letters": "cco_dead_letters_total",
    "replayed": "cco_events_replayed_total",
}


@dataclass(frozen=True, slots=True)
class Figures:
    """One worker at a moment."""

    name: str
    counts: Mapping[str, int]  # by name in `COUNTERS`, over all its lives
    mode: str = DOWN
    positions: Mapping[int, int] = field(default_factory=dict)  # by source partition: the next offset to apply
    begun: Mapping[int, int] = field(default_factory=dict)  # and the one at which this life began
    item_partitions: tuple[int, ...] = ()
    heard: Mapping[int, int] = field(default_factory=dict)  # by source: up to where one of these has applied it
    lag: int = 0  # records of its partitions of interactions
    due: int = 0
    staleness: float = 0.0  # seconds
    memory: int = 0  # bytes resident
    structures: int = 0  # bytes of them in structures that the worker knows of
    events_per_second: float = 0.0

    @property
    def partitions(self) -> str:
        """What it owns, for people."""
        sources, items = sorted(self.positions), self.item_partitions
        return f"interactions {_listed(sources)}; edits {_listed(items)}"


def _listed(partitions: Sequence[int]) -> str:
    return ",".join(map(str, partitions)) or "-"


@dataclass(slots=True)
class _Past:
    """What must be remembered of a worker to go on counting over its lives."""

    before: dict[str, float] = field(default_factory=dict)  # counters of the lives that have ended
    last: dict[str, float] = field(default_factory=dict)
    moments: list[tuple[float, dict[int, int]]] = field(default_factory=list)


class Board:
    """Looks at workers again and again."""

    def __init__(self, workers: Iterable[WorkerProcess]) -> None:
        self._workers = list(workers)
        self._past = {worker.name: _Past() for worker in self._workers}

    def look(self) -> list[Figures]:
        """All workers as they are now."""
        return [self._look(worker) for worker in self._workers]

    def _look(self, worker: WorkerProcess) -> Figures:
        past = self._past[worker.name]
        status = worker.status() if worker.running else None
        code, text = worker.get("/metrics") if status is not None else (0, "")
        if status is None or code != 200:
            past.moments.clear()
            return Figures(worker.name, _counted(past, {}))
        sums = _sums(text)
        sources, edits = status["interactions"], status["edits"].values()
        positions = {int(source): int(told["position"]) for source, told in sources.items()}
        past.moments.append((time.monotonic(), positions))
        while len(past.moments) > 2 and past.moments[-1][0] - past.moments[1][0] > RATE_SECONDS:
            del past.moments[0]
        return Figures(
            worker.name,
            _counted(past, sums),
            str(status["mode"]),
            positions,
            {int(source): int(told["began_at"]) for source, told in sources.items()},
            tuple(sorted(map(int, status["edits"]))),
            _heard(edits),
            sum(max(0, told["log_end"] - told["position"]) for told in sources.values()),
            sum(told["due"] for told in edits),
            max((float(told["staleness"]) for told in edits), default=0.0),
            int(sums.get("process_resident_memory_bytes", 0)),
            int(sums.get("cco_memory_bytes", 0)),
            _rate(past.moments),
        )


def _counted(past: _Past, sums: Mapping[str, float]) -> dict[str, int]:
    """The counters over all lives: one that has become smaller belongs to a new life."""
    now = {name: sums.get(metric, 0.0) for name, metric in COUNTERS.items()}
    for name, value in now.items():
        if value < past.last.get(name, 0.0):
            past.before[name] = past.before.get(name, 0.0) + past.last[name]
    past.last = now
    return {name: int(past.before.get(name, 0.0) + value) for name, value in now.items()}


def _heard(edits: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    found: dict[int, int] = {}
    for told in edits:
        for source, position in enumerate(told["sources"]):
            found[source] = max(position, found.get(source, 0))
    return found


def _sums(text: str) -> dict[str, float]:
    """Each metric's value, summed over its labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def _rate(moments: Sequence[tuple[float, dict[int, int]]]) -> float:
    """Records applied a second. A partition that came, went, or was begun again counts from then on."""
    if len(moments) < 2:
        return 0.0
    applied = sum(
        max(0, position - earlier[source])
        for (_, earlier), (_, later) in pairwise(moments)
        for source, position in later.items()
        if source in earlier
    )
    return applied / max(1e-3, moments[-1][0] - moments[0][0])


class Screen:
    """Shows figures: a table that changes in place, or now and then a line where the output is no terminal."""

    def __init__(self, console: Console, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._live = Live(console=console, refresh_per_second=4) if not quiet and sys.stdout.isatty() else None
        self._line = 0.0  # when the last line was written

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, found: Sequence[Figures], totals: Mapping[str, float]) -> None:
        """The workers, and numbers about all of them, the first of which is the time."""
        if self._live is not None:
            self._live.update(_table(found, totals))
        elif not self._quiet and time.monotonic() - self._line >= LINE_SECONDS:
            if not self._line:
                self._console.print(_headings(found, totals))
            self._line = time.monotonic()
            self._console.print(_line(found, totals))


def _table(found: Sequence[Figures], totals: Mapping[str, float]) -> Table:
    title = ", ".join(f"{name} {value:,.0f}" for name, value in totals.items())
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("worker")
    table.add_column("mode", min_width=11)
    table.add_column("partitions", min_width=26)
    for name in ("events/s", "lag", "rows due", "stale", "patches", "memory"):
        table.add_column(name, justify="right", min_width=8)
    for f in found:
        table.add_row(
            f.name, f.mode, f.partitions, f"{f.events_per_second:,.0f}", f"{f.lag:,}", f"{f.due:,}",
            f"{f.staleness:.1f} s", f"{f.counts['patches']:,}", size_text(f.memory),
        )  # fmt: skip
    return table


def _headings(found: Sequence[Figures], totals: Mapping[str, float]) -> str:
    of_all = "".join(f"{name:>{7 if k == 0 else 10}}" for k, name in enumerate(totals))
    return of_all + "".join(
        f" | {f.name:<11}{'events/s':>8}{'lag':>8}{'due':>7}{'stale':>7}{'patches':>9}" for f in found
    )


def _line(found: Sequence[Figures], totals: Mapping[str, float]) -> str:
    of_all = "".join(f"{value:>{7 if k == 0 else 10},.0f}" for k, value in enumerate(totals.values()))
    return of_all + "".join(
        f" | {f.mode:<11}{f.events_per_second:>8,.0f}{f.lag:>8,}{f.due:>7,}{f.staleness:>5.0f} s"
        f"{f.counts['patches']:>9,}"
        for f in found
    )
