"""What the archive's agent tells Prometheus, and whoever looks whether it does its work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from agents.archive.agent import ArchiveAgent
from agents.workers.metrics import SOURCE


class ArchiveMonitor(Collector):
    """Of one agent, as it is when somebody asks: `Condition` and `Exposition` of a `Monitor`."""

    def __init__(self, agent: ArchiveAgent, url: str) -> None:
        self._agent, self._url = agent, url
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The series. Counters are of this process."""
        records = CounterMetricFamily("cco_archive_records", "Records written into files.", labels=[SOURCE])
        files = CounterMetricFamily("cco_archive_files", "Files written, those merged not counted.", labels=[SOURCE])
        lag = GaugeMetricFamily("cco_archive_lag_records", "Records of the log that are in no file.", labels=[SOURCE])
        for partition, standing in self._agent.standing().items():
            records.add_metric([str(partition)], standing.records)
            files.add_metric([str(partition)], standing.files)
            lag.add_metric([str(partition)], standing.lag)
        merged = CounterMetricFamily("cco_archive_merged_files", "Files that were merged into larger ones.")
        merged.add_metric([], self._agent.done.merged)
        failures = CounterMetricFamily("cco_archive_failures", "Attempts to write a file that failed.")
        failures.add_metric([], self._agent.failures)
        yield from (records, files, lag, merged, failures)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics as text and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def health(self) -> list[str]:
        """Nothing fails for good: what does ends the process."""
        return []

    def readiness(self) -> list[str]:
        """Why it does not archive."""
        if not self._agent.standing():
            return ["the log is being looked at"]
        return [] if self._agent.trouble is None else [f"files cannot be written: {self._agent.trouble}"]

    def status(self) -> dict[str, Any]:
        """By partition, how it stands."""
        told = {
            str(partition): {**asdict(standing), "lag": standing.lag}
            for partition, standing in self._agent.standing().items()
        }
        return {"archive": self._url, "problems": self.readiness(), "partitions": told}
