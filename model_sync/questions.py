"""What is common to every way of asking for recommendations: checks of what is asked, and how histories are cut."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from model_sync.contract import MAX_HISTORY, QueryError, Rule, rules
from model_sync.metadata import Scalar, moment, shown

MAX_LATEST = 1_000  # items per indicator that a user's own history asks with
MAX_BASKET = 1_000
_DAY = 86_400_000  # milliseconds

Values = Scalar | Iterable[Scalar]


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


def at_most_one(given: Mapping[str, object]) -> None:
    """Raises QueryError if more than one of what a question may be about is there (is not None)."""
    if sum(value is not None for value in given.values()) > 1:
        raise QueryError(", ".join(given), "more than one is given; they exclude each other")


def asked_history(
    primary: str, item: str | None, items: object, history: object, own: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """The item ids per indicator that a question is about; `own` where it is about a user, or nothing.

    Who looks at an item, or has a basket, has these as a history of the primary. Raises QueryError.
    """
    if history is not None:
        return history_of(history)
    if items is not None:
        return {primary: ids_of("items", items, MAX_BASKET)}
    if item is not None:
        return {primary: [text_of("item", item)]}
    return dict(own)


def latest(history: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The part of a user's own history that a query may ask with, given latest first.

    Per indicator at most MAX_LATEST, and fewer where all of them were more than MAX_HISTORY together.
    """
    asked = {name: ids[:MAX_LATEST] for name, ids in history.items()}
    if sum(map(len, asked.values())) > MAX_HISTORY:
        each = MAX_HISTORY // sum(map(bool, asked.values()))
        asked = {name: ids[:each] for name, ids in asked.items()}
    return asked


def random_begin(date: str | None, user: str | None, asked: Mapping[str, list[str]]) -> float:
    """Where the random order of a question begins (`Query.shuffle`): elsewhere for each user, and on each day (UTC).

    Without a user it goes by what is asked with, so that pages of one question join. `date`: ISO 8601; None is the
    machine's clock.
    """
    day = (moment(date or datetime.now(UTC).isoformat()) or 0) // _DAY
    about = [user] if user is not None else [item for ids in asked.values() for item in ids]
    text = "\0".join([str(day), *about])
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()  # what is no id is no error here
    return int.from_bytes(digest[:3]) / 2**24  # as exact in float32 as the numbers of the ids
