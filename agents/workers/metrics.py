"""What a worker tells Prometheus. Names are `cco_...` with their unit; labels are few and bounded.

Counters and distributions are fed once for each micro-batch, never for each event. Gauges say how things
are now, so they are set when somebody asks: see `Metrics.before_scrape`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.registry import Collector

from agents.health.modes import MODES, Mode
from agents.kafka.dead_letters import CODES

OTHER = "other"  # the label of a reason code that is not in `CODES`: the number of series stays bounded

SOURCE, ITEM_PARTITION, TOPIC = "source_partition", "item_partition", "topic"
LATENCY_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60)
AGE_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 45, 60, 90, 120, 300)
SNAPSHOT_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
FETCH_RECORDS = (1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536)


class Distribution(Collector):
    """A Prometheus histogram that takes a whole array of values in one call (the client's takes one value)."""

    def __init__(
        self, registry: CollectorRegistry, name: str, text: str, bounds: Sequence[float], label: str | None = None
    ) -> None:
        self._name, self._text = name, text
        self._labels = [] if label is None else [label]
        self._bounds = np.asarray(bounds, np.float64)
        self._lock = threading.Lock()  # batches are counted in another thread than the one that answers scrapes
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self._sums: dict[str, float] = {}
        if label is None:
            self._series("")
        registry.register(self)

    def observe(self, values: npt.ArrayLike, label: str = "", often: npt.ArrayLike = 1) -> None:
        """Count one value or an array of any number of them, in the unit of the name; each so `often`."""
        found = np.asarray(values, np.float64).reshape(-1)
        times = np.broadcast_to(np.asarray(often, np.int64), found.shape)
        buckets = np.bincount(np.searchsorted(self._bounds, found), times, self._bounds.size + 1).astype(np.int64)
        with self._lock:
            counts = self._series(label)
            counts += buckets
            self._sums[label] += float(found @ times)

    def _series(self, label: str) -> npt.NDArray[np.int64]:
        self._sums.setdefault(label, 0.0)
        return self._counts.setdefault(label, np.zeros(self._bounds.size + 1, np.int64))

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """The name, for the registry to find it used twice."""
        yield HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The series as they are now; each bucket counts the smaller ones in, as Prometheus wants it."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        bounds = [*map(str, self._bounds.tolist()), "+Inf"]
        with self._lock:
            series = [(label, np.cumsum(counts).tolist(), self._sums[label]) for label, counts in self._counts.items()]
        for label, counts, total in series:
            family.add_metric([label] if self._labels else [], list(zip(bounds, counts, strict=True)), total)
        yield family


class Metrics:
    """All metrics of one worker, on a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._refresh: list[Callable[[], None]] = []
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the birth of each counter: twice the series
        ProcessCollector(registry=registry)
        self._of_sources()
        self._of_item_partitions()
        self._of_worker()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"cco_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"cco_{name}", text, labels, registry=self.registry)

    def _distribution(self, name: str, text: str, bounds: Sequence[float], label: str | None = None) -> Distribution:
        return Distribution(self.registry, f"cco_{name}", text, bounds, label)

    def _of_sources(self) -> None:
        """What happens in the user agent, by partition of `interactions`."""
        counter = self._counter
        self.events_applied = counter("events_applied", "Events applied to the user stage.", SOURCE)
        self.events_replayed = counter(
            "events_replayed", "Events applied once more after a restart: those after the snapshot.", SOURCE
        )
        self.edits_sent = counter("edits_sent", "Edits sent to item partitions.", SOURCE)
        self.edits_sent_bytes = counter("edits_sent_bytes", "Bytes of edits messages sent.", SOURCE)
        self.user_documents = counter("user_documents", "Documents of users stored in the index.", SOURCE)
        self.resyncs_answered = counter("resyncs_answered", "Resyncs told to an item partition.", SOURCE)
        self.snapshot_age = self._gauge(
            "snapshot_age_seconds", "Time since the last snapshot was committed: what a crash would repeat.", SOURCE
        )
        self.snapshot_longest_pause = self._gauge(
            "snapshot_longest_pause_seconds", "Longest time that snapshots held up the events at a stretch.", SOURCE
        )
        self.snapshot_seconds = self._distribution(
            "snapshot_seconds", "Time from the cut of a snapshot to its commit.", SNAPSHOT_SECONDS
        )

    def _of_item_partitions(self) -> None:
        """What happens in the item agent, by item partition."""
        counter, gauge = self._counter, self._gauge
        self.edits_applied = counter("edits_applied", "Edits applied to the item stage.", ITEM_PARTITION)
        self.messages_dropped = counter(
            "messages_dropped",
            "Edits messages dropped: applied already, or answers to an earlier claim.",
            ITEM_PARTITION,
        )
        self.gaps = counter("gaps", "Edits messages that showed that others before them were lost.", ITEM_PARTITION)
        self.resyncs_asked = counter("resyncs_asked", "Resyncs asked of a source partition.", ITEM_PARTITION)
        self.rows_counted = counter("rows_counted", "Rows counted and scored.", ITEM_PARTITION)
        self.item_changes = counter("item_changes", "Changes of items' metadata applied.", ITEM_PARTITION)
        self.patches_sent = counter("patches_sent", "Patches (items with changed fields) acknowledged.", ITEM_PARTITION)
        self.fields_sent = counter("fields_sent", "Fields in these patches.", ITEM_PARTITION)
        self.due_rows = gauge("due_rows", "Items with a row that is due to be counted.", ITEM_PARTITION)
        self.staleness = gauge(
            "staleness_seconds", "Time since the row that is longest out of date was exact.", ITEM_PARTITION
        )
        self.row_age = self._distribution(
            "row_age_seconds", "Age of rows when they are published: since they were last exact.", AGE_SECONDS
        )
        self.latency = self._distribution(
            "event_to_patch_seconds",
            "Time from the timestamp of a record to the acknowledged patch of the last row that it touches in an item"
            " partition. Records that were fetched together count as the oldest of them.",
            LATENCY_SECONDS,
        )

    def _of_worker(self) -> None:
        """What belongs to the whole worker."""
        counter, gauge = self._counter, self._gauge
        self.dead_letters = counter("dead_letters", "Records sent to the dead letters, by reason code.", "code")
        self.lag = gauge("lag_records", "Records in the log that are not applied yet.", TOPIC, "partition")
        self.memory = gauge("memory_bytes", "Memory in use by each structure.", "structure")
        self.rebalances = counter("rebalances", "Times that partitions were assigned anew.")
        self.shared_copies = counter("shared_copies", "Snapshots copied to the shared place.")
        self.shared_copy_failures = counter("shared_copy_failures", "Copies to the shared place that failed.")
        self.fetch_records = self._distribution(
            "fetch_records", "Records in each fetch that was handed to an agent as one event.", FETCH_RECORDS, TOPIC
        )
        self.mode = gauge("mode", "1 for the mode that the worker is in, 0 for the others.", "mode")
        for code in (*CODES, OTHER):
            self.dead_letters.labels(code)
        self.set_mode("catching_up")

    # -- what takes more than one call --------------------------------------------------------------

    def set_mode(self, mode: Mode) -> None:
        """Tell the mode; the others become 0."""
        for known in MODES:
            self.mode.labels(known).set(known == mode)

    def refused(self, codes: Iterable[str]) -> None:
        """Count dead letters by their codes. One that is not in `CODES` counts as other."""
        for code in codes:
            self.dead_letters.labels(code if code in CODES else OTHER).inc()

    def set_lag(self, topic: str, partition: int, records: int) -> None:
        """Tell how many records of a partition are still to be applied."""
        self.lag.labels(topic, partition).set(max(0, records))

    def set_memory(self, sizes: Mapping[str, int]) -> None:
        """Tell the bytes of all structures; those that are not named are not there (any more)."""
        self.memory.clear()
        for structure, size in sizes.items():
            self.memory.labels(structure).set(size)

    def own_source(self, partition: int) -> None:
        """A partition of `interactions` was assigned: its counters begin at 0, so that the first step shows."""
        for counter in (
            self.events_applied, self.events_replayed, self.edits_sent, self.edits_sent_bytes, self.resyncs_answered,
        ):  # fmt: skip
            counter.labels(partition)

    def own_item_partition(self, partition: int) -> None:
        """A partition of `edits` was assigned: its counters begin at 0, so that the first step shows."""
        for counter in (
            self.edits_applied, self.messages_dropped, self.gaps, self.resyncs_asked, self.rows_counted,
            self.patches_sent, self.fields_sent,
        ):  # fmt: skip
            counter.labels(partition)

    def release_source(self, topic: str, partition: int) -> None:
        """A partition of `interactions` (`topic` with its prefix) is gone: its gauges are another worker's to tell."""
        for gauge in (self.snapshot_age, self.snapshot_longest_pause):
            gauge.remove(partition)
        self.lag.remove(topic, partition)

    def release_item_partition(self, topic: str, partition: int) -> None:
        """A partition of `edits` (`topic` with its prefix) is gone: its gauges are another worker's to tell."""
        for gauge in (self.due_rows, self.staleness):
            gauge.remove(partition)
        self.lag.remove(topic, partition)

    # -- scrapes ------------------------------------------------------------------------------------

    def before_scrape(self, refresh: Callable[[], None]) -> None:
        """Have `refresh` called before each scrape, on the event loop, to set the gauges as they are then."""
        self._refresh.append(refresh)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text and its content type, in the format that the Accept header of the request asks for."""
        for refresh in self._refresh:
            refresh()
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
