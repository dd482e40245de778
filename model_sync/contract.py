"""The Index contract: what the stream publishes into and what recommendations are asked from.

Every implementation passes the same suite (`tests/model_sync/index_contract.py`) and ranks alike.

What is stored
--------------
An item has *fields* (a row per indicator, and its priors), which come in patches, and *metadata*
(properties), which comes by `put_items` and its like. Neither ever overwrites the other.

* A patch replaces the fields that it names; an empty field empties the published one. Patches may come
  repeatedly and in any order of items; the last one of a field counts.
* A deleted item loses its metadata and is never returned again, whatever patch comes after, until
  `put_items` or `update_items` brings it back. Its fields live on out of sight: they are a function of
  the interactions alone, so `rows()` has them, and an item that comes back has its current ones.

What is returned
----------------
An item is *eligible* if it is not deleted, passes every rule (`include`, `exclude`, `ranges`), is not
in `exclude_items` and, where `candidates` is given, is among them. Hits come in two tiers:

1. Matched items: at least one history item is in their rows, or they have a prior that takes a share.
   `Hit.score` is positive.
2. Backfill: the other eligible items that have metadata or any prior, by what `backfill` names: a prior;
   "rank", the property `config.items.rank` as float32 (0 where it is no number or negative; 1e18 at most);
   or "random", a number from 0 to below 1 that belongs to the id for ever (`backfill.shuffle_of`), and 1
   more (in float32) where it is below `shuffle`: the order is one circle of all items, which begins there.
   Their score is 0.0 and `Hit.backfill` is what orders them.

In each tier the order is by value descending, then by item id (UTF-8 bytes) ascending, so pages of one
query join without gaps. Ties are common: weights have 9 significant bits. A small share of a prior
(`priors={"popular": 1e-5}`) breaks them by popularity.

Arithmetic, as Lucene does it (a `bool` query of `term` queries on `sparse_vector` fields, in a
`function_score`), so that every implementation gives the same scores:

* Weights are float32 with the low 15 bits clear; a term's boost is float32(configured weight x weight
  of the query); its contribution is the float32 product of the two.
* An item's contributions are summed in double and rounded to float32 once.
* A share beta of prior p adds contributions of boost float32(beta x best / top), where `best` is the
  largest score from history alone and `top` the largest value of p, both among the eligible items.
* Boost rules multiply: factor = the product, in double and in the order of the query, of the float32
  factors of the rules that an item matches; score = float32(score x factor). In the second tier they
  multiply the value of the prior, the rank or the random number.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

import numpy as np

from cco.config import Config
from cco.rows import Patches, Rows
from model_sync.backfill import BACKFILLS
from model_sync.metadata import Properties, Scalar, moment, scalar_problem, shown

MAX_NUM = 1_000
MAX_OFFSET = 10_000
MAX_HISTORY = 10_000  # items of the history, all indicators together
MAX_IDS = 10_000  # of candidates
MAX_EXCLUDED = MAX_IDS + MAX_HISTORY  # of exclude_items: as many as may be asked for, and a whole history
MAX_RULES = 64 + 3  # include, exclude, boost and ranges together: 64 that are asked for, and those of availability
MAX_VALUES = 1_000  # of one rule
MIN_FACTOR, MAX_FACTOR = 1e-6, 1e6
MAX_PRODUCT = 1e12  # of the factors of boost rules above 1, and of one divided by those below
MAX_SHARE = 1_000.0
PRIORS = "priors"  # the name that contributions of priors go by; no indicator can have it


class QueryError(ValueError):
    """A query that cannot be answered. `path` names the offending part, `problem` says what is wrong with it."""

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


@dataclass(frozen=True, slots=True)
class Rule:
    """Items whose property `field` has any (or all) of `values`. A property that is a list has each of its elements.

    Values match those of the same kind: text, numbers (1 equals 1.0) and booleans are never equal to each other.
    """

    field: str
    values: tuple[Scalar, ...]
    match: Literal["any", "all"] = "any"


@dataclass(frozen=True, slots=True)
class Boost:
    """Multiplies what ranks the items that have any of `values` by `factor` (1e-6 to 1e6)."""

    field: str
    values: tuple[Scalar, ...]
    factor: float


@dataclass(frozen=True, slots=True)
class Range:
    """Items with a value of `field` from `min` to `max`, both included; None leaves a side open.

    Both are numbers, or both ISO 8601 dates (in UTC where they name no zone; a date alone is its midnight).
    A property without such values does not match, unless it is absent and `missing` is true.
    """

    field: str
    min: float | str | None = None
    max: float | str | None = None
    missing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked. Ids that the index does not know are no error and match nothing.

    history: per indicator name, item ids; one that is there twice counts once.
    weights: factor on the configured weight per indicator name (default 1; 0 leaves the indicator out).
    history_weights: factor on single history items, per indicator name and item id (default 1).
    include, exclude: rules that an item must all pass, and of which it must match none.
    candidates: only these ids; None is no restriction. exclude_items: never these.
    num, offset: hits `offset` to `offset + num - 1` of the ranking.
    priors: per prior name, the share of the best score that the largest prior is worth.
    backfill: what orders the second tier: a prior, "rank" or "random"; "auto" is "popular", or the first prior
        configured where that is off; None leaves the second tier out.
    shuffle: where the order "random" begins, 0 to 1 (a float32).
    fields: properties to return; None is all.
    explain: return contributions.
    """

    history: Mapping[str, Sequence[str]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    history_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    include: tuple[Rule, ...] = ()
    exclude: tuple[Rule, ...] = ()
    boost: tuple[Boost, ...] = ()
    ranges: tuple[Range, ...] = ()
    exclude_items: Collection[str] = ()
    candidates: Collection[str] | None = None
    num: int = 10
    offset: int = 0
    priors: Mapping[str, float] = field(default_factory=dict)
    backfill: str | None = "auto"
    shuffle: float = 0.0
    fields: tuple[str, ...] | None = None
    explain: bool = False


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one history item (or prior) added to a score: float32(weight x boost)."""

    indicator: str  # or "priors"
    feature: str  # id of the history item, or name of the prior
    weight: float
    boost: float
    score: float


@dataclass(frozen=True, slots=True)
class Hit:
    """A recommended item. With `explain`, score = float32(float32(sum of contributions) x factor)."""

    item: str
    score: float
    properties: Properties
    backfill: float = 0.0  # what orders the second tier: value of the prior, rank or random number x factor
    factor: float = 1.0  # product of the boost rules that it matches
    contributions: tuple[Contribution, ...] = ()  # largest first, then by indicator and feature


class Index(Protocol):
    """See the module's description. One thread writes; any number of threads may search meanwhile."""

    def apply(self, patches: Patches) -> None:
        """Replace the named fields of items. Items and features are positions in the index's vocabulary.

        Raises ValueError, with nothing applied, where a position, field or weight is not possible.
        """

    def put_items(self, items: Mapping[str, Mapping[str, object]]) -> None:
        """Replace the whole metadata of items. Raises MetadataError, with nothing applied, on bad ids or values."""

    def update_items(self, items: Mapping[str, Mapping[str, object]]) -> None:
        """Set single properties; an item that has none, or is deleted, begins anew. Raises as `put_items`."""

    def unset(self, items: Mapping[str, Iterable[str]]) -> None:
        """Remove single properties; what is not there is no error."""

    def delete_items(self, ids: Iterable[str]) -> None:
        """Never return these again until they are put again. Raises MetadataError on bad ids."""

    def flush(self) -> None:
        """Return once everything accepted so far is visible to searches."""

    def search(self, query: Query) -> list[Hit]:
        """The best hits, best first. Raises QueryError, also for more than it looks up in one search."""

    def rows(self) -> Rows:
        """The fields published now, by item position, then field; empty ones left out."""

    def properties(self, item: str) -> Properties | None:
        """Metadata of an item; None where it has none or is deleted."""

    def __len__(self) -> int:
        """Items that are not deleted and have metadata or an entry in a field."""

    def sizes(self) -> dict[str, int]:
        """Bytes held, by part."""


def rules(fields: Mapping[str, Iterable[Scalar] | Scalar]) -> tuple[Rule, ...]:
    """One any-of rule per field from {"category": ["Tablets", "Phones"], "brand": "Apple"}."""
    return tuple(
        Rule(name, (values,) if isinstance(values, str | int | float) else tuple(values))
        for name, values in fields.items()
    )


def contribution(indicator: str, feature: str, weight: np.float32, boost: np.float32) -> Contribution:
    """What a term adds to a score."""
    return Contribution(indicator, feature, float(weight), float(boost), float(np.float32(boost * weight)))


def in_order(found: Iterable[Contribution]) -> tuple[Contribution, ...]:
    """Largest first, then by indicator and feature."""
    return tuple(sorted(found, key=lambda c: (-c.score, c.indicator, c.feature)))


def backfill_prior(query: Query, config: Config) -> str | None:
    """The prior (or "rank", "random") that orders the second tier; None where there is nothing to order by."""
    if query.backfill != "auto":
        return query.backfill
    names = config.prior_names
    return "popular" if "popular" in names or not names else names[0]


def check_query(query: Query, config: Config) -> None:
    """Raises QueryError at the first part of a query that is not possible."""
    _whole("num", query.num, 1, MAX_NUM)
    _whole("offset", query.offset, 0, MAX_OFFSET)
    _check_history(query, config)
    for name, share in query.priors.items():
        _known(f"priors.{name}", name, "prior", config.prior_names)
        _number(f"priors.{name}", share, 0.0, MAX_SHARE)
    if query.backfill not in (None, "auto"):
        _known("backfill", query.backfill, "prior", (*config.prior_names, *BACKFILLS))
    _number("shuffle", query.shuffle, 0.0, 1.0)
    _check_rules(query)
    _ids("exclude_items", query.exclude_items, MAX_EXCLUDED)
    if query.candidates is not None:
        _ids("candidates", query.candidates, MAX_IDS)
    if query.fields is not None:
        _ids("fields", query.fields, MAX_VALUES)


def _check_history(query: Query, config: Config) -> None:
    names = config.indicator_names
    total = 0
    for name, ids in query.history.items():
        _known(f"history.{name}", name, "indicator", names)
        total += _ids(f"history.{name}", ids, MAX_HISTORY)
    if total > MAX_HISTORY:
        raise QueryError("history", f"{total} items in all; at most {MAX_HISTORY} are possible")
    for name, weight in query.weights.items():
        _known(f"weights.{name}", name, "indicator", names)
        if weight != 0:
            _number(f"weights.{name}", weight, MIN_FACTOR, MAX_FACTOR)
    for name, of_items in query.history_weights.items():
        _known(f"history_weights.{name}", name, "indicator", names)
        for item, weight in of_items.items():
            _number(f"history_weights.{name}.{item}", weight, MIN_FACTOR, MAX_FACTOR)


def _check_rules(query: Query) -> None:
    parts: tuple[tuple[str, type, tuple[Rule | Boost | Range, ...]], ...] = (
        ("include", Rule, query.include),
        ("exclude", Rule, query.exclude),
        ("boost", Boost, query.boost),
        ("ranges", Range, query.ranges),
    )
    total = sum(len(given) for _, _, given in parts)
    if total > MAX_RULES:
        problem = f"{total} rules; at most {MAX_RULES} are possible, those of availability among them"
        raise QueryError("include, exclude, boost and ranges", problem)
    for part, kind, given in parts:
        for k, rule in enumerate(given):
            path = f"{part}[{k}]"
            if not isinstance(rule, kind):
                raise QueryError(path, f"{shown(rule)} is not a {kind.__name__}")
            if not isinstance(rule.field, str) or not rule.field:
                raise QueryError(f"{path}.field", f"{shown(rule.field)} is not the name of a property")
            if isinstance(rule, Range):
                _check_range(path, rule)
                continue
            _check_values(f"{path}.values", rule.values)
            if isinstance(rule, Boost):
                _number(f"{path}.factor", rule.factor, MIN_FACTOR, MAX_FACTOR)
            elif rule.match not in ("any", "all"):
                raise QueryError(f"{path}.match", f'{rule.match!r} is not possible; "any" and "all" are')
    up = math.prod(max(rule.factor, 1.0) for rule in query.boost)
    down = math.prod(max(1 / rule.factor, 1.0) for rule in query.boost)
    for does, by in (("multiply", up), ("divide", down)):
        if by > MAX_PRODUCT:  # scores stay finite and positive, whatever an item matches
            raise QueryError(
                "boost", f"together the factors {does} by up to {by:.3g}; at most {MAX_PRODUCT:g} is possible"
            )


def _check_values(path: str, values: object) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise QueryError(path, f"{shown(values)} is not possible; give a list")
    if not 1 <= len(values) <= MAX_VALUES:
        raise QueryError(path, f"{len(values)} values; 1 to {MAX_VALUES} are possible")
    for k, value in enumerate(values):
        problem = scalar_problem(value)
        if problem is not None:
            raise QueryError(f"{path}[{k}]", f"{shown(value)} {problem}")


def _check_range(path: str, rule: Range) -> None:
    """Both ends of one kind, at least one given."""
    kinds: set[str] = set()
    for side, end in (("min", rule.min), ("max", rule.max)):
        if end is None:
            continue
        if isinstance(end, str):
            if moment(end) is None:
                raise QueryError(f"{path}.{side}", f"{shown(end)} is not an ISO 8601 date")
            kinds.add("date")
        else:
            _number(f"{path}.{side}", end, -math.inf, math.inf)
            kinds.add("number")
    if len(kinds) != 1:
        raise QueryError(path, "min is one kind and max another" if kinds else "neither min nor max is given")


def _ids(path: str, ids: object, limit: int) -> int:
    """How many; raises QueryError unless it is a collection of strings within the limit."""
    if isinstance(ids, str) or not isinstance(ids, Sequence | set | frozenset):
        raise QueryError(path, f"{type(ids).__name__} is not possible; give a list of texts")
    if len(ids) > limit:
        raise QueryError(path, f"{len(ids)} of them; at most {limit} are possible")
    if not all(issubclass(kind, str) for kind in set(map(type, ids))):
        wrong = next(value for value in ids if not isinstance(value, str))
        raise QueryError(path, f"{shown(wrong)} is not text")
    return len(ids)


def _known(path: str, name: object, what: str, names: Sequence[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(str(name), names, 1)
    known = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names) or 'none'}"
    raise QueryError(path, f"there is no {what} {name!r}; {known}")


def _whole(path: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise QueryError(path, f"{shown(value)} is not a whole number from {low} to {high}")


def _number(path: str, value: object, low: float, high: float) -> None:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and scalar_problem(value) is None
    if not fits or not low <= cast(float, value) <= high:
        limits = "" if low == -math.inf else f" from {low:g} to {high:g}"
        raise QueryError(path, f"{shown(value)} is not a finite number{limits}")
