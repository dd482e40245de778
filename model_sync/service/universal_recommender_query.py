"""Queries of the Universal Recommender 0.8 in the words of the Index contract. No I/O and no clock.

What differs from it on purpose is listed in docs/universal-recommender.md.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from cco.config import Config
from model_sync.availability import available
from model_sync.contract import (
    MAX_EXCLUDED,
    MAX_FACTOR,
    MAX_HISTORY,
    MAX_IDS,
    MAX_NUM,
    MAX_OFFSET,
    MAX_RULES,
    MAX_VALUES,
    MIN_FACTOR,
    Boost,
    Query,
    QueryError,
    Range,
    Rule,
)
from model_sync.metadata import MAX_WHOLE, Scalar, moment, scalar_problem, shown
from model_sync.questions import MAX_BASKET, latest

MAX_FIELDS = MAX_RULES - 3  # those of availability are asked for besides
MAX_NAME = 256  # characters
MAX_BIAS = 1e5  # of a user, an item and an itemSet: their sum is still a factor
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RANK_NAMES = {"popular": "popRank", "trending": "trendRank", "hot": "hotRank"}
_LATEST_MS = 253_000_000_000_000  # early in 9987: a millisecond more is still a date
_EARLIEST_MS = -62_000_000_000_000  # in the year 5


def _text(value: object) -> object:
    """Whole numbers as text: the Universal Recommender takes {"user": 1} for "1"."""
    return str(value) if type(value) is int and abs(value) <= MAX_WHOLE else value


def _scalar(value: object) -> object:
    problem = scalar_problem(value)
    if problem is not None:
        raise ValueError(f"{shown(value)} {problem}")
    return value


def _bias(value: float) -> float:
    if value != 0 and not MIN_FACTOR <= value <= MAX_BIAS:
        raise ValueError(f"{shown(value)} is not possible; 0, or a number from {MIN_FACTOR:g} to {MAX_BIAS:g} is")
    return value


def _field_bias(value: float) -> float:
    if value > 0 and not MIN_FACTOR <= value <= MAX_FACTOR:
        raise ValueError(f"{shown(value)} is not possible; a boost is from {MIN_FACTOR:g} to {MAX_FACTOR:g}")
    return value


def _date(value: str | None) -> str | None:
    if not value:
        return None
    if moment(value) is None:
        raise ValueError(f"{shown(value)} is not an ISO 8601 date")
    return value


_Id = Annotated[str, BeforeValidator(_text), Field(max_length=512)]
_Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
_Bias = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_bias)]
_Date = Annotated[str | None, Field(max_length=64), AfterValidator(_date)]
_Value = Annotated[str | bool | int | float, BeforeValidator(_scalar)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class AskedField(_Part):
    """A rule on a property: `bias` below 0 returns only items with any of the values, 0 none of them; a positive one
    multiplies the score of those that have any.
    """

    name: _Name
    values: Annotated[list[_Value], Field(min_length=1, max_length=MAX_VALUES)]
    bias: Annotated[float, Field(allow_inf_nan=False), AfterValidator(_field_bias)]


class DateRange(_Part):
    """Items whose date `name` is after `after` and before `before`, neither included; one may be left out."""

    name: _Name
    before: _Date = None
    after: _Date = None


class AskedQuery(_Part):
    """The body of POST /queries.json."""

    user: _Id | None = None
    item: _Id | None = None
    itemSet: Annotated[list[_Id], Field(max_length=MAX_BASKET)] | None = None
    userBias: _Bias | None = None
    itemBias: _Bias | None = None
    itemSetBias: _Bias | None = None
    fields: Annotated[list[AskedField], Field(max_length=MAX_FIELDS)] | None = None
    dateRange: DateRange | None = None
    currentDate: _Date = None
    blacklistItems: Annotated[list[_Id], Field(max_length=MAX_IDS)] | None = None
    returnSelf: bool | None = None
    withRanks: bool | None = None
    num: Annotated[int, Field(ge=0, le=MAX_NUM)] | None = None
    from_: Annotated[Annotated[int, Field(ge=0, le=MAX_OFFSET)] | None, Field(alias="from")] = None
    eventNames: Annotated[list[_Name], Field(max_length=MAX_VALUES)] | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the Universal Recommender has in engine.json for queries that do not say it.

    blacklist_events: event types, or names of indicators, whose items in the user's history are left out; None is
    the primary's.
    """

    num: int = 20
    blacklist_events: tuple[str, ...] | None = None
    return_self: bool = False


_DEFAULTS = Defaults()


def parse_query(body: bytes) -> AskedQuery:
    """The query in a body of JSON. Raises QueryError with the path of the first part that is not possible."""
    try:
        return AskedQuery.model_validate_json(body or b"{}")  # the SDK sends no body for {}
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
    found = next((problem for problem in problems if problem["type"] == "extra_forbidden"), problems[0])
    at = found["loc"]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in at).lstrip(".")
    if found["type"] == "extra_forbidden":
        raise QueryError(path, f"is not known{_hint(str(at[-1]), _names_at(at))}")
    if found["type"] == "json_invalid":
        raise QueryError("the body", f"is not valid JSON: {found['msg'].removeprefix('Invalid JSON: ')}")
    raise QueryError(path or "the body", found["msg"].removeprefix("Value error, "))


def _names_at(path: Sequence[int | str]) -> list[str]:
    """The keys that are possible where an unknown one was found."""
    if len(path) == 1:
        return [field.alias or name for name, field in AskedQuery.model_fields.items()]
    return list((AskedField if path[0] == "fields" else DateRange).model_fields)


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(known))}"


