"""Documents of users: what the stream retains of a user, for queries. Written whole, by position of the log.

The retained history is a function of the source's log, so of two documents of a user the one that stands for more of
the log is right: Elasticsearch keeps it by itself (`version_type=external_gte`, version = position), and a late write
of an owner that was followed by another is refused for ever. A user who is deleted keeps an empty document for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from model_sync.elastic_names import decoded, encoded


class UserDocument(NamedTuple):
    """A user's whole document as JSON, and the version that of two documents of the user is higher for the later."""

    user: str
    version: int
    body: bytes


MOST_ITEMS = 10_000  # of an indicator, as many as a user_cap allows: a query leaves out all that was done

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class UserHistory:
    """What a document says of a user: item ids per indicator, latest first."""

    items: dict[str, list[str]] = field(default_factory=dict)
    position: int = -1  # offset of the source after the last event that counts; -1: there is no document


def user_document(
    history: Mapping[str, tuple[Sequence[str], int]], last: int | None, member: bool, source: int, position: int
) -> bytes:
    """The document of a user as JSON.

    `history`: per indicator the latest item ids (at most MOST_ITEMS count), and how many are retained. `last`: epoch
    seconds of the latest retained event. `position`: offset of `source` that the document stands for.
    """
    body: dict[str, Any] = {
        "history": {encoded(name): list(ids[:MOST_ITEMS]) for name, (ids, _) in history.items() if ids},
        "counts": {encoded(name): count for name, (ids, count) in history.items() if ids},
        "source": source,
        "position": position,
    }
    if body["history"]:
        body["last"], body["member"] = last, member
    return _encode(body)


def user_history(source: Mapping[str, Any] | None) -> UserHistory:
    """What a document says, given its `_source`; None where there is no document."""
    if source is None:
        return UserHistory()
    found = {decoded(name): list(ids) for name, ids in source["history"].items()}
    return UserHistory(found, int(source["position"]))
