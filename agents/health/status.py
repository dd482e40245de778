"""The whole system on one screen: mode and why, what to do, workers, lag, staleness, the indices, the last rebuild.

Looks at Kafka, at Elasticsearch and at what workers told of themselves there; what is away is part of the answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from elasticsearch import Elasticsearch

from agents.audit.truth import Bounds, log_bounds
from agents.elastic import elastic_options
from agents.health.modes import REBUILD, STALLED_SECONDS, Mode, Reason, lag_reason, mode_of
from agents.health.reports import FRESH, WORKER, Reports, model_as_of, partition_key, rebuilt_as_of, stream_as_of
from agents.kafka.client import KafkaProblem
from agents.kafka.logs import Log, log_differences, look_at_logs, reason_of, signature
from agents.kafka.topics import EDITS, INTERACTIONS
from agents.settings import Settings
from cco.config import Config
from model_sync.elastic_admin import IndexDescription, describe
from model_sync.elastic_client import ElasticOptions, ElasticProblem, elastic_errors, names, sync_client
from model_sync.elastic_mapping import Kind
from model_sync.elastic_status import read, status_index
from model_sync.elastic_versions import Version, versions


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition, as far as it is known. `told`: seconds since a worker told of it."""

    name: str
    worker: str | None = None
    told: float | None = None
    position: int | None = None
    log_end: int | None = None
    lag: int | None = None
    due: int | None = None
    staleness: float | None = None


@dataclass(slots=True)
class Status:
    """What `cco status` shows. Times are epoch seconds, ages seconds."""

    at: float
    mode: Mode = "lambda"
    why: list[str] = field(default_factory=list)
    what_to_do: list[str] = field(default_factory=list)
    model_as_of: float | None = None
    model_age: float | None = None
    workers: list[dict[str, Any]] = field(default_factory=list)
    partitions: list[Partition] = field(default_factory=list)
    indices: list[IndexDescription] = field(default_factory=list)
    versions: list[Version] = field(default_factory=list)  # of items
    last_rebuild: Version | None = None  # the one that is served, if a rebuild made it


@dataclass(slots=True)
class Facts:
    """What is known of the system; None: it could not be looked at, and `problems` says why."""

    at: float
    sources: int
    item_partitions: int
    bounds: Bounds | None = None
    logs: dict[str, Log] = field(default_factory=dict)
    reports: Reports | None = None
    indices: list[IndexDescription] | None = None
    aliases: tuple[str, ...] = ()
    problems: list[Reason] = field(default_factory=list)


def look(config: Config, settings: Settings) -> Status:
    """The status as of now. Raises ConfigError where Elasticsearch is not set up."""
    options = elastic_options(settings)
    facts = Facts(time.time(), config.retention.source_partitions, settings.item_partitions)
    status = Status(facts.at)
    try:
        with elastic_errors(options, "looking at the indices"), sync_client(options) as client:
            _look_at_indices(client, options, facts, status)
    except ElasticProblem as error:
        text = f"{error}; questions are not answered"
        facts.problems.append(Reason("lambda", "", text, "bring Elasticsearch back; workers go on by themselves"))
    try:  # after the reports: what a worker had applied by then is in the log by now
        facts.bounds = log_bounds(config, settings)
        facts.logs = asyncio.run(look_at_logs(settings))
    except KafkaProblem as error:
        facts.problems.insert(0, Reason("lambda", "", str(error), "bring Kafka back; events wait at their producers"))
    return _conclude(facts, status)


def _look_at_indices(client: Elasticsearch, options: ElasticOptions, facts: Facts, status: Status) -> None:
    facts.aliases = names(options)
    facts.indices = describe(client, names(options))
    facts.reports = read(client, status_index(options.prefix))
    status.indices, status.versions = facts.indices, versions(client, names(options))
    status.last_rebuild = next((of for of in status.versions if of.role == "live" and of.rebuild), None)


def _conclude(facts: Facts, status: Status) -> Status:
    reports = facts.reports or {}
    reasons = reasons_of(facts)
    status.mode = mode_of(reasons)
    told = sorted(reasons, key=lambda reason: reason.mode != "lambda")
    status.why = list(dict.fromkeys(reason.text for reason in told))
    status.what_to_do = list(dict.fromkeys(reason.remedy for reason in told if reason.remedy))
    status.workers = _workers(reports, facts.at)
    status.partitions = list(_partitions(facts))
    stream = stream_as_of(reports, facts.sources, facts.item_partitions)
    status.model_as_of = model_as_of(
        stream, [rebuilt_as_of(status.last_rebuild.rebuild)] if status.last_rebuild else []
    )
    status.model_age = None if status.model_as_of is None else max(0.0, facts.at - status.model_as_of)
    return status


def _workers(reports: Reports, at: float) -> list[dict[str, Any]]:
    """Who told of themselves within a day, latest first."""
    told = [dict(of) for key, of in reports.items() if key.startswith(f"{WORKER}/")]
    for of in told:
        of["told"] = max(0.0, at - of["at"])
        of["runs"] = of["told"] <= FRESH
    return sorted((of for of in told if of["told"] < 86_400), key=lambda of: float(of["told"]))


