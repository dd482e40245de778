"""Answers of `Engine.recommend` and `Engine.explain`; what is asked is checked by `model_sync.questions`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from model_sync.questions import (
    MAX_LATEST,
    Values,
    asked_history,
    at_most_one,
    history_of,
    ids_of,
    latest,
    list_of,
    random_begin,
    rules_of,
    table_of,
    text_of,
)

__all__ = [
    "MAX_LATEST",
    "Contribution",
    "Recommendation",
    "Values",
    "asked_history",
    "at_most_one",
    "history_of",
    "ids_of",
    "latest",
    "list_of",
    "random_begin",
    "rules_of",
    "table_of",
    "text_of",
]


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
