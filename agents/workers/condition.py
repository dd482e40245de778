"""How a worker is: for Prometheus, for health checks and for people. Reads what is there, and blocks for nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from agents.health.modes import (
    FOLLOWING_SECONDS,
    REBUILD,
    Mode,
    Reason,
    fill_reason,
    lag_reason,
    mode_of,
    staleness_reason,
)
from agents.kafka.topics import EDITS, INTERACTIONS

if TYPE_CHECKING:
    from agents.workers.worker import Worker


class WorkerCondition:
    """Health, readiness, mode and numbers of a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._caught_up: dict[tuple[str, int], float] = {}  # clock time at which it last had no lag
        self._moved: dict[tuple[str, int], tuple[int, float]] = {}  # its position, and since when it is there
        self._unfilled: dict[int, float] = {}  # item partition: clock time since which it waits to be filled
        self._as_of: dict[int, float] = {}  # item partition: epoch seconds up to which everything is published

    def health(self) -> list[str]:
        """What has failed and will not mend itself."""
        return [reason.text for reason in self._health()]

    def readiness(self) -> list[str]:
        """What is not as it should be, a sentence each."""
        return [reason.text for reason in self.reasons()]

    def mode(self) -> Mode:
        """One word for it."""
        return mode_of(self.reasons())

    def reasons(self) -> list[Reason]:
        """What is not as it should be, and what that makes of the mode."""
        worker = self._worker
        now = time.monotonic()
        found = [*self._health(), *worker.pulse.silent(), *self._of_sources(), *self._of_assignment()]
        found += self._of_lags(now)
        if worker.elastic is not None:
            found += worker.elastic.reasons()
        return [*found, *self._of_rows(now)]

    def note(self) -> None:
        """Note who has no lag just now: looks are too rare to tell since when there is one."""
        self._note(time.monotonic(), self.lags(), self._positions())

    def _note(self, now: float, lags: Mapping[tuple[str, int], int], positions: Mapping[tuple[str, int], int]) -> None:
        for place, lag in lags.items():
            if lag == 0:
                self._caught_up[place], self._moved[place] = now, (positions.get(place, 0), now)

    def _health(self) -> Iterator[Reason]:
        failure = self._worker.failure
        if failure is not None:
            yield Reason("lambda", "", f"the worker stops: {failure}", "start it again; its log says more")
        yield from self._worker.pulse.hung()

    def _of_sources(self) -> Iterator[Reason]:
        users = self._worker.users
        for source, checkpoints in sorted(users.checkpoints().items()):
            about, why = f"interactions-{source}", checkpoints.shared.reason
            if why is not None:  # the stream goes on
                yield Reason("kappa", about, f"no shared copy of {about} can be made: {why}", "mend the shared place")
        for source, why in sorted(users.problems.items()):
            about = f"interactions-{source}"
            yield Reason("lambda", about, f"{about} is not served: {why}", "what the reason says, or " + REBUILD)

    def _of_assignment(self) -> Iterator[Reason]:
        worker = self._worker
        for partition in sorted(worker.items.fenced):
            about = f"edits-{partition}"
            yield Reason("catching_up", about, f"{about} is another worker's by now")
        if not worker.assignment:
            yield Reason("catching_up", "", "no partition is assigned yet")
        opened = {(worker.users.topic, s) for s in worker.users.owned()}
        opened |= {(worker.items.topic, p) for p in worker.items.owned()}
        if worker.elastic is not None:
            opened |= {(worker.elastic.metadata.topic, p) for p in worker.elastic.metadata.lags()}
        for tp in sorted(worker.assignment):
            served_elsewhere = tp.topic == worker.items.topic and tp.partition in worker.items.fenced
            refused = tp.topic == worker.users.topic and tp.partition in worker.users.problems
            if (tp.topic, tp.partition) not in opened and not served_elsewhere and not refused:
                text = f"{tp.topic}-{tp.partition} is being opened"
                yield Reason("catching_up", self._about(tp.topic, tp.partition), text)

    def _about(self, topic: str, partition: int) -> str:
        """A partition without its topic's prefix: what is said of one is the same in all stacks."""
        return f"{topic.removeprefix(self._worker.settings.topic_prefix)}-{partition}"

    def _of_lags(self, now: float) -> Iterator[Reason]:
        lags, positions, logged, clock = self.lags(), self._positions(), self._log_times(), time.time()
        self._note(now, lags, positions)
        for (topic, partition), lag in lags.items():
            place = (topic, partition)
            position = positions.get(place, 0)
            if self._moved.get(place, (-1, now))[0] != position:
                self._moved[place] = (position, now)
            # Since when it was last seen without a lag; but where events never cease, that may be never: what it
            # applies says better how far it is behind, as long as it applies something.
            behind, stood = now - self._caught_up.get(place, -inf), now - self._moved[place][1]
            if place in logged and stood <= FOLLOWING_SECONDS:
                behind = min(behind, max(0.0, clock - logged[place]))
            reason = lag_reason(f"{topic}-{partition}", lag, behind, stood)
            if reason is not None:
                yield Reason(reason.mode, self._about(topic, partition), reason.text, reason.remedy)

    def _positions(self) -> dict[tuple[str, int], int]:
        worker = self._worker
        found = {(worker.users.topic, source): of.position for source, of in worker.users.owned().items()}
        found |= {(worker.items.topic, number): of.position for number, of in worker.items.owned().items()}
        if worker.elastic is not None:
            metadata = worker.elastic.metadata
            found |= {(metadata.topic, p): metadata.position(p) or 0 for p in metadata.lags()}
        return found

    def _log_times(self) -> dict[tuple[str, int], float]:
        """When what was applied last was logged, epoch seconds, where something was applied in this life."""
        worker = self._worker
        sources = {(worker.users.topic, source): of.log_time for source, of in worker.users.owned().items()}
        items = {(worker.items.topic, number): of.log_time for number, of in worker.items.owned().items()}
        found = sources | items
        if worker.elastic is not None:
            metadata = worker.elastic.metadata
            found |= {(metadata.topic, number): at for number, at in metadata.log_times().items()}
        return {place: at for place, at in found.items() if at is not None}

    def _of_rows(self, now: float) -> Iterator[Reason]:
        for number, of_items in self._worker.items.owned().items():
            about = f"edits-{number}"
            if not of_items.inbox.filled:
                yield fill_reason(about, of_items.inbox.waiting, now - self._unfilled.setdefault(number, now))
                continue
            self._unfilled.pop(number, None)
            reason = staleness_reason(about, of_items.facts.staleness(now), self._worker.config.max_staleness)
            if reason is not None:
                yield reason

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

    # -- for others ---------------------------------------------------------------------------------

    def partitions(self, now: float) -> dict[str, dict[int, dict[str, Any]]]:
        """By topic, without its prefix, what there is to tell of each partition at `now`, epoch seconds.

        `as_of`: up to when everything that was in the log is applied, of edits also counted and stored; it is left
        out while that is not known.
        """
        worker, clock = self._worker, time.monotonic()
        found: dict[str, dict[int, dict[str, Any]]] = {INTERACTIONS: {}, EDITS: {}}
        for source, partition in worker.users.owned().items():
            end = worker.users.log_end(source)
            told: dict[str, Any] = {"position": partition.position, "log_end": end, "lag": end - partition.position}
            as_of = now if partition.position >= end else partition.log_time
            found[INTERACTIONS][source] = told | ({} if as_of is None else {"as_of": min(now, as_of)})
        publishing = worker.elastic is None or not list(worker.elastic.problems())
        for number, of_items in worker.items.owned().items():
            lag, staleness = worker.items.log_end(number) - of_items.position, of_items.facts.staleness(clock)
            if publishing and of_items.inbox.filled and (lag == 0 or of_items.log_time is not None):
                self._as_of[number] = (now if lag == 0 else min(now, of_items.log_time or now)) - staleness
            told = {"lag": lag, "due": of_items.facts.due, "staleness": staleness, "filled": of_items.inbox.filled}
            found[EDITS][number] = told | ({"as_of": self._as_of[number]} if number in self._as_of else {})
        return found

    def status(self) -> dict[str, Any]:
        """By partition: where it stands and how large it is."""
        worker, now = self._worker, time.monotonic()
        reasons = self.reasons()
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
            "mode": mode_of(reasons),
            "problems": [reason.text for reason in reasons],
            "what_to_do": list(dict.fromkeys(reason.remedy for reason in reasons if reason.remedy)),
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
