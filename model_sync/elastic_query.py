"""Queries for Elasticsearch without the I/O: what is to be asked, and what the answers say.

The first tier is a `bool` of one `term` per history item, whose sum is the dot product that the contract
describes; shares of priors first need the best score and the largest value of each prior. The second tier is
asked for only where the page reaches beyond the first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from cco.config import Config
from cco.vocabulary import id_problem
from model_sync.backfill import RANDOM, RANK
from model_sync.contract import (
    PRIORS,
    Boost,
    Contribution,
    Hit,
    Query,
    QueryError,
    Range,
    Rule,
    backfill_prior,
    check_query,
    contribution,
    in_order,
)
from model_sync.elastic_documents import equality_token, presence_token, range_tokens, returned_properties
from model_sync.elastic_names import decoded, encoded
from model_sync.metadata import Scalar, elements, is_name, moment

Body = dict[str, Any]
Plan = Generator[list[Body], list[Mapping[str, Any]], list[Hit]]

MOST_WHOLE = 100  # hits of a page whose documents come as they are; of more, the server picks the rows
_ORDER = [{"_score": {"order": "desc"}}, {"id": {"order": "asc"}}]
_NOTHING: Body = {"match_none": {}}
_CLAUSES = re.compile(r"maxClauseCount is set to (\d+)")  # in what Elasticsearch says of too many
_TO_DO = {  # by the type of what failed
    "index_not_found_exception": ": `cco index create` makes it",
    "no_shard_available_action_exception": ": try again when its cluster is healthy",
    "search_phase_execution_exception": ": try again when its cluster is healthy",
}
_VALUE_OF = {RANK: "rank", RANDOM: "shuffle"}


class SearchFailed(Exception):
    """Elasticsearch answered, but not the question: one readable line with what it said."""


class _Term(NamedTuple):
    """A history item, or a prior that takes a share."""

    indicator: str  # or "priors"
    feature: str
    boost: float = 1.0  # a float32
    field: str = PRIORS

    def scored(self) -> Body:
        value = encoded(self.feature)
        return {"term": {self.field: value if self.boost == 1.0 else {"value": value, "boost": self.boost}}}


def plan(query: Query, config: Config) -> Plan:
    """Answer a query: yields search bodies, is sent the server's answers to them, returns the hits.

    Raises QueryError before it yields anything, or for what is too large for the server; and SearchFailed.
    """
    check_query(query, config)
    asked = _Asked(query, config)
    if asked.impossible:
        return []
    hits: list[Hit] = []
    terms = asked.terms
    matched = 0
    if terms:
        terms = terms + (yield from _shares(asked))
        answer = _checked(query, (yield [asked.first_tier(terms)]))[0]
        hits = [asked.hit(found, terms) for found in _items(answer)]
        if len(hits) == query.num:
            return hits
        matched = query.offset + len(hits) if hits or not query.offset else int(answer["hits"]["total"]["value"])
    if query.backfill is not None:
        first = max(0, query.offset - matched)
        answer = _checked(query, (yield [asked.second_tier(terms, first, query.num - len(hits), hits)]))[0]
        hits += [asked.hit(found, None) for found in _items(answer)]
    return hits


def _shares(asked: _Asked) -> Generator[list[Body], list[Mapping[str, Any]], list[_Term]]:
    """The priors that take a share of the best score, as terms."""
    shares = {name: share for name, share in sorted(asked.query.priors.items()) if share > 0}
    if not shares:
        return []
    answers = _checked(
        asked.query, (yield [asked.best(asked.terms), *([asked.best([_Term(PRIORS, n)]) for n in shares])])
    )
    best, *tops = (np.float32(max((hit["_score"] for hit in _hits(answer)), default=0.0)) for answer in answers)
    found = []
    for (name, share), top in zip(shares.items(), tops, strict=True):
        boost = float(np.float32(share * float(best) / float(top))) if top > 0 else 0.0
        if boost > 0 and math.isfinite(boost):
            found.append(_Term(PRIORS, name, boost))
    return found


def _checked(query: Query, answers: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The answers if they are whole. Raises SearchFailed; QueryError where the question was too large."""
    for answer in answers:
        if "error" in answer:
            reason = answer["error"]
            smaller = too_large(query, reason)
            if smaller is not None:
                raise smaller
            causes = reason.get("root_cause") or [reason] if isinstance(reason, Mapping) else [{"reason": reason}]
            raise SearchFailed(f"Elasticsearch refuses the search: {of_part(causes[0])}")
        shards = answer["_shards"]
        if answer.get("timed_out") or shards["failed"]:
            failed = f"{shards['failed']} of {shards['total']} shards failed"
            why = "it took too long" if answer.get("timed_out") else failed
            raise SearchFailed(f"Elasticsearch has only a part of the answer: {why}: look at its cluster's health")
    return answers


