"""Do two indices of the same model rank alike? Random queries that use everything, and where the answers differ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cco.config import Config
from model_sync.backfill import BACKFILLS
from model_sync.contract import Boost, Hit, Index, Query, Range, Rule


def random_queries(
    config: Config, items: Sequence[str], properties: Mapping[str, Sequence[Any]], count: int, seed: int = 1
) -> Iterator[Query]:
    """`properties`: some values by name; those that are numbers, or ISO dates, are asked for by ranges too."""
    random = np.random.default_rng(seed)

    def one_in(n: int) -> bool:
        return bool(random.integers(n) == 0)

    def some(values: Sequence[Any], most: int) -> list[Any]:
        return [values[k] for k in random.integers(0, len(values), int(random.integers(1, most + 1))).tolist()]

    def rule() -> tuple[str, tuple[Any, ...]]:
        name = some(list(properties), 1)[0]
        return name, tuple(some(properties[name], 3))

    def boosts() -> tuple[Boost, ...]:
        return tuple(Boost(*rule(), float(random.uniform(0.2, 5))) for _ in range(2))

    def span() -> Range:
        numeric = [name for name, values in properties.items() if not isinstance(values[0], str | bool)]
        name = some(numeric, 1)[0]
        low, high = sorted(some(properties[name], 1) + some(properties[name], 1))
        return Range(name, low, None if one_in(3) else high, missing=one_in(2))

    numeric = any(not isinstance(values[0], str | bool) for values in properties.values())
    for _ in range(count):
        asked = {name: some(items, 30) for name in config.indicator_names if not one_in(3)}
        yield Query(
            history=asked,
            weights={name: float(random.uniform(0.1, 3)) for name in asked if one_in(3)},
            include=(Rule(*rule(), "all" if one_in(4) else "any"),) if properties and one_in(3) else (),
            exclude=(Rule(*rule()),) if properties and one_in(4) else (),
            boost=boosts() if properties and one_in(3) else (),
            ranges=(span(),) if numeric and one_in(3) else (),
            exclude_items=some(items, 40) if one_in(2) else (),
            candidates=some(items, 200) if one_in(8) else None,
            num=int(random.choice([1, 10, 20, 100])),
            offset=int(random.choice([0, 0, 0, 5, 30, 300])),
            priors={name: float(random.uniform(0, 0.5)) for name in config.prior_names if one_in(3)},
            backfill=str(random.choice(["auto", *config.prior_names, *BACKFILLS])) if not one_in(5) else None,
            fields=None if one_in(2) else tuple(some(list(properties), 2)) if properties else (),
            explain=one_in(4),
            shuffle=float(random.random()),
        )


def differing(one: Index, other: Index, queries: Iterable[Query]) -> list[tuple[Query, list[Hit], list[Hit]]]:
    """The queries that the two do not answer alike, in any part of any hit."""
    found = []
    for query in queries:
        hits, others = one.search(query), other.search(query)
        if hits != others:
            found.append((query, hits, others))
    return found
