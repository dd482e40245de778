"""Single values of a record, and the one exception of a record that cannot be used."""

from __future__ import annotations

import math
import numbers
from typing import Literal, get_args

MAX_BITS = 1_000  # larger whole numbers are infinite to us: they neither print nor become floats


Code = Literal[
    "json",  # not JSON
    "shape",  # JSON of another form
    "type",  # of the event
    "user",
    "item",
    "time",
    "weight",
    "key",  # of the message: not its user
    "partition",  # of the message: not where its key belongs
    "item_change",  # refused metadata, or metadata in a wrong place
    "empty",  # nothing in it
    "record",  # whatever else
]
CODES: tuple[Code, ...] = get_args(Code)


class BadRecord(ValueError):
    """A record that is refused; the message is the reason, a sentence without a full stop.

    `code` is the kind of reason, one of few: for counting.
    """

    def __init__(self, reason: str, code: Code = "record") -> None:
        super().__init__(reason)
        self.code: Code = code


def as_number(value: object) -> int | float | None:
    """A number of any kind (numpy's too) as Python's; None if it is none. True and False are none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return value
    if isinstance(value, numbers.Integral):
        whole = int(value)
        return whole if whole.bit_length() <= MAX_BITS else (math.inf if whole > 0 else -math.inf)
    return float(value) if isinstance(value, numbers.Real) else None
