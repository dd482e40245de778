"""Which items may be recommended now: not those that are not recommendable, not yet available or expired."""

from __future__ import annotations

from datetime import UTC, datetime

from cco.config import Config
from model_sync.contract import QueryError, Range, Rule
from model_sync.metadata import moment, shown


def available(config: Config, now: str | None = None, path: str = "now") -> tuple[tuple[Range, ...], tuple[Rule, ...]]:
    """Ranges that an item must be within, and rules that it must not match, to be recommended.

    `now`: ISO 8601; None is the machine's clock. The names of the properties are `config.items`'. An item without
    them is available; one whose dates are there and are no dates is not. Raises QueryError, with `path`, for a `now`
    that is no date.
    """
    if now is None:
        now = datetime.now(UTC).isoformat()
    elif not isinstance(now, str) or moment(now) is None:
        raise QueryError(path, f"{shown(now)} is not an ISO 8601 date")
    items = config.items
    ranges = (Range(items.available, None, now, missing=True), Range(items.expires, now, None, missing=True))
    return ranges, (Rule(items.recommendable, (False,)),)
