"""The audit: what is published and what workers keep, compared document by document with a batch rebuild of the log.

Events may go on meanwhile. What differs is looked at again, with a rebuild of the log as it is then, until it does not,
or for `wait` seconds: a row is never older than `max_staleness`, so what still differs then, and was not written since,
is wrong. Where nothing arrives in the log, everything must be equal once workers have published what was due.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elasticsearch import Elasticsearch

from agents.archive.archive import Archive
from agents.audit.states import StateCheck, check_states
from agents.audit.truth import Truth, folded_items, log_bounds, truth_of_log, user_body
from agents.kafka.client import KafkaProblem
from agents.kafka.control import ask_to_send_again
from agents.kafka.topics import INTERACTIONS
from agents.settings import Settings
from cco.config import Config
from model_sync.elastic_audit import (
    Difference,
    Document,
    Found,
    ItemCheck,
    Metadata,
    scan,
    user_difference,
    user_lines,
    write,
)
from model_sync.elastic_client import IndexNames

AGAIN_SECONDS = 1.0  # between two looks at what differs, at least

Version = tuple[int, int] | None
_Key = tuple[str, str]  # "items" or "users", and the id


@dataclass(slots=True)
class Audit:
    """What an audit found. `moving` documents differed and were being written: the stream was at them."""

    offsets: dict[str, int] = field(default_factory=dict)
    events: int = 0
    items: int = 0  # documents compared
    users: int = 0
    states: list[StateCheck] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    moving: int = 0
    notes: list[str] = field(default_factory=list)
    repaired: int = 0  # documents written
    left: int = 0  # that somebody else wrote meanwhile
    rounds: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything that was compared is as it should be."""
        return not self.differences and not any(check.problem for check in self.states)


@dataclass(slots=True)
class _Round:
    """One comparison of the whole index."""

    truth: Truth
    items: ItemCheck
    found: dict[_Key, Found]
    users: int