def indicators_of(path: str, names: Iterable[str], config: Config) -> tuple[str, ...]:
    """The indicators of these names or event types. Raises QueryError for one that is neither."""
    found: dict[str, None] = {}
    for k, name in enumerate(names):
        of = [name] if name in config.indicators else [i for i, v in config.indicators.items() if name in v.events]
        if not of:
            known = {*config.indicator_names, *config.event_types}
            raise QueryError(
                f"{path}[{k}]", f"{shown(name)} is neither an indicator nor an event type of one{_hint(name, known)}"
            )
        found |= dict.fromkeys(of)
    return tuple(found)


def translate(
    asked: AskedQuery,
    history: Mapping[str, Sequence[str]],
    config: Config,
    now: str,
    defaults: Defaults = _DEFAULTS,
) -> Query:
    """The query of the Index contract that `asked` means. Raises QueryError.

    history: of `asked.user`, item ids per indicator, latest first; {} for none. now: ISO 8601, for dates that
    `asked` does not set. `asked.num` may be 0, which has no query: nobody needs to ask.
    """
    terms = _terms(asked, history, config)
    ranges, excluding = available(config, asked.currentDate or now)
    fields = asked.fields or ()
    return Query(
        history={name: tuple(biases) for name, biases in terms.items()},
        history_weights={
            name: {item: bias for item, bias in biases.items() if bias != 1} for name, biases in terms.items()
        },
        include=tuple(Rule(field.name, _values(field)) for field in fields if field.bias < 0),
        exclude=(*(Rule(field.name, _values(field)) for field in fields if field.bias == 0), *excluding),
        boost=tuple(Boost(field.name, _values(field), field.bias) for field in fields if field.bias > 0),
        ranges=(*_date_ranges(asked.dateRange), *ranges),
        exclude_items=_excluded(asked, history, config, defaults),
        num=max(1, defaults.num if asked.num is None else asked.num),
        offset=asked.from_ or 0,
        fields=(config.items.rank,) if asked.withRanks else (),
    )


def _terms(asked: AskedQuery, history: Mapping[str, Sequence[str]], config: Config) -> dict[str, dict[str, float]]:
    """Indicator -> item -> bias. An item that is there for two reasons counts for both: its biases are added."""
    terms: dict[str, dict[str, float]] = {}

    def add(name: str, items: Iterable[str], bias: float | None) -> None:
        biases = terms.setdefault(name, {})
        for item in dict.fromkeys(items):
            if bias != 0 and item:
                biases[item] = biases.get(item, 0.0) + (1.0 if bias is None else bias)

    if asked.item:
        add(config.primary, [asked.item], asked.itemBias)
    if asked.itemSet:
        add(config.primary, asked.itemSet, asked.itemSetBias)
    room = MAX_HISTORY - sum(map(len, terms.values()))
    names = config.indicator_names
    if asked.eventNames is not None:
        names = indicators_of("eventNames", asked.eventNames, config)
    of_user = latest({name: list(history[name]) for name in names if history.get(name)})
    if sum(map(len, of_user.values())) > room:
        of_user = {name: items[: room // len(of_user)] for name, items in of_user.items()}
    for name, items in of_user.items():
        add(name, items, asked.userBias)
    return {name: biases for name, biases in terms.items() if biases}


def _values(field: AskedField) -> tuple[Scalar, ...]:
    return tuple(field.values)


def _excluded(
    asked: AskedQuery, history: Mapping[str, Sequence[str]], config: Config, defaults: Defaults
) -> frozenset[str]:
    """Items that are never the answer: what the question is about, on the blacklist, or done already.

    Of these as many as an index takes, latest first.
    """
    done = (
        (config.primary,)
        if defaults.blacklist_events is None
        else indicators_of("blacklist_events", defaults.blacklist_events, config)
    )
    return_self = defaults.return_self if asked.returnSelf is None else asked.returnSelf
    asked_about = [asked.item] if asked.item and not return_self else []
    seen = (item for name in done for item in history.get(name, ()))
    excluded = dict.fromkeys([*asked_about, *(asked.itemSet or ()), *(asked.blacklistItems or ()), *seen])
    return frozenset(list(excluded)[:MAX_EXCLUDED])


def _date_ranges(asked: DateRange | None) -> tuple[Range, ...]:
    """Dates have milliseconds, so strictly after one is from the next millisecond on."""
    if asked is None or (asked.after is None and asked.before is None):
        return ()
    return (Range(asked.name, _beside(asked.after, 1), _beside(asked.before, -1)),)


def _beside(date: str | None, milliseconds: int) -> str | None:
    at = None if date is None else moment(date)
    if at is None:
        return None
    within = min(max(at + milliseconds, _EARLIEST_MS), _LATEST_MS)
    return (_EPOCH + timedelta(milliseconds=within)).isoformat(timespec="milliseconds")


def ranks_of(rank: str, properties: Mapping[str, Any], priors: Mapping[str, float]) -> dict[str, float]:
    """What withRanks returns of an item: its priors, and the property `rank` where it is a number."""
    own = properties.get(rank)
    ranks = {RANK_NAMES.get(name, f"{name}Rank"): value for name, value in priors.items()}
    if isinstance(own, int | float) and not isinstance(own, bool) and math.isfinite(own):
        ranks["userRank"] = float(own)
    return ranks
