"""What the service stands on: an index with users' histories, and a place where events go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from model_sync.contract import Hit, Query
from model_sync.metadata import Properties


class StoreProblem(Exception):
    """The store, or the sink of events, cannot answer now: one readable sentence for whoever runs it."""


class Store(Protocol):
    """Every method raises StoreProblem where what it stands on is away. Called on the event loop."""

    async def search(self, query: Query) -> list[Hit]:
        """The best hits, best first. Raises QueryError too."""
        ...

    async def history(self, user: str) -> Mapping[str, list[str]]:
        """The user's retained items per indicator, latest first; nothing for an unknown user.

        Has the user's own latest events, as soon as they were acknowledged and applied.
        """
        ...

    async def properties(self, item: str) -> Properties | None:
        """Metadata of an item; None where it has none."""
        ...

    async def problem(self) -> str | None:
        """What keeps it from answering, in a sentence; None while it is ready."""
        ...


class EventSink(Protocol):
    """Takes records as `cco.events` knows them: interactions, `$delete`, and changes of items."""

    async def accept(self, records: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """For each record None, once it is accepted as durably as the sink promises, or else why it is not.

        Raises StoreProblem if none of them could be taken now; sending them again does no harm.
        """
        ...
