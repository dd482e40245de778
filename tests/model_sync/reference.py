"""An index as a few dictionaries, scored by brute force: slow, and easy to see that it is right."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import numpy as np

from cco.config import Config
from cco.rows import Patches, Rows
from cco.vocabulary import Vocabulary
from model_sync.contract import Boost, Contribution, Hit, Query, Range, Rule, backfill_prior

Entries = dict[str, float]  # feature or prior -> weight
Fields = Mapping[str, Mapping[str, Mapping[str, float]]]  # item -> field -> entries


def truncated(weight: float) -> float:
    """To float32, then the low 15 bits cleared."""
    bits = np.array([weight], np.float32).view(np.uint32) & np.uint32(0xFFFF8000)
    return float(bits.view(np.float32)[0])


def patches(config: Config, items: Vocabulary, fields: Fields) -> Patches:
    """The patch that makes these the named fields of the named items; all ids are interned."""
    names = (*config.indicator_names, "priors")
    item: list[int] = []
    field: list[int] = []
    start = [0]
    feature: list[int] = []
    weight: list[float] = []
    for i, of_item in sorted((int(items.intern([name])[0]), of_item) for name, of_item in fields.items()):
        for name, entries in sorted(of_item.items(), key=lambda pair: names.index(pair[0])):
            kept = {x: truncated(w) for x, w in entries.items()}
            for x, w in sorted(kept.items(), key=lambda entry: (-entry[1], entry[0].encode())):
                feature.append(config.prior_names.index(x) if name == "priors" else int(items.intern([x])[0]))
                weight.append(w)
            item.append(i)
            field.append(names.index(name))
            start.append(len(feature))
    return Patches(
        (0,),
        Rows(
            np.array(item, np.uint32),
            np.array(field, np.uint8),
            np.array(start, np.int64),
            np.array(feature, np.uint32),
            np.array(weight, np.float32),
        ),
    )


def listed(config: Config, items: Vocabulary, rows: Rows) -> list[tuple[str, str, list[tuple[str, float]]]]:
    """Rows as (item, field, entries), in their order."""
    names = (*config.indicator_names, "priors")
    found = []
    for r in range(len(rows)):
        field = names[rows.field[r]]
        part = slice(rows.start[r], rows.start[r + 1])
        named = config.prior_names if field == "priors" else items.names(range(len(items)))
        features = [named[x] for x in rows.feature[part].tolist()]
        found.append(
            (items.name(int(rows.item[r])), field, list(zip(features, rows.weight[part].tolist(), strict=True)))
        )
    return found


class Reference:
    """What an `Index` must do."""

    def __init__(self, config: Config, items: Vocabulary) -> None:
        self.config = config
        self.items = items
        self.fields: dict[str, dict[str, Entries]] = {}
        self.metadata: dict[str, dict[str, object]] = {}
        self.deleted: set[str] = set()

    def apply(self, given: Patches) -> None:
        for item, field, entries in listed(self.config, self.items, given.rows):
            self.fields.setdefault(item, {})[field] = dict(entries)

    def put_items(self, items: Mapping[str, Mapping[str, object]]) -> None:
        for item, properties in items.items():
            self.metadata[item] = {k: v for k, v in properties.items() if v is not None}
            self.deleted.discard(item)

    def update_items(self, items: Mapping[str, Mapping[str, object]]) -> None:
        for item, properties in items.items():
            self.put_items({item: {**self.metadata.get(item, {}), **properties}})

    def unset(self, items: Mapping[str, Iterable[str]]) -> None:
        for item, names in items.items():
            for name in names:
                self.metadata.get(item, {}).pop(name, None)

    def delete_items(self, ids: Iterable[str]) -> None:
        for item in ids:
            self.metadata.pop(item, None)
            self.deleted.add(item)

    def properties(self, item: str) -> dict[str, object] | None:
        return self.metadata.get(item)

    def __len__(self) -> int:
        there = {item for item, fields in self.fields.items() if any(fields.values())} | self.metadata.keys()
        return len(there - self.deleted)

    def rows(self) -> list[tuple[str, str, list[tuple[str, float]]]]:
        names = (*self.config.indicator_names, "priors")
        found = []
        for item in sorted(self.fields, key=lambda name: self.items.index(name) or 0):
            for field in names:
                entries = self.fields[item].get(field)
                if entries:
                    found.append((item, field, sorted(entries.items(), key=lambda e: (-e[1], e[0].encode()))))
        return found

    def search(self, query: Query) -> list[Hit]:
        eligible = [item for item in self.fields.keys() | self.metadata.keys() if self._eligible(item, query)]
        from_history = {item: self._from_history(item, query) for item in eligible}
        best = max(map(_score, from_history.values()), default=0.0)
        boosts: dict[str, float] = {}
        for prior, share in query.priors.items():
            top = max((self._prior(item, prior) for item in eligible), default=0.0)
            if top > 0 and share * best / top > 0:
                boosts[prior] = float(np.float32(share * best / top))
        first, second = [], []
        for item in eligible:
            why = from_history[item] + [
                _contribution("priors", prior, self._prior(item, prior), boost)
                for prior, boost in boosts.items()
                if self._prior(item, prior) > 0
            ]
            factor = math.prod(float(np.float32(b.factor)) for b in query.boost if self._matches(item, b))
            shown = {k: v for k, v in self.metadata.get(item, {}).items() if query.fields is None or k in query.fields}
            why.sort(key=lambda c: (-c.score, c.indicator, c.feature))
            if why:
                score = float(np.float32(_score(why) * factor))
                first.append(Hit(item, score, shown, 0.0, factor, tuple(why) if query.explain else ()))
            elif query.backfill is not None and (item in self.metadata or self.fields.get(item, {}).get("priors")):
                ordered_by = self._backfill(item, backfill_prior(query, self.config), query.shuffle)
                value = float(np.float32(ordered_by * factor))
                second.append(Hit(item, 0.0, shown, value, factor))
        first.sort(key=lambda hit: (-hit.score, hit.item.encode()))
        second.sort(key=lambda hit: (-hit.backfill, hit.item.encode()))
        return (first + second)[query.offset : query.offset + query.num]

    def _backfill(self, item: str, name: str | None, shuffle: float) -> float:
        if name == "random":
            value = (_hash(item.encode()) >> 40) / 2**24
            return float(np.float32(value + 1)) if value < np.float32(shuffle) else value
        if name == "rank":
            rank = self.metadata.get(item, {}).get(self.config.items.rank)
            possible = isinstance(rank, int | float) and not isinstance(rank, bool) and rank > 0
            return float(np.float32(min(rank, 1e18))) if possible else 0.0  # type: ignore[type-var, arg-type]
        return self._prior(item, name) if name else 0.0

    def _prior(self, item: str, prior: str) -> float:
        return self.fields.get(item, {}).get("priors", {}).get(prior, 0.0)

    def _from_history(self, item: str, query: Query) -> list[Contribution]:
        found = []
        for name, history in query.history.items():
            weight = self.config.indicators[name].weight * query.weights.get(name, 1.0)
            row = self.fields.get(item, {}).get(name, {})
            for x in set(history):
                boost = float(np.float32(weight * query.history_weights.get(name, {}).get(x, 1.0)))
                if x in row and boost > 0:
                    found.append(_contribution(name, x, row[x], boost))
        return found

    def _eligible(self, item: str, query: Query) -> bool:
        return (
            item not in self.deleted
            and item not in query.exclude_items
            and (query.candidates is None or item in query.candidates)
            and all(self._matches(item, rule) for rule in query.include)
            and not any(self._matches(item, rule) for rule in query.exclude)
            and all(self._within(item, span) for span in query.ranges)
        )

    def _values(self, item: str, name: str) -> list[object]:
        value = self.metadata.get(item, {}).get(name)
        return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]

    def _matches(self, item: str, rule: Rule | Boost) -> bool:
        has = {(_kind(v), v) for v in self._values(item, rule.field)}
        every = isinstance(rule, Rule) and rule.match == "all"
        return (all if every else any)((_kind(v), v) in has for v in rule.values)

    def _within(self, item: str, span: Range) -> bool:
        values = self._values(item, span.field)
        if not values:
            return span.missing
        kind = _kind(span.max if span.min is None else span.min)
        numbers = [_number(v) for v in values if _kind(v) == kind]
        low = -math.inf if span.min is None else _number(span.min)
        high = math.inf if span.max is None else _number(span.max)
        return any(low <= number <= high for number in numbers)


def _hash(data: bytes) -> int:
    """FNV-1a 64, then SplitMix64's finaliser."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = (h ^ byte) * 0x100000001B3 % 2**64
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    h = (h ^ (h >> 27)) * 0x94D049BB133111EB % 2**64
    return h ^ (h >> 31)


def _kind(value: object) -> str:
    return "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"


def _number(value: object) -> float:
    """Of a number itself, of a date its seconds since 1970, of another text NaN."""
    if not isinstance(value, str):
        return float(value)  # type: ignore[arg-type]
    try:
        date = datetime.fromisoformat(value)
    except ValueError:
        return math.nan
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _contribution(indicator: str, feature: str, weight: float, boost: float) -> Contribution:
    return Contribution(indicator, feature, weight, boost, float(np.float32(weight) * np.float32(boost)))


def _score(why: list[Contribution]) -> float:
    return float(np.float32(math.fsum(c.score for c in why)))
