"""The index in memory."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt

from cco.config import Config
from cco.rows import Patches, Rows
from cco.vocabulary import Vocabulary
from model_sync import inverted
from model_sync.backfill import RANDOM, RANK, rank_value, shuffle_values, shuffled_from
from model_sync.contract import (
    PRIORS,
    Contribution,
    Hit,
    Query,
    backfill_prior,
    check_query,
    contribution,
    in_order,
)
from model_sync.metadata import Mask, Metadata, Properties, checked_id, checked_properties
from model_sync.row_store import RowStore

_NO_FACTOR = np.empty(0, np.float64)


@dataclass(frozen=True)
class _Terms:
    """What a query adds up: per term the field, the feature and the boost."""

    field: npt.NDArray[np.int64]
    feature: npt.NDArray[np.uint32]
    boost: npt.NDArray[np.float32]

    @cached_property
    def boosts(self) -> dict[tuple[int, int], np.float32]:
        """Boost by (field, feature)."""
        return dict(zip(zip(self.field.tolist(), self.feature.tolist(), strict=True), self.boost, strict=True))

    @cached_property
    def fields(self) -> npt.NDArray[np.uint8]:
        """The different fields."""
        return np.unique(self.field).astype(np.uint8)


class _FairLock:
    """A lock that a thread in a tight loop cannot take twice while another one waits."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._held = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._turn:
            self._held.acquire()
        try:
            yield
        finally:
            self._held.release()


