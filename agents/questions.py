"""What `Engine.recommend` and `Engine.explain` are asked, checked before anything is made of it; answers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from model_sync.contract import MAX_HISTORY, QueryError, Rule, rules
from model_sync.metadata import Scalar, shown

MAX_LATEST = 1_000  # items per indicator that a user's own history asks with

Values = Scalar | Iterable[Scalar]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """An item, its score (0 for backfill) and what is known of it."""

    item: str
    score: float
    properties: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one history item adds to the score of an item, and the counts behind its LLR.

    `weight` is the published LLR; the counts are of users and of now: `k` have both items, `n_row` the
    recommended one, `n_col` the history item under the indicator, out of `n`.
    """

    indicator: str
    history_item: str
    contribution: float
    weight: float
    k: int
    n_row: int
    n_col: int
    n: int


def text_of(path: str, value: object) -> str:
    """An id. Raises QueryError."""
    if not isinstance(value, str):
        raise QueryError(path, f"{shown(value)} is not text")
    return value


def list_of(path: str, value: object, of: type = object) -> list[Any]:
    """The elements of a collection of `of`. Raises QueryError: text is no list of its letters."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        raise QueryError(path, f"{shown(value)} is not possible; give a list")
    found = list(value)
    for k, element in enumerate(found):
        if not isinstance(element, of):
            raise QueryError(f"{path}[{k}]", f"{shown(element)} is not {'text' if of is str else f'a {of.__name__}'}")
    return found


def ids_of(path: str, value: object, limit: int) -> list[str]:
    """A list of at most `limit` ids. Raises QueryError."""
    found = list_of(path, value, str)
    if len(found) > limit:
        raise QueryError(path, f"{len(found)} items; at most {limit} are possible")
    return found


def table_of(path: str, value: object) -> Mapping[str, Any]:
    """Values by name; none for None. Raises QueryError."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise QueryError(path, f"{shown(value)} is not possible; give a mapping by name")
    for name in value:
        if not isinstance(name, str):
            raise QueryError(path, f"the name {shown(name)} is not text")
    return value


def history_of(history: object) -> dict[str, list[str]]:
    """A given history: item ids per indicator. Raises QueryError."""
    return {name: ids_of(f"history.{name}", ids, MAX_HISTORY) for name, ids in table_of("history", history).items()}


def rules_of(path: str, fields: object) -> tuple[Rule, ...]:
    """One rule per field. Raises QueryError."""
    given = table_of(path, fields)
    for name, values in given.items():
        if not isinstance(values, Scalar):
            list_of(f"{path}.{name}", values)
    return rules(given)


def latest(history: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The part of a user's own history that a query may ask with, given latest first.

    Per indicator at most MAX_LATEST, and fewer where all of them were more than MAX_HISTORY together.
    """
    asked = {name: ids[:MAX_LATEST] for name, ids in history.items()}
    if sum(map(len, asked.values())) > MAX_HISTORY:
        each = MAX_HISTORY // sum(map(bool, asked.values()))
        asked = {name: ids[:each] for name, ids in asked.items()}
    return asked
