"""From a request and the user's own history to the query that an index is asked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cco.config import Config
from cco.config_errors import nearest
from cco.vocabulary import id_problem
from model_sync.availability import available
from model_sync.backfill import RANDOM
from model_sync.contract import MAX_EXCLUDED, Boost, Query, QueryError, Range, Rule
from model_sync.metadata import moment, shown
from model_sync.questions import asked_history, at_most_one, latest, random_begin
from model_sync.service.models import Question, RuleModel


def check_subject(question: Question) -> None:
    """What must hold before anything is looked up. Raises QueryError."""
    at_most_one({"user": question.user, "item": question.item, "items": question.items, "history": question.history})
    problem = None if question.user is None else id_problem(question.user)
    if problem is not None:
        raise QueryError("user", f"the id {shown(question.user)} {problem}")


def query_of(question: Question, config: Config, own: Mapping[str, list[str]], now: str) -> Query:
    """The query for a question. `own`: the user's whole history, per indicator latest first, where it asks for a user.

    `now` is the date (ISO 8601) where the question names none. Raises QueryError with the request's paths, the
    index another one with the query's (`model_sync.service.problems.of_query` knows both).
    """
    own = {name: ids for name, ids in own.items() if name in config.indicators}  # it may be as of another cco.toml
    whole = asked_history(config.primary, question.item, question.items, question.history, own)
    date = now if question.current_date is None else question.current_date
    if moment(date) is None:
        raise QueryError("current_date", f"{shown(date)} is not an ISO 8601 date")
    asked = whole if question.user is None else latest(whole)
    if question.indicators is not None:
        asked = {name: ids for name, ids in asked.items() if question.indicators.get(name, 0.0) > 0}
    ranges, unavailable = available(config, date)
    return Query(
        history=asked,
        weights=question.indicators or {},
        include=_rules(question.include),
        exclude=(*_rules(question.exclude), *unavailable),
        boost=tuple(Boost(boost.field, tuple(boost.values), boost.factor) for boost in question.boost),
        ranges=(*(Range(span.field, span.min, span.max, span.missing) for span in question.ranges), *ranges),
        exclude_items=_left_out(question, config, whole),
        num=question.num,
        offset=question.from_,
        priors=question.priors,
        backfill=None if question.backfill == "none" else question.backfill,
        shuffle=random_begin(date, question.user, whole) if question.backfill == RANDOM else 0.0,
        fields=None if question.fields is None else tuple(question.fields),
        explain=question.explain,
    )


def _rules(models: Iterable[RuleModel]) -> tuple[Rule, ...]:
    return tuple(Rule(model.field, tuple(model.values), model.match) for model in models)


def _left_out(question: Question, config: Config, whole: Mapping[str, Sequence[str]]) -> list[str]:
    """Ids that must not come back: those named, then of the history as many as an index takes, latest first."""
    names = _excluded_indicators(question, config)
    if question.item is not None or question.items is not None:
        names = [config.primary]  # where the question itself is
    if question.return_self and question.user is None:
        names = []
    seen = (item for name in names for item in whole.get(name, ()))
    return list(dict.fromkeys([*question.exclude_items, *seen]))[:MAX_EXCLUDED]


def _excluded_indicators(question: Question, config: Config) -> list[str]:
    """Indicators whose items of the history are left out. Raises QueryError."""
    if question.exclude_events is None:
        return [config.primary]
    found: list[str] = []
    for k, event in enumerate(question.exclude_events):
        if event in config.indicators:
            found.append(event)
            continue
        counting = [name for name in config.indicator_names if event in config.indicators[name].events]
        if not counting:
            known = sorted({*config.indicator_names, *config.event_types})
            raise QueryError(
                f"exclude_events[{k}]",
                f"there is no event type or indicator {shown(event)}{nearest(event, known)}; known: {', '.join(known)}",
            )
        found += counting
    return found