class Auditor:
    """Compares, and repairs. Methods raise KafkaProblem, ArchiveError, and what the client of Elasticsearch raises."""

    def __init__(
        self,
        config: Config,
        settings: Settings,
        client: Elasticsearch,
        names: IndexNames,
        *,
        archive: Archive | None = None,
        threads: int = 1,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`archive`: what it has is not read from the log. `tell` hears of each step, in a few words."""
        self._config, self._settings, self._client, self._names = config, settings, client, names
        self._archive, self._threads, self._tell = archive, threads, tell
        self._truth: Truth | None = None

    def run(self, wait: float, repair: bool = False, folders: Sequence[Path] = ()) -> Audit:
        """Compare everything, for up to `wait` seconds more while something differs; with `repair`, mend the index."""
        audit = Audit()
        last = self._settle(audit, wait)
        if repair and audit.differences:
            self._tell("repairing")
            self._repair(last, audit)
            asyncio.run(ask_to_send_again(self._config, self._settings))
            last = self._settle(audit, wait)
        self._tell("comparing states")
        bounds = log_bounds(self._config, self._settings)
        audit.states, differences = check_states(
            self._config, self._settings, folders, bounds, self._threads, self._archive
        )
        audit.differences += differences
        audit.notes += self._not_compared(audit.states)
        return audit

    def _not_compared(self, states: Sequence[StateCheck]) -> list[str]:
        """What there is to say of partitions of which no state was found where the audit looks."""
        sources = range(self._config.retention.source_partitions)
        missing = sorted(set(sources) - {check.source for check in states})
        if not missing:
            return []
        of = "" if len(missing) == len(sources) else " of " + ", ".join(f"{INTERACTIONS}-{s}" for s in missing)
        return [f"no state{of} was compared: there is no shared copy (`worker.share`), and no --state has one"]

    # -- comparing ----------------------------------------------------------------------------------

    def _settle(self, audit: Audit, wait: float) -> _Round:
        """Rounds until nothing differs or `wait` seconds are over; `audit` learns what is left."""
        until = time.monotonic() + wait
        first = last = self._round(audit)
        while last.found and time.monotonic() < until:
            time.sleep(min(AGAIN_SECONDS, max(0.0, until - time.monotonic())))
            last = self._round(audit)
        still = last.truth.ends == first.truth.ends
        wrong = {key: found for key, found in last.found.items() if still or _untouched(first.found.get(key), found)}
        audit.differences = [difference for key in sorted(wrong) for difference in wrong[key].differences]
        audit.moving = len(last.found) - len(wrong)
        last.found = wrong
        return last

    def _round(self, audit: Audit) -> _Round:
        """Rebuild, if the log has grown, and compare."""
        bounds = log_bounds(self._config, self._settings)
        ends = {source: end for source, (_, end) in bounds.items()}
        if self._truth is None or self._truth.ends != ends:
            self._tell("rebuilding from the log")
            self._truth = truth_of_log(self._config, self._settings, ends, self._threads, self._archive)
        truth = self._truth
        self._tell("comparing items")
        items = ItemCheck(self._config, truth.rows, self._metadata(audit))
        found: dict[_Key, Found] = {}
        for document in scan(self._client, self._names.items):
            of = items.check(document)
            if of is not None:
                found["items", document.key] = of
        for of in items.missing():
            found["items", of.document.key] = of
        self._tell("comparing users")
        users = self._users(truth, found)
        audit.offsets = {f"{INTERACTIONS}-{source}": end for source, end in sorted(ends.items())}
        audit.events, audit.items, audit.users = truth.events, items.compared, users
        audit.rounds += 1
        return _Round(truth, items, found, users)

    def _metadata(self, audit: Audit) -> dict[str, Metadata] | None:
        try:
            return folded_items(self._config, self._settings)
        except KafkaProblem as error:
            note = f"metadata of items is not compared: {error}"
            if note not in audit.notes:
                audit.notes.append(note)
            return None

    def _users(self, truth: Truth, found: dict[_Key, Found]) -> int:
        """Compare all documents of users; answers how many there are."""
        users = truth.model.users
        index = {users.name(user): user for user in range(len(users))}
        seen: set[str] = set()
        compared = 0
        for document in scan(self._client, self._names.users):
            compared += 1
            seen.add(document.key)
            self._user(truth, index.get(document.key), document, found)
        for user in index.keys() - seen:
            self._user(truth, index[user], Document(user, {}, None), found)
        return compared

    @staticmethod
    def _user(truth: Truth, user: int | None, document: Document, found: dict[_Key, Found]) -> None:
        source = truth.sources[user] if user is not None else int(document.source.get("source", 0))
        difference = user_difference(document, user_body(truth, user), truth.ends.get(source, 0))
        if difference is not None:
            found["users", document.key] = Found(document, [difference])

    # -- repairing ----------------------------------------------------------------------------------

    def _repair(self, last: _Round, audit: Audit) -> None:
        """Write anew what differs, unless somebody else writes it; then the workers say everything once more.

        What we write is as of the rebuild, and a worker may have published something newer just before; it says
        that again afterwards.
        """
        items = [found for (kind, _), found in last.found.items() if kind == "items"]
        written = write(self._client, self._names.items, (last.items.lines(found) for found in items))
        told = write(self._client, self._names.users, self._user_actions(last))
        audit.repaired, audit.left = written[0] + told[0], written[1] + told[1]

    def _user_actions(self, last: _Round) -> list[list[bytes]]:
        truth, users = last.truth, last.truth.model.users
        index = {users.name(user): user for user in range(len(users))}
        actions = []
        for (kind, key), found in last.found.items():
            if kind != "users":
                continue
            user = index.get(key)
            source = truth.sources[user] if user is not None else int(found.document.source.get("source", 0))
            end = truth.ends.get(source, 0)
            body = {**user_body(truth, user), "source": source, "position": end}
            actions.append(user_lines(found.document, body, end))
        return actions


def _untouched(before: Found | None, after: Found) -> bool:
    """Whether a document that differed at first has not been written since."""
    return before is not None and before.document.version == after.document.version
