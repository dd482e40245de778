"""How a worker is: for Prometheus, for health checks and for people. Reads what is there, and blocks for nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from agents.metrics import Mode

if TYPE_CHECKING:
    from agents.worker import Worker

MOST_LAG_SECONDS = 5.0  # that a partition may lag behind its log and still count as following it


class WorkerCondition:
    """Health, readiness, mode and numbers of a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._caught_up: dict[tuple[str, int], float] = {}  # clock time at which it last had no lag

    def health(self) -> list[str]:
        """What has failed and will not mend itself."""
        worker = self._worker
        problems = [] if worker.failure is None else [f"the worker stops: {worker.failure}"]
        return problems

    def readiness(self) -> list[str]:
        """What is not as it should be, a sentence each."""
        worker = self._worker
        problems = self.health()
        for source, checkpoints in sorted(worker.users.checkpoints().items()):
            if checkpoints.shared.reason is not None:
                problems.append(f"no shared copy of interactions-{source} can be made: {checkpoints.shared.reason}")
        problems += [f"interactions-{s} is not served: {reason}" for s, reason in sorted(worker.users.problems.items())]
        problems += [f"edits-{p} is another worker's by now" for p in sorted(worker.items.fenced)]
        if not worker.assignment:
            problems.append("no partition is assigned yet")
        opened = {(worker.users.topic, s) for s in worker.users.owned()}
        opened |= {(worker.items.topic, p) for p in worker.items.owned()}
        if worker.elastic is not None:
            opened |= {(worker.elastic.metadata.topic, p) for p in worker.elastic.metadata.lags()}
        for tp in sorted(worker.assignment):
            place = (tp.topic, tp.partition)
            served_elsewhere = tp.topic == worker.items.topic and tp.partition in worker.items.fenced
            if place not in opened and not served_elsewhere and tp.partition not in worker.users.problems:
                problems.append(f"{tp.topic}-{tp.partition} is being opened")
        now = time.monotonic()
        for (topic, partition), lag in self.lags().items():
            behind = now - self._caught_up.setdefault((topic, partition), now)
            if lag == 0:
                self._caught_up[topic, partition] = now
            elif behind > MOST_LAG_SECONDS:
                problems.append(f"{topic}-{partition} is {lag} records behind its log")
        if worker.elastic is not None:
            problems += worker.elastic.problems()
        for number, of_items in worker.items.owned().items():
            if not of_items.inbox.filled:
                problems.append(f"edits-{number} waits to be filled by the user stages")
            elif of_items.facts.staleness(now) > worker.config.max_staleness:
                problems.append(f"edits-{number} has rows that are older than max_staleness")
        return problems

    def lags(self) -> dict[tuple[str, int], int]:
        """Records of the log that are not applied, by topic and partition."""
        worker, found = self._worker, {}
        for source, partition in worker.users.owned().items():
            found[worker.users.topic, source] = worker.users.log_end(source) - partition.position
        for number, of_items in worker.items.owned().items():
            found[worker.items.topic, number] = worker.items.log_end(number) - of_items.position
        if worker.elastic is not None:
            metadata = worker.elastic.metadata
            found |= {(metadata.topic, partition): lag for partition, lag in metadata.lags().items()}
        return found

    def mode(self) -> Mode:
        """One word for it."""
        worker = self._worker
        if worker.failure is not None or not worker.ready:
            return "stopped"
        if worker.users.problems:
            return "needs_rebuild"
        problems = self.readiness()
        if not problems:
            return "kappa"
        return "starting" if any("opened" in p or "assigned" in p or "filled" in p for p in problems) else "catching_up"

    def status(self) -> dict[str, Any]:
        """By partition: where it stands and how large it is."""
        worker, now = self._worker, time.monotonic()
        sources = {}
        for source, partition in worker.users.owned().items():
            stage = partition.stage
            sources[str(source)] = {
                "position": partition.position,
                "log_end": worker.users.log_end(source),
                "acknowledged": partition.acknowledged,
                "began_at": partition.restored_to,
                "members": stage.members,
                "users": len(partition.users),
                "items": len(partition.items),
                "filling": partition.filling,
            }
        items = {}
        for number, of_items in worker.items.owned().items():
            items[str(number)] = {
                "claim": of_items.inbox.claim,
                "position": of_items.position,
                "log_end": worker.items.log_end(number),
                "sources": list(of_items.inbox.position),
                "filled": of_items.inbox.filled,
                "countable": of_items.inbox.countable,
                "members": of_items.facts.members,
                "due": of_items.facts.due,
                "staleness": of_items.facts.staleness(now),
                "exact": worker.items.is_exact(number),
            }
        return {
            "name": worker.settings.name,
            "mode": self.mode(),
            "problems": self.readiness(),
            "interactions": sources,
            "not_served": {str(s): reason for s, reason in worker.users.problems.items()},
            "edits": items,
            "fenced": sorted(worker.items.fenced),
        }

    def refresh_metrics(self) -> None:
        """Set the gauges, before a scrape."""
        worker, metrics, now = self._worker, self._worker.metrics, time.monotonic()
        for (topic, partition), lag in self.lags().items():
            metrics.set_lag(topic, partition, lag)
        memory: dict[str, int] = {}
        parts = [of_source.nbytes for of_source in worker.users.owned().values()]
        for number, of_items in worker.items.owned().items():
            metrics.due_rows.labels(number).set(of_items.facts.due)
            metrics.staleness.labels(number).set(of_items.facts.staleness(now))
            parts.append(of_items.facts.nbytes)
        for part in parts:
            for name, size in part.items():
                memory[name] = memory.get(name, 0) + size
        metrics.set_memory(memory)
        for source, checkpoints in worker.users.checkpoints().items():
            metrics.snapshot_age.labels(source).set(now - checkpoints.report.committed_at)
            metrics.snapshot_longest_pause.labels(source).set(checkpoints.report.longest_pause)
        metrics.set_mode(self.mode())
