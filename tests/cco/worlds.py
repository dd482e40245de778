"""Small worlds for the simulation, drawn from a seed, and the truth about them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

import numpy as np

from cco.config import Config, Indicator, Priors, Retention
from cco.item_stage import ItemStage
from cco.lists import Lists
from cco.vocabulary import Vocabulary
from tests.cco.histories import ITEMS, LATEST, NAMES, TYPES, USERS, Event
from tests.cco.simulated_agents import Fields
from tests.cco.test_pipeline import wanted_fields
from tests.oracle import Histories, Oracle, partition_of

partition_among = lru_cache(partition_of)


def draw_config(rng: Random) -> Config:
    """As `histories.configs`, but drawn in a tenth of the time, and with small durations."""
    names = rng.sample(NAMES, rng.randint(1, 3))
    sampling = rng.choice(("uniform", "recent"))
    indicators = {}
    for name in names:
        roles = {kind: rng.choice(("adds", "", "", "", "", "removes")) for kind in TYPES if kind != name}
        indicators[name] = Indicator(
            events=(name, *(kind for kind, role in roles.items() if role == "adds")),
            removed_by=tuple(kind for kind, role in roles.items() if role == "removes"),
            user_cap=rng.randint(1, 4),
            top_k=rng.randint(1, 4),
        )

    def span() -> int | None:
        return rng.choice((None, rng.randint(1, LATEST), rng.randint(1, LATEST), rng.randint(100, 400)))

    return Config(
        primary=names[0],
        indicators=indicators,
        retention=Retention(
            sampling=sampling,  # type: ignore[arg-type]
            window=span() if sampling == "recent" else None,
            visitor_window=span(),
            min_primary=rng.randint(1, min(2, indicators[names[0]].user_cap)),
            source_partitions=rng.choice((1, 1, 2, 3)),
        ),
        priors=Priors(popular=rng.choice(("all", span())), recent=span(), trending=span(), hot=span()),
        anti_correlations=rng.random() < 0.5,
        max_staleness=10.0,
    )


def draw_logs(rng: Random, config: Config) -> list[list[Event | None]]:
    """The log of each source. A clock event is in one of them, and so is a bad record (None)."""
    kinds = (*config.event_types * 5, *[config.primary] * 5, "$delete", "$clock")
    users, items = USERS[: rng.choice((3, 5, 9))], ITEMS[: rng.choice((2, 4, 6, 10))]
    latest = rng.choice((LATEST // 4, LATEST, 2 * LATEST))
    times = [rng.randint(0, latest) for _ in range(rng.choice((15, 40, 60)))]
    if rng.random() < 0.9:
        lateness = rng.choice((0, LATEST // 10))
        times.sort(key=lambda time: time + rng.randint(0, lateness))
    events = [(rng.choice(users), rng.choice(kinds), rng.choice(items), time) for time in times]
    if rng.random() < 0.3:
        events += rng.choices(events, k=5)  # duplicates that come late
    logs: list[list[Event | None]] = [[] for _ in range(config.retention.source_partitions)]
    for event in events:
        log = rng.choice(logs) if event[1] == "$clock" else logs[partition_among(event[0], len(logs))]
        log.append(event)
        if rng.random() < 0.05:
            log.append(None)
    return logs


Counts = dict[tuple[int, str], int]  # (indicator or prior, item) -> what is not 0


@dataclass
class Known:
    """What an item stage has to know."""

    histories: dict[str, list[set[str]]] = field(default_factory=dict)  # of users with an own item, by indicator
    holders: dict[str, set[str]] = field(default_factory=dict)  # own items and who has them
    members: list[int] = field(default_factory=list)  # by source, and so on
    counts: list[Counts] = field(default_factory=list)
    priors: list[Counts] = field(default_factory=list)  # of own items


def known_by(stage: ItemStage, config: Config) -> Known:
    """What an item stage knows."""
    state, users, items = stage._state, stage._users, stage._items
    kinds, known = len(config.indicator_names), Known()
    for user in range(len(users)):
        lists = [_names(state.primary, user, items)]
        lists += [_names(state.others, user * (kinds - 1) + t, items) for t in range(kinds - 1)]
        if any(lists):
            known.histories[users.name(user)] = lists
    for item in range(len(items)):
        if holders := _names(state.holders, item, users):
            known.holders[items.name(item)] = holders
    for source in range(config.retention.source_partitions):
        known.members.append(int(stage._source_members[source]))
        for told, columns in ((known.counts, stage._source_counts), (known.priors, stage._source_priors)):
            found = np.argwhere(columns[source])
            told.append({(int(t), items.name(int(i))): int(columns[source, t, i]) for t, i in found})
    return known


def _names(lists: Lists, key: int, names: Vocabulary) -> set[str]:
    start, length = lists.head[key].tolist() if key < len(lists.head) else (0, 0)
    return set(names.names(lists.data[start : start + length]))


class Truth:
    """What the oracle says of any position of the logs."""

    def __init__(self, config: Config, logs: list[list[Event | None]], partitions: int) -> None:
        self._config, self._partitions = config, partitions
        self._oracles = [[_after(Oracle(config), [], source)] for source in range(len(logs))]  # by source and offset
        for source, log in enumerate(logs):
            for event in log:
                self._oracles[source].append(_after(self._oracles[source][-1], [event] if event else [], source))
        self._fields: dict[tuple[int, ...], Fields] = {}
        self._of_source: dict[tuple[int, int], tuple[list[str], Counts, Counts]] = {}

    def fields_at(self, position: tuple[int, ...]) -> Fields:
        """The fields that an exact index holds at a position."""
        if position not in self._fields:
            oracle = Oracle(self._config)
            for source, offset in enumerate(position):
                one = self._oracles[source][offset]
                oracle.users.update(one.users)
                oracle.partition.update(one.partition)
                oracle.watermarks[source] = one.watermarks[source]
            self._fields[position] = wanted_fields(oracle)
        return self._fields[position]

    def known_at(self, position: tuple[int, ...], partition: int) -> Known:
        """What the item stage of an item partition has to know at a position."""
        known, names = Known(), self._config.indicator_names
        for source, offset in enumerate(position):
            members, counts, priors = self._source_at(source, offset)
            known.members.append(len(members))
            known.counts.append(counts)
            known.priors.append({key: n for key, n in priors.items() if self._is_own(key[1], partition)})
            for user in members:
                history = self._oracles[source][offset].users[user]
                own = [item for item in history[names[0]] if self._is_own(item, partition)]
                if own:
                    known.histories[user] = [set(history[name]) for name in names]
                for item in own:
                    known.holders.setdefault(item, set()).add(user)
        return known

    def _is_own(self, item: str, partition: int) -> bool:
        return partition_among(item, self._partitions) == partition

    def _source_at(self, source: int, offset: int) -> tuple[list[str], Counts, Counts]:
        """Members, counts and priors of one source."""
        if (source, offset) not in self._of_source:
            oracle, config = self._oracles[source][offset], self._config
            members = [user for user in oracle.users if oracle.in_u(user)]
            counts: Counter[tuple[int, str]] = Counter()
            priors: Counter[tuple[int, str]] = Counter()
            for user in members:
                for t, name in enumerate(config.indicator_names):
                    counts.update((t, item) for item in oracle.users[user][name])
                for item, time in oracle.users[user][config.primary].items():
                    for p, prior in enumerate(config.prior_names):
                        priors[p, item] += oracle._prior(prior, source, time)
            self._of_source[source, offset] = members, dict(counts), {key: n for key, n in priors.items() if n}
        return self._of_source[source, offset]


def _after(oracle: Oracle, events: list[Event], source: int) -> Oracle:
    """The state of `oracle` after more events, beside it."""
    users: dict[str, Histories] = {u: {name: dict(h) for name, h in hs.items()} for u, hs in oracle.users.items()}
    found = Oracle(oracle.config, users, dict(oracle.partition))
    found.watermarks = oracle.watermarks.copy()
    for event in events:
        found.apply(*event, source=source)
    return found
