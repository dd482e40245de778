"""What the query service tells Prometheus. Routes and statuses are the only labels, so series are few and bounded."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.exposition import choose_encoder

from model_sync.contract import Hit

SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
OTHER = "other"  # the label of paths that there are none of


class ServiceMetrics:
    """Counters and latencies of the service, on a registry that others may share."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the birth of each counter: twice the series
        self._requests = Counter("cco_requests", "Requests answered.", ("route", "status"), registry=registry)
        self._seconds = Histogram(
            "cco_request_seconds",
            "Time from a request's headers to its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("cco_requests_in_flight", "Requests that are being answered.", registry=registry)
        self.hits = Counter("cco_hits", "Items recommended because of the history, or of priors.", registry=registry)
        self.backfill_hits = Counter(
            "cco_backfill_hits", "Items recommended as backfill: its share of all is the backfill share.",
            registry=registry,
        )  # fmt: skip
        self.empty_answers = Counter("cco_empty_answers", "Answers without any item.", registry=registry)
        self.events = Counter("cco_events_received", "Records sent to POST /events.", ("result",), registry=registry)
        for result in ("accepted", "rejected"):
            self.events.labels(result)
        self._requests_of: dict[tuple[str, int], Counter] = {}  # looking a series up by labels is slow
        self._seconds_of: dict[str, Histogram] = {}

    def follow_model_age(self, model_age: Callable[[], float | None]) -> None:
        """Tell it whenever somebody looks; NaN while it is not known."""

        def value() -> float:
            age = model_age()
            return math.nan if age is None else age

        text = "Time since which events may be missing in the model."
        Gauge("cco_model_age_seconds", text, registry=self.registry).set_function(value)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A request has its answer."""
        requests = self._requests_of.get((route, status))
        if requests is None:
            requests = self._requests_of[route, status] = self._requests.labels(route, str(status))
        requests.inc()
        latency = self._seconds_of.get(route)
        if latency is None:
            latency = self._seconds_of[route] = self._seconds.labels(route)
        latency.observe(seconds)

    def recommended(self, hits: Sequence[Hit]) -> None:
        """These go to somebody."""
        backfill = sum(hit.score == 0.0 for hit in hits)
        self.hits.inc(len(hits) - backfill)
        self.backfill_hits.inc(backfill)
        if not hits:
            self.empty_answers.inc()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """(body, content type) in the format that the header `Accept` asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