def _partitions(facts: Facts) -> Iterator[Partition]:
    reports = facts.reports or {}
    for topic, number in ((INTERACTIONS, facts.sources), (EDITS, facts.item_partitions)):
        for partition in range(number):
            told = reports.get(partition_key(topic, partition), {})
            end, lag = told.get("log_end"), told.get("lag")
            if topic == INTERACTIONS and facts.bounds is not None and partition in facts.bounds:
                end = facts.bounds[partition][1]
                lag = None if "position" not in told else max(0, end - told["position"])
            yield Partition(
                f"{topic}-{partition}", told.get("worker"), None if not told else max(0.0, facts.at - told["at"]),
                told.get("position"), end, lag, told.get("due"), told.get("staleness"),
            )  # fmt: skip


# -- the mode ---------------------------------------------------------------------------------------


def reasons_of(facts: Facts) -> list[Reason]:
    """Everything that keeps the system from being in mode kappa."""
    found = [*facts.problems, *_of_indices(facts), *_of_log(facts)]
    if facts.reports is None:
        return found
    live = [of for of in _workers(facts.reports, facts.at) if of["runs"]]
    if not live:
        known = [of for of in facts.reports.values() if "worker" in of]
        last = max((float(of["at"]) for of in known), default=None)
        since = "ever" if last is None else f"for {facts.at - last:.0f} s"
        text = f"no worker has told of itself {since}: nothing is learned, questions are answered as of then"
        return [*found, Reason("lambda", "", text, "start the workers: `cco worker`; until then, " + REBUILD)]
    told = [Reason(**of) for worker in live for of in worker["reasons"]]
    spare = {"no partition is assigned yet"}  # of a worker more than there are partitions; what is not served shows
    found += [reason for reason in told if reason.text not in spare]
    return [*found, *_of_coverage(facts, {of.about for of in told if of.about and of.mode != "kappa"})]


def _of_indices(facts: Facts) -> Iterator[Reason]:
    if facts.indices is None:
        return
    there = {each.alias for each in facts.indices}
    for alias in facts.aliases:
        if alias not in there:
            yield Reason("lambda", "", f"there is no index {alias}", "`cco index create`; workers fill it")
    for each in facts.indices:
        if each.health == "red":
            yield Reason("lambda", "", f"the index {each.index} is not available in full (red)", "mend Elasticsearch")
        kind: Kind = "items" if each.alias in facts.aliases[:1] else "users"
        yield from map(reason_of, log_differences(each.index, each.log, signature(facts.logs, kind)))


def _of_log(facts: Facts) -> Iterator[Reason]:
    """Records that retention deleted before a state had seen them."""
    if facts.bounds is None:
        return
    if not facts.bounds:
        yield Reason("lambda", "", "Kafka has no topic of interactions", "`cco topics create`")
    for source, (begin, end) in sorted(facts.bounds.items()):
        position = (facts.reports or {}).get(partition_key(INTERACTIONS, source), {}).get("position")
        if position is not None and position < begin:
            about = f"{INTERACTIONS}-{source}"
            text = f"{about} begins at offset {begin}, and was applied up to {position}: {begin - position} are gone"
            remedy = "`cco rebuild --archive URL --tail --publish --seed`, and a longer retention of the log"
            yield Reason("lambda", about, text, remedy)
        elif position is not None and position > end:
            about = f"{INTERACTIONS}-{source}"
            text = (
                f"{about} ends at offset {end}, and was applied up to {position}: it was made anew, or has lost records"
            )
            yield Reason("lambda", about, text, "see `cco topics describe`, and README.md, When something fails")


def _of_coverage(facts: Facts, explained: set[str]) -> Iterator[Reason]:
    """Partitions that nobody tells of, or nobody lately while there was something to do."""
    for partition in _partitions(facts):
        if partition.name in explained:
            continue
        if partition.told is not None and partition.told <= FRESH:
            yield from _of_late_report(partition, partition.told)
            continue
        since = "was never served" if partition.told is None else f"has not been served for {partition.told:.0f} s"
        short = partition.told is not None and partition.told <= STALLED_SECONDS
        remedy = "" if short else "start a worker for it; the log of the workers says what keeps them from it"
        yield Reason("catching_up" if short else "lambda", partition.name, f"{partition.name} {since}", remedy)


def _of_late_report(partition: Partition, told: float) -> Iterator[Reason]:
    """A partition behind its log whose worker, `told` s ago, saw nothing wrong: it may have died since.

    What a log that never ceases got since a report is no lag: the worker that follows it tells again before long.
    """
    late = lag_reason(partition.name, partition.lag or 0, behind=told, stood=told)
    if late is not None:
        yield Reason(late.mode, late.about, f"{late.text}, and its worker was last heard of {told:.0f} s ago")


def as_document(status: Status) -> dict[str, Any]:
    """For `--json`."""
    shown = replace(status, versions=[], last_rebuild=None)
    rebuild = status.last_rebuild
    return asdict(shown) | {
        "versions": [_version(of) for of in status.versions],
        "last_rebuild": None if rebuild is None else _version(rebuild),
    }


def _version(of: Version) -> dict[str, Any]:
    return {"index": of.name, "role": of.role, "documents": of.documents, "rebuild": dict(of.rebuild)}
