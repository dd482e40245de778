"""Generated configurations and event histories: small worlds, so that everything collides.

A case is a configuration and events (user id, event type or "$delete" or "$clock", item id, time), with
duplicates, disorder, ties in time, removals, deletions, clock events and passing visitors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from cco.config import Config, Indicator, Priors, Retention
from cco.events import CLOCK, DELETE_USER, EventBatch
from cco.vocabulary import Vocabulary
from tests.oracle import Oracle

Event = tuple[str, str, str, int]

NAMES = ("buy", "view", "like")
TYPES = ("buy", "view", "like", "return")
USERS = (*(f"u{k}" for k in range(7)), "ü", "用户")
ITEMS = ("i", "i1", "i10", "i2", "I", "ï", "品", "\U0001f600", '"\\\x1f', "\uffee")
LATEST = 60


@st.composite
def configs(draw: st.DrawFn, expiring: bool = False) -> Config:
    """Every option, in ranges where it bites; `expiring`: there are windows, far shorter than the longest logs."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, 3))]
    sampling = draw(st.sampled_from(("uniform", "recent")))
    spans = st.none() | st.integers(1, LATEST // 2) | st.integers(100, 400)  # wide buckets of priors too
    windows = st.integers(1, LATEST // 3) if expiring else spans
    popular: st.SearchStrategy[Any] = st.just("all") | spans
    indicators = {name: _indicator(draw, name) for name in names}
    primary = names[0]
    return Config(
        primary=primary,
        indicators=indicators,
        retention=Retention(
            sampling=sampling,  # type: ignore[arg-type]
            window=draw(windows) if sampling == "recent" else None,
            visitor_window=draw(windows),
            seed=draw(st.integers(0, 3)),
            min_primary=draw(st.integers(1, min(3, indicators[primary].user_cap))),
            source_partitions=draw(st.integers(1, 3)),
        ),
        priors=Priors(popular=draw(popular), recent=draw(spans), trending=draw(spans), hot=draw(spans)),
        anti_correlations=draw(st.booleans()),
    )


def _indicator(draw: st.DrawFn, name: str) -> Indicator:
    roles = {kind: draw(st.sampled_from(("adds", "", "", "removes"))) for kind in TYPES if kind != name}
    return Indicator(
        events=(name, *(kind for kind, role in roles.items() if role == "adds")),
        removed_by=tuple(kind for kind, role in roles.items() if role == "removes"),
        user_cap=draw(st.integers(1, 4)),
        top_k=draw(st.integers(1, 4)),
        min_llr=draw(st.sampled_from((0.0, 0.0, 0.5, 2.0))),
    )


@st.composite
def events(draw: st.DrawFn, config: Config, max_size: int = 60, expiring: bool = False) -> list[Event]:
    """A log in its order: any times, times in order, or times in order but for what comes late.

    `expiring`: it is long, in order, and of many users, so that time goes on after the last event of most of them.
    """
    kinds = st.sampled_from((*config.event_types * 4, "$delete", "$clock"))
    users = st.sampled_from(USERS[: draw(st.sampled_from((5, len(USERS)) if expiring else (1, 2, 3, 5, len(USERS))))])
    items = st.sampled_from(ITEMS[: draw(st.sampled_from((2, 4, 6, len(ITEMS))))])
    latest = LATEST if expiring else draw(st.sampled_from((2, LATEST // 4, LATEST)))  # few times: many ties
    lateness = draw(st.sampled_from((0, LATEST // 4) if expiring else (None, 0, LATEST // 4)))
    moments = st.tuples(st.integers(0, latest), st.integers(0, lateness or 0))
    drawn = draw(
        st.lists(
            st.tuples(users, kinds, items, moments),
            min_size=20 if expiring else draw(st.sampled_from((0, 20))),
            max_size=max_size,
        )
    )
    if lateness is not None:
        drawn.sort(key=lambda event: sum(event[3]))
    log = [(user, kind, item, time) for user, kind, item, (time, _) in drawn]
    late = draw(st.booleans())
    if log and late:
        log += draw(  # duplicates that come late
            st.lists(st.sampled_from(log), max_size=10)
        )
    return log


@st.composite
def cases(draw: st.DrawFn) -> tuple[Config, list[Event]]:
    """A configuration and a log for it."""
    config = draw(configs())
    return config, draw(events(config))


@st.composite
def expiring_cases(draw: st.DrawFn) -> tuple[Config, list[Event]]:
    """Such ones in which much of what is retained expires, and most of it when its user has long had the last event."""
    config = draw(configs(expiring=True))
    return config, draw(events(config, expiring=True))


def to_batch(config: Config, log: Sequence[Event], users: Vocabulary, items: Vocabulary) -> EventBatch:
    """The events as columns; ids are interned in their order."""
    special = {"$delete": DELETE_USER, "$clock": CLOCK}
    plain = [event for event in log if event[1] not in special]
    items.intern([item for _, _, item, _ in plain])
    return EventBatch(
        users=np.array([0 if kind == "$clock" else users.intern([user])[0] for user, kind, _, _ in log], np.uint32),
        items=np.array([0 if kind in special else items.index(item) for _, kind, item, _ in log], np.uint32),
        types=np.array([special[kind] if kind in special else config.event_types.index(kind)
                        for _, kind, _, _ in log], np.int16),
        times=np.array([time for _, _, _, time in log], np.uint32),
    )  # fmt: skip


def to_batches(
    config: Config, log: Sequence[Event], users: Vocabulary, items: Vocabulary, size: int
) -> list[EventBatch]:
    """The same in batches of `size` events."""
    return [to_batch(config, log[at : at + size], users, items) for at in range(0, len(log), size)]


def oracle_of(config: Config, log: Sequence[Event]) -> Oracle:
    """The oracle after the whole log."""
    oracle = Oracle(config)
    for event in log:
        oracle.apply(*event)
    return oracle
