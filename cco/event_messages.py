"""What holds for the messages of a source partition beyond their records: their keys, and where they may be.

The key of an interaction is the UTF-8 of its user id, and the partition is the one that Kafka's Java client
gives to that key. Else the events of one user would be spread over stages, each deciding on a part of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import ne

import numpy as np
import numpy.typing as npt

from cco.columns import Mask
from cco.event_data import ItemChange
from cco.fields import Event
from cco.hashing import kafka_partitions
from cco.json_records import BLANK, any_json
from cco.values import BadRecord
from cco.vocabulary import MAX_PARTITIONS

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHOWN = 60  # characters of a key or an id in a reason


class MessageKeys:
    """The keys of messages found in partition `partition` of `partitions`."""

    def __init__(self, keys: Sequence[bytes | None], partition: int, partitions: int) -> None:
        """Raises ValueError if there is no such partition."""
        if not 0 <= partition < partitions <= MAX_PARTITIONS:
            raise ValueError(f"there is no partition {partition} of {partitions}; 1 to {MAX_PARTITIONS} are possible")
        self._keys = list(keys)
        self._partition, self._partitions = partition, partitions
        self._belong = _partitions_of(self._keys, partitions)

    def suspects(self, users: Sequence[str]) -> Mask:
        """(n,) where a key is not its user's, or lies in a partition where it does not belong."""
        away: Mask = self._belong != self._partition
        encoded = list(map(str.encode, users))  # the decoder gives no text that has no UTF-8
        if encoded != self._keys:
            away |= np.fromiter(map(ne, encoded, self._keys), np.bool_, len(encoded))
        return away

    def check(self, k: int, found: Event | ItemChange) -> None:
        """Raises BadRecord if what message k says may not be said under its key, or not here."""
        if isinstance(found, ItemChange):
            raise BadRecord("a change of an item belongs to the topic items, not among the interactions", "item_change")
        if found.user is None:  # a clock event is about this partition, whatever its key
            return
        key = self._keys[k]
        if not key:
            state = "missing" if key is None else "empty"
            raise BadRecord(f"the key is {state}; it must be the user id {_shown(found.user)}", "key")
        if key != found.user.encode():
            text = _shown(key.decode(errors="backslashreplace"))
            raise BadRecord(f"the key {text} is not the user id {_shown(found.user)}", "key")
        if self._belong[k] != self._partition:
            raise BadRecord(
                f"the key {_shown(found.user)} belongs to partition {self._belong[k]} of {self._partitions}, not to"
                f" {self._partition}: its producer must partition by murmur2, as Kafka's Java client does"
                " (with librdkafka: partitioner=murmur2_random)",
                "partition",
            )


def record_of(value: bytes | None) -> object:
    """Whatever a message says. Raises BadRecord if that is nothing, or not JSON."""
    if value is None:
        raise BadRecord("the message has no value (a tombstone); to delete a user, send the event $delete", "empty")
    record = any_json(value.removeprefix(BYTE_ORDER_MARK), "message")
    if record is BLANK:
        raise BadRecord("the message is empty", "empty")
    return record


def _partitions_of(keys: Sequence[bytes | None], partitions: int) -> npt.NDArray[np.uint16]:
    """(n,) the partition of each key; that of an empty one for a missing one."""
    try:
        data = b"".join(keys)  # type: ignore[arg-type]  # tried: a key is hardly ever missing
    except TypeError:
        return _partitions_of([key or b"" for key in keys], partitions)
    offsets = np.zeros(len(keys) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)), out=offsets[1:])  # type: ignore[arg-type]
    found = np.empty(len(keys), np.uint16)
    kafka_partitions(np.frombuffer(data, np.uint8), offsets, 0, partitions, found)
    return found


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
