"""Events as the engine sees them, columns of small integers, and what else comes out of parsing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from cco.values import Code

DELETE_USER = -1
CLOCK = -2

RECORD_SHOWN = 200


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Accepted events in log order, as parallel columns of length n."""

    users: npt.NDArray[np.uint32]  # positions in the users' vocabulary; 0 for CLOCK
    items: npt.NDArray[np.uint32]  # positions in the items' vocabulary; 0 where there is none
    types: npt.NDArray[np.int16]  # positions in Config.event_types, DELETE_USER or CLOCK
    times: npt.NDArray[np.uint32]  # epoch seconds, rounded down; 0 where the event has none

    def __len__(self) -> int:
        return int(self.types.size)

    def part(self, start: int, stop: int) -> EventBatch:
        """Events start to stop - 1, as views."""
        return EventBatch(
            self.users[start:stop], self.items[start:stop], self.types[start:stop], self.times[start:stop]
        )

    @classmethod
    def join(cls, batches: Sequence[EventBatch]) -> EventBatch:
        """One batch of all, in order; an empty one of none."""
        if not batches:
            return cls(np.empty(0, np.uint32), np.empty(0, np.uint32), np.empty(0, np.int16), np.empty(0, np.uint32))
        if len(batches) == 1:
            return batches[0]
        return cls(
            np.concatenate([b.users for b in batches]),
            np.concatenate([b.items for b in batches]),
            np.concatenate([b.types for b in batches]),
            np.concatenate([b.times for b in batches]),
        )


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that is not an event, and why."""

    line: int  # number of the record in its file or list, from 1
    reason: str  # a sentence for the person who reads it
    record: str  # the record, shortened to 200 characters
    file: str = ""  # where it was read, if from a file
    code: Code = "record"  # the kind of reason


@dataclass(frozen=True, slots=True)
class ItemChange:
    """Metadata of an item: set, unset or delete."""

    item_id: str
    kind: Literal["set", "unset", "delete"]
    properties: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What became of some records: each is an event, a change of an item, or a rejection."""

    batch: EventBatch
    rejections: list[Rejection]
    item_changes: list[ItemChange]

    @classmethod
    def join(cls, parts: Sequence[Parsed]) -> Parsed:
        """One of all, in order; an empty one of none."""
        return cls(
            EventBatch.join([part.batch for part in parts]),
            [rejection for part in parts for rejection in part.rejections],
            [change for part in parts for change in part.item_changes],
        )


def shortened(record: str) -> str:
    """At most 200 characters of a record, for people."""
    return record if len(record) <= RECORD_SHOWN else record[: RECORD_SHOWN - 3] + "..."