class MemoryIndex:
    """An `Index` (see `contract`) over the vocabulary of items that the patches' positions refer to.

    Metadata of items that no event named yet adds them to the vocabulary, so the thread that writes here
    is the one that interns there. Searches may run in any thread.
    """

    def __init__(self, config: Config, items: Vocabulary) -> None:
        self._config = config
        self._items = items
        self._lock = _FairLock()
        names = config.indicator_names
        self._rows = RowStore(tuple(config.indicators[name].top_k for name in names), self._lock)
        self._metadata = Metadata()
        self._field = {name: t for t, name in enumerate(names)}
        self._prior = {name: p for p, name in enumerate(config.prior_names)}
        self._arena, self._offsets = items.bytes_, items.offsets
        self._priors = np.zeros((len(self._prior), 0), np.float32)  # (priors, capacity), 0: none
        self._alive = np.ones(0, np.bool_)  # (capacity,): not deleted
        self._rank = np.zeros(0, np.float32)  # (capacity,)
        self._hashes = items.hashes
        self._total = np.zeros(0, np.float64)  # (capacity,) of the query that runs; 0 between queries
        self._touched = np.empty(1, np.uint32)

    def apply(self, patches: Patches) -> None:
        rows = patches.rows
        self._follow()
        self._rows.check(rows, len(self._items), len(self._prior))
        self._rows.replace(rows)
        of_priors = np.flatnonzero(rows.field == len(self._field))
        if of_priors.size:
            with self._lock():
                self._apply_priors(rows, of_priors)

    def _apply_priors(self, rows: Rows, which: npt.NDArray[np.intp]) -> None:
        self._priors[:, rows.item[which]] = 0
        for row in which.tolist():  # an item that is there twice: the last one counts
            a, b = rows.start[row], rows.start[row + 1]
            self._priors[:, rows.item[row]] = 0
            self._priors[rows.feature[a:b], rows.item[row]] = rows.weight[a:b]

    def put_items(self, items: Mapping[str, Mapping[str, object]]) -> None:
        checked = {checked_id(item): checked_properties(item, given) for item, given in items.items()}
        self._store(checked, merge=False)

    def update_items(self, items: Mapping[str, Mapping[str, object]]) -> None:
        checked = {checked_id(item): checked_properties(item, given) for item, given in items.items()}
        self._store(checked, merge=True)

    def _store(self, checked: Mapping[str, Mapping[str, object]], merge: bool) -> None:
        indices = self._items.intern(list(checked)).tolist()
        self._follow()
        for i, given in zip(indices, checked.values(), strict=True):
            with self._lock():
                old = self._metadata.get(i) if merge else None
                merged = {**(old or {}), **given}
                self._describe(i, cast(Properties, {k: v for k, v in merged.items() if v is not None}))
                self._alive[i] = True

    def _describe(self, item: int, properties: Properties | None) -> None:
        self._metadata.replace(item, properties)
        self._rank[item] = rank_value((properties or {}).get(self._config.items.rank))

    def unset(self, items: Mapping[str, Iterable[str]]) -> None:
        for item, names in items.items():
            i = self._items.index(item)
            with self._lock():
                old = None if i is None else self._metadata.get(i)
                if i is not None and old is not None:
                    gone = set(names)
                    self._describe(i, {name: value for name, value in old.items() if name not in gone})

    def delete_items(self, ids: Iterable[str]) -> None:
        indices = self._items.intern([checked_id(item) for item in ids]).tolist()
        self._follow()
        for i in indices:
            with self._lock():
                self._describe(i, None)
                self._alive[i] = False

    def flush(self) -> None:
        """Everything is visible as soon as it is accepted."""

    def search(self, query: Query) -> list[Hit]:
        check_query(query, self._config)
        terms = self._terms(query)
        with self._lock():
            return self._search(query, terms)

    def rows(self) -> Rows:
        with self._lock():
            lengths = np.concatenate((self._rows.lengths(), np.count_nonzero(self._priors, 0)[None, :]))
            item, field = np.nonzero(lengths.T)
            start = np.zeros(item.size + 1, np.int64)
            np.cumsum(lengths[field, item], out=start[1:])
            feature, weight = np.empty(start[-1], np.uint32), np.empty(start[-1], np.float32)
            of_priors = field == len(self._field)
            rows = self._rows.rows(item[~of_priors].astype(np.uint32), field[~of_priors].astype(np.uint8))
            values = self._priors.T[item[of_priors]]
        entry_of_priors = np.repeat(of_priors, np.diff(start))
        feature[~entry_of_priors], weight[~entry_of_priors] = rows.feature, rows.weight
        order = np.argsort(-values, axis=1, kind="stable")  # the names are sorted, so ties are in order
        values = np.take_along_axis(values, order, axis=1)
        feature[entry_of_priors], weight[entry_of_priors] = order[values > 0], values[values > 0]
        return Rows(item.astype(np.uint32), field.astype(np.uint8), start, feature, weight)

    def properties(self, item: str) -> Properties | None:
        i = self._items.index(item)
        with self._lock():
            found = None if i is None else self._metadata.get(i)
            return None if found is None else _copied(found)

    def __len__(self) -> int:
        with self._lock():
            there = self._rows.lengths().any(0) | self._priors.any(0) | self._metadata.known
            return int(np.count_nonzero(there & self._alive))

    def sizes(self) -> dict[str, int]:
        with self._lock():
            scratch = self._total.nbytes + self._touched.nbytes
            return {
                **self._rows.sizes(),
                "priors": self._priors.nbytes,
                "metadata": self._metadata.size() + self._alive.nbytes + self._rank.nbytes,
                "scratch": scratch,
            }

    def _follow(self) -> None:
        """Make room for every item of the vocabulary; the writer's thread alone may look at its arrays."""
        arena, offsets, hashes = self._items.bytes_, self._items.offsets, self._items.hashes
        with self._lock():
            self._arena, self._offsets, self._hashes = arena, offsets, hashes
            count, capacity = len(self._items), self._alive.size
            if max(count, len(self._prior)) <= capacity:
                return
            capacity = max(count, len(self._prior), capacity + capacity // 4)
            more = capacity - self._alive.size
            self._rows.reserve(capacity)
            self._metadata.reserve(capacity)
            self._priors = np.pad(self._priors, ((0, 0), (0, more)))
            self._alive = np.pad(self._alive, (0, more), constant_values=True)
            self._rank = np.pad(self._rank, (0, more))
            self._total = np.zeros(capacity, np.float64)
            self._touched = np.empty(capacity + 1, np.uint32)

    def _terms(self, query: Query) -> _Terms:
        """The history as terms; ids that are unknown left out."""
        fields: list[int] = []
        features: list[int] = []
        boosts: list[float] = []
        for name, ids in query.history.items():
            boost = self._config.indicators[name].weight * query.weights.get(name, 1.0)
            if boost == 0:
                continue
            single = query.history_weights.get(name, {})
            found = [(i, id_) for id_ in dict.fromkeys(ids) if (i := self._items.index(id_)) is not None]
            features += [i for i, _ in found]
            fields += [self._field[name]] * len(found)
            boosts += [boost * single.get(id_, 1.0) for _, id_ in found] if single else [boost] * len(found)
        # Interned just now, perhaps, and nothing published yet with it: beyond the arrays.
        feature = np.array(features, np.int64)
        fits = feature < self._alive.size
        field, boost32 = np.array(fields, np.int64), np.array(boosts, np.float32)
        return _Terms(field[fits], feature[fits].astype(np.uint32), boost32[fits])

    def _search(self, query: Query, terms: _Terms) -> list[Hit]:
        mask = self._eligible(query)
        factor = self._factor(query)
        limit = query.offset + query.num
        touched, total = self._touched, self._total
        count = self._rows.accumulate(terms.field, terms.feature, terms.boost, total, touched)
        try:
            shares = self._shares(query, mask, count)
            for p, boost in shares.items():
                count = inverted.add_prior(self._priors[p], boost, mask, total, touched, count)
            items, values, matched = self._best(touched[:count], mask, total, factor, limit)
            hits = [
                self._hit(query, terms, shares, factor, i, value)
                for i, value in zip(items[query.offset :].tolist(), values[query.offset :].tolist(), strict=True)
            ]
            if matched < limit and query.backfill is not None:
                items, values = self._backfill(query, mask & (total == 0), factor, limit - matched)
                first = max(0, query.offset - matched)
                for i, value in zip(items[first:].tolist(), values[first:].tolist(), strict=True):
                    hits.append(self._hit(query, None, shares, factor, i, value))
            return hits
        finally:
            inverted.forget(touched, count, total)

    def _eligible(self, query: Query) -> Mask:
        mask = self._alive.copy()
        metadata = self._metadata
        for rule in query.include:
            mask &= metadata.matching(rule.field, rule.values, rule.match == "all")
        for rule in query.exclude:
            mask &= ~metadata.matching(rule.field, rule.values, rule.match == "all")
        for span in query.ranges:
            mask &= metadata.within(span.field, span.min, span.max, span.missing)
        mask[self._positions(query.exclude_items)] = False
        if query.candidates is not None:
            only = np.zeros(mask.size, np.bool_)
            only[self._positions(query.candidates)] = True
            mask &= only
        return mask

    def _positions(self, ids: Iterable[str]) -> npt.NDArray[np.int64]:
        found = [i for i in map(self._items.index, ids) if i is not None and i < self._alive.size]
        return np.array(found, np.int64)

    def _factor(self, query: Query) -> npt.NDArray[np.float64]:
        if not query.boost:
            return _NO_FACTOR
        factor = np.ones(self._alive.size)
        for rule in query.boost:
            factor[self._metadata.matching(rule.field, rule.values, False)] *= np.float64(np.float32(rule.factor))
        return factor

    def _shares(self, query: Query, mask: Mask, count: int) -> dict[int, np.float32]:
        """The boost per prior that takes a share of the best score."""
        best = inverted.largest(self._touched, count, mask, self._total) if query.priors else 0.0
        shares: dict[int, np.float32] = {}
        for name in sorted(query.priors):
            p = self._prior[name]
            top = float(np.max(self._priors[p], where=mask, initial=0.0))
            boost = np.float32(query.priors[name] * float(best) / top) if top > 0 else np.float32(0)
            if boost > 0 and math.isfinite(boost):
                shares[p] = boost
        return shares

    def _best(
        self,
        candidates: npt.NDArray[np.uint32],
        mask: Mask,
        values: npt.NDArray[np.float64] | npt.NDArray[np.float32],
        factor: npt.NDArray[np.float64],
        limit: int,
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32], int]:
        items = np.empty(min(limit, candidates.size), np.uint32)
        best = np.empty(items.size, np.float32)
        eligible = inverted.best(
            candidates, candidates.size, mask, values, factor, self._arena, self._offsets, items, best
        )
        return items[:eligible], best[:eligible], int(eligible)

    def _backfill(
        self, query: Query, mask: Mask, factor: npt.NDArray[np.float64], limit: int
    ) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.float32]]:
        """The first `limit` of the second tier, and what orders them."""
        there = self._metadata.known | self._priors.any(0)
        candidates = np.flatnonzero(mask & there).astype(np.uint32)
        items, ordered_by, _ = self._best(candidates, mask, self._backfill_values(query), factor, limit)
        return items, ordered_by

    def _backfill_values(self, query: Query) -> npt.NDArray[np.float32]:
        """(capacity,)"""
        name = backfill_prior(query, self._config)
        if name == RANK:
            return self._rank
        values = np.zeros(self._alive.size, np.float32)
        if name == RANDOM:
            values[: self._hashes.size] = shuffled_from(shuffle_values(self._hashes), query.shuffle)
            return values
        return self._priors[self._prior[name]] if name in self._prior else values

    def _hit(
        self,
        query: Query,
        terms: _Terms | None,
        shares: Mapping[int, np.float32],
        factor: npt.NDArray[np.float64],
        item: int,
        value: float,
    ) -> Hit:
        """`terms` is None for the second tier."""
        properties = _copied(self._metadata.get(item) or {}, query.fields)
        of_item = float(factor[item]) if factor.size else 1.0
        name = self._items.name(item)
        if terms is None:
            return Hit(name, 0.0, properties, backfill=value, factor=of_item)
        why = self._contributions(item, terms, shares) if query.explain else ()
        return Hit(name, value, properties, factor=of_item, contributions=why)

    def _contributions(self, item: int, terms: _Terms, shares: Mapping[int, np.float32]) -> tuple[Contribution, ...]:
        rows = self._rows.rows(np.full(terms.fields.size, item, np.uint32), terms.fields)
        found: list[Contribution] = []
        for r, t in enumerate(terms.fields.tolist()):
            for e in range(rows.start[r], rows.start[r + 1]):
                boost = terms.boosts.get((t, int(rows.feature[e])))
                if boost is not None:
                    feature = self._items.name(int(rows.feature[e]))
                    found.append(contribution(self._config.indicator_names[t], feature, rows.weight[e], boost))
        for p, boost in shares.items():
            if self._priors[p, item] > 0:
                found.append(contribution(PRIORS, self._config.prior_names[p], self._priors[p, item], boost))
        return in_order(found)


def _copied(properties: Properties, fields: tuple[str, ...] | None = None) -> Properties:
    """A copy that the caller may change, of all properties, by name, or of some."""
    names = sorted(properties) if fields is None else [name for name in fields if name in properties]
    return {name: list(v) if isinstance(v := properties[name], list) else v for name in names}
