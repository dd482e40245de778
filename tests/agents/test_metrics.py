"""A worker's metrics, as Prometheus reads them: parsed from the text of a scrape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from agents.health.modes import MODES
from agents.kafka.dead_letters import CODES
from agents.workers.metrics import FETCH_RECORDS, OTHER, Metrics

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def scrape(metrics: Metrics) -> Series:
    body, content_type = metrics.exposition()
    assert content_type.startswith("text/plain")
    families = text_string_to_metric_families(body.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: object) -> float | None:
    return scrape(metrics).get((name, frozenset((key, str(label)) for key, label in labels.items())))


def names(metrics: Metrics) -> set[str]:
    return {name for name, _ in scrape(metrics)}


def test_names_begin_with_cco_but_for_those_of_the_process(metrics: Metrics) -> None:
    metrics.own_source(0)
    metrics.own_item_partition(0)
    found = names(metrics)
    assert "process_resident_memory_bytes" in found
    assert all(name.startswith(("cco_", "process_")) for name in found)
    assert not any(name.endswith("_created") for name in found)


def test_two_workers_in_one_process_do_not_share_counters(metrics: Metrics) -> None:
    metrics.events_applied.labels(0).inc(500)
    assert value(metrics, "cco_events_applied_total", source_partition=0) == 500
    assert value(Metrics(CollectorRegistry()), "cco_events_applied_total", source_partition=0) is None


def test_the_registry_refuses_the_same_metrics_twice(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(metrics.registry)


def test_counters_of_owned_partitions_begin_at_zero(metrics: Metrics) -> None:
    metrics.own_source(3)
    metrics.own_item_partition(7)
    for name in ("events_applied", "events_replayed", "edits_sent", "edits_sent_bytes", "resyncs_answered"):
        assert value(metrics, f"cco_{name}_total", source_partition=3) == 0, name
    for name in ("edits_applied", "messages_dropped", "gaps", "rows_counted", "patches_sent", "fields_sent"):
        assert value(metrics, f"cco_{name}_total", item_partition=7) == 0, name
    assert value(metrics, "cco_rebalances_total") == 0


def test_gauges_of_released_partitions_go_and_counters_stay(metrics: Metrics) -> None:
    for partition in (0, 1):
        metrics.events_applied.labels(partition).inc(10)
        metrics.snapshot_age.labels(partition).set(5)
        metrics.snapshot_longest_pause.labels(partition).set(0.01)
        metrics.set_lag("interactions", partition, 4)
        metrics.patches_sent.labels(partition).inc(2)
        metrics.due_rows.labels(partition).set(9)
        metrics.staleness.labels(partition).set(1.5)
        metrics.set_lag("edits", partition, 6)
    metrics.release_source("interactions", 0)
    metrics.release_item_partition("edits", 1)
    assert value(metrics, "cco_snapshot_age_seconds", source_partition=0) is None
    assert value(metrics, "cco_snapshot_longest_pause_seconds", source_partition=0) is None
    assert value(metrics, "cco_snapshot_age_seconds", source_partition=1) == 5
    assert value(metrics, "cco_lag_records", topic="interactions", partition=0) is None
    assert value(metrics, "cco_lag_records", topic="interactions", partition=1) == 4
    assert value(metrics, "cco_due_rows", item_partition=1) is None
    assert value(metrics, "cco_staleness_seconds", item_partition=1) is None
    assert value(metrics, "cco_staleness_seconds", item_partition=0) == 1.5
    assert value(metrics, "cco_lag_records", topic="edits", partition=1) is None
    assert value(metrics, "cco_lag_records", topic="edits", partition=0) == 6
    assert value(metrics, "cco_events_applied_total", source_partition=0) == 10
    assert value(metrics, "cco_patches_sent_total", item_partition=1) == 2


def test_releasing_what_was_never_told_is_no_error(metrics: Metrics) -> None:
    metrics.release_source("interactions", 8)
    metrics.release_item_partition("edits", 8)


def test_lag_is_never_negative(metrics: Metrics) -> None:
    metrics.set_lag("edits", 0, -3)  # a log end that was asked for before the last records came
    assert value(metrics, "cco_lag_records", topic="edits", partition=0) == 0


def test_structures_that_are_gone_have_no_memory(metrics: Metrics) -> None:
    metrics.set_memory({"users": 1_000, "rows": 50})
    metrics.set_memory({"users": 2_000})
    assert value(metrics, "cco_memory_bytes", structure="users") == 2_000
    assert value(metrics, "cco_memory_bytes", structure="rows") is None


def test_dead_letters_have_a_series_for_each_code_and_one_for_all_others(metrics: Metrics) -> None:
    metrics.refused(["json", "key", "json", "a code from nowhere", "another"])
    counts = {dict(labels)["code"]: n for (name, labels), n in scrape(metrics).items() if "dead_letters" in name}
    assert set(counts) == {*CODES, OTHER}
    assert {code: n for code, n in counts.items() if n} == {"json": 2, "key": 1, OTHER: 2}


def test_exactly_one_mode_is_on(metrics: Metrics) -> None:
    def on() -> dict[str, float]:
        return {dict(labels)["mode"]: n for (name, labels), n in scrape(metrics).items() if name == "cco_mode"}

    assert on() == {mode: float(mode == "catching_up") for mode in MODES}
    for mode in MODES:
        metrics.set_mode(mode)
        assert on() == {known: float(known == mode) for known in MODES}


def test_a_distribution_counts_what_prometheus_own_histogram_counts(metrics: Metrics) -> None:
    from prometheus_client import Histogram

    values = np.concatenate([np.random.default_rng(1).exponential(2, 1_000), [0.005, 60, 0, 1e9, -1]])
    bounds = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 30, 60)
    registry = CollectorRegistry()
    theirs = Histogram("cco_event_to_patch_seconds", "", buckets=bounds, registry=registry)
    often = np.random.default_rng(2).integers(0, 5, values.size)
    for one in values.repeat(often).tolist():
        theirs.observe(one)
    metrics.latency.observe(values[:700].repeat(often[:700]))
    metrics.latency.observe(values[700:-1], often=often[700:-1])
    metrics.latency.observe(-1, often=often[-1])
    metrics.latency.observe([])
    expected = {(s.name, s.labels.get("le")): s.value for m in registry.collect() for s in m.samples}
    ours = {
        (name, dict(labels).get("le")): n for (name, labels), n in scrape(metrics).items() if "event_to_patch" in name
    }
    assert {key: n for key, n in expected.items() if not key[0].endswith("_created")} == pytest.approx(ours)
    assert len(ours) == len(bounds) + 3


def test_fetches_are_told_by_topic(metrics: Metrics) -> None:
    metrics.fetch_records.observe(16_384, "interactions")
    metrics.fetch_records.observe([1, 70_000], "interactions")
    metrics.fetch_records.observe(2, "edits")
    assert value(metrics, "cco_fetch_records_count", topic="interactions") == 3
    assert value(metrics, "cco_fetch_records_sum", topic="interactions") == 86_385
    assert value(metrics, "cco_fetch_records_bucket", topic="interactions", le="16384.0") == 2
    assert value(metrics, "cco_fetch_records_bucket", topic="interactions", le="4096.0") == 1
    assert value(metrics, "cco_fetch_records_bucket", topic="interactions", le="+Inf") == 3
    assert value(metrics, "cco_fetch_records_count", topic="edits") == 1
    assert len(FETCH_RECORDS) == len(set(FETCH_RECORDS))


def test_no_observation_is_lost_between_threads(metrics: Metrics) -> None:
    values = np.full(100, 0.2)
    with ThreadPoolExecutor(8) as threads:
        for _ in threads.map(lambda _: metrics.row_age.observe(values), range(400)):
            pass
        for _ in threads.map(lambda _: metrics.set_lag("edits", 0, 1), range(100)):
            pass
    assert value(metrics, "cco_row_age_seconds_count") == 40_000
    assert value(metrics, "cco_row_age_seconds_sum") == pytest.approx(8_000)


def test_gauges_are_refreshed_at_each_scrape(metrics: Metrics) -> None:
    clock = iter(range(100, 200))
    metrics.before_scrape(lambda: metrics.staleness.labels(0).set(next(clock)))
    assert value(metrics, "cco_staleness_seconds", item_partition=0) == 100
    assert value(metrics, "cco_staleness_seconds", item_partition=0) == 101


def test_open_metrics_is_spoken_to_who_asks_for_it(metrics: Metrics) -> None:
    metrics.own_source(0)
    metrics.row_age.observe(3.0)
    body, content_type = metrics.exposition(OPEN_METRICS)
    assert content_type.startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics.text_string_to_metric_families(body.decode())}
    assert families["cco_row_age_seconds"].type == "histogram"
    assert families["cco_events_applied"].type == "counter"
    assert all(family.documentation for family in families.values())