def of_part(error: Mapping[str, Any]) -> str:
    """Why a part of an answer is missing, in Elasticsearch's words, and what to do."""
    return f"{error.get('reason')}{_TO_DO.get(str(error.get('type')), '')}"


def too_large(query: Query, error: object) -> QueryError | None:
    """What of a query is to be made smaller, if that is what `error`, as Elasticsearch tells it, is about.

    How much it looks up in one search goes by the heap and the threads of its nodes, so nobody knows beforehand.
    """
    limit = _CLAUSES.search(str(error))
    parts = {f"history.{name}": len(set(ids)) for name, ids in query.history.items() if query.weights.get(name) != 0}
    for name, given in (("include", query.include), ("exclude", query.exclude)):
        parts[name] = sum(len(set(rule.values)) for rule in given if rule.match == "all")
    if limit is None or not any(parts.values()):
        return None
    path = max(parts, key=parts.__getitem__)
    what = "items" if path.startswith("history") else 'values of rules with match "all"'
    return QueryError(
        path,
        f"{parts[path]} {what}, of {sum(parts.values())} things to look up in all: this Elasticsearch takes at most"
        f" {limit[1]} in one question; give fewer, or ask with fewer indicators",
    )


def _hits(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = answer["hits"]["hits"]
    return found


def _items(answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The hits of a page; a document without an id is none of ours."""
    return (hit for hit in _hits(answer) if hit["sort"][1] is not None)


class _Asked:
    """A checked query in the server's words."""

    def __init__(self, query: Query, config: Config) -> None:
        self.query = query
        self._config = config
        self.terms = _terms(query, config)
        self._filter: list[Body] = [matching(rule) for rule in query.include]
        self._must_not: list[Body] = [{"term": {"deleted": True}}, *(matching(rule) for rule in query.exclude)]
        for span in query.ranges:
            if span.missing:
                self._must_not.append(_outside(span, config))
            else:
                self._filter.append(_within(span, config))
        self.impossible = query.candidates is not None and not self._restrict(query.candidates)
        excluded = possible(query.exclude_items)
        if excluded:
            self._must_not.append({"terms": {"id": excluded}})
        self._functions = [{"filter": matching(rule), "weight": _float32(rule.factor)} for rule in query.boost]
        self._boosts = [
            (rule.field, frozenset(equality_token(rule.field, value) for value in rule.values), _float32(rule.factor))
            for rule in query.boost
        ]

    def _restrict(self, candidates: Collection[str]) -> list[str]:
        only = possible(candidates)
        self._filter.append({"terms": {"id": only}})
        return only

    def best(self, terms: list[_Term]) -> Body:
        """The highest score of any eligible item."""
        matched = self._bool(should=[term.scored() for term in terms], minimum_should_match=1)
        return {"size": 1, "query": matched, "_source": False, "track_total_hits": False}

    def first_tier(self, terms: list[_Term]) -> Body:
        """The page, of the items that match a term."""
        matched = self._bool(should=[term.scored() for term in terms], minimum_should_match=1)
        # How many there are is of interest only to a page that begins behind the last of them.
        return self._page(matched, self.query.offset, self.query.num, self.query.offset or False, terms)

    def second_tier(self, terms: list[_Term], first: int, number: int, shown: list[Hit]) -> Body:
        """Hits `first` to `first + number - 1` of those that match none of the terms.

        This is another search, which may see later documents: what the page has already it must not find again.
        """
        never = [*(term.scored() for term in terms), {"terms": {"id": [hit.item for hit in shown]}}]
        there = {"bool": {"should": [{"term": {"known": True}}, {"term": {f"filled.{PRIORS}": True}}]}}
        name = backfill_prior(self.query, self._config)
        rest = partial(self._bool, also=[there], never=never)
        if name in _VALUE_OF:
            values: list[Body] = [{"field_value_factor": {"field": _VALUE_OF[name], "missing": 0}}]
            if name == RANDOM and self.query.shuffle > 0:
                below = {"range": {_VALUE_OF[RANDOM]: {"lt": _float32(self.query.shuffle)}}}
                values.append({"filter": below, "weight": 1})
            modes = {"score_mode": "sum", "boost_mode": "replace"}
            ranked = {"function_score": {"query": rest(), "functions": values, **modes}}
        elif name in self._config.prior_names:
            ranked = rest(should=[_Term(PRIORS, name or "").scored()], minimum_should_match=0)
        else:
            ranked = rest()
        return self._page(ranked, first, number, False, [])

    def _bool(self, also: Iterable[Body] = (), never: Iterable[Body] = (), **parts: object) -> Body:
        return {"bool": {**parts, "filter": [*self._filter, *also], "must_not": [*self._must_not, *never]}}

    def _page(self, ranked: Body, first: int, number: int, total: int | bool, terms: list[_Term]) -> Body:
        if self._functions:
            modes = {"score_mode": "multiply", "boost_mode": "multiply"}
            ranked = {"function_score": {"query": ranked, "functions": self._functions, **modes}}
        page: Body = {"from": first, "size": number, "query": ranked, "sort": _ORDER, "track_total_hits": total}
        return {**page, **self._parts(terms)}

    def _parts(self, terms: list[_Term]) -> Body:
        """The parts of documents that the hits are made of.

        Their ids come with the order, and properties from a column. Only an explanation needs documents: to pick their
        rows the server reads the names of all features, which takes it longer than everything else; so where the hits
        are not many, they come with all that they have.
        """
        parts: Body = {}
        if self._boosts or self.query.fields is None or self.query.fields:
            parts["docvalue_fields"] = ["returned"]
        rows = sorted({term.field for term in terms}) if self.query.explain else []
        if rows:
            return {**parts, "_source": self.query.num <= MOST_WHOLE or rows}
        return {**parts, "_source": False, "stored_fields": "_none_"}

    def hit(self, found: Mapping[str, Any], terms: list[_Term] | None) -> Hit:
        """A hit of the first tier, or, without terms, of the second."""
        properties = returned_properties(next(iter(found.get("fields", {}).get("returned", ())), None))
        factor = 1.0
        for field, tokens, by in self._boosts:
            if not tokens.isdisjoint(equality_token(field, value) for value in elements(properties.get(field))):
                factor *= by
        if self.query.fields is not None:
            properties = {name: properties[name] for name in self.query.fields if name in properties}
        value, item = _float32(found["sort"][0]), found["sort"][1]
        if terms is None:
            return Hit(item, 0.0, properties, backfill=value, factor=factor)
        why = in_order(_contributions(found.get("_source") or {}, terms)) if self.query.explain else ()
        return Hit(item, value, properties, factor=factor, contributions=why)


def _terms(query: Query, config: Config) -> list[_Term]:
    """The history as terms; what is left out can match nothing."""
    found = []
    for name, ids in query.history.items():
        boost = config.indicators[name].weight * query.weights.get(name, 1.0)
        if boost > 0:
            field, usual = f"rows.{encoded(name)}", _float32(boost)
            single = {item: _float32(boost * by) for item, by in query.history_weights.get(name, {}).items()}
            asked = possible(dict.fromkeys(ids))
            found += [_Term(name, item, single.get(item, usual), field) for item in asked]
    return found


def _contributions(source: Mapping[str, Any], terms: list[_Term]) -> list[Contribution]:
    asked = {term.indicator for term in terms}
    rows = {decoded(name): row for name, row in source.get("rows", {}).items()}
    rows[PRIORS] = source.get(PRIORS, [])
    rows = {name: row_entries(row) for name, row in rows.items() if name in asked}
    found = []
    for term in terms:
        weight = rows.get(term.indicator, {}).get(term.feature)
        if weight is not None:
            found.append(contribution(term.indicator, term.feature, np.float32(weight), np.float32(term.boost)))
    return found


def row_entries(row: list[Mapping[str, float]]) -> dict[str, float]:
    """Feature -> weight of a field as it is in a document: [{name: weight}] or []."""
    return {decoded(name): weight for part in row for name, weight in part.items()}


def possible(ids: Iterable[str]) -> list[str]:
    """Those that can be ids; the others are on no document, and some cannot even be sent."""
    return [item for item in ids if id_problem(item) is None]


def matching(rule: Rule | Boost) -> Body:
    """The items that a rule is about."""
    if not is_name(rule.field):
        return _NOTHING
    found = list(dict.fromkeys(_equal(rule.field, rule.values)))
    if len(found) == 1:  # quicker than a list of one
        return {"term": {"tokens": found[0]}}
    if isinstance(rule, Rule) and rule.match == "all":
        return {"bool": {"filter": [{"term": {"tokens": token}} for token in found]}}
    return {"terms": {"tokens": found}}


def _equal(field: str, values: Iterable[Scalar]) -> Iterable[str]:
    return (equality_token(field, value) for value in values)


def _within(span: Range, config: Config) -> Body:
    """The items that have a value within a range."""
    if not is_name(span.field):
        return _NOTHING
    dates = {config.items.available: "available", config.items.expires: "expires"}
    low, high = range_tokens(span)
    field = "tokens"
    limits: dict[str, Any] = {"gte": low, "lte": high}
    if span.field in dates and (isinstance(span.min, str) or isinstance(span.max, str)):
        ends = {"gte": span.min, "lte": span.max}
        limits = {end: moment(str(at)) for end, at in ends.items() if at is not None}
        field = dates[span.field]
    return {"range": {field: limits}}


def _outside(span: Range, config: Config) -> Body:
    """The items that have the property, but no value within the range.

    Every query asks for dates of availability, which few items have: to leave these few out is much quicker than to
    look at each item whether it has none.
    """
    if not is_name(span.field):
        return _NOTHING
    there = {"term": {"tokens": presence_token(span.field)}}
    return {"bool": {"filter": [there], "must_not": [_within(span, config)]}}


def _float32(value: float) -> float:
    return float(np.float32(value))
