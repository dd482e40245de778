"""What an engine says of itself: what became of events, totals, and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cco.event_data import Rejection

if TYPE_CHECKING:
    from agents.engine import Engine

REJECTIONS_KEPT = 10_000  # of one call


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of the events handed in. `rejected` has the first REJECTIONS_KEPT of `rejected_count`."""

    accepted: int
    rejected: list[Rejection]
    rejected_count: int


@dataclass(slots=True)
class Counters:
    """Totals since the engine was made."""

    accepted: int = 0
    rejected: int = 0
    fields_published: int = 0
    patches: int = 0
    worst_staleness: float = 0.0  # seconds


def stats_of(engine: Engine, now: float) -> dict[str, Any]:
    """Sizes in bytes, counts and totals; `now` by the engine's clock, in seconds."""
    sizes = {"users' names": engine.users.nbytes(), "items' names": engine.items.nbytes(), **engine.pipeline.nbytes()}
    sizes |= {f"index {part}": n for part, n in engine.index.sizes().items()}
    return {
        "events_accepted": engine.counters.accepted,
        "events_rejected": engine.counters.rejected,
        "users": len(engine.users),
        "members": engine.pipeline.members(),
        "items": len(engine.items),
        "retained": engine.pipeline.retained(),
        "rows_counted": engine.pipeline.rows_counted,
        "fields_published": engine.counters.fields_published,
        "due_items": engine.pipeline.due(),
        "staleness_seconds": engine.pipeline.staleness(now),
        "worst_staleness_seconds": engine.counters.worst_staleness,
        "position": list(engine.pipeline.position),
        "bytes": sizes,
    }
