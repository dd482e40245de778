"""What the service does, whichever door a request came through."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from msgspec import UNSET

from cco.config import Config
from model_sync.contract import Hit, Query
from model_sync.service.auth import Keys
from model_sync.service.metrics import ServiceMetrics
from model_sync.service.models import Answer, ContributionModel, Question, Recommended
from model_sync.service.problems import Problem
from model_sync.service.questions import check_subject, query_of
from model_sync.service.store import EventSink, Store

_log = logging.getLogger("cco.service")


def utc_now() -> str:
    """The date and time of now, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def new_id() -> str:
    """A UUID of version 7: sorts by time, and tells nothing else."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 7 << 76
    value = value & ~(3 << 62) | 2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


@dataclass(frozen=True, slots=True)
class Service:
    """One service: its doors share it. `now` gives the date of questions that name none, `model_age` seconds."""

    config: Config
    store: Store
    events: EventSink | None
    keys: Keys
    metrics: ServiceMetrics
    now: Callable[[], str] = utc_now
    model_age: Callable[[], float | None] = lambda: None

    async def recommend(self, question: Question) -> Answer:
        """Answer a question. Raises QueryError, StoreProblem."""
        check_subject(question)
        own = {} if question.user is None else await self.store.history(question.user)
        query = query_of(question, self.config, dict(own), self.now())
        given, hits = await self.search(query)
        asked = sum(map(len, query.history.values()))
        age = self.model_age()
        items = [_recommended(hit, question.explain) for hit in hits]
        return Answer(given, items, asked, UNSET if age is None else round(age, 1))

    async def search(self, query: Query) -> tuple[str, list[Hit]]:
        """The recommendation_id of this answer and the best hits; counts and logs them. Raises as `Store.search`."""
        began = time.perf_counter()
        hits = await self.store.search(query)
        given = new_id()
        self.metrics.recommended(hits)
        if _log.isEnabledFor(logging.INFO):
            _log.info(
                "recommended",
                extra={
                    "recommendation_id": given,
                    "items": len(hits),
                    "backfill": sum(hit.score == 0.0 for hit in hits),
                    "milliseconds": round(1e3 * (time.perf_counter() - began), 2),
                },
            )
        return given, hits

    async def accept(self, records: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """Hand records to the sink, and count them. Raises StoreProblem; Problem if there is no sink."""
        if self.events is None:
            raise Problem(501, "events", "this service takes no events")
        verdicts = await self.events.accept(records)
        refused = sum(verdict is not None for verdict in verdicts)
        self.metrics.events.labels("accepted").inc(len(verdicts) - refused)
        self.metrics.events.labels("rejected").inc(refused)
        return verdicts


def _recommended(hit: Hit, explain: bool) -> Recommended:
    found = Recommended(hit.item, hit.score, hit.properties)
    if hit.score == 0.0:
        found.backfill = hit.backfill
    if explain:
        found.contributions = [
            ContributionModel(part.indicator, part.feature, part.weight, part.boost, part.score)
            for part in hit.contributions
        ]
    return found
